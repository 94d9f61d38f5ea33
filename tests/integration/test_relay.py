"""Relaying: two nodes that are each joined only to a third."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket
from wire.peer import (
    DATA,
    DIAL,
    FIN1,
    FIN2,
    FORCE_CLOSED,
    GOODBYE,
    OTHER_ID,
    PAUSE,
    PEER_ID,
    RESET,
    RESUME,
    REWIND,
    SERVICE,
    SYN,
    SYN_ACK,
    THIRD_ID,
    Frame,
)

from astranet_gevent import AstraNet, Role
from astranet_gevent.errors import DialRefusedError, LinkLostError, NoRouteError

from .tools import DEADLINE, OWN_KIND, Bench, check_echo, deadline, echo_once, pattern, receive_all

Eventually = Callable[..., None]
Trio = tuple[AstraNet, AstraNet, AstraNet]

KIB = 1024


@pytest.fixture(params=["tcp", "kit"])
def trio(bench: Bench, request: pytest.FixtureRequest) -> Trio:
    """A and C, each joined only to the router in the middle."""
    one, router, other = bench.node(follow=False), bench.node(role=Role.ROUTER), bench.node(follow=False)
    if request.param == "tcp":
        address = router.listen(("127.0.0.1", 0)).address
        for mesh in (one, other):
            mesh.join(address).wait_ready(DEADLINE)
    else:
        bench.connect(one, router)
        bench.connect(router, other)
    return one, router, other


def test_as_if_directly(bench: Bench, trio: Trio) -> None:
    one, router, other = trio
    listener = bench.echo(other)
    found = one.service_map.wait_for("echo", DEADLINE)
    assert found == (("echo", other.node_id, listener.port, 1),)
    assert (other.node_id, 1, router.node_id) in one.routes()
    check_echo(one, size=3_000_000)
    check_echo(one, (other.node_id, listener.port))
    bench.echo(one, "back")
    check_echo(other, "back", size=3_000_000)
    assert [mesh.links()[0].stream_count for mesh in (one, other)] == [0, 0]
    assert [link.stream_count for link in router.links()] == [0, 0]


def test_many_streams_at_once(bench: Bench, trio: Trio) -> None:
    one, _, other = trio
    bench.echo(other)
    tasks = [bench.spawn(check_echo, one, "echo", 1000 + number) for number in range(300)]
    for task in tasks:
        task.get(timeout=DEADLINE)


def test_ends_and_errors_come_through(bench: Bench, trio: Trio) -> None:
    one, _, other = trio
    listener = other.bind("svc:7000")
    dialled = one.dial("svc", timeout=DEADLINE)
    accepted, address = listener.accept()
    assert address == dialled.getsockname()
    assert dialled.getpeername() == (other.node_id, 7000)
    # Half-close: the other direction stays open.
    dialled.sendall(b"question")
    dialled.shutdown(socket.SHUT_WR)
    assert receive_all(accepted) == b"question"
    accepted.sendall(b"answer")
    accepted.close()
    assert receive_all(dialled) == b"answer"
    # Closing with unread data resets.
    dialled = one.dial("svc", timeout=DEADLINE)
    accepted, _ = listener.accept()
    dialled.sendall(b"unread")
    assert accepted.recv(1) == b"u"
    accepted.close()
    with pytest.raises(ConnectionResetError):
        dialled.recv(1)
    with pytest.raises(DialRefusedError):
        one.dial((other.node_id, 7001), timeout=DEADLINE)


@pytest.mark.parametrize("role", list(Role))
def test_every_node_relays_what_it_is_given(bench: Bench, role: Role) -> None:
    """As in the original; but only a router tells others whom it can reach, so without one the peers have to know."""
    middle = bench.node(role=role)
    one, _ = bench.raw(middle, PEER_ID)
    other, _ = bench.raw(middle, OTHER_ID)
    frame = Frame(DATA, OTHER_ID, PEER_ID, 5, 6, b"data")
    one.send(frame, Frame(99, OTHER_ID, PEER_ID, 5, 6, b"unknown"))
    assert other.wait_for(DATA) == frame
    assert other.wait_for(99).payload == b"unknown"


# -- what cannot be forwarded


def test_a_node_that_nobody_knows(bench: Bench, trio: Trio) -> None:
    started = time.monotonic()
    with pytest.raises(NoRouteError) as caught:
        trio[0].dial((12345, 80), timeout=DEADLINE)
    assert caught.value.errno == errno.EHOSTUNREACH
    assert time.monotonic() - started < 1


def test_frames_for_nobody_are_answered(bench: Bench) -> None:
    router = bench.node(role=Role.ROUTER)
    peer, _ = bench.raw(router)
    for command in (DIAL, DATA, FIN2, SYN, 99):
        peer.send(Frame(command, THIRD_ID, PEER_ID, 5, 6))
        assert peer.wait_for(RESET) == Frame(RESET, PEER_ID, THIRD_ID)
    # A RESET is not answered: two nodes would go on for ever.
    peer.send(Frame(RESET, THIRD_ID, PEER_ID))
    peer.assert_quiet()


def test_a_dial_to_a_node_that_has_just_gone(bench: Bench) -> None:
    """The name is still known; the relay says that there is no way."""
    mesh = bench.node(follow=False, dial_timeout=DEADLINE)
    relay, _ = bench.raw(mesh)
    relay.announce("svc", 5000, local=OTHER_ID)
    mesh.service_map.wait_for("svc", DEADLINE)
    dial = bench.spawn(_outcome, mesh.dial, "svc")
    relay.wait_for(DIAL, remote=OTHER_ID)
    relay.send(Frame(RESET, mesh.node_id, OTHER_ID))
    assert isinstance(dial.get(timeout=DEADLINE), NoRouteError)


def _outcome(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except OSError as error:
        return error


@pytest.mark.parametrize("gone", ["dialler", "acceptor", "router"])
def test_streams_of_a_dead_node_are_reset(bench: Bench, trio: Trio, gone: str) -> None:
    """At both ends of what is left, whoever dialled, within a second."""
    one, router, other = trio
    for mesh, name in ((one, "at-one"), (other, "at-other")):
        mesh.bind(name)
    dialled = [one.dial("at-other", timeout=DEADLINE), other.dial("at-one", timeout=DEADLINE)]
    accepted = []
    for mesh in (other, one):
        (listener,) = mesh._node.listeners.values()  # type: ignore[union-attr]
        accepted.append(listener.accept()[0])
    victim = {"dialler": one, "acceptor": other, "router": router}[gone]
    # One stream of each kind at either end.
    ends = {"one": (dialled[0], accepted[1]), "other": (dialled[1], accepted[0])}
    left = [stream for name, streams in ends.items() for stream in streams if victim is not (one if name == "one" else other)]
    waiting = [bench.spawn(_outcome, stream.recv, 1) for stream in left]
    gevent.idle()
    started = time.monotonic()
    for link in victim.links():
        link.end(ConnectionResetError("pulled"))
    for task in waiting:
        error = task.get(timeout=DEADLINE)
        assert isinstance(error, LinkLostError), error
        assert error.errno == errno.ECONNRESET
    assert time.monotonic() - started < 1
    for mesh in (one, other):
        assert all(link.stream_count == 0 for link in mesh.links())


def test_other_pairs_live_on(bench: Bench, trio: Trio) -> None:
    one, router, other = trio
    third = bench.node(follow=False)
    cable = bench.connect(router, third)
    bench.echo(other)
    bench.echo(third, "third")
    stays, goes = one.dial("echo", timeout=DEADLINE), one.dial("third", timeout=DEADLINE)
    cable.cut()
    with deadline(), pytest.raises(ConnectionResetError):
        goes.recv(1)
    echo_once(stays)


def test_a_dialler_that_was_told_nothing_gets_an_answer_for_its_data(bench: Bench) -> None:
    """A stream whose far node goes while the relay has no pair for it: the next frame is answered."""
    router = bench.node(role=Role.ROUTER, paths_per_link=1)
    peer, _ = bench.raw(router, PEER_ID)
    others = [bench.raw(router, node_id)[0] for node_id in (OTHER_ID, THIRD_ID)]
    for node_id in (OTHER_ID, THIRD_ID):
        peer.send(Frame(DATA, node_id, PEER_ID, 5, 6))
    others[1].wait_for(DATA)
    others[0].close()
    peer.wait_for(SERVICE) if router.services() else None
    with deadline():
        while len(router.links()) > 2:
            router.links()[1].wait()
    peer.send(Frame(DATA, OTHER_ID, PEER_ID, 5, 6))
    assert peer.wait_for(RESET).local == OTHER_ID


# -- forged senders


def test_forged_senders_are_refused(bench: Bench) -> None:
    router = bench.node(role=Role.ROUTER)
    liar, _ = bench.raw(router, PEER_ID)
    victim, _ = bench.raw(router, OTHER_ID)
    liar.send(
        Frame(DATA, OTHER_ID, THIRD_ID, 5, 6, b"forged"), Frame(RESET, OTHER_ID, THIRD_ID), Frame(FIN2, OTHER_ID, router.node_id, 5, 6)
    )
    # It is answered, as anything that is not passed on, and the link lives.
    assert liar.wait_for(RESET) == Frame(RESET, THIRD_ID, OTHER_ID)
    liar.fence()
    victim.assert_quiet()


# -- bounds


def _raw_streams(count: int) -> list[tuple[int, int, int, int]]:
    return [(OTHER_ID, PEER_ID, 5000, 6000 + number) for number in range(count)]


def test_a_sender_of_the_original_s_kind_is_bounded(bench: Bench) -> None:
    """It knows no PAUSE: beyond relay_bytes its streams are reset, at both ends, and other pairs go on."""
    router = bench.node(role=Role.ROUTER, relay_bytes=256 * KIB, queue_bytes=64 * KIB)
    sender, sender_link = bench.raw(router, PEER_ID)
    slow, slow_link = bench.raw(router, OTHER_ID)
    fast, _ = bench.raw(router, THIRD_ID)
    streams = _raw_streams(40)

    def flood() -> None:
        for key in streams:
            for _ in range(2):
                sender.send(Frame(DATA, *key, bytes(32 * KIB)))

    # Nobody reads what is relayed to the slow one: 2.6 MB for 256 KiB of room.
    flooding = bench.spawn(flood)
    first = sender.wait_for(FORCE_CLOSED)
    assert (first.remote, first.local) == (PEER_ID, OTHER_ID)
    assert int.from_bytes(first.payload[:4], "big") == 6
    assert b"relay_bytes" in first.payload
    # A sender of the original's kind knows no FORCE_CLOSED: its two halves end.
    assert sender.wait_for(FIN2).key == first.key
    assert sender.wait_for(FIN1).key == first.key
    flooding.get(timeout=DEADLINE)
    sender.fence()
    assert slow_link.queue.turn_bytes <= 256 * KIB
    assert sender_link.state == slow_link.state == "ready"
    # Each stream is reset once, and at the receiver's end too when it reads on.
    resets = [frame.key for frame in sender.received if frame.cmd == FORCE_CLOSED]
    assert len(resets) == len(set(resets)) > 1
    sender.send(Frame(DATA, THIRD_ID, PEER_ID, 5, 6, b"other pair"))
    assert fast.wait_for(DATA).payload == b"other pair"
    with deadline():
        told = {slow.wait_for(FORCE_CLOSED).lport for _ in resets}
    assert told == {key[2] for key in resets}
    slow.fence()
    # There is room again, and what has a gap in it stays dropped all the same.
    sender.send(Frame(DATA, OTHER_ID, PEER_ID, first.lport, first.rport, b"late"), Frame(DATA, OTHER_ID, PEER_ID, 5000, 9999, b"new"))
    assert slow.expect(DATA).payload == b"new"


def test_a_sender_of_our_own_kind_is_asked_to_pause(bench: Bench) -> None:
    """Nothing is lost, nothing is reset, and the router holds little."""
    one = bench.node(follow=False, queue_bytes=64 * KIB)
    router = bench.node(role=Role.ROUTER, relay_bytes=2048 * KIB)
    other = bench.node(follow=False)
    bench.connect(one, router)
    cable = bench.connect(router, other, rate=6_000_000)
    listener = other.bind("sink")
    data = pattern(1_000_000)
    held: list[int] = []

    def read(stream: Any) -> bytes:
        received = bytearray()
        while part := stream.recv(16 * KIB):
            received += part
            held.append(cable.links[0].queue.size)
        stream.close()
        return bytes(received)

    def write() -> None:
        with one.dial("sink", timeout=DEADLINE) as stream:
            stream.sendall(data)

    writers = [bench.spawn(write) for _ in range(8)]
    readers = [bench.spawn(read, listener.accept()[0]) for _ in writers]
    for writer in writers:
        writer.get(timeout=DEADLINE)
    for reader in readers:
        assert reader.get(timeout=DEADLINE) == data
    # 8 MB passed; what waited was never more than asked for at a pause and what was under way by then.
    assert 0 < max(held) <= 1024 * KIB


def test_small_frames_read_together_go_at_once(bench: Bench) -> None:
    """Nothing else has to come first; and when one of the two has left, nothing is kept for the pair."""
    router = bench.node(role=Role.ROUTER)
    sender, sender_link = bench.raw(router, PEER_ID)
    receiver, receiver_link = bench.raw(router, OTHER_ID)
    frames = [Frame(DATA, OTHER_ID, PEER_ID, 5000, 6000, bytes([number])) for number in range(6)]
    for start in range(0, 6, 2):
        sender.send(frames[start].encode() + frames[start + 1].encode())
        assert [receiver.wait_for(DATA) for _ in range(2)] == frames[start : start + 2]
    receiver.send(Frame(DATA, PEER_ID, OTHER_ID, 6000, 5000, b"back"))
    assert sender.wait_for(DATA).payload == b"back"
    assert len(sender_link.relayed) == len(receiver_link.relayed) == 1
    sender.close()
    assert receiver.wait_for(RESET).local == PEER_ID
    assert not sender_link.relayed
    assert not receiver_link.relayed


def test_small_frames_stay_behind_large_ones_that_wait(bench: Bench) -> None:
    """Whatever way they take through the router: what one stream sends arrives in order, and all of it."""
    router = bench.node(role=Role.ROUTER, queue_bytes=64 * KIB)
    sender, _ = bench.raw(router, PEER_ID)
    slow, slow_link = bench.raw(router, OTHER_ID)
    key = (OTHER_ID, PEER_ID, 5000, 6000)
    sent: list[bytes] = []

    def send(*payloads: bytes) -> None:
        # In one piece, so that small ones are read together.
        sender.send(b"".join(Frame(DATA, *key, payload).encode() for payload in payloads))
        sent.extend(payloads)

    def small(size: int) -> list[bytes]:
        return [len(sent).to_bytes(4, "big") + number.to_bytes(4, "big") + bytes(size) for number in range(8)]

    # Nobody reads at the other end, so that first the system's buffers fill up and then the router's queue.
    while not slow_link.queue.turns:
        send(bytes(32 * KIB), *small(10))
        sender.fence()
        assert len(sent) < 9 * 200
    send(*small(10))
    send(*small(3000), bytes(32 * KIB), *small(3000))
    sender.fence()
    assert slow_link.queue.turns
    assert [slow.wait_for(DATA).payload for _ in sent] == sent
    assert not any(frame.cmd == FORCE_CLOSED for frame in sender.received)


def test_small_frames_that_nobody_reads_are_bounded(bench: Bench) -> None:
    """Read together or one by one: what waits is what the limits say, and the stream that passes them is reset."""
    router = bench.node(role=Role.ROUTER, relay_bytes=256 * KIB, queue_bytes=64 * KIB)
    sender, sender_link = bench.raw(router, PEER_ID)
    slow, slow_link = bench.raw(router, OTHER_ID)
    flood = Frame(DATA, OTHER_ID, PEER_ID, 5000, 6000, bytes(100)).encode() * 200
    waiting: list[int] = []
    with deadline():
        while not any(frame.cmd == FORCE_CLOSED for frame in sender.received):
            sender.send(flood)
            sender.fence()
            waiting.append(slow_link.queue.size)
    # A run of 8 KiB may pass the limit of the small ones.
    assert 256 * KIB < max(waiting) <= (256 + 64 + 8) * KIB
    assert (sender_link.state, slow_link.state) == ("ready", "ready")
    slow.wait_for(FORCE_CLOSED)
    slow.fence()
    # Dropped among others: those of the stream that has a gap.
    dropped, kept = (Frame(DATA, OTHER_ID, PEER_ID, 5000, port, b"late") for port in (6000, 7000))
    sender.send(b"".join(frame.encode() for frame in (dropped, dropped, kept, dropped, kept)))
    slow.received.clear()
    assert [slow.wait_for(DATA).lport for _ in range(2)] == [7000, 7000]
    slow.assert_quiet()


def test_pause_and_resume_on_the_wire(bench: Bench) -> None:
    router = bench.node(role=Role.ROUTER, relay_bytes=256 * KIB)
    sender, _ = bench.raw(router, PEER_ID, payload=OWN_KIND)
    slow, _ = bench.raw(router, OTHER_ID)
    sent = 0
    while not any(frame.cmd == PAUSE for frame in sender.received):
        sender.send(Frame(DATA, OTHER_ID, PEER_ID, 5000, 6000, bytes(17 * KIB)))
        sent += 1
        sender.fence()
        assert sent < 100
    pause = next(frame for frame in sender.received if frame.cmd == PAUSE)
    # Told by the destination's id whose data has to wait.
    assert (pause.remote, pause.local) == (PEER_ID, OTHER_ID)
    for _ in range(sent):
        slow.wait_for(DATA)
    sender.fence()
    (resume,) = [frame for frame in sender.received if frame.cmd == RESUME]
    assert (resume.remote, resume.local) == (PEER_ID, OTHER_ID)
    assert not any(frame.cmd == FORCE_CLOSED for frame in sender.received)


def test_a_link_that_drains_stays_for_those_who_talk_over_it(bench: Bench) -> None:
    """GOODBYE is about new streams with this node: what others exchange through it does not notice."""
    router = bench.node(role=Role.ROUTER)
    one, link = bench.raw(router, PEER_ID, payload=OWN_KIND)
    other, _ = bench.raw(router, OTHER_ID)
    one.send(Frame(DATA, OTHER_ID, PEER_ID, 5000, 6000, b"before"))
    assert other.wait_for(DATA).payload == b"before"
    one.send(Frame(GOODBYE))
    one.wait_for(GOODBYE)
    one.fence()
    assert link.state == "draining"
    one.send(Frame(DATA, OTHER_ID, PEER_ID, 5000, 6000, b"after"))
    assert other.wait_for(DATA).payload == b"after"


def test_a_flood_of_control_frames_costs_the_receiver_nothing(bench: Bench) -> None:
    """A peer that floods another with control frames is told that this does not get through; the other's link lives, and works again."""
    router = bench.node(role=Role.ROUTER, control_frames=400)
    flooder, flooder_link = bench.raw(router, PEER_ID)
    slow, slow_link = bench.raw(router, OTHER_ID)
    queued: list[int] = []
    with deadline():
        while not any(frame.cmd == RESET for frame in flooder.received):
            flooder.send(Frame(REWIND, OTHER_ID, PEER_ID, 5000, 6000, bytes(4)).encode() * 50)
            flooder.fence()
            queued.append(slow_link.queue.control_count)
    answer = next(frame for frame in flooder.received if frame.cmd == RESET)
    assert (answer.remote, answer.local) == (PEER_ID, OTHER_ID)
    # What waits is far from control_frames, at which the link itself would end.
    assert 0 < max(queued) <= 100
    assert (flooder_link.state, slow_link.state) == ("ready", "ready")
    slow.fence()
    flooder.send(Frame(REWIND, OTHER_ID, PEER_ID, 5000, 7000, bytes(4)))
    assert slow.wait_for(REWIND, lport=7000).local == PEER_ID


def test_large_control_frames_are_counted_as_data(bench: Bench) -> None:
    """A control frame of ours carries some bytes; who fills them up gets no lane of his own for megabytes."""
    router = bench.node(role=Role.ROUTER, relay_bytes=256 * KIB, queue_bytes=64 * KIB)
    flooder, flooder_link = bench.raw(router, PEER_ID)
    slow, slow_link = bench.raw(router, OTHER_ID)
    waiting: list[int] = []
    with deadline():
        while not any(frame.cmd == FORCE_CLOSED for frame in flooder.received):
            flooder.send(Frame(REWIND, OTHER_ID, PEER_ID, 5000, 6000, bytes(32 * KIB)))
            flooder.fence()
            waiting.append(slow_link.queue.relayed_bytes)
            # The reset of the stream whose frame did not fit, in its two forms.
            assert slow_link.queue.control_count <= 2
    assert 0 < max(waiting) <= 256 * KIB
    assert (flooder_link.state, slow_link.state) == ("ready", "ready")
    slow.fence()


def test_a_slow_receiver_does_not_slow_another_pair(bench: Bench) -> None:
    """Both pairs share the sender's link: while the slow one got little, the fast one got everything."""
    one, router = bench.node(follow=False), bench.node(role=Role.ROUTER)
    slow, fast = bench.node(follow=False), bench.node(follow=False)
    bench.connect(one, router)
    bench.connect(router, slow, rate=200_000)
    bench.connect(router, fast)
    got = {"slow": 0, "fast": 0}

    def read(name: str, stream: Any) -> None:
        while part := _outcome(stream.recv, 65536):
            if isinstance(part, OSError):
                return
            got[name] += len(part)

    def write(stream: Any, size: int) -> None:
        _outcome(stream.sendall, bytes(size))
        stream.close()

    reading = {}
    for name, mesh, size in (("slow", slow, 20_000_000), ("fast", fast, 8_000_000)):
        listener = mesh.bind(name)
        stream = one.dial(name, timeout=DEADLINE)
        reading[name] = bench.spawn(read, name, listener.accept()[0])
        bench.spawn(write, stream, size)
    reading["fast"].get(timeout=20)
    assert got["fast"] == 8_000_000
    # It would be as much for both if one waited for the other.
    assert got["slow"] < 4_000_000


# -- several relays


def test_two_relays(bench: Bench, eventually: Eventually) -> None:
    """Both carry their share; when one dies its streams are reset, and the other takes all new ones."""
    one, other = bench.node(follow=False), bench.node(follow=False)
    routers = [bench.node(role=Role.ROUTER) for _ in range(2)]
    cables = [(bench.connect(one, router), bench.connect(router, other)) for router in routers]
    listener = bench.echo(other)
    eventually(lambda: len([route for route in one.routes() if route.node_id == other.node_id]) == 2, "both ways")
    assert len(one.services()) == 1
    streams = [one.dial("echo", timeout=DEADLINE) for _ in range(20)]
    streams += [one.dial((other.node_id, listener.port), timeout=DEADLINE) for _ in range(20)]
    counts = [pair[0].links[0].stream_count for pair in cables]
    assert sum(counts) == 40
    # That one of two gets none of 40 happens once in 10**12 runs.
    assert all(counts)
    cables[0][1].cut()
    broken = alive = 0
    for stream in streams:
        stream.settimeout(DEADLINE)
        try:
            stream.sendall(b"x")
            assert stream.recv(1) == b"x"
            alive += 1
        except (ConnectionResetError, BrokenPipeError):
            broken += 1
    assert [broken, alive] == counts
    for _ in range(10):
        check_echo(one, size=10)
    assert one.service_map["echo"][0].node_id == other.node_id


def test_one_hop_is_all(bench: Bench) -> None:
    """A chain of routers: what was heard from a router is not told on, as in the original."""
    one, first, second, other = (bench.node(role=role, follow=False) for role in (Role.BOTH, Role.ROUTER, Role.ROUTER, Role.BOTH))
    for pair in ((one, first), (first, second), (second, other)):
        bench.connect(*pair)
    other.bind("far")
    first.service_map.wait_for("far", DEADLINE)
    # Announcements keep their order: once this one is here, the other would be too.
    first.bind("near-1")
    first.bind("z-last")
    one.service_map.wait_for("z-last", DEADLINE)
    assert [service.name for service in one.services()] == ["near-1", "z-last"]


def test_syn_over_a_relay_from_a_node_of_the_original(bench: Bench) -> None:
    """An acceptor of the original behind our relay: the dialler gets its stream, and its data after the SYN."""
    mesh, router = bench.node(follow=False), bench.node(role=Role.ROUTER)
    bench.connect(mesh, router)
    peer, _ = bench.raw(router)
    peer.announce("svc", 5000)
    dial = bench.spawn(mesh.dial, "svc", DEADLINE)
    frame = peer.wait_for(DIAL)
    back = {"remote": frame.local, "local": PEER_ID, "rport": frame.lport, "lport": frame.rport}
    peer.send(Frame(SYN, **back), Frame(SYN_ACK, **back), Frame(DATA, **back, payload=b"hello"))
    stream = dial.get(timeout=DEADLINE)
    assert stream.recv(5) == b"hello"
    stream.sendall(b"data")
    assert peer.wait_for(DATA).payload == b"data"


# -- what a relay owes to those who come and go


def test_what_a_source_wrote_before_it_left_arrives(bench: Bench) -> None:
    """The relay holds it for a slow destination: it is passed on before the word that the source has gone."""
    one, router, far = bench.node(follow=False), bench.node(role=Role.ROUTER), bench.node(follow=False)
    bench.connect(one, router)
    bench.connect(router, far, rate=2_000_000)
    listener = far.bind("svc")
    one.service_map.wait_for("svc", DEADLINE)
    streams = [one.dial("svc", timeout=DEADLINE) for _ in range(20)]
    accepted = [listener.accept()[0] for _ in streams]
    for stream in streams:
        stream.sendall(bytes(60_000))
        stream.close()
    one.close()
    for stream in accepted:
        stream.settimeout(DEADLINE)
        received = 0
        while data := stream.recv(1 << 16):
            received += len(data)
        assert received == 60_000


def test_a_node_that_comes_back_behind_a_relay_is_met_anew(bench: Bench) -> None:
    """Neither a pause nor the acquaintance from before outlives the loss of its link."""
    one, router, far = bench.node(follow=False), bench.node(role=Role.ROUTER, relay_bytes=256 * KIB), bench.node(follow=False)
    bench.connect(one, router)
    cable = bench.connect(router, far, rate=200_000)
    listener = far.bind("svc")
    one.service_map.wait_for("svc", DEADLINE)
    path = one.links()[0].paths

    def write(stream: Any) -> None:
        with stream, pytest.raises(ConnectionResetError):
            stream.sendall(bytes(1024 * KIB))

    writers = [bench.spawn(write, stream) for stream in [one.dial("svc", timeout=DEADLINE) for _ in range(40)]]
    bench.eventually(lambda: far.node_id in path and path[far.node_id].paused, "paused")
    cable.cut()
    for writer in writers:
        writer.get(timeout=DEADLINE)
    listener.close()
    bench.connect(router, far)
    again = far.bind("again")
    one.service_map.wait_for("again", DEADLINE)
    stream = one.dial("again", timeout=DEADLINE)
    stream.settimeout(DEADLINE)
    stream.sendall(b"hello")
    other, _ = again.accept()
    assert other.recv(5) == b"hello"
    other.abort()
    with pytest.raises(ConnectionResetError):
        stream.recv(1)
    with pytest.raises(ConnectionRefusedError):
        one.dial((far.node_id, 77), timeout=DEADLINE)
