"""A process between two others that copies bytes, in C, and looks at none of them: what a third process costs by itself."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from proxy import Forwarder

SOURCE = Path(__file__).with_name("copier.c")
# Those of a link within a host whose bulk is alone.
RECEIVE_BUFFER = 2 * 1024 * 1024
UNSENT = 256 * 1024
TCP_NOTSENT_LOWAT = 25  # Linux's number: Python has no name for it


def missing() -> str:
    """What keeps it from being made; nothing if it can be."""
    return "" if shutil.which("cc") else "it is written in C, and there is no compiler (cc)"


def load_library() -> ctypes.CDLL:
    """Compile it, and load what comes of that. Raises subprocess.CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "copier.so")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True, timeout=60)
        return ctypes.CDLL(str(library))


class Copier(Forwarder):
    """As fast as it goes."""

    def __init__(self, target: int) -> None:
        self._library = load_library()
        super().__init__(target)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        threading.Thread(target=self._copy, args=(near, far), daemon=True).start()

    def _copy(self, near: socket.socket, far: socket.socket) -> None:
        with near, far:
            for sock in (near, far):
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                with contextlib.suppress(OSError, AttributeError):
                    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            self._library.copy_both_ways(near.fileno(), far.fileno())
