"""Fixtures of the wire tests: nodes, raw peers linked to them, the watch for stray errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gevent
import pytest
from gevent import socket

from astranet_gevent import AstraNet
from astranet_gevent.errors import AstraNetError

from .peer import DEADLINE, PEER_ID, PEER_PORT, RawPeer, RawStream

# Following would dial the addresses of the recordings, where anything may listen by now. Ten
# milliseconds instead of fifty between announcements saves the suite some seconds.
DEFAULTS: dict[str, Any] = {"follow": False, "announce_interval": 0.01}

Spawn = Callable[..., "gevent.Greenlet[..., Any]"]
Eventually = Callable[..., None]

# The port of our node's service in most tests.
PORT = 5000


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call returned, or the library's error that it raised: for greenlets, where an error
    that leaves them counts as a crash."""
    try:
        return function(*args, **kwargs)
    except AstraNetError as error:
        return error


def known_services(mesh: AstraNet) -> set[tuple[str, int, int, int]]:
    """Name, node, port and distance of every service that the node knows."""
    return {(service.name, service.node_id, service.port, service.distance) for service in mesh.services()}


def listen_anywhere(where: tuple[str, int] = ("127.0.0.1", 0)) -> socket.socket:
    """A listening socket. Not socket.create_server(): that makes one that stops the whole hub."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(where)
    listener.listen()
    listener.settimeout(DEADLINE)
    return listener


class Pair(NamedTuple):
    """Both ends of one stream, and the link that carries it."""

    peer: RawPeer
    link: Any
    theirs: RawStream
    stream: Any


class Bench:
    """Makes nodes and raw peers; closes all of them."""

    def __init__(self) -> None:
        self._nodes: list[AstraNet] = []
        self._peers: list[RawPeer] = []

    def node(self, **config: Any) -> AstraNet:
        """A started node; it follows nobody unless the test says otherwise."""
        mesh = AstraNet(**{**DEFAULTS, **config})
        self._nodes.append(mesh)
        mesh.start()
        return mesh

    def silent_peer(self, mesh: AstraNet, node_id: int = PEER_ID) -> tuple[RawPeer, Any]:
        """A link on which the peer has not said anything yet: the peer and the node's Link."""
        ours, theirs = socket.socketpair()
        peer = RawPeer(theirs, node_id)
        self._peers.append(peer)
        return peer, mesh.attach(ours)

    def adopt(self, sock: socket.socket, node_id: int = PEER_ID) -> RawPeer:
        """A peer over a connection that the node has opened or accepted itself."""
        peer = RawPeer(sock, node_id)
        self._peers.append(peer)
        return peer

    def peer(self, mesh: AstraNet, node_id: int = PEER_ID, **handshake: Any) -> RawPeer:
        """A peer that has shaken hands as a Go node does."""
        return self.linked(mesh, node_id, **handshake)[0]

    def linked(self, mesh: AstraNet, node_id: int = PEER_ID, **handshake: Any) -> tuple[RawPeer, Any]:
        """A peer that has shaken hands, and the node's Link."""
        peer, link = self.silent_peer(mesh, node_id)
        peer.handshake(**handshake)
        # The PONG says that the node has taken the handshake in.
        peer.assert_quiet()
        return peer, link

    def dialled(self, mesh: AstraNet, node_id: int = PEER_ID, port: int = PORT) -> Pair:
        """A stream that our node has dialled to a new peer."""
        peer, link = self.linked(mesh, node_id)
        dial = gevent.spawn(mesh.dial, (node_id, port))
        theirs = peer.accept(port)
        # Until dial() has returned, the stream is not the application's.
        return Pair(peer, link, theirs, dial.get(timeout=DEADLINE))

    def accepted(self, mesh: AstraNet, node_id: int = PEER_ID, lport: int = PEER_PORT) -> Pair:
        """A stream that a new peer has dialled to a new listener of our node."""
        peer, link = self.linked(mesh, node_id)
        listener = self.listener(mesh)
        theirs = peer.dial(PORT, lport)
        return Pair(peer, link, theirs, listener.accept()[0])

    def listener(self, mesh: AstraNet, service: str = f"svc:{PORT}") -> Any:
        """A bound listener whose accept() does not wait longer than a test may."""
        listener = mesh.bind(service)
        listener.settimeout(DEADLINE)
        return listener

    def close(self) -> None:
        """Drop every link and close every node."""
        for peer in self._peers:
            peer.close()
        for mesh in self._nodes:
            mesh.close()


@pytest.fixture
def bench(hub_errors: list[Any]) -> Iterator[Bench]:
    """Nodes and peers that are gone when the test is over."""
    made = Bench()
    yield made
    made.close()


class _ErrorLog(logging.Handler):
    def __init__(self, errors: list[Any]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(record.getMessage())


@pytest.fixture(autouse=True)
def hub_errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Fails the test if an exception left a greenlet or a callback, or the library logged an error.

    No bytes from outside may cause anything but a protocol error, which ends a link or a stream.
    """
    errors: list[Any] = []
    hub = gevent.get_hub()
    report: Callable[..., None] = hub.handle_error

    def handle_error(context: Any, kind: Any, value: Any, traceback: Any) -> None:
        if not issubclass(kind, hub.NOT_ERROR):
            errors.append((context, kind, value))
        report(context, kind, value, traceback)

    monkeypatch.setattr(hub, "handle_error", handle_error)
    handler = _ErrorLog(errors)
    logger = logging.getLogger("astranet_gevent")
    logger.addHandler(handler)
    yield errors
    logger.removeHandler(handler)
    assert not errors, errors


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """Four listening sockets."""
    made = [listen_anywhere() for _ in range(4)]
    yield made
    for listener in made:
        listener.close()
