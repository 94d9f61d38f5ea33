"""Limits: for each one in Config, a test that reaches it and sees what happens, and that the rest goes on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket
from wire.peer import (
    BLOCKED,
    DATA,
    DIAL,
    FORCE_CLOSED,
    OTHER_ID,
    PEER_ID,
    PING,
    REWIND,
    SYN,
    SYN_ACK,
    THIRD_ID,
    WND_SIZE,
    Frame,
    RawPeer,
    RawStream,
    read_u32,
    u32,
)

from astranet_gevent import AstraNet, Role
from astranet_gevent.errors import DialRefusedError, LimitError, LinkLostError, RemoteProtocolError
from astranet_gevent.transport.link import PROCESS_BUDGET

from .tools import DEADLINE, OWN_KIND, Bench, check_echo, deadline, echo_once, pattern, receive_exactly

Eventually = Callable[..., None]

KIB = 1024


def test_backlog(bench: Bench) -> None:
    server, client = bench.node(backlog=3), bench.node()
    bench.connect(server, client)
    for listener, size in ((server.bind("default"), 3), (server.bind("given", backlog=1), 1)):
        client.service_map.wait_for(listener.name, DEADLINE)
        waiting = [client.dial(listener.name, timeout=DEADLINE) for _ in range(size)]
        with pytest.raises(DialRefusedError, match="backlog"):
            client.dial(listener.name, timeout=DEADLINE)
        accepted, _ = listener.accept()
        waiting[0].sendall(b"x")
        assert accepted.recv(1) == b"x"
        # There is room again, and who was refused left nothing.
        waiting.append(client.dial(listener.name, timeout=DEADLINE))
        assert client.links()[0].stream_count == size + 1
        for stream in (*waiting, accepted):
            stream.close()


def test_streams_per_link_of_the_dialler(bench: Bench) -> None:
    server, client = bench.node(), bench.node(streams_per_link=3)
    bench.connect(server, client)
    bench.echo(server)
    streams = [client.dial("echo", timeout=DEADLINE) for _ in range(3)]
    with pytest.raises(LimitError, match="streams_per_link 3") as caught:
        client.dial("echo", timeout=DEADLINE)
    assert caught.value.errno == errno.EMFILE
    streams.pop().close()
    check_echo(client)


def test_streams_per_link_of_the_acceptor(bench: Bench, eventually: Eventually) -> None:
    server, client = bench.node(streams_per_link=3), bench.node()
    bench.connect(server, client)
    bench.echo(server)
    streams = [client.dial("echo", timeout=DEADLINE) for _ in range(3)]
    with pytest.raises(DialRefusedError, match="streams_per_link 3"):
        client.dial("echo", timeout=DEADLINE)
    streams.pop().close()
    eventually(lambda: server.links()[0].stream_count == 2, "the closed one is gone")
    check_echo(client)
    for stream in streams:
        echo_once(stream)


def test_services_per_link(bench: Bench) -> None:
    mesh = bench.node(services_per_link=5)
    peer, _ = bench.raw(mesh)
    other, _ = bench.raw(mesh, OTHER_ID)
    for number in range(8):
        peer.announce(f"svc-{number}", 5000 + number)
        other.announce(f"other-{number % 5}", 5000 + number % 5)
    for raw in (peer, other):
        raw.fence()
    names = [service.name for service in mesh.services()]
    assert names == [f"other-{number}" for number in range(5)] + [f"svc-{number}" for number in range(5)]
    # Own services are not counted.
    for number in range(6):
        mesh.bind(f"own-{number}")
    assert len(mesh.services()) == 16
    peer.send(Frame(193, 0, PEER_ID, 0, 5000, b"svc-0"))
    peer.announce("svc-9", 5009)
    peer.fence()
    assert "svc-9" in mesh.service_map


def test_control_frames(bench: Bench) -> None:
    """Who makes us owe answers without reading them loses its link; others do not notice."""
    mesh, other = bench.node(control_frames=64), bench.node()
    peer, link = bench.raw(mesh)
    bench.connect(mesh, other)
    bench.echo(other)
    stream = mesh.dial("echo", timeout=DEADLINE)
    pings = Frame(PING).encode() * 1000
    with deadline():
        while not link.wait(0):
            peer.send(pings)
    assert isinstance(link.error, RemoteProtocolError)
    assert "control_frames 64" in str(link.error)
    echo_once(stream)
    check_echo(mesh)


def _raw_dials(bench: Bench, mesh: AstraNet, peer: RawPeer, count: int) -> list[Any]:
    """Streams of the node to a raw peer that accepts."""
    streams = []
    for _ in range(count):
        dial = bench.spawn(mesh.dial, (peer.node_id, 5000), DEADLINE)
        frame = peer.wait_for(DIAL)
        theirs = RawStream(peer, frame.lport, frame.rport)
        peer.send(theirs.frame(SYN), theirs.frame(SYN_ACK))
        streams.append(dial.get(timeout=DEADLINE))
    return streams


@pytest.mark.parametrize("size", [1000, 60_000], ids=["small frames", "large frames"])
def test_queue_bytes(bench: Bench, size: int) -> None:
    """Senders wait while so much is queued for a peer that does not read; when it reads, everything comes."""
    mesh = bench.node(queue_bytes=64 * KIB)
    peer, link = bench.raw(mesh)
    streams = _raw_dials(bench, mesh, peer, 60)
    sent = 0
    for stream in streams:
        stream.setblocking(False)
        for _ in range(60_000 // size):
            try:
                stream.sendall(bytes(size))
            except BlockingIOError:
                break
            sent += size
            # Whatever goes to the system goes.
            gevent.sleep(0)
    assert sent < 60 * 60_000
    assert link.queue.small_bytes <= 64 * KIB + size + 29
    assert link.queue.turn_bytes <= 64 * KIB + 64 * KIB + 29
    blocked = streams[-1]
    blocked.setblocking(True)
    waiting = bench.spawn(blocked.sendall, bytes(size))
    gevent.idle()
    assert not waiting.ready()
    got = 0
    while got < sent + size:
        got += len(peer.wait_for(DATA).payload)
    waiting.get(timeout=DEADLINE)
    assert got == sent + size


def test_handshakes(bench: Bench, eventually: Eventually) -> None:
    server, client = bench.node(handshakes=3), bench.node()
    listener = server.listen(("127.0.0.1", 0))
    silent = [socket.create_connection(listener.address) for _ in range(3)]
    eventually(lambda: len(server.links()) == 3, "three links in handshake")
    with socket.create_connection(listener.address) as refused, deadline():
        assert refused.recv(100) == b""
    assert listener.refused == 1
    # One finishes: there is room for another.
    bench.adopt(silent.pop()).handshake()
    eventually(lambda: [link.state for link in server.links()].count("ready") == 1, "one is ready")
    client.join(listener.address).wait_ready(DEADLINE)
    for sock in silent:
        sock.close()


def test_attached_links_are_no_strangers(bench: Bench) -> None:
    """The limit is for connections that come from outside."""
    server = bench.node(handshakes=1)
    for _ in range(3):
        bench.silent(server)
    assert len(server.links()) == 3


# -- windows


def _fill(stream: Any) -> int:
    """Send until it would block, the queue flushed in between; the number of bytes."""
    stream.setblocking(False)
    sent = 0
    for _ in range(1000):
        try:
            sent += stream.send(bytes(16 * KIB))
        except BlockingIOError:
            gevent.idle()
            try:
                sent += stream.send(bytes(16 * KIB))
            except BlockingIOError:
                return sent
    raise AssertionError(f"{sent} bytes were taken")


def test_a_reader_that_does_not_read_has_one_window(bench: Bench) -> None:
    server, client = bench.node(), bench.node()
    bench.connect(server, client)
    listener = server.bind("svc")
    stream = client.dial("svc", timeout=DEADLINE)
    accepted, _ = listener.accept()
    assert _fill(stream) == 64 * KIB
    gevent.idle()
    assert accepted.buffered == 64 * KIB
    assert PROCESS_BUDGET.used == 0


def _stream_through(bench: Bench, writer: Any, reader: Any, size: int) -> None:
    sending = bench.spawn(writer.sendall, pattern(size))
    assert receive_exactly(reader, size) == pattern(size)
    sending.get(timeout=DEADLINE)


def test_max_window(bench: Bench) -> None:
    """A window that held its sender back doubles, up to here; then a reader that stops has no more than that."""
    server, client = bench.node(max_window=256 * KIB), bench.node()
    bench.connect(server, client)
    listener = server.bind("svc")
    stream = client.dial("svc", timeout=DEADLINE)
    accepted, _ = listener.accept()
    _stream_through(bench, stream, accepted, 4_000_000)
    filled = _fill(stream)
    # Up to half of a window may have been read and not yet given back as credit.
    assert 128 * KIB < filled <= 256 * KIB
    gevent.idle()
    assert accepted.buffered == filled
    assert PROCESS_BUDGET.used == 192 * KIB
    accepted.close()
    assert PROCESS_BUDGET.used == 0


@pytest.mark.parametrize("budget", ["link_window_budget", "process_window_budget"])
def test_window_budgets(bench: Bench, budget: str) -> None:
    """What is granted beyond the first 64 KiB of each stream stays below the budget, and comes back."""
    server, client = bench.node(**{budget: 128 * KIB}), bench.node()
    bench.connect(server, client)
    listener = server.bind("svc")
    pairs = []
    for _ in range(5):
        stream = client.dial("svc", timeout=DEADLINE)
        pairs.append((stream, listener.accept()[0]))
    for stream, accepted in pairs:
        _stream_through(bench, stream, accepted, 1_000_000)
    assert 0 < PROCESS_BUDGET.used <= 128 * KIB
    filled = sum(_fill(stream) for stream, _ in pairs)
    assert filled <= 5 * 64 * KIB + 128 * KIB
    for _, accepted in pairs:
        accepted.close()
    assert PROCESS_BUDGET.used == 0


def test_the_window_of_one_who_says_that_it_is_held_back_but_is_not_read(bench: Bench) -> None:
    """BLOCKED alone grows nothing: a window grows with what the application takes."""
    mesh = bench.node()
    peer, _ = bench.raw(mesh, payload=OWN_KIND)
    listener = mesh.bind("svc:5000")
    peer.send(peer.frame(DIAL, 5000, 6000))
    peer.wait_for(SYN)
    stream, _ = listener.accept()
    for _ in range(64):
        peer.send(peer.frame(DATA, 5000, 6000, bytes(KIB)), peer.frame(BLOCKED, 5000, 6000))
    peer.assert_quiet()
    assert receive_exactly(stream, 32 * KIB)
    peer.fence()
    sizes = [read_u32(frame) for frame in peer.received if frame.cmd == WND_SIZE]
    assert sizes == [128 * KIB]
    assert [read_u32(frame) for frame in peer.received if frame.cmd == REWIND] == [32 * KIB]


def test_a_peer_that_overruns_its_window(bench: Bench) -> None:
    """That stream is reset, what was within the window stays readable, and the link lives."""
    mesh = bench.node()
    peer, link = bench.raw(mesh, payload=OWN_KIND)
    listener = mesh.bind("svc:5000")
    for port in (6000, 6001):
        peer.send(peer.frame(DIAL, 5000, port))
        peer.wait_for(SYN)
    stream, _ = listener.accept()
    other, _ = listener.accept()
    peer.send(peer.frame(DATA, 5000, 6000, bytes(64 * KIB)), peer.frame(DATA, 5000, 6000, b"x"))
    reset = peer.wait_for(FORCE_CLOSED)
    assert (reset.rport, int.from_bytes(reset.payload[:4], "big")) == (6000, 3)
    assert receive_exactly(stream, 64 * KIB) == bytes(64 * KIB)
    with pytest.raises(ConnectionResetError):
        stream.recv(1)
    peer.send(peer.frame(DATA, 5000, 6001, b"fine"))
    assert other.recv(10) == b"fine"
    assert link.stream_count == 1


# -- frames


def test_frame_size(bench: Bench) -> None:
    mesh = bench.node(frame_size=2048)
    peer, _ = bench.raw(mesh)
    peer.send(peer.frame(99, payload=bytes(2048)))
    peer.fence()
    greedy, link = bench.raw(mesh, OTHER_ID)
    greedy.send(greedy.frame(99, payload=bytes(2049)))
    greedy.wait_end()
    assert isinstance(link.error, RemoteProtocolError)
    assert "2049" in str(link.error)
    peer.fence()


def test_frame_size_of_what_is_sent(bench: Bench) -> None:
    """Two nodes that both have small frames understand each other."""
    one, other = bench.node(frame_size=2048), bench.node(frame_size=2048)
    bench.connect(one, other)
    bench.echo(other)
    check_echo(one)
    peer, _ = bench.raw(one)
    (stream,) = _raw_dials(bench, one, peer, 1)
    stream.sendall(bytes(10_000))
    sizes = []
    while sum(sizes) < 10_000:
        sizes.append(len(peer.wait_for(DATA).payload))
    assert max(sizes) <= 2048


# -- relays


def test_paths_per_link(bench: Bench) -> None:
    """Nodes behind one relay with which streams are open; the link itself counts as one."""
    mesh = bench.node(paths_per_link=3, follow=False)
    relay, _ = bench.raw(mesh)
    for number in range(4):
        relay.announce(f"svc-{number}", 5000, local=1000 + number)
    mesh.service_map.wait_for("svc-3", DEADLINE)
    streams = []
    for number in range(2):
        dial = bench.spawn(mesh.dial, f"svc-{number}", DEADLINE)
        frame = relay.wait_for(DIAL)
        relay.send(Frame(SYN, mesh.node_id, frame.remote, frame.lport, frame.rport))
        streams.append(dial.get(timeout=DEADLINE))
    with pytest.raises(LimitError, match="paths_per_link 3"):
        mesh.dial("svc-2", timeout=DEADLINE)
    streams.pop().close()
    dial = bench.spawn(mesh.dial, "svc-2", DEADLINE)
    assert relay.wait_for(DIAL).remote == 1002
    dial.kill()


def test_relay_link_bytes(bench: Bench) -> None:
    """All pairs on the way to one slow peer together."""
    router = bench.node(role=Role.ROUTER, relay_bytes=256 * KIB, relay_link_bytes=384 * KIB, queue_bytes=64 * KIB)
    slow, slow_link = bench.raw(router, PEER_ID)
    senders = [bench.raw(router, node_id)[0] for node_id in (OTHER_ID, THIRD_ID, 77)]
    for sender in senders:
        for number in range(40):
            sender.send(Frame(DATA, PEER_ID, sender.node_id, 5000, 6000 + number, bytes(32 * KIB)))
        sender.fence()
    assert slow_link.queue.turn_bytes <= 384 * KIB
    # The first one found room for its 256 KiB, the last one for less.
    resets = [sum(frame.cmd == FORCE_CLOSED for frame in sender.received) for sender in senders]
    assert 0 < resets[0] < resets[2]
    # Everything that was not refused arrives.
    kept = 40 * 3 - sum(resets)
    for _ in range(kept):
        slow.wait_for(DATA)


def test_streams_of_a_link_that_broke_a_limit(bench: Bench) -> None:
    """They end as with any lost link."""
    mesh = bench.node(frame_size=2048)
    peer, link = bench.raw(mesh)
    (stream,) = _raw_dials(bench, mesh, peer, 1)
    peer.send(peer.frame(DATA, stream.getsockname()[1], 5000, b"before"), peer.frame(99, payload=bytes(5000)))
    assert receive_exactly(stream, 6) == b"before"
    with pytest.raises(LinkLostError):
        stream.recv(1)
    assert link.wait(DEADLINE)


def test_more_credit_than_was_used(bench: Bench) -> None:
    mesh = bench.node()
    peer, link = bench.raw(mesh)
    bad, good = _raw_dials(bench, mesh, peer, 2)
    port = bad.getsockname()[1]
    peer.send(peer.frame(REWIND, port, 5000, u32(1)))
    with pytest.raises(ConnectionResetError):
        bad.recv(1)
    good.sendall(b"x")
    peer.wait_for(DATA)
    assert link.stream_count == 1
