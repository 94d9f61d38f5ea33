"""What the three processes have in common: facts on standard output, and how they are ended."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import gevent.os

from astranet_gevent import AstraNet, AstraNetError

from .errors import DemoError

SERVICE = "stdlib-files"


def tell(**facts: Any) -> None:
    """One line of JSON on standard output, for whoever started this process."""
    try:
        # Past Python's buffer, which would try again, and complain, when the process ends.
        os.write(sys.stdout.fileno(), json.dumps(facts).encode() + b"\n")
    except BrokenPipeError:
        pass  # whoever started this process is gone, and so nobody wants to know


def join(mesh: AstraNet, address: tuple[str, int], timeout: float) -> None:
    """Join the router and wait for it. Raises DemoError if there is none within the timeout."""
    try:
        mesh.join(address).wait_ready(timeout)
    except (AstraNetError, OSError) as error:
        host, port = address
        raise DemoError(f"no router at {host}:{port}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    return f"{error} ({type(error).__name__})"


def when_stdin_ends(callback: Callable[[], object]) -> None:
    """Call back once standard input ends: at the latest when the process that holds it dies.

    That is how no child is left behind, even by a launcher that was killed.
    """
    stdin = sys.stdin.fileno()
    gevent.os.make_nonblocking(stdin)

    def watch() -> None:
        while gevent.os.nb_read(stdin, 1024):
            pass  # nothing is expected; what comes is not for us
        callback()

    gevent.spawn(watch)


def wait_for_end(until_eof: bool) -> None:
    """Serve until SIGTERM, Ctrl-C or, if until_eof, the end of standard input."""
    end = gevent.event.Event()
    if until_eof:
        when_stdin_ends(end.set)
    gevent.signal_handler(signal.SIGTERM, end.set)
    try:
        end.wait()
    except KeyboardInterrupt:
        return
