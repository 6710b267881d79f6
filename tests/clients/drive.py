"""Real Python clients against a front: requests, websockets, grpcio.

usage: drive.py FRONT, where FRONT is IP:PORT. Each check says what it is; the first that fails
ends it with an error, as does a minute without a result.
"""

import asyncio
import faulthandler
import hashlib
import queue
import sys
import time

import grpc
import requests
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

FRONT = sys.argv[1]
PORT = FRONT.rpartition(":")[2]
WITHIN = 30  # seconds for one answer, on a machine that has much else to do
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def same(got, wanted):
    if got != wanted:
        raise AssertionError(f"got {got!r}, not {wanted!r}")


@check
def requests_follows_redirects_and_keeps_cookies():
    with requests.Session() as session:
        answer = session.get(f"http://{FRONT}/py-http/login", timeout=WITHIN)
        same((answer.status_code, answer.text), (200, "session=42"))
        same(answer.url, f"http://{FRONT}/py-http/home")
        same([cookie.path for cookie in session.cookies], ["/py-http/"])
        # Another service does not get it.
        answer = session.get(f"http://{FRONT}/py-other/home", timeout=WITHIN)
        same(answer.text, "nobody")


@check
def requests_reaches_it_by_proxy_and_by_name():
    proxies = {"http": f"http://{FRONT}"}
    for url, by in [
        (f"http://{FRONT}/py-http/x?y=%2F", {}),
        ("http://py-http/x?y=%2F", {"proxies": proxies}),
        (f"http://{FRONT}/x?y=%2F", {"headers": {"Host": f"py-http.lca.localhost:{PORT}"}}),
    ]:
        answer = requests.get(url, timeout=WITHIN, **by)
        same((answer.status_code, answer.text), (200, "GET /x?y=%2F py-http\n"))
    answer = requests.get(f"http://{FRONT}/no-such-service/", timeout=WITHIN)
    same((answer.status_code, answer.json()["title"]), (404, "not found"))


@check
def requests_streams_both_ways():
    body = b"0123456789abcdef" * (1 << 16)
    said = f"{len(body)} {hashlib.sha256(body).hexdigest()}\n"
    pieces = (body[n : n + 50_000] for n in range(0, len(body), 50_000))
    for data in [body, pieces]:
        answer = requests.post(f"http://{FRONT}/py-http/upload", data=data, timeout=WITHIN)
        same(answer.text, said)
    answer = requests.get(f"http://{FRONT}/py-http/stream", stream=True, timeout=WITHIN)
    events, came = [], []
    for line in answer.iter_lines(chunk_size=1):
        if line:
            events.append(line)
            came.append(time.monotonic())
    same(events, [b"data: %d" % n for n in range(5)])
    if came[-1] - came[0] < 0.6:
        raise AssertionError("the events came all at once")


@check
def websockets_echoes_and_closes_with_its_code():
    async def run():
        async with connect(f"ws://{FRONT}/py-ws/chat", max_size=None, open_timeout=WITHIN) as ws:
            for message in ["hello", "ü" * 1000, b"\0\1" * 2_000_000]:
                await ws.send(message)
                same(await asyncio.wait_for(ws.recv(), WITHIN), message)
            await asyncio.wait_for(await ws.ping(), WITHIN)
            await ws.send("leave")
            try:
                got = await asyncio.wait_for(ws.recv(), WITHIN)
            except ConnectionClosed as closed:
                same((closed.rcvd.code, closed.rcvd.reason), (4001, "as told"))
            else:
                raise AssertionError(f"it goes on with {got!r}")

    asyncio.run(run())


def channel(service):
    return grpc.insecure_channel(
        FRONT, options=[("grpc.default_authority", f"{service}.lca.localhost:{PORT}")]
    )


def status_of(call):
    try:
        got = call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError(f"no error, but {got!r}")


@check
def grpcio_calls_in_every_way():
    with channel("py-grpc") as ch:
        answer, call = ch.unary_unary("/test.Echo/Say").with_call(b"hello", timeout=WITHIN)
        same(answer, b"hello")
        same(dict(call.trailing_metadata())["x-heard"], "5")
        counted = ch.unary_stream("/test.Echo/Count")(b"500", timeout=WITHIN)
        same([len(part) for part in counted], [len(str(n)) * 1000 for n in range(500)])
        # Each is answered before the next is said.
        said = queue.SimpleQueue()
        talk = ch.stream_stream("/test.Echo/Talk")(iter(said.get, None), timeout=WITHIN)
        for n in range(20):
            said.put(b"%d" % n * 10_000)
            same(next(talk), b"%d" % n * 10_000)
        said.put(None)
        same(list(talk), [])
        same(talk.code(), grpc.StatusCode.OK)
        fail = ch.unary_unary("/test.Echo/Fail")
        same(
            status_of(lambda: fail("schön".encode(), timeout=WITHIN)),
            (grpc.StatusCode.ABORTED, "schön"),
        )


@check
def grpcio_learns_what_is_wrong_here():
    with channel("no-such-service") as ch:
        code, details = status_of(lambda: ch.unary_unary("/test.Echo/Say")(b"", timeout=WITHIN))
        same(code, grpc.StatusCode.NOT_FOUND)
        if "no-such-service" not in details:
            raise AssertionError(details)


@check
def grpcio_cancels_and_keeps_deadlines():
    with channel("py-grpc") as ch:
        never = queue.SimpleQueue()
        talk = ch.stream_stream("/test.Echo/Talk")(iter(never.get, None), timeout=WITHIN)
        talk.cancel()
        same(talk.code(), grpc.StatusCode.CANCELLED)
        late = ch.stream_stream("/test.Echo/Talk")(iter(never.get, None), timeout=0.5)
        same(status_of(lambda: next(late))[0], grpc.StatusCode.DEADLINE_EXCEEDED)
        # The connection lives.
        same(ch.unary_unary("/test.Echo/Say")(b"x", timeout=WITHIN), b"x")
        never.put(None)
        never.put(None)


for one in CHECKS:
    faulthandler.dump_traceback_later(60, exit=True)
    one()
    print("ok:", one.__name__.replace("_", " "), flush=True)
faulthandler.cancel_dump_traceback_later()
