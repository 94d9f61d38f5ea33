"""Busy polling over real sockets: a loop that polls while answers come at once, and sleeps as soon as they do not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from astranet_gevent import AstraNet, Role, Stream

from .tools import DEADLINE, Bench, check_script, deadline, echo_once, receive_exactly

pytestmark = pytest.mark.skipif(
    "libuv" in type(gevent.get_hub().loop).__module__, reason="gevent's loop over libuv has no watchers that count its turns"
)

# Turns of a loop in that many seconds: one that sleeps takes a few for what else there is, one that polls takes ten thousand.
QUIET = 0.05
FEW_TURNS = 500


@contextmanager
def turns() -> Iterator[list[int]]:
    """Counts how often the loop looks for events."""
    count = [0]
    watcher = gevent.get_hub().loop.prepare()

    def note() -> None:
        count[0] += 1

    watcher.start(note)
    try:
        yield count
    finally:
        watcher.stop()
        watcher.close()


def sleeps() -> bool:
    """Whether the loop sleeps while nothing happens."""
    with turns() as count:
        gevent.sleep(QUIET)
    return count[0] < FEW_TURNS


def connected(bench: Bench, **settings: Any) -> tuple[AstraNet, AstraNet, Stream]:
    """A node and another one that echoes, over TCP, and a stream between them."""
    near, far = bench.node(follow=False, **settings), bench.node(follow=False, **settings)
    near.join(far.listen(("127.0.0.1", 0)).address)
    bench.echo(far)
    return near, far, near.dial("echo", timeout=10)


def talk_until_polling(node: AstraNet, stream: Stream) -> None:
    while not node._node.busy_poll.polling:
        echo_once(stream)


def test_it_polls_while_answers_come_at_once_and_sleeps_when_none_does(bench: Bench) -> None:
    with deadline():
        near, far, stream = connected(bench)
        talk_until_polling(near, stream)
        talk_until_polling(far, stream)
        while not sleeps():
            pass
        # Still in the mood for it: the first answer after the silence is polled for again.
        talk_until_polling(near, stream)
        near.close()
        far.close()
        assert sleeps()


def test_a_timer_is_on_time_while_it_polls(bench: Bench) -> None:
    with deadline():
        near, _, stream = connected(bench, busy_poll=0.01)
        talk_until_polling(near, stream)
        # More than the polls after one echo: it has to end by itself, and other greenlets run meanwhile.
        woken = gevent.spawn(gevent.sleep, 0.02)
        echo_once(stream)
        assert woken.join(5) is None
        assert woken.successful()


@pytest.mark.parametrize("at_once", [1, 50])
def test_it_is_told_what_is_passed_on_for_others(bench: Bench, at_once: int) -> None:
    """Frames that come one by one, and those that a relay passes on in one piece."""
    with deadline():
        near, middle, far = bench.node(follow=False), bench.node(role=Role.ROUTER), bench.node(follow=False)
        address = middle.listen(("127.0.0.1", 0)).address
        for node in (near, far):
            node.join(address).wait_ready(DEADLINE)
        listener = far.bind("sink")
        sender = near.dial("sink", timeout=DEADLINE)
        receiver, _ = listener.accept()
        while not sleeps():
            pass
        told = middle._node.busy_poll
        told.passed_on = False
        for _ in range(at_once):
            sender.sendall(b"x")
        receive_exactly(receiver, at_once)
        assert told.passed_on
        assert not near._node.busy_poll.passed_on
        assert not far._node.busy_poll.passed_on


def test_it_can_be_switched_off(bench: Bench) -> None:
    with deadline():
        near, far, stream = connected(bench, busy_poll=0)
        for _ in range(200):
            echo_once(stream)
        assert not near._node.busy_poll.polling
        assert not far._node.busy_poll.polling
        assert sleeps()


def test_a_node_that_is_closed_while_its_loop_polls(bench: Bench) -> None:
    with deadline():
        near, _, stream = connected(bench, busy_poll=0.01)
        talk_until_polling(near, stream)
        stream.sendall(b"x")
        near.close(timeout=0)
        assert not near._node.busy_poll.polling
        # What the other one still waits for it does not poll for much longer.
        while not sleeps():
            pass


THREADS = """
import threading, time
import gevent
from astranet_gevent import AstraNet

ended = threading.Event()
address = []

def serve():
    with AstraNet(follow=False) as mesh:
        address.append(mesh.listen(("127.0.0.1", 0)).address)
        stream, _ = mesh.bind("echo").accept()
        while data := stream.recv(100):
            stream.sendall(data)
        gevent.sleep(0.1)
        used = time.thread_time()
        gevent.sleep(0.1)
        assert time.thread_time() - used < 0.05
    ended.set()

thread = threading.Thread(target=serve)
thread.start()
with AstraNet(follow=False) as near:
    while not address:
        gevent.sleep(0.001)
    near.join(address[0])
    with near.dial("echo", timeout=10) as stream:
        for number in range(3000):
            stream.sendall(b"%4d" % number)
            assert stream.recv(4) == b"%4d" % number
    while not ended.is_set():
        gevent.sleep(0.01)
thread.join(10)
print("done")
"""


def test_nodes_in_threads_poll_for_themselves() -> None:
    """Each thread has a loop of its own, but they share one interpreter: a poll of one gets in the way of the other, and ends."""
    assert check_script(THREADS) == "done\n"


FORK = """
import os, sys, gevent, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from astranet_gevent import AstraNet

def echo(listener):
    stream, _ = listener.accept()
    try:
        while data := stream.recv(100):
            stream.sendall(data)
    except OSError:
        pass

far, near = AstraNet(follow=False), AstraNet(follow=False, busy_poll=0.01)
far.start()
near.start()
near.join(far.listen(("127.0.0.1", 0)).address)
gevent.spawn(echo, far.bind("echo"))
stream = near.dial("echo", timeout=10)
while not near._node.busy_poll.polling:
    stream.sendall(b"x")
    stream.recv(1)
stream.sendall(b"x")
pid = os.fork()
if not pid:
    gevent.reinit()
    count = [0]
    watcher = gevent.get_hub().loop.prepare()
    watcher.start(lambda: count.__setitem__(0, count[0] + 1))
    assert not near._node.busy_poll.polling
    gevent.sleep(0.05)
    os._exit(0 if count[0] < 500 else 1)
_, status = os.waitpid(pid, 0)
assert stream.recv(1) == b"x"
near.close()
far.close()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_does_not_poll_for_its_parent() -> None:
    assert check_script(FORK) == "0\n"
