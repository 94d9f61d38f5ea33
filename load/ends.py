#!/usr/bin/env python3
"""The processes of `bench.py`: a server, a client, and what may stand between them. Started by it, with --child KIND.

Both kinds of transport offer the same services, and the same handlers and load generators use them:

    echo    sends back what it reads
    sink    reads and counts
    source  sends for as long as it is read
    idle    is accepted and held
"""

from __future__ import annotations

import functools
import sys
import time
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, cast

import gevent
import gevent.event
import gevent.server
import gevent.socket
import harness
import peers
from harness import OPENING_LIMIT, STEP_LIMIT, Commands, Conn, Held

# The package of this checkout, unless one is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

MESSAGE = b"x" * 64
# What bulk is read and written in: as large as programs that care use.
CHUNK = b"x" * (256 * 1024)
ECHO_READ = 65536
# More than a link allows by default: a million idle ones, and those that ask.
MAX_STREAMS = 1_100_000
PING_PERIOD = 0.1  # seconds between the pings of one stream


class Counter:
    """Bytes that a process has read of bulk, operations that it has completed."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0

    def sample(self) -> dict[str, float]:
        return {"count": self.count, "bytes": self.bytes, "clock": time.perf_counter(), "cpu": time.process_time()}


# --- handlers ---------------------------------------------------------------------------------


def echo(stream: Conn, _address: Any = None) -> None:
    try:
        while data := stream.recv(ECHO_READ):
            stream.sendall(data)
    except ConnectionError:
        return  # the client was stopped in the middle of a round


def source(stream: Conn, _address: Any = None) -> None:
    try:
        while True:
            stream.sendall(CHUNK)
    except OSError:
        return  # the client has read enough


def drain(counter: Counter, stream: Conn) -> None:
    """Read and count until the end."""
    buffer = bytearray(len(CHUNK))
    view = memoryview(buffer)
    try:
        while count := stream.recv_into(view):
            counter.bytes += count
    except OSError:
        return


# --- the two kinds of transport ---------------------------------------------------------------


class Transport(Protocol):
    """One kind of connection: a server offers the services, a client dials them."""

    def serve(self, handlers: dict[str, Callable[..., Any]]) -> Any:
        """Offer services; return what reach() wants, as JSON can carry it."""

    def reach(self, where: Any) -> None: ...

    def dial(self, service: str) -> Conn: ...

    def accept_idle(self, held: Held) -> Any: ...


class TcpTransport:
    """The baseline: gevent, one TCP connection per stream, as people write it."""

    def __init__(self) -> None:
        self._ports: dict[str, int] = {}

    def serve(self, handlers: dict[str, Callable[..., Any]]) -> Any:
        return {service: listen_tcp(handler) for service, handler in handlers.items()}

    def accept_idle(self, held: Held) -> Any:
        idle = gevent.socket.socket()  # not create_server(): gevent leaves the stdlib's, which blocks
        idle.bind(("127.0.0.1", 0))
        idle.listen(1024)
        gevent.spawn(held.accept_from, idle)
        return {"idle": idle.getsockname()[1]}

    def reach(self, where: Any) -> None:
        self._ports = where

    def dial(self, service: str) -> Conn:
        conn: Conn = dial_tcp(self._ports[service])
        return conn

    def dial_with(self, service: str, data: bytes) -> Conn:
        conn = self.dial(service)
        conn.sendall(data)
        return conn


def listen_tcp(handler: Callable[..., Any]) -> int:
    """Serve on loopback, with TCP_NODELAY as every careful TCP program has it; the port."""

    def handle(sock: Any, address: Any) -> None:
        sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        handler(sock, address)

    server = gevent.server.StreamServer(("127.0.0.1", 0), handle)
    server.start()
    return int(server.address[1])


def dial_tcp(port: int) -> Any:
    """A gevent socket that is connected to a port of loopback, with TCP_NODELAY."""
    # Not create_connection(): it resolves the address, which must not count against a baseline.
    sock = gevent.socket.socket()
    sock.connect(("127.0.0.1", port))
    sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
    return sock


class MeshTransport:
    """Ours: every stream on one link, dialled by service name."""

    def __init__(self) -> None:
        self._mesh: Any = None

    def serve(self, handlers: dict[str, Callable[..., Any]]) -> Any:
        from astranet_gevent import AstraNet, Role
        from astranet_gevent.server import StreamServer

        self._mesh = AstraNet(role=Role.SERVER, streams_per_link=MAX_STREAMS)
        self._mesh.start()
        for service, handler in handlers.items():
            StreamServer(self._mesh.bind(service), handler).start()
        return {"address": list(self._mesh.listen(("127.0.0.1", 0)).address), "services": list(handlers)}

    def accept_idle(self, held: Held) -> Any:
        gevent.spawn(held.accept_from, self._mesh.bind("idle"))
        return {}

    def reach(self, where: Any) -> None:
        from astranet_gevent import AstraNet, Role

        self._mesh = AstraNet(role=Role.CLIENT, follow=False, streams_per_link=MAX_STREAMS)
        self._mesh.start()
        self._mesh.join(tuple(where["address"])).wait_ready(STEP_LIMIT)
        for service in where["services"]:
            self._mesh.service_map.wait_for(service, STEP_LIMIT)

    def dial(self, service: str) -> Conn:
        return self._mesh.dial(service)  # type: ignore[no-any-return]

    def dial_with(self, service: str, data: bytes) -> Conn:
        return self._mesh.dial(service, data=data)  # type: ignore[no-any-return]


# --- the load generator (in the client) -------------------------------------------------------


def exchange(stream: Conn) -> None:
    """One message there and back."""
    stream.sendall(MESSAGE)
    await_answer(stream)


def await_answer(stream: Conn) -> None:
    missing = len(MESSAGE)
    while missing:
        data = stream.recv(missing)
        if not data:
            raise ConnectionError("the server ended an echo stream")
        missing -= len(data)


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """In microseconds."""
    times = sorted(seconds)
    if not times:
        raise ValueError("nothing has been timed")
    return {f"p{part}": times[len(times) * part // 100] * 1e6 for part in (50, 90, 99)}


class Loads:
    """Greenlets that make a load until they are stopped; the counters are sampled meanwhile."""

    def __init__(self, transport: Transport, counter: Counter) -> None:
        self._transport = transport
        self._counter = counter
        self._running = True
        self._greenlets: list[Any] = []
        # Eight bytes each: on many streams there are a million.
        self._times = array("d")

    def start(self, what: str, streams: int, size: int = 0) -> None:
        """Begin `what`, with so many streams or at so many at a time."""
        work = getattr(self, f"_{what}")
        self._running = True
        if what in ("churn", "early_churn"):
            self._greenlets += [gevent.spawn(work) for _ in range(streams)]
            return
        service = {"upload": "sink", "messages": "sink", "download": "source"}.get(what, "echo")
        conns = [self._transport.dial(service) for _ in range(streams)]
        # The streams that ping begin at different moments.
        starts = [size if what != "ping" else PING_PERIOD * number / streams for number in range(streams)]
        self._greenlets += [gevent.spawn(work, conn, argument) for conn, argument in zip(conns, starts, strict=True)]

    def sample(self) -> dict[str, float]:
        for greenlet in self._greenlets:
            if greenlet.ready():
                greenlet.get()
        return self._counter.sample()

    def stop(self) -> None:
        self._running = False
        gevent.joinall(self._greenlets, timeout=STEP_LIMIT, raise_error=True)
        if stuck := sum(not greenlet.ready() for greenlet in self._greenlets):
            raise TimeoutError(f"{stuck} of {len(self._greenlets)} greenlets wait for an answer")
        self._greenlets.clear()

    def forget(self) -> None:
        """What has been timed while it warmed up."""
        del self._times[:]

    def times(self) -> dict[str, float]:
        """Percentiles in microseconds of what has been timed since the last call."""
        try:
            return percentiles(self._times)
        finally:
            self.forget()

    def commands(self) -> Commands:
        return {command.__name__: command for command in (self.start, self.sample, self.forget, self.stop, self.times)}

    def _echo(self, conn: Conn, _size: int) -> None:
        counter = self._counter
        while self._running:
            exchange(conn)
            counter.count += 1
        conn.close()

    def _timed_echo(self, conn: Conn, _size: int) -> None:
        clock, counter = time.perf_counter, self._counter
        while self._running:
            start = clock()
            exchange(conn)
            self._times.append(clock() - start)
            counter.count += 1
        conn.close()

    def _ping(self, conn: Conn, first: float) -> None:
        """An exchange now and then."""
        clock, counter = time.perf_counter, self._counter
        gevent.sleep(first)
        while self._running:
            start = clock()
            exchange(conn)
            self._times.append(clock() - start)
            counter.count += 1
            gevent.sleep(PING_PERIOD)
        conn.close()

    def _churn(self) -> None:
        self._open_and_close(functools.partial(self._transport.dial, "echo"), exchange)

    def _early_churn(self) -> None:
        """The same, the message with the dial; not every transport has that."""
        self._open_and_close(functools.partial(cast(Any, self._transport).dial_with, "echo", MESSAGE), await_answer)

    def _open_and_close(self, dial: Callable[[], Conn], converse: Callable[[Conn], None]) -> None:
        clock, counter = time.perf_counter, self._counter
        while self._running:
            start = clock()
            conn = dial()
            try:
                converse(conn)
                self._times.append(clock() - start)
            finally:
                conn.close()
            counter.count += 1

    def _upload(self, conn: Conn, _size: int) -> None:
        while self._running:
            conn.sendall(CHUNK)
        conn.close()

    def _messages(self, conn: Conn, size: int) -> None:
        message, counter = b"x" * size, self._counter
        while self._running:
            for _ in range(50):
                conn.sendall(message)
            counter.count += 50
            # A connection that is read as fast as it is written never makes its writer wait.
            gevent.sleep(0)
        conn.close()

    def _download(self, conn: Conn, _size: int) -> None:
        counter, buffer = self._counter, memoryview(bytearray(len(CHUNK)))
        while self._running:
            # Not in one statement: the sum would be of the number that was there before the wait.
            count = conn.recv_into(buffer)
            counter.bytes += count
        conn.close()


# --- the children -----------------------------------------------------------------------------


def end(transport: Transport) -> Commands:
    """A server or a client, whichever is asked of it."""
    counter, held = Counter(), Held()
    loads = Loads(transport, counter)

    def serve() -> Any:
        where = transport.serve({"echo": echo, "source": source, "sink": lambda stream, _: drain(counter, stream)})
        return {**where, **transport.accept_idle(held)}

    def hold(count: int) -> None:
        """Client: have `count` idle streams open."""
        held.open_until(count, lambda: transport.dial("idle"))

    def accepted(count: int) -> None:
        """Server: wait until `count` idle streams have been accepted."""
        held.wait_for(count, OPENING_LIMIT)

    def answer_last() -> None:
        """Server: echo on the idle stream that was accepted last."""
        gevent.spawn(echo, held.streams[-1])

    def ask_last() -> float:
        """Client: seconds of a round trip on the same one, when it was opened alone."""
        start = time.perf_counter()
        exchange(held.streams[-1])
        return time.perf_counter() - start

    commands = (hold, accepted, answer_last, ask_last, serve, transport.reach, harness.memory)
    return {**{command.__name__: command for command in commands}, **loads.commands()}


def relay() -> Commands:
    """A router between the two."""
    from astranet_gevent import AstraNet, Role

    mesh = AstraNet(role=Role.ROUTER, follow=False)

    def stand_between(where: Any) -> Any:
        mesh.start()
        mesh.join(tuple(where["address"])).wait_ready(STEP_LIMIT)
        return {**where, "address": list(mesh.listen(("127.0.0.1", 0)).address)}

    return {"stand_between": stand_between}


def proxy(delay: float = 0.0, rate: float = 0.0) -> Commands:
    """A slow path between the two."""
    from proxy import Proxy

    def stand_between(where: Any) -> Any:
        if "address" in where:
            return {**where, "address": ["127.0.0.1", Proxy(where["address"][1], delay, rate).port]}
        return {service: Proxy(port, delay, rate).port for service, port in where.items()}

    return {"stand_between": stand_between}


def copier() -> Commands:
    """A program between the two that only copies bytes."""
    from copier import Copier

    def stand_between(where: Any) -> Any:
        return {**where, "address": ["127.0.0.1", Copier(where["address"][1]).port]}

    return {"stand_between": stand_between}


CHILDREN: dict[str, Callable[[], Commands]] = {
    "gevent": lambda: end(TcpTransport()),
    "astranet": lambda: end(MeshTransport()),
    "relay": relay,
    "copier": copier,
    "10 ms": lambda: proxy(delay=0.005),
    "100 MB/s": lambda: proxy(rate=100e6),
    **{name: functools.partial(peers.commands, name) for name in peers.PEERS},
}


if __name__ == "__main__":
    harness.child_main(CHILDREN)
