"""Frames of an open stream, its windows, and its end."""

from __future__ import annotations

import pytest

from astranet_gevent.errors import (
    LinkLostError,
    NoRouteError,
    StreamClosedError,
    StreamResetError,
)

from .conftest import PORT, Bench, Spawn, outcome
from .peer import (
    BACKGROUND,
    DATA,
    DEADLINE,
    DIAL,
    ERR,
    FIN1,
    FIN2,
    FOLLOW,
    FORCE_CLOSED,
    HANDSHAKE,
    HEADER,
    MAX_PAYLOAD,
    OTHER_ID,
    PEER_ID,
    PEER_PORT,
    RESET,
    REWIND,
    SERVICE,
    SYN,
    THIRD_ID,
    WINDOW,
    WND_SIZE,
    Frame,
    u32,
)

# -- frames of an open stream


@pytest.mark.parametrize("side", ["accepted", "dialled"])
def test_fin1_ends_writing(bench: Bench, side: str) -> None:
    mesh = bench.node()
    pair = getattr(bench, side)(mesh)
    pair.theirs.send(DATA, b"last words")
    pair.theirs.send(FIN1)
    pair.peer.assert_quiet()
    assert pair.stream.recv(100) == b"last words"
    # As with TCP, the first write after the peer's close may pass, the next one fails.
    outcome(pair.stream.sendall, b"nobody reads this")
    with pytest.raises(ConnectionError):
        pair.stream.sendall(b"nor this")
    pair.stream.close()
    pair.peer.fence()
    assert pair.link.stream_count == 0


@pytest.mark.parametrize("side", ["accepted", "dialled"])
def test_err_is_ignored(bench: Bench, side: str) -> None:
    pair = getattr(bench, side)(bench.node())
    pair.theirs.send(ERR, b"what for")
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"
    pair.stream.sendall(b"and on")
    pair.theirs.expect(DATA, payload=b"and on")


@pytest.mark.parametrize("payload", [b"", b"\0", u32(104), u32(104) + b"why", b"\xff" * 300])
@pytest.mark.parametrize("side", ["accepted", "dialled"])
def test_force_closed_resets_that_stream(bench: Bench, side: str, payload: bytes) -> None:
    pair = getattr(bench, side)(bench.node())
    pair.theirs.send(DATA, b"before")
    pair.theirs.send(FORCE_CLOSED, payload)
    pair.peer.assert_quiet()
    assert pair.stream.recv(100) == b"before"
    with pytest.raises(StreamResetError):
        pair.stream.recv(100)
    pair.stream.close()
    pair.peer.assert_quiet()
    assert pair.link.stream_count == 0


@pytest.mark.parametrize("side", ["accepted", "dialled"])
def test_fin2_is_the_end_of_reading_only(bench: Bench, side: str) -> None:
    pair = getattr(bench, side)(bench.node())
    pair.theirs.send(FIN2)
    assert pair.stream.recv(100) == b""
    pair.stream.sendall(b"still writing")
    pair.theirs.expect(DATA, payload=b"still writing")
    pair.theirs.send(FIN2)
    pair.theirs.send(DATA, b"after the end")
    pair.peer.assert_quiet()
    assert pair.stream.recv(100) == b""


def test_reset_in_the_peers_own_name_is_ignored(bench: Bench) -> None:
    """RESET tells of a node that cannot be reached any more: it cannot be the one who says so."""
    mesh = bench.node()
    pair = bench.dialled(mesh)
    pair.peer.send(Frame(RESET, mesh.node_id, PEER_ID), Frame(RESET, 0, PEER_ID))
    pair.peer.assert_quiet()
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"


def test_reset_of_a_node_breaks_all_streams_to_it(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    peer, link = pair.peer, pair.link
    peer.announce("far", 9, local=THIRD_ID)
    peer.announce("other", 9, local=OTHER_ID)
    mesh.service_map.wait_for("far", DEADLINE)
    # One stream that the far node dialled, one that we dialled, a dial under way.
    listener = bench.listener(mesh, "second:5002")
    peer.send(Frame(DIAL, mesh.node_id, THIRD_ID, 5002, 5))
    accepted, _ = listener.accept()
    dial = spawn(mesh.dial, "far")
    frame = peer.wait_for(DIAL, remote=THIRD_ID)
    peer.send(Frame(SYN, mesh.node_id, THIRD_ID, frame.lport, 9))
    dialled = dial.get(timeout=DEADLINE)
    pending = spawn(outcome, mesh.dial, (THIRD_ID, 9))
    peer.wait_for(DIAL, remote=THIRD_ID)

    peer.send(Frame(RESET, mesh.node_id, OTHER_ID), Frame(RESET, mesh.node_id, mesh.node_id))
    peer.send(Frame(DATA, mesh.node_id, THIRD_ID, 5002, 5, b"a RESET of others is nothing"))
    assert accepted.recv(100) == b"a RESET of others is nothing"
    peer.send(Frame(RESET, mesh.node_id, THIRD_ID))
    for stream in (accepted, dialled):
        with pytest.raises(StreamResetError):
            stream.recv(100)
        stream.close()
    assert isinstance(pending.get(timeout=DEADLINE), NoRouteError | LinkLostError)
    # Streams to the relay itself are not touched.
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"
    assert link.stream_count == 1


def test_empty_data_is_nothing(bench: Bench) -> None:
    pair = bench.accepted(bench.node())
    pair.theirs.send(DATA)
    pair.peer.assert_quiet()
    # An empty result would be read as the end of the stream.
    pair.theirs.send(DATA, b"something")
    assert pair.stream.recv(100) == b"something"


def test_data_after_both_fins_is_ignored(bench: Bench) -> None:
    pair = bench.accepted(bench.node())
    pair.theirs.send(DATA, b"abc")
    pair.theirs.send(FIN2)
    assert (pair.stream.recv(100), pair.stream.recv(100)) == (b"abc", b"")
    pair.stream.sendall(b"abc")
    pair.stream.close()
    pair.theirs.expect(DATA, payload=b"abc")
    pair.theirs.expect(FIN2)
    pair.theirs.send(DATA, b"after fin")
    pair.theirs.send(FIN2)
    pair.peer.assert_quiet()
    assert pair.link.stream_count == 0


def test_peer_that_writes_on_after_our_close(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    pair.stream.close()
    pair.theirs.expect(FIN2)
    pair.theirs.expect(FIN1)
    for _ in range(3):
        pair.theirs.send(DATA, bytes(50000))
    for frame in pair.peer.fence():
        assert frame.cmd in BACKGROUND | {FIN1, FIN2, FORCE_CLOSED}, frame
    pair.theirs.send(FIN2)
    pair.peer.fence()
    assert pair.link.stream_count == 0


def test_close_ends_a_read_in_progress(bench: Bench, spawn: Spawn) -> None:
    pair = bench.accepted(bench.node())
    reading = spawn(outcome, pair.stream.recv, 100)
    pair.peer.assert_quiet()
    pair.stream.close()
    assert isinstance(reading.get(timeout=DEADLINE), StreamClosedError)
    with pytest.raises(StreamClosedError):
        pair.stream.recv(100)
    pair.theirs.expect(FIN2)


# -- windows


def test_small_window_is_kept_to(bench: Bench, spawn: Spawn) -> None:
    pair = bench.accepted(bench.node())
    pair.theirs.send(WND_SIZE, u32(1000))
    pair.peer.fence()
    spawn(pair.stream.sendall, bytes(5000))
    assert len(pair.theirs.expect_data(1000)) == 1000
    pair.peer.assert_quiet()
    pair.theirs.send(REWIND, u32(400))
    assert len(pair.theirs.expect_data(400)) == 400
    pair.peer.assert_quiet()


@pytest.mark.parametrize("window", [0, 1, 2**31, 2**32 - 1])
def test_extreme_windows_are_survived(bench: Bench, spawn: Spawn, window: int) -> None:
    pair = bench.accepted(bench.node())
    spawn(pair.stream.sendall, bytes(100_000))
    pair.theirs.expect_data(WINDOW)
    pair.theirs.send(WND_SIZE, u32(window))
    if window > WINDOW:
        pair.theirs.expect_data(100_000 - WINDOW)
    pair.peer.assert_quiet()
    pair.theirs.send(WND_SIZE, u32(WINDOW))
    pair.theirs.send(REWIND, u32(WINDOW))
    pair.peer.fence()


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\1", b"\0\0\1", bytes(5), bytes(100)])
@pytest.mark.parametrize("command", [REWIND, WND_SIZE])
def test_credit_of_a_wrong_size(bench: Bench, command: int, payload: bytes) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    pair.stream.sendall(b"x")
    pair.theirs.expect(DATA)
    pair.theirs.send(command, payload)
    # That stream is broken, by itself or with its link; nothing else is.
    with pytest.raises(ConnectionResetError):
        pair.stream.recv(100)
    other.assert_quiet()


@pytest.mark.parametrize("credit", [1, WINDOW, 2**32 - 1])
def test_credit_for_bytes_never_sent(bench: Bench, credit: int) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    pair.theirs.send(REWIND, u32(credit))
    with pytest.raises(ConnectionResetError):
        pair.stream.recv(100)
    other.assert_quiet()


def test_overrun_of_the_window_resets_that_stream(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer, link = bench.linked(mesh)
    greedy, modest = peer.dial(PORT, lport=1), peer.dial(PORT, lport=2)
    overrun, _ = listener.accept()
    untouched, _ = listener.accept()
    greedy.send(DATA, bytes(WINDOW))
    greedy.send(DATA, b"x")
    for frame in peer.fence():
        # To a Go peer: reads end, writes end.
        assert frame.cmd in BACKGROUND | {FORCE_CLOSED, FIN1, FIN2}, frame
    for _ in range(20):
        greedy.send(DATA, bytes(WINDOW))
    received = 0
    while isinstance(part := outcome(overrun.recv, WINDOW), bytes):
        received += len(part)
    assert isinstance(part, ConnectionResetError)
    assert received <= WINDOW
    modest.send(DATA, b"fine")
    assert untouched.recv(100) == b"fine"
    peer.assert_quiet()
    overrun.close()
    assert link.stream_count == 1


@pytest.mark.parametrize("command", [DATA, SERVICE, 200, FOLLOW, REWIND])
def test_payload_of_65536_is_read(bench: Bench, command: int) -> None:
    pair = bench.accepted(bench.node())
    pair.theirs.send(command, bytes(MAX_PAYLOAD))
    for frame in pair.peer.fence():
        # A REWIND of that size is wrong in another way.
        assert command == REWIND or frame.cmd in BACKGROUND, frame
    if command == DATA:
        received = 0
        while received < MAX_PAYLOAD:
            received += len(pair.stream.recv(MAX_PAYLOAD))
        assert received == MAX_PAYLOAD
        pair.theirs.expect(REWIND)
    pair.peer.dial(PORT, lport=4711)


@pytest.mark.parametrize("size", [65537, 65565, 1 << 20, 2**32 - 1])
@pytest.mark.parametrize("command", [DATA, SERVICE, HANDSHAKE, 200])
def test_larger_payload_ends_the_link(bench: Bench, command: int, size: int) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    # The header alone is enough: nothing of the payload is waited for, or stored.
    fields = mesh.node_id, PEER_ID, PORT, PEER_PORT
    pair.peer.send(HEADER.pack(command, *fields, size))
    pair.peer.wait_end()
    pair.link.wait(DEADLINE)
    with pytest.raises(LinkLostError):
        pair.stream.recv(100)
    other.assert_quiet()
