"""HTTP for measurements, over TCP or over streams: what a server answers, and a load of requests.

Import it after gevent's patches: requests has to wait in greenlets.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import requests
from gevent.pywsgi import WSGIServer
from harness import STEP_LIMIT, Commands

BODY = b"x" * 200


def application(_environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]


class NoDelayServer(WSGIServer):  # type: ignore[misc, unused-ignore]
    """Over TCP: without TCP_NODELAY every response on a kept connection waits 40 ms for an acknowledgement."""

    def handle(self, sock: Any, address: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().handle(sock, address)


class Requests:
    """GETs with a session per greenlet, by default as requests makes it; count, time and processor time to be asked for meanwhile."""

    def __init__(self, session: Callable[[], requests.Session] = requests.Session) -> None:
        self._session = session
        self._url = ""
        self._running = False
        self._count = 0
        self._greenlets: list[Any] = []

    def reach(self, url: str) -> None:
        self._url = url

    def start(self, greenlets: int) -> None:
        self._running = True
        self._greenlets = [gevent.spawn(self._work) for _ in range(greenlets)]

    def _work(self) -> None:
        with self._session() as session:
            while self._running:
                response = session.get(self._url, timeout=STEP_LIMIT)
                if response.content != BODY:
                    raise ValueError(f"{response!r} with {len(response.content)} bytes")
                self._count += 1

    def sample(self) -> dict[str, float]:
        for greenlet in self._greenlets:
            if greenlet.ready():
                greenlet.get()
        return {"count": self._count, "clock": time.perf_counter(), "cpu": time.process_time()}

    def stop(self) -> None:
        self._running = False
        gevent.joinall(self._greenlets, timeout=STEP_LIMIT, raise_error=True)
        if stuck := sum(not greenlet.ready() for greenlet in self._greenlets):
            raise TimeoutError(f"{stuck} of {len(self._greenlets)} requests have no answer")
        self._greenlets.clear()

    def commands(self) -> Commands:
        return {"start": self.start, "sample": self.sample, "stop": self.stop}


def over_tcp(server_class: type[NoDelayServer] = NoDelayServer, session: Callable[[], requests.Session] = requests.Session) -> Commands:
    """A server or a client over TCP; by default those of the baseline, nothing but gevent's patches."""
    load = Requests(session)

    def serve() -> int:
        server = server_class(("127.0.0.1", 0), application, log=None)
        server.start()
        return int(server.server_port or 0)

    def reach(where: int) -> None:
        load.reach(f"http://127.0.0.1:{where}/")

    return {"serve": serve, "reach": reach, **load.commands()}
