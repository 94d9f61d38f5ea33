"""The end of a stream: half-close, shutdown, close, reset, and what each side may still do."""

from __future__ import annotations

import errno
import gc
import socket
import struct
import time
from typing import Any

import gevent
import gevent.select
import pytest

from .providers import Pair, Provider, Stream, Trait
from .tools import (
    GONE,
    RECEIVERS,
    Spawn,
    assert_errno,
    catch,
    fill,
    pattern,
    receive_all,
    receive_exactly,
    receive_until_error,
    send_and_finish,
    settle,
    wait_for_data,
)

needs = pytest.mark.needs

LINGER_NOT = struct.pack("ii", 1, 0)


def reset(stream: Stream) -> None:
    """Close so that the peer gets a reset although nothing is unread."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    stream.close()


def close_with_unread_data(stream: Stream, peer: Stream) -> None:
    """Close while something waits that nobody has read."""
    peer.sendall(b"never read")
    wait_for_data(stream)
    stream.close()


def write_until_it_fails(stream: Stream) -> OSError:
    """The error that writing runs into. Waits in between as soon as the stream's window is full."""
    try:
        for _ in range(4000):
            stream.sendall(bytes(16384))
    except OSError as error:
        return error
    raise AssertionError("writing to a peer that is gone does not fail")


# Half-close


def test_the_other_direction_stays_open(sides: Pair) -> None:
    one, other = sides
    send_and_finish(one, b"question")
    assert receive_all(other) == b"question"
    for number in range(50):
        answer = pattern(2000, number)
        other.sendall(answer)
        assert receive_exactly(one, 2000) == answer
    other.shutdown(socket.SHUT_WR)
    assert receive_all(one) == b""


def test_bulk_over_the_half_that_is_open(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    data = pattern(3_000_001)
    writer = spawn(send_and_finish, other, data)
    assert receive_all(one) == data
    writer.get()


def test_a_half_close_wakes_a_reader(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    reader = spawn(other.recv, 10)
    settle()
    one.shutdown(socket.SHUT_WR)
    assert reader.get() == b""


def test_a_half_close_does_not_wake_the_closers_own_reader(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    reader = spawn(one.recv, 10)
    settle()
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == b""
    assert not reader.ready()
    other.sendall(b"still open")
    assert reader.get() == b"still open"


def test_writing_after_ones_own_shutdown(sides: Pair) -> None:
    one, other = sides
    one.shutdown(socket.SHUT_WR)
    for call in (
        lambda: one.send(b"x"),
        lambda: one.sendall(b"x"),
        lambda: one.sendmsg([b"x"]),
    ):
        with pytest.raises(BrokenPipeError) as caught:
            call()
        assert caught.value.errno == errno.EPIPE
    assert receive_all(other) == b""


def test_writing_after_ones_own_shutdown_to_a_peer_that_closed(sides: Pair) -> None:
    """The one write that a closed peer does not notice is not for who has shut down."""
    one, other = sides
    one.close()
    assert other.recv(1) == b""
    other.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        other.send(b"x")


def test_a_shutdown_comes_after_the_data(sides: Pair) -> None:
    """Also when the data had no room yet where it goes."""
    one, other = sides
    filled = fill(one)
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == filled


def test_both_halves_closed_by_their_writers(sides: Pair) -> None:
    one, other = sides
    send_and_finish(one, b"one")
    send_and_finish(other, b"other")
    assert receive_all(one) == b"other"
    assert receive_all(other) == b"one"


def test_shutdown_twice(sides: Pair) -> None:
    one, other = sides
    one.shutdown(socket.SHUT_WR)
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    other.sendall(b"still open")
    assert receive_exactly(one, 10) == b"still open"
    one.shutdown(socket.SHUT_RDWR)
    one.shutdown(socket.SHUT_RDWR)
    assert one.recv(1) == b""


def test_shutdown_of_both_directions(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"last")
    one.shutdown(socket.SHUT_RDWR)
    assert receive_all(other) == b"last"
    assert one.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        one.send(b"x")
    assert one.fileno() >= 0


def test_shutdown_of_reading(sides: Pair) -> None:
    """Ends one's own reads; writing goes on."""
    one, other = sides
    one.shutdown(socket.SHUT_RD)
    assert one.recv(1) == b""
    one.sendall(b"x")
    assert other.recv(1) == b"x"


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_shutdown_of_reading_wakes_a_reader(provider: Provider, sides: Pair, spawn: Spawn, how: int) -> None:
    one = sides[0]
    reader = spawn(catch, one.recv, 1)
    settle()
    one.shutdown(how)
    result = reader.get()
    if Trait.QUIET_SHUTDOWN in provider.lacks:
        assert_errno(result, "EBADF")
    else:
        assert result == b""


def test_shutdown_of_what_does_not_exist(pair: Pair) -> None:
    stream = pair[0]
    with pytest.raises(OSError) as caught:
        stream.shutdown(99)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(TypeError):
        stream.shutdown("both")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        stream.shutdown()  # type: ignore[call-arg]
    stream.sendall(b"x")
    assert pair[1].recv(1) == b"x"


def test_shutdown_frees_a_writer_that_waits(sides: Pair, spawn: Spawn) -> None:
    """It cannot go on: what it had not handed over is not sent any more."""
    one, other = sides
    data = fill(one) + pattern(300_000, 1)
    writer = spawn(catch, one.sendall, data[-300_000:])
    settle()
    one.shutdown(socket.SHUT_WR)
    error = writer.get()
    assert_errno(error, "EPIPE", "EBADF")
    received = receive_all(other)
    assert len(data) - 300_000 <= len(received) < len(data)
    assert data.startswith(received)


# Close


def test_close_is_an_end_of_file_for_the_peer(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"last")
    one.close()
    assert receive_all(other) == b"last"
    assert other.recv(1) == b""


def test_close_wakes_the_peers_reader(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    reader = spawn(other.recv, 1)
    settle()
    one.close()
    assert reader.get() == b""


def test_a_late_reader_reads_everything(watched: Provider, sides: Pair) -> None:
    """Also when the writer is gone, and much has happened since."""
    one, other = sides
    filled = fill(one)
    one.close()
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        client, server = watched.connect_pair()
        with client, server:
            client.sendall(b"meanwhile")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(server) == b"meanwhile"
    gc.collect()
    settle()
    assert receive_all(other) == filled


def test_bulk_before_close_is_all_delivered(sides: Pair, spawn: Spawn) -> None:
    """Close returns at once; what was taken before it goes out for as long as the reader takes."""
    one, other = sides
    data = pattern(2_000_001)

    def write() -> None:
        one.sendall(data)
        one.close()

    writer = spawn(write)
    received = receive_exactly(other, 1000)
    settle()
    assert received + receive_all(other) == data
    writer.get()


@pytest.mark.parametrize("method", RECEIVERS)
def test_close_wakes_ones_own_reader(sides: Pair, spawn: Spawn, method: str) -> None:
    one = sides[0]
    reader = spawn(catch, RECEIVERS[method], one)
    settle()
    one.close()
    assert_errno(reader.get(), "EBADF")


def test_close_wakes_ones_own_writer(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data = fill(one) + pattern(300_000, 1)
    writer = spawn(catch, one.sendall, data[-300_000:])
    settle()
    assert not writer.ready()
    one.close()
    assert_errno(writer.get(), "EBADF")
    received = receive_all(other)
    assert len(data) - 300_000 <= len(received) < len(data)
    assert data.startswith(received)


def test_close_wakes_a_reader_and_a_writer(sides: Pair, spawn: Spawn) -> None:
    one = sides[0]
    fill(one)
    waiting = [spawn(catch, one.sendall, bytes(200_000)), spawn(catch, one.recv, 1)]
    settle()
    one.close()
    for greenlet in waiting:
        assert_errno(greenlet.get(), "EBADF")


def test_close_twice(sides: Pair) -> None:
    one, other = sides
    one.close()
    one.close()
    assert other.recv(1) == b""


def test_use_after_close(sides: Pair) -> None:
    one = sides[0]
    one.sendall(b"x")
    one.close()
    for call in (
        lambda: one.recv(1),
        lambda: one.recv_into(bytearray(1)),
        lambda: one.recvfrom(1),
        lambda: one.recvmsg(1),
        lambda: one.recv(1, socket.MSG_PEEK),
        lambda: one.send(b"x"),
        lambda: one.sendall(b"x"),
        lambda: one.sendmsg([b"x"]),
        lambda: one.shutdown(socket.SHUT_WR),
        one.getpeername,
        one.getsockname,
        lambda: one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
        lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF
    assert one.fileno() == -1


def test_a_context_manager_closes(sides: Pair) -> None:
    one, other = sides
    with one as entered:
        assert entered is one
        one.sendall(b"x")
    assert receive_all(other) == b"x"
    assert_errno(catch(one.recv, 1), "EBADF")


def test_a_context_manager_closes_after_an_error(sides: Pair) -> None:
    one, other = sides
    with pytest.raises(ZeroDivisionError), one:
        raise ZeroDivisionError
    assert other.recv(1) == b""
    assert one.fileno() == -1


@needs(Trait.WRITE_AFTER_CLOSE)
def test_the_first_write_after_the_peers_close_succeeds(sides: Pair) -> None:
    one, other = sides
    one.close()
    assert other.recv(1) == b""
    assert other.send(b"into the void") == 13


def test_writing_to_a_peer_that_closed_fails_soon(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    one.close()
    assert other.recv(1) == b""
    writer = spawn(write_until_it_fails, other)
    assert_errno(writer.get(), "EPIPE", "ECONNRESET")
    with pytest.raises(GONE):
        other.sendall(b"x")
    assert other.recv(1) == b""


def test_what_a_closed_peer_sent_stays_readable_after_a_failed_write(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    one.sendall(b"farewell")
    one.close()
    wait_for_data(other, 8)
    assert_errno(spawn(write_until_it_fails, other).get(), "EPIPE", "ECONNRESET")
    assert receive_exactly(other, 8) == b"farewell"


# Reset


def test_close_with_unread_data_resets_the_peer(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"before")
    wait_for_data(other, 6)
    close_with_unread_data(one, other)
    received, error = receive_until_error(other)
    assert received == b"before"
    assert type(error).__mro__.index(ConnectionResetError) >= 0
    assert_errno(error, "ECONNRESET")


def _data_at_a_blocked_writer(one: Any, other: Any, spawn: Spawn) -> tuple[bytes, Any]:
    """Bytes that have arrived at ``other`` while it cannot write on, and the greenlet that tries to."""
    data = pattern(20_000)
    one.sendall(data)
    wait_for_data(other, len(data))
    fill(other)
    writer = spawn(catch, other.sendall, bytes(200_000))
    settle()
    return data, writer


def test_what_arrived_before_a_close_with_unread_data_is_readable(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data, writer = _data_at_a_blocked_writer(one, other, spawn)
    one.close()
    assert_errno(writer.get(), "ECONNRESET", "EPIPE")
    assert receive_exactly(other, len(data)) == data


def test_close_with_unread_data_wakes_the_peers_reader(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    other.sendall(b"never read")
    wait_for_data(one)
    reader = spawn(catch, other.recv, 1)
    settle()
    one.close()
    assert_errno(reader.get(), "ECONNRESET")


def test_close_with_unread_data_wakes_the_peers_writer(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    fill(other)
    writer = spawn(catch, other.sendall, bytes(200_000))
    settle()
    one.close()
    assert_errno(writer.get(), "ECONNRESET", "EPIPE")


def test_close_with_a_part_unread_is_a_reset_too(sides: Pair) -> None:
    one, other = sides
    other.sendall(b"half of it")
    assert receive_exactly(one, 9) == b"half of i"
    wait_for_data(one)
    one.close()
    received, error = receive_until_error(other)
    assert received == b""
    assert_errno(error, "ECONNRESET")


def test_close_with_everything_read_is_no_reset(sides: Pair) -> None:
    one, other = sides
    other.sendall(b"all of it")
    assert receive_exactly(one, 9) == b"all of it"
    one.close()
    assert other.recv(1) == b""


def test_close_with_the_end_of_file_unread_is_no_reset(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    other.shutdown(socket.SHUT_WR)
    assert one.recv(1, socket.MSG_PEEK) == b""
    one.sendall(b"last")
    one.close()
    assert receive_all(other) == b"last"


@needs(Trait.LINGER)
def test_linger_with_no_time_makes_close_a_reset(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    reader = spawn(catch, other.recv, 1)
    settle()
    reset(one)
    assert_errno(reader.get(), "ECONNRESET")


@needs(Trait.LINGER)
def test_what_arrived_before_a_reset_is_readable(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    data, writer = _data_at_a_blocked_writer(one, other, spawn)
    reset(one)
    # When the writer knows of the reset, it has arrived: only then the reader begins.
    assert_errno(writer.get(), "ECONNRESET", "EPIPE")
    assert receive_exactly(other, len(data)) == data


@needs(Trait.LINGER)
def test_a_reset_after_a_half_close_wakes_the_half_that_was_open(sides: Pair, spawn: Spawn) -> None:
    one, other = sides
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    fill(other)
    writer = spawn(catch, other.sendall, bytes(200_000))
    settle()
    reset(one)
    assert_errno(writer.get(), "ECONNRESET", "EPIPE")


def test_linger_that_is_switched_off_is_no_reset(sides: Pair) -> None:
    one, other = sides
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    one.sendall(b"last")
    one.close()
    assert receive_all(other) == b"last"


def test_after_a_reset(sides: Pair) -> None:
    """Reading fails or ends, writing fails, closing works."""
    one, other = sides
    close_with_unread_data(one, other)
    _, error = receive_until_error(other)
    assert_errno(error, "ECONNRESET")
    result = catch(other.recv, 1)
    if result != b"":
        assert_errno(result, "ECONNRESET")
    for _ in range(2):
        with pytest.raises(GONE):
            other.send(b"x")
    result = catch(other.shutdown, socket.SHUT_RDWR)
    if result is not None:
        assert_errno(result, "ENOTCONN")
    other.close()
    assert other.fileno() == -1


def test_the_error_of_a_reset_is_read_once_from_the_option(sides: Pair) -> None:
    one, other = sides
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    close_with_unread_data(one, other)
    assert gevent.select.select([other], [], [])[0] == [other]
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_both_ends_close_at_once(watched: Provider) -> None:
    for unread in (False, True):
        client, server = watched.connect_pair()
        if unread:
            client.sendall(b"x")
            server.sendall(b"x")
        client.close()
        server.close()
        assert client.fileno() == server.fileno() == -1


def test_a_reset_of_one_stream_leaves_others_alone(watched: Provider, pair: Pair) -> None:
    client, server = watched.connect_pair()
    with client, server:
        close_with_unread_data(server, client)
        pair[0].sendall(b"alive")
        assert receive_exactly(pair[1], 5) == b"alive"
        assert_errno(receive_until_error(client)[1], "ECONNRESET")
