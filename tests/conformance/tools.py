"""What several conformance tests need: data, reading and writing loops, catching errors."""

from __future__ import annotations

import errno
import functools
import random
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import gevent

from .providers import Stream

Task: TypeAlias = "gevent.Greenlet[..., Any]"
# What the fixture of that name gives.
Spawn: TypeAlias = "Callable[..., Task]"

# Longer than anything here takes, shorter than anyone wants to wait.
DEADLINE = 15.0

# For a call that must run into its time-out: long enough to show whether it waited at all.
SHORT = 0.02

# Errors of a write to a peer that is gone; which of the two depends on what the writer knew.
GONE = (ConnectionResetError, BrokenPipeError)

# The end of data whose length is not known beforehand. Random data does not contain it.
MARKER = b"<-- the end of what was sent before -->"


# Every way to wait for one byte.
RECEIVERS: dict[str, Callable[[Stream], object]] = {
    "recv": lambda stream: stream.recv(1),
    "recv_into": lambda stream: stream.recv_into(bytearray(1)),
    "recvfrom": lambda stream: stream.recvfrom(1),
    "recvfrom_into": lambda stream: stream.recvfrom_into(bytearray(1)),
    "recvmsg": lambda stream: stream.recvmsg(1),
    "recvmsg_into": lambda stream: stream.recvmsg_into([bytearray(1)]),
}


@functools.lru_cache(maxsize=64)
def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere, so that a lost, doubled or moved part shows."""
    return random.Random(seed).randbytes(size)


def settle() -> None:
    """Let everything run that can: greenlets that were started wait for something afterwards."""
    gevent.idle()


def compute(seconds: float) -> None:
    """Keep the processor, and with it the loop, busy: nothing else runs, and the loop's clock stands still."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def give_up_after(seconds: float) -> AbstractContextManager[bool]:
    """A gevent.Timeout that ends its block without an error."""
    timeout: Any = gevent.Timeout
    block: AbstractContextManager[bool] = timeout(seconds, False)
    return block


def receive_exactly(stream: Stream, size: int) -> bytes:
    """Exactly so many bytes; fails at an early end of file."""
    parts = bytearray()
    while len(parts) < size:
        part = stream.recv(min(size - len(parts), 65536))
        assert part, f"end of file after {len(parts)} of {size} bytes"
        parts += part
    return bytes(parts)


def receive_all(stream: Stream) -> bytes:
    """Everything up to the end of file."""
    parts = bytearray()
    while part := stream.recv(65536):
        parts += part
    return bytes(parts)


def receive_until_error(stream: Stream) -> tuple[bytes, OSError]:
    """Everything up to an error, and the error; fails at an end of file."""
    parts = bytearray()
    try:
        while part := stream.recv(65536):
            parts += part
    except OSError as error:
        return bytes(parts), error
    raise AssertionError(f"end of file after {len(parts)} bytes, expected an error")


def send_and_finish(stream: Stream, data: bytes) -> None:
    """All of the data, and then the end of file."""
    stream.sendall(data)
    stream.shutdown(socket.SHUT_WR)


def wait_for_data(stream: Stream, size: int = 1) -> None:
    """Until so many bytes (or the end) wait to be read, without reading them, whatever the stream's timeout."""
    timeout = stream.gettimeout()
    stream.settimeout(None)
    seen = -1
    while seen < size and seen != 0:
        before, seen = seen, len(stream.recv(size, socket.MSG_PEEK))
        if seen == before:
            # Less than was asked for is here: recv does not wait for the rest, so let it come.
            settle()
    stream.settimeout(timeout)


def fill(stream: Stream, chunk: int = 16384, limit: int = 2**26) -> bytes:
    """Send until the stream takes no more; what it took.

    The kernel calls a TCP socket writable only when a third of its buffer is free, while a send takes
    what has room: it is full when a send after a wait for room takes nothing at once.
    """
    source = pattern(2**18)
    sent = bytearray()
    timeout = stream.gettimeout()

    def took_some() -> bool:
        start = len(sent) % (len(source) - chunk)
        try:
            sent.extend(source[start : start + stream.send(source[start : start + chunk])])
        except (TimeoutError, BlockingIOError):
            return False
        return True

    try:
        while len(sent) < limit:
            stream.settimeout(SHORT)
            if not took_some():
                stream.settimeout(0)
                if not took_some():
                    return bytes(sent)
    finally:
        stream.settimeout(timeout)
    raise AssertionError(f"a writer without a reader was not stopped after {limit} bytes")


def catch(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a call, or the exception it raised; for greenlets that are to fail."""
    try:
        return function(*args)
    except Exception as error:  # noqa: BLE001 - it is the result, and the test judges it
        return error


def assert_errno(error: object, *names: str) -> None:
    """The error is an OSError with one of these errnos."""
    assert isinstance(error, OSError), f"{error!r} is not an OSError"
    # By number: some errnos have two names.
    assert error.errno in {getattr(errno, name) for name in names}, f"{error!r}, not {names}"


def loosely(stream: Any) -> Any:
    """The stream without its type, to call it wrongly."""
    return stream
