"""The shipped test kit: cables that can be cut, frozen, delayed and throttled, and a clock that stands still."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from astranet_gevent import AstraNet, Role
from astranet_gevent.errors import ConfigError, LinkLostError, PeeringTimeout
from astranet_gevent.testing import ManualClock, Network, memory_pair

from .tools import DEADLINE, Bench, check_echo, deadline, echo_once, pattern, receive_exactly

Eventually = Callable[..., None]


def test_the_example_of_the_module() -> None:
    with Network() as network:
        a, router, c = network.node(), network.node(role=Role.ROUTER), network.node()
        network.connect(a, router)
        cable = network.connect(router, c, delay=0.005)
        listener = c.bind("echo")
        stream = a.dial("echo")
        accepted, _ = listener.accept()
        stream.sendall(b"over two cables")
        assert accepted.recv(100) == b"over two cables"
        cable.cut()
        for end in (stream, accepted):
            with deadline(), pytest.raises(ConnectionResetError):
                end.recv(1)
    assert a.closed
    assert router.closed
    assert c.closed
    assert network.nodes == []


def test_the_end_of_a_network_is_the_end_of_its_nodes(no_leaks: Callable[..., None]) -> None:
    def fail_inside() -> None:
        with network:
            network.connect(one, other).freeze()
            raise ValueError("mine")

    network = Network()
    one, other = network.node(), network.node()
    with pytest.raises(ValueError, match="mine"):
        fail_inside()
    assert one.closed
    assert other.closed


@pytest.fixture
def pair(bench: Bench) -> tuple[AstraNet, AstraNet, Any]:
    """Two nodes and the cable between them."""
    one, other = bench.node(), bench.node()
    return one, other, bench.connect(one, other)


Pair = tuple[AstraNet, AstraNet, Any]


def test_connect_waits_for_the_handshake(pair: Pair) -> None:
    one, other, cable = pair
    assert [link.state for link in cable.links] == ["ready", "ready"]
    assert (one.links(), other.links()) == ([cable.links[0]], [cable.links[1]])
    assert [link.peer_id for link in cable.links] == [other.node_id, one.node_id]


def test_connect_does_not_wait_when_told_so(bench: Bench) -> None:
    cable = bench.connect(bench.node(), bench.node(), delay=0.02, timeout=None)
    assert [link.state for link in cable.links] == ["handshake", "handshake"]
    for link in cable.links:
        link.wait_ready(DEADLINE)
    with pytest.raises(PeeringTimeout):
        bench.connect(bench.node(), bench.node(), delay=0.1, timeout=0.02)


def test_cut(bench: Bench, pair: Pair) -> None:
    one, other, cable = pair
    listener = other.bind("svc")
    stream = one.dial("svc", timeout=DEADLINE)
    accepted, _ = listener.accept()
    stream.sendall(b"lost: under way when the cable is cut")
    cable.cut()
    with deadline():
        for link in cable.links:
            link.wait()
    with pytest.raises(LinkLostError):
        accepted.recv(100)
    with pytest.raises(LinkLostError):
        stream.recv(100)
    # The nodes live, and can be connected anew.
    bench.connect(one, other)
    bench.echo(other)
    check_echo(one)


def test_freeze_and_thaw(bench: Bench, pair: Pair) -> None:
    one, other, cable = pair
    bench.echo(other)
    stream = one.dial("echo", timeout=DEADLINE)
    cable.freeze()
    stream.sendall(b"through ice")
    stream.settimeout(0.05)
    with pytest.raises(TimeoutError):
        stream.recv(100)
    assert [link.state for link in cable.links] == ["ready", "ready"]
    cable.thaw()
    stream.settimeout(DEADLINE)
    assert receive_exactly(stream, 11) == b"through ice"
    echo_once(stream, pattern(200_000))


def test_a_frozen_cable_is_a_silent_peer(bench: Bench) -> None:
    # Only one of them is impatient: when it gives up, the other end is cut off.
    cable = bench.connect(bench.node(keepalive_interval=0.05, keepalive_timeout=0.2), bench.node())
    cable.freeze()
    with deadline():
        for link in cable.links:
            link.wait()
    assert "keepalive_timeout" in str(cable.links[0].error)


def test_a_frozen_cable_holds_what_goes_in_until_it_is_full(bench: Bench, pair: Pair) -> None:
    one, other, cable = pair
    bench.echo(other)
    streams = [one.dial("echo", timeout=DEADLINE) for _ in range(40)]
    cable.freeze()
    tasks = [bench.spawn(echo_once, stream, pattern(100_000, number)) for number, stream in enumerate(streams)]
    gevent.idle()
    cable.thaw()
    for task in tasks:
        task.get(timeout=DEADLINE)


def test_delay(bench: Bench, pair: Pair) -> None:
    one, other, cable = pair
    bench.echo(other)
    stream = one.dial("echo", timeout=DEADLINE)
    cable.delay(0.05)
    started = time.monotonic()
    echo_once(stream)
    assert time.monotonic() - started >= 0.098
    cable.delay(0)
    echo_once(stream, pattern(100_000))


def test_one_round_trip_per_dial(bench: Bench) -> None:
    """The delay shows how many there are: a dial takes one, and a first answer another."""
    one, other = bench.node(), bench.node()
    bench.connect(one, other, delay=0.05)
    bench.echo(other)
    one.service_map.wait_for("echo", DEADLINE)
    started = time.monotonic()
    stream = one.dial("echo", timeout=DEADLINE)
    dialled = time.monotonic() - started
    echo_once(stream)
    answered = time.monotonic() - started
    assert 0.098 <= dialled < 0.19
    assert answered >= 0.197


def test_a_delayed_cable_keeps_the_order(bench: Bench, pair: Pair) -> None:
    one, other, cable = pair
    bench.echo(other)
    stream = one.dial("echo", timeout=DEADLINE)
    sending = bench.spawn(stream.sendall, pattern(500_000))
    received = bytearray()
    for seconds in (0.01, 0.0, 0.005, 0.0, 0.002, 0.0):
        cable.delay(seconds)
        received += receive_exactly(stream, 50_000)
    received += receive_exactly(stream, 200_000)
    sending.get(timeout=DEADLINE)
    assert bytes(received) == pattern(500_000)


def test_throttle(bench: Bench, pair: Pair) -> None:
    one, other, cable = pair
    bench.echo(other)
    stream = one.dial("echo", timeout=DEADLINE)
    cable.throttle(1_000_000)
    started = time.monotonic()
    echo_once(stream, pattern(200_000))
    assert time.monotonic() - started >= 0.19
    cable.throttle(None)
    echo_once(stream, pattern(1_000_000))
    for rate in (0, -1):
        with pytest.raises(ConfigError):
            cable.throttle(rate)


def test_a_cable_in_the_middle_of_everything(bench: Bench) -> None:
    """Cut while it is delayed, throttled and full."""
    one, other = bench.node(), bench.node()
    cable = bench.connect(one, other, delay=0.01, rate=100_000)
    listener = other.bind("sink")
    stream = one.dial("sink", timeout=DEADLINE)
    accepted, _ = listener.accept()

    def send() -> str:
        try:
            while True:
                stream.sendall(bytes(65536))
        except OSError as error:
            return type(error).__name__

    sending = bench.spawn(send)
    with deadline():
        assert accepted.recv(1) == b"\0"
    cable.cut()
    assert sending.get(timeout=DEADLINE) in ("LinkLostError", "StreamBrokenPipeError")
    cable.cut()
    cable.thaw()


def test_nothing_opens_a_descriptor(bench: Bench) -> None:
    import os

    def count() -> int:
        return len(os.listdir("/dev/fd"))

    before = count()
    nodes = [bench.node() for _ in range(5)]
    for mesh in nodes[1:]:
        bench.connect(nodes[0], mesh, delay=0.001)
    bench.echo(nodes[0])
    for mesh in nodes[1:]:
        check_echo(mesh)
    assert count() == before


def test_memory_pair(bench: Bench) -> None:
    one, other = memory_pair(1000)
    assert one.try_send([bytes(600)]) == ()
    left = one.try_send([bytes(600), b"more"])
    assert [len(part) for part in left] == [200, 4]
    buffer = memoryview(bytearray(2000))
    assert other.recv_into(buffer) == 1000
    assert one.try_send(left) == ()
    one.shutdown()
    assert other.recv_into(buffer) == 204
    assert other.recv_into(buffer) == 0
    with pytest.raises(BrokenPipeError):
        one.try_send([b"x"])


def test_manual_clock() -> None:
    clock = ManualClock(5.0)
    assert clock() == clock() == 5.0
    assert clock.advance(1.5) == clock() == 6.5
    assert clock.advance(0) == 6.5
    with pytest.raises(ConfigError):
        clock.advance(-1)


def test_a_clock_for_the_core() -> None:
    """What it is for: the protocol core takes ``now`` as an argument."""
    from astranet_gevent import Config
    from astranet_gevent.protocol.link import LinkCore, LinkTimeoutError, TimerEvent

    clock = ManualClock()
    core = LinkCore(Config(), 5, clock())
    deadline = core.next_deadline()
    assert deadline == clock() + 10
    clock.advance(9)
    assert core.handle_timer(clock()) is TimerEvent.NOTHING
    core.next_deadline()
    clock.advance(1)
    with pytest.raises(LinkTimeoutError):
        core.handle_timer(clock())
