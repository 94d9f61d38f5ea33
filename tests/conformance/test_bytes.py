"""Order and integrity of bytes: one way, both ways at once, many streams at once."""

from __future__ import annotations

import hashlib
import random

import pytest
from gevent.event import Event

from .providers import Pair, Provider, Stream
from .tools import (
    MARKER,
    Spawn,
    fill,
    pattern,
    receive_all,
    receive_exactly,
    send_and_finish,
    settle,
)


def digest(data: bytes) -> str:
    """What two long byte strings are compared by: a mismatch must not print megabytes."""
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()}"


# Around the sizes of a frame and of the first window, and well beyond the largest window.
@pytest.mark.parametrize("size", [1, 29, 65535, 65536, 65537, 5_000_011])
def test_all_bytes_arrive_in_order(sides: Pair, spawn: Spawn, size: int) -> None:
    one, other = sides
    data = pattern(size)
    writer = spawn(send_and_finish, one, data)
    assert digest(receive_all(other)) == digest(data)
    writer.get()


def send_in_pieces(stream: Stream, data: bytes, rng: random.Random) -> None:
    """The data in pieces of random sizes, through every method that sends, and then the end."""
    position = 0
    while position < len(data):
        piece = data[position : position + int(2 ** rng.uniform(0, 17))]
        how = rng.randrange(4)
        if how == 0:
            position += stream.send(piece)
        elif how == 1:
            position += stream.sendmsg([piece[:7], b"", memoryview(piece)[7:]])
        else:
            stream.sendall(piece)
            position += len(piece)
    send_and_finish(stream, b"")


def receive_in_pieces(stream: Stream, rng: random.Random) -> bytes:
    """Everything up to the end in pieces of random sizes, through every method that receives."""
    parts = bytearray()
    buffer = bytearray(2**17)
    while True:
        size = int(2 ** rng.uniform(0, 17))
        how = rng.randrange(4)
        if how == 0:
            count = stream.recv_into(buffer, size)
            part = bytes(buffer[:count])
        elif how == 1:
            part = stream.recvmsg(size)[0]
        elif how == 2:
            part = stream.recvfrom(size)[0]
        else:
            part = stream.recv(size)
        assert len(part) <= size
        if not part:
            return bytes(parts)
        parts += part


@pytest.mark.parametrize("seed", range(3))
def test_random_pieces_arrive_in_order(sides: Pair, spawn: Spawn, seed: int) -> None:
    one, other = sides
    data = pattern(600_000, seed)
    writer = spawn(send_in_pieces, one, data, random.Random(seed))
    assert digest(receive_in_pieces(other, random.Random(-seed - 1))) == digest(data)
    writer.get()


def test_many_small_pieces_are_not_mixed_up(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data = pattern(20_000)

    def write() -> None:
        for start in range(0, len(data), 7):
            one.sendall(data[start : start + 7])
        send_and_finish(one, b"")

    writer = spawn(write)
    assert digest(receive_all(other)) == digest(data)
    writer.get()


def test_bulk_in_both_directions_at_once(pair: Pair, spawn: Spawn) -> None:
    data = [pattern(2_000_003, seed) for seed in range(2)]
    writers = [spawn(send_and_finish, end, part) for end, part in zip(pair, data)]
    readers = [spawn(receive_all, end) for end in pair]
    assert digest(readers[1].get()) == digest(data[0])
    assert digest(readers[0].get()) == digest(data[1])
    for writer in writers:
        writer.get()


def test_a_conversation(pair: Pair) -> None:
    """Each message is the answer to the one before: nothing may wait for more to come."""
    client, server = pair
    for number in range(200):
        question = pattern(1 + number * 17 % 500, number)
        client.sendall(question)
        assert receive_exactly(server, len(question)) == question
        server.sendall(question[::-1])
        assert receive_exactly(client, len(question)) == question[::-1]


def test_many_streams_at_once(watched: Provider, spawn: Spawn) -> None:
    def converse(number: int) -> bool:
        client, server = pairs[number]
        data = pattern(30_000 + number, number)
        sender = spawn(send_and_finish, client, data)
        echo = spawn(lambda: send_and_finish(server, receive_all(server)))
        result = receive_all(client)
        sender.get()
        echo.get()
        return result == data

    pairs = [watched.connect_pair() for _ in range(50)]
    try:
        results = [spawn(converse, number) for number in range(len(pairs))]
        assert all(result.get() for result in results)
    finally:
        for pair in pairs:
            for end in pair:
                end.close()


def test_a_stream_that_is_not_read_does_not_stop_others(watched: Provider, pair: Pair, spawn: Spawn) -> None:
    one, other = pair
    stuck = fill(one)
    client, server = watched.connect_pair()
    with client, server:
        data = pattern(1_000_003)
        writer = spawn(send_and_finish, client, data)
        assert digest(receive_all(server)) == digest(data)
        writer.get()
    one.close()
    assert digest(receive_all(other)) == digest(stuck)


def test_open_and_close_again_and_again(watched: Provider) -> None:
    for number in range(100):
        client, server = watched.connect_pair()
        with client, server:
            client.sendall(b"%d" % number)
            client.close()
            assert receive_all(server) == b"%d" % number


def test_a_writer_and_a_reader_share_a_stream(pair: Pair, spawn: Spawn) -> None:
    """One greenlet reads while another writes on the same end, each waiting in turn."""
    client, server = pair
    data = pattern(700_001)
    go = Event()

    def answer() -> None:
        go.wait()
        send_and_finish(server, receive_all(server)[::-1])

    spawn(answer)
    reader = spawn(receive_all, client)
    writer = spawn(send_and_finish, client, data)
    settle()
    assert not reader.dead
    assert not writer.dead
    go.set()
    assert digest(reader.get()) == digest(data[::-1])
    writer.get()


def test_nothing_but_the_data_arrives(sides: Pair) -> None:
    one, other = sides
    one.sendall(MARKER)
    assert receive_exactly(other, len(MARKER)) == MARKER
    other.settimeout(0)
    settle()
    with pytest.raises(BlockingIOError):
        other.recv(1)
