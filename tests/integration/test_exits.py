"""How processes end: at once, with the right status, and without a word that nobody asked for."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable

import gevent
import pytest
from gevent import subprocess

from .tools import DEADLINE, Bench, PeerProcess, deadline, receive_until_error, run_script, script_environment

# Two nodes with everything that a program may have open, in all the states that wait for something.
BUSY = """
import os, sys
import gevent
from astranet_gevent import AstraNet

server, client = AstraNet().start(), AstraNet(rejoin_min=60, rejoin_max=60).start()
client.join(server.listen(("127.0.0.1", 0)).address).wait_ready(10)
client.join(("127.0.0.1", 1))
listener = server.bind("svc")
stream = client.dial("svc", timeout=10)
accepted, _ = listener.accept()

def fill(stream):
    stream.sendall(bytes(10_000_000))

greenlets = [
    gevent.spawn(stream.recv, 1),
    gevent.spawn(fill, stream),
    gevent.spawn(listener.accept),
    gevent.spawn(client.dial, "nobody", 100),
    gevent.spawn(client.service_map.wait_for, "nobody"),
    gevent.spawn(lambda: list(server.route_map.watch())),
]
gevent.sleep(0.05)
"""

ENDINGS: dict[str, tuple[str, int, str]] = {
    "falls off the end": ("", 0, r"^$"),
    "sys.exit": ("sys.exit(3)", 3, r"^$"),
    "an exception": ("raise ValueError('oops')", 1, r"ValueError: oops\n$"),
    "closed first": ("client.close()\nserver.close()", 0, r"^$"),
    "one closed": ("client.close()", 0, r"^$"),
    "everything killed": ("gevent.killall(greenlets)", 0, r"^$"),
    "sys.exit in a greenlet": ("gevent.spawn(sys.exit, 4).join()\ngevent.sleep(10)", 4, r""),
    "sys.exit in a greenlet while serving": ("gevent.spawn_later(0.05, sys.exit, 5)\nserver.serve_forever()", 5, r""),
    "an exception in a greenlet": (
        "def fail():\n    raise ValueError('oops')\ngevent.spawn(fail).join()",
        0,
        r"^Traceback[\s\S]*ValueError: oops[^\n]*\n.*failed with ValueError\s*$",
    ),
    "os._exit": ("os._exit(6)", 6, r"^$"),
    "serving until killed": ("gevent.spawn_later(0.05, os.kill, os.getpid(), 15)\nserver.serve_forever()", -signal.SIGTERM, r"^$"),
    "interrupted while serving": (
        "import threading\nthreading.Timer(0.1, os.kill, (os.getpid(), 2)).start()\nserver.serve_forever()",
        -signal.SIGINT,
        r"KeyboardInterrupt\s*$",
    ),
    "interrupted while reading": (
        "import threading\nthreading.Timer(0.1, os.kill, (os.getpid(), 2)).start()\ngreenlets[0].join()",
        -signal.SIGINT,
        r"KeyboardInterrupt\s*$",
    ),
    "interrupted and caught": (
        "import threading\nthreading.Timer(0.1, os.kill, (os.getpid(), 2)).start()\n"
        "try:\n    accepted.recv(1), gevent.sleep(10)\nexcept KeyboardInterrupt:\n    client.close()\n    server.close()",
        0,
        # What gevent itself prints of it.
        r"^(KeyboardInterrupt\n\S*\n)?$",
    ),
    "forgotten": ("del server, client, listener, stream, accepted, greenlets\nimport gc\ngc.collect()", 0, r"^$"),
    "closed at exit": ("import atexit\natexit.register(server.close)\natexit.register(client.close)", 0, r"^$"),
    "waits for a greenlet at the end": ("gevent.wait([greenlets[3]], timeout=0.05)", 0, r"^$"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_end_of_a_process(ending: str) -> None:
    """In a few tenths of a second, with everything open: exit does not wait for peers."""
    code, status, stderr = ENDINGS[ending]
    # Greenlets that fail because their node was closed say so, which is gevent's way.
    quiet = "\nimport gevent.hub\ngevent.get_hub().NOT_ERROR += (OSError,)\n"
    with deadline(20):
        result = run_script(BUSY + quiet + code)
    assert result.returncode == status, result.stderr
    assert re.search(stderr, result.stderr), result.stderr
    assert "Exception ignored" not in result.stderr


def test_with_blocks_end_well() -> None:
    """An exception leaves the block as it is, and both nodes are closed."""
    source = """
from astranet_gevent import AstraNet
try:
    with AstraNet() as server, AstraNet(join=[server.listen(("127.0.0.1", 0)).address]) as client:
        client.route_map.wait_for(server.node_id, 10)
        raise ValueError("mine")
except ValueError as error:
    print(error, server.closed, client.closed)
"""
    result = run_script(source)
    assert (result.stdout, result.stderr, result.returncode) == ("mine True True\n", "", 0)


def test_importing_does_nothing() -> None:
    """No hub, no thread, no environment, no open file."""
    source = """
import os, sys, threading
before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
import astranet_gevent
import astranet_gevent.testing
from gevent._hub_local import get_hub_if_exists
after = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
print(get_hub_if_exists(), threading.active_count(), len(after) - len(before))
astranet_gevent.AstraNet()
print(get_hub_if_exists())
"""
    assert run_script(source).stdout == "None 1 0\nNone\n"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_streams_of_a_process_that_ends(bench: Bench, how: signal.Signals) -> None:
    """Reset, as the kernel resets those of a dead process; what was sent before can be read."""
    mesh = bench.node(rejoin_min=60, rejoin_max=60)
    with PeerProcess() as peer:
        mesh.join(peer.address).wait_ready(DEADLINE)
        stream = mesh.dial("echo", timeout=DEADLINE)
        stream.sendall(b"last words")
        with deadline():
            while stream.buffered < 10:
                stream.recv(10, 2)
        os.kill(peer.pid, how)
        data, error = receive_until_error(stream)
        assert data == b"last words"
        assert error.errno == errno.ECONNRESET


def test_a_process_that_finishes(bench: Bench, eventually: Callable[..., None]) -> None:
    """Its node is closed by its with block."""
    mesh = bench.node(rejoin_min=60, rejoin_max=60)
    with PeerProcess() as peer:
        mesh.join(peer.address).wait_ready(DEADLINE)
        mesh.service_map.wait_for("echo", DEADLINE)
        peer.tell("finish")
        eventually(lambda: mesh.links() == [] and mesh.services() == [], "the peer is gone")
        assert peer.process.wait(DEADLINE) == 0


def test_a_pipe_that_nobody_reads() -> None:
    """Standard output closed early, as by ``| head``: the process still ends."""
    command = [sys.executable, "-c", BUSY + "\nprint('x' * 1_000_000)"]

    process = subprocess.Popen(command, env=script_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.close()
    with deadline(20):
        assert process.wait() != 0
    gevent.idle()
