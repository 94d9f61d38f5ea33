"""A TCP proxy on loopback that delays what passes, or lets so many bytes through per second: a path that is long or slow.

Threads with blocking sockets, so that it sleeps to the 0.1 ms. It reads no further ahead than the path would hold: what is under way during
the delay. A path that is only slow has nothing but the kernel's small buffers.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque

CHUNK = 16 * 1024
# Bytes under way with a delay: more than a window of any of the transports, so that the delay alone limits them.
DELAYED = 64 * 1024 * 1024
# What the kernel may hold before and behind a path that is only slow, each: a router's buffer of 0.7 ms at 100 MB/s.
PIPE = 64 * 1024
# Seconds: no system sleeps less, and the next piece makes up for it.
LEAST_PAUSE = 20e-6
# Seconds by which sleeping may be late, and is made up for: a burst of so much.
MOST_CATCH_UP = 0.5e-3


class Forwarder:
    """Listens on a port of its own and passes connections on to another of 127.0.0.1; lives as long as its process."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._carry(near, far)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        """Start to pass on what the two send."""
        raise NotImplementedError


class Proxy(Forwarder):
    """Later, or no faster than a rate in bytes per second."""

    def __init__(self, target: int, delay: float, rate: float) -> None:
        self._delay = delay
        self._rate = rate
        super().__init__(target)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        if self._rate:
            for sock in (near, far):
                # What the kernel buffers behind the slow path would hide it. Linux takes twice what it is told, and fills it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE // 2)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIPE // 2)
        for source, target in ((near, far), (far, near)):
            Direction(source, target, self._delay, self._rate)


class Direction:
    """One direction of one connection: a thread that reads, one that writes when the time has come; without a delay one for both."""

    def __init__(self, source: socket.socket, target: socket.socket, delay: float, rate: float) -> None:
        self._source = source
        self._target = target
        self._delay = delay
        self._rate = rate
        # When the path will have passed on all that has been written.
        self._free = 0.0
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._changed = threading.Condition()
        for work in (self._read, self._write) if delay else (self._pass_on,):
            threading.Thread(target=work, daemon=True).start()

    def _pass_on(self) -> None:
        """Read and write in turn: what waits is in the kernel's buffers."""
        data = b"-"
        while data:
            data = self._read_piece()
            # It may have waited while the piece before it slept too long.
            if not self._write_piece(time.monotonic() - MOST_CATCH_UP, data):
                return

    def _read(self) -> None:
        data = b"-"
        while data:
            data = self._read_piece()
            with self._changed:
                self._waiting.append((time.monotonic() + self._delay, data))
                self._size += len(data)
                self._changed.notify()
                # No deadline: the process ends with its parent.
                self._changed.wait_for(lambda: self._size < DELAYED)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                due, data = self._waiting.popleft()
            if not self._write_piece(due, data):
                return
            with self._changed:
                self._size -= len(data)
                self._changed.notify()

    def _read_piece(self) -> bytes:
        try:
            return self._source.recv(CHUNK)
        except OSError:
            return b""

    def _write_piece(self, due: float, data: bytes) -> bool:
        """Write when the path has passed on what came before; False at the end."""
        # A path is busy with a piece for as long as its bytes take.
        self._free = max(due, self._free) + (len(data) / self._rate if self._rate else 0.0)
        pause = self._free - time.monotonic()
        if pause > LEAST_PAUSE:
            time.sleep(pause)
        try:
            if data:
                self._target.sendall(data)
                return True
            self._target.shutdown(socket.SHUT_WR)
        except OSError:
            self._source.close()
        return False
