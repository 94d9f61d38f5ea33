"""Link: one connection to a peer node; a reader, which for sockets is a callback in the hub, a writer greenlet, a table of streams.

Rules for editing: the reader never waits for anything but its Conn, and nothing that it calls may switch greenlets: whoever got data is
noted and run afterwards, all together, the first of them from the hub. The sending half is in ``outlet.py``. ``end()`` may be called from
anywhere, twice, and with any greenlet waiting.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from math import nan
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

import gevent
from gevent import Greenlet
from gevent.event import Event
from gevent.hub import Hub
from greenlet import greenlet

from ..address import format_node_id
from ..config import Config
from ..errors import AstraNetError, LinkLostError, PeeringTimeout, RemoteProtocolError, WrongThreadError
from ..protocol.frame import FIRST_SLAB_SIZE, RUN, SLAB_SIZE, Command, Frame, FrameBuffer, encode_frame, split_frames
from ..protocol.handshake import ORIGINAL
from ..protocol.link import CLOSED, DRAINING, GOODBYE, HANDSHAKE, PING, PONG, READY, LinkCore, LinkTimeoutError, TimerEvent
from ..protocol.stream import OPEN, SENT_FIN
from ..protocol.window import INITIAL_WINDOW, LARGE_WINDOW, WindowBudget
from ..threads import get_ident
from .busy_poll import BusyPoll
from .conn import Conn, SocketConn, broken_off
from .outlet import Outlet
from .path import Path, ResetCode, encode_reset
from .stream import Stream

if TYPE_CHECKING:
    from .relay import RelayPair

__all__ = ["Link", "LinkOwner"]

log = logging.getLogger("astranet_gevent")

# Dials cancelled before a node of the original answered; more than these and the oldest is forgotten, and its late SYN ignored.
_MAX_CANCELLED: Final = 1024

# Seconds for which what the peer sent before it was lost may still be read.
_LAST_WORDS: Final = 2.0

# Seconds after which a host that seems dead is looked at again, far more than an answer takes; also after a look that was interrupted.
_SECOND_LOOK: Final = 1.0

# Seconds of a round trip up to which all streams of a link share a budget beyond their initial windows: it fills such a path, and what is
# more only waits in the peer's receive buffer, where nothing overtakes it. Over loopback one stream is as fast with a window of 1 MiB as
# with 4, and pings beside ten of them take 4 ms instead of 25.
_SHORT_PATH: Final = 2e-3
_SHORT_PATH_BUDGET: Final = 2 * 1024 * 1024

# To this much they grow in any case: with 64 KiB each, 100 streams in bulk stop and go for every frame, at 0.6 of the rate.
_SHORT_PATH_WINDOW: Final = 512 * 1024

# Halves of a large window in a row that are to be read within a round trip before it grows: each asks for the round trip anew.
_QUICK_READS: Final = 4

# Bytes from which on what is read at a time is bulk: its rate counts more than its delay, and polled for it comes in smaller pieces.
_BULK_READ: Final = 16384

# Bytes of relay_bytes from which on bulk is read in large pieces, and much of it may wait in the system: what comes to a relay until the
# sender pauses has to find room there.
_ROOMY_RELAY: Final = 8 * 1024 * 1024

# Bytes below which a message is one that must not wait behind bulk.
_SMALL_MESSAGE: Final = 4096

# Window granted beyond the initial one by all links of this process.
PROCESS_BUDGET: Final = WindowBudget()

# Of the class: looking it up in each greenlet, and asking whether that is of a subclass, took a tenth of an echo.
_switch: Final = greenlet.switch

_DATA: Final = Command.DATA
_LINK_FRAMES: Final = frozenset((Command.HANDSHAKE, Command.PING, Command.PONG, Command.GOODBYE))

_STREAM_FRAMES: Final = {
    Command.REWIND: Stream.receive_rewind,
    Command.WND_SIZE: Stream.receive_wnd_size,
    Command.BLOCKED: Stream.receive_blocked,
    Command.FIN2: Stream.receive_fin2,
    Command.FIN1: Stream.receive_fin1,
    Command.FORCE_CLOSED: Stream.receive_force_closed,
}


class LinkOwner(Protocol):
    """What a link asks of its node. None of these may wait."""

    node_id: int
    config: Config
    busy_poll: BusyPoll

    def link_ready(self, link: Link) -> None:
        """The handshake is done. May end the link."""
        ...

    def link_drained(self, link: Link) -> None:
        """The link takes no more streams."""
        ...

    def link_ended(self, link: Link) -> None:
        """The link is gone; its streams have been broken."""
        ...

    def receive(self, link: Link, command: int, key: bytes, payload: bytes) -> None:
        """A frame for this node that belongs to no stream. Raises RemoteProtocolError to end the link."""
        ...

    def relay(self, link: Link, command: int, key: bytes, payload: bytes) -> None:
        """A frame for another node."""
        ...

    def relays_over(self, link: Link) -> bool:
        """Whether other nodes talk over that link, so that it must not end when our own streams have."""
        ...


class Link(Outlet):
    """One connection to a peer node. Made by ``attach()``, ``join()`` and ``listen()``."""

    def __init__(self, owner: LinkOwner, conn: Conn | SocketConn, hub: Hub, *, loopback: bool = False) -> None:
        super().__init__(owner.config, LinkCore(owner.config, owner.node_id, monotonic()), conn, hub, owner.busy_poll)
        self.frame_size = owner.config.frame_size
        self.loopback = loopback
        self.streams: dict[bytes, Stream] = {}
        # Streams of ours whose SYN has not come, by our port as keys have it: an acceptor may answer from another one than was dialled.
        self.dialing: dict[bytes, Stream] = {}
        self.paths: dict[int, Path] = {}
        # What comes over this link for other nodes, by the first 16 bytes of its keys; the node's Relay enters and removes.
        self.relayed: dict[bytes, RelayPair] = {}
        self.error: Exception | None = None
        self.ended = Event()
        # Set by the next bytes that arrive, when somebody wants to know whether the peer still lives.
        self.heard: Event | None = None
        self._owner = owner
        self._own_id = owner.node_id.to_bytes(8, "big")
        self._reads_ahead = owner.config.relay_bytes >= _ROOMY_RELAY
        self._buffer = FrameBuffer(owner.config.frame_size, self.relayed, SLAB_SIZE if self._reads_ahead else FIRST_SLAB_SIZE)
        self._cancelled: OrderedDict[bytes, Path] = OrderedDict()
        self._budget = WindowBudget()
        # Streams with large windows: since when how much has been read, and how many halves before that were read within a round trip each.
        self._large: dict[Stream, tuple[float, int, int]] = {}
        # Seconds that the fastest PING took to be answered, not a number until one has been.
        self.round_trip = nan
        # When the PING was sent that is timed, 0.0 for none; and how many have not been answered.
        self._ping_sent = 0.0
        self._pings = 0
        self._ready = Event()
        # Whether a dial has been accepted since the last frames were handled.
        self.accepted = False
        # Set once we have closed: what still comes is not for anybody.
        self._discarding = False
        self._suspected = False
        # The stream whose bulk was read last.
        self._bulk_key = b""
        # Streams whose waiters are to be woken, each once however many frames came for it: a second time would wake the wait that follows.
        self._readable: dict[Stream, None] = {}
        self._writable: dict[Stream, None] = {}
        self._run_scheduled = False
        # The reading and the writing one: the descriptor is freed when both are out.
        self._halves = 2
        self._timer: Any = hub.loop.timer(0)
        self.queue.push_control(self.core.handshake_frame(conn.remote_address))
        self._start_writer()
        if isinstance(conn, SocketConn):
            conn.start_reading(self._buffer.writable, self._on_read, self._reading_ended)
        else:
            gevent.spawn(self._read_loop)
        self.schedule_flush()
        self._arm_timer()

    # -- public ----------------------------------------------------------------------------------------------------------------

    @property
    def peer_id(self) -> int:
        """The peer's node id; 0 until its handshake."""
        return self.core.peer_id

    @property
    def state(self) -> str:
        """ "handshake", "ready", "draining" or "closed"."""
        return self.core.state.name.lower()

    @property
    def is_ready(self) -> bool:
        """Whether streams may be opened on it."""
        return self.core.state is READY

    @property
    def is_own_kind(self) -> bool:
        """Whether the peer is a node of this library."""
        return self.core.capabilities.own_kind

    @property
    def stream_count(self) -> int:
        """Streams that the link carries."""
        return len(self.streams)

    @property
    def remote_address(self) -> str:
        """The peer's address, ``""`` where there is none."""
        return self._conn.remote_address

    @property
    def local_address(self) -> str:
        """Our own end's address, ``""`` where there is none."""
        return self._conn.local_address

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait for the handshake. Raises PeeringTimeout, or what ended the link (LinkLostError, RemoteProtocolError)."""
        self._ready.wait(timeout)
        if self.ended.is_set():
            if isinstance(self.error, AstraNetError):
                raise self.error
            raise LinkLostError(f"link to {self._peer_text()}: {self.error or 'closed'}") from self.error
        if not self._ready.is_set():
            raise PeeringTimeout(f"no handshake from {self.remote_address or 'the peer'} within {timeout} s")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the link's end; whether it has ended."""
        return bool(self.ended.wait(timeout))

    def close(self, timeout: float = 5.0) -> None:
        """Send what is queued and wait until the peer has read it, at most ``timeout`` seconds.

        Then end the link. Its streams are reset.
        """
        if self.forked or self.core.state is CLOSED:
            return
        if self.thread != get_ident():
            raise WrongThreadError(f"{self!r} belongs to another thread")
        if timeout > 0 and self._ready.is_set() and gevent.getcurrent() is not self.hub:
            try:
                self._close_gently(monotonic() + timeout)
            finally:
                self.end(None)
        self.end(None)

    def _close_gently(self, deadline: float) -> None:
        self.core.drain()
        self._owner.link_drained(self)
        if self.queue or self._writing:
            self._flushed = self._flushed or Event()
            self._flushed.wait(max(0.0, deadline - monotonic()))
        # Closing a socket with something unread resets it, and what the peer has not read yet would be lost: so read until it ends too.
        self._break_all(LinkLostError(f"link to {self._peer_text()} closed"))
        self._discarding = True
        if self._conn.finish():
            self.ended.wait(max(0.0, deadline - monotonic()))

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def _on_read(self, count: int) -> None:
        """Handle what has been read, and run those who got data: in the hub, so without a switch to a reader and back."""
        if not count or self.core.state is CLOSED:
            self._reading_ended(None)
            return
        if self._discarding:
            return
        # Whoever is noted is run below, and what is queued is sent there.
        self._run_scheduled = True
        was_scheduled, self.flush_scheduled = self.flush_scheduled, True
        error: Exception | None = None
        try:
            self._conn.unclaimed = False  # type: ignore[union-attr]
            self._bulk_read = count >= _BULK_READ
            self._busy_poll.received(monotonic())
            frames = self._buffer.decode(count)
            if self._bulk_read:
                self._note_bulk(frames)
            self._receive(frames)
            # They hold views of what was read.
            del frames
            error = self._buffer.error
        except (OSError, AstraNetError) as caught:
            error = caught
        except BaseException as caught:
            # Ours, or somebody's who interrupts: what was read is not handled, and nothing more can be. Who waits is woken by a callback.
            self._run_scheduled = False
            self.flush_scheduled = was_scheduled
            self._reading_ended(broken_off(caught, "the link handled what it had read"))
            raise
        try:
            if error is not None:
                self._reading_ended(error)
            self._run_receivers(was_scheduled)
        except BaseException:
            self._resume()
            raise

    def _note_bulk(self, frames: list[Frame]) -> None:
        """Tell from a large read whether small messages travel beside the bulk: the system is to hold less of it then."""
        now = monotonic()
        for command, key, payload in frames:
            if command == RUN and type(payload) is bytes:
                self._small_seen = now
                break
            if command == _DATA:
                if len(payload) >= _SMALL_MESSAGE:
                    self._bulk_key = key
                elif key != self._bulk_key:
                    # Not what is left of a large message.
                    self._small_seen = now
                    break
        self._conn.receive_bulk(self._reads_ahead and self._bulk_is_alone(now))  # type: ignore[union-attr]

    def _reading_ended(self, error: Exception | None) -> None:
        if isinstance(self._conn, SocketConn):
            self._conn.stop_reading()
        self.end(error)
        self._half_done()

    def _read_loop(self) -> None:
        """The same for a Conn that reads by waiting."""
        error: Exception | None = None
        conn, buffer, core = self._conn, self._buffer, self.core
        assert not isinstance(conn, SocketConn)
        try:
            while True:
                count = conn.recv_into(buffer.writable())
                if not count or core.state is CLOSED:
                    break
                if self._discarding:
                    continue
                self._bulk_read = count >= _BULK_READ
                self._busy_poll.received(monotonic())
                self._receive(buffer.decode(count))
                self._note_received()
                if buffer.error is not None:
                    raise buffer.error
        except (OSError, AstraNetError) as caught:
            error = caught
        except BaseException as caught:
            error = broken_off(caught, "the link read")
            raise
        finally:
            self._reading_ended(error)

    def _note_received(self) -> None:
        now = monotonic()
        self.core.note_received(now, self._buffer.pending > 0)
        if not self._bulk_read:
            self._busy_poll.expect(now)
        if self.heard is not None:
            self.heard.set()
            self.heard = None

    def _receive(self, frames: list[Frame]) -> None:
        """Handle frames: DATA here, other frames of streams by table, the rest by the node."""
        streams = self.streams
        readable = self._readable
        handlers = _STREAM_FRAMES
        for command, key, payload in frames:
            stream = streams.get(key)
            if command == _DATA and stream is not None:
                state = stream.state
                if state is OPEN or state is SENT_FIN:
                    # The head of receive() written out, as two calls further below in a stream: for small messages a call is a tenth.
                    size = len(payload)
                    if stream.received is None and 0 < size <= stream.receive_left:
                        stream.receive_left -= size
                        stream.received = payload
                        stream.buffered = size
                    elif not stream.receive(payload):
                        stream.fail(ResetCode.OVERRUN, f"{size} bytes of data with {stream.receive_left} bytes of window left")
                        continue
                    if stream.recv_waiter is not None:
                        readable[stream] = None
                    elif stream._observer is not None:
                        stream._observer.on_readable()
            elif stream is not None and command in handlers:
                handlers[command](stream, payload)
            else:
                self._receive_other(command, key, payload)
        if readable and not self._run_scheduled:
            self._schedule_run()

    def _receive_other(self, command: int, key: bytes, payload: bytes) -> None:
        if command == RUN:
            self._busy_poll.passed_on = True
            pair = self.relayed.get(key)
            if pair is None or not pair.forward_run(payload):
                for each, key_of_each, data in split_frames(payload):
                    self._receive_other(each, key_of_each, data)
        elif command in _LINK_FRAMES and (command != Command.HANDSHAKE or key[:8] == bytes(8)):
            self._receive_link_frame(command, key, payload)
        elif self.core.state is HANDSHAKE or self.core.state is CLOSED:
            # As the original: what comes before the handshake is dropped.
            return
        elif key[:8] == self._own_id or key[:8] == bytes(8):
            if command == Command.SYN:
                self._receive_syn(key)
            else:
                self._owner.receive(self, command, key, payload)
        else:
            self._busy_poll.passed_on = True
            self._owner.relay(self, command, key, payload)

    def _receive_link_frame(self, command: int, key: bytes, payload: bytes) -> None:
        core = self.core
        if command == Command.PING:
            # Before its handshake a peer of the original may not be ready for any frame, so it gets none.
            if core.state is not HANDSHAKE:
                self.send_control(PONG)
        elif command == Command.PONG:
            self._note_answer()
        elif command == Command.HANDSHAKE:
            handshake = core.receive_handshake(key, payload)
            if handshake is not None:
                self.paths[core.peer_id] = path = Path(self, core.peer_id, handshake.capabilities)
                path.greeted = True
                self._ready.set()
                self._arm_timer()
                if core.capabilities.own_kind:
                    self.send_ping()
                self._owner.link_ready(self)
        elif command == Command.GOODBYE and core.state is not HANDSHAKE:
            was_draining = core.state is DRAINING
            if core.receive_goodbye():
                self.send_control(GOODBYE)
            if not was_draining:
                self._owner.link_drained(self)
            self._end_if_drained()

    def _receive_syn(self, key: bytes) -> None:
        """A SYN for a stream of ours, from the port that we dialled or from another one."""
        port = key[16:20]
        stream = self.dialing.pop(port, None)
        if stream is not None:
            if key != stream.key:
                if key[8:16] != stream.key[8:16]:
                    # Another node than the one dialled: not an answer to this dial.
                    self.dialing[port] = stream
                    return
                if key in self.streams:
                    self.streams[key].break_off(LinkLostError("the peer answered another dial from the same port"))
                del self.streams[stream.key]
                stream.key = key
                self.streams[key] = stream
            stream.receive_syn()
        elif key in self.streams:
            return
        elif port in self._cancelled:
            # A dial that was given up: the original knows of no way to say so before its SYN.
            path = self._cancelled.pop(port)
            back = key[8:16] + key[:8] + key[20:] + key[16:20]
            self.send_control(encode_frame(Command.ACK, back))
            self.queue.push_small(path.reset_frames(back, ResetCode.CANCELLED, "the dial was given up"))

    # -- waking ----------------------------------------------------------------------------------------------------------------

    def wake_later(self, stream: Stream, receiver: bool, sender: bool) -> None:
        """Wake who waits in a stream, from the hub."""
        if receiver and stream.recv_waiter is not None:
            self._readable[stream] = None
        if sender and stream.send_waiter is not None:
            self._writable[stream] = None
        if not self._run_scheduled and (self._readable or self._writable):
            self._schedule_run()

    def _schedule_run(self) -> None:
        self._run_scheduled = True
        self.hub.loop.run_callback(self._run_woken)

    def _run_woken(self) -> None:
        """Switch to everybody who was noted, one after the other; send early what they wrote."""
        # What they write goes out at the end of this: no flush of its own needs to be scheduled.
        was_scheduled, self.flush_scheduled = self.flush_scheduled, True
        try:
            self._run_noted()
        except BaseException:
            self._resume()
            raise
        self.flush_scheduled = was_scheduled
        if not was_scheduled and self.wants_flush():
            self._flush()

    def _run_noted(self) -> None:
        self._run_scheduled = False
        readable = self._readable
        if len(readable) == 1 and not self._writable:
            self._run_lone()
            return
        self.start_early_flushes()
        # From here to the "try" nothing is called: Ctrl-C cannot strike while those who got data are noted nowhere.
        self._readable = {}
        writable, self._writable = self._writable, {}
        try:
            # Those whom switch_away() runs are taken from here too.
            self.woken = woken = list(reversed(readable))
            while woken:
                stream = woken[-1]
                del woken[-1]
                waiter = stream.recv_waiter
                if waiter is not None:
                    stream.recv_waiter = None
                    try:
                        waiter.switch()
                    except BaseException:  # noqa: BLE001 - as in _switch_to(), written out: this runs for every message
                        self.hub.handle_error(waiter, *sys.exc_info())
                    if monotonic() > self._flush_due:
                        self.flush_early()
            for stream in writable:
                waiter = stream.send_waiter
                if waiter is not None:
                    stream.send_waiter = None
                    self._switch_to(waiter)
                    if monotonic() > self._flush_due:
                        self.flush_early()
        except BaseException:
            # Who has been run already and waits again is woken for nothing.
            self.woken = []
            self._readable.update(readable)
            self._writable.update(writable)
            raise

    def switch_away(self, current: Any) -> Any:
        """Leave ``current``, which has to wait, for the next one who is to be run; what ``current`` is woken with.

        One switch for each of them, instead of one to the hub and one from there. Only from and to greenlets of gevent's own class: others
        may have a ``switch`` or a ``switch_out`` of their own (one that is set on an object is not looked for), or be no greenlets.
        """
        woken = self.woken
        if woken and type(current) is Greenlet:
            if monotonic() > self._flush_due:
                self.flush_early()
            stream = woken[-1]
            waiter = stream.recv_waiter
            if type(waiter) is Greenlet:
                # From here to the switch nothing is called: Ctrl-C cannot strike while the next one is in no slot and not run.
                del woken[-1]
                stream.recv_waiter = None
                return _switch(waiter)
        return self.hub.switch()

    def _run_lone(self) -> None:
        """The same where one stream got data: nobody else could be waiting meanwhile, so there are no turns, and no clock to watch."""
        (stream,) = self._readable
        waiter = stream.recv_waiter
        if waiter is None:
            del self._readable[stream]
            return
        self.begin_answer()
        # From here to the switch nothing is called: Ctrl-C cannot strike while the waiter is in no slot.
        del self._readable[stream]
        stream.recv_waiter = None
        try:
            waiter.switch()
        except BaseException:  # noqa: BLE001 - likewise
            self.hub.handle_error(waiter, *sys.exc_info())
        self.end_answer()

    def _run_receivers(self, was_scheduled: bool) -> None:
        # Answers to what was read must not wait for the callbacks of others, such as a server that accepts a hundred streams.
        if self.accepted:
            self.accepted = False
            if self._readable:
                # Whoever dialled has work as soon as it hears of it.
                self.flush_early()
        self._run_noted()
        self.flush_scheduled = was_scheduled
        queue = self.queue
        if queue.turns or self.blocked or self._continuing or self.core.state is not READY:
            if not self._writing and self.wants_flush():
                self._flush()
        elif not self._writing and (queue.small or queue.control):
            # What _flush() would do here: whoever answers a single message waits for as few calls as may be.
            self._flush_once()
        self._note_received()

    def _resume(self) -> None:
        """Have those who are noted woken, and what is queued sent, by callbacks: Ctrl-C struck in the hub, and the program may go on."""
        self.parts_left = 0
        if self._readable or self._writable:
            # Also those of a link that has ended: they are to hear of it.
            self._schedule_run()
        else:
            self._run_scheduled = False
        if self.core.state is not CLOSED:
            # gevent stops a watcher whose callback raises: the flush starts it again.
            self._stop_continuing()
            self.schedule_flush()

    # -- timer -----------------------------------------------------------------------------------------------------------------

    def _arm_timer(self) -> None:
        deadline = self.core.next_deadline()
        if deadline is not None and not self._send_failed:
            self._timer.stop()
            self._timer.close()
            self._timer = self.hub.loop.timer(max(0.001, deadline - monotonic()))
            self._timer.start(self._on_timer)

    def _note_answer(self) -> None:
        if self._ping_sent:
            # min() of a number and nan is the one that comes first.
            self.round_trip = min(monotonic() - self._ping_sent, self.round_trip)
            self._ping_sent = 0.0
        if self._pings:
            self._pings -= 1

    def send_ping(self) -> None:
        """Ask whether the peer lives, and how long its answer takes."""
        if not self._pings:
            # Answers bear no number: only the first one after a time without questions is known to be this one's.
            self._ping_sent = monotonic()
        self._pings += 1
        self.send_control(PING)

    def _on_timer(self) -> None:
        try:
            self._look()
        except BaseException:
            # An interrupt: the next look must come all the same.
            if self.core.state is not CLOSED:
                self._look_again()
            raise

    def _look_again(self) -> None:
        self._timer.close()
        self._timer = self.hub.loop.timer(_SECOND_LOOK)
        self._timer.start(self._on_timer)

    def _look(self) -> None:
        self._buffer.trim()
        # What an interrupt has ended where nothing catches it, as at the very entry of a callback.
        self._resume()
        self.deadlines.resume()
        if isinstance(self._conn, SocketConn):
            self._buffer.renew()
            # In case the bulk has ended: if not, the next read says so.
            self._conn.receive_bulk(False)
            self._conn.read_on()
        try:
            if self.core.handle_timer(monotonic()) is TimerEvent.PING:
                self.send_ping()
            silent = self._conn.unanswered_for()
            limit = self._owner.config.dead_host_timeout
            if silent > limit and not self._suspected:
                # Something sent just now on an idle link looks the same: only what is still so a little later counts.
                self._suspected = True
                self._look_again()
                return
            self._suspected = silent > limit
            if self._suspected:
                raise LinkTimeoutError(f"the peer's host has acknowledged nothing for {silent:.0f} s (dead_host_timeout {limit:g})")
        except RemoteProtocolError as error:
            self.end(error)
        else:
            self._arm_timer()

    # -- streams ---------------------------------------------------------------------------------------------------------------

    def path_to(self, node_id: int) -> Path | None:
        """The path to a node over this link, made when it is new; None beyond ``paths_per_link``."""
        path = self.paths.get(node_id)
        if path is None:
            if len(self.paths) >= self._owner.config.paths_per_link and not self._drop_unused_path():
                return None
            path = self.paths[node_id] = Path(self, node_id, ORIGINAL)
        return path

    def _drop_unused_path(self) -> bool:
        unused = next((key for key, path in self.paths.items() if not path.stream_count and key != self.peer_id), None)
        if unused is None:
            return False
        del self.paths[unused]
        return True

    def add(self, stream: Stream) -> None:
        """Enter a stream in the table."""
        self.streams[stream.key] = stream
        stream._path.stream_count += 1

    def forget(self, stream: Stream) -> None:
        """Take a stream out of the table; nothing if it is not in it."""
        if self.streams.get(stream.key) is not stream:
            return
        del self.streams[stream.key]
        if self.dialing:
            self.dialing.pop(stream.key[16:20], None)
        path = stream._path
        path.stream_count -= 1
        granted = stream.receive_window - INITIAL_WINDOW
        if granted:
            self._large.pop(stream, None)
            self._budget.give(granted)
            PROCESS_BUDGET.give(granted)
        if self.core.state is DRAINING:
            self._end_if_drained()

    def cancel_dial(self, stream: Stream, back: bytes) -> None:
        """Tell the far node that a dial is given up, now or when its SYN comes."""
        path = stream._path
        if self.core.state is CLOSED:
            return
        if path.capabilities.reset:
            self.queue.push_small(encode_reset(back, ResetCode.CANCELLED, "the dial was given up"))
            if not self.flush_scheduled:
                self.schedule_flush()
        else:
            self._cancelled[stream.key[16:20]] = path
            if len(self._cancelled) > _MAX_CANCELLED:
                self._cancelled.popitem(last=False)

    def break_streams(self, node_id: int, error: Exception) -> None:
        """Break every stream with a node: the way to it is gone."""
        path = self.paths.get(node_id)
        if path is None or not path.stream_count:
            return
        raw_id = node_id.to_bytes(8, "big")
        for stream in [stream for key, stream in self.streams.items() if key[8:16] == raw_id]:
            stream.break_off(error)

    def grow_window(self, stream: Stream) -> int:
        """Bytes by which a stream's receive window may grow now, taken from the budgets; 0 when they are used up."""
        config = self._owner.config
        growth = stream.grow(config.max_window)
        if not growth:
            return 0
        limit = config.link_window_budget
        if stream._path.node_id == self.core.peer_id:
            if self.round_trip >= _SHORT_PATH:
                # Perhaps only because one of us was busy, or because of what waits in between.
                if not self._pings:
                    self.send_ping()
            elif stream.receive_window >= _SHORT_PATH_WINDOW:
                # Also when it is not known yet. Each stream takes at most half of what is left, so that those who come later get some too.
                limit = min(limit, (_SHORT_PATH_BUDGET + self._budget.used) // 2)
        if stream.receive_window + growth > LARGE_WINDOW and not self._reads_quickly(stream):
            return 0
        if not self._budget.take(growth, limit):
            return 0
        if not PROCESS_BUDGET.take(growth, config.process_window_budget):
            self._budget.give(growth)
            return 0
        return growth

    def note_credit(self, stream: Stream, credit: int) -> None:
        """Time how long the reader of a large window takes for half of it: after TCP's dynamic right-sizing (Fisk, Feng; 2001)."""
        now = monotonic()
        since, count, quick_reads = self._large.get(stream, (now, 0, 0))
        count += credit
        if count * 2 >= stream.receive_window:
            # Not a number before the first PING has been answered. Behind a relay it is longer than we know.
            quick_reads = quick_reads + 1 if now - since <= self.round_trip else 0
            since, count = now, 0
            if quick_reads and not self._pings:
                # Perhaps somebody was busy while the last one was answered.
                self.send_ping()
        self._large[stream] = since, count, quick_reads

    def _reads_quickly(self, stream: Stream) -> bool:
        return stream in self._large and self._large[stream][2] >= _QUICK_READS

    # -- ending ----------------------------------------------------------------------------------------------------------------

    def say_goodbye(self) -> None:
        """Take no more streams, and end once the last one has."""
        if self.core.start_goodbye():
            self.send_control(GOODBYE)
            self._owner.link_drained(self)

    def _end_if_drained(self) -> None:
        core = self.core
        if not (core.goodbye_sent and core.goodbye_received) or self.streams or core.state is not DRAINING:
            return
        # What is still queued calls again when it is sent. What others relay over the link keeps it for as long as it lives.
        if not self.queue and not self._writing and not self._owner.relays_over(self):
            self.end(None)

    def end(self, error: Exception | None) -> None:
        """End the link now: break its streams, wake everybody, free the descriptor once both greenlets are out."""
        if not self.core.close():
            return
        self.error = error
        if isinstance(error, RemoteProtocolError):
            log.warning("link to %s (%s) ended: %s", format_node_id(self.peer_id), self.remote_address, error)
        lost = LinkLostError(f"link to {self._peer_text()} lost: {error}" if error is not None else f"link to {self._peer_text()} closed")
        lost.__cause__ = error
        self._timer.stop()
        self._timer.close()
        self.deadlines.close()
        self._break_all(lost)
        if self.heard is not None:
            self.heard.set()
        self._drop_unsent()
        self._conn.shutdown()
        self._ready.set()
        self.ended.set()
        self._owner.link_ended(self)
        self._run_writer()

    def _last_words(self, error: OSError) -> None:
        self._timer.stop()
        self._timer.close()
        self._timer = self.hub.loop.timer(_LAST_WORDS)
        self._timer.start(self.end, error)

    def _break_all(self, error: Exception) -> None:
        for stream in list(self.streams.values()):
            stream.break_off(error)

    def _peer_text(self) -> str:
        return f"node {format_node_id(self.peer_id)}" if self.peer_id else self.remote_address or "the peer"

    def _writer_done(self) -> None:
        self._half_done()

    def _half_done(self) -> None:
        self._halves -= 1
        if not self._halves:
            self._conn.close()

    def after_fork(self) -> None:
        """In a forked child: everything raises ForkedError from now on; the parent's connection is left alone."""
        self.forked = True
        self.thread = -1
        self._timer.stop()
        # What was queued is the parent's to send, and nothing of the child's goes to its peer.
        self.core.close()
        self.queue.clear()
        self._leftover = []
        # Runs in the child's loop once gevent has made it anew, before anything is read: until then the parent's poll set is shared.
        self.hub.loop.run_callback(self._conn.close)

    def __repr__(self) -> str:
        return f"<Link {self.state} to {self._peer_text()}: {self.stream_count} streams>"
