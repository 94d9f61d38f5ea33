"""Any sequence of sends, reads, shutdowns, closes and resets on streams that share a link, against a model.

The model knows which bytes are under way and what each end has done; every answer of a stream is compared
with what the model allows. So nothing is lost, doubled or moved, within a stream or from one to another.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import gevent
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from astranet_gevent import AstraNet
from astranet_gevent.testing import memory_pair

# A call that the model says must not wait fails after that. Finding the smallest sequence that fails
# takes many failures, so it is short.
DEADLINE = 2.0
STREAMS = 3
# Below this many unread bytes a stream must have room: half of the first window, less a lump of credit.
SURE_ROOM = 16384
GONE = (ConnectionResetError, BrokenPipeError)
SOURCE = random.Random(0).randbytes(1 << 20)


def slice_of(stream: int, side: int, start: int, size: int) -> bytes:
    """The bytes that end ``side`` of a stream sends at a position: different for each, repeating late."""
    start = (start + 7919 * (2 * stream + side)) % (len(SOURCE) // 2)
    return SOURCE[start : start + size]


@dataclass
class End:
    """One end as the model sees it."""

    stream: Any
    sent: int = 0  # bytes its stream took
    taken: int = 0  # bytes it has read from the other end
    finished: bool = False  # it has shut down writing
    closed: bool = False
    broken: bool = False  # it has reset its peer
    told: bool = False  # a call has told it that its peer is gone
    lost: bool = False  # and that call was a read: nothing comes after it


@dataclass
class Connection:
    """Two ends, and which stream they are."""

    number: int
    ends: list[End] = field(default_factory=list)


ends = st.tuples(st.integers(0, STREAMS - 1), st.integers(0, 1))
# Small ones often, some larger than the first window of a stream.
sizes = st.one_of(st.integers(1, 100), st.integers(101, 20_000), st.integers(20_001, 200_000))


class ConnectedStreams(RuleBasedStateMachine):
    """Streams over one in-memory link."""

    def __init__(self) -> None:
        super().__init__()
        self.client = AstraNet(follow=False)
        self.server = AstraNet(follow=False)
        self.opened = 0
        self.connections: list[Connection] = []

    @initialize()
    def open_all(self) -> None:
        self.client.start()
        self.server.start()
        conns = memory_pair()
        self.links = [self.client.attach(conns[0]), self.server.attach(conns[1])]
        for link in self.links:
            link.wait_ready(DEADLINE)
        self.listener = self.server.bind("streams")
        self.connections = [self.connect() for _ in range(STREAMS)]

    def connect(self) -> Connection:
        """A new stream."""
        self.opened += 1
        dialled = self.client.dial((self.server.node_id, self.listener.port), timeout=DEADLINE)
        accepted, _ = self.listener.accept()
        return Connection(self.opened, [End(dialled), End(accepted)])

    def find(self, which: tuple[int, int]) -> tuple[Connection, End, End]:
        """A connection, the acting end, and its peer."""
        connection = self.connections[which[0]]
        return connection, connection.ends[which[1]], connection.ends[1 - which[1]]

    # Writing

    @rule(which=ends, size=sizes, how=st.sampled_from(["send", "sendmsg", "bytearray"]))
    def send(self, which: tuple[int, int], size: int, how: str) -> None:
        connection, end, peer = self.find(which)
        data = slice_of(connection.number, which[1], end.sent, size)
        must_take = end.sent - peer.taken < SURE_ROOM
        end.stream.settimeout(DEADLINE if must_take else 0)
        try:
            with gevent.Timeout(DEADLINE):
                count = self.put(end.stream, data, how)
        except OSError as error:
            self.judge_refusal(end, peer, error, must_take)
            return
        assert 0 < count <= size
        assert not end.closed
        assert not end.finished
        assert not end.told
        end.sent += count

    @staticmethod
    def put(stream: Any, data: bytes, how: str) -> int:
        """Send, and spoil the buffer afterwards if that is possible."""
        if how == "sendmsg":
            middle = len(data) // 2
            return int(stream.sendmsg([data[:middle], data[middle:]]))
        if how == "bytearray":
            buffer = bytearray(data)
            count = int(stream.send(buffer))
            buffer[:] = bytes(len(buffer))
            return count
        return int(stream.send(data))

    @staticmethod
    def judge_refusal(end: End, peer: End, error: OSError, must_take: bool) -> None:
        """Whether the model has a reason for the error of a send."""
        if end.closed:
            assert error.errno == errno.EBADF, error
        elif end.finished:
            assert isinstance(error, GONE if peer.closed else BrokenPipeError), error
            end.told = end.told or peer.closed
        elif isinstance(error, GONE):
            assert peer.closed, f"{error!r}, but the peer is there"
            end.told = True
        else:
            assert isinstance(error, BlockingIOError), error
            assert not must_take
            assert not end.told

    # Reading

    @rule(which=ends, size=sizes, peek=st.booleans())
    def receive(self, which: tuple[int, int], size: int, peek: bool) -> None:
        connection, end, peer = self.find(which)
        waiting = peer.sent - end.taken
        may_wait = waiting > 0 or peer.finished or peer.closed
        if not end.closed:
            end.stream.settimeout(DEADLINE if may_wait else 0)
        try:
            with gevent.Timeout(DEADLINE):
                data = end.stream.recv(size, socket.MSG_PEEK if peek else 0)
        except OSError as error:
            self.judge_no_data(end, peer, waiting, may_wait, error)
            return
        assert not end.closed
        if not data:
            self.judge_end(end, peer, waiting)
            return
        assert not end.lost
        assert len(data) <= min(size, waiting)
        assert data == slice_of(connection.number, 1 - which[1], end.taken, len(data))
        if not peek:
            end.taken += len(data)

    @staticmethod
    def judge_no_data(end: End, peer: End, waiting: int, may_wait: bool, error: OSError) -> None:
        """Whether the model has a reason for the error of a recv."""
        if end.closed:
            assert error.errno == errno.EBADF, error
        elif isinstance(error, ConnectionResetError):
            # A reset, or the answer to what was written to a peer that had closed.
            assert peer.broken or (peer.closed and end.sent > peer.taken), error
            assert peer.broken or not waiting, f"{waiting} bytes sent before the close are lost"
            end.told = end.lost = True
        else:
            assert isinstance(error, BlockingIOError), error
            assert not may_wait

    @staticmethod
    def judge_end(end: End, peer: End, waiting: int) -> None:
        """Whether the model has a reason for an end of file."""
        assert peer.finished or peer.closed or end.told, "an end of file that nobody sent"
        if not peer.broken:
            assert not waiting, f"end of file with {waiting} bytes missing"
        elif not peer.finished:
            assert end.told, "an end of file instead of a reset"

    # Ending

    @rule(which=ends)
    def shutdown(self, which: tuple[int, int]) -> None:
        _, end, peer = self.find(which)
        refusal = 0
        try:
            end.stream.shutdown(socket.SHUT_WR)
        except OSError as error:
            refusal = error.errno or -1
        if end.closed:
            assert refusal == errno.EBADF
        elif peer.closed or (end.finished and peer.finished):
            assert refusal in (0, errno.ENOTCONN)
        else:
            assert refusal == 0
        end.finished = end.finished or not end.closed

    @rule(which=ends)
    def close(self, which: tuple[int, int]) -> None:
        """A reset if something is unread, and no more than an end of file otherwise."""
        _, end, peer = self.find(which)
        unread = peer.sent - end.taken
        if unread and not end.closed and not peer.broken:
            # What is still on its way could meet a close before or after it: let some of it come.
            end.stream.settimeout(DEADLINE)
            assert end.stream.recv(1, socket.MSG_PEEK)
        end.broken = end.broken or (unread > 0 and not end.closed)
        end.stream.close()
        end.closed = True
        assert end.stream.fileno() == -1

    @rule(which=ends)
    def reset(self, which: tuple[int, int]) -> None:
        _, end, _ = self.find(which)
        if end.closed:
            return
        end.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.stream.close()
        end.closed = end.broken = True

    @rule()
    def let_all_run(self) -> None:
        gevent.idle()

    @rule()
    def open_again(self) -> None:
        for index, connection in enumerate(self.connections):
            if all(end.closed for end in connection.ends):
                self.connections[index] = self.connect()

    # The end of a run

    def teardown(self) -> None:
        try:
            for index, connection in enumerate(self.connections):
                self.drain(index, connection)
            for connection in self.connections:
                for end in connection.ends:
                    end.stream.close()
            self.wait_until_empty()
        finally:
            self.client.close()
            self.server.close()

    def drain(self, index: int, connection: Connection) -> None:
        """Everything that was sent to an end that lives must still arrive."""
        for side, end in enumerate(connection.ends):
            peer = connection.ends[1 - side]
            while not end.closed and not end.lost and peer.sent > end.taken:
                before = end.taken
                self.receive((index, side), 100_000, False)
                if end.taken == before:
                    break

    def wait_until_empty(self) -> None:
        """No stream is left in the tables when all are closed on both sides."""
        with gevent.Timeout(DEADLINE):
            while any(link.stream_count for link in self.links):
                gevent.idle()


TestConnectedStreams = ConnectedStreams.TestCase
TestConnectedStreams.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,  # the same runs everywhere: a failure here is a failure there
    suppress_health_check=[HealthCheck.too_slow],
)
