"""Libraries that dial in C: they fail at once and say so, and reach a service through a local port that is forwarded."""

import socket
import time

import gevent
import grpc
import psycopg
import psycopg2
import pytest
import zmq
from gevent.server import StreamServer


class Forwarder(StreamServer):
    """What the documentation says to use: a port of loopback, each connection to which is one to a service."""

    def __init__(self, address):
        super().__init__(("127.0.0.1", 0), self.forward)
        self.target = address

    def forward(self, near, _):
        with socket.create_connection(self.target, 10) as far:
            gevent.joinall([gevent.spawn(self.copy, near, far), gevent.spawn(self.copy, far, near)])

    @staticmethod
    def copy(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


def in_thread(function, *arguments, **named):
    """C code that waits stops every greenlet of its thread, also those that carry what it waits for."""

    def run():
        try:
            return function(*arguments, **named), None
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            return None, error

    result, error = gevent.get_hub().threadpool.apply(run)
    if error is not None:
        raise error
    return result


def check_psycopg2():
    started = time.monotonic()
    with pytest.raises(psycopg2.OperationalError, match="could not translate host name"):
        psycopg2.connect(host="postgres.mesh", user="anna", password="secret", connect_timeout=5)
    assert time.monotonic() - started < 5
    server = Forwarder(("postgres.mesh", 5432))
    server.start()

    def ask():
        connection = psycopg2.connect(
            host="127.0.0.1", port=server.server_port, user="anna", password="secret", dbname="postgres", connect_timeout=10
        )
        with connection.cursor() as cursor:
            cursor.execute("SELECT 6 * 7")
            return cursor.fetchone()

    assert in_thread(ask) == (42,)


def check_psycopg():
    started = time.monotonic()
    # It resolves in Python: the address of the service reaches the kernel, which refuses it without a packet.
    with pytest.raises(psycopg.OperationalError, match=r"unreachable"):
        psycopg.connect("host=postgres.mesh user=anna password=secret connect_timeout=5")
    assert time.monotonic() - started < 5
    server = Forwarder(("postgres.mesh", 5432))
    server.start()
    # It waits with gevent's select.
    with psycopg.connect(
        f"host=127.0.0.1 port={server.server_port} user=anna password=secret dbname=postgres connect_timeout=10"
    ) as connection:
        assert connection.execute("SELECT 6 * 7").fetchone() == (42,)


def check_zmq():
    def ask(address, limit):
        with zmq.Context() as context, context.socket(zmq.REQ) as sock:
            sock.linger = 0
            sock.rcvtimeo = limit
            sock.connect(address)
            sock.send(b"hello")
            return sock.recv()

    # It never fails: it goes on resolving in the background, and only the limit of the caller ends that.
    with pytest.raises(zmq.Again):
        in_thread(ask, "tcp://zmq.mesh:5555", 500)
    server = Forwarder(("zmq.mesh", 5555))
    server.start()
    assert in_thread(ask, f"tcp://127.0.0.1:{server.server_port}", 10_000) == b"HELLO"


def check_grpc():
    def ask(target, limit):
        with grpc.insecure_channel(target) as channel:
            return channel.unary_unary("/Echo/Shout")(b"hello", timeout=limit)

    with pytest.raises(grpc.RpcError) as caught:
        in_thread(ask, "grpc.mesh:50051", 5)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), caught.value
    server = Forwarder(("grpc.mesh", 50051))
    server.start()
    assert in_thread(ask, f"127.0.0.1:{server.server_port}", 10) == b"HELLO"
