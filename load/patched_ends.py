#!/usr/bin/env python3
"""What `patched.py` measures: programs that gevent has patched, as clients and as servers. Started by it, with --child KIND."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

# gevent's patches come first, as in every program that is measured here.
import _socket  # noqa: E402
import contextlib  # noqa: E402
import functools  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import harness  # noqa: E402
import psutil  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402
from harness import OPENING_LIMIT, STEP_LIMIT, Commands, Held  # noqa: E402
from web import Requests, application, over_tcp  # noqa: E402

# The package of this checkout, unless one is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

# mypy reads the folder of the checkout, in which patches/ stands outside the package.
from astranet_gevent import AstraNet, patches  # type: ignore[attr-defined, unused-ignore]  # noqa: E402

# Accepted at a time: fewer than any system lets wait for it.
ACCEPTED = 100


class Nodes:
    """A server's node and a client's, in one process each."""

    def __init__(self) -> None:
        self.mesh = AstraNet().start()

    def listen(self) -> list[Any]:
        return list(self.mesh.listen(("127.0.0.1", 0)).address)

    def join(self, where: list[Any], service: str) -> None:
        self.mesh.join((where[0], where[1])).wait_ready(STEP_LIMIT)
        self.mesh.service_map.wait_for(service, STEP_LIMIT)


def http_over_mesh() -> Commands:
    load, nodes = Requests(), Nodes()
    patches.apply(nodes.mesh)

    def serve() -> list[Any]:
        WSGIServer(("web", 80), application, log=None).start()
        return nodes.listen()

    def reach(where: list[Any]) -> None:
        nodes.join(where, "web")
        load.reach("http://web.mesh/")

    return {"serve": serve, "reach": reach, **load.commands()}


def held_commands(held: Held, dial: Callable[[], Any]) -> Commands:
    def hold(count: int) -> None:
        held.open_until(count, dial)

    def accepted(count: int) -> None:
        held.wait_for(count, OPENING_LIMIT)

    def used() -> dict[str, int]:
        return {"memory": harness.memory(), "descriptors": psutil.Process().num_fds()}

    return {"hold": hold, "accepted": accepted, "used": used}


def idle_streams() -> Commands:
    """The baseline: streams, used by those who know of them."""
    held, nodes = Held(), Nodes()

    def serve() -> list[Any]:
        gevent.spawn(held.accept_from, nodes.mesh.bind("idle"))
        return nodes.listen()

    def reach(where: list[Any]) -> None:
        nodes.join(where, "idle")

    return {"serve": serve, "reach": reach, **held_commands(held, lambda: nodes.mesh.dial("idle"))}


def idle_sockets() -> Commands:
    held, nodes = Held(), Nodes()
    patches.apply(nodes.mesh)

    def serve() -> list[Any]:
        listener = socket.socket()
        listener.bind(("idle", 80))
        listener.listen(1024)
        gevent.spawn(held.accept_from, listener)
        return nodes.listen()

    def reach(where: list[Any]) -> None:
        nodes.join(where, "idle")

    return {"serve": serve, "reach": reach, **held_commands(held, lambda: socket.create_connection(("idle.mesh", 80), STEP_LIMIT))}


# --- programs that name no service ------------------------------------------------------------


def reset_on_close(sock: Any) -> None:
    """No TIME_WAIT: thousands of them would use up the ports."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def connect_to(host: str, port: int) -> None:
    with socket.create_connection((host, port)) as sock:
        reset_on_close(sock)


class PlainTcp:
    """A program that uses TCP only."""

    def __init__(self) -> None:
        self._port = 0
        self._own = socket.socket()
        self._own.bind(("127.0.0.1", 0))
        self._own.listen(ACCEPTED)
        calls = {"connect number": self._connect_number, "connect name": self._connect_name, "socket": self._socket}
        self._measures: dict[str, Callable[[float], float]] = {
            "accept": self._accepts,
            **{what: functools.partial(rate, call) for what, call in calls.items()},
        }

    def serve(self) -> int:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        gevent.spawn(self._accept, listener)
        return int(listener.getsockname()[1])

    @staticmethod
    def _accept(listener: Any) -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                listener.accept()[0].close()

    def reach(self, where: int) -> None:
        self._port = where

    def measure(self, what: str, seconds: float) -> float:
        """Calls per second; the tenth of the time before that is for what has cooled down while the other one was measured."""
        measure = self._measures[what]
        measure(seconds / 10)
        return measure(seconds)

    def _connect_number(self) -> None:
        connect_to("127.0.0.1", self._port)

    def _connect_name(self) -> None:
        connect_to("localhost", self._port)

    @staticmethod
    def _socket() -> None:
        socket.socket().close()

    def _accepts(self, seconds: float) -> float:
        """Only accepting is timed; the clients are the interpreter's own sockets, which no patch touches."""
        address, count, spent = self._own.getsockname(), 0, 0.0
        while spent < seconds:
            clients = [_socket.socket() for _ in range(ACCEPTED)]
            for client in clients:
                client.connect(address)
            start = time.perf_counter()
            for _ in clients:
                self._own.accept()[0].close()
            spent += time.perf_counter() - start
            count += len(clients)
            for client in clients:
                client.close()
        return count / spent


def rate(function: Callable[[], Any], seconds: float) -> float:
    """Calls per second."""
    clock = time.perf_counter
    count, start = 0, clock()
    end = start + seconds
    while (now := clock()) < end:
        function()
        count += 1
    return count / (now - start)


def tcp_without_patch() -> Commands:
    """The baseline: nothing but gevent's patches."""
    program = PlainTcp()
    return {"serve": program.serve, "reach": program.reach, "measure": program.measure}


def tcp_with_patch() -> Commands:
    """Its node has a link and knows a service, as that of a program that now and then uses one; the server is not patched."""
    program, nodes = PlainTcp(), Nodes()

    def serve() -> dict[str, Any]:
        nodes.mesh.bind("web:80")
        return {"mesh": nodes.listen(), "tcp": program.serve()}

    def reach(where: dict[str, Any]) -> None:
        program.reach(where["tcp"])
        nodes.join(where["mesh"], "web")
        patches.apply(nodes.mesh)

    return {"serve": serve, "reach": reach, "measure": program.measure}


ENDS: dict[str, Callable[[], Commands]] = {
    "http plain": over_tcp,
    "http patched": http_over_mesh,
    "memory plain": idle_streams,
    "memory patched": idle_sockets,
    "others plain": tcp_without_patch,
    "others patched": tcp_with_patch,
}


if __name__ == "__main__":
    harness.child_main(ENDS)
