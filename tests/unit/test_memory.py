"""Streams of bytes in memory: order, capacity, waiting on both sides, and the two ways to end."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astranet_gevent.transport.memory import MemoryConn, MemoryPipe, loopback_conn, memory_pair

from .tools import PROPERTY, source_bytes

DEADLINE = 5.0


@pytest.fixture(autouse=True)
def deadline() -> Any:
    """Nothing here waits for long."""
    with gevent.Timeout(DEADLINE):
        yield


def read(conn: MemoryConn, size: int) -> bytes:
    """One read."""
    target = bytearray(size)
    return bytes(target[: conn.recv_into(memoryview(target))])


def total(parts: Any) -> int:
    """Bytes in a list of parts."""
    return sum(map(len, parts))


parts = st.lists(st.tuples(st.integers(1, 60), st.sampled_from([bytes, bytearray, memoryview])), max_size=4)


@PROPERTY
@given(st.integers(1, 100), st.lists(st.one_of(parts, st.integers(1, 80)), max_size=30))
def test_bytes_come_out_as_they_went_in(capacity: int, steps: list[list[tuple[int, type]] | int]) -> None:
    """A step is a batch of parts to send, or the size of a read."""
    pipe, unused = MemoryPipe(capacity), MemoryPipe(capacity)
    near, far = MemoryConn(unused, pipe), MemoryConn(pipe, unused)
    sent = got = 0
    for step in steps:
        if isinstance(step, int):
            if got < sent:
                data = read(far, step)
                assert data == source_bytes(got, min(step, sent - got))
                got += len(data)
        else:
            batch, at = [], sent
            for size, kind in step:
                batch.append(kind(source_bytes(at, size)))
                at += size
            left = near.try_send(batch)
            # As much as there is room for, and not a byte more.
            assert total(batch) - total(left) == min(total(batch), capacity - (sent - got))
            assert b"".join(left) == source_bytes(at - total(left), total(left))
            sent = at - total(left)
        assert pipe.room == capacity - (sent - got)
    near.shutdown()
    while data := read(far, 7):
        assert data == source_bytes(got, len(data))
        got += len(data)
    assert got == sent


def test_the_two_directions_do_not_meet() -> None:
    near, far = memory_pair()
    near.send_all([b"there"])
    far.send_all([b"back"])
    assert (read(near, 9), read(far, 9)) == (b"back", b"there")


def test_a_loopback_reads_what_it_writes() -> None:
    conn = loopback_conn()
    conn.send_all([b"a", b"bc"])
    assert read(conn, 9) == b"abc"


def test_a_reader_waits_for_bytes(spawn: Callable[..., Any]) -> None:
    near, far = memory_pair()
    reader = spawn(read, far, 9)
    gevent.idle()
    assert not reader.ready()
    near.send_all([b"abc"])
    assert reader.get() == b"abc"


def test_a_writer_waits_for_room(spawn: Callable[..., Any]) -> None:
    near, far = memory_pair(10)
    writer = spawn(near.send_all, [b"0123456", b"789abcdef"])
    gevent.idle()
    assert not writer.ready()
    assert read(far, 8) == b"01234567"
    # It goes on as soon as there is any room, not only when all has been read.
    writer.get()
    assert read(far, 100) == b"89abcdef"


def test_what_is_inside_can_be_read_after_the_end() -> None:
    near, far = memory_pair()
    near.send_all([b"abc"])
    near.close()
    assert [read(far, 2) for _ in range(4)] == [b"ab", b"c", b"", b""]


@pytest.mark.parametrize("end", [0, 1])
def test_writing_after_the_end_is_an_error(end: int) -> None:
    conns = memory_pair()
    conns[end].shutdown()
    for send in (conns[0].try_send, conns[0].send_all):
        with pytest.raises(BrokenPipeError) as caught:
            send([b"x"])
        assert caught.value.errno == errno.EPIPE


@pytest.mark.parametrize("end", [0, 1])
def test_the_end_wakes_who_waits(end: int, spawn: Callable[..., Any]) -> None:
    conns = memory_pair(4)
    writer = spawn(conns[0].send_all, [b"012345"])
    reader = spawn(read, conns[0], 9)
    gevent.idle()
    assert not writer.ready()
    assert not reader.ready()
    conns[end].shutdown()
    with pytest.raises(BrokenPipeError):
        writer.get()
    assert reader.get() == b""


def test_a_pipe_has_room_again_when_some_of_it_is_read() -> None:
    pipe = MemoryPipe(10)
    pipe.put(b"0123456789")
    assert pipe.room == 0
    assert pipe.read_into(memoryview(bytearray(4))) == 4
    assert pipe.room == 4
    pipe.end()
    assert pipe.room == 0
