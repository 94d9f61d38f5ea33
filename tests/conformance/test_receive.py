"""Every way to receive: what it returns, what it leaves, and which arguments it refuses."""

from __future__ import annotations

import array
import errno
import gc
import socket
import weakref

import gevent
import pytest

from .providers import Pair, Trait
from .tools import (
    SHORT,
    loosely,
    pattern,
    receive_exactly,
    send_and_finish,
    settle,
    wait_for_data,
)

needs = pytest.mark.needs


def test_recv_returns_what_is_there_without_waiting_for_more(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"three")
    wait_for_data(other, 5)
    assert other.recv(1000) == b"three"


def test_recv_leaves_what_was_not_asked_for(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abcdef")
    wait_for_data(other, 6)
    assert [other.recv(1), other.recv(2), other.recv(100)] == [b"a", b"bc", b"def"]


def test_recv_of_nothing_returns_at_once(sides: Pair) -> None:
    one, other = sides
    assert other.recv(0) == b""
    one.sendall(b"x")
    wait_for_data(other)
    assert other.recv(0) == b""
    assert other.recv(1) == b"x"


def test_recv_returns_bytes(sides: Pair) -> None:
    """Not a bytearray or a memoryview, whatever the size."""
    one, other = sides
    for size in (1, 5000, 60_000):
        one.sendall(bytes(size))
        wait_for_data(other, size)
        assert type(other.recv(size)) is bytes


def test_recv_at_the_end_returns_nothing_again_and_again(sides: Pair) -> None:
    one, other = sides
    send_and_finish(one, b"last")
    assert receive_exactly(other, 4) == b"last"
    assert [other.recv(10) for _ in range(3)] == [b""] * 3
    assert other.recv_into(bytearray(3)) == 0
    assert other.recvmsg(3)[0] == b""


def test_recv_into_fills_only_what_it_received(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abc")
    wait_for_data(other, 3)
    buffer = bytearray(b"......")
    assert other.recv_into(buffer) == 3
    assert buffer == b"abc..."


def test_recv_into_honours_its_limit(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abcdef")
    wait_for_data(other, 6)
    buffer = bytearray(b"......")
    assert other.recv_into(buffer, 2) == 2
    assert buffer == b"ab...."
    assert other.recv_into(memoryview(buffer)[3:], 0) == 3  # 0 means: as long as the buffer
    assert buffer == b"ab.cde"
    assert other.recv(10) == b"f"


def test_recv_into_any_writable_buffer(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"\x01\x00\x00\x00\x02\x00\x00\x00")
    wait_for_data(other, 8)
    numbers = array.array("I", [7, 7])
    assert other.recv_into(numbers) == 8
    assert numbers.tobytes() == b"\x01\x00\x00\x00\x02\x00\x00\x00"


def test_recv_into_an_empty_buffer_returns_at_once(pair: Pair) -> None:
    assert pair[0].recv_into(bytearray()) == 0


def test_recvfrom_returns_data_and_an_address(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abc")
    wait_for_data(other, 3)
    data, _ = other.recvfrom(2)
    assert data == b"ab"
    assert other.recv(1) == b"c"


def test_recvmsg_returns_data_and_nothing_else(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abcd")
    wait_for_data(other, 4)
    data, ancillary, flags, _ = other.recvmsg(3)
    assert data == b"abc"
    assert ancillary == []
    assert not flags & socket.MSG_CTRUNC
    assert other.recvmsg(10, 100)[0] == b"d"


def test_recvfrom_into_fills_a_buffer(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abcdef")
    wait_for_data(other, 6)
    buffer = bytearray(b"....")
    assert other.recvfrom_into(buffer, 3)[0] == 3
    assert buffer == b"abc."
    assert other.recvfrom_into(buffer)[0] == 3
    assert buffer == b"def."


def test_recvmsg_into_fills_buffers_in_turn(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abcdefgh")
    wait_for_data(other, 8)
    buffers = [bytearray(2), bytearray(), bytearray(3)]
    count, ancillary, _, _ = other.recvmsg_into([*buffers[:2], memoryview(buffers[2])])
    assert (count, ancillary) == (5, [])
    assert buffers == [b"ab", b"", b"cde"]
    assert other.recvmsg_into([bytearray(3), bytearray(9)])[0] == 3
    one.shutdown(socket.SHUT_WR)
    assert other.recvmsg_into([bytearray(2)])[0] == 0


def test_recvmsg_into_peeks_at_all_its_buffers(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abcde")
    wait_for_data(other, 5)
    buffers = [bytearray(2), bytearray(2)]
    assert other.recvmsg_into(buffers, 0, socket.MSG_PEEK)[0] == 4
    assert buffers == [b"ab", b"cd"]
    assert other.recv(10) == b"abcde"


def test_peek_leaves_the_data(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abcdef")
    wait_for_data(other, 6)
    buffer = bytearray(4)
    assert other.recv(3, socket.MSG_PEEK) == b"abc"
    assert other.recv_into(buffer, 0, socket.MSG_PEEK) == 4
    assert buffer == b"abcd"
    assert other.recvfrom(2, socket.MSG_PEEK)[0] == b"ab"
    assert other.recvmsg(10, 0, socket.MSG_PEEK)[0] == b"abcdef"
    assert other.recv(10) == b"abcdef"


def test_peek_over_pieces_leaves_the_data(sides: Pair) -> None:
    """What is peeked at was sent in several pieces, and is read in different ones."""
    one, other = sides
    data = pattern(5000)
    for start in range(0, 5000, 1000):
        one.sendall(data[start : start + 1000])
    wait_for_data(other, 5000)
    assert other.recv(1) == data[:1]
    assert other.recv(3500, socket.MSG_PEEK) == data[1:3501]
    assert other.recv(1500) == data[1:1501]
    assert other.recv(5000, socket.MSG_PEEK) == data[1501:]
    assert other.recv(5000) == data[1501:]


def test_peek_waits_for_data(sides: Pair) -> None:
    one, other = sides
    other.settimeout(SHORT)
    with pytest.raises(TimeoutError):
        other.recv(1, socket.MSG_PEEK)
    other.settimeout(None)
    one.sendall(b"x")
    assert other.recv(1, socket.MSG_PEEK) == b"x"


def test_peek_at_the_end(sides: Pair) -> None:
    one, other = sides
    send_and_finish(one, b"x")
    wait_for_data(other)
    assert other.recv(5, socket.MSG_PEEK) == b"x"
    assert other.recv(5) == b"x"
    assert other.recv(5, socket.MSG_PEEK) == b""
    assert other.recv(5) == b""


@needs(Trait.DONTWAIT)
def test_dontwait_does_not_wait(sides: Pair) -> None:
    one, other = sides
    calls = (
        lambda: other.recv(1, socket.MSG_DONTWAIT),
        lambda: other.recv_into(bytearray(1), 1, socket.MSG_DONTWAIT),
        lambda: other.recvfrom(1, socket.MSG_DONTWAIT),
        lambda: other.recvmsg(1, 0, socket.MSG_DONTWAIT),
        lambda: other.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK),
    )
    for call in calls:
        with pytest.raises(BlockingIOError) as caught:
            call()
        assert caught.value.errno == errno.EAGAIN
    assert other.gettimeout() is None
    one.sendall(b"x")
    wait_for_data(other)
    assert other.recv(1, socket.MSG_DONTWAIT) == b"x"


def test_recvmsg_into_waits_for_something(sides: Pair) -> None:
    one, other = sides
    other.settimeout(SHORT)
    with pytest.raises(TimeoutError):
        other.recvmsg_into([bytearray(2)])
    with pytest.raises(TimeoutError):
        other.recvfrom_into(bytearray(2))
    one.sendall(b"x")
    other.settimeout(None)
    assert other.recvmsg_into([bytearray(2)])[0] == 1


@pytest.mark.parametrize("method", ["recv", "recvfrom", "recvmsg"])
def test_arguments_that_are_no_sizes(pair: Pair, method: str) -> None:
    pair[0].settimeout(SHORT)  # a wrong argument that is let through must not hang
    call = getattr(loosely(pair[0]), method)
    with pytest.raises(ValueError):
        call(-1)
    for wrong in ("1", None, 1.0, b""):
        with pytest.raises(TypeError):
            call(wrong)
    with pytest.raises(TypeError):
        call()


def test_arguments_that_are_no_buffers(pair: Pair) -> None:
    stream = loosely(pair[0])
    stream.settimeout(SHORT)
    for wrong in (b"read only", "text", None, 5, memoryview(b"read only")):
        with pytest.raises((TypeError, BufferError)):
            stream.recv_into(wrong)
    with pytest.raises(ValueError):
        stream.recv_into(bytearray(5), -1)
    with pytest.raises(ValueError):
        stream.recv_into(bytearray(5), 6)


def test_refused_arguments_leave_the_data(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"abc")
    wait_for_data(other, 3)
    with pytest.raises(ValueError):
        other.recv(-1)
    with pytest.raises(ValueError):
        other.recv_into(bytearray(1), 2)
    with pytest.raises(TypeError):
        loosely(other).recv_into(b"12")
    assert other.recv(10) == b"abc"


def test_received_data_is_not_tied_to_later_data(sides: Pair) -> None:
    """What was returned stays as it is, whatever arrives next."""
    one, other = sides
    first = pattern(50_000, 1)
    one.sendall(first)
    got = receive_exactly(other, len(first))
    for seed in range(2, 12):
        later = pattern(50_000, seed)
        one.sendall(later)
        assert receive_exactly(other, len(later)) == later
    assert got == first


def test_a_buffer_is_let_go_of(sides: Pair) -> None:
    """After recv_into the buffer can be resized: nothing holds a view of it."""
    one, other = sides
    one.sendall(b"abc")
    buffer = bytearray(3)
    other.recv_into(buffer)
    buffer += b"more"
    other.settimeout(SHORT)
    with pytest.raises(TimeoutError):
        other.recv_into(buffer)
    buffer += b"more"


def test_a_greenlet_that_waited_is_let_go_of(sides: Pair) -> None:
    one, other = sides
    reader = gevent.spawn(other.recv, 1)
    settle()
    one.sendall(b"x")
    assert reader.get() == b"x"
    gone = weakref.ref(reader)
    del reader
    settle()
    gc.collect()
    assert gone() is None
