#!/bin/sh
# Asks a daemon over gRPC with curl alone. Needs curl with HTTP/2.
set -eu
address=${LCA_GRPC:-127.0.0.1:4210}
token=$(cat "${LCA_TOKEN_FILE:?the file that lcactl up prints in its line gRPC}")
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT

# A call with an empty message: a byte 0 (not compressed) and a length of four bytes, 0.
call() { # call METHOD [HEADER]
    printf '\0\0\0\0\0' | curl --silent --show-error --noproxy '*' --max-time 10 \
        --http2-prior-knowledge --dump-header "$headers" --data-binary @- \
        --header 'content-type: application/grpc' --header 'te: trailers' \
        --header "${2:-x-none: 1}" "http://$address/$1"
    status=$(tr -d '\r' <"$headers" | sed -n 's/^grpc-status: //p')
    [ "$status" = 0 ] || {
        echo "$1: gRPC status $status: $(tr -d '\r' <"$headers" | sed -n 's/^grpc-message: //p')" >&2
        return 1
    }
}

# The answer is a frame header of five bytes, then field 1 (08): 1 is SERVING.
case $(call grpc.health.v1.Health/Check | od -An -tx1 | tr -d ' \n') in
00000000020801) echo SERVING ;;
*) echo "NOT SERVING" ;;
esac

# Field names are not on the wire; the texts in the answer are.
call lca.v1.Instances/ListInstances "authorization: Bearer $token" | tr -c '[:print:]' '\n' | grep -E '.{6,}' || echo "no instances"
