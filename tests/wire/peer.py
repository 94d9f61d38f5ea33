"""A raw peer over one end of a socketpair, with frame code of its own.

Nothing here comes from the library: if both ends used the same encoder, both could be wrong alike
and every test would still pass. The peer does nothing by itself: it answers, credits and closes
where a test says so, and can stand for a Go node as well as for one that misbehaves.
"""

from __future__ import annotations

import json
import struct
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from gevent import socket

# Nothing in these tests takes longer than some tens of ms; only a failing test waits this long.
DEADLINE = 5.0

SYN, ACK, SYN_ACK = 2, 4, 6
FIN1, FIN2, ERR, FORCE_CLOSED = 8, 16, 32, 62
DATA, WND_SIZE, REWIND = 128, 129, 130
PING, PONG = 160, 161
DIAL, HANDSHAKE = 190, 191
SERVICE, NO_SERVICE, FOLLOW, DISCOVER, RESET = 192, 193, 194, 195, 196

# Commands of our own. A Go node ignores them, and forwards them as any other.
HELLO, GOODBYE, PAUSE, RESUME, BLOCKED = 208, 209, 210, 211, 212

NAMES = {value: name for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)}

# The commands that belong to one stream.
STREAM_COMMANDS = frozenset({SYN, ACK, SYN_ACK, FIN1, FIN2, ERR, FORCE_CLOSED, DATA, WND_SIZE, REWIND, DIAL, BLOCKED})

# What a node says about itself in its own time; most tests do not care for it.
BACKGROUND = frozenset({SERVICE, NO_SERVICE, FOLLOW, DISCOVER})

# cmd u8, remote u64, local u64, rport u32, lport u32, length u32
HEADER = struct.Struct(">BQQIII")

# The payload a Go node accepts and sends at most, and the window every stream starts with.
MAX_PAYLOAD = WINDOW = 65536

# Ids and ports of the raw peers; any will do.
PEER_ID = 0x1122334455667788
OTHER_ID = 0x2233445566778899
THIRD_ID = 0x33445566778899AA
PEER_PORT = 16777217


class Frame(NamedTuple):
    """One frame; the fields as they stand on the wire."""

    cmd: int
    remote: int = 0
    local: int = 0
    rport: int = 0
    lport: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        """The frame as bytes."""
        return HEADER.pack(*self[:5], len(self.payload)) + self.payload

    @property
    def key(self) -> tuple[int, int, int, int]:
        """What names a stream in one direction: remote, local, rport, lport."""
        return self[1:5]

    def __repr__(self) -> str:
        name = NAMES.get(self.cmd, str(self.cmd))
        text = f"{name} {self.local:x}:{self.lport} > {self.remote:x}:{self.rport}"
        if len(self.payload) > 40:
            return f"<{text} {self.payload[:40]!r}... {len(self.payload)} bytes>"
        return f"<{text} {self.payload!r}>" if self.payload else f"<{text}>"


class PeerError(AssertionError):
    """The node under test did not do what the test waited for."""


class NothingCameError(PeerError):
    """No frame within the deadline."""


class LinkEndedError(PeerError):
    """The node closed the link while a frame was expected."""


def split_frames(data: bytes) -> tuple[list[Frame], bytes]:
    """Frames at the head of ``data``, and the bytes of the one that is not complete."""
    frames, position = [], 0
    while len(data) - position >= HEADER.size:
        *fields, size = HEADER.unpack_from(data, position)
        end = position + HEADER.size + size
        if end > len(data):
            break
        frames.append(Frame._make([*fields, data[position + HEADER.size : end]]))
        position = end
    return frames, bytes(data[position:])


def u32(value: int) -> bytes:
    """A payload of REWIND or WND_SIZE."""
    return struct.pack(">I", value)


def read_u32(frame: Frame) -> int:
    """The number in a REWIND or WND_SIZE, which is exactly 4 bytes long."""
    assert len(frame.payload) == 4, frame
    return int.from_bytes(frame.payload, "big")


class RawPeer:
    """The other end of a link to the node under test. ``received`` is everything that ever came."""

    def __init__(self, sock: socket.socket, node_id: int = PEER_ID) -> None:
        self.node_id = node_id
        # The id of the node under test, once its HANDSHAKE is in.
        self.target = 0
        self.received: list[Frame] = []
        self.ended = False
        self._sock = sock
        self._partial = b""
        self._unread: deque[Frame] = deque()
        # Whether the node will ask a peer of its own kind, once, how long an answer takes.
        self._will_be_asked = False

    # -- sending

    def send(self, *items: Frame | bytes) -> None:
        """Send frames or raw bytes in one segment."""
        data = b"".join(item.encode() if isinstance(item, Frame) else item for item in items)
        self._sock.settimeout(DEADLINE)
        try:
            self._sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            # The node may end the link while bytes are under way; receive() is where that is seen.
            self.ended = True

    def frame(self, cmd: int, rport: int = 0, lport: int = 0, payload: bytes = b"") -> Frame:
        """A frame from this peer to the node under test."""
        return Frame(cmd, self.target, self.node_id, rport, lport, payload)

    def announce(self, name: bytes | str, port: int, local: int | None = None) -> None:
        """Offer a service, as this node or as another behind it."""
        raw = name.encode() if isinstance(name, str) else name
        source = self.node_id if local is None else local
        self.send(Frame(SERVICE, 0, source, 0, port, raw))

    def send_handshake(self, payload: bytes = b'{"RAddr":"127.0.0.1:1"}') -> None:
        """Send a HANDSHAKE only."""
        self._will_be_asked = b'"version":1' in payload
        self.send(Frame(HANDSHAKE, local=self.node_id, payload=payload))

    def handshake(self, payload: bytes = b'{"RAddr":"127.0.0.1:1"}') -> Frame:
        """Shake hands; returns the node's HANDSHAKE."""
        self.send_handshake(payload)
        return self.receive_handshake()

    # -- receiving

    def receive(self, timeout: float = DEADLINE) -> Frame:
        """The next frame, whatever it is."""
        deadline = time.monotonic() + timeout
        while True:
            while not self._unread:
                self._read(deadline)
            frame = self._unread.popleft()
            if frame != Frame(PING) or not self._will_be_asked:
                return frame
            self._will_be_asked = False
            self.send(Frame(PONG))

    def receive_handshake(self) -> Frame:
        """The node's HANDSHAKE, which has to be the first frame and nobody's imitation."""
        frame = self.receive()
        assert frame.cmd == HANDSHAKE, frame
        assert (frame.remote, frame.rport, frame.lport) == (0, 0, 0), frame
        assert 0 < frame.local < 2**63, frame
        assert isinstance(json.loads(frame.payload)["RAddr"], str), frame
        self.target = frame.local
        return frame

    def expect(self, cmd: int, *, skip: Collection[int] = BACKGROUND, **fields: Any) -> Frame:
        """The next frame (but for those to skip); fails unless it is this one."""
        frame = self.receive()
        while frame.cmd != cmd and frame.cmd in skip:
            frame = self.receive()
        got = {name: getattr(frame, name) for name in fields}
        assert (frame.cmd, got) == (cmd, fields), f"{NAMES[cmd]} {fields} expected, got {frame}"
        return frame

    def wait_for(self, cmd: int, **fields: Any) -> Frame:
        """The next frame that is this one; what comes before it is passed over."""
        return self.wait_until(lambda frame: frame.cmd == cmd and all(getattr(frame, name) == value for name, value in fields.items()))

    def wait_until(self, condition: Callable[[Frame], bool]) -> Frame:
        """The next frame that the condition likes; what comes before it is passed over."""
        deadline = time.monotonic() + DEADLINE
        while True:
            frame = self.receive(max(0.0, deadline - time.monotonic()))
            if condition(frame):
                return frame

    def fence(self) -> list[Frame]:
        """Every frame that the node sent before it had answered all that was sent to it.

        Two PINGs: the first PONG may overtake what waits in the queue for data, but the second is
        asked for only after the flush that carried the first.
        """
        before: list[Frame] = []
        for _ in range(2):
            self.send(Frame(PING))
            while (frame := self.receive()) != Frame(PONG):
                before.append(frame)
        return before

    def assert_quiet(self, skip: Collection[int] = BACKGROUND) -> None:
        """Nothing has come and nothing is under way, and the link is alive."""
        frames = [frame for frame in self.fence() if frame.cmd not in skip]
        assert not frames, f"nothing was expected, got {frames}"

    def pending(self) -> list[Frame]:
        """What has come by now, without waiting; nothing is asked of the node."""
        self._sock.setblocking(False)
        try:
            while not self.ended:
                self._feed(self._sock.recv(1 << 20))
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True
        frames = list(self._unread)
        self._unread.clear()
        return frames

    @property
    def partial(self) -> bytes:
        """Bytes of a frame that has begun and is not complete."""
        return self._partial

    def wait_end(self, timeout: float = DEADLINE) -> list[Frame]:
        """Wait until the node has closed the link; the frames that came before."""
        frames: list[Frame] = []
        deadline = time.monotonic() + timeout
        try:
            while True:
                frames.append(self.receive(max(0.0, deadline - time.monotonic())))
        except LinkEndedError:
            return frames

    def close(self) -> None:
        """Drop the link without a word, as a process that is killed."""
        self._sock.close()
        self.ended = True

    def _read(self, deadline: float) -> None:
        if self.ended:
            raise LinkEndedError(f"the link has ended; received {self.received[-10:]}")
        # A timeout of 0 would make the socket non-blocking.
        self._sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            self._feed(self._sock.recv(1 << 20))
        except TimeoutError as error:
            raise NothingCameError(f"no frame in time; received {self.received[-10:]}") from error
        except ConnectionResetError:
            self.ended = True

    def _feed(self, data: bytes) -> None:
        if not data:
            self.ended = True
        frames, self._partial = split_frames(self._partial + data)
        self.received += frames
        self._unread.extend(frames)

    # -- streams

    def dial(self, rport: int, lport: int = PEER_PORT) -> RawStream:
        """Open a stream as Go's dialler does: DIAL, wait for SYN, ACK, wait for SYN_ACK."""
        stream = RawStream(self, rport, lport)
        stream.send(DIAL)
        stream.expect(SYN)
        stream.send(ACK)
        stream.expect(SYN_ACK)
        return stream

    def accept(self, rport: int | None = None) -> RawStream:
        """Take the node's next DIAL as Go's acceptor does: SYN, wait for ACK, SYN_ACK."""
        stream = self.receive_dial()
        assert rport in (None, stream.lport), stream
        stream.send(SYN)
        stream.expect(ACK)
        stream.send(SYN_ACK)
        return stream

    def receive_dial(self) -> RawStream:
        """The stream that the node's next DIAL asks for; nothing is answered."""
        frame = self.expect(DIAL, remote=self.node_id, local=self.target)
        assert not frame.payload, frame
        return RawStream(self, frame.lport, frame.rport)


class RawStream:
    """One stream as a raw peer sees it: ``rport`` is the node's port, ``lport`` the peer's own."""

    def __init__(self, peer: RawPeer, rport: int, lport: int) -> None:
        self.peer = peer
        self.rport = rport
        self.lport = lport

    def frame(self, cmd: int, payload: bytes = b"") -> Frame:
        """A frame of this stream to the node."""
        return self.peer.frame(cmd, self.rport, self.lport, payload)

    def send(self, cmd: int, payload: bytes = b"") -> None:
        """Send one frame of this stream."""
        self.peer.send(self.frame(cmd, payload))

    def expect(self, cmd: int, **fields: Any) -> Frame:
        """The next frame of the link has to be this one, and of this stream."""
        return self.peer.expect(
            cmd,
            remote=self.peer.node_id,
            local=self.peer.target,
            rport=self.lport,
            lport=self.rport,
            **fields,
        )

    def owns(self, frame: Frame) -> bool:
        """Whether a frame that came from the node is of this stream."""
        return frame.key == (self.peer.node_id, self.peer.target, self.lport, self.rport)

    def expect_data(self, size: int) -> bytes:
        """The next ``size`` bytes of data, in however many frames; only REWINDs between them."""
        received = b""
        while len(received) < size:
            frame = self.peer.expect(DATA, skip=BACKGROUND | {REWIND})
            assert self.owns(frame), frame
            assert 0 < len(frame.payload) <= MAX_PAYLOAD, frame
            received += frame.payload
        assert len(received) == size, received[size:]
        return received
