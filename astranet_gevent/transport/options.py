"""Socket options of streams and listeners: remembered when set, answered with what a TCP socket would say otherwise."""

from __future__ import annotations

import errno
import operator
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

__all__ = ["get_option", "set_option"]

# Answers for options that nobody has set, by name, because platforms differ in which they have. Sizes are Linux's defaults.
_SOCKET_DEFAULTS: Final = {
    "SO_TYPE": int(socket.SOCK_STREAM),
    "SO_ACCEPTCONN": 0,
    "SO_BROADCAST": 0,
    "SO_DEBUG": 0,
    "SO_DOMAIN": int(socket.AF_INET),
    "SO_DONTROUTE": 0,
    "SO_INCOMING_CPU": 0,
    "SO_KEEPALIVE": 0,
    "SO_MARK": 0,
    "SO_OOBINLINE": 0,
    "SO_PRIORITY": 0,
    "SO_PROTOCOL": int(socket.IPPROTO_TCP),
    "SO_RCVBUF": 65536,
    "SO_RCVLOWAT": 1,
    "SO_REUSEADDR": 0,
    "SO_REUSEPORT": 0,
    "SO_SNDBUF": 65536,
    "SO_SNDLOWAT": 1,
}
_TCP_DEFAULTS: Final = {
    "TCP_NODELAY": 1,
    "TCP_CORK": 0,
    "TCP_DEFER_ACCEPT": 0,
    "TCP_FASTOPEN": 0,
    "TCP_KEEPALIVE": 7200,
    "TCP_KEEPCNT": 9,
    "TCP_KEEPIDLE": 7200,
    "TCP_KEEPINTVL": 75,
    "TCP_LINGER2": 60,
    "TCP_MAXSEG": 65536,
    "TCP_NOTSENT_LOWAT": 0,
    "TCP_QUICKACK": 1,
    "TCP_SYNCNT": 6,
    "TCP_USER_TIMEOUT": 0,
    "TCP_WINDOW_CLAMP": 65536,
}
_IP_DEFAULTS: Final = {"IP_TOS": 0, "IP_TTL": 64}
_IPV6_DEFAULTS: Final = {"IPV6_TCLASS": 0, "IPV6_UNICAST_HOPS": 64, "IPV6_V6ONLY": 0}

# A plain tuple of ints: gevent asks for an option (not this one) in every sendall().
_ERROR: Final = (int(socket.SOL_SOCKET), int(socket.SO_ERROR))

# Struct-valued options: bytes in, bytes out.
_STRUCTS: Final = frozenset(
    (socket.SOL_SOCKET, getattr(socket, name)) for name in ("SO_LINGER", "SO_RCVTIMEO", "SO_SNDTIMEO") if hasattr(socket, name)
)


def _known_options() -> dict[tuple[int, int], int]:
    groups = (
        (socket.SOL_SOCKET, _SOCKET_DEFAULTS),
        (socket.IPPROTO_TCP, _TCP_DEFAULTS),
        (socket.IPPROTO_IP, _IP_DEFAULTS),
        (socket.IPPROTO_IPV6, _IPV6_DEFAULTS),
    )
    return {
        (int(level), int(getattr(socket, name))): value for level, names in groups for name, value in names.items() if hasattr(socket, name)
    }


_KNOWN: Final = _known_options()
_READ_ONLY: Final = frozenset(
    (socket.SOL_SOCKET, getattr(socket, name))
    for name in ("SO_TYPE", "SO_ERROR", "SO_ACCEPTCONN", "SO_DOMAIN", "SO_PROTOCOL")
    if hasattr(socket, name)
)


def get_option(options: dict[tuple[int, int], Any], level: int, option: int, buflen: int, take_error: Callable[[], int]) -> Any:
    """An int, or bytes when ``buflen`` is given. Raises OSError(ENOPROTOOPT) for an unknown option."""
    key = (operator.index(level), operator.index(option))
    if key == _ERROR:
        value: Any = take_error()
    elif key in options:
        value = options[key]
    elif key in _STRUCTS:
        value = bytes(8)
    elif key in _KNOWN:
        value = _KNOWN[key]
    else:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
    if not buflen:
        return int.from_bytes(value[:4], _byte_order()) if isinstance(value, bytes) else value
    raw = value if isinstance(value, bytes) else struct.pack("i", value)
    return raw[:buflen]


def set_option(options: dict[tuple[int, int], Any], level: int, option: int, value: Any) -> None:
    """Remember a value. Raises OSError(ENOPROTOOPT) for an unknown or read-only option, TypeError for a value of another type."""
    key = (operator.index(level), operator.index(option))
    if key in _READ_ONLY or (key not in _KNOWN and key not in _STRUCTS):
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
    if key in _STRUCTS:
        raw = bytes(value) if not isinstance(value, int) else struct.pack("i", value)
        if len(raw) < 8:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        options[key] = raw
    elif isinstance(value, int):
        options[key] = int(value)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        options[key] = int.from_bytes(bytes(value)[:4], _byte_order(), signed=True)
    else:
        raise TypeError(f"a socket option is an int or bytes, not {type(value).__name__}")


def _byte_order() -> Any:
    return "little" if struct.pack("=H", 1) == b"\x01\x00" else "big"
