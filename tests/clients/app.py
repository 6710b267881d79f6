"""What the clients of drive.py talk to: one program in three languages, started by an allocator.

usage: app.py http|websocket|grpc
"""

import asyncio
import hashlib
import os
import sys
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ["SERVICE_PORT"])


class Http(BaseHTTPRequestHandler):
    """A web application that knows nothing of where its clients find it."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        if self.path == "/login":
            self.answer(302, Location="/home", Set_Cookie="session=42; Path=/")
        elif self.path == "/home":
            self.answer(200, self.headers.get("Cookie", "nobody").encode())
        elif self.path == "/stream":
            self.stream()
        elif self.path.startswith("/bytes/"):
            self.bytes(int(self.path.removeprefix("/bytes/")))
        elif self.path == "/nothing":
            self.send_response(204)
            self.end_headers()
        else:
            said = f"{self.command} {self.path} {self.headers['Host']}\n"
            self.answer(200, said.encode(), Content_Type="text/plain")

    do_HEAD = do_GET

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(5):
            event = f"data: {number}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
            time.sleep(0.3)
        self.wfile.write(b"0\r\n\r\n")

    def bytes(self, left):
        self.send_response(200)
        self.send_header("Content-Length", str(left))
        self.end_headers()
        some = bytes(1 << 18)
        while left:
            left -= self.wfile.write(some[: min(left, len(some))])

    def parts(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left and (part := self.rfile.read(min(left, 1 << 16))):
            left -= len(part)
            yield part

    def do_POST(self):
        digest, length = hashlib.sha256(), 0
        for part in self.parts():
            digest.update(part)
            length += len(part)
        self.answer(200, f"{length} {digest.hexdigest()}\n".encode())

    do_PUT = do_POST

    def log_message(self, *_):
        pass


async def websocket():
    from websockets.asyncio.server import serve

    async def echo(connection):
        async for message in connection:
            if message == "leave":
                await connection.close(4001, "as told")
            else:
                await connection.send(message)

    async with serve(echo, "127.0.0.1", PORT, max_size=None) as server:
        await server.serve_forever()


def grpc_server():
    import grpc

    def say(request, context):
        context.set_trailing_metadata((("x-heard", str(len(request))),))
        return request

    def talk(requests, context):
        yield from requests

    def count(request, context):
        for number in range(int(request)):
            yield str(number).encode() * 1000

    def fail(request, context):
        context.abort(grpc.StatusCode.ABORTED, request.decode())

    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    if not server.add_insecure_port(f"127.0.0.1:{PORT}"):
        sys.exit(f"cannot listen on {PORT}")
    server.start()
    server.wait_for_termination()


match sys.argv[1]:
    case "http":
        ThreadingHTTPServer(("127.0.0.1", PORT), Http).serve_forever()
    case "websocket":
        asyncio.run(websocket())
    case "grpc":
        grpc_server()
    case other:
        sys.exit(f"{other}: not known")
