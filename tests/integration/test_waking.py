"""How often who waits is woken, and how often something is sent: once for what belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent

from astranet_gevent import Stream
from astranet_gevent.transport.conn import Buffer, SocketConn

from .tools import DEADLINE, Bench, deadline, receive_exactly, tcp_pair


class CountingConn(SocketConn):
    """Notes what is sent at a time."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent: list[bytes] = []

    def try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        self.sent.append(b"".join(parts))
        return super().try_send(parts)


class Reader:
    """Reads when it is woken, as a gevent socket does, and waits again."""

    def __init__(self, stream: Stream) -> None:
        stream.setblocking(False)
        self._stream = stream
        self.reads: list[bytes | None] = []
        stream.wake_when_readable(self)

    def switch(self) -> None:
        try:
            self.reads.append(self._stream.recv(65536))
        except BlockingIOError:
            self.reads.append(None)
        self._stream.wake_when_readable(self)


def connect(bench: Bench) -> tuple[Stream, Stream, CountingConn]:
    """A stream, its other end, and what the other end's node sends with."""
    one, other = bench.node(), bench.node()
    ends = tcp_pair()
    conn = CountingConn(ends[1], gevent.get_hub(), other.config)
    for link in (one.attach(ends[0]), other.attach(conn)):
        link.wait_ready(DEADLINE)
    listener = other.bind("svc")
    one.service_map.wait_for("svc", DEADLINE)
    stream = one.dial("svc", DEADLINE)
    return stream, listener.accept()[0], conn


def test_frames_that_come_together_wake_once(bench: Bench) -> None:
    with deadline():
        near, far, _ = connect(bench)
        reader = Reader(near)
        for number in range(3):
            far.sendall(b"head")
            far.sendall(b"body")
            far.sendall(b"%d" % number)
            while len(reader.reads) <= number:
                gevent.idle()
        gevent.idle()
        assert reader.reads == [b"headbody0", b"headbody1", b"headbody2"]
        near.forget_reader(reader)


def test_an_answer_in_parts_is_sent_at_once(bench: Bench) -> None:
    """While nobody else is to be run, nothing is gained by sending the first part before the second."""
    with deadline():
        near, far, conn = connect(bench)

        def answer() -> None:
            while far.recv(100):
                far.sendall(b"head")
                far.sendall(b"body")

        bench.spawn(answer)
        for _ in range(3):
            near.sendall(b"question")
            assert receive_exactly(near, 8) == b"headbody"
        answers = [sent for sent in conn.sent if b"head" in sent or b"body" in sent]
        assert [b"head" in sent and b"body" in sent for sent in answers] == [True] * 3, answers
        near.close()
