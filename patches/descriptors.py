"""Real descriptors for those who need one: who detaches a socket, or reads it in C.

A stream has none. It is given one end of a socketpair, and two greenlets copy between the other end and the stream. A listener is given a
token: a number that means nothing to the system, and is known again when a socket object is made of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any, Final

import gevent
import gevent.socket

from astranet_gevent import Stream

__all__ = ["identity", "make_descriptor", "make_token", "take_token", "tokens"]

_CHUNK: Final = 65536

#: What was detached, by device and inode of its token: never more than the process has descriptors.
tokens: dict[tuple[int, int], tuple[Any, int]] = {}


def make_descriptor(stream: Stream) -> int:
    """A connected descriptor that carries the bytes of a stream; the stream belongs to it from now on."""
    stream.setblocking(True)
    near, far = gevent.socket.socketpair()
    gevent.spawn(_carry, stream, far)
    return int(near.detach())


def _carry(stream: Stream, far: Any) -> None:
    """Copy both ways for as long as both ends live; that is what this greenlet is for, so it has no deadline."""
    directions = [gevent.spawn(_copy, stream, far), gevent.spawn(_copy, far, stream)]
    try:
        if not all(direction.get() for direction in gevent.iwait(directions)):
            # A broken end breaks the other: without lingering, close() resets.
            with contextlib.suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        gevent.killall(directions, block=False)
        stream.close()
        far.close()


def _copy(source: Any, target: Any) -> bool:
    """Copy until the end, and end the target's direction; False when one of the two broke before."""
    try:
        while data := source.recv(_CHUNK):
            target.sendall(data)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
    return True


def make_token(thing: Any) -> int:
    """A number for something that is to be found again by ``take_token``, also after a fork."""
    sock = gevent.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    number = int(sock.detach())
    for key, (old, old_number) in list(tokens.items()):
        # Closed instead of being made a socket of: nobody can ask for it any more.
        if not _stands_for(old_number, key):
            del tokens[key]
            old.close()
    tokens[identity(number)] = thing, number
    return number


def take_token(number: int) -> Any:
    """What a number was made for, once; None when it was made for nothing. The number is closed."""
    if not tokens:
        return None
    try:
        thing, _ = tokens.pop(identity(number), (None, -1))
    except OSError:
        return None
    if thing is not None:
        os.close(number)
    return thing


def _stands_for(number: int, key: tuple[int, int]) -> bool:
    try:
        return identity(number) == key
    except OSError:
        return False


def identity(number: int) -> tuple[int, int]:
    """What stands under a number: device and inode. Raises OSError when nothing does."""
    status = os.fstat(number)
    return status.st_dev, status.st_ino
