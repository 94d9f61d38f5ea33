"""HTTP over sockets that stop their whole process: two system calls for each message and nothing else, the least that a transport costs.

Import it after gevent's patches. Only one connection can be served at a time.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import gevent
from gevent import monkey
from urllib3.connection import HTTPConnection
from web import NoDelayServer

#: So many reads, and other greenlets are run: those that obey the measuring process.
TURN = 200
#: The longest that the process stands still for one read, in seconds; then they are run as well.
STILL = 0.1
#: For how long, in seconds. Not 0, with which gevent looks for what has come once in fifty times.
PAUSE = 1e-4
#: What the server writes for one response: its head and its body.
PARTS = 2


class BlockingSocket(monkey.get_original("socket", "socket")):  # type: ignore[misc]
    """A connection of the interpreter's own, whose reads end by the system's time-out: Python's would poll before each."""

    def __init__(self, fileno: int | None = None) -> None:
        super().__init__(fileno=fileno)
        self.setblocking(True)  # gevent's are not
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(STILL * 1e6)))
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reads = 0

    def settimeout(self, value: float | None) -> None:
        """Nothing: whoever measures gives up a process that does not answer."""

    def recv_into(self, *into: Any) -> int:
        self._reads += 1
        if self._reads % TURN == 0:
            gevent.sleep(PAUSE)
        while True:
            try:
                return int(super().recv_into(*into))
            except BlockingIOError:
                gevent.sleep(PAUSE)


class ServedSocket(BlockingSocket):
    """Sends the parts of a response by one call."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno)
        self._parts: list[bytes] = []

    def sendall(self, data: bytes, flags: int = 0) -> None:
        self._parts.append(data)
        if len(self._parts) == PARTS:
            response = b"".join(self._parts)
            self._parts.clear()
            super().sendall(response, flags)


class BlockingServer(NoDelayServer):
    """WSGIServer on such connections."""

    def handle(self, sock: Any, address: Any) -> None:
        with ServedSocket(sock.detach()) as served:
            super().handle(served, address)


class BlockingConnection(HTTPConnection):
    """urllib3's connection."""

    sock: Any

    def _new_conn(self) -> Any:
        sock = BlockingSocket()
        sock.connect((self.host, self.port))
        return sock

    @property
    def is_connected(self) -> bool:
        # urllib3 polls the descriptor, which is one more system call.
        return self.sock is not None
