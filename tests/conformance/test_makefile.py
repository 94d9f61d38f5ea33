"""Streams as files: text and bytes, with and without buffers, and who closes what when."""

from __future__ import annotations

import io
import socket

import pytest

from .providers import Pair
from .tools import (
    SHORT,
    Spawn,
    assert_errno,
    catch,
    loosely,
    pattern,
    receive_all,
    receive_exactly,
    send_and_finish,
    settle,
)


def test_reading_bytes(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data = pattern(300_000)
    writer = spawn(send_and_finish, one, data)
    with other.makefile("rb") as file:
        assert file.read(5) == data[:5]
        assert file.read(200_000) == data[5:200_005]
        assert file.read() == data[200_005:]
        assert file.read() == b""
    writer.get()


def test_reading_lines(sides: Pair) -> None:
    one, other = sides
    send_and_finish(one, b"one\ntwo\n\nno end")
    with other.makefile("rb") as file:
        assert file.readline() == b"one\n"
        assert list(file) == [b"two\n", b"\n", b"no end"]


def test_a_line_is_returned_as_soon_as_it_is_complete(sides: Pair) -> None:
    one, other = sides
    with one.makefile("wb") as out, other.makefile("rb") as file:
        for number in range(20):
            out.write(b"line %d\n" % number)
            out.flush()
            assert file.readline() == b"line %d\n" % number


def test_writing_bytes(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data = pattern(300_000)

    def write() -> None:
        with one.makefile("wb") as file:
            for start in range(0, len(data), 999):
                file.write(data[start : start + 999])
        one.shutdown(socket.SHUT_WR)

    writer = spawn(write)
    assert receive_all(other) == data
    writer.get()


def test_a_buffer_holds_back_until_flush(sides: Pair) -> None:
    one, other = sides
    file = one.makefile("wb", buffering=1000)
    file.write(b"held back")
    other.settimeout(SHORT)
    with pytest.raises(TimeoutError):
        other.recv(1)
    other.settimeout(None)
    file.flush()
    assert receive_exactly(other, 9) == b"held back"
    file.close()


def test_text_in_any_encoding(sides: Pair) -> None:
    one, other = sides
    with (
        one.makefile("w", encoding="utf-16-le", newline="") as out,
        other.makefile("r", encoding="utf-16-le", newline="") as file,
    ):
        out.write("grüße\r\nzweite")
        out.flush()
        assert file.readline() == "grüße\r\n"
        out.close()
        one.shutdown(socket.SHUT_WR)
        assert file.read() == "zweite"


def test_text_with_translated_lines(sides: Pair) -> None:
    one, other = sides
    send_and_finish(one, b"one\r\ntwo\rthree\n\xff")
    with other.makefile(encoding="ascii", errors="replace") as file:
        assert isinstance(file, io.TextIOWrapper)
        assert file.mode == "r"
        assert list(file) == ["one\n", "two\n", "three\n", "\ufffd"]


def test_reading_and_writing_one_file(sides: Pair) -> None:
    one, other = sides
    with one.makefile("rwb") as file:
        file.write(b"question\n")
        file.flush()
        assert receive_exactly(other, 9) == b"question\n"
        other.sendall(b"answer\n")
        assert file.readline() == b"answer\n"
    with other.makefile("rw", encoding="utf-8", newline="\n") as text:
        text.write("frage\n")
        text.flush()
        assert receive_exactly(one, 6) == b"frage\n"
        one.sendall(b"antwort\n")
        assert text.readline() == "antwort\n"


def test_without_a_buffer(sides: Pair) -> None:
    one, other = sides
    with one.makefile("wb", buffering=0) as out, other.makefile("rb", buffering=0) as file:
        assert isinstance(file, io.RawIOBase)
        assert out.writable()
        assert file.readable()
        assert out.write(b"abc") == 3
        buffer = bytearray(10)
        assert file.readinto(buffer) == 3
        assert buffer[:3] == b"abc"
        one.shutdown(socket.SHUT_WR)
        assert file.read(10) == b""


# A file that is only half made when its mode is refused must not fail in its finaliser.
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_modes_that_are_refused(pair: Pair) -> None:
    stream = loosely(pair[0])
    for mode in ("x", "a", "r+", "rU", "rbt"):
        with pytest.raises(ValueError):
            stream.makefile(mode)
    with pytest.raises(ValueError):
        stream.makefile("r", buffering=0)
    stream.sendall(b"x")
    stream.close()
    assert receive_all(pair[1]) == b"x"


def test_a_file_keeps_the_stream_open(sides: Pair) -> None:
    """Until the file is closed too; only then the peer sees the end."""
    one, other = sides
    file = one.makefile("rwb")
    one.close()
    file.write(b"still open")
    file.flush()
    assert receive_exactly(other, 10) == b"still open"
    other.sendall(b"both ways")
    assert file.read(9) == b"both ways"
    file.close()
    assert other.recv(1) == b""


def test_the_last_of_several_files_closes_the_stream(sides: Pair) -> None:
    one, other = sides
    reader, writer = one.makefile("rb"), one.makefile("wb")
    one.close()
    reader.close()
    reader.close()
    raw = one.makefile("rb", buffering=0)
    raw.close()
    raw.close()
    writer.write(b"not yet")
    writer.flush()
    assert receive_exactly(other, 7) == b"not yet"
    writer.write(b"last")
    writer.close()
    assert receive_all(other) == b"last"
    assert one.fileno() == -1


def test_closing_a_file_leaves_the_stream_open(sides: Pair) -> None:
    one, other = sides
    one.makefile("rb").close()
    with one.makefile("wb") as file:
        file.write(b"flushed by close")
    one.sendall(b", and on")
    assert receive_exactly(other, 24) == b"flushed by close, and on"


def test_a_closed_file_refuses_use(pair: Pair) -> None:
    file = pair[0].makefile("rb")
    file.close()
    assert file.closed
    with pytest.raises(ValueError):
        file.read(1)


def test_a_timeout_while_reading_a_file(sides: Pair) -> None:
    """It is raised as it is; the stream itself goes on."""
    one, other = sides
    other.settimeout(SHORT)
    with other.makefile("rb") as file, pytest.raises(TimeoutError):
        file.read(1)
    other.settimeout(None)
    one.sendall(b"late")
    assert receive_exactly(other, 4) == b"late"


def test_a_file_without_blocking(sides: Pair) -> None:
    """As raw files do: None when there is nothing."""
    one, other = sides
    other.setblocking(False)
    with other.makefile("rb", buffering=0) as file:
        assert file.readinto(bytearray(1)) is None
        one.sendall(b"x")
        other.setblocking(True)
        buffer = bytearray(1)
        assert file.readinto(buffer) == 1


def test_files_in_two_greenlets(sides: Pair, spawn: Spawn) -> None:
    """The usual server: one greenlet reads lines, another writes them."""
    one, other = sides
    lines = [b"%d: %s\n" % (number, pattern(number % 90, number).hex().encode()) for number in range(900)]

    def answer() -> None:
        with other.makefile("rb") as source, other.makefile("wb") as out:
            for line in source:
                out.write(line.upper())
        other.close()

    def ask() -> None:
        with one.makefile("wb", buffering=100) as out:
            out.writelines(lines)
        one.shutdown(socket.SHUT_WR)

    greenlets = [spawn(answer), spawn(ask)]
    with one.makefile("rb") as file:
        assert list(file) == [line.upper() for line in lines]
    for greenlet in greenlets:
        greenlet.get()


def test_close_of_the_stream_does_not_wake_a_reader_of_its_file(sides: Pair, spawn: Spawn) -> None:
    """The file still has it open, so that data can come."""
    one, other = sides
    file = other.makefile("rb")
    reader = spawn(catch, file.read, 4)
    settle()
    other.close()
    settle()
    assert not reader.ready()
    one.sendall(b"data")
    assert reader.get() == b"data"
    file.close()
    assert_errno(catch(other.recv, 1), "EBADF")
