"""The twelve rules for an independent node among Go nodes; each test's number is the rule's."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from astranet_gevent import Config, Role
from astranet_gevent.errors import LinkLostError, ServiceNotFoundError, StreamTimeout

from .conftest import PORT, Bench, Spawn, outcome
from .peer import (
    ACK,
    BACKGROUND,
    DATA,
    DEADLINE,
    DIAL,
    DISCOVER,
    FIN1,
    FIN2,
    FOLLOW,
    HANDSHAKE,
    NO_SERVICE,
    OTHER_ID,
    PEER_ID,
    PEER_PORT,
    PING,
    PONG,
    RESET,
    REWIND,
    SERVICE,
    SYN,
    SYN_ACK,
    THIRD_ID,
    WINDOW,
    WND_SIZE,
    Frame,
    RawStream,
    read_u32,
    u32,
)

# -- 1. Send HANDSHAKE at once; send nothing else until the peer's HANDSHAKE is in.


def test_rule_01_nothing_follows_the_handshake_until_the_peers_is_in(bench: Bench) -> None:
    mesh = bench.node(keepalive_interval=0.05, announce_interval=0.01)
    silent, _ = bench.silent_peer(mesh)
    silent.receive_handshake()
    silent.send(Frame(PING), silent.frame(DIAL, PORT, PEER_PORT))
    # Another link shows that announcements and PINGs were due, and that the frames were read.
    other = bench.peer(mesh, OTHER_ID)
    bench.listener(mesh)
    other.wait_for(SERVICE, payload=b"svc")
    other.wait_for(PING)
    other.fence()
    assert silent.pending() == []
    silent.send_handshake()
    silent.wait_for(SERVICE, payload=b"svc")
    silent.assert_quiet(skip=BACKGROUND | {PING, PONG})


# -- 2. Never a payload over 65536.


def test_rule_02_no_frame_over_65536_bytes_however_large_the_window(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.dialled(mesh)
    theirs.send(WND_SIZE, u32(1 << 20))
    content = random.Random(2).randbytes(1 << 20)
    sender = spawn(stream.sendall, content)
    # expect_data() fails at a frame over the limit.
    assert theirs.expect_data(len(content)) == content
    sender.get(timeout=DEADLINE)
    peer.assert_quiet()


# -- 3. REWIND and WND_SIZE carry exactly 4 bytes; never more credit than received.


def test_rule_03_credit_is_4_bytes_and_never_more_than_the_application_read(
    bench: Bench,
) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.accepted(mesh)
    sent = read = credited = 0
    for size, wanted in [(65536, 30000), (0, 3000), (0, 32536), (33000, 33000), (1, 1)]:
        if size:
            theirs.send(DATA, bytes(size))
            sent += size
        goal = read + wanted
        while read < goal:
            read += len(stream.recv(goal - read))
            for frame in peer.fence():
                if frame.cmd in BACKGROUND:
                    continue
                assert frame.cmd == REWIND, frame
                assert theirs.owns(frame), frame
                credited += read_u32(frame)
                assert read_u32(frame) > 0
                assert credited <= read <= sent
    # All but less than half a window has been given back, so a Go sender never starves.
    assert read - credited < WINDOW // 2


def test_rule_03_no_credit_for_what_nobody_has_read(bench: Bench) -> None:
    mesh = bench.node()
    peer, _, theirs, _ = bench.accepted(mesh)
    theirs.send(DATA, bytes(WINDOW))
    peer.assert_quiet()


def test_rule_03_a_go_sender_gets_its_whole_stream_through(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.accepted(mesh)
    content = random.Random(3).randbytes(1_000_000)
    reader = spawn(lambda: b"".join(iter(lambda: stream.recv(7000), b"")))
    left = WINDOW
    position = 0
    while position < len(content):
        if not left:
            left += read_u32(peer.expect(REWIND))
        # As Go sends: as much as the window takes in one frame.
        part = content[position : position + left]
        theirs.send(DATA, part)
        left -= len(part)
        position += len(part)
    theirs.send(FIN2)
    assert reader.get(timeout=DEADLINE) == content


# -- 4. Answer PING; send something at least each 100 s.


def test_rule_04_ping_is_answered_and_an_idle_node_pings(bench: Bench) -> None:
    mesh = bench.node(keepalive_interval=0.05)
    peer = bench.peer(mesh)
    peer.send(Frame(PING))
    peer.wait_for(PONG)
    for _ in range(3):
        assert peer.wait_for(PING) == Frame(PING)
        peer.send(Frame(PONG))


def test_rule_04_defaults_keep_an_idle_go_link_alive() -> None:
    config = Config()
    assert config.keepalive_interval == 5
    assert config.keepalive_timeout == 100
    assert config.handshake_timeout == 10


def test_rule_04_ping_is_answered_while_data_waits_for_a_window(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.dialled(mesh)
    spawn(stream.sendall, bytes(1 << 20))
    theirs.expect_data(WINDOW)
    peer.assert_quiet()


# -- 5. Deliver a whole frame within 10 s of its header.


@pytest.mark.parametrize("size", [1, 29, 4096, 65535, 65536, 200_000])
def test_rule_05_no_frame_is_left_incomplete(bench: Bench, spawn: Spawn, size: int) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.dialled(mesh)
    theirs.send(WND_SIZE, u32(1 << 20))
    spawn(stream.sendall, bytes(size))
    theirs.expect_data(size)
    peer.assert_quiet()
    assert peer.partial == b""


# -- 6. As dialler hold data until SYN.


def test_rule_06_nothing_follows_dial_until_syn(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)

    def dial_and_write() -> None:
        stream = mesh.dial((PEER_ID, PORT))
        stream.sendall(b"first")

    writer = spawn(dial_and_write)
    theirs = peer.receive_dial()
    peer.assert_quiet()
    assert not writer.ready()
    theirs.send(SYN)
    theirs.expect(ACK)
    # Data may follow ACK at once, without waiting for SYN_ACK.
    theirs.expect(DATA, payload=b"first")
    theirs.send(SYN_ACK)
    writer.get(timeout=DEADLINE)
    peer.assert_quiet()


# -- 7. As acceptor send SYN_ACK after (or with) SYN; do not write to a Go dialler before SYN.


def test_rule_07_syn_then_syn_ack_then_data(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    listener = bench.listener(mesh)

    def greet() -> None:
        stream, _ = listener.accept()
        stream.sendall(b"hello")
        stream.close()

    spawn(greet)
    theirs = RawStream(peer, PORT, PEER_PORT)
    theirs.send(DIAL)
    theirs.expect(SYN)
    theirs.expect(SYN_ACK)
    theirs.expect(DATA, payload=b"hello")
    theirs.expect(FIN2)
    theirs.expect(FIN1)


def test_rule_07_the_stream_is_open_before_anybody_accepts(bench: Bench) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    listener = bench.listener(mesh)
    theirs = RawStream(peer, PORT, PEER_PORT)
    theirs.send(DIAL)
    theirs.expect(SYN)
    theirs.expect(SYN_ACK)
    theirs.send(ACK)
    theirs.send(DATA, b"early")
    theirs.send(FIN2)
    peer.assert_quiet()
    stream, address = listener.accept()
    assert address == (PEER_ID, PEER_PORT)
    assert (stream.recv(100), stream.recv(100)) == (b"early", b"")


# -- 8. Keep DATA and FIN2 in order.


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_rule_08_fin2_comes_after_all_data(bench: Bench, spawn: Spawn, end: str) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.dialled(mesh)
    content = random.Random(8).randbytes(200_000)

    def write() -> None:
        for start in range(0, len(content), 777):
            stream.sendall(content[start : start + 777])
        if end == "close":
            stream.close()
        else:
            stream.shutdown(1)

    spawn(write)
    received = b""
    while len(received) < len(content):
        size = min(WINDOW, len(content) - len(received))
        received += theirs.expect_data(size)
        theirs.send(REWIND, u32(size))
    assert received == content
    theirs.expect(FIN2)
    if end == "close":
        theirs.expect(FIN1)
    peer.assert_quiet()


# -- 9. After sending FIN2 expect nothing reliable 10 s later; drain within 10 s of FIN2.


def test_rule_09_close_leaves_nothing_behind_when_the_peer_goes_silent(bench: Bench, eventually: Callable[..., None]) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    listener = bench.listener(mesh)
    theirs = peer.dial(PORT)
    stream, _ = listener.accept()
    theirs.send(FIN2)
    assert stream.recv(1) == b""
    stream.close()
    # Both halves have ended: there is nothing that FIN1 would still have to stop.
    theirs.expect(FIN2)
    peer.assert_quiet()
    eventually(lambda: link.stream_count == 0, "the stream's entry is gone")


def test_rule_09_writing_to_a_peer_that_forgot_the_stream_times_out(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.dialled(mesh)
    # Go's Close, and ten seconds later it drops all further frames: nothing is ever credited.
    theirs.send(FIN2)
    assert stream.recv(1) == b""
    stream.settimeout(0.05)
    with pytest.raises(StreamTimeout):
        stream.sendall(bytes(2 * WINDOW + (1 << 20)))
    assert len(theirs.expect_data(WINDOW)) == WINDOW
    peer.assert_quiet()


def test_rule_09_what_came_before_fin2_waits_for_a_late_reader(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.dialled(mesh)
    theirs.send(DATA, bytes(WINDOW))
    theirs.send(FIN2)
    peer.assert_quiet()
    # Nothing was read, and still everything is in this node: the sender may be gone by now.
    peer.close()
    received = 0
    while received < WINDOW:
        received += len(stream.recv(1000))
    assert received == WINDOW
    assert stream.recv(1000) == b""


# -- 10. Ignore what you do not know; expect reflections, duplicates, DISCOVER and RESET.


def test_rule_10_oddities_of_go_nodes_change_nothing(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.dialled(mesh)
    listener = bench.listener(mesh)
    peer.wait_for(SERVICE, payload=b"svc")
    me = mesh.node_id
    oddities = [
        Frame(SERVICE, 0, me, 0, PORT, b"svc"),  # our own service, reflected by a router
        Frame(SERVICE, 0, me, 0, PORT, b"svc"),
        Frame(NO_SERVICE, 0, PEER_ID, 0, 9, b"never announced"),
        Frame(NO_SERVICE, 0, me, 0, PORT, b"svc"),  # nobody else withdraws our services
        Frame(DISCOVER, me, me),  # our own question, reflected
        Frame(DISCOVER, 0, PEER_ID),
        Frame(RESET, me, THIRD_ID),  # a node that was never dialled
        Frame(RESET, 0, THIRD_ID),
        Frame(PONG),
        Frame(77, 0, PEER_ID, 1, 2, b"unknown"),
        Frame(77, me, PEER_ID, 1, 2, b"unknown"),
    ]
    peer.send(*oddities)
    peer.assert_quiet()
    stream.sendall(b"still here")
    theirs.expect(DATA, payload=b"still here")
    again = peer.dial(PORT, lport=4711)
    again.send(DATA, b"and here")
    assert listener.accept()[0].recv(100) == b"and here"
    assert all(service.node_id in (me, PEER_ID) for service in mesh.services())


# -- 11. Loss of the link is loss of all its streams.


def test_rule_11_a_lost_link_ends_its_streams_dials_and_services(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    listener = bench.listener(mesh)
    peer.announce("theirs", 6000)
    mesh.service_map.wait_for("theirs", DEADLINE)
    theirs = peer.dial(PORT)
    stream, _ = listener.accept()
    theirs.send(DATA, b"before the end")
    peer.assert_quiet()
    dialler = spawn(outcome, mesh.dial, (PEER_ID, PORT))
    peer.receive_dial()
    writer = spawn(outcome, stream.sendall, bytes(1 << 20))
    theirs.expect_data(WINDOW)

    peer.close()
    link.wait(DEADLINE)
    # What had arrived can still be read; only then comes the error.
    assert stream.recv(100) == b"before the end"
    with pytest.raises(LinkLostError):
        stream.recv(100)
    assert isinstance(writer.get(timeout=DEADLINE), ConnectionError)
    assert isinstance(dialler.get(timeout=DEADLINE), LinkLostError)
    with pytest.raises(ServiceNotFoundError):
        mesh.dial("theirs", timeout=0.05)


def test_rule_11_other_links_live_on(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer, link = bench.linked(mesh)
    other = bench.peer(mesh, OTHER_ID)
    theirs = other.dial(PORT)
    stream, _ = listener.accept()
    peer.close()
    link.wait(DEADLINE)
    theirs.send(DATA, b"alive")
    assert stream.recv(100) == b"alive"
    other.assert_quiet()


# -- 12. No FOLLOW addresses unless more parallel links are wanted.


@pytest.mark.parametrize("role", [Role.CLIENT, Role.SERVER, Role.BOTH, Role.ROUTER])
def test_rule_12_no_follow_from_a_node_told_not_to_advertise(bench: Bench, role: Role) -> None:
    mesh = bench.node(role=role, advertise=())
    mesh.listen(("127.0.0.1", 0))
    peer = bench.peer(mesh)
    other = bench.peer(mesh, OTHER_ID)
    peer.send(Frame(DISCOVER, mesh.node_id, PEER_ID))
    bench.listener(mesh)
    if role.announces:
        # The announcement shows that an interval has passed.
        peer.wait_for(SERVICE, payload=b"svc")
        other.wait_for(SERVICE, payload=b"svc")
    peer.fence()
    other.fence()
    assert not [frame for frame in peer.received + other.received if frame.cmd == FOLLOW]


def test_rule_12_no_follow_from_a_node_that_does_not_listen(bench: Bench) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    bench.listener(mesh)
    peer.wait_for(SERVICE, payload=b"svc")
    peer.send(Frame(DISCOVER, mesh.node_id, PEER_ID))
    peer.fence()
    assert {frame.cmd for frame in peer.received} == {HANDSHAKE, SERVICE, PONG}


@pytest.mark.parametrize("command", [FIN1, FIN2])
def test_rules_7_and_8_closing_sends_each_end_once(bench: Bench, spawn: Spawn, command: int) -> None:
    mesh = bench.node()
    peer, _, theirs, stream = bench.dialled(mesh)
    stream.shutdown(1)
    stream.close()
    stream.close()
    theirs.expect(FIN2)
    theirs.expect(FIN1)
    theirs.send(command)
    peer.assert_quiet()
