"""Backpressure: a writer whose peer does not read stops soon, and goes on when the peer does."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from .providers import Pair, Provider, Trait
from .tools import Spawn, fill, pattern, receive_all, receive_exactly, send_and_finish, settle

needs = pytest.mark.needs


def test_a_writer_without_a_reader_is_stopped(provider: Provider, sides: Pair) -> None:
    one, other = sides
    filled = fill(one)
    assert len(filled) <= provider.buffer_limit
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == filled


def test_both_writers_without_readers_are_stopped(provider: Provider, pair: Pair) -> None:
    filled = [fill(stream) for stream in pair]
    for stream, data in zip(pair, filled):
        assert 0 < len(data) <= provider.buffer_limit
        stream.shutdown(socket.SHUT_WR)
    for stream, data in zip(pair[::-1], filled):
        assert receive_all(stream) == data


@needs(Trait.STAYS_FULL)
def test_reading_lets_a_writer_go_on(sides: Pair, spawn: Spawn) -> None:
    """Only reading: the writer waits for as long as the reader does nothing."""
    one, other = sides
    filled = fill(one)
    writer = spawn(one.sendall, b"and on")
    settle()
    assert not writer.ready()
    assert receive_exactly(other, len(filled)) == filled
    writer.get()
    assert receive_exactly(other, 6) == b"and on"


@needs(Trait.STAYS_FULL)
def test_a_peek_does_not_make_room(sides: Pair) -> None:
    one, other = sides
    filled = fill(one)
    for _ in range(5):
        peeked = other.recv(len(filled), socket.MSG_PEEK)
        assert peeked == filled[: len(peeked)]
    settle()
    one.setblocking(False)
    with pytest.raises(BlockingIOError):
        one.send(b"x")
    one.setblocking(True)
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == filled


@pytest.mark.parametrize("size", [1, 100, 4096])
def test_reading_in_small_pieces_gives_the_room_back(sides: Pair, spawn: Spawn, size: int) -> None:
    """However small the pieces are, the window is open again in the end."""
    one, other = sides
    filled = fill(one)
    received = bytearray()
    count = len(filled) if size > 1 else min(len(filled), 70_000)
    while len(received) < count:
        received += other.recv(size)
    received += receive_exactly(other, len(filled) - len(received))
    assert received == filled
    data = pattern(len(filled) * 3, 1)
    writer = spawn(send_and_finish, one, data)
    assert receive_all(other) == data
    writer.get()


def test_stop_and_go(provider: Provider, sides: Pair, spawn: Spawn) -> None:
    """Again and again until full and empty: room is neither lost nor made up."""
    one, other = sides
    for _ in range(4):
        filled = fill(one)
        assert 0 < len(filled) <= provider.buffer_limit
        assert receive_exactly(other, len(filled)) == filled


def _send_byte_by_byte(sock: Any, data: bytes) -> None:
    for number in range(len(data)):
        sock.send(data[number : number + 1])
    sock.shutdown(socket.SHUT_WR)


def test_a_window_used_byte_by_byte(pair: Pair, spawn: Spawn) -> None:
    """More single bytes than any count of messages that a queue could be bound by."""
    one, other = pair
    data = pattern(80_000)

    writer = spawn(_send_byte_by_byte, one, data)
    settle()
    assert receive_all(other) == data
    writer.get()


def test_a_writer_that_is_stopped_by_one_bound_after_another(pair: Pair, spawn: Spawn) -> None:
    """First the window holds it back, and when that opens, the number of small pieces on their way."""
    one, other = pair
    filled = fill(one)
    data = pattern(20_000)

    writer = spawn(_send_byte_by_byte, one, data)
    settle()
    assert not writer.ready()
    assert receive_exactly(other, len(filled)) == filled
    assert receive_all(other) == data
    writer.get()


def test_many_stopped_writers(watched: Provider, spawn: Spawn) -> None:
    """Each stream has its own window: all of them stop, then all of them go on."""
    pairs = [watched.connect_pair() for _ in range(10)]
    data = pattern(watched.buffer_limit // 4 * 5)
    writers = [spawn(send_and_finish, client, data) for client, _ in pairs]
    settle()
    assert not any(writer.ready() for writer in writers)
    readers = [spawn(receive_all, server) for _, server in pairs]
    for (client, server), writer, reader in zip(pairs, writers, readers):
        assert reader.get() == data
        writer.get()
        client.close()
        server.close()


def test_a_slow_reader_bounds_what_is_under_way(provider: Provider, sides: Pair, spawn: Spawn) -> None:
    """At no time is more sent than was read and may wait; also when the window has grown."""
    one, other = sides
    data = pattern(20_000_000)
    sent = 0
    received = 0

    def write() -> None:
        nonlocal sent
        while sent < len(data):
            sent += one.send(data[sent : sent + 100_000])
        one.shutdown(socket.SHUT_WR)

    writer = spawn(write)
    most = 0
    while part := other.recv(65536):
        assert part == data[received : received + len(part)]
        received += len(part)
        most = max(most, sent - received)
        if received % 7 == 0:
            settle()
    assert received == len(data)
    assert most <= provider.buffer_limit
    writer.get()
