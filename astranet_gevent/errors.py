"""Every error the library raises, sorted by who is at fault.

Each class has ``AstraNetError`` as a parent and, where code written for the standard library would catch something, that class too: a
``DialRefusedError`` is a ``ConnectionRefusedError``. Errors that stand for an errno carry it, and all of them pickle: ``args`` alone
rebuild the object.
"""

from __future__ import annotations

import errno
import os
import socket

__all__ = [
    "AstraNetError",
    "ConcurrentUseError",
    "ConfigError",
    "DialRefusedError",
    "DialTimeout",
    "ForkedError",
    "LimitError",
    "LinkLostError",
    "LocalProtocolError",
    "NameInUseError",
    "NoRouteError",
    "PeeringTimeout",
    "RemoteProtocolError",
    "SelfJoinError",
    "ServiceNotFoundError",
    "StreamBrokenPipeError",
    "StreamClosedError",
    "StreamNotConnectedError",
    "StreamResetError",
    "StreamTimeout",
    "StreamWouldBlockError",
    "WrongThreadError",
]


class AstraNetError(Exception):
    """Parent of every error of this library."""


class ConfigError(AstraNetError, ValueError):
    """A setting, name or address is out of its range; the message names it, its value and the range."""


class ConcurrentUseError(AstraNetError, RuntimeError):
    """Two greenlets wait in the same half of one stream."""


class WrongThreadError(AstraNetError, RuntimeError):
    """A node, stream or listener was used from a thread other than the one that started its node."""


class RemoteProtocolError(AstraNetError):
    """The peer broke the rules of the wire; its link or that stream has been ended."""


class LocalProtocolError(AstraNetError):
    """The caller asked for a step that the state does not allow."""


class _OSErrorBase(AstraNetError, OSError):
    """An OSError with a fixed errno: ``Error()`` or ``Error("what happened")``."""

    _errno = 0

    def __init__(self, message: str | None = None) -> None:
        super().__init__(self._errno, message or os.strerror(self._errno))

    # OSError.__reduce__ would call the class with (errno, message); this class takes the message alone.
    def __reduce__(self) -> tuple[type[_OSErrorBase], tuple[str]]:
        return type(self), (self.strerror or "",)


class ForkedError(_OSErrorBase):
    """The node was started before a fork; in the child it is closed. Start a new node there."""

    _errno = errno.EBADF


class LimitError(_OSErrorBase):
    """A configured limit is reached; the message names it and its value."""

    _errno = errno.EMFILE


class NameInUseError(_OSErrorBase):
    """The port is already bound on this node."""

    _errno = errno.EADDRINUSE


class NoRouteError(_OSErrorBase):
    """No link, direct or through a relay, leads to that node."""

    _errno = errno.EHOSTUNREACH


class StreamClosedError(_OSErrorBase):
    """The stream, listener or node was closed by this side."""

    _errno = errno.EBADF


class StreamNotConnectedError(_OSErrorBase):
    """The stream has no peer (yet)."""

    _errno = errno.ENOTCONN


# Made once: sockets of patched programs raise that error before every wait.
_WOULD_BLOCK = os.strerror(errno.EAGAIN)


class StreamWouldBlockError(AstraNetError, BlockingIOError):
    """A non-blocking call would have to wait."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(errno.EAGAIN, message or _WOULD_BLOCK)

    def __reduce__(self) -> tuple[type[StreamWouldBlockError], tuple[str]]:
        return type(self), (self.strerror or "",)


class DialRefusedError(_OSErrorBase, ConnectionRefusedError):
    """The far node has no listener there, or its backlog is full."""

    _errno = errno.ECONNREFUSED


class StreamResetError(_OSErrorBase, ConnectionResetError):
    """The peer reset the stream."""

    _errno = errno.ECONNRESET


class LinkLostError(StreamResetError):
    """The link (or the relay's link) that carried the stream is gone."""


class SelfJoinError(_OSErrorBase):
    """The address that was joined leads back to this very node."""

    _errno = errno.EADDRNOTAVAIL


class StreamBrokenPipeError(_OSErrorBase, BrokenPipeError):
    """Written after one's own shutdown, or after the peer is known to be gone."""

    _errno = errno.EPIPE


class _TimeoutBase(AstraNetError, TimeoutError):
    """A TimeoutError shaped like the one of ``socket``: no errno, the message alone in ``args``."""

    def __init__(self, message: str = "timed out") -> None:
        super().__init__(message)


class DialTimeout(_TimeoutBase):
    """The far node did not answer a dial in time."""


class StreamTimeout(_TimeoutBase):
    """A stream or listener call ran into its own timeout."""


class PeeringTimeout(_TimeoutBase):
    """A link or peering did not become ready in time."""


class ServiceNotFoundError(AstraNetError, socket.gaierror):
    """Nobody offered the service within the timeout."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(socket.EAI_NONAME, message or "service not found")

    def __reduce__(self) -> tuple[type[ServiceNotFoundError], tuple[str]]:
        return type(self), (self.strerror or "",)
