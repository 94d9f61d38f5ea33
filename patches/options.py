"""Options that programs set before a socket is the mesh's."""

from __future__ import annotations

import _socket
import socket
from typing import Any, Final

__all__ = ["changed_options"]

# Options that programs set before the connect or the bind, and that matter or are asked for afterwards, by name, as platforms differ.
_CARRIED: Final = {
    socket.SOL_SOCKET: ("SO_KEEPALIVE", "SO_LINGER", "SO_OOBINLINE", "SO_RCVBUF", "SO_REUSEADDR", "SO_REUSEPORT", "SO_SNDBUF"),
    socket.IPPROTO_TCP: ("TCP_KEEPCNT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_NODELAY", "TCP_USER_TIMEOUT"),
    socket.IPPROTO_IPV6: ("IPV6_V6ONLY",),
}
_CARRIED_OPTIONS: Final = tuple(
    (int(level), int(getattr(socket, name)), 8 if name == "SO_LINGER" else 0)
    for level, names in _CARRIED.items()
    for name in names
    if hasattr(socket, name)
)

# What a socket of the system answers that nobody has changed, by family.
_pristine: dict[int, dict[tuple[int, int], Any]] = {}


def changed_options(system: Any) -> dict[tuple[int, int], Any]:
    """What a program has set of a socket of the system, as far as it is carried over."""
    family = system.family
    before = _pristine.get(family)
    if before is None:
        fresh = _socket.socket(family, socket.SOCK_STREAM)
        before = _pristine[family] = _read_options(fresh)
        fresh.close()
    return {key: value for key, value in _read_options(system).items() if value != before.get(key)}


def _read_options(system: Any) -> dict[tuple[int, int], Any]:
    found = {}
    for level, option, size in _CARRIED_OPTIONS:
        if level != socket.IPPROTO_IPV6 or system.family == socket.AF_INET6:
            found[level, option] = system.getsockopt(level, option, size) if size else system.getsockopt(level, option)
    return found
