"""gevent's manners: Timeout and kill() at any point, and more than one greenlet on one stream."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from .providers import Pair, Provider, Stream, Trait
from .tools import (
    MARKER,
    SHORT,
    Spawn,
    Task,
    assert_errno,
    catch,
    fill,
    give_up_after,
    pattern,
    receive_all,
    receive_exactly,
    send_and_finish,
    settle,
)

needs = pytest.mark.needs


class Stop(Exception):
    """Thrown into a greenlet that waits."""


def check_beginning(received: bytes, data: bytes) -> None:
    """What arrived is the beginning of the data, then the marker: nothing lost, doubled or moved."""
    assert received.endswith(MARKER)
    sent = received[: -len(MARKER)]
    assert len(sent) < len(data)
    assert sent == data[: len(sent)]


def kill(writer: Task) -> None:
    writer.kill()


def throw(writer: Task) -> None:
    writer.kill(Stop)


@pytest.mark.parametrize("end", [kill, throw])
@pytest.mark.parametrize("progress", [0, 1, 100_000, 700_000])
def test_a_writer_that_is_killed_has_sent_a_beginning(sides: Pair, spawn: Spawn, progress: int, end: Callable[[Task], None]) -> None:
    one, other = sides
    data = pattern(20_000_000)
    writer = spawn(catch, one.sendall, data)
    received = receive_exactly(other, progress)
    settle()
    assert not writer.dead
    end(writer)
    last = spawn(send_and_finish, one, MARKER)
    check_beginning(received + receive_all(other), data)
    last.get()


def test_a_writer_that_is_killed_before_it_runs_on(sides: Pair, spawn: Spawn) -> None:
    """Room for it has come, and it is killed before it can use it."""
    one, other = sides
    data = pattern(20_000_000)
    received = b""
    writer = spawn(one.sendall, data)
    settle()
    for _ in range(20):
        received += other.recv(65536)
        if len(received) > 500_000:
            break
    writer.kill(block=False)
    last = spawn(send_and_finish, one, MARKER)
    check_beginning(received + receive_all(other), data)
    last.get()


def test_a_timeout_while_sending_sends_a_beginning(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data = pattern(20_000_000)
    with give_up_after(SHORT):
        one.sendall(data)
    last = spawn(send_and_finish, one, MARKER)
    check_beginning(receive_all(other), data)
    last.get()


def test_send_counts_exactly_what_was_sent(sides: Pair, spawn: Spawn) -> None:
    """A send either returns how much it took, or was interrupted and took nothing."""
    one, other = sides
    rng = random.Random(5)
    data = pattern(3_000_000)
    interrupted = Event()

    def read() -> bytes:
        received = bytearray()
        while True:
            with give_up_after(rng.random() * 0.003):
                part = other.recv(rng.randrange(1, 80_000))
                if not part:
                    return bytes(received)
                received += part

    def write() -> None:
        position = 0
        while position < len(data):
            before = position
            with give_up_after(rng.random() * 0.001):
                position += one.send(data[position : position + rng.randrange(1, 200_000)])
            if position == before:
                interrupted.set()
        one.shutdown(socket.SHUT_WR)

    fill_first = fill(one)
    writer = spawn(write)
    interrupted.wait()
    reader = spawn(read)
    writer.get()
    assert reader.get() == fill_first + data


@pytest.mark.parametrize("moment", ["before", "with the data", "after"])
def test_a_reader_that_is_killed_loses_nothing(sides: Pair, spawn: Spawn, moment: str) -> None:
    """The kill comes before the data, between the data and the reader's turn, or later."""
    one, other = sides
    received: list[bytes] = []
    sent = []

    def read() -> None:
        while True:
            received.append(other.recv(100))

    for number in range(30):
        reader = spawn(read)
        settle()
        sent.append(pattern(1 + number * 29 % 400, number))
        if moment == "before":
            reader.kill(block=False)
        one.sendall(sent[-1])
        if moment == "after":
            settle()
        reader.kill()
    one.shutdown(socket.SHUT_WR)
    assert b"".join(received) + receive_all(other) == b"".join(sent)


def test_timeouts_around_recv_lose_nothing(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    rng = random.Random(6)
    data = pattern(1_000_000)
    buffer = bytearray(50_000)
    received = bytearray()
    finished = False

    def write() -> None:
        for start in range(0, len(data), 9973):
            one.sendall(data[start : start + 9973])
            if rng.random() < 0.5:
                settle()
        one.shutdown(socket.SHUT_WR)

    writer = spawn(write)
    while not finished:
        with give_up_after(rng.random() * 0.0005):
            if rng.random() < 0.5:
                part = other.recv(rng.randrange(1, 50_000))
            else:
                part = bytes(buffer[: other.recv_into(buffer, rng.randrange(1, 50_000))])
            received += part
            finished = not part
    writer.get()
    assert received == data


def test_a_timeout_that_has_come_already(sides: Pair) -> None:
    """It interrupts a call that would wait, and not one that need not."""
    one, other = sides
    with give_up_after(0):
        other.recv(1)
        raise AssertionError("recv returned without data")
    one.sendall(b"x")
    assert other.recv(1) == b"x"


def test_a_greenlet_that_is_killed_leaves_the_stream_open(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    for stream in sides:
        reader = spawn(stream.recv, 1)
        settle()
        reader.kill()
    one.sendall(b"question")
    assert receive_exactly(other, 8) == b"question"
    other.sendall(b"answer")
    assert receive_exactly(one, 6) == b"answer"


def second_call(stream: Stream, call: Callable[[Stream], object], spawn: Spawn) -> object:
    """What a second greenlet gets from a call in which another waits already."""
    return spawn(catch, call, stream).get()


def test_two_greenlets_in_one_recv(provider: Provider, sides: Pair, spawn: Spawn) -> None:
    """The second one gets an error at once, the first one its data."""
    one, other = sides
    first = spawn(other.recv, 10)
    settle()
    for call in (
        lambda stream: stream.recv(10),
        lambda stream: stream.recv_into(bytearray(10)),
        lambda stream: stream.recv(10, socket.MSG_PEEK),
    ):
        assert isinstance(second_call(other, call, spawn), provider.concurrent_use)
    assert not first.ready()
    one.sendall(b"data")
    assert first.get() == b"data"
    one.sendall(b"more")
    assert receive_exactly(other, 4) == b"more"


def test_two_greenlets_in_one_send(provider: Provider, sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    filled = fill(one)
    data = pattern(100_000, 1)
    first = spawn(one.sendall, data)
    settle()
    assert not first.ready()
    result = second_call(one, lambda stream: stream.sendall(pattern(50_000, 2)), spawn)
    assert isinstance(result, provider.concurrent_use)
    received = receive_exactly(other, len(filled) + len(data))
    assert received == filled + data
    first.get()


def test_a_second_greenlet_may_use_the_other_half(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    reader = spawn(one.recv, 10)
    settle()
    one.sendall(b"to the other")
    assert receive_exactly(other, 12) == b"to the other"
    other.sendall(b"back")
    assert reader.get() == b"back"


@needs(Trait.STAYS_FULL)
def test_a_place_is_free_again_after_a_kill(sides: Pair, spawn: Spawn) -> None:
    """The next greenlet can wait where one was killed or timed out."""
    one, other = sides
    for _ in range(3):
        reader = spawn(other.recv, 1)
        settle()
        reader.kill()
        with give_up_after(0):
            other.recv(1)
    filled = fill(one)
    writer = spawn(one.send, b"x")
    settle()
    writer.kill()
    one.settimeout(SHORT)
    with pytest.raises(TimeoutError):
        one.send(b"x")
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == filled


def test_kill_and_close_together(sides: Pair, spawn: Spawn) -> None:
    """Whichever comes first, the greenlet ends and the stream is closed."""
    other = sides[1]
    reader = spawn(catch, other.recv, 1)
    settle()
    reader.kill(block=False)
    other.close()
    result = reader.get()
    if not isinstance(result, gevent.GreenletExit):
        assert_errno(result, "EBADF")
    assert other.fileno() == -1
