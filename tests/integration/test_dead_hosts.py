"""Hosts that vanish without a word, and hosts that only look like it.

A host that vanishes is a network namespace whose cable is pulled: that needs root and Linux, and is skipped with its reason elsewhere.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket, subprocess

from astranet_gevent.transport.memory import MemoryConn, memory_pair

from .tools import DEADLINE, Bench, PeerProcess, deadline, echo_once, script_environment

Eventually = Callable[..., None]

# Both namespaces are new, so that nothing here touches the network of the machine: the driver is in the first, the peer in the second.
DRIVER = """
import os, subprocess, sys, time
sys.path[:0] = sys.argv[1:3]
import gevent
from integration.tools import PeerProcess
from astranet_gevent import AstraNet

def run(*command):
    subprocess.run(command, check=True)

def in_peer(*command):
    run("nsenter", "-t", str(holder.pid), "-n", *command)

holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
holder.stdout.readline()
try:
    run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
    run("ip", "link", "set", "far", "netns", str(holder.pid))
    run("ip", "addr", "add", "10.99.0.1/24", "dev", "near")
    run("ip", "link", "set", "near", "up")
    in_peer("ip", "addr", "add", "10.99.0.2/24", "dev", "far")
    in_peer("ip", "link", "set", "far", "up")
    prefix = ("nsenter", "-t", str(holder.pid), "-n")
    limits = dict(dead_host_timeout=4, keepalive_interval=0.5, keepalive_timeout=60, follow=False, rejoin_min=60, rejoin_max=60)
    with PeerProcess("10.99.0.2", prefix=prefix) as peer, AstraNet(**limits) as idle, AstraNet(**limits) as busy:
        for mesh in (idle, busy):
            mesh.join(peer.address).wait_ready(10)
        streams = [mesh.dial("echo", timeout=10) for mesh in (idle, busy)]
        for stream in streams:
            stream.sendall(b"x")
            assert stream.recv(1) == b"x"
        links = [mesh.links()[0] for mesh in (idle, busy)]
        # No FIN, no RST, and nothing answers: as when the power goes.
        in_peer("ip", "link", "set", "far", "down")
        started = time.monotonic()
        streams[1].sendall(bytes(60000))
        for name, link in zip(("idle", "busy"), links):
            assert link.wait(30), name
            print(name, round(time.monotonic() - started, 2), link.error)
        for stream in streams:
            try:
                stream.recv(1)
            except ConnectionResetError:
                print("reset")
finally:
    holder.kill()
    holder.wait()
"""


def _why_not() -> str:
    """Why namespaces cannot be used here, or nothing."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"no {tool!r} command"
    made = subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"], capture_output=True, text=True, check=False
    )
    return f"no network namespaces with veth here: {made.stderr.strip()}" if made.returncode else ""


def test_a_dead_host_is_found(hub_errors: list[Any]) -> None:
    """Long before the keepalive timeout, whether the link was idle or sending."""
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    tests = os.path.dirname(os.path.dirname(__file__))
    command = ["unshare", "-n", sys.executable, "-c", DRIVER, os.path.dirname(tests), tests]
    result = subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=40, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    found = {name: float(seconds) for name, seconds in re.findall(r"^(idle|busy) ([0-9.]+)", result.stdout, re.MULTILINE)}
    assert set(found) == {"idle", "busy"}, result.stdout
    # The limit, plus the keepalive interval after which an idle link says something, plus rounding.
    assert all(3.0 <= seconds <= 7.0 for seconds in found.values()), result.stdout
    assert result.stdout.count("reset") == 2


class _Unanswered(MemoryConn):
    """A connection of which the kernel says what the test wants."""

    def __init__(self, ends: MemoryConn, answers: Iterator[float]) -> None:
        super().__init__(ends._incoming, ends._outgoing)
        self.asked = 0
        self._answers = answers

    def unanswered_for(self) -> float:
        self.asked += 1
        return next(self._answers)


@pytest.mark.parametrize("dead", [False, True])
def test_one_bad_moment_is_not_death(bench: Bench, eventually: Eventually, dead: bool) -> None:
    """What was sent this instant on a link that was idle for long looks unanswered for long: it is looked at again a second later."""
    mesh, other = bench.node(dead_host_timeout=20, keepalive_interval=0.05), bench.node()
    one, two = memory_pair()
    conn = _Unanswered(one, itertools.chain([25.0], itertools.repeat(26.0 if dead else 0.0)))
    link, far = mesh.attach(conn), other.attach(two)
    far.wait_ready(DEADLINE)
    if dead:
        assert link.wait(DEADLINE)
        assert "acknowledged nothing for 26 s (dead_host_timeout 20)" in str(link.error)
    else:
        eventually(lambda: conn.asked > 4, "further looks")
        assert link.state == "ready"


def test_a_peer_that_computes_is_not_dead(bench: Bench, eventually: Eventually) -> None:
    """Its kernel answers, but its process reads nothing for longer than dead_host_timeout, with every buffer on the way full."""
    mesh = bench.node(dead_host_timeout=1.5, keepalive_interval=0.2, rejoin_min=60, rejoin_max=60)
    with PeerProcess() as peer:
        mesh.join(peer.address).wait_ready(DEADLINE)
        link = mesh.links()[0]
        check = mesh.dial("echo", timeout=DEADLINE)
        streams = [mesh.dial("sink", timeout=DEADLINE) for _ in range(200)]
        peer.tell("compute 5")
        assert peer.read() == "begin"
        # 13 MB: what stands in the kernel's buffers at most is 4 MB to send and 6 MB received.
        senders = [bench.spawn(stream.sendall, bytes(65536)) for stream in streams]
        with deadline():
            assert peer.read() == "end"
        gevent.joinall(senders, DEADLINE)
        assert [sender.exception for sender in senders if not sender.successful()] == []
        echo_once(check)
        assert link.state == "ready"


def test_a_peer_that_stopped_is_not_dead_yet(bench: Bench) -> None:
    """A stopped process is silent, its host is not: that is for the keepalive timeout to judge."""
    mesh = bench.node(dead_host_timeout=1, keepalive_interval=0.2, keepalive_timeout=30, rejoin_min=60, rejoin_max=60)
    with PeerProcess() as peer:
        mesh.join(peer.address).wait_ready(DEADLINE)
        stream = mesh.dial("echo", timeout=DEADLINE)
        os.kill(peer.pid, signal.SIGSTOP)
        started = time.monotonic()
        stream.sendall(bytes(60_000))
        assert not mesh.links()[0].wait(2.5)
        assert time.monotonic() - started >= 2.4
        os.kill(peer.pid, signal.SIGCONT)
        with deadline():
            assert stream.recv(1) == b"\0"


def test_an_unreachable_address_does_not_hold_the_node(bench: Bench) -> None:
    """Joining where nothing answers takes one attempt's time, and none of anybody else."""
    mesh, other = bench.node(handshake_timeout=0.3), bench.node()
    # A backlog of zero that is full: the kernel drops further SYNs.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        peering = mesh.join(full.getsockname())
        bench.connect(mesh, other)
        bench.echo(other)
        with mesh.dial("echo", timeout=DEADLINE) as stream:
            echo_once(stream)
        with pytest.raises(TimeoutError):
            peering.wait_ready(0.6)
        assert "timed out" in str(peering.error)
        peering.close()
        for filler in fillers:
            filler.close()
