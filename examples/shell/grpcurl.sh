#!/bin/sh
# Asks a daemon over gRPC with grpcurl, which learns the API by reflection.
set -eu
command -v grpcurl >/dev/null || { echo "grpcurl is needed: https://github.com/fullstorydev/grpcurl" >&2; exit 1; }
address=${LCA_GRPC:-127.0.0.1:4210}
token=$(cat "${LCA_TOKEN_FILE:?the file that lcactl up prints in its line gRPC}")
ask() { grpcurl -plaintext -H "authorization: Bearer $token" "$@"; }

ask "$address" list
ask "$address" describe lca.v1.Instances
ask "$address" grpc.health.v1.Health/Check
ask "$address" lca.v1.Manager/ListPeers
ask -d '{"service": "hello-world-server"}' "$address" lca.v1.Manager/Allocate
ask "$address" lca.v1.Instances/ListInstances
