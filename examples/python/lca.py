#!/usr/bin/env python3
"""Talks to a daemon of service-manager without generated code: the daemon describes its
API itself (gRPC reflection), and messages are built from that description.

  lca.py health                 is the daemon serving? (needs no token)
  lca.py instances [SERVICE]    what runs where
  lca.py watch [SERVICE]        the same, then every change, until Ctrl-C
  lca.py allocate SERVICE       start an instance, or join one, and say where it is

--address is the daemon's gRPC address; the token is in $LCA_TOKEN, or in the file that
--token-file names (`lcactl up` prints both).
"""

import argparse
import os
import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

# A question that is only looked up; starting a program may take far longer.
ANSWER_S = 10
START_S = 120


class Token(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds `authorization` to every call, reflection included."""

    def __init__(self, token):
        self.header = ("authorization", f"Bearer {token}")

    def _send(self, proceed, details, request):
        metadata = [*(details.metadata or []), self.header]
        return proceed(details._replace(metadata=metadata), request)

    intercept_unary_unary = _send
    intercept_unary_stream = _send
    intercept_stream_stream = _send


class Api:
    """Calls any method of the daemon by its name."""

    def __init__(self, address, token=None):
        # A local daemon is reached directly, whatever proxy the environment names.
        self.channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        if token:
            self.channel = grpc.intercept_channel(self.channel, Token(token))
        database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(database)

    def call(self, service, method, timeout, /, **fields):
        """One message, or an iterator of them if the method streams."""
        about = self.pool.FindServiceByName(service).FindMethodByName(method)
        request = message_factory.GetMessageClass(about.input_type)(**fields)
        answer = message_factory.GetMessageClass(about.output_type)
        kind = self.channel.unary_stream if about.server_streaming else self.channel.unary_unary
        send = kind(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return send(request, timeout=timeout)


def health(address):
    """Reflection needs the token and health does not, so this one goes without both: an
    empty request, and an answer whose only field is the status."""
    channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    status = check(b"", timeout=ANSWER_S)
    return {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}.get(status, "UNKNOWN")


def show(instance):
    state = instance.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number
    word = state[instance.state].name.removeprefix("INSTANCE_STATE_").lower()
    return f"{instance.id[:8]}  {instance.service}  {word}  {' '.join(instance.mesh_addresses)}"


def instances(api, service):
    answer = api.call("lca.v1.Instances", "ListInstances", ANSWER_S, service=service)
    for instance in answer.instances:
        print(show(instance))
    for peer in answer.unreachable_peers:
        print(f"{peer} did not answer; its instances are missing", file=sys.stderr)


def watch(api, service, until_synced):
    # No deadline: a watch lasts as long as we want it.
    for event in api.call("lca.v1.Instances", "WatchInstances", None, service=service):
        match event.WhichOneof("event"):
            case "put":
                print("put   ", show(event.put), flush=True)
            case "gone":
                print("gone  ", event.gone[:8], flush=True)
            case "synced":
                print("synced", flush=True)
                if until_synced:
                    return
            case "capacity":
                used, total = event.capacity.used, event.capacity.total
                peer = event.capacity.peer[-6:]
                print(f"room   {peer}  {used.instances} of {total.instances}", flush=True)
            case _:
                pass  # something newer than this program


def allocate(api, service):
    for progress in api.call("lca.v1.Manager", "Allocate", START_S, service=service):
        match progress.WhichOneof("progress"):
            case "step":
                step = progress.step
                print(f"{step.name:<8} {step.duration_us / 1000:8.1f} ms", file=sys.stderr)
            case "done":
                print(show(progress.done.instance))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", default="127.0.0.1:4210")
    parser.add_argument("--token-file")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("health")
    commands.add_parser("instances").add_argument("service", nargs="?", default="")
    watching = commands.add_parser("watch")
    watching.add_argument("service", nargs="?", default="")
    watching.add_argument("--until-synced", action="store_true", help="end when all was told")
    commands.add_parser("allocate").add_argument("service")
    args = parser.parse_args()

    if args.command == "health":
        print(health(args.address))
        return
    token = os.environ.get("LCA_TOKEN")
    if args.token_file:
        try:
            with open(args.token_file, encoding="ascii") as file:
                token = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            sys.exit(f"error: cannot read the token: {error}")
    api = Api(args.address, token)
    match args.command:
        case "instances":
            instances(api, args.service)
        case "watch":
            watch(api, args.service, args.until_synced)
        case "allocate":
            allocate(api, args.service)


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"error: {error.code().name}: {error.details()}")
    except KeyboardInterrupt:
        sys.exit(130)
