"""What a stream says about itself: names, options, family, and a descriptor that can be polled."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

import gevent
import gevent.select
import pytest

from .providers import Pair, Provider, Stream, Trait
from .tools import (
    Spawn,
    assert_errno,
    catch,
    fill,
    loosely,
    receive_all,
    receive_exactly,
    send_and_finish,
    settle,
    wait_for_data,
)

needs = pytest.mark.needs


# Names


def test_each_end_has_the_name_its_peer_sees(pair: Pair) -> None:
    client, server = pair
    assert client.getpeername() == server.getsockname()
    assert server.getpeername() == client.getsockname()


@needs(Trait.NAMES)
def test_names_are_pairs_with_a_port(pair: Pair) -> None:
    """Some clients print the port, and take 0 for 'not connected'."""
    for stream in pair:
        for name in (stream.getsockname(), stream.getpeername()):
            assert type(name) is tuple
            assert len(name) == 2
            assert isinstance(name[1], int)
            assert 0 < name[1] < 2**32


@needs(Trait.NAMES)
def test_every_stream_has_a_name_of_its_own(watched: Provider) -> None:
    pairs = [watched.connect_pair() for _ in range(10)]
    assert len({client.getsockname() for client, _ in pairs}) == len(pairs)
    for client, server in pairs:
        client.close()
        server.close()


def test_names_stay_after_the_peer_closed(sides: Pair) -> None:
    one, other = sides
    names = other.getsockname(), other.getpeername()
    one.close()
    assert other.recv(1) == b""
    assert (other.getsockname(), other.getpeername()) == names


def test_family_type_and_protocol(pair: Pair) -> None:
    for stream in pair:
        assert stream.type == socket.SOCK_STREAM
        assert isinstance(stream.family, int)
        assert isinstance(stream.proto, int)
        stream.setblocking(False)
        assert stream.type & socket.SOCK_STREAM


def test_a_stream_has_a_representation(pair: Pair) -> None:
    stream = pair[0]
    assert "closed" not in repr(stream).lower()
    stream.close()
    assert "closed" in repr(stream).lower()


# Options


def test_options_that_are_always_answered(pair: Pair) -> None:
    for stream in pair:
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 0
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 0


def test_options_as_bytes(pair: Pair) -> None:
    stream = pair[0]
    answer = stream.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 4)
    assert answer == struct.pack("i", socket.SOCK_STREAM)
    linger = struct.pack("ii", 1, 7)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == linger


@pytest.mark.parametrize("option", ["SO_KEEPALIVE", "SO_REUSEADDR", "SO_OOBINLINE"])
def test_switches_that_were_set_are_read(pair: Pair, option: str) -> None:
    stream, other = pair
    number = getattr(socket, option)
    assert stream.getsockopt(socket.SOL_SOCKET, number) in (0, 1)
    stream.setsockopt(socket.SOL_SOCKET, number, 1)
    assert stream.getsockopt(socket.SOL_SOCKET, number) == 1
    stream.setsockopt(socket.SOL_SOCKET, number, 0)
    assert stream.getsockopt(socket.SOL_SOCKET, number) == 0
    stream.sendall(b"x")
    assert other.recv(1) == b"x"


@needs(Trait.TCP_OPTIONS)
def test_the_options_of_tcp(pair: Pair) -> None:
    stream = pair[0]
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
        if hasattr(socket, option):
            number = getattr(socket, option)
            stream.setsockopt(socket.IPPROTO_TCP, number, 42)
            assert stream.getsockopt(socket.IPPROTO_TCP, number) == 42


def test_options_that_do_not_exist(pair: Pair) -> None:
    stream, other = pair
    for call in (
        lambda: stream.getsockopt(socket.SOL_SOCKET, 9999),
        lambda: stream.setsockopt(socket.SOL_SOCKET, 9999, 1),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENOPROTOOPT
    for call in (
        lambda: stream.getsockopt(7777, 1),
        lambda: stream.setsockopt(7777, 1, 1),
    ):
        assert_errno(catch(call), "ENOPROTOOPT", "EOPNOTSUPP")
    stream.sendall(b"x")
    assert other.recv(1) == b"x"


def test_arguments_that_are_no_options(pair: Pair) -> None:
    stream = loosely(pair[0])
    for wrong_to_get in ((), (1,), ("a", "b"), (None, 1), (1, 2, 3, 4)):
        with pytest.raises(TypeError):
            stream.getsockopt(*wrong_to_get)
    for wrong_to_set in ((), (1,), (1, 2), ("a", 1, 1), (1, 2, "text"), (1, 2, 1.5)):
        with pytest.raises(TypeError):
            stream.setsockopt(*wrong_to_set)


# Descriptor


def readable(stream: Stream) -> bool:
    """Whether a poll calls it readable now."""
    return bool(gevent.select.select([stream], [], [], 0)[0])


def test_a_descriptor_with_a_number_that_stays(pair: Pair) -> None:
    for stream in pair:
        number = stream.fileno()
        assert isinstance(number, int)
        os.fstat(number)
        assert stream.fileno() == number
    assert pair[0].fileno() != pair[1].fileno()


def test_a_descriptor_is_gone_after_close(sides: Pair) -> None:
    one = sides[0]
    number = one.fileno()
    one.close()
    assert one.fileno() == -1
    settle()
    with pytest.raises(OSError):
        os.fstat(number)


def test_readable_while_data_waits(sides: Pair) -> None:
    one, other = sides
    assert not readable(other)
    for _ in range(3):
        one.sendall(b"data")
        assert gevent.select.select([other], [], []) == ([other], [], [])
        wait_for_data(other, 4)
        assert readable(other)
        assert other.recv(3) == b"dat"
        assert readable(other)
        assert other.recv(3) == b"a"
        assert not readable(other)


def test_readable_when_data_came_before_the_first_poll(sides: Pair) -> None:
    one, other = sides
    one.sendall(b"data")
    wait_for_data(other, 4)
    assert readable(other)
    assert other.recv(4) == b"data"
    assert not readable(other)


def test_readable_at_the_end_of_file_for_ever(sides: Pair) -> None:
    one, other = sides
    assert not readable(other)
    send_and_finish(one, b"last")
    assert gevent.select.select([other], [], [])[0] == [other]
    assert receive_all(other) == b"last"
    assert readable(other)
    assert other.recv(1) == b""
    assert readable(other)


def test_readable_at_the_end_of_file_that_came_before_the_first_poll(sides: Pair) -> None:
    one, other = sides
    one.close()
    assert other.recv(1) == b""
    assert readable(other)


def test_readable_after_a_reset(sides: Pair) -> None:
    one, other = sides
    other.sendall(b"never read")
    wait_for_data(one)
    assert not readable(other)
    one.close()
    assert gevent.select.select([other], [], [])[0] == [other]
    assert_errno(catch(other.recv, 1), "ECONNRESET")


def test_a_poll_times_out(sides: Pair) -> None:
    one, other = sides
    assert gevent.select.select([other], [], [], 0.005) == ([], [], [])
    one.sendall(b"x")
    assert other.recv(1) == b"x"
    assert gevent.select.select([other], [], [], 0.005) == ([], [], [])


def test_writable_as_long_as_it_has_room(sides: Pair) -> None:
    one = sides[0]
    assert gevent.select.select([], [one], [], 0) == ([], [one], [])


def test_polling_by_number(sides: Pair) -> None:
    """With the poll object of gevent and with the system's own."""
    one, other = sides
    number = other.fileno()
    poller = gevent.select.poll()
    poller.register(number, select.POLLIN)
    assert poller.poll(0) == []
    send_and_finish(one, b"x")
    [(found, events)] = poller.poll(10_000)
    assert found == number
    assert events & select.POLLIN
    assert number in select.select([number], [], [], 0)[0]
    assert receive_all(other) == b"x"


def test_polling_while_another_greenlet_sends(sides: Pair, spawn: Spawn) -> None:
    """A loop around select reads everything."""
    one, other = sides
    writer = spawn(send_and_finish, one, bytes(500_000))
    other.setblocking(False)
    count = 0
    while True:
        gevent.select.select([other], [], [])
        try:
            part = other.recv(10_000)
        except BlockingIOError:
            continue
        if not part:
            break
        count += len(part)
    assert count == 500_000
    writer.get()


def test_a_descriptor_does_not_change_the_stream(sides: Pair) -> None:
    """All the rest works as before after fileno() was asked for."""
    one, other = sides
    assert one.fileno() != other.fileno()
    filled = fill(one)
    one.shutdown(socket.SHUT_WR)
    assert receive_all(other) == filled
    other.sendall(b"x")
    assert receive_exactly(one, 1) == b"x"


@needs(Trait.DETACH)
def test_detach_gives_the_connection_away(sides: Pair) -> None:
    """As a descriptor that anything can read and write; the stream itself is closed."""
    one, other = sides
    other.sendall(b"before")
    wait_for_data(one, 6)
    number = one.detach()
    assert one.fileno() == -1
    assert_errno(catch(one.recv, 1), "EBADF")
    with gevent.socket.socket(fileno=number) as adopted:
        assert receive_exactly(adopted, 6) == b"before"
        adopted.sendall(b"question")
        assert receive_exactly(other, 8) == b"question"
        other.sendall(b"answer")
        assert receive_exactly(adopted, 6) == b"answer"
        adopted.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
    other.close()
