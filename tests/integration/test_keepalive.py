"""Keepalive: who is dropped, and who is not."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent import socket
from wire.peer import PING, PONG, Frame, LinkEndedError

from astranet_gevent.errors import RemoteProtocolError

from .tools import DEADLINE, OWN_KIND, Bench, PeerProcess, check_echo, deadline, echo_once, tcp_pair

Eventually = Callable[..., None]


@pytest.mark.parametrize("payload", [b'{"RAddr":""}', OWN_KIND], ids=["original", "own kind"])
def test_a_silent_peer_is_dropped(bench: Bench, payload: bytes) -> None:
    mesh = bench.node(keepalive_interval=0.1, keepalive_timeout=0.5)
    peer, link = bench.raw(mesh, payload=payload)
    started = time.monotonic()
    frames = peer.wait_end()
    assert time.monotonic() - started >= 0.45
    assert isinstance(link.error, RemoteProtocolError)
    assert "keepalive_timeout" in str(link.error)
    # It was asked, about every tenth of a second.
    assert set(frames) == {Frame(PING)}
    assert 2 <= len(frames) <= 5


@pytest.mark.parametrize("answer", [Frame(PONG), Frame(PING), Frame(77, payload=b"unknown")], ids=["pong", "ping", "unknown"])
def test_any_frame_keeps_a_link_alive(bench: Bench, answer: Frame) -> None:
    mesh = bench.node(keepalive_interval=0.1, keepalive_timeout=0.4)
    peer, link = bench.raw(mesh)
    for _ in range(8):
        peer.wait_for(PING)
        peer.send(answer)
    assert link.state == "ready"


def test_a_peer_that_only_sends_is_pinged_too(bench: Bench) -> None:
    """Its frames say nothing about whether it hears us; the original expects something now and then."""
    mesh = bench.node(keepalive_interval=0.1, keepalive_timeout=5)
    peer, _ = bench.raw(mesh)
    end = time.monotonic() + 0.5
    pings = 0
    while time.monotonic() < end:
        peer.send(Frame(77))
        try:
            pings += peer.receive(0.02) == Frame(PING)
        except LinkEndedError:
            raise
        except AssertionError:
            continue
    assert pings >= 2


def test_a_busy_link_is_not_dropped(bench: Bench) -> None:
    """With more queued than crosses the cable in the keepalive timeout: PINGs and PONGs stand behind data there."""
    limits = {"keepalive_interval": 0.1, "keepalive_timeout": 0.6}
    one, other = bench.node(**limits), bench.node(**limits)
    cable = bench.connect(one, other, rate=800_000)
    listener = other.bind("sink")

    def drain(stream: object) -> None:
        while stream.recv(65536):  # type: ignore[attr-defined]
            pass

    def send() -> None:
        with one.dial("sink", timeout=DEADLINE) as stream:
            for _ in range(4):
                stream.sendall(bytes(100_000))

    senders = [bench.spawn(send) for _ in range(4)]
    drains = [bench.spawn(drain, listener.accept()[0]) for _ in senders]
    for task in senders + drains:
        task.get(timeout=DEADLINE)
    # 1.6 MB at 0.8 MB/s: three times the limit.
    assert [link.state for link in cable.links] == ["ready", "ready"]


def test_a_process_that_was_busy_drops_nobody(bench: Bench) -> None:
    """Nobody read while it computed: that nothing was heard says nothing about the peer."""
    mesh = bench.node(keepalive_interval=0.2, keepalive_timeout=1.0)
    with PeerProcess() as peer:
        mesh.join(peer.address).wait_ready(DEADLINE)
        link = mesh.links()[0]
        with mesh.dial("echo", timeout=DEADLINE) as stream:
            for seconds in (1.6, 0.6, 0.6):
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    pass
                gevent.sleep(0)
            echo_once(stream)
        assert link.state == "ready"
        assert mesh.links() == [link]


def test_a_busy_process_still_finds_who_is_gone(bench: Bench) -> None:
    """Being busy again and again must not keep a dead link for ever."""
    mesh = bench.node(keepalive_interval=0.1, keepalive_timeout=0.5)
    peer, link = bench.raw(mesh)
    end = time.monotonic() + DEADLINE
    while not link.wait(0.03) and time.monotonic() < end:
        busy = time.monotonic() + 0.06
        while time.monotonic() < busy:
            pass
    assert link.wait(0)
    peer.wait_end()


def test_a_stopped_process_is_dropped(bench: Bench) -> None:
    mesh = bench.node(keepalive_interval=0.1, keepalive_timeout=0.6, rejoin_min=60, rejoin_max=60)
    with PeerProcess() as peer:
        mesh.join(peer.address).wait_ready(DEADLINE)
        link = mesh.links()[0]
        stream = mesh.dial("echo", timeout=DEADLINE)
        os.kill(peer.pid, signal.SIGSTOP)
        with deadline(), pytest.raises(ConnectionResetError, match="keepalive_timeout"):
            stream.recv(1)
        assert link.wait(0)
        os.kill(peer.pid, signal.SIGCONT)


def test_a_killed_process_resets_its_streams(bench: Bench) -> None:
    mesh = bench.node(rejoin_min=60, rejoin_max=60)
    with PeerProcess() as peer:
        mesh.join(peer.address).wait_ready(DEADLINE)
        stream = mesh.dial("echo", timeout=DEADLINE)
        peer.kill()
        with deadline(), pytest.raises(ConnectionResetError):
            stream.recv(1)


def test_kernel_options(bench: Bench) -> None:
    sockets = tcp_pair()
    with socket.fromfd(sockets[0].fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
        bench.node(dead_host_timeout=20, keepalive_timeout=90).attach(sockets[0])
        bench.node().attach(sockets[1])
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        if not hasattr(socket, "TCP_KEEPIDLE"):
            return
        idle, interval, count = (
            same.getsockopt(socket.IPPROTO_TCP, option) for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count == 20
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Not less than keepalive_timeout: it also counts while a live but busy peer keeps its window shut.
            assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 90_000


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_links_within_a_host_are_not_paced_and_have_little_in_the_system(bench: Bench, host: str) -> None:
    sockets = tcp_pair(host)
    with socket.fromfd(sockets[0].fileno(), sockets[0].family, socket.SOCK_STREAM) as same:
        with contextlib.suppress(OSError):
            same.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        bench.node().attach(sockets[0])
        bench.node().attach(sockets[1])
        assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
        # What Linux makes of a size: no more than it allows, and as much again for its own books.
        most = int(Path("/proc/sys/net/core/rmem_max").read_text())
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * min(768 * 1024, most)


def test_kernel_options_of_joined_and_accepted_links(bench: Bench) -> None:
    """Every TCP connection of this process to that listener has a keepalive timer running."""
    server, client = bench.node(), bench.node()
    address = server.listen(("127.0.0.1", 0)).address
    client.join(address).wait_ready(DEADLINE)
    bench.echo(server)
    check_echo(client)
    if not os.path.exists("/proc/net/tcp"):
        pytest.skip("no /proc/net/tcp to read the timers from")
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    port = f"{address[1]:04X}"
    # State 01 is ESTABLISHED; of "timer:when" 02 is the keepalive timer, 01 a retransmission in progress.
    timers = [row[5].split(":")[0] for row in rows if row[3] == "01" and port in (row[1].split(":")[1], row[2].split(":")[1])]
    assert len(timers) == 2
    assert set(timers) <= {"01", "02"}
