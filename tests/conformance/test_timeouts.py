"""Time-outs and non-blocking mode: when a call gives up, and that it leaves everything as it was."""

from __future__ import annotations

import errno
import socket
import time

import pytest
from gevent.event import Event

from .providers import Pair, Provider, Trait
from .tools import (
    MARKER,
    RECEIVERS,
    SHORT,
    Spawn,
    catch,
    compute,
    fill,
    loosely,
    pattern,
    receive_all,
    receive_exactly,
    send_and_finish,
    settle,
    wait_for_data,
)

needs = pytest.mark.needs


def test_a_new_stream_waits_for_ever(pair: Pair) -> None:
    for stream in pair:
        assert stream.gettimeout() is None
        assert stream.timeout is None
        assert stream.getblocking() is True


def test_what_was_set_is_what_is_read(pair: Pair) -> None:
    stream = pair[0]
    for value, blocking in ((1.5, True), (3, True), (0, False), (0.0, False), (None, True)):
        stream.settimeout(value)
        assert stream.gettimeout() == value
        assert stream.timeout == value
        assert stream.getblocking() is blocking
    stream.settimeout(3)
    assert type(stream.gettimeout()) is float
    stream.setblocking(False)
    assert stream.gettimeout() == 0.0
    stream.setblocking(True)
    assert stream.gettimeout() is None


def test_values_that_are_no_timeouts(pair: Pair) -> None:
    stream = loosely(pair[0])
    stream.settimeout(2.5)
    with pytest.raises(ValueError):
        stream.settimeout(-1)
    for wrong in ("1", b"", [], object()):
        with pytest.raises(TypeError):
            stream.settimeout(wrong)
    assert stream.gettimeout() == 2.5


@pytest.mark.parametrize("method", RECEIVERS)
def test_receiving_gives_up_after_the_timeout(sides: Pair, method: str) -> None:
    one, other = sides
    other.settimeout(SHORT)
    started = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        RECEIVERS[method](other)
    assert time.monotonic() - started > SHORT * 0.9
    assert str(caught.value) == "timed out"
    one.sendall(b"late")
    wait_for_data(other, 4)
    assert other.recv(10) == b"late"


def test_a_timeout_counts_from_the_call(sides: Pair) -> None:
    """Not from when the loop looked at its clock last, which may be long before."""
    one = sides[0]
    for call in (lambda: one.recv(1), lambda: one.sendall(bytes(20_000_000))):
        one.settimeout(SHORT)
        settle()
        compute(SHORT * 1.5)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            call()
        assert time.monotonic() - started > SHORT * 0.9


@pytest.mark.parametrize("method", RECEIVERS)
def test_receiving_without_blocking(sides: Pair, method: str) -> None:
    one, other = sides
    other.setblocking(False)
    with pytest.raises(BlockingIOError) as caught:
        RECEIVERS[method](other)
    assert caught.value.errno == errno.EAGAIN
    other.setblocking(True)
    send_and_finish(one, b"x")
    wait_for_data(other)
    other.setblocking(False)
    assert other.recv(10) == b"x"
    other.setblocking(True)
    assert other.recv(10) == b""
    other.setblocking(False)
    assert other.recv(10) == b""


def test_a_timeout_is_for_each_call(pair: Pair, spawn: Spawn) -> None:
    """Not for the stream's life: two waits may take longer together."""
    one, other = pair
    other.settimeout(0.25)

    def answer() -> None:
        for _ in range(2):
            Event().wait(0.15)
            one.sendall(b"x")

    spawn(answer)
    started = time.monotonic()
    assert receive_exactly(other, 2) == b"xx"
    assert time.monotonic() - started > 0.25


def test_a_new_timeout_is_not_for_a_call_that_waits_already(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    waits_for_ever = spawn(catch, other.recv, 1)
    settle()
    other.settimeout(SHORT / 2)
    one.settimeout(SHORT * 2)
    with pytest.raises(TimeoutError):
        one.recv(1)
    assert not waits_for_ever.ready()
    one.sendall(b"x")
    assert waits_for_ever.get() == b"x"


def test_no_timeout_is_not_for_a_call_that_waits_with_one(sides: Pair, spawn: Spawn) -> None:
    other = sides[1]
    other.settimeout(SHORT)
    gives_up = spawn(catch, other.recv, 1)
    settle()
    other.settimeout(None)
    assert isinstance(gives_up.get(), TimeoutError)


@needs(Trait.STAYS_FULL)
def test_send_gives_up_having_sent_nothing(sides: Pair) -> None:
    one, other = sides
    filled = fill(one)
    one.settimeout(SHORT)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        one.send(b"never sent")
    assert time.monotonic() - started > SHORT * 0.9
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == filled


def test_sendall_gives_up_having_sent_a_beginning(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data = pattern(20_000_000)
    one.settimeout(SHORT)
    with pytest.raises(TimeoutError):
        one.sendall(data)
    one.settimeout(None)
    writer = spawn(send_and_finish, one, MARKER)
    received = receive_all(other)
    writer.get()
    assert received.endswith(MARKER)
    sent = len(received) - len(MARKER)
    assert 0 < sent < len(data)
    assert received[:sent] == data[:sent]


def test_the_timeout_of_sendall_is_for_all_of_it(sides: Pair, spawn: Spawn) -> None:
    """A peer that keeps reading does not stretch it: no part of the data takes that long."""
    one, other = sides

    def read_slowly() -> None:
        while other.recv(200_000):
            Event().wait(0.004)

    spawn(read_slowly)
    one.settimeout(0.1)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        one.sendall(pattern(20_000_000))
    assert 0.09 < time.monotonic() - started < 3


@needs(Trait.STAYS_FULL)
def test_send_without_blocking(sides: Pair) -> None:
    one, other = sides
    filled = fill(one)
    one.setblocking(False)
    for call in (lambda: one.send(b"x"), lambda: one.sendmsg([b"x"]), lambda: one.sendall(b"x")):
        with pytest.raises(BlockingIOError) as caught:
            call()
        assert caught.value.errno == errno.EAGAIN
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == filled


def test_send_without_blocking_takes_what_has_room(sides: Pair) -> None:
    one, other = sides
    one.setblocking(False)
    data = pattern(20_000_000)
    sent = one.send(data)
    assert 0 < sent < len(data)
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == data[:sent]


def test_sendall_without_blocking_sends_a_beginning(provider: Provider, sides: Pair) -> None:
    one, other = sides
    one.setblocking(False)
    data = pattern(20_000_000)
    expected: tuple[type[Exception], ...] = (BlockingIOError,)
    if Trait.PARTIAL_SENDALL in provider.lacks:
        expected += (TimeoutError,)
    with pytest.raises(expected):
        one.sendall(data)
    one.shutdown(socket.SHUT_WR)
    received = receive_all(other)
    assert 0 < len(received) < len(data)
    assert received == data[: len(received)]


def test_without_blocking_both_ways_with_a_loop_that_waits(sides: Pair, spawn: Spawn) -> None:
    """A non-blocking writer can be woken by what the reader says, and loses nothing."""
    one, other = sides
    data = pattern(1_000_000)
    room = Event()

    def write() -> None:
        one.setblocking(False)
        position = 0
        while position < len(data):
            try:
                position += one.send(data[position : position + 50_000])
            except BlockingIOError:
                room.clear()
                room.wait()
        one.shutdown(socket.SHUT_WR)

    writer = spawn(write)
    received = bytearray()
    other.settimeout(SHORT / 4)
    while True:
        try:
            part = other.recv(65536)
        except TimeoutError:
            room.set()
            continue
        if not part:
            break
        received += part
        room.set()
    writer.get()
    assert received == data


def test_timeouts_that_race_with_data_lose_nothing(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data = pattern(300_000)

    def write() -> None:
        for start in range(0, len(data), 3000):
            one.sendall(data[start : start + 3000])
            Event().wait(0.0007)
        one.shutdown(socket.SHUT_WR)

    spawn(write)
    received = bytearray()
    timeouts = 0
    other.settimeout(0.0005)
    while True:
        try:
            part = other.recv(2000)
        except TimeoutError:
            timeouts += 1
            continue
        if not part:
            break
        received += part
    assert timeouts > 0
    assert received == data
