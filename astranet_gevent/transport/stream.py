"""Stream: one byte stream over a link, shaped like ``gevent.socket.socket``.

Rules for editing: whoever waits is a greenlet in a slot (``recv_waiter``, ``send_waiter``), woken by switching to it, from the hub or
from the one who was woken before it; it may be woken for nothing, so every wait is a loop over the condition. ``gevent.Timeout`` and
``kill()`` strike only inside ``_wait``: before and after it the state must be right. A frame is queued whole, and the window is charged in
the same step.
"""

from __future__ import annotations

import errno
import operator
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from gevent import getcurrent

from ..errors import (
    AstraNetError,
    ConcurrentUseError,
    DialRefusedError,
    ForkedError,
    LocalProtocolError,
    StreamBrokenPipeError,
    StreamClosedError,
    StreamNotConnectedError,
    StreamResetError,
    StreamTimeout,
    StreamWouldBlockError,
    WrongThreadError,
)
from ..protocol.frame import HEADER_SIZE, MAX_PAYLOAD, Command, encode_frame, encode_u32, reverse_key, split_key
from ..protocol.stream import CREDIT_BYTES, DIALING, ENDED, GOT_FIN, LIVE, OPEN, PEER_GONE, RESET, SENT_FIN, Step, StreamCore, StreamState
from ..protocol.window import LARGE_WINDOW
from ..threads import get_ident
from .options import get_option, set_option
from .path import MAX_REASON, Path, ResetCode
from .send_queue import SMALL_FRAME, UNJOINED_PAYLOAD, TurnSource
from .stream_io import StreamIO, open_file

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from .readiness import Readiness

__all__ = ["Observer", "Stream"]

CLOSED: Final = StreamState.CLOSED

_EXPIRED: Final = object()

_MSG_PEEK: Final = int(socket.MSG_PEEK)
_MSG_DONTWAIT: Final = int(getattr(socket, "MSG_DONTWAIT", 0))

_DATA_COMMAND: Final = bytes((Command.DATA,))
_SIZE_OFFSET: Final = HEADER_SIZE - 4

# The steps of every stream that is opened and closed. Looking them up in the enumeration takes as long as the step.
_SYN: Final = Step.SYN
_GONE: Final = Step.GONE
_CLOSE: Final = Step.CLOSE

# Bits of Stream._flags.
_READ_SHUT: Final = 1  # shutdown(SHUT_RD)
_BLOCKED_SENT: Final = 2  # the peer knows that its window holds us back
_REPORTED: Final = 4  # the application has been told what broke the stream
_CLOSE_WANTED: Final = 8  # close() was called while files made from the stream are open
_WROTE_TO_NOBODY: Final = 16  # the one write after the peer's close that TCP lets pass


class Observer(Protocol):
    """Is told when a stream may have become readable or writable. Called in the hub: must not wait."""

    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...

    def close(self) -> None: ...


class Stream(StreamCore):
    """A connected byte stream. Made by ``dial()`` and ``accept()``; has the methods, time-outs and errors of a connected TCP socket.

    One greenlet may read while another writes; a second one in the same half gets ConcurrentUseError. Bound to the thread that started its
    node. Every byte written before ``close()`` or ``shutdown()`` reaches the peer's buffer, unless the link is lost.
    """

    __slots__ = (
        "_flags",
        "_head",
        "_head_size",
        "_io_refs",
        "_observer",
        "_options",
        "_path",
        "_timeout",
        "_would_block",
        "outgoing",
        "recv_waiter",
        "send_waiter",
    )

    family: Final = socket.AF_INET
    type: Final = socket.SOCK_STREAM
    proto: Final = socket.IPPROTO_TCP

    def __init__(self, key: bytes, state: StreamState, path: Path) -> None:
        StreamCore.__init__(self, key, state)
        self._path = path
        self._timeout: float | None = socket.getdefaulttimeout()
        self._would_block: Callable[[], OSError] = StreamWouldBlockError
        self._flags = 0
        self._io_refs = 0
        # What the last small frame began with, for the next of the same size.
        self._head = b""
        self._head_size = 0
        self._options: dict[tuple[int, int], Any] | None = None
        self._observer: Observer | None = None
        self.outgoing: TurnSource | None = None
        self.recv_waiter: Any = None
        self.send_waiter: Any = None

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Up to ``bufsize`` bytes, ``b""`` at the end. Raises StreamTimeout, StreamResetError, StreamClosedError, BlockingIOError."""
        if type(bufsize) is not int:
            bufsize = operator.index(bufsize)
        if bufsize <= 0:
            if bufsize < 0:
                raise ValueError("negative buffersize in recv")
            return b""
        if self._path.link.thread != get_ident():
            self._check_thread()
        if (not self.buffered or flags) and not self._await_data(flags):
            return b""
        if flags & _MSG_PEEK:
            return self.peek(bufsize)
        held = self.received
        if type(held) is bytes and len(held) <= bufsize:
            # The head of take(), written out as in Link._receive().
            self.received = None
            self.buffered = 0
            data = held
        else:
            data = self.take(bufsize)
        # The head of consume(): most reads are far below half of a window.
        uncredited = self.uncredited + len(data)
        if uncredited < CREDIT_BYTES and uncredited * 2 < self.receive_window:
            self.uncredited = uncredited
        else:
            self._return_credit(len(data))
        if self._observer is not None:
            self._observer.on_readable()
        return data

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Read into ``buffer``; the number of bytes, 0 at the end. Raises as ``recv``."""
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise TypeError(f"recv_into() needs a buffer that can be written, not {type(buffer).__name__!r}")
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        if nbytes:
            if nbytes > len(view):
                raise ValueError("buffer too small for requested bytes")
            view = view[:nbytes]
        if self._path.link.thread != get_ident():
            self._check_thread()
        if not view or ((not self.buffered or flags) and not self._await_data(flags)):
            return 0
        if flags & _MSG_PEEK:
            data = self.peek(len(view))
            view[: len(data)] = data
            return len(data)
        count = self.take_into(view)
        self._return_credit(count)
        if self._observer is not None:
            self._observer.on_readable()
        return count

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, None]:
        """``(data, None)``, as a connected TCP socket."""
        return self.recv(bufsize, flags), None

    def recvfrom_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> tuple[int, None]:
        """``(count, None)``, as a connected TCP socket."""
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0) -> tuple[bytes, list[Any], int, None]:
        """``(data, [], 0, None)``: a stream carries no ancillary data."""
        if ancbufsize < 0:
            raise ValueError("invalid ancillary data buffer length")
        return self.recv(bufsize, flags), [], 0, None

    def recvmsg_into(self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0) -> tuple[int, list[Any], int, None]:
        """Fill the buffers in turn from what is there; ``(count, [], 0, None)``."""
        if ancbufsize < 0:
            raise ValueError("invalid ancillary data buffer length")
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        if any(view.readonly for view in views):
            raise TypeError("recvmsg_into() needs buffers that can be written")
        data = self.recv(sum(map(len, views)), flags)
        done = 0
        for view in views:
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        return done, [], 0, None

    def _await_data(self, flags: int = 0) -> bool:
        """Wait for data: True when some is buffered, False at the end of the stream."""
        deadline = 0.0
        link = self._path.link
        while not self.buffered:
            # The first line is what _may_receive() says of most streams.
            if (self.state is not OPEN or self._flags or link.forked) and not self._may_receive():
                return False
            timeout = self._timeout
            if timeout is not None or flags & _MSG_DONTWAIT:
                if not timeout or flags & _MSG_DONTWAIT:
                    raise self._would_block()
                now = time.monotonic()
                deadline = deadline or now + timeout
                timeout = deadline - now
            if self.recv_waiter is not None:
                raise ConcurrentUseError(f"{self!r} is already read by {self.recv_waiter!r}")
            if timeout is not None:
                self._wait("recv_waiter", timeout)
                continue
            # _wait() without a timer, written out: half of all calls of a busy program end here.
            hub = link.hub
            self.recv_waiter = current = getcurrent()
            if current is hub:
                self.recv_waiter = None
                raise AstraNetError(f"{self!r}: a callback that runs in the hub must not wait")
            try:
                if link.woken:  # a call less for who is woken alone
                    link.switch_away(current)
                else:
                    hub.switch()
            finally:
                if self.recv_waiter is current:
                    self.recv_waiter = None
        return True

    def _may_receive(self) -> bool:
        """Whether more data may come: False at the end. Raises what the state says."""
        if self._path.link.forked:
            self._check_thread()
        if self._flags & _READ_SHUT:
            return False
        state = self.state
        if state is OPEN or state is SENT_FIN:
            return True
        if state in ENDED:
            return False
        raise self._receive_error()

    def _receive_error(self) -> Exception:
        if self.state is CLOSED:
            return StreamClosedError()
        if self.state is DIALING:
            return StreamNotConnectedError()
        self._flags |= _REPORTED
        return self._error_copy()

    def _error_copy(self) -> Exception:
        # A new object each time: one that is raised twice drags its first traceback along.
        error = self.error
        return type(error)(error.strerror) if isinstance(error, OSError) else StreamResetError()

    def _return_credit(self, count: int) -> None:
        credit = self.consume(count)
        if not credit or self.state not in (OPEN, SENT_FIN):
            return
        link = self._path.link
        key = reverse_key(self.key)
        if self.receive_window >= LARGE_WINDOW:
            link.note_credit(self, credit)
        if self.sender_blocked:
            growth = link.grow_window(self)
            if growth:
                link.send_control(encode_frame(Command.WND_SIZE, key, encode_u32(self.enlarge(growth))))
        link.send_control(encode_frame(Command.REWIND, key, encode_u32(credit)))

    # -- writing ---------------------------------------------------------------------------------------------------------------

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        """Queue some of ``data``; the number of bytes. Waits only while nothing can be queued. Raises as a TCP socket's ``send``."""
        view = data if type(data) is bytes else memoryview(data).cast("B")
        if not view:
            self._check_sendable()
            return 0
        deadline = 0.0
        while True:
            sent = self._push(view)
            if sent:
                return sent if sent == len(view) else sent + self._push_more(data, sent)
            deadline = self._await_room(deadline, flags)

    def _push_more(self, data: ReadableBuffer, sent: int) -> int:
        """Queue what fits after the first frame; its size. Programs that cut the rest off after each ``send`` copy it each time."""
        view = memoryview(data).cast("B")
        start = sent
        while sent < len(view):
            size = self._push(view[sent:])
            if not size:
                break
            sent += size
        return sent - start

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        """Queue all of ``data``; on an error an unknown part of it. The timeout is for the whole call."""
        view = data if type(data) is bytes else memoryview(data).cast("B")
        left = len(view)
        if not left:
            self._check_sendable()
            return
        sent = self._push(view)
        if sent == left:
            return
        self._send_rest(data, sent, flags)

    def _send_rest(self, data: ReadableBuffer, sent: int, flags: int) -> None:
        # Slices of bytes are memoryviews that keep the object alive and are sent without a copy.
        view = memoryview(data).cast("B")[sent:]
        deadline = 0.0
        while view:
            sent = self._push(view)
            if sent:
                view = view[sent:]
            else:
                deadline = self._await_room(deadline, flags)

    def sendmsg(self, buffers: Iterable[ReadableBuffer], ancdata: Iterable[Any] = (), flags: int = 0, address: Any = None) -> int:
        """Queue some of the buffers' bytes in order; the number of bytes. Ancillary data is refused (EINVAL), an address is ignored."""
        refused = _check_ancillary(ancdata)
        operator.index(flags)
        if address is not None:
            _check_ignored(address)
        if refused:
            raise OSError(errno.EINVAL, "a stream carries no ancillary data")
        return self.send(b"".join(memoryview(buffer).cast("B") for buffer in buffers), flags)

    def sendto(self, data: ReadableBuffer, *args: Any) -> int:
        """``sendto(data, address)`` or ``sendto(data, flags, address)``: as ``send``: as with TCP on Linux the address is ignored."""
        if len(args) not in (1, 2):
            raise TypeError(f"sendto() takes 2 or 3 arguments, not {1 + len(args)}")
        _check_ignored(args[-1])
        return self.send(data, operator.index(args[0]) if len(args) == 2 else 0)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a binary file from ``offset``, ``count`` bytes of it or all; the number of bytes sent."""
        if "b" not in getattr(file, "mode", "b"):
            raise ValueError("file should be opened in binary mode")
        if count is not None and count <= 0:
            raise ValueError(f"count must be a positive integer (got {count!r})")
        if self._timeout == 0:
            raise ValueError("non-blocking sockets are not supported")
        if offset:
            file.seek(offset)
        total = 0
        try:
            while count is None or total < count:
                data = file.read(MAX_PAYLOAD if count is None else min(MAX_PAYLOAD, count - total))
                if not data:
                    break
                self.sendall(data)
                total += len(data)
        finally:
            if total and hasattr(file, "seek"):
                file.seek(offset + total)
        return total

    def _push(self, data: bytes | memoryview) -> int:
        """Queue as much of ``data`` (not empty) as there is room for now, at least a frame; 0 when the caller has to wait."""
        path = self._path
        link = path.link
        if link.thread != get_ident():
            self._check_thread()
        if self.state is not OPEN and self.state is not GOT_FIN:
            return self._push_in_vain(len(data))
        left = self.send_left
        size = len(data)
        if size > left or size > path.max_payload:
            size = min(left, path.max_payload)
        if size <= 0 or path.paused:
            return 0
        queue = link.queue
        if size > SMALL_FRAME or (self.outgoing is not None and self.outgoing.pending):
            return self._push_turns(data, size)
        if queue.small_bytes >= queue.limit:
            return 0
        head = self._head if size == self._head_size else self._make_head(size)
        if size < UNJOINED_PAYLOAD or type(data) is not bytes or size != len(data):
            # push_small(), written out.
            queue.small.append(head + (data if size == len(data) else data[:size]))
            queue.small_bytes += HEADER_SIZE + size
        else:
            queue.push_small_parts(head, data)
        self.send_left = left - size
        if link.parts_left:
            link.add_part()
        elif not link.flush_scheduled:
            link.schedule_flush()
        return size

    def _make_head(self, size: int) -> bytes:
        """What a small frame of ``size`` bytes begins with. An interrupt finds both attributes as they were, or both new."""
        start = self._head[:_SIZE_OFFSET] if self._head else _DATA_COMMAND + reverse_key(self.key)
        self._head = head = start + encode_u32(size)
        self._head_size = size
        return head

    def _push_turns(self, data: bytes | memoryview, size: int) -> int:
        """Queue as much of ``data`` as there is room for, in frames that wait for their turn, the first of ``size`` bytes; how much."""
        path = self._path
        link = path.link
        queue = link.queue
        room = queue.limit - queue.turn_bytes
        if room <= 0:
            return 0
        largest = path.max_payload
        if largest > link.turn_payload and (queue.turns or len(data) > largest):
            # What fits into one frame, with nothing before it, goes in one: its reader gives credit for all of it.
            largest = link.turn_payload
            size = min(size, largest)
        payload = memoryview(data)
        left = min(len(payload), self.send_left)
        if type(payload.obj) is not bytes:
            # The caller may change its buffer as soon as send() returns, or free it: a view that is read-only promises neither
            # (io.BufferedWriter passes views of its own memory).
            left = size
            payload = memoryview(bytes(payload[:size]))
        source = self.outgoing
        if source is None:
            source = self.outgoing = TurnSource()
        head = _DATA_COMMAND + reverse_key(self.key)
        start = 0
        while True:
            stop = start + size
            queue.push_turn(source, (head + encode_u32(size), payload[start:stop]))
            start = stop
            size = min(left - start, largest)
            if size <= 0 or start >= room:
                break
        self.send_left -= start
        if not link.flush_scheduled:
            link.schedule_flush()
        return start

    def send_early(self, data: bytes) -> int:
        """Queue what may go with the dial, before it has been accepted; how much. Nodes of the original take nothing before that."""
        path = self._path
        queue = path.link.queue
        if self.state is not DIALING or not path.capabilities.own_kind or path.paused or queue.small_bytes >= queue.limit:
            return 0
        sent = 0
        # Not kept: the answer may come from another port.
        head = _DATA_COMMAND + reverse_key(self.key)
        while sent < len(data) and self.send_left > 0:
            payload = data[sent : sent + min(self.send_left, path.max_payload)]
            queue.push_small(head + encode_u32(len(payload)) + payload)
            self.send_left -= len(payload)
            sent += len(payload)
        return sent

    def _push_in_vain(self, size: int) -> int:
        self._check_sendable()
        # PEER_GONE: as with TCP, the first write after the peer's close is taken, and the next one learns of it.
        self._flags |= _WROTE_TO_NOBODY
        return size

    def _check_sendable(self) -> None:
        state = self.state
        if state is OPEN or state is GOT_FIN:
            return
        if state is CLOSED:
            raise StreamClosedError
        if state is DIALING:
            raise StreamNotConnectedError
        if state is RESET and not self._flags & _REPORTED:
            self._flags |= _REPORTED
            raise self._error_copy()
        if state is PEER_GONE and self.error is None and not self._flags & _WROTE_TO_NOBODY:
            return
        raise StreamBrokenPipeError

    def _await_room(self, deadline: float, flags: int) -> float:
        """Wait until ``_push`` may succeed; the deadline, made from the timeout the first time (0.0 until then)."""
        timeout = self._timeout
        path = self._path
        if self.send_left <= 0:
            self._tell_blocked()
        if timeout is not None or flags & _MSG_DONTWAIT:
            if not timeout or flags & _MSG_DONTWAIT:
                raise self._would_block()
            now = time.monotonic()
            deadline = deadline or now + timeout
            timeout = deadline - now
        if self.send_waiter is not None:
            raise ConcurrentUseError(f"{self!r} is already written by {self.send_waiter!r}")
        blocked = path.blocked if path.paused else path.link.blocked
        if self.send_left > 0:
            blocked[self] = None
        try:
            self._wait("send_waiter", timeout)
        finally:
            blocked.pop(self, None)
        return deadline

    def _tell_blocked(self) -> None:
        path = self._path
        if path.capabilities.window and not self._flags & _BLOCKED_SENT and self.state in LIVE:
            self._flags |= _BLOCKED_SENT
            path.link.send_control(encode_frame(Command.BLOCKED, reverse_key(self.key)))

    # -- waiting ---------------------------------------------------------------------------------------------------------------

    def _wait(self, slot: str, timeout: float | None) -> None:
        """Wait in a slot until woken; raises StreamTimeout after ``timeout`` seconds. The slot is empty afterwards, whatever happens."""
        link = self._path.link
        hub = link.hub
        current = getcurrent()
        if current is hub:
            raise AstraNetError(f"{self!r}: a callback that runs in the hub must not wait")
        if timeout is not None and timeout <= 0:
            raise StreamTimeout
        timer = None
        setattr(self, slot, current)
        try:
            if timeout is not None:
                timer = link.deadlines.begin(current, timeout, self._expire, slot)
            if link.switch_away(current) is _EXPIRED:
                raise StreamTimeout
        finally:
            if getattr(self, slot) is current:
                setattr(self, slot, None)
            if timeout is not None:
                link.deadlines.finish(current, timer)

    def _expire(self, slot: str, waiter: Any) -> None:
        if getattr(self, slot) is waiter:
            setattr(self, slot, None)
            waiter.switch(_EXPIRED)

    def keep_readiness(self, readiness: Readiness) -> None:
        """Answer ``fileno()`` with a descriptor that exists already, and keep it up to date. Only before the first ``fileno()``."""
        self._check_thread()
        if self._observer is not None:
            raise LocalProtocolError(f"{self!r} has a descriptor already")
        self._observer = readiness
        readiness.move(self)

    def release_descriptor(self) -> int:
        """Give the number of ``fileno()`` away, open, for the caller to put something else under it; -1 if there is none."""
        observer, self._observer = self._observer, None
        return -1 if observer is None else cast("Readiness", observer).release()

    def wake_when_readable(self, waiter: Any) -> None:
        """Have ``waiter.switch()`` called once, in the hub, when ``recv`` has something to return or to raise.

        A greenlet of gevent's class is switched to as one that waits in ``recv``.
        For sockets that bring waits of their own: ``waiter`` takes the place of a greenlet. Raises ConcurrentUseError when it is taken.
        """
        link = self._path.link
        if link.thread != get_ident():
            self._check_thread()
        if self.recv_waiter is not None and self.recv_waiter is not waiter:
            raise ConcurrentUseError(f"{self!r} is already read by {self.recv_waiter!r}")
        self.recv_waiter = waiter
        if self.buffered or (self.state is not OPEN and self.readable):
            link.wake_later(self, True, False)

    def wake_when_writable(self, waiter: Any) -> None:
        """As ``wake_when_readable``, for ``send``."""
        self._check_thread()
        if self.send_waiter is not None and self.send_waiter is not waiter:
            raise ConcurrentUseError(f"{self!r} is already written by {self.send_waiter!r}")
        path = self._path
        self.send_waiter = waiter
        if self.writable:
            path.link.wake_later(self, False, True)
        elif self.send_left <= 0:
            self._tell_blocked()
        else:
            (path.blocked if path.paused else path.link.blocked)[self] = None

    def forget_reader(self, waiter: Any) -> None:
        """Take a ``wake_when_readable`` back; nothing if it has fired."""
        if self.recv_waiter is waiter:
            self.recv_waiter = None

    def forget_writer(self, waiter: Any) -> None:
        """Take a ``wake_when_writable`` back; to be called when it has fired too."""
        if self.send_waiter is waiter:
            self.send_waiter = None
        if self.send_waiter is None:
            self._path.blocked.pop(self, None)
            self._path.link.blocked.pop(self, None)

    def _wake_all(self) -> None:
        if self.recv_waiter is not None or self.send_waiter is not None:
            self._path.link.wake_later(self, True, True)
        if self._observer is not None:
            self._observer.on_readable()
            self._observer.on_writable()

    def wait_dialled(self, deadline: float) -> None:
        """Wait until the peer has accepted; ``deadline`` is monotonic. Raises StreamTimeout, DialRefusedError or what broke the stream."""
        while self.state is DIALING:
            self._wait("send_waiter", deadline - time.monotonic())
        if self.state is RESET:
            raise self._error_copy()
        if self.state is CLOSED:
            raise StreamClosedError

    def _check_thread(self) -> None:
        link = self._path.link
        if link.forked:
            raise ForkedError("the node was started before a fork: start a new one in the child")
        if link.thread != get_ident():
            raise WrongThreadError(f"{self!r} belongs to another thread; start a node of its own in this thread, or hand the work over")

    # -- frames of this stream -------------------------------------------------------------------------------------------------

    def receive_syn(self) -> None:
        """The acceptor has taken our dial."""
        if self.step(_SYN):
            path = self._path
            if not path.capabilities.own_kind:
                path.link.send_control(encode_frame(Command.ACK, reverse_key(self.key)))
            self._wake_all()

    def receive_fin2(self, payload: bytes) -> None:
        """The peer writes no more."""
        if self.step(Step.FIN):
            self._after_step()

    def receive_fin1(self, payload: bytes) -> None:
        """The peer has closed."""
        if self.step(_GONE):
            self._drop_outgoing()
            self._after_step()

    def receive_rewind(self, payload: bytes) -> None:
        """Credit."""
        if len(payload) != 4 or not self.receive_credit(int.from_bytes(payload, "big")):
            self.fail(ResetCode.OVERRUN, f"REWIND of {payload[:8].hex() or 'no bytes'} beyond what was sent")
        else:
            self._room_changed()

    def receive_wnd_size(self, payload: bytes) -> None:
        """A new size of the peer's window."""
        if len(payload) != 4:
            self.fail(ResetCode.OVERRUN, f"WND_SIZE with {len(payload)} bytes instead of 4")
        else:
            self.receive_window_size(int.from_bytes(payload, "big"))
            self._room_changed()

    def receive_blocked(self, payload: bytes) -> None:
        """Our window holds the peer back."""
        self.sender_blocked = True

    def receive_force_closed(self, payload: bytes) -> None:
        """The peer reset this stream, or refused it."""
        code = int.from_bytes(payload[:4], "big") if len(payload) >= 4 else ResetCode.RESET
        reason = payload[4 : 4 + MAX_REASON].decode("utf-8", "replace")
        if self.state is DIALING and code in (ResetCode.REFUSED, ResetCode.LIMIT):
            self.break_off(DialRefusedError(reason or None))
        else:
            self.break_off(StreamResetError(f"reset by the peer: {reason}" if reason else None))

    def _room_changed(self) -> None:
        if self.send_left > 0:
            self._flags &= ~_BLOCKED_SENT
            if self.send_waiter is not None:
                self._path.link.wake_later(self, False, True)
            if self._observer is not None:
                self._observer.on_writable()

    def _after_step(self) -> None:
        if self.state not in LIVE:
            self._path.link.forget(self)
        self._wake_all()

    def break_off(self, error: Exception) -> None:
        """The stream is broken from outside: who waits wakes, what has arrived stays readable."""
        if self.step(Step.BREAK):
            self.error = error
            self._drop_outgoing()
            self._path.link.forget(self)
            self._wake_all()

    def fail(self, code: int, reason: str) -> None:
        """The peer broke the rules of this stream: reset it at both ends."""
        self._send_frames(self._path.reset_frames(reverse_key(self.key), code, reason))
        self.break_off(StreamResetError(f"reset because the peer sent {reason}"))

    def abort(self, reason: str = "", code: int = ResetCode.RESET) -> None:
        """Close at once and reset the peer, whatever is unread or unsent."""
        self._check_thread_of_close()
        if self.state in LIVE and self.state is not DIALING:
            self._drop_outgoing()
            self._send_frames(self._path.reset_frames(reverse_key(self.key), code, reason))
            self.step(Step.BREAK)
            self._path.link.forget(self)
        self._close()

    # -- closing ---------------------------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one half or both, as a socket's ``shutdown``. Raises StreamNotConnectedError when there is no connection (any more)."""
        how = operator.index(how)
        if not -(2**31) <= how < 2**31:
            raise OverflowError(f"shutdown() takes a C int, not {how}")
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._check_thread()
        if self.state is CLOSED:
            raise StreamClosedError
        if self.state is DIALING or self.state is RESET:
            raise StreamNotConnectedError
        if how != socket.SHUT_WR:
            self._flags |= _READ_SHUT
        was_live = self.state in LIVE
        if how != socket.SHUT_RD and self.step(Step.SHUTDOWN) and was_live:
            self._send_frames(encode_frame(Command.FIN2, reverse_key(self.key)))
            if self.state not in LIVE:
                self._path.link.forget(self)
        self._wake_all()

    def close(self) -> None:
        """Close. With nothing unread the peer sees the end of the stream; with unread data, or SO_LINGER 0, a reset. Waiters get EBADF."""
        self._flags |= _CLOSE_WANTED
        if self._io_refs <= 0:
            self._close()

    def _close(self) -> None:
        state = self.state
        if state is CLOSED:
            return
        if self._path.link.thread != get_ident():
            self._check_thread_of_close()
        self.step(_CLOSE)
        link = self._path.link
        key = reverse_key(self.key)
        if state is DIALING:
            link.cancel_dial(self, key)
        elif state in LIVE and (self.buffered or self._lingers_not()):
            self._drop_outgoing()
            self._send_frames(self._path.reset_frames(key, ResetCode.RESET, ""))
        elif state is GOT_FIN:
            self._send_frames(encode_frame(Command.FIN2, key))
        elif state in LIVE:
            self._send_frames(self._path.close_frames(key, state is SENT_FIN))
        self.discard()
        link.forget(self)
        self._wake_all()
        if self._observer is not None:
            self._observer.close()
            self._observer = None

    def _check_thread_of_close(self) -> None:
        # In a forked child close() must work, and must not write to the parent's link.
        if not self._path.link.forked:
            self._check_thread()

    def close_soon(self) -> None:
        """As ``close()``, from any thread: for finalizers, which run wherever the last reference is let go of."""
        self._path.link.hub.loop.run_callback_threadsafe(self.close)

    def detach(self) -> int:
        """Not available: a stream has no descriptor of its own that would carry its bytes."""
        raise OSError(errno.EOPNOTSUPP, "a stream has no descriptor to detach: read and write the stream itself")

    def _lingers_not(self) -> bool:
        option = (self._options or {}).get((socket.SOL_SOCKET, socket.SO_LINGER))
        if not isinstance(option, (bytes, bytearray)) or len(option) < 8:
            return False
        on, seconds = struct.unpack_from("ii", option)
        return bool(on) and seconds == 0

    def _drop_outgoing(self) -> None:
        if self.outgoing is not None:
            self._path.link.queue.remove(self.outgoing)
            self.outgoing = None

    def _send_frames(self, frames: bytes) -> None:
        """Queue frames that must not overtake this stream's data."""
        link = self._path.link
        if self.outgoing is not None and self.outgoing.pending:
            link.queue.push_turn(self.outgoing, (frames,))
        else:
            link.queue.push_small(frames)
            if link.parts_left:
                # The end of a stream is part of the answer.
                link.add_part()
                return
        if not link.flush_scheduled:
            link.schedule_flush()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- files -----------------------------------------------------------------------------------------------------------------

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """A file over the stream, with the arguments of ``open()``. The stream stays open until its files are closed too."""
        raw = StreamIO(self, mode)
        self._io_refs += 1
        return open_file(raw, mode, buffering, encoding, errors, newline)

    def _release_file(self) -> None:
        self._io_refs -= 1
        if self._io_refs <= 0 and self._flags & _CLOSE_WANTED:
            self._close()

    def _decref_socketios(self) -> None:
        # The name by which gevent's servers and socket.SocketIO release a file.
        self._release_file()

    # -- shape of a socket -----------------------------------------------------------------------------------------------------

    @property
    def timeout(self) -> float | None:
        """Seconds for each call; None waits for ever, 0.0 does not wait."""
        return self._timeout

    def gettimeout(self) -> float | None:
        """The timeout in seconds, None for none."""
        return self._timeout

    def settimeout(self, value: float | None) -> None:
        """Set the timeout in seconds for calls from now on. Raises ValueError below 0."""
        if value is not None:
            value = check_timeout(value)
        self._timeout = value

    def setblocking(self, flag: bool) -> None:
        """``settimeout(None)`` or ``settimeout(0.0)``."""
        self._timeout = None if flag else 0.0

    def set_would_block(self, make_error: Callable[[], OSError]) -> None:
        """Have what ``make_error()`` returns raised where a call that must not wait would have to, in place of StreamWouldBlockError."""
        self._would_block = make_error

    def getblocking(self) -> bool:
        """Whether calls may wait."""
        return self._timeout != 0.0

    def getpeername(self) -> tuple[int, int]:
        """``(node_id, port)`` of the other end. Raises StreamNotConnectedError, StreamClosedError."""
        if self.state is CLOSED:
            raise StreamClosedError
        if self.state is DIALING or self.state is RESET:
            raise StreamNotConnectedError
        _, node_id, _, port = split_key(self.key)
        return node_id, port

    def getsockname(self) -> tuple[int, int]:
        """``(node_id, port)`` of this end. Raises StreamClosedError."""
        if self.state is CLOSED:
            raise StreamClosedError
        node_id, _, port, _ = split_key(self.key)
        return node_id, port

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> Any:
        """What was set, or what a connected TCP socket would answer. Raises OSError(ENOPROTOOPT) for unknown options."""
        if self.state is CLOSED:
            raise StreamClosedError
        return get_option(self._options or {}, level, option, buflen, self.take_error)

    def setsockopt(self, level: int, option: int, value: Any, optlen: int | None = None) -> None:
        """Remember an option; SO_LINGER takes effect. Raises OSError(ENOPROTOOPT) for options that TCP does not know."""
        if self.state is CLOSED:
            raise StreamClosedError
        if self._options is None:
            self._options = {}
        set_option(self._options, level, option, value)

    def take_error(self) -> int:
        """The errno of what broke the stream, once; 0 afterwards."""
        if self.error is None or self._flags & _REPORTED:
            return 0
        self._flags |= _REPORTED
        return self.error.errno or errno.ECONNRESET if isinstance(self.error, OSError) else errno.ECONNRESET

    def fileno(self) -> int:
        """A descriptor that polls as readable while data or the end waits; -1 once closed. It carries no bytes itself."""
        from .readiness import Readiness

        if self.state is CLOSED:
            return -1
        self._check_thread()
        if self._observer is None:
            self._observer = Readiness(self)
        return cast("Readiness", self._observer).fileno()

    @property
    def readable(self) -> bool:
        """Whether ``recv`` would return (or raise) at once."""
        return bool(self.buffered) or (self.state is not OPEN and self.state is not SENT_FIN and self.state is not DIALING)

    @property
    def writable(self) -> bool:
        """Whether ``send`` would return (or raise) at once."""
        if self.state is DIALING:
            return False
        if self.state is not OPEN and self.state is not GOT_FIN:
            return True
        queue = self._path.link.queue
        return self.send_left > 0 and not self._path.paused and queue.small_room and queue.turn_room

    def __repr__(self) -> str:
        remote, local, rport, lport = split_key(self.key)
        return f"<Stream {self.state.name} {remote:#x}:{rport} <-> {local:#x}:{lport}>"


def _check_ancillary(ancdata: Iterable[Any]) -> int:
    """How many items of ancillary data there are. Raises TypeError for what is none."""
    count = 0
    for item in ancdata:
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            raise TypeError("an item of ancillary data is (level, type, data)")
        operator.index(item[0])
        operator.index(item[1])
        memoryview(item[2])
        count += 1
    return count


def _check_ignored(address: Any) -> None:
    if not isinstance(address, tuple):
        raise TypeError(f"an address is a tuple, not {type(address).__name__!r}")


def check_timeout(value: Any) -> float:
    """A timeout in seconds as a float. Raises TypeError for what is not a number, ValueError below 0."""
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        raise TypeError(f"a timeout is a number of seconds or None, not {type(value).__name__!r}")
    seconds = float(value)
    if not seconds >= 0:
        raise ValueError("Timeout value out of range")
    return seconds
