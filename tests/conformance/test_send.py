"""Every way to send: what it takes, that the data is the caller's again afterwards, and what it refuses."""

from __future__ import annotations

import array
import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .providers import Pair, Trait
from .tools import Spawn, fill, loosely, pattern, receive_all, receive_exactly, settle

needs = pytest.mark.needs

BUFFERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "writable memoryview": lambda data: memoryview(bytearray(data)),
    "array of bytes": lambda data: array.array("B", data),
    "array of numbers": lambda data: array.array("I", data),
    "memoryview of numbers": lambda data: memoryview(array.array("I", data)),
    "memoryview of two dimensions": lambda data: memoryview(data).cast("B", (4, len(data) // 4)),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_send_takes_any_buffer(sides: Pair, kind: str) -> None:
    """Lengths and results are bytes, whatever the items of the buffer are."""
    one, other = sides
    data = pattern(64)
    buffer = BUFFERS[kind](data)
    assert one.send(buffer) == 64
    one.sendall(buffer)
    assert one.sendmsg([buffer]) == 64
    assert receive_exactly(other, 192) == data * 3


def test_messages_of_every_size_after_each_other(sides: Pair, spawn: Spawn) -> None:
    """The same size again, one byte more or less, and from small ones to large ones and back."""
    one, other = sides
    sizes = [1, 1, 2, 1, 3, 2, 255, 256, 257, 256, 0, 256, 4095, 4096, 4097, 4096, 4095, 16_384, 16_385, 16_384, 7, 65_536, 7, 70_000, 8, 8]
    messages = [pattern(size, seed) for seed, size in enumerate(sizes)]
    spawn(lambda: [one.sendall(message) for message in messages])
    for message in messages:
        assert receive_exactly(other, len(message)) == message


@pytest.mark.parametrize("size", [10, 5000, 60_000])
def test_a_read_only_view_is_the_callers_too(sides: Pair, size: int) -> None:
    """Not even its owner may change the memory through it, but the owner has other ways."""
    one, other = sides
    data = pattern(size)
    buffer = bytearray(data)
    sent = one.send(memoryview(buffer).toreadonly())
    buffer[:] = bytes(size)
    assert receive_exactly(other, sent) == data[:sent]


@pytest.mark.parametrize("size", [10, 5000, 60_000])
def test_a_buffer_is_the_callers_again_after_sending(sides: Pair, spawn: Spawn, size: int) -> None:
    """What the caller writes into it afterwards is not sent, however late the data leaves."""
    one, other = sides
    data = pattern(size)
    buffer = bytearray(data)
    sent = one.send(buffer)
    buffer[:] = bytes(size)
    again = bytearray(data)
    written = one.sendmsg([memoryview(again)])
    again[:] = bytes(size)
    last = bytearray(data)

    def send_last() -> None:
        one.sendall(last)
        last[:] = bytes(size)

    writer = spawn(send_last)
    expected = data[:sent] + data[:written] + data
    assert receive_exactly(other, len(expected)) == expected
    writer.get()


def test_a_view_that_is_released_after_sending(sides: Pair) -> None:
    one, other = sides
    buffer = bytearray(pattern(20_000))
    expected = bytes(buffer)
    with memoryview(buffer) as view:
        one.sendall(view)
    buffer += b"can be resized: nothing holds a view of it"
    assert receive_exactly(other, 20_000) == expected


def test_sending_nothing(sides: Pair) -> None:
    """Neither an error nor an end of file."""
    one, other = sides
    assert one.send(b"") == 0
    assert not loosely(one).sendall(b"")  # gevent.socket returns 0 for it, the C socket None
    assert one.sendmsg([]) == 0
    assert one.sendmsg([b"", b""]) == 0
    one.sendall(b"x")
    assert other.recv(10) == b"x"


def test_send_takes_what_has_room_and_says_how_much(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data = pattern(20_000_000)
    sent = one.send(data)
    assert 0 < sent < len(data)
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == data[:sent]


def test_sendall_returns_nothing(pair: Pair) -> None:
    assert loosely(pair[0]).sendall(b"abc") is None


def test_sendmsg_gathers(sides: Pair) -> None:
    one, other = sides
    parts: list[Any] = [b"one", bytearray(b"two"), memoryview(b"three"), array.array("B", b"four")]
    assert one.sendmsg(parts) == 15
    assert one.sendmsg(iter([b"five", b"six"])) == 7
    assert receive_exactly(other, 22) == b"onetwothreefourfivesix"


def test_sendmsg_of_more_than_has_room(sides: Pair) -> None:
    one, other = sides
    parts = [pattern(100_000, seed) for seed in range(200)]
    sent = one.sendmsg(parts)
    assert 0 < sent < 20_000_000
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == b"".join(parts)[:sent]


@pytest.mark.parametrize("method", ["send", "sendall"])
def test_what_is_no_buffer_is_refused(sides: Pair, method: str) -> None:
    one, other = sides
    call = getattr(loosely(one), method)
    for wrong in ("text", None, 5, [b"list"]):
        with pytest.raises(TypeError):
            call(wrong)
    with pytest.raises(TypeError):
        call()
    with pytest.raises((BufferError, TypeError)):
        call(memoryview(b"every other")[::2])
    one.sendall(b"x")
    assert other.recv(100) == b"x"


def test_sendmsg_of_what_is_no_list_of_buffers(sides: Pair) -> None:
    one, other = sides
    stream = loosely(one)
    for wrong in ("text", 5, None, ["text"], [b"good", 5]):
        with pytest.raises(TypeError):
            stream.sendmsg(wrong)
    one.sendall(b"x")
    assert other.recv(100) == b"x"


def test_an_address_is_ignored(sides: Pair) -> None:
    """As TCP on Linux does: datagram programs that connect pass the peer's address along."""
    one, other = sides
    stream = loosely(one)
    if stream.family == socket.AF_UNIX:
        pytest.skip("sockets of this family refuse it")
    assert stream.sendto(b"a", ("127.0.0.1", 9)) == 1
    assert stream.sendto(b"b", 0, ("127.0.0.1", 9)) == 1
    assert stream.sendmsg([b"c"], [], 0, ("127.0.0.1", 9)) == 1
    for wrong in ((b"x",), (b"x", None), (b"x", 5), (b"x", "flags", ("127.0.0.1", 9))):
        with pytest.raises(TypeError):
            stream.sendto(*wrong)
    with pytest.raises(TypeError):
        stream.sendmsg([b"x"], [], 0, 5)
    assert receive_exactly(other, 3) == b"abc"


def test_sendmsg_of_wrong_ancillary_data(sides: Pair) -> None:
    one, other = sides
    stream = loosely(one)
    for wrong in ([object()], [("level", 0, b"data")], [(0, "type", b"data")], [(0, 0, "text")], [(0, 0)], [(0, 0, b"data", 4)], 5):
        with pytest.raises(TypeError):
            stream.sendmsg([b"x"], wrong)
    with pytest.raises(TypeError):
        stream.sendmsg([b"x"], [], "flags")
    one.sendall(b"x")
    assert other.recv(100) == b"x"


def test_flags_of_nothing_special(sides: Pair) -> None:
    one, other = sides
    assert one.send(b"a", 0) == 1
    one.sendall(b"b", 0)
    assert one.sendmsg([b"c"], [], 0) == 1
    assert receive_exactly(other, 3) == b"abc"


@needs(Trait.STAYS_FULL)
def test_sendmsg_with_dontwait_does_not_wait(sides: Pair) -> None:
    one, other = sides
    filled = fill(one)
    with pytest.raises(BlockingIOError):
        one.sendmsg([bytes(100_000)], [], socket.MSG_DONTWAIT)
    assert one.gettimeout() is None
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == filled


def test_sendfile_sends_a_file(sides: Pair, spawn: Spawn, tmp_path: Path) -> None:
    one, other = sides
    data = pattern(500_003)
    path = tmp_path / "file"
    path.write_bytes(data)

    def send() -> tuple[int, int]:
        with path.open("rb") as file:
            sent = one.sendfile(file)
            one.shutdown(socket.SHUT_WR)
            return sent, file.tell()

    writer = spawn(send)
    assert receive_all(other) == data
    assert writer.get() == (len(data), len(data))


def test_sendfile_sends_a_part(sides: Pair, spawn: Spawn) -> None:
    """And leaves the file's position after what was sent, of any object with read and seek."""
    one, other = sides
    data = pattern(100_000)
    file = io.BytesIO(data)
    writer = spawn(one.sendfile, file, 30_000, 50_000)
    assert receive_exactly(other, 50_000) == data[30_000:80_000]
    assert writer.get() == 50_000
    assert file.tell() == 80_000
    assert one.sendfile(file, 99_990, 1000) == 10
    assert receive_exactly(other, 10) == data[-10:]


def test_sendfile_refuses_wrong_arguments(pair: Pair, tmp_path: Path) -> None:
    stream = loosely(pair[0])
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with path.open() as text, pytest.raises(ValueError):
        stream.sendfile(text)
    with path.open("rb") as file:
        for wrong in (0, -1):
            with pytest.raises(ValueError):
                stream.sendfile(file, 0, wrong)
        with pytest.raises(TypeError):
            stream.sendfile(file, 0, "1")
        stream.setblocking(False)
        with pytest.raises(ValueError):
            stream.sendfile(file)


def test_a_blocked_sendall_leaves_the_buffer_to_the_caller_when_it_ends(sides: Pair, spawn: Spawn) -> None:
    """While a bytearray is being sent it cannot be resized; afterwards it can."""
    one, other = sides
    buffer = bytearray(pattern(6_000_000))
    expected = bytes(buffer)
    writer = spawn(one.sendall, buffer)
    settle()
    assert not writer.dead
    assert receive_exactly(other, len(expected)) == expected
    writer.get()
    buffer += b"x"
