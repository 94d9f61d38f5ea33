"""Every stream over loopback is carried by a mesh: what a program's own tests are run with, to see that they do not notice.

Sockets are bound to the system's ports first, so that numbers, conflicts and errors are the system's; nobody ever listens there. A connect
to such a port is dialled, one to any other port goes to the system, which refuses it.
"""

from __future__ import annotations

import _socket
import errno
import os
import socket
import weakref
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from astranet_gevent.patches import Patch, Rules
from astranet_gevent.patches.listening import RawListener
from astranet_gevent.patches.raw import RawStream

from astranet_gevent import AstraNet, Listener, Stream

__all__ = ["LoopbackPatch"]

WILDCARDS = ("", "0.0.0.0", "::")


class _Held(_socket.socket):
    """The system's socket that holds a port; it never listens. Lives as long as it is bound, and ends without a ResourceWarning."""

    def __del__(self) -> None:
        self.close()


class LoopbackPatch(Patch):
    """A patch that knows no names: services are ports of loopback."""

    def __init__(self, mesh: AstraNet) -> None:
        super().__init__(mesh, Rules(suffix="", bare=False))
        self._binding: _Held | None = None
        # Streams that were dialled so far.
        self.dialled = 0
        # The system's socket that holds the port, for each service.
        self._held: weakref.WeakValueDictionary[str, _Held] = weakref.WeakValueDictionary()

    def _note_foreign(self, host: str) -> None:
        """Every host may be loopback's."""

    def target_of(self, system: Any, address: Any) -> tuple[str, int] | None:
        port = self._port(system, address)
        # What is bound here is connected here: to nobody, it is refused as by the system.
        if port and (str(port) in self._held or isinstance(system, RawListener)):
            return str(port), port
        return None

    def binding_of(self, system: Any, address: Any) -> tuple[str, int] | None:
        port = self._port(system, address)
        if port is None or isinstance(system, (RawListener, RawStream)):
            return None
        _socket.socket.bind(system, address)
        port = system.getsockname()[1]
        self._binding = self._held[str(port)] = _Held(system.family, system.type, system.proto, _socket.dup(system.fileno()))
        return str(port), port

    def far_address(self, service: str, port: int) -> tuple[str, int]:
        held = self._held.get(service)
        host = "127.0.0.1" if held is None else held.getsockname()[0]
        if self._binding is None and host in WILDCARDS:
            # Of a connect: nobody is connected to a wildcard.
            host = "127.0.0.1"
        return host, int(service)

    def peer_address(self, node_id: int, port: int) -> tuple[str, int]:
        return "127.0.0.1", port % 32768 + 32768

    def binder(self, service: str, port: int) -> Callable[[int], Listener]:
        held, self._binding = self._binding, None

        def bind(backlog: int) -> Listener:
            assert held is not None
            return self.mesh.bind(f":{service}", backlog)

        return bind

    def dial(self, service: str, port: int, timeout: float | None) -> Stream:
        self.dialled += 1
        if service not in self._held:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return self.mesh.dial((self.mesh.node_id, int(service)), 10.0 if timeout is None else timeout)

    def _port(self, system: Any, address: Any) -> int | None:
        """The port when this is a stream over loopback."""
        if not isinstance(address, tuple) or len(address) < 2 or system.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if system.type & 0xF != socket.SOCK_STREAM or not isinstance(address[0], str) or not isinstance(address[1], int):
            return None
        host = "127.0.0.1" if address[0] == "localhost" else address[0].removeprefix("::ffff:")
        try:
            loopback = host in WILDCARDS or ip_address(host).is_loopback
        except ValueError:
            return None
        return address[1] if loopback and 0 <= address[1] <= 65535 else None
