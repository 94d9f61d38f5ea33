"""What the conformance tests run over: ways to get two connected streams, and listeners.

A provider whose streams cannot or do not do something names the ``Trait`` and its reason in ``lacks``.
Tests that need the trait are reported as skipped with that reason, and a test of its own makes sure
that no stream of the mesh lacks any.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from enum import Enum
from typing import Any, ClassVar, TypeAlias, cast

import gevent.socket
from gevent.exceptions import ConcurrentObjectUseError

from astranet_gevent import AstraNet, ConcurrentUseError, Config, Role
from astranet_gevent.testing import memory_pair

# Typed as the stdlib's socket: that the streams of the mesh have its methods is what is tested.
Stream: TypeAlias = socket.socket
Pair: TypeAlias = tuple[Stream, Stream]
# A listener has the accepting methods of a socket; an address is whatever the provider dials.
Listener: TypeAlias = Any
Address: TypeAlias = Any

SETUP_DEADLINE = 10.0

# For kernel sockets: small, so that the tests fill them in no time. The kernel doubles it.
KERNEL_BUFFER = 64 * 1024


class Trait(Enum):
    """What a stream should do and some real ones do not."""

    LISTENER = "has listeners to dial"
    NAMES = "both ends have a name: a pair, of which the second is a port"
    TCP_OPTIONS = "answers the options of TCP"
    STAYS_FULL = "a stream that takes no more takes no more until its peer reads"
    LINGER = "SO_LINGER with a time of 0 makes close() a reset"
    WRITE_AFTER_CLOSE = "the first write after the peer's close succeeds"
    DONTWAIT = "recv with MSG_DONTWAIT does not wait"
    QUIET_SHUTDOWN = "one's own shutdown gives one's waiting recv an end of file"
    PARTIAL_SENDALL = "a non-blocking sendall that had to stop midway raises BlockingIOError"
    DETACH = "detach() gives a descriptor that carries the stream"
    MANY_ACCEPTERS = "several greenlets may wait in one accept"
    FULL_BACKLOG = "a dial that finds the backlog full is refused at once"
    ITERATION = "a listener can be iterated over"


class Provider:
    """Two ends to connect streams between; ``open`` before use, ``close`` after."""

    name: ClassVar[str]
    lacks: ClassVar[Mapping[Trait, str]] = {}
    # What a second greenlet that waits in the same half of a stream gets.
    concurrent_use: ClassVar[type[BaseException]]
    # A writer whose peer reads nothing must have been stopped by then, in bytes.
    buffer_limit: ClassVar[int] = 4 * 1024 * 1024

    def open(self) -> None:
        """Start what the streams need."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError

    def connect_pair(self) -> Pair:
        """A new stream as (dialling end, accepting end)."""
        raise NotImplementedError

    def listener(self, backlog: int = 64) -> Listener:
        """A new listener; the caller closes it."""
        raise NotImplementedError

    def address(self, listener: Listener) -> Address:
        """What leads a dial to the listener."""
        raise NotImplementedError

    def dial(self, address: Address) -> Stream:
        """A new stream to the listener at an address."""
        raise NotImplementedError

    def live_streams(self) -> int:
        """Entries in the tables of both ends; 0 where every stream is a descriptor."""
        return 0


_GEVENT_LACKS: Mapping[Trait, str] = {
    Trait.DONTWAIT: "gevent.socket waits in recv whatever the flags",
    Trait.QUIET_SHUTDOWN: "gevent.socket cancels the waiting greenlet with EBADF",
    Trait.PARTIAL_SENDALL: "gevent.socket raises TimeoutError once a part is sent",
    Trait.MANY_ACCEPTERS: "gevent.socket lets one greenlet wait per descriptor",
    Trait.ITERATION: "sockets are not iterable",
}
_UNIX_LACKS: Mapping[Trait, str] = {
    **_GEVENT_LACKS,
    Trait.NAMES: "the dialling end of a unix socket has no name",
    Trait.TCP_OPTIONS: "a unix socket is not TCP",
    Trait.LINGER: "SO_LINGER does nothing on unix sockets",
    Trait.WRITE_AFTER_CLOSE: "a unix socket knows of the peer's close at once",
    Trait.FULL_BACKLOG: "a blocking connect to a unix socket waits for room",
}


class GeventSockets(Provider):
    """Sockets of the kernel under gevent: what says that the tests themselves are right."""

    lacks: ClassVar[Mapping[Trait, str]] = _GEVENT_LACKS
    concurrent_use = ConcurrentObjectUseError
    family: ClassVar[socket.AddressFamily]

    def __init__(self) -> None:
        self._resources = ExitStack()

    def open(self) -> None:
        self._listener = self._resources.enter_context(self.listener())

    def close(self) -> None:
        self._resources.close()

    def connect_pair(self) -> Pair:
        client = self.dial(self.address(self._listener))
        server, _ = self._listener.accept()
        return client, server

    def listener(self, backlog: int = 64) -> Listener:
        sock = gevent.socket.socket(self.family, socket.SOCK_STREAM)
        limit_buffers(sock)
        sock.bind(self.free_address())
        sock.listen(backlog)
        return sock

    def free_address(self) -> Address:
        """Where a new listener may bind."""
        raise NotImplementedError

    def address(self, listener: Listener) -> Address:
        return listener.getsockname()

    def dial(self, address: Address) -> Stream:
        sock = gevent.socket.socket(self.family, socket.SOCK_STREAM)
        limit_buffers(sock)
        try:
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock


class GeventTCP(GeventSockets):
    """TCP over the loopback interface."""

    name = "gevent-tcp"
    family = socket.AF_INET
    lacks: ClassVar[Mapping[Trait, str]] = {
        **_GEVENT_LACKS,
        Trait.STAYS_FULL: "the kernel tries again now and then, and finds a little room",
        Trait.FULL_BACKLOG: "the kernel drops the SYN, and the dial tries again until it times out",
    }

    def free_address(self) -> Address:
        return ("127.0.0.1", 0)


class GeventUnix(GeventSockets):
    """Unix sockets with a path."""

    name = "gevent-unix"
    family = socket.AF_UNIX
    lacks: ClassVar[Mapping[Trait, str]] = _UNIX_LACKS

    def open(self) -> None:
        self._folder = self._resources.enter_context(tempfile.TemporaryDirectory())
        self._count = 0
        super().open()

    def free_address(self) -> Address:
        self._count += 1
        return os.path.join(self._folder, str(self._count))


class GeventSocketpair(GeventSockets):
    """socket.socketpair()."""

    name = "gevent-socketpair"
    family = socket.AF_UNIX
    lacks: ClassVar[Mapping[Trait, str]] = {
        **_UNIX_LACKS,
        Trait.LISTENER: "a socketpair is born connected",
    }

    def open(self) -> None:
        pass

    def connect_pair(self) -> Pair:
        one, other = gevent.socket.socketpair(self.family, socket.SOCK_STREAM)
        limit_buffers(one)
        limit_buffers(other)
        return one, other


def limit_buffers(sock: Stream) -> None:
    """Make the kernel's buffers small, and of one size in every test."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)


PLAIN: tuple[type[Provider], ...] = (GeventTCP, GeventUnix, GeventSocketpair)


# The links are those made here, so nobody follows. A PING makes a link send, and would hide that somebody
# who waits for room was not woken: there is none.
_CONFIG = Config(follow=False, keepalive_interval=90)


class Mesh(Provider):
    """Two nodes; how they are linked is the business of the subclasses."""

    concurrent_use = ConcurrentUseError
    lacks: ClassVar[Mapping[Trait, str]] = {
        Trait.DETACH: "a stream of the mesh has no descriptor that carries its bytes",
    }

    def open(self) -> None:
        self._resources = ExitStack()
        self._count = 0
        try:
            self.server, self.client = self.link()
            self._listener = self.server.bind("conformance")
            # A dial by name waits for the announcement: from then on every dial knows the way.
            self.client.service_map.wait_for("conformance", SETUP_DEADLINE)
        except BaseException:
            self._resources.close()
            raise

    def link(self) -> tuple[AstraNet, AstraNet]:
        """Two nodes that know of each other: one to bind, one to dial."""
        raise NotImplementedError

    def node(self, **overrides: Any) -> AstraNet:
        """A node that ends with the provider."""
        return self._resources.enter_context(AstraNet(_CONFIG, **overrides))

    def close(self) -> None:
        self._resources.close()

    def connect_pair(self) -> Pair:
        client = self.dial(self.address(self._listener))
        server, _ = self._listener.accept()
        return client, cast(Stream, server)

    def listener(self, backlog: int = 64) -> Listener:
        self._count += 1
        return self.server.bind(f"conformance-{self._count}", backlog)

    def address(self, listener: Listener) -> Address:
        return listener.getsockname()

    def dial(self, address: Address) -> Stream:
        return cast(Stream, self.client.dial(address))

    def live_streams(self) -> int:
        links = {*self.server.links(), *self.client.links()}
        return sum(link.stream_count for link in links)


class MeshMemory(Mesh):
    """A link in memory, as the test kit makes it."""

    name = "mesh-memory"

    def link(self) -> tuple[AstraNet, AstraNet]:
        server, client = self.node(), self.node()
        for mesh, conn in zip((server, client), memory_pair()):
            mesh.attach(conn)
        return server, client


class MeshTCP(Mesh):
    """A link over TCP: one node listens, the other joins."""

    name = "mesh-tcp"

    def link(self) -> tuple[AstraNet, AstraNet]:
        server, client = self.node(), self.node()
        address = server.listen(("127.0.0.1", 0)).address
        client.join(address).wait_ready(SETUP_DEADLINE)
        return server, client


class MeshLimits(Mesh):
    """Everything that is bounded at its lowest: whoever can wait for room does."""

    name = "mesh-limits"

    def link(self) -> tuple[AstraNet, AstraNet]:
        limits = {"frame_size": 1024, "max_window": 65536, "queue_bytes": 65536}
        server, client = self.node(**limits), self.node(**limits)
        address = server.listen(("127.0.0.1", 0)).address
        client.join(address).wait_ready(SETUP_DEADLINE)
        return server, client


class MeshUnix(Mesh):
    """A link over a unix socket."""

    name = "mesh-unix"

    def link(self) -> tuple[AstraNet, AstraNet]:
        folder = self._resources.enter_context(tempfile.TemporaryDirectory())
        server, client = self.node(), self.node()
        address = server.listen(f"unix:{folder}/link").address
        client.join(address).wait_ready(SETUP_DEADLINE)
        return server, client


class MeshRelay(Mesh):
    """Two nodes that know each other only through a router."""

    name = "mesh-relay"

    def link(self) -> tuple[AstraNet, AstraNet]:
        router, server, client = self.node(role=Role.ROUTER), self.node(), self.node()
        address = router.listen(("127.0.0.1", 0)).address
        for mesh in (server, client):
            mesh.join(address).wait_ready(SETUP_DEADLINE)
        return server, client


class MeshLoopback(Mesh):
    """One node that dials itself."""

    name = "mesh-loopback"

    def link(self) -> tuple[AstraNet, AstraNet]:
        mesh = self._resources.enter_context(AstraNet(_CONFIG).with_loopback())
        return mesh, mesh


MESHES: tuple[type[Mesh], ...] = (
    MeshMemory,
    MeshTCP,
    MeshLimits,
    MeshUnix,
    MeshRelay,
    MeshLoopback,
)
PROVIDERS: tuple[type[Provider], ...] = (*PLAIN, *MESHES)
