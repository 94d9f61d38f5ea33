"""Links that stall, fall silent, come and go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from gevent import socket

from astranet_gevent.errors import (
    LinkLostError,
)

from .conftest import PORT, Bench, Eventually, listen_anywhere
from .peer import (
    DATA,
    DEADLINE,
    FIN1,
    FIN2,
    OTHER_ID,
    PEER_ID,
    PING,
    PONG,
    SERVICE,
    Frame,
)


def test_silent_peer_is_dropped(bench: Bench) -> None:
    mesh = bench.node(keepalive_interval=0.05, keepalive_timeout=0.2)
    pair = bench.accepted(mesh)
    # Our PINGs go unanswered from here on.
    frames = pair.peer.wait_end()
    assert PING in {frame.cmd for frame in frames}
    pair.link.wait(DEADLINE)
    with pytest.raises(LinkLostError):
        pair.stream.recv(100)


def test_peer_that_only_answers_pings_is_kept(bench: Bench) -> None:
    mesh = bench.node(keepalive_interval=0.05, keepalive_timeout=0.2)
    pair = bench.accepted(mesh)
    for _ in range(8):
        pair.peer.wait_for(PING)
        pair.peer.send(Frame(PONG))
    pair.theirs.send(DATA, b"alive")
    assert pair.stream.recv(100) == b"alive"


@pytest.mark.parametrize("cut", [1, 20, 28, 29, 33])
def test_frame_that_stalls_ends_the_link(bench: Bench, cut: int) -> None:
    mesh = bench.node(frame_timeout=0.1)
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    frame = Frame(SERVICE, 0, PEER_ID, 0, 5, b"slow one").encode()
    pair.peer.send(frame[:cut])
    pair.peer.wait_end()
    pair.link.wait(DEADLINE)
    with pytest.raises(LinkLostError):
        pair.stream.recv(100)
    other.assert_quiet()


def test_frame_in_pieces_is_read(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    for byte in pair.theirs.frame(DATA, b"piece by piece").encode():
        pair.peer.send(bytes([byte]))
        # The node has read the piece before the next is sent.
        other.fence()
    assert pair.stream.recv(100) == b"piece by piece"
    pair.peer.assert_quiet()


def test_node_comes_back_to_a_peer_that_drops_it(bench: Bench, listeners: list[socket.socket]) -> None:
    listener = listeners[0]
    mesh = bench.node(rejoin_min=0.01, rejoin_max=0.05)
    where = listener.getsockname()
    peering = mesh.join(where)
    for _ in range(2):  # accepted and dropped at once
        listener.accept()[0].close()
    for _ in range(2):  # dropped after the handshake
        peer = bench.adopt(listener.accept()[0])
        peer.handshake()
        peer.fence()
        peer.close()
    listener.close()  # refused for a while
    again = listeners[0] = listen_anywhere(where)
    peer = bench.adopt(again.accept()[0])
    peer.handshake()
    peering.wait_ready(DEADLINE)
    peer.announce("back", 9)
    mesh.service_map.wait_for("back", DEADLINE)


def test_streams_leave_nothing_behind(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer, link = bench.linked(mesh)
    for number in range(300):
        theirs = peer.dial(PORT, lport=1000 + number)
        stream, _ = listener.accept()
        theirs.send(DATA, b"ping")
        assert stream.recv(100) == b"ping"
        stream.close()
        theirs.expect(FIN2)
        theirs.expect(FIN1)
        theirs.send(FIN2)
    peer.assert_quiet()
    assert link.stream_count == 0


def test_links_leave_nothing_behind(bench: Bench, no_leaks: Callable[..., None], eventually: Eventually) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    for number in range(50):
        peer, link = bench.linked(mesh, PEER_ID + number)
        peer.announce("svc", 9)
        peer.dial(PORT)
        stream, _ = listener.accept()
        peer.close()
        link.wait(DEADLINE)
        with pytest.raises(LinkLostError):
            stream.recv(1)
        stream.close()
    assert [service for service in mesh.services() if service.node_id != mesh.node_id] == []
    assert [route for route in mesh.routes() if route.node_id != mesh.node_id] == []


def test_closing_a_node_is_not_held_up_by_one_stuck_peer(bench: Bench) -> None:
    mesh = bench.node()
    stuck = bench.peer(mesh, OTHER_ID)
    pair = bench.accepted(mesh)
    pair.stream.sendall(b"last words")
    # The first peer neither reads nor closes; the second gets what was written before the close.
    mesh.close(timeout=0.2)
    assert b"last words" in [frame.payload for frame in pair.peer.wait_end()]
    stuck.wait_end()
