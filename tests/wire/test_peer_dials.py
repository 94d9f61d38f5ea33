"""Streams as they begin: dials of the peer and of ours, and frames that belong to neither."""

from __future__ import annotations

import pytest

from astranet_gevent import Role
from astranet_gevent.errors import (
    DialTimeout,
    StreamResetError,
)

from .conftest import PORT, Bench, Spawn, outcome
from .peer import (
    ACK,
    BACKGROUND,
    BLOCKED,
    DATA,
    DEADLINE,
    DIAL,
    DISCOVER,
    ERR,
    FIN1,
    FIN2,
    FOLLOW,
    FORCE_CLOSED,
    GOODBYE,
    HANDSHAKE,
    HELLO,
    NO_SERVICE,
    PAUSE,
    PEER_ID,
    PEER_PORT,
    PING,
    PONG,
    RESET,
    RESUME,
    REWIND,
    SERVICE,
    SYN,
    SYN_ACK,
    THIRD_ID,
    WND_SIZE,
    Frame,
    RawStream,
    u32,
)

# -- what is not ours to understand


@pytest.mark.parametrize("remote", ["node", 0])
@pytest.mark.parametrize("payload", [b"", b"abc"])
def test_unknown_commands_are_ignored(bench: Bench, remote: object, payload: bytes) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    peer = pair.peer
    known = {
        *(SYN, ACK, SYN_ACK, FIN1, FIN2, ERR, FORCE_CLOSED, DATA, WND_SIZE, REWIND, PING, PONG),
        *(DIAL, HANDSHAKE, SERVICE, NO_SERVICE, FOLLOW, DISCOVER, RESET),
        *(HELLO, GOODBYE, PAUSE, RESUME, BLOCKED),
    }
    target = mesh.node_id if remote == "node" else 0
    for command in sorted(set(range(256)) - known):
        peer.send(Frame(command, target, PEER_ID, 1, 2, payload))
    peer.assert_quiet()
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"


def test_unsolicited_stream_frames_are_ignored(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    peer = pair.peer
    for command in (SYN, ACK, SYN_ACK, FIN1, FIN2, ERR, FORCE_CLOSED, DATA, WND_SIZE, REWIND):
        for payload in (b"", b"xy", u32(1000)):
            # A bound port with an unknown peer port, an unbound port, and no port at all.
            peer.send(peer.frame(command, PORT, 999, payload))
            peer.send(peer.frame(command, 4999, PEER_PORT, payload))
            peer.send(Frame(command, 0, PEER_ID, 0, 0, payload))
    peer.assert_quiet()
    assert pair.link.stream_count == 1
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"


def test_ping_with_ids_and_payload_gets_a_plain_pong(bench: Bench) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.send(Frame(PING, mesh.node_id, 5, 1, 2, b"payload"))
    assert peer.expect(PONG) == Frame(PONG)
    peer.send(Frame(PING, THIRD_ID, 5, 1, 2, b"payload"))
    assert peer.expect(PONG) == Frame(PONG)
    peer.assert_quiet()


# -- dialling our node


def test_dial_to_nobody_is_ignored(bench: Bench) -> None:
    mesh = bench.node()
    bench.listener(mesh)
    peer, link = bench.linked(mesh)
    peer.send(Frame(DIAL, 0, PEER_ID, PORT, PEER_PORT))
    peer.assert_quiet()
    assert link.stream_count == 0


@pytest.mark.parametrize("port", [1, 4999, 0, 2**32 - 1])
def test_dial_to_an_unbound_port_is_refused(bench: Bench, port: int) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    theirs = RawStream(peer, port, PEER_PORT)
    theirs.send(DIAL)
    # A Go dialler waits for SYN with all else; then its reads (FIN2) and its writes (FIN1) end.
    theirs.expect(SYN)
    theirs.expect(FIN2)
    theirs.expect(FIN1)
    theirs.send(ACK)
    theirs.send(DATA, b"into the void")
    theirs.send(FIN2)
    peer.assert_quiet()
    assert link.stream_count == 0


def test_dial_to_a_full_backlog_is_refused(bench: Bench) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    mesh.bind(f"svc:{PORT}", backlog=1)
    peer.dial(PORT, lport=1001)
    late = RawStream(peer, PORT, 1002)
    late.send(DIAL)
    late.expect(SYN)
    late.expect(FIN2)
    late.expect(FIN1)
    peer.assert_quiet()
    assert link.stream_count == 1


def test_client_announces_nothing_and_has_no_port_1(bench: Bench) -> None:
    mesh = bench.node(role=Role.CLIENT)
    peer = bench.peer(mesh)
    theirs = RawStream(peer, 1, PEER_PORT)
    theirs.send(DIAL)
    theirs.expect(SYN)
    theirs.expect(FIN2)
    theirs.expect(FIN1)
    peer.fence()
    assert not [frame for frame in peer.received if frame.cmd in BACKGROUND]


def test_data_in_one_segment_with_dial_is_delivered(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh)
    theirs = RawStream(peer, PORT, PEER_PORT)
    peer.send(theirs.frame(DIAL), theirs.frame(ACK), theirs.frame(DATA, b"too early for Go"))
    assert listener.accept()[0].recv(100) == b"too early for Go"


def test_data_right_after_syn_is_delivered(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh)
    theirs = RawStream(peer, PORT, PEER_PORT)
    theirs.send(DIAL)
    theirs.expect(SYN)
    peer.send(theirs.frame(ACK), theirs.frame(DATA, b"at once"))
    assert listener.accept()[0].recv(100) == b"at once"


@pytest.mark.parametrize("instead", [(), (SYN_ACK,), (ACK, ACK)])
def test_ack_is_not_needed(bench: Bench, instead: tuple[int, ...]) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh)
    theirs = RawStream(peer, PORT, PEER_PORT)
    theirs.send(DIAL)
    theirs.expect(SYN)
    theirs.expect(SYN_ACK)
    for command in instead:
        theirs.send(command)
    theirs.send(DATA, b"ping")
    stream, _ = listener.accept()
    assert stream.recv(100) == b"ping"
    stream.sendall(b"pong")
    theirs.expect(DATA, payload=b"pong")
    theirs.send(ACK)
    peer.assert_quiet()


def test_newest_of_two_dials_with_the_same_ports_wins(bench: Bench) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    listener = bench.listener(mesh)
    first = peer.dial(PORT)
    old, _ = listener.accept()
    first.send(DATA, b"of the first")
    second = peer.dial(PORT)
    new, _ = listener.accept()
    second.send(DATA, b"of the second")
    assert new.recv(100) == b"of the second"
    assert old.recv(100) == b"of the first"
    with pytest.raises(StreamResetError):
        old.recv(100)
    # Ending the old one must not touch the new one, which has the same addresses.
    old.close()
    peer.assert_quiet()
    new.sendall(b"alive")
    second.expect(DATA, payload=b"alive")
    assert link.stream_count == 1


def test_port_dialled_again_right_after_close(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer, link = bench.linked(mesh)
    for content in (b"first", b"second", b"third"):
        theirs = peer.dial(PORT)
        theirs.send(DATA, content)
        theirs.send(FIN2)
        stream, _ = listener.accept()
        assert (stream.recv(100), stream.recv(100)) == (content, b"")
        stream.close()
        theirs.expect(FIN2)
    peer.assert_quiet()
    assert link.stream_count == 0


def test_dial_from_a_node_behind_the_peer(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh)
    peer.send(Frame(DIAL, mesh.node_id, THIRD_ID, PORT, 5))
    peer.expect(SYN, remote=THIRD_ID, local=mesh.node_id, rport=5, lport=PORT)
    peer.expect(SYN_ACK, remote=THIRD_ID, local=mesh.node_id, rport=5, lport=PORT)
    peer.send(Frame(DATA, mesh.node_id, THIRD_ID, PORT, 5, b"from afar"))
    stream, address = listener.accept()
    assert address == (THIRD_ID, 5)
    assert stream.recv(100) == b"from afar"
    stream.sendall(b"answer")
    peer.expect(DATA, remote=THIRD_ID, rport=5, payload=b"answer")


# -- dialled by our node


def test_syn_from_another_port_with_data_and_fin(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    dial = spawn(mesh.dial, (PEER_ID, PORT))
    asked = peer.receive_dial()
    theirs = RawStream(peer, asked.rport, 4242)
    peer.send(theirs.frame(SYN), theirs.frame(DATA, b"first bytes"), theirs.frame(FIN2))
    stream = dial.get(timeout=DEADLINE)
    theirs.expect(ACK)
    assert (stream.recv(100), stream.recv(100)) == (b"first bytes", b"")
    stream.sendall(b"to the new port")
    theirs.expect(DATA, payload=b"to the new port")
    assert stream.getpeername() == (PEER_ID, 4242)


def test_syn_from_the_port_of_another_stream(bench: Bench, spawn: Spawn) -> None:
    """Both streams would have the same address: the newer one has it, and the older one is told so."""
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    dial = spawn(mesh.dial, (PEER_ID, PORT), 10)
    dialling = peer.receive_dial()
    # A listener on the very port that the dial comes from, and a stream to it.
    listener = bench.listener(mesh, f"svc:{dialling.rport}")
    older = peer.dial(dialling.rport, lport=PORT + 1)
    stream, _ = listener.accept()
    older.send(SYN)
    peer.expect(ACK)
    older.send(SYN_ACK)
    dialled = dial.get(timeout=DEADLINE)
    with pytest.raises(StreamResetError):
        stream.recv(1)
    older.send(DATA, b"for the newer one")
    assert dialled.recv(100) == b"for the newer one"
    assert link.stream_count == 1
    dialled.close()
    peer.fence()
    assert link.stream_count == 0


def test_syn_from_another_node_is_no_answer(bench: Bench, spawn: Spawn) -> None:
    """The original takes it for one; then any node could answer for any other."""
    mesh = bench.node()
    peer = bench.peer(mesh)
    dial = spawn(mesh.dial, (PEER_ID, PORT))
    theirs = peer.receive_dial()
    peer.send(Frame(SYN, mesh.node_id, THIRD_ID, theirs.rport, theirs.lport))
    peer.assert_quiet()
    assert not dial.ready()
    theirs.send(SYN)
    theirs.expect(ACK)
    assert dial.get(timeout=DEADLINE).getpeername() == (PEER_ID, PORT)


def test_syn_and_syn_ack_back_to_back(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    dial = spawn(mesh.dial, (PEER_ID, PORT))
    theirs = peer.receive_dial()
    peer.send(theirs.frame(SYN), theirs.frame(SYN_ACK))
    stream = dial.get(timeout=DEADLINE)
    theirs.expect(ACK)
    stream.sendall(b"at once")
    theirs.expect(DATA, payload=b"at once")
    peer.assert_quiet()


def test_second_syn_is_ignored(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.dialled(mesh)
    peer, theirs, stream = pair.peer, pair.theirs, pair.stream
    theirs.send(SYN)
    elsewhere = RawStream(peer, theirs.rport, 4244)
    elsewhere.send(SYN)
    elsewhere.send(SYN_ACK)
    peer.assert_quiet()
    stream.sendall(b"to the first")
    theirs.expect(DATA, payload=b"to the first")
    theirs.send(DATA, b"from the first")
    assert stream.recv(100) == b"from the first"


def test_syn_after_the_dial_was_given_up_leaves_no_stream(bench: Bench) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    with pytest.raises(DialTimeout):
        mesh.dial((PEER_ID, PORT), timeout=0.05)
    theirs = peer.receive_dial()
    peer.fence()
    theirs.send(SYN)
    # Whatever is said, an acceptor in Go must learn that nobody is there.
    answers = {frame.cmd for frame in peer.received if theirs.owns(frame)}
    while FIN2 not in answers:
        answers.add(peer.receive().cmd)
    peer.fence()
    assert link.stream_count == 0


def test_dial_that_is_refused_by_fin_right_after_syn(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    dial = spawn(outcome, mesh.dial, (PEER_ID, PORT))
    theirs = peer.receive_dial()
    peer.send(theirs.frame(SYN), theirs.frame(FIN2), theirs.frame(FIN1))
    stream = dial.get(timeout=DEADLINE)
    if not isinstance(stream, ConnectionRefusedError):
        assert stream.recv(100) == b""
