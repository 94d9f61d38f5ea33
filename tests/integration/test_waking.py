"""How often who waits is woken, and how often something is sent: once for what belongs together."""

from __future__ import annotations

import contextlib
import math
import random
import socket
from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import monotonic
from typing import Any, TypeVar

import gevent
import greenlet
import pytest
from wire.peer import DATA

from astranet_gevent import AstraNet, Link, LinkLostError, Stream, StreamClosedError, StreamTimeout
from astranet_gevent.builds import describe_build
from astranet_gevent.protocol.frame import Command
from astranet_gevent.protocol.link import LinkCore
from astranet_gevent.transport.conn import Buffer, SocketConn
from astranet_gevent.transport.send_queue import TurnSource

from .tools import DEADLINE, Bench, deadline, receive_exactly, tcp_pair

ConnT = TypeVar("ConnT", bound=SocketConn)


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
    near, far, _, conn = connect_by(CountingConn, bench.node(), bench.node())
    return near, far, conn


def connect_by(kind: type[ConnT], one: AstraNet, other: AstraNet) -> tuple[Stream, Stream, Link, ConnT]:
    """A stream, its other end, and the other end's link and what that sends with."""
    ends = tcp_pair()
    conn = kind(ends[1], gevent.get_hub(), other.config)
    for link in (one.attach(ends[0]), other.attach(conn)):
        link.wait_ready(DEADLINE)
    listener = other.bind("svc")
    one.service_map.wait_for("svc", DEADLINE)
    stream = one.dial("svc", DEADLINE)
    return stream, listener.accept()[0], link, conn


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


def test_an_answer_is_sent_as_it_is_written(bench: Bench) -> None:
    """Once the answers on a link have turned out to be of one part; and no longer when one has two."""
    with deadline():
        near, far, conn = connect(bench)
        parts = [[b"a"], [b"b"], [b"c"], [b"d", b"e"], [b"f", b"g"], [b"h"], [b"i"]]
        # Whether the first part had been sent when it was written.
        at_once: list[bool] = []

        def answer() -> None:
            for first, *others in parts:
                far.recv(100)
                far.sendall(first)
                at_once.append(conn.sent[-1].endswith(first))
                for part in others:
                    far.sendall(part)

        bench.spawn(answer)
        for answered in parts:
            near.sendall(b"question")
            assert receive_exactly(near, len(answered)) == b"".join(answered)
        assert at_once == [False, True, True, True, False, False, True]
        near.close()


def test_an_answer_in_parts_is_sent_with_its_last(bench: Bench) -> None:
    """Once it is known of how many they are on a link: while the one who wrote them has more to do.

    The first parts go by themselves only where an answer has more than the one before.
    """
    counts = [2, 2, 2, 3, 3, 3, 1, 1, 9, 9, 9]
    with deadline():
        near, far, conn = connect(bench)
        # For each answer what had been sent of it after each of its parts.
        seen: list[list[int]] = []

        def answer() -> None:
            for number, count in enumerate(counts):
                far.recv(100)
                mark = b"<%d>" % number
                seen.append([])
                for _ in range(count):
                    far.sendall(mark)
                    seen[-1].append(sum(sent.count(mark) for sent in conn.sent))

        bench.spawn(answer)
        for number, count in enumerate(counts):
            near.sendall(b"?")
            answered = b"<%d>" % number * count
            assert receive_exactly(near, len(answered)) == answered
        assert seen == [
            [0, 0],
            [0, 2],
            [0, 2],
            [0, 2, 2],
            [0, 0, 0],
            [0, 0, 3],
            [0],
            [1],
            # Too many to be an answer that is alike each time.
            [1] * 9,
            [0] * 9,
            [0] * 9,
        ]
        # Nobody is run: this is no part of an answer, and waits for none.
        far.sendall(b"unasked")
        gevent.idle()
        assert conn.sent[-1].endswith(b"unasked")
        near.close()


def test_an_answer_and_the_end_of_its_stream_are_sent_together(bench: Bench) -> None:
    with deadline():
        near_node, far_node = bench.node(), bench.node()
        _, _, link, conn = connect_by(CountingConn, near_node, far_node)
        listener = far_node.bind("once")
        near_node.service_map.wait_for("once", DEADLINE)
        after_each: list[int] = []

        def answer(stream: Stream, number: int) -> None:
            stream.recv(100)
            stream.sendall(b"<%d>" % number)
            if number % 2:
                stream.close()
            else:
                stream.shutdown(socket.SHUT_WR)
            after_each.append(sum(sent.count(b"<%d>" % number) for sent in conn.sent))

        for number in range(6):
            near = near_node.dial("once", DEADLINE)
            far = listener.accept()[0]
            bench.spawn(answer, far, number)
            gevent.idle()
            before = len(conn.sent)
            near.sendall(b"?")
            assert receive_exactly(near, 3) == b"<%d>" % number
            assert near.recv(1) == b""
            assert len(conn.sent) == before + 1, conn.sent[before:]
            near.close()
            far.close()
        # From the second on it is known when they are whole.
        assert after_each == [0, 1, 1, 1, 1, 1]
        bench.eventually(lambda: link.stream_count == 1, "all streams but the first are forgotten")


def test_the_head_of_a_large_answer_is_not_sent_by_itself(bench: Bench) -> None:
    with deadline():
        near, far, conn = connect(bench)
        large = b"x" * 20_000
        sizes = [len(large), len(large), 1, 1, len(large), len(large)]

        def answer() -> None:
            for number, size in enumerate(sizes):
                far.recv(100)
                far.sendall(b"<%d>" % number)
                far.sendall(large[:size])

        bench.spawn(answer)
        whole: list[bool] = []
        for number, size in enumerate(sizes):
            near.sendall(b"?")
            head = b"<%d>" % number
            assert receive_exactly(near, 3 + size) == head + large[:size]
            whole.append(any(head in sent and sent.endswith(b"x") for sent in conn.sent))
        assert whole == [True] * len(sizes)
        near.close()


@contextlib.contextmanager
def switches() -> Iterator[list[tuple[Any, Any]]]:
    """Notes from which greenlet to which one the interpreter switches."""
    seen: list[tuple[Any, Any]] = []

    def trace(event: str, pair: tuple[Any, Any]) -> None:
        if event == "switch":
            seen.append(pair)

    before = greenlet.settrace(trace)
    try:
        yield seen
    finally:
        greenlet.settrace(before)


class Served:
    """A listener of a node with a raw peer, so many streams of theirs, and what is read of each."""

    def __init__(self, bench: Bench, count: int) -> None:
        mesh = bench.node()
        listener = mesh.bind("svc:5000")
        self.peer, self.link = bench.raw(mesh)
        self.theirs = [self.peer.dial(5000, 6000 + number) for number in range(count)]
        self.streams: list[Stream] = [listener.accept()[0] for _ in self.theirs]
        self.reads: list[tuple[int, bytes]] = []

    def send(self, data: bytes) -> None:
        """To all streams, in one piece."""
        self.peer.send(*(stream.frame(DATA, data) for stream in self.theirs))

    def read(self, number: int) -> None:
        with contextlib.suppress(LinkLostError):
            while data := self.streams[number].recv(100):
                self.reads.append((number, data))


def test_who_waits_again_switches_to_the_next_who_got_data(bench: Bench) -> None:
    """Not by way of the hub, which would be two switches for each of them."""
    with deadline():
        served = Served(bench, 20)
        readers = [bench.spawn(served.read, number) for number in range(20)]
        gevent.idle()
        with switches() as seen:
            served.send(b"data")
            bench.eventually(lambda: len(served.reads) == 20, "all have read")
        assert served.reads == [(number, b"data") for number in range(20)]
        hub = gevent.get_hub()
        first = seen.index((hub, readers[0]))
        assert seen[first : first + 21] == [(hub, readers[0]), *pairwise(readers), (readers[19], hub)]
        assert not served.link.woken


class Mannered(gevent.Greenlet):
    """gevent calls switch_out() of whoever leaves for the hub."""

    left = 0

    def switch_out(self) -> None:
        self.left += 1


def test_who_is_not_a_plain_greenlet_is_run_by_the_hub(bench: Bench) -> None:
    with deadline():
        served = Served(bench, 9)
        hub = gevent.get_hub()
        ran_in: list[Any] = []

        class Waiter:
            def switch(self) -> None:
                ran_in.append(gevent.getcurrent())
                served.reads.append((7, served.streams[7].recv(100)))

        plain = [bench.spawn(served.read, number) for number in (0, 2, 3, 5, 8)]
        mannered = [Mannered.spawn(served.read, number) for number in (1, 4)]
        raw = gevent.spawn_raw(served.read, 6)
        served.streams[7].wake_when_readable(Waiter())
        gevent.idle()
        assert [greenlet.left for greenlet in mannered] == [1, 1]
        with switches() as seen:
            served.send(b"data")
            bench.eventually(lambda: len(served.reads) == 9, "all have read")
        assert served.reads == [(number, b"data") for number in range(9)]
        assert ran_in == [hub]
        assert [greenlet.left for greenlet in mannered] == [2, 2]
        for other in (*mannered, raw):
            assert {target for origin, target in seen if origin is other} == {hub}
            assert {origin for origin, target in seen if target is other} == {hub}
        assert (plain[1], plain[2]) in seen
        served.link.end(None)
        bench.eventually(lambda: raw.dead and all(greenlet.dead for greenlet in mannered), "those who wait have ended")


@pytest.mark.skipif(describe_build() != "pure Python", reason="a compiled link looks up no method of its own in the class")
def test_an_interrupt_in_one_who_waits_again_loses_none_of_the_others(bench: Bench, hub_errors: list[Any]) -> None:
    """It strikes while the greenlet sends what has come together so far, before it switches to the next one."""
    with deadline(), pytest.MonkeyPatch.context() as patch:
        served = Served(bench, 20)
        readers = [bench.spawn(served.read, number) for number in range(20)]
        gevent.idle()

        def interrupt(_link: Link) -> None:
            if gevent.getcurrent() is readers[8]:
                patch.undo()
                raise KeyboardInterrupt

        patch.setattr(Link, "flush_early", interrupt)
        patch.setattr("astranet_gevent.transport.link.monotonic", lambda: math.inf)
        served.send(b"data")
        with pytest.raises(KeyboardInterrupt):
            gevent.sleep(DEADLINE)
        assert [(context, kind) for context, kind, _ in hub_errors] == [(readers[8], KeyboardInterrupt)]
        hub_errors.clear()
        assert len(served.reads) == 9
        bench.eventually(lambda: len(served.reads) == 20, "all have read")
        assert served.reads == [(number, b"data") for number in range(20)]
        assert [number for number, reader in enumerate(readers) if reader.dead] == [8]
        served.reads.clear()
        served.send(b"more")
        bench.eventually(lambda: len(served.reads) == 19, "the others read on")
        assert not served.link.woken


@pytest.mark.skipif(describe_build() != "pure Python", reason="a compiled link looks up no method of its own in the class")
@pytest.mark.parametrize(
    ("count", "strikes_in"), [(20, "_run_receivers"), (20, "start_early_flushes"), (1, "_run_lone"), (1, "begin_answer")]
)
def test_an_interrupt_before_the_first_is_run_loses_nobody(bench: Bench, hub_errors: list[Any], count: int, strikes_in: str) -> None:
    with deadline(), pytest.MonkeyPatch.context() as patch:
        served = Served(bench, count)
        for number in range(count):
            bench.spawn(served.read, number)
        gevent.idle()

        def interrupt(*_: Any) -> None:
            patch.undo()
            raise KeyboardInterrupt

        patch.setattr(Link, strikes_in, interrupt)
        served.send(b"data")
        with pytest.raises(KeyboardInterrupt):
            gevent.sleep(DEADLINE)
        assert [kind for _, kind, _ in hub_errors] == [KeyboardInterrupt]
        hub_errors.clear()
        assert not served.reads
        bench.eventually(lambda: len(served.reads) == count, "all have read")
        assert served.reads == [(number, b"data") for number in range(count)]


@pytest.mark.skipif(describe_build() != "pure Python", reason="a compiled link looks up no method of its own in the class")
def test_those_whom_an_interrupt_keeps_from_being_run_are_run_with_the_next_look(bench: Bench, hub_errors: list[Any]) -> None:
    """It strikes where nothing catches it, at the entry of a callback; looks are interrupted themselves, too."""
    with deadline(), pytest.MonkeyPatch.context() as patch:
        near, far, _, _ = connect_by(SocketConn, bench.node(), bench.node(keepalive_interval=0.1))
        reading = bench.spawn(far.recv, 100)
        gevent.idle()

        def interrupt(*_: Any) -> None:
            patch.undo()
            patch.setattr(LinkCore, "handle_timer", interrupt_look)
            raise KeyboardInterrupt

        def interrupt_look(*_: Any) -> None:
            patch.undo()
            raise KeyboardInterrupt

        patch.setattr(Link, "_run_woken", interrupt)
        far.shutdown(socket.SHUT_RD)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                gevent.sleep(DEADLINE)
        assert [kind for _, kind, _ in hub_errors] == [KeyboardInterrupt] * 2
        hub_errors.clear()
        assert reading.get(timeout=DEADLINE) == b""
        # They are what keeps a link alive.
        looks: list[float] = []
        handle_timer = LinkCore.handle_timer
        patch.setattr(LinkCore, "handle_timer", lambda core, now: looks.append(now) or handle_timer(core, now))
        bench.eventually(lambda: len(looks) > 2, "the looks go on")
        near.close()


DEEDS = ("read", "write", "end", "fail", "sleep", "time out", "kill next", "kill previous", "close next", "close previous")


class Crowd(Served):
    """Readers that do something of their own once they have read, and then read on."""

    def __init__(self, bench: Bench, deeds: list[str]) -> None:
        super().__init__(bench, len(deeds))
        self.deeds = deeds
        self.readers = [bench.spawn(self._work, number) for number in range(len(deeds))]
        gevent.idle()

    def neighbour(self, number: int) -> int:
        return (number + (1 if self.deeds[number].endswith("next") else -1)) % len(self.deeds)

    def _work(self, number: int) -> None:
        stream = self.streams[number]
        self.reads.append((number, stream.recv(100)))
        deed = self.deeds[number].split()[0]
        if deed == "end":
            return
        if deed == "fail":
            raise ValueError("the reader fails")
        if deed == "sleep":
            gevent.sleep(0)
        elif deed == "time":
            stream.settimeout(0.001)
            with pytest.raises(StreamTimeout):
                stream.recv(100)
            stream.settimeout(None)
        elif deed == "kill":
            self.readers[self.neighbour(number)].kill(block=False)
        elif deed == "close":
            self.streams[self.neighbour(number)].close()
        elif deed == "write":
            stream.sendall(b"answer")
        self.read(number)

    def expected(self) -> tuple[list[int], list[int]]:
        """Who reads what comes first, in this order, and who is left afterwards."""
        closed: set[int] = set()
        gone: set[int] = set()
        reads = []
        for number, deed in enumerate(self.deeds):
            if number in closed:
                continue
            reads.append(number)
            if deed in ("end", "fail"):
                gone.add(number)
            elif deed.startswith("kill"):
                # By the hub, when all have been run.
                gone.add(self.neighbour(number))
            elif deed.startswith("close"):
                closed.add(self.neighbour(number))
        return reads, [number for number in range(len(self.deeds)) if number not in closed | gone]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_those_who_got_data_do_all_of_them_are_run_in_order(bench: Bench, hub_errors: list[Any], seed: int) -> None:
    rng = random.Random(seed)
    with deadline():
        crowd = Crowd(bench, [rng.choice(DEEDS) for _ in range(30)])
        first, left = crowd.expected()
        crowd.send(b"first")

        def is_settled() -> bool:
            return [number for number, reader in enumerate(crowd.readers) if not reader.dead] == left and all(
                crowd.streams[number].recv_waiter is crowd.readers[number] and crowd.streams[number].timeout is None for number in left
            )

        bench.eventually(is_settled, "those who are left wait again")
        assert crowd.reads == [(number, b"first") for number in first]
        assert not crowd.link.woken
        crowd.reads.clear()
        crowd.send(b"second")
        bench.eventually(lambda: len(crowd.reads) >= len(left), "those who are left have read")
        assert crowd.reads == [(number, b"second") for number in left]
        kinds = [kind for _, kind, _ in hub_errors]
        hub_errors.clear()
        assert kinds.count(ValueError) == sum(crowd.deeds[number] == "fail" for number in first)
        assert set(kinds) <= {ValueError, StreamClosedError}


class Answerer:
    """Answers, in the hub, what its stream gets; then fails, where that is wanted."""

    def __init__(self, stream: Stream, fails: bool) -> None:
        self._stream = stream
        self._fails = fails
        stream.wake_when_readable(self)

    def switch(self) -> None:
        self._stream.sendall(self._stream.recv(10).upper())
        if self._fails:
            raise ValueError("the waiter fails")


@pytest.mark.parametrize("woken_in", ["read", "callback"])
@pytest.mark.parametrize("count", [1, 3])
def test_an_interrupt_in_the_hub_loses_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch, count: int, woken_in: str) -> None:
    """Ctrl-C strikes while those who got data are run, and the program goes on: the others are run, what they wrote is sent."""
    with deadline():
        mesh = bench.node()
        listener = mesh.bind("svc:5000")
        peer, _ = bench.raw(mesh)
        theirs = [peer.dial(5000, 6000 + number) for number in range(count)]
        streams = [listener.accept()[0] for _ in theirs]
        hub = gevent.get_hub()

        def interrupt(*_: Any) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        def answer() -> None:
            for number, stream in enumerate(streams):
                Answerer(stream, fails=number == 0)

        data = [stream.frame(DATA, b"abc"[number : number + 1]) for number, stream in enumerate(theirs)]
        if woken_in == "read":
            answer()
            peer.send(*data)
        else:
            peer.send(*data)
            bench.eventually(lambda: all(stream.readable for stream in streams), "everything has arrived")
            answer()
        monkeypatch.setattr(hub, "handle_error", interrupt)
        with pytest.raises(KeyboardInterrupt):
            gevent.sleep(DEADLINE)
        assert sorted(peer.wait_for(DATA).payload for _ in streams) == [b"A", b"B", b"C"][:count]
        streams[0].sendall(b"later")
        assert peer.wait_for(DATA).payload == b"later"
        peer.send(theirs[-1].frame(DATA, b"heard"))
        assert receive_exactly(streams[-1], 5) == b"heard"


class InterruptedConn(SocketConn):
    """Ctrl-C strikes when the system has read, or taken, what it was asked to, and before anybody has noted that."""

    when = ""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._raw: Any = InterruptedSocket(self, self._raw)


class InterruptedSocket:
    def __init__(self, conn: InterruptedConn, raw: Any) -> None:
        self._conn = conn
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def recv_into(self, view: memoryview) -> int:
        return self._strike("read", self._raw.recv_into(view))

    def send(self, data: Buffer) -> int:
        return self._strike("sent", self._raw.send(data))

    def _strike(self, when: str, count: int) -> int:
        if self._conn.when == when:
            self._conn.when = ""
            raise KeyboardInterrupt
        return count


def read(stream: Stream) -> bytes | LinkLostError:
    try:
        return stream.recv(100)
    except LinkLostError as error:
        return error


@pytest.mark.parametrize("when", ["read", "sent", "answered", "handled what it had read"])
def test_an_interrupt_in_the_middle_of_a_read_or_a_send_ends_the_link(
    bench: Bench, hub_errors: list[Any], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Whoever goes on must not read, or have sent, what has a gap: both ends hear that the link is lost."""
    with deadline():
        one, other = bench.node(), bench.node()
        near, far, link, conn = connect_by(InterruptedConn, one, other)

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        def answer() -> bytes | LinkLostError:
            far.sendall(far.recv(100))
            return read(far)

        waiting = [bench.spawn(read, near), bench.spawn(answer if when == "answered" else lambda: read(far))]
        gevent.idle()
        conn.when = "sent" if when == "answered" else when
        if when == "sent":
            far.sendall(b"lost")
        elif when == "handled what it had read":
            monkeypatch.setattr(other._node, "receive", interrupt)
            one.bind("news")
        else:
            near.sendall(b"lost")
        with pytest.raises(KeyboardInterrupt):
            gevent.sleep(DEADLINE)
        assert [kind for _, kind, _ in hub_errors] == [KeyboardInterrupt]
        hub_errors.clear()
        assert link.ended.is_set()
        assert isinstance(link.error, InterruptedError)
        heard = [waiter.get() for waiter in waiting]
        # The near end may have got what was sent before the link went.
        assert isinstance(heard[1], LinkLostError)
        assert str(heard[1]).endswith(f"KeyboardInterrupt while the link {'sent' if when == 'answered' else when}"), heard[1]
        assert heard[0] == b"lost" if when in ("sent", "answered") else isinstance(heard[0], LinkLostError)
        bench.eventually(lambda: conn._raw.fileno() < 0, "the descriptor is closed")


def test_an_interrupt_while_a_dial_is_answered_leaves_nobody_waiting(bench: Bench, hub_errors: list[Any]) -> None:
    """It strikes when somebody has got data already, and has not been run yet."""
    with deadline():
        one, other = bench.node(), bench.node()
        near, far, link, conn = connect_by(InterruptedConn, one, other)
        idle = one.dial("svc", DEADLINE)
        (listener,) = other._node.listeners.values()  # type: ignore[union-attr]
        waiting = [bench.spawn(read, stream) for stream in (far, listener.accept()[0])]
        gevent.idle()
        conn.when = "sent"
        near.sendall(b"data")

        def dial() -> Stream | LinkLostError:
            try:
                return one.dial("svc", DEADLINE)
            except LinkLostError as error:
                return error

        # In one piece with the data.
        dialling = bench.spawn(dial)
        with pytest.raises(KeyboardInterrupt):
            gevent.sleep(DEADLINE)
        hub_errors.clear()
        assert isinstance(link.error, InterruptedError)
        heard = [waiter.get() for waiter in waiting]
        assert heard[0] == b"data" or isinstance(heard[0], LinkLostError)
        assert isinstance(heard[1], LinkLostError)
        dialled = dialling.get()
        # Its answer had been sent when Ctrl-C struck.
        assert isinstance(dialled, Stream)
        assert isinstance(read(dialled), LinkLostError)
        bench.eventually(lambda: conn._raw.fileno() < 0, "the descriptor is closed")
        idle.close()


class InterruptedLike:
    """A socket, but not of the system's kind: what it reads and sends is the business of the link's greenlets."""

    when = ""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def recv_into(self, view: memoryview) -> int:
        return self._strike("read", self._sock.recv_into(view))

    def sendall(self, data: bytes) -> None:
        self._strike("sent", self._sock.sendall(data))

    def close(self) -> None:
        self._sock.close()

    def _strike(self, when: str, result: Any) -> Any:
        if self.when == when:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("when", ["read", "sent"])
def test_the_same_where_greenlets_read_and_send(bench: Bench, hub_errors: list[Any], when: str) -> None:
    with deadline():
        one, other = bench.node(), bench.node()
        ends = tcp_pair()
        sock = InterruptedLike(ends[1])
        link = other.attach(sock)
        one.attach(ends[0]).wait_ready(DEADLINE)
        link.wait_ready(DEADLINE)
        listener = other.bind("svc")
        one.service_map.wait_for("svc", DEADLINE)
        near = one.dial("svc", DEADLINE)
        far, _ = listener.accept()
        waiting = bench.spawn(read, far)
        gevent.idle()
        sock.when = when
        (near if when == "read" else far).sendall(b"lost")
        with pytest.raises(KeyboardInterrupt):
            gevent.sleep(DEADLINE)
        hub_errors.clear()
        assert isinstance(link.error, InterruptedError)
        assert str(waiting.get()).endswith(f"KeyboardInterrupt while the link {when}")


class Writer:
    """Writes when there is room, in the hub; fails instead, where that is wanted."""

    def __init__(self, stream: Stream, fails: bool) -> None:
        self._stream = stream
        self._fails = fails
        self.waited = False
        stream.setblocking(False)
        self._write()

    def _write(self) -> None:
        try:
            assert self._stream.send(bytes(60_000)) == 60_000
        except BlockingIOError:
            self._stream.wake_when_writable(self)

    def switch(self) -> None:
        self.waited = True
        if self._fails:
            raise ValueError("the waiter fails")
        self._write()


class SwallowingConn(SocketConn):
    """A system that takes everything at once, and gives it to nobody."""

    swallows = False

    def try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        return () if self.swallows else super().try_send(parts)


@pytest.mark.parametrize("strikes", [1, 2])
def test_an_interrupt_while_writers_are_woken_leaves_none_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch, strikes: int) -> None:
    """Ctrl-C strikes between two who wait for room on the link, at the first time or when it goes on sending, and the program goes on."""
    with deadline():
        # Nothing else, such as a PING, has the queue looked at.
        one, other = (bench.node(keepalive_interval=60) for _ in range(2))
        _, _, _, conn = connect_by(SwallowingConn, one, other)
        (listener,) = other._node.listeners.values()  # type: ignore[union-attr]
        streams = []
        for _ in range(80):
            one.dial("svc", DEADLINE)
            streams.append(listener.accept()[0])
        conn.swallows = True
        hub = gevent.get_hub()
        failed = 0

        def interrupt(*_: Any) -> None:
            nonlocal failed
            failed += 1
            if failed == strikes:
                monkeypatch.undo()
                raise KeyboardInterrupt

        monkeypatch.setattr(hub, "handle_error", interrupt)
        # The queue has room for 18 of them; when these are sent, as many of the others are woken, and so on.
        writers = [Writer(stream, fails=number in (20, 60)) for number, stream in enumerate(streams)]
        with pytest.raises(KeyboardInterrupt):
            gevent.sleep(DEADLINE)
        assert not writers[79].waited
        bench.eventually(lambda: writers[79].waited, "the others are woken")
        assert [writer.waited for writer in writers] == [False] * 18 + [True] * 62


def test_reading_goes_on_when_nothing_has_caught_an_interrupt(bench: Bench) -> None:
    """gevent stops a watcher whose callback raises, as when Ctrl-C strikes before its first line; the next look at the link starts it."""
    with deadline():
        near, far, _, conn = connect_by(InterruptedConn, bench.node(), bench.node(keepalive_interval=0.1))
        conn._read_watcher.stop()
        near.sendall(b"data")
        assert receive_exactly(far, 4) == b"data"


@pytest.mark.skipif(describe_build() != "pure Python", reason="compiled modules have the clock in C variables")
@pytest.mark.parametrize(
    ("seconds", "sends"),
    [
        (19e-6, [3, 6, 11, 22, 22]),
        (90e-6, [1, 2, 3, 5, 9, 18, 26]),
        (1.5e-3, [*[1] * 5, 2, *[3] * 19]),
        (5e-3, [1] * 64),
    ],
)
def test_answers_come_together(bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float, sends: list[int]) -> None:
    """They go in pieces that double, so as to wake the peer less often, until one takes 4 ms; what takes longer goes as it is ready."""
    with deadline():
        mesh = bench.node()
        listener = mesh.bind("svc:5000")
        peer, _ = bench.raw(mesh)
        theirs = [peer.dial(5000, 6000 + number) for number in range(64)]
        streams = [listener.accept()[0] for _ in theirs]
        now = monotonic()
        sent: list[int] = []

        class Worker(Answerer):
            def switch(self) -> None:
                nonlocal now
                now += seconds
                super().switch()

        def try_send(conn: SocketConn, parts: Sequence[Buffer]) -> Sequence[Buffer]:
            sent.append(len(parts))
            return send(conn, parts)

        send = SocketConn.try_send
        monkeypatch.setattr(SocketConn, "try_send", try_send)
        for module in ("link", "outlet"):
            monkeypatch.setattr(f"astranet_gevent.transport.{module}.monotonic", lambda: now)
        for _ in range(2):
            sent.clear()
            for stream in streams:
                Worker(stream, fails=False)
            peer.send(*(stream.frame(DATA, b"a") for stream in theirs))
            bench.eventually(lambda: sum(sent) == len(streams), "all answers are sent")
            assert sent == sends


def test_a_dial_is_answered_before_readers_run(bench: Bench) -> None:
    """The one who dialled works on while the readers make their answers."""
    with deadline():
        near, far, conn = connect(bench)
        bench.spawn(lambda: far.sendall(far.recv(100)))
        gevent.idle()
        node_id, port = near.getpeername()
        # Both go out, and arrive, together.
        near.sendall(b"question")
        near._path.link._owner.dial((node_id, port), DEADLINE, None)  # type: ignore[attr-defined]
        assert receive_exactly(near, 8) == b"question"
        assert [(sent[0] == Command.SYN, b"question" in sent) for sent in conn.sent[-2:]] == [(True, False), (False, True)]
        near.close()


class BottomlessConn(SocketConn):
    """Takes, once opened, whatever it is given, and notes how much between two looks of the loop at what has come."""

    is_open = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.taken = [0]
        self._check = gevent.get_hub().loop.check()
        self._check.start(lambda: self.taken.append(0))

    def try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        if not self.is_open:
            return super().try_send(parts)
        self.taken[-1] += sum(map(len, parts))
        return ()

    def close(self) -> None:
        self._check.close()
        super().close()


@pytest.mark.parametrize("blocked", [False, True])
def test_a_link_that_is_never_full_reads_between_its_batches(bench: Bench, blocked: bool) -> None:
    total = 16 * 1024 * 1024
    with deadline():
        one, other = bench.node(), bench.node()
        ends = tcp_pair()
        conn = BottomlessConn(ends[1], gevent.get_hub(), other.config)
        links = one.attach(ends[0]), other.attach(conn)
        for link in links:
            link.wait_ready(DEADLINE)
        listener = one.bind("svc")
        other.service_map.wait_for("svc", DEADLINE)
        stream = other.dial("svc", DEADLINE)
        conn.is_open = True
        if blocked:
            # It waits for room in the queue again and again, never for its window.
            stream.receive_window_size(total)
            stream.sendall(bytes(total))
        else:
            source = TurnSource()
            for _ in range(total // 65536):
                links[1].queue.push_turn(source, (bytes(65536),))
            links[1].schedule_flush()
        while links[1].queue:
            gevent.idle()
        assert sum(conn.taken) >= total
        assert max(conn.taken) <= total / 4
        listener.close()
        for link in links:
            link.end(None)
