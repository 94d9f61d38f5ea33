"""Outlet: the sending half of a link, as its streams see it.

Rules for editing: sending is a callback that hands the Conn what is queued, without waiting; only what the Conn does not take at once is
left to the writer greenlet. Nothing here may wait but that greenlet.
"""

from __future__ import annotations

import sys
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import Event
from gevent.hub import Hub

from ..config import Config
from ..errors import RemoteProtocolError
from ..protocol.frame import MAX_PAYLOAD
from ..protocol.link import CLOSED, DRAINING, LinkCore
from ..threads import get_ident
from .busy_poll import BusyPoll
from .conn import Buffer, Conn, SocketConn, broken_off
from .deadlines import Deadlines
from .send_queue import SendQueue

if TYPE_CHECKING:
    from .stream import Stream

__all__ = ["Outlet"]

# While those who got data are still being run, what has come together is sent after so many seconds, so that the other process works at
# the same time: without that 30 echoing streams are half as fast. Each time takes twice as long as the one before, up to a limit: an answer
# waits about as long as those before it took to make, at most 4 ms and until the one who is being run waits again. As often to the end,
# 1000 streams lost a tenth to a fifth, and 32 clients of HTTP a tenth, most of it to waking the peer. Sending the very first answer at once
# cost 4 and 10 streams a sixth.
_EARLY_FLUSH: Final = 50e-6
_LATEST_FLUSH: Final = 4e-3

# Small frames of one answer up to which it is told from their number that it is whole: with more it is hardly alike each time. And more
# than anybody writes in a turn, where that number is not known.
_MOST_PARTS: Final = 8
_UNKNOWN_PARTS: Final = 1 << 30

# Batches sent in one go before other greenlets get their turn.
_BATCHES_PER_FLUSH: Final = 4

# The same for some time after a small frame was sent, or read together with bulk, in seconds: its answer is waited for. Pings beside ten
# streams in bulk take 1.1 ms over loopback instead of 1.9, and these are as fast; 100 streams alone would lose a tenth of their rate.
_BATCHES_BESIDE_SMALL: Final = 2
_SMALL_TIME: Final = 0.1

# Seconds after which large frames go along with small ones on a slow path even if its socket has not become writable in between.
_LATEST_TURN: Final = 5e-3

# Seconds without small messages after which bulk counts as alone on its link.
_ALONE_AFTER: Final = 1.0


class Outlet:
    """What a link has to send, and the sending of it. ``Link`` adds the receiving half and says what happens at the end."""

    def __init__(self, config: Config, core: LinkCore, conn: Conn | SocketConn, hub: Hub, busy_poll: BusyPoll) -> None:
        self.hub = hub
        # Compared in every call of a stream; after a fork it is that of no thread.
        self.thread = get_ident()
        self.forked = False
        self.core = core
        self.queue = SendQueue(config.queue_bytes)
        # Of all who wait for a stream of this link.
        self.deadlines = Deadlines(hub.loop)
        # Senders that wait for room in the queue, in the order in which they came.
        self.blocked: dict[Stream, None] = {}
        self.flush_scheduled = False
        # While somebody who got data is run alone: how many small frames of the answer are still to come before it is sent.
        self.parts_left = 0
        # Of how many frames such an answer was the last time: it is sent when as many have been written.
        self._answer_parts = _UNKNOWN_PARTS
        # Streams whose readers are being run, the next one last: see switch_away(). Empty at other times.
        self.woken: list[Stream] = []
        self._conn = conn
        self._busy_poll = busy_poll
        # Whether what was read last was bulk, of which more is not polled for.
        self._bulk_read = False
        self._control_frames = config.control_frames
        # Made by a close() that waits until everything is sent.
        self._flushed: Event | None = None
        # What the Conn did not take; the writer greenlet is at work on it while ``_writing``.
        self._leftover: list[Buffer] = []
        self._writing = False
        self._writer_parked = False
        self._send_failed = False
        self._flush_due = 0.0
        self._early_wait = _EARLY_FLUSH
        # Whether the flush goes on as often as the socket can be written: until all is sent, also while the writer waits for the same.
        self._continuing = False
        # Whether that is why it goes on now.
        self._can_write = False
        # Until when large frames stay here if that is not why.
        self._turns_due = 0.0
        # Largest payload of a frame that waits for its turn: a slow path gets smaller ones, for the small frames to pass between them.
        self.turn_payload = MAX_PAYLOAD
        # When a small message was last sent, or read together with bulk.
        self._small_seen = -inf
        self._writer: Any = None

    # -- what the other half decides -------------------------------------------------------------------------------------------

    def end(self, error: Exception | None) -> None:
        """End the link now."""
        raise NotImplementedError

    def _last_words(self, error: OSError) -> None:
        """Sending has failed: end the link once what the peer sent before has been read, or soon."""
        raise NotImplementedError

    def switch_away(self, current: Any) -> Any:
        """Leave ``current``, which has to wait, for the next one of ``woken``, or for the hub; what ``current`` is woken with."""
        raise NotImplementedError

    def _end_if_drained(self) -> None:
        """End the link if it takes no more streams and has none left."""
        raise NotImplementedError

    def _writer_done(self) -> None:
        """The writer greenlet has ended: the descriptor goes with the last of the two."""
        raise NotImplementedError

    # -- queueing --------------------------------------------------------------------------------------------------------------

    def send_control(self, frame: bytes) -> None:
        """Queue a control frame. A peer that makes us queue more than ``control_frames`` of them loses its link."""
        queue = self.queue
        queue.push_control(frame)
        if queue.control_count > self._control_frames:
            self.end(
                RemoteProtocolError(
                    f"{queue.control_count} control frames wait for a peer that does not read them (control_frames {self._control_frames})"
                )
            )
        elif not self.flush_scheduled:
            self.schedule_flush()

    def schedule_flush(self) -> None:
        """Have the queue sent when the greenlets that run now have run."""
        self.flush_scheduled = True
        self.hub.loop.run_callback(self._flush)

    def _continue_flush(self) -> None:
        """Have the rest of the queue sent after the loop has looked for what there is to read: callbacks would go before that for 5 ms."""
        conn = self._conn
        if isinstance(conn, SocketConn):
            self.flush_scheduled = True
            if not self._continuing:
                self._continuing = True
                conn.start_writing(self._flush_writable)
        else:
            self.schedule_flush()

    # -- early answers ---------------------------------------------------------------------------------------------------------

    def start_early_flushes(self) -> None:
        """Several who got data are run from now on."""
        self._early_wait = _EARLY_FLUSH
        self._flush_due = monotonic() + _EARLY_FLUSH

    def begin_answer(self) -> None:
        """Somebody who got data is run alone from now on, until ``end_answer()``."""
        self.parts_left = self._answer_parts

    def add_part(self) -> None:
        """Somebody who is run alone has written a small frame: send the answer if that was the last one, for the peer to work on it."""
        self.parts_left -= 1
        if not self.parts_left and not self._writing and not self.queue.turns:
            self._flush_once()

    def end_answer(self) -> None:
        """Whoever was run alone waits again: tell from what has been written when such answers are whole.

        What is left to do until the writer waits again takes as long as a switch, or, in a server of HTTP, as a system call. But the parts
        of one answer, as head and body of a response, are worth a frame each and not a system call and a wake-up of the peer each.
        """
        queue = self.queue
        parts = self._answer_parts - self.parts_left
        if queue.turns:
            # Large data goes in large batches, and the head of a large answer with it.
            self._answer_parts = _UNKNOWN_PARTS
        elif not self.parts_left:
            if queue.small:
                # There was more, or it could not be sent at once: it is counted the next time.
                self._answer_parts = _UNKNOWN_PARTS
        elif parts:
            self._answer_parts = parts if parts <= _MOST_PARTS else _UNKNOWN_PARTS
        self.parts_left = 0

    def flush_early(self) -> None:
        """Send what has come together so far, unless there is large data in it: that is sent best in large batches."""
        queue = self.queue
        if not self._writing and not queue.turns and (queue.control or queue.small):
            self._early_wait = min(self._early_wait * 2, _LATEST_FLUSH)
            self._flush_once()
        self._flush_due = monotonic() + self._early_wait

    # -- sending ---------------------------------------------------------------------------------------------------------------

    def wants_flush(self) -> bool:
        """Whether there is something to send, or somebody who waits for what _flush() does when all is sent (only while draining)."""
        queue = self.queue
        return bool(queue.small or queue.control or queue.turns or self.blocked or self.core.state is DRAINING)

    def _flush(self) -> None:
        queue = self.queue
        # Those who are woken need not schedule another one: what they queue is seen below.
        self.flush_scheduled = True
        try:
            if not self._writing and (queue.small or queue.control or queue.turns):
                batches = self._batches_now() if queue.turns else 1
                while self._flush_once() and batches > 1:
                    batches -= 1
            if self.blocked:
                self._wake_blocked()
        except BaseException:
            # An interrupt; gevent stops a watcher whose callback raises. If the link goes on, so do those who wait.
            self._stop_continuing()
            if self.core.state is not CLOSED:
                self.hub.loop.run_callback(self._flush)
            raise
        finally:
            self.flush_scheduled = False
        if self._writing:
            return
        if queue.small or queue.control or queue.turns:
            self._continue_flush()
        else:
            self._all_sent()

    def _flush_writable(self) -> None:
        self._can_write = True
        try:
            self._flush()
        finally:
            self._can_write = False

    def _stop_continuing(self) -> None:
        if self._continuing and isinstance(self._conn, SocketConn):
            self._continuing = False
            self._conn.stop_writing()

    def _all_sent(self) -> None:
        self._stop_continuing()
        if self._flushed is not None:
            self._flushed.set()
        if self.core.state is DRAINING:
            self._end_if_drained()

    def _batches_now(self) -> int:
        """How many batches of large frames may go before the loop looks for what has come."""
        now = monotonic()
        if self.queue.small:
            self._small_seen = now
        conn = self._conn
        if isinstance(conn, SocketConn):
            conn.suit_path(now, self._bulk_is_alone(now))
            self.turn_payload = min(conn.batch_bytes, MAX_PAYLOAD)
            if self.turn_payload < MAX_PAYLOAD:
                return 1
        return _BATCHES_BESIDE_SMALL if now < self._small_seen + _SMALL_TIME else _BATCHES_PER_FLUSH

    def _bulk_is_alone(self, now: float) -> bool:
        return now > self._small_seen + _ALONE_AFTER

    def _flush_once(self) -> bool:
        """Hand one batch to the Conn; the writer greenlet gets what it does not take at once. Whether more can be sent now."""
        queue = self.queue
        if self.core.state is CLOSED or self._send_failed:
            queue.clear()
            return False
        has_small = bool(queue.small)
        try:
            batch = queue.take(0 if self._holds_turns_back() else self._conn.batch_bytes)
            if not batch:
                return False
            leftover = self._conn.try_send(batch)
            if leftover:
                self._leftover = list(leftover)
                self._writing = True
                self._run_writer()
                return False
        except OSError as error:
            self._sending_failed(error)
            return False
        except BaseException as error:
            # Nobody knows how much of the batch has gone, and what comes after a gap must not.
            self.end(broken_off(error, "the link sent"))
            raise
        now = monotonic()
        if has_small:
            self._small_seen = now
        self.core.note_sent(now)
        if not self._bulk_read:
            self._busy_poll.expect(now)
        return bool(queue.turns)

    def _holds_turns_back(self) -> bool:
        """Whether large frames stay here until the socket is writable: Linux takes them before that, beyond TCP_NOTSENT_LOWAT."""
        if self.turn_payload >= MAX_PAYLOAD:
            return False
        now = monotonic()
        if self._continuing and not self._can_write and now < self._turns_due:
            return True
        self._turns_due = now + _LATEST_TURN
        return False

    def _sending_failed(self, error: OSError) -> None:
        """The peer is gone. What it sent before may still be there to be read; the end comes when that has been, or soon."""
        self.queue.clear()
        if not self._send_failed and self.core.state is not CLOSED:
            self._send_failed = True
            self._last_words(error)

    def _wake_blocked(self) -> None:
        """Let senders that wait for room fill the queue again, one at a time."""
        queue = self.queue
        for _ in range(len(self.blocked)):
            if not (queue.turn_room and queue.small_room) or not self.blocked:
                return
            stream = next(iter(self.blocked))
            del self.blocked[stream]
            waiter, stream.send_waiter = stream.send_waiter, None
            if waiter is not None:
                self._switch_to(waiter)

    def _switch_to(self, waiter: Any) -> None:
        try:
            waiter.switch()
        except BaseException:  # noqa: BLE001 - the code of others, and the hub decides what ends the process
            # A raw greenlet that dies hands its exception to us; the others must be woken all the same.
            self.hub.handle_error(waiter, *sys.exc_info())

    # -- the writer greenlet ---------------------------------------------------------------------------------------------------

    def _start_writer(self) -> None:
        self._writer = gevent.spawn(self._write_loop)

    def _run_writer(self) -> None:
        """Have the writer greenlet look at what has changed, if it waits for that."""
        if self._writer_parked:
            self._writer_parked = False
            self.hub.loop.run_callback(self._writer.switch)

    def _write_loop(self) -> None:
        """Wait with what could not be sent at once, then with all that has come since."""
        try:
            while self.core.state is not CLOSED:
                if not self._writing:
                    self._writer_parked = True
                    self.hub.switch()
                    self._writer_parked = False
                    continue
                leftover, self._leftover = self._leftover, []
                try:
                    self._conn.send_all(leftover)
                    self.core.note_sent(monotonic())
                except OSError as error:
                    self._sending_failed(error)
                # The caller's own buffers: held here, they would stay until the next batch has to wait.
                del leftover
                self._writing = False
                if not self.flush_scheduled:
                    self.schedule_flush()
        except BaseException as error:
            self.end(broken_off(error, "the link sent"))
            raise
        finally:
            self._writing = False
            self.end(None)
            self._writer_done()

    def _drop_unsent(self) -> None:
        """Forget what is queued: the link has ended."""
        self.queue.clear()
        self._leftover = []
        self.blocked.clear()
        if self._flushed is not None:
            self._flushed.set()
