"""Listeners: accepting in order, the backlog, time-outs, closing, and several accepters."""

from __future__ import annotations

import errno
import gc
import socket
import time
from typing import Any

import gevent
import gevent.select
import pytest

from .providers import Listener, Provider, Trait
from .tools import (
    SHORT,
    Spawn,
    assert_errno,
    catch,
    compute,
    give_up_after,
    pattern,
    receive_all,
    receive_exactly,
    send_and_finish,
    settle,
    wait_for_data,
)

needs = pytest.mark.needs
pytestmark = needs(Trait.LISTENER)


def close_all(streams: Any) -> None:
    for stream in streams:
        stream.close()


def test_accept_returns_a_stream_and_its_peers_name(provider: Provider, listener: Listener) -> None:
    with provider.dial(provider.address(listener)) as client:
        server, address = listener.accept()
        with server:
            assert address == client.getsockname() == server.getpeername()
            client.sendall(b"question")
            assert receive_exactly(server, 8) == b"question"
            server.sendall(b"answer")
            assert receive_exactly(client, 6) == b"answer"


def test_an_accepted_stream_has_no_timeout(provider: Provider, listener: Listener) -> None:
    listener.settimeout(5)
    with provider.dial(provider.address(listener)):
        server, _ = listener.accept()
        with server:
            assert server.gettimeout() is None
            assert server.type == socket.SOCK_STREAM


def test_a_dial_does_not_wait_for_accept(provider: Provider, listener: Listener) -> None:
    """What is sent before it is accepted waits, and the end of file too."""
    clients = [provider.dial(provider.address(listener)) for _ in range(5)]
    for number, client in enumerate(clients):
        client.sendall(b"early %d" % number)
    close_all(clients)
    for number in range(5):
        server, _ = listener.accept()
        with server:
            assert receive_all(server) == b"early %d" % number


def test_streams_are_accepted_in_the_order_of_their_dials(provider: Provider, listener: Listener) -> None:
    clients = [provider.dial(provider.address(listener)) for _ in range(20)]
    for number, client in enumerate(clients):
        client.sendall(b"%02d" % number)
    servers = [listener.accept()[0] for _ in clients]
    assert [receive_exactly(server, 2) for server in servers] == [b"%02d" % n for n in range(20)]
    close_all(clients + servers)


def test_accept_waits_for_a_dial(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    accepter = spawn(listener.accept)
    settle()
    assert not accepter.ready()
    with provider.dial(provider.address(listener)) as client:
        server, _ = accepter.get()
        with server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"


def test_bulk_before_accept(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    """More than has room: the writer waits for the accepter to read."""
    data = pattern(1_000_000)
    with provider.dial(provider.address(listener)) as client:
        writer = spawn(send_and_finish, client, data)
        settle()
        assert not writer.ready()
        server, _ = listener.accept()
        with server:
            assert receive_all(server) == data
        writer.get()


def test_accept_times_out(provider: Provider, listener: Listener) -> None:
    listener.settimeout(SHORT)
    assert listener.gettimeout() == SHORT
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.settimeout(0)
    with pytest.raises(BlockingIOError) as caught:
        listener.accept()
    assert caught.value.errno == errno.EAGAIN
    listener.settimeout(None)
    with provider.dial(provider.address(listener)), listener.accept()[0]:
        pass


def test_the_timeout_of_accept_counts_from_the_call(listener: Listener) -> None:
    listener.settimeout(SHORT)
    settle()
    compute(SHORT * 1.5)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        listener.accept()
    assert time.monotonic() - started > SHORT * 0.9


def test_a_timeout_around_accept_loses_no_stream(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    accepted: list[Any] = []
    clients: list[Any] = []

    def dial() -> None:
        for _ in range(40):
            clients.append(provider.dial(provider.address(listener)))

    dialler = spawn(dial)
    waits = 0
    while len(accepted) < 40:
        waits += 1
        with give_up_after(0.0002 * (waits % 5)):
            accepted.append(listener.accept()[0])
    dialler.get()
    names = {stream.getpeername() for stream in accepted}
    if Trait.NAMES not in provider.lacks:
        assert names == {client.getsockname() for client in clients}
    close_all(accepted + clients)


def test_an_accepter_that_is_killed_loses_no_stream(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    """At whatever point of its dial: what it had not got is for the next one."""

    def accept(into: list[Any]) -> None:
        into.append(listener.accept()[0])

    for turns in range(15):
        accepted: list[Any] = []
        accepter = spawn(accept, accepted)
        settle()
        dialler = spawn(provider.dial, provider.address(listener))
        for _ in range(turns):
            gevent.sleep(0)  # one turn of the loop further than the last time
        accepter.kill()
        if not accepted:
            accept(accepted)
        with dialler.get() as client, accepted[0] as server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"


def test_close_wakes_an_accepter(listener: Listener, spawn: Spawn) -> None:
    accepter = spawn(catch, listener.accept)
    settle()
    listener.close()
    assert_errno(accepter.get(), "EBADF")


def test_use_after_close(listener: Listener) -> None:
    listener.close()
    listener.close()
    for call in (listener.accept, listener.getsockname):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_a_dial_after_close_is_refused(provider: Provider, listener: Listener) -> None:
    address = provider.address(listener)
    with provider.dial(address), listener.accept()[0]:
        listener.close()
        settle()
        with pytest.raises(ConnectionRefusedError) as caught:
            provider.dial(address)
        assert caught.value.errno == errno.ECONNREFUSED


def test_accepted_streams_outlive_their_listener(provider: Provider, listener: Listener) -> None:
    with provider.dial(provider.address(listener)) as client:
        server, _ = listener.accept()
        listener.close()
        del listener
        gc.collect()
        with server:
            client.sendall(b"still here")
            assert receive_exactly(server, 10) == b"still here"
            send_and_finish(server, b"me too")
            assert receive_all(client) == b"me too"


def test_streams_in_the_backlog_of_a_closed_listener_are_reset(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    clients = [provider.dial(provider.address(listener)) for _ in range(3)]
    reader = spawn(catch, clients[0].recv, 1)
    settle()
    listener.close()
    assert_errno(reader.get(), "ECONNRESET")
    for client in clients[1:]:
        assert_errno(catch(client.recv, 1), "ECONNRESET")
    close_all(clients)


@needs(Trait.FULL_BACKLOG)
def test_a_full_backlog_refuses_and_takes_again(watched: Provider) -> None:
    """At once, with ECONNREFUSED; an accept makes room for one more."""
    listener = watched.listener(3)
    address = watched.address(listener)
    clients = [watched.dial(address) for _ in range(3)]
    for _ in range(2):
        with gevent.Timeout(2), pytest.raises(ConnectionRefusedError):
            watched.dial(address)
    server, _ = listener.accept()
    clients.append(watched.dial(address))
    with gevent.Timeout(2), pytest.raises(ConnectionRefusedError):
        watched.dial(address)
    clients[0].sendall(b"unharmed")
    assert receive_exactly(server, 8) == b"unharmed"
    servers = [server] + [listener.accept()[0] for _ in range(3)]
    for client, accepted in zip(clients, servers):
        assert accepted.getpeername() == client.getsockname()
    listener.close()
    close_all(clients + servers)


@needs(Trait.MANY_ACCEPTERS)
def test_many_accepters_get_each_stream_once(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    accepters = [spawn(listener.accept) for _ in range(10)]
    settle()
    clients = [provider.dial(provider.address(listener)) for _ in range(10)]
    servers = [accepter.get()[0] for accepter in accepters]
    assert {server.getpeername() for server in servers} == {client.getsockname() for client in clients}
    close_all(clients + servers)


@needs(Trait.MANY_ACCEPTERS)
def test_close_wakes_all_accepters(listener: Listener, spawn: Spawn) -> None:
    accepters = [spawn(catch, listener.accept) for _ in range(5)]
    settle()
    listener.close()
    for accepter in accepters:
        assert_errno(accepter.get(), "EBADF")


@needs(Trait.MANY_ACCEPTERS)
def test_a_killed_accepter_among_many_takes_no_stream_with_it(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    """The stream that was to wake it wakes the next one."""
    accepters = [spawn(listener.accept) for _ in range(3)]
    settle()
    clients = [provider.dial(provider.address(listener)) for _ in range(2)]
    accepters[0].kill()
    clients.append(provider.dial(provider.address(listener)))
    # The first one may have got its stream before it was killed: then that one is its own business.
    ready = [accepter for accepter in accepters if isinstance(accepter.get(), tuple)]
    servers = [accepter.get()[0] for accepter in ready]
    while len(servers) < 3:
        servers.append(listener.accept()[0])
    assert len({server.getpeername() for server in servers}) == 3
    close_all(clients + servers)


@needs(Trait.ITERATION)
def test_iteration_accepts_until_the_listener_is_closed(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    served = []

    def serve() -> None:
        for server, address in listener:
            with server:
                served.append(address)
                server.sendall(b"served")

    loop = spawn(serve)
    names = []
    for _ in range(3):
        with provider.dial(provider.address(listener)) as client:
            names.append(client.getsockname())
            assert receive_all(client) == b"served"
    listener.close()
    loop.get()
    assert served == names


def test_a_listener_is_a_context_manager(watched: Provider) -> None:
    with watched.listener() as listener:
        address = watched.address(listener)
        with watched.dial(address), listener.accept()[0]:
            pass
    with pytest.raises(ConnectionRefusedError):
        watched.dial(address)


def test_two_listeners_do_not_share_streams(watched: Provider) -> None:
    with watched.listener() as one, watched.listener() as other:
        assert one.getsockname() != other.getsockname()
        with watched.dial(watched.address(one)) as first, watched.dial(watched.address(other)) as second:
            first.sendall(b"for one")
            second.sendall(b"for other")
            with one.accept()[0] as server:
                assert receive_exactly(server, 7) == b"for one"
            with other.accept()[0] as server:
                assert receive_exactly(server, 9) == b"for other"


def test_a_listener_polls_as_readable_when_a_stream_waits(provider: Provider, listener: Listener) -> None:
    assert gevent.select.select([listener], [], [], 0)[0] == []
    with provider.dial(provider.address(listener)):
        assert gevent.select.select([listener], [], [])[0] == [listener]
        with listener.accept()[0]:
            assert gevent.select.select([listener], [], [], 0)[0] == []


def test_a_client_that_is_reset_before_accept(provider: Provider, listener: Listener) -> None:
    """It costs the listener nothing but that stream."""
    early = provider.dial(provider.address(listener))
    early.sendall(b"x")
    early.close()
    with provider.dial(provider.address(listener)) as client:
        client.sendall(b"later")
        first, _ = listener.accept()
        with first:
            wait_for_data(first)
            assert receive_all(first) == b"x"
        second, _ = listener.accept()
        with second:
            assert receive_exactly(second, 5) == b"later"


def test_a_dial_that_is_killed_leaves_nothing_behind(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    """At whatever point: the accepter gets nothing, or a stream that has ended."""
    address = provider.address(listener)
    for turns in range(12):
        dialler = spawn(catch, provider.dial, address)
        for _ in range(turns):
            gevent.sleep(0)  # one turn of the loop further than the last time
        dialler.kill()
        outcome: Any = dialler.value
        if not isinstance(outcome, gevent.GreenletExit):
            outcome.close()
    last = provider.dial(address)
    last.sendall(b"last")
    accepted = 0
    data = b""
    while data != b"last":
        server, _ = listener.accept()
        with server:
            data = catch(server.recv, 4)
            if isinstance(data, OSError):
                assert_errno(data, "ECONNRESET")
        accepted += 1
    assert accepted <= 13
    last.close()


def test_many_dials_at_once(provider: Provider, listener: Listener, spawn: Spawn) -> None:
    address = provider.address(listener)

    def ask(number: int) -> bytes:
        with provider.dial(address) as client:
            send_and_finish(client, b"%d" % number)
            return receive_all(client)

    def serve() -> None:
        while True:
            server, _ = listener.accept()
            spawn(answer, server)

    def answer(server: Any) -> None:
        with server:
            server.sendall(receive_all(server) * 2)

    spawn(serve)
    asking = [spawn(ask, number) for number in range(50)]
    assert [asker.get() for asker in asking] == [b"%d" % n * 2 for n in range(50)]
