"""A TCP proxy on loopback that delays what passes, or lets so many bytes through per second: a path that is long or slow.

Threads with blocking sockets, so that it sleeps to the 0.1 ms. It reads no further ahead than the path would hold: what is under way during
the delay, or PIPE bytes.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque

CHUNK = 16 * 1024
# Bytes under way with a delay: more than a window of any of the transports, so that the delay alone limits them.
DELAYED = 64 * 1024 * 1024
# Bytes that wait in a path that is only slow: a router's buffer of about a millisecond.
PIPE = 64 * 1024


class Proxy:
    """Listens on a port of its own and passes connections on to another of 127.0.0.1; lives as long as its process."""

    def __init__(self, target: int, delay: float, rate: float) -> None:
        self._target = target
        self._delay = delay
        self._rate = rate
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._rate:
                    # What the kernel buffers behind the slow path would hide it.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIPE)
            for source, target in ((near, far), (far, near)):
                Direction(source, target, self._delay, self._rate)


class Direction:
    """One direction of one connection: a thread that reads, a thread that writes when the time has come."""

    def __init__(self, source: socket.socket, target: socket.socket, delay: float, rate: float) -> None:
        self._source = source
        self._target = target
        self._delay = delay
        self._rate = rate
        self._limit = DELAYED if delay else PIPE
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._changed = threading.Condition()
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = self._source.recv(CHUNK)
            except OSError:
                data = b""
            with self._changed:
                self._waiting.append((time.monotonic() + self._delay, data))
                self._size += len(data)
                self._changed.notify()
                # No deadline: the process ends with its parent.
                self._changed.wait_for(lambda: self._size < self._limit)

    def _write(self) -> None:
        free = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                due, data = self._waiting.popleft()
            # A path is busy with a piece for as long as its bytes take.
            start = max(due, free)
            free = start + (len(data) / self._rate if self._rate else 0.0)
            pause = free - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            try:
                if data:
                    self._target.sendall(data)
                else:
                    self._target.shutdown(socket.SHUT_WR)
                    return
            except OSError:
                self._source.close()
                return
            with self._changed:
                self._size -= len(data)
                self._changed.notify()
