"""A node of its own process for the integration tests. Prints ``host port node_id``, then obeys lines on its standard input.

``compute SECONDS``: hold the whole process busy, as a computing application does; prints ``begin`` and ``end``.
"""

from __future__ import annotations

import sys
import time

import gevent
from gevent import socket
from gevent.fileobject import FileObject

from astranet_gevent import AstraNet, Listener, Stream


def echo(stream: Stream) -> None:
    """Send back what comes."""
    try:
        with stream:
            while data := stream.recv(65536):
                stream.sendall(data)
    except OSError:
        return


def serve(listener: Listener) -> None:
    """Echo on every stream."""
    for stream, _ in listener:
        gevent.spawn(echo, stream)


def keep(listener: Listener) -> None:
    """Take streams and read nothing."""
    kept = []
    for stream, _ in listener:
        kept.append(stream)


def compute(seconds: float) -> None:
    """Hold the process busy: no greenlet runs, no socket is read."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def main() -> None:
    """Listen, say where, obey."""
    host = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
    with AstraNet(follow=False) as mesh:
        bound, port = mesh.listen((host, 0)).address
        gevent.spawn(serve, mesh.bind("echo"))
        gevent.spawn(keep, mesh.bind("sink"))
        print(bound, port, mesh.node_id, flush=True)
        for line in FileObject(sys.stdin, "r", closefd=False):
            command, _, argument = line.strip().partition(" ")
            if command == "compute":
                print("begin", flush=True)
                compute(float(argument))
                print("end", flush=True)
            elif command == "finish":
                return


if __name__ == "__main__":
    # Kernel buffers as they are; a default timeout from the environment must not leak in.
    socket.setdefaulttimeout(None)
    main()
