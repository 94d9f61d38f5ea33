"""Forks: the child's node is closed to it, the parent's links do not notice; and other ways in which processes begin and end."""

from __future__ import annotations

from pathlib import Path

import pytest

from .tools import Bench, PeerProcess, check_echo, check_script

# The parent has a node joined to an echo service, a stream on it, and a listener with a stream waiting in it. The child looks at them,
# then ends in its way; the parent waits for it and goes on using everything.
FORK = """
import os, sys, traceback, warnings
# From Python 3.12 on a fork beside other threads (the resolver has some) is warned of.
warnings.simplefilter("ignore", DeprecationWarning)
import gevent, gevent.os
from gevent import socket
from astranet_gevent import AstraNet, ForkedError

address, fork, ending = (sys.argv[1], int(sys.argv[2])), sys.argv[3], sys.argv[4]

def refused(function, *args):
    try:
        function(*args)
    except ForkedError as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError(f"{function} works in the child")

def child():
    refused(mesh.dial, "echo")
    refused(mesh.bind, "other")
    refused(mesh.listen, ("127.0.0.1", 0))
    refused(mesh.join, ("127.0.0.1", 1))
    refused(mesh.attach, socket.socketpair()[0])
    refused(mesh.service_map.watch)
    refused(stream.recv, 1)
    refused(stream.recv_into, bytearray(1))
    refused(stream.send, b"x")
    refused(stream.sendall, b"x" * 100000)
    refused(stream.shutdown, socket.SHUT_WR)
    refused(buffered.recv, 1)
    refused(listener.accept)
    refused(listener.accept_nowait)
    assert mesh.closed
    if "close" in ending:
        # Everybody closes what he has: it must not reach the parent's peers.
        stream.close()
        listener.close()
        for link in list(mesh._node.links):
            link.close()
        link_listener.close()
        peering.close()
        mesh.close()
    if "new" in ending:
        with AstraNet(loopback=True, join=[address]) as own:
            echo = own.dial("echo", timeout=10)
            echo.sendall(b"child")
            assert echo.recv(5) == b"child"
            echo.close()

with AstraNet(loopback=True, rejoin_min=60, rejoin_max=60) as mesh:
    peering = mesh.join(address)
    peering.wait_ready(10)
    link_listener = mesh.listen(("127.0.0.1", 0))
    stream = mesh.dial("echo", timeout=10)
    buffered = mesh.dial("echo", timeout=10)
    buffered.sendall(b"buffered")
    listener = mesh.bind("mine")
    waiting = mesh.dial("mine", timeout=10)
    while buffered.buffered < 8:
        gevent.sleep(0.001)
    # Queued and not yet sent: that is for the parent alone to do.
    stream.sendall(b"pending")
    pid = {"os": os.fork, "gevent": gevent.os.fork_gevent}[fork]()
    if not pid:
        if fork == "os" and "loop" in ending:
            gevent.reinit()
        status = 99
        try:
            child()
            if "loop" in ending:
                gevent.sleep(0.05)
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        if "exit" not in ending or status:
            os._exit(status)
        sys.exit(0)
    if fork == "gevent":
        # Not gevent's waitpid(): it misses, now and then, a child that ends before its watcher is started.
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            gevent.sleep(0.001)
        _, status = ended
    else:
        _, status = os.waitpid(pid, 0)
    assert status == 0, status
    # All of the parent's things are as they were.
    link = mesh.links()[0]
    assert link.state == "ready"
    assert buffered.recv(100) == b"buffered"
    got = b""
    while len(got) < 7:
        got += stream.recv(65536)
    assert got == b"pending", got
    for _ in range(20):
        stream.sendall(b"parent" * 1000)
        got = b""
        while len(got) < 6000:
            got += stream.recv(65536)
        assert got == b"parent" * 1000
    accepted, _ = listener.accept()
    accepted.sendall(b"x")
    assert waiting.recv(1) == b"x"
    with mesh.dial("echo", timeout=10) as another:
        another.sendall(b"another")
        assert another.recv(7) == b"another"
    assert mesh.links() == [link]
    # The port is still this node's.
    with socket.create_connection(link_listener.address) as sock:
        assert sock.recv(1)
print("done")
"""


@pytest.mark.parametrize("fork", ["gevent", "os"])
@pytest.mark.parametrize("ending", ["_exit", "exit", "close", "close, loop", "close, loop, exit", "new, loop"])
def test_fork(fork: str, ending: str) -> None:
    ending = ending.replace("_exit", "now")
    with PeerProcess() as peer:
        assert check_script(FORK, peer.address[0], str(peer.address[1]), fork, ending) == "done\n"


# The parent listens (TCP and a file), and has a peering that keeps dialling. The child's loop runs while the parent's does not, so whatever
# happens on the network then is the child's doing.
CHILD_ALONE = """
import os, select, socket, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import gevent, gevent.os
from astranet_gevent import AstraNet

path, fork = sys.argv[1:]
closed = socket.socket()
closed.bind(("127.0.0.1", 0))  # nobody listens there yet

with AstraNet(rejoin_min=0.01, rejoin_max=0.02) as mesh:
    peering = mesh.join(closed.getsockname())
    listeners = [mesh.listen(("127.0.0.1", 0)), mesh.listen("unix:" + path)]
    while peering.attempts < 3:
        gevent.sleep(0.001)
    to_child, to_parent = os.pipe(), os.pipe()
    pid = {"os": os.fork, "gevent": gevent.os.fork_gevent}[fork]()
    if not pid:
        if fork == "os":
            gevent.reinit()
        gevent.sleep(0.05)
        os.close(to_child[1])
        os.write(to_parent[1], b"x")
        gevent.os.make_nonblocking(to_child[0])
        gevent.os.nb_read(to_child[0], 1)
        for listener in listeners:
            listener.close()
        mesh.close()
        sys.exit(0)
    assert os.read(to_parent[0], 1) == b"x"
    # Nobody dials: it could only be the child.
    closed.listen(5)
    assert not select.select([closed], [], [], 0.3)[0], "the child goes on dialling"
    # Nobody accepts in this process either, so a HANDSHAKE could only be the child's.
    for target, family in ((listeners[0].address, socket.AF_INET), (path, socket.AF_UNIX)):
        with socket.socket(family) as sock:
            sock.connect(target)
            assert not select.select([sock], [], [], 0.2)[0], "the child accepts the parent's links"
    os.write(to_child[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    assert os.path.exists(path), "the child removed the parent's file"
    closed.close()
    for address in (listeners[0].address, "unix:" + path):
        with AstraNet() as other:
            other.join(address).wait_ready(10)
assert not os.path.exists(path)
print("done")
"""


@pytest.mark.parametrize("fork", ["gevent", "os"])
def test_a_child_takes_no_part_in_the_parent_s_network(tmp_path: Path, fork: str) -> None:
    assert check_script(CHILD_ALONE, str(tmp_path / "links"), fork) == "done\n"


# Greenlets that wait with a time-out are copied with everything else, and go on waiting in both processes.
INHERITED_WAITS = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import gevent, gevent.os
from astranet_gevent import AstraNet

address, fork = (sys.argv[1], int(sys.argv[2])), sys.argv[3]
SOON = 1.0

def outcome(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except OSError as error:
        return type(error).__name__

def read_within(stream):
    with gevent.Timeout(SOON, TimeoutError):
        stream.recv(1)

with AstraNet(loopback=True) as mesh:
    mesh.join(address).wait_ready(10)
    listener = mesh.bind("mine")
    reading, into, within = (mesh.dial("echo", timeout=10) for _ in range(3))
    filling = mesh.dial("mine", timeout=10)
    unread = listener.accept()[0]
    for one in (listener, reading, into, filling):
        one.settimeout(SOON)
    waits = {
        "recv": gevent.spawn(outcome, reading.recv, 1),
        "recv_into": gevent.spawn(outcome, into.recv_into, bytearray(1)),
        "gevent.Timeout": gevent.spawn(outcome, read_within, within),
        "sendall": gevent.spawn(outcome, filling.sendall, bytes(100_000_000)),
        "accept": gevent.spawn(outcome, listener.accept),
        "dial": gevent.spawn(outcome, mesh.dial, "nobody", timeout=SOON),
    }
    gevent.sleep(SOON / 20)
    assert not any(wait.ready() for wait in waits.values()), waits
    pid = {"os": os.fork, "gevent": gevent.os.fork_gevent}[fork]()
    if not pid and fork == "os":
        gevent.reinit()
    gevent.joinall(list(waits.values()), timeout=20)
    got = {name: wait.value for name, wait in waits.items()}
    wanted = dict.fromkeys(waits, "StreamTimeout")
    wanted.update({"gevent.Timeout": "TimeoutError", "dial": "ServiceNotFoundError" if pid else "ForkedError"})
    assert got == wanted, (pid, got)
    if not pid:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
print("done")
"""


@pytest.mark.parametrize("fork", ["gevent", "os"])
def test_waits_that_a_child_inherits_end_when_their_time_has_come(fork: str) -> None:
    with PeerProcess() as peer:
        assert check_script(INHERITED_WAITS, peer.address[0], str(peer.address[1]), fork) == "done\n"


def test_fork_and_exec(bench: Bench) -> None:
    """gevent's subprocess forks in Python: our hook runs in a child that lives for a moment."""
    server, client = bench.node(), bench.node()
    client.join(server.listen(("127.0.0.1", 0)).address).wait_ready(10)
    bench.echo(server)
    with client.dial("echo", timeout=10) as stream:
        for _ in range(5):
            assert check_script("print(1)") == "1\n"
            stream.sendall(b"x")
            assert stream.recv(1) == b"x"
    check_echo(client)


def test_children_do_not_hold_descriptors() -> None:
    """What a program starts does not inherit links or listening ports."""
    source = """
import subprocess, sys
from astranet_gevent import AstraNet
count = [sys.executable, "-c", "import os; print(len(os.listdir('/dev/fd')))"]
with AstraNet() as mesh:
    address = mesh.listen(("127.0.0.1", 0)).address
    with AstraNet(join=[address]) as other:
        other.route_map.wait_for(mesh.node_id, 10)
        listener = mesh.bind("x")
        dialled = other.dial("x", timeout=10)
        dialled.fileno(), listener.fileno()
        print(subprocess.check_output(count, close_fds=False, text=True).strip())
print(subprocess.check_output(count, text=True).strip())
"""
    with_node, without = check_script(source).split()
    assert with_node == without
