"""How our node takes a peer's HANDSHAKE, and what comes before and after it."""

from __future__ import annotations

import pytest

from .conftest import PORT, Bench
from .peer import (
    BACKGROUND,
    DATA,
    DEADLINE,
    DIAL,
    HANDSHAKE,
    MAX_PAYLOAD,
    OTHER_ID,
    PEER_ID,
    PEER_PORT,
    PING,
    PONG,
    SERVICE,
    SYN,
    THIRD_ID,
    Frame,
    RawStream,
)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"RAddr":"127.0.0.1:1","Proto":"x","n":[1,2]}',
        b"{}",
        b'{"raddr":"127.0.0.1:1"}',
        b' {"RAddr":"\\u00311"} ',
        b'{"RAddr":null}',
        b"null",
        b'{"RAddr":"","astranet_gevent":null}',
        b'{"RAddr":"","astranet_gevent":"nonsense"}',
        b'{"RAddr":"","astranet_gevent":{"version":"1","features":7}}',
    ],
)
def test_handshake_is_accepted(bench: Bench, payload: bytes) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh, payload=payload)
    theirs = peer.dial(PORT)
    theirs.send(DATA, b"hello")
    assert listener.accept()[0].recv(100) == b"hello"
    peer.assert_quiet()


@pytest.mark.parametrize(
    "payload",
    [
        b'"a string"',
        b'{"RAddr":7}',
        b"",
        b"not json",
        b'{"RAddr":""} garbage',
        b"[]",
        b'{"RAddr":{}}',
        b"\xff\xfe\x00",
        b"[" * 60000,
    ],
)
def test_handshake_is_refused(bench: Bench, payload: bytes) -> None:
    mesh = bench.node()
    other = bench.peer(mesh, OTHER_ID)
    peer, link = bench.silent_peer(mesh)
    peer.send_handshake(payload)
    assert [frame.cmd for frame in peer.wait_end()] in ([HANDSHAKE], [])
    link.wait(DEADLINE)
    other.assert_quiet()


def test_handshake_of_65536_bytes_is_read(bench: Bench) -> None:
    mesh = bench.node()
    bench.listener(mesh)
    peer = bench.peer(mesh, payload=b'{"RAddr":""}'.ljust(MAX_PAYLOAD))
    peer.dial(PORT)


def test_no_handshake_ends_the_link(bench: Bench) -> None:
    mesh = bench.node(handshake_timeout=0.05)
    peer, link = bench.silent_peer(mesh)
    assert [frame.cmd for frame in peer.wait_end()] == [HANDSHAKE]
    link.wait(DEADLINE)


def test_frames_before_the_handshake_are_dropped(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer, _ = bench.silent_peer(mesh)
    peer.receive_handshake()
    peer.send(
        Frame(PING),
        peer.frame(DIAL, PORT, 4711),
        Frame(SERVICE, 0, PEER_ID, 0, 9, b"too early"),
        Frame(77, payload=b"unknown"),
    )
    peer.send_handshake()
    peer.assert_quiet(skip=BACKGROUND | {PONG})
    assert not [service for service in mesh.services() if service.name == "too early"]
    peer.dial(PORT)
    assert listener.accept()[1] == (PEER_ID, PEER_PORT)


def test_frames_in_one_segment_with_the_handshake(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    for _ in range(20):
        peer, _ = bench.silent_peer(mesh)
        peer.receive_handshake()
        theirs = RawStream(peer, PORT, PEER_PORT)
        hello = Frame(HANDSHAKE, local=PEER_ID, payload=b'{"RAddr":""}')
        peer.send(hello, Frame(SERVICE, 0, PEER_ID, 0, 9, b"quick"), theirs.frame(DIAL))
        theirs.expect(SYN)
        assert listener.accept()[1] == (PEER_ID, PEER_PORT)
        mesh.service_map.wait_for("quick", DEADLINE)
        peer.close()


def test_second_handshake_with_another_id_ends_the_link(bench: Bench) -> None:
    mesh = bench.node()
    other = bench.peer(mesh, OTHER_ID)
    peer, link = bench.linked(mesh)
    peer.send(Frame(HANDSHAKE, local=THIRD_ID, payload=b"{}"))
    peer.wait_end()
    link.wait(DEADLINE)
    other.assert_quiet()
    assert {route.node_id for route in mesh.routes()} == {OTHER_ID}


def test_second_handshake_with_the_same_id_is_ignored(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    pair.peer.send(Frame(HANDSHAKE, local=PEER_ID, payload=b'{"RAddr":"10.0.0.1:1"}'))
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"
    pair.peer.assert_quiet()
