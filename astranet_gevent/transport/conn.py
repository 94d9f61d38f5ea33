"""What a link reads from and writes to: sockets, things shaped like sockets, and file-like pairs, behind one small interface."""

from __future__ import annotations

import _socket
import contextlib
import errno
import io
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from gevent.hub import Hub

from ..config import Config
from ..errors import ConfigError

__all__ = ["BATCH_BYTES", "Buffer", "Conn", "FileConn", "SocketConn", "SocketLikeConn", "broken_off", "wrap_conn"]

Buffer = bytes | memoryview

# Up to this many bytes, or with parts that are smaller than this on average, joining them and sending once is cheaper than sendmsg (64
# small parts: 4 us against 11 us).
_JOIN_LIMIT: Final = 65536
_JOIN_PART: Final = 1024
# Bytes of large frames that are sent in one go: a system call per 256 KiB costs 1 % of the time that sending them takes.
BATCH_BYTES: Final = 256 * 1024
# Smallest IOV_MAX of the platforms that gevent runs on.
_MAX_PARTS: Final = 512

# Linux's struct tcp_info: eight one-byte fields, then u32s; these are the offsets of the ones wanted.
_TCP_INFO_PROBES: Final = 3
_TCP_INFO_UNACKED: Final = 24
_TCP_INFO_LAST_ACK: Final = 56
_TCP_INFO_CWND: Final = 80
_TCP_INFO_BYTES_ACKED: Final = 120
_TCP_INFO_NOTSENT: Final = 144
_TCP_INFO_BUSY_TIME: Final = 168
_TCP_INFO_RWND_LIMITED: Final = 176
_TCP_INFO_SIZE: Final = 184

# Bytes that may wait in the system, not sent yet, and in the batch before it: as many as the path takes in this time, for what waits there
# cannot be overtaken. Over 100 MB/s this takes a ping beside bulk from 37 to 1 ms; with 16 KiB for every path, bulk on loopback is a sixth
# slower. Bulk that is alone may wait for longer, so that a process which is busy for a moment does not leave the path empty.
_UNSENT_TIME: Final = 0.2e-3
_UNSENT_TIME_OF_BULK: Final = 1e-3
_MIN_UNSENT: Final = 32 * 1024
_MIN_UNSENT_OF_BULK: Final = 64 * 1024
_MAX_UNSENT: Final = 1024 * 1024
# If nothing waits there in so many looks in a row, and neither the peer's window nor congestion control holds anything back, it is the
# process that is slow and not the path, whatever the rate seems to be: then twice as many, up to so much more.
_LATE_LOOKS: Final = 4
_MOST_FACTOR: Final = 32
# Within a host, there and in the receiver's system, for small messages must not wait behind bulk: pings beside ten streams in bulk take
# 0.5 ms instead of 1.3. And while bulk is alone, so that processes work at the same time: through a relay it is a fifth faster.
_MAX_UNSENT_WITHIN_HOST: Final = 192 * 1024
_RECEIVE_BUFFER_WITHIN_HOST: Final = 768 * 1024
_MAX_UNSENT_OF_BULK: Final = 256 * 1024
_RECEIVE_BUFFER_OF_BULK: Final = 2048 * 1024

# Seconds between two looks at how fast the path is. After twice as long there has been a pause, and what was sent before it and during it
# tells little; so do few bytes.
_LOOK_INTERVAL: Final = 0.1
_ENOUGH_SENT: Final = 64 * 1024

# Linux's number: Python has no name for it.
_TCP_NOTSENT_LOWAT: Final = 25


class Conn(Protocol):
    """A byte stream in both directions. ``recv_into`` and ``send_all`` are called by one greenlet each and may wait; nothing else does."""

    #: The peer's address as text for the handshake, ``""`` where there is none.
    remote_address: str
    #: Our own end's address likewise.
    local_address: str

    #: Bytes to send in one go at most; more on a fast path, so that what is urgent does not wait long behind it.
    batch_bytes: int

    def recv_into(self, view: memoryview) -> int:
        """Wait for bytes and read some; 0 at the end. Raises OSError."""
        ...

    def try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Send what goes without waiting; what is left. Raises OSError."""
        ...

    def send_all(self, parts: Sequence[Buffer]) -> None:
        """Send everything, waiting as long as it takes. Raises OSError."""
        ...

    def finish(self) -> bool:
        """End the sending direction, so that the peer reads all of it and then the end; False when that cannot be done. Never raises."""
        ...

    def shutdown(self) -> None:
        """End both directions, so that whoever waits in recv_into or send_all wakes. Never raises."""
        ...

    def close(self) -> None:
        """Free the descriptor once nobody waits. Never raises."""
        ...

    def unanswered_for(self) -> float:
        """Seconds for which the peer's host has acknowledged nothing although something waits for it; 0 where that is unknown."""
        ...


def broken_off(error: BaseException, what: str) -> InterruptedError:
    """Why a link ends when Ctrl-C, or the exception of a signal's handler, strikes in the middle of its work."""
    return InterruptedError(errno.EINTR, f"{type(error).__name__} while {what}")


class SocketConn:
    """A plain socket, taken over from its owner: the descriptor moves here, the owner's object is detached.

    As a Conn, but that it reads in the hub, without a greenlet: in place of ``recv_into`` it has ``start_reading``.
    """

    def __init__(self, sock: socket.socket, hub: Hub, config: Config) -> None:
        self.remote_address, self.local_address = _addresses(sock)
        family, kind, proto = sock.family, sock.type, sock.proto
        self._is_tcp = family in (socket.AF_INET, socket.AF_INET6)
        self._raw = _socket.socket(family, kind, proto, sock.detach())
        self._raw.setblocking(False)
        self._is_within_host = self._is_tcp and _is_within_host(self._raw)
        # Whether the bulk that is sent has the link for itself; whether the system holds as much as suits bulk that has.
        self.bulk_is_alone = False
        self._holds_bulk = False
        if self._is_tcp:
            _set_tcp_options(self._raw, config)
        if self._is_within_host:
            _set_host_options(self._raw)
        self._hub = hub
        self._read_watcher: Any = hub.loop.io(self._raw.fileno(), 1)
        self._write_watcher: Any = hub.loop.io(self._raw.fileno(), 2)
        # Apart from that of send_all(): both may wait at the same time.
        self._again_watcher: Any = hub.loop.io(self._raw.fileno(), 2)
        self._reading = False
        # Whether what has been read last, if anything, is nobody's yet; who claims it sees to it that it is handled, or ends the link.
        self.unclaimed = False
        self.batch_bytes = BATCH_BYTES
        self._look_due = 0.0
        # What the system had counted at the last look: bytes acknowledged, microseconds during which there was something to send.
        self._acked = self._busy_time = 0
        # Microseconds during which the peer's window held something back, at the last look.
        self._rwnd_limited = 0
        # How much more than the rate asks for may wait unsent; for how many looks in a row it was too little, or, below 0, enough.
        self._unsent_factor = 1
        self._late_looks = 0

    def start_reading(
        self, writable: Callable[[], memoryview], on_read: Callable[[int], None], on_error: Callable[[OSError], None]
    ) -> None:
        """Read into ``writable()`` whenever something comes, and call ``on_read(count)``, 0 at the end, or ``on_error``: in the hub."""
        self._writable, self._on_read, self._on_error = writable, on_read, on_error
        self._reading = True
        self._read_watcher.start(self._on_readable)

    def stop_reading(self) -> None:
        """Read no more."""
        self._reading = False
        self._read_watcher.stop()

    def _on_readable(self) -> None:
        # Once per event, even when more could be read at once: whoever got data must run in between.
        self.unclaimed = True
        try:
            try:
                count = self._raw.recv_into(self._writable())
            except BlockingIOError:
                return
            except OSError as error:
                self._on_error(error)
                return
            self._on_read(count)
        except BaseException as error:
            if self.unclaimed:
                # Whether anything was read is not known, and what comes after a gap must not be.
                self._on_error(broken_off(error, "the link read"))
            else:
                # gevent stops a watcher whose callback raises.
                self._hub.loop.run_callback(self.read_on)
            raise

    def read_on(self) -> None:
        """Go on reading where an interrupt has ended it; also called now and then, for one that strikes where nothing catches it."""
        if self._reading and not self._read_watcher.active:
            self._read_watcher.start(self._on_readable)

    def try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        if len(parts) == 1:
            data = parts[0]
        elif sum(map(len, parts)) > max(_JOIN_LIMIT, _JOIN_PART * len(parts)):
            return self._try_send_parts(parts)
        else:
            data = b"".join(parts)
        try:
            sent = self._raw.send(data)
        except BlockingIOError:
            return (data,)
        return () if sent == len(data) else (memoryview(data)[sent:],)

    def _try_send_parts(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        first = 0
        while first < len(parts):
            some = parts[first : first + _MAX_PARTS] if first or len(parts) > _MAX_PARTS else parts
            try:
                sent = self._raw.sendmsg(some)
            except BlockingIOError:
                return parts[first:]
            if sent == sum(map(len, some)):
                first += len(some)
                continue
            for part in some:
                if sent < len(part):
                    return [memoryview(part)[sent:], *parts[first + 1 :]]
                sent -= len(part)
                first += 1
        return ()

    def send_all(self, parts: Sequence[Buffer]) -> None:
        left = self.try_send(parts)
        while left:
            self._hub.wait(self._write_watcher)
            left = self.try_send(left)

    def start_writing(self, callback: Callable[[], None]) -> None:
        """Call back, in the hub, whenever the loop finds that something can be sent, until ``stop_writing()``."""
        self._again_watcher.start(callback)

    def stop_writing(self) -> None:
        """Call back no more."""
        self._again_watcher.stop()

    def suit_path(self, now: float, bulk_is_alone: bool) -> None:
        """Have less wait in the system the slower the path is, and beside small messages. To be called before bulk is sent."""
        self.bulk_is_alone = bulk_is_alone
        if now < self._look_due or not self._is_tcp:
            return
        paused = now > self._look_due + _LOOK_INTERVAL
        self._look_due = now + _LOOK_INTERVAL
        info = self._tcp_info(_TCP_INFO_SIZE)
        if len(info) < _TCP_INFO_SIZE:
            return
        (acked,) = struct.unpack_from("=Q", info, _TCP_INFO_BYTES_ACKED)
        (busy,) = struct.unpack_from("=Q", info, _TCP_INFO_BUSY_TIME)
        # Not the system's own estimate of the rate, which is that of its bursts.
        sent, microseconds = acked - self._acked, busy - self._busy_time
        if not paused and (sent < _ENOUGH_SENT or not microseconds):
            return
        self._acked, self._busy_time = acked, busy
        (limited,) = struct.unpack_from("=Q", info, _TCP_INFO_RWND_LIMITED)
        held_back, self._rwnd_limited = limited - self._rwnd_limited, limited
        if paused:
            # It is not known to be slow any more.
            self._have_unsent(max(self.batch_bytes, _MIN_UNSENT_OF_BULK))
            return
        (waiting,) = struct.unpack_from("=I", info, _TCP_INFO_NOTSENT)
        (unacked,) = struct.unpack_from("=I", info, _TCP_INFO_UNACKED)
        (cwnd,) = struct.unpack_from("=I", info, _TCP_INFO_CWND)
        self._note_late(not waiting and unacked < cwnd and 4 * held_back < microseconds)
        self._have_unsent(self._suitable_unsent(sent / microseconds * 1e6))

    def _have_unsent(self, unsent: int) -> None:
        self.batch_bytes = min(unsent, BATCH_BYTES)
        with contextlib.suppress(OSError):
            self._raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, unsent)

    def _note_late(self, is_late: bool) -> None:
        """Let more wait unsent if for some looks in a row the path could have taken more, and less if for as many it could not."""
        if is_late is not (self._late_looks > 0):
            self._late_looks = 0
        self._late_looks += 1 if is_late else -1
        if self._late_looks == _LATE_LOOKS:
            self._late_looks = 0
            self._unsent_factor = min(self._unsent_factor * 2, _MOST_FACTOR)
        elif self._late_looks == -_LATE_LOOKS:
            self._late_looks = 0
            self._unsent_factor = max(self._unsent_factor // 2, 1)

    def _suitable_unsent(self, rate: float) -> int:
        """Bytes that may wait unsent in front of a path that takes ``rate`` bytes per second."""
        if self.bulk_is_alone:
            least, seconds, most = _MIN_UNSENT_OF_BULK, _UNSENT_TIME_OF_BULK, _MAX_UNSENT_OF_BULK
        else:
            least, seconds, most = _MIN_UNSENT, _UNSENT_TIME, _MAX_UNSENT_WITHIN_HOST
        wanted = max(least, int(rate * seconds)) * self._unsent_factor
        return min(wanted, most if self._is_within_host else _MAX_UNSENT)

    def receive_bulk(self, is_alone: bool) -> None:
        """Bulk is read: have the system hold more of it while it has the link for itself."""
        if is_alone is not self._holds_bulk and self._is_within_host:
            self._holds_bulk = is_alone
            _set_receive_buffer(self._raw, _RECEIVE_BUFFER_OF_BULK if is_alone else _RECEIVE_BUFFER_WITHIN_HOST)

    def _tcp_info(self, size: int) -> bytes:
        """Linux's struct tcp_info, up to ``size`` bytes of it; empty elsewhere."""
        if sys.platform != "linux":
            return b""
        try:
            return self._raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        except OSError:
            return b""

    def finish(self) -> bool:
        try:
            self._raw.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def shutdown(self) -> None:
        # ENOTCONN: the other end was faster. The descriptor then reads as ended all the same.
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for watcher in (self._read_watcher, self._write_watcher, self._again_watcher):
            watcher.stop()
            watcher.close()
        self._raw.close()

    def unanswered_for(self) -> float:
        if not self._is_tcp:
            return 0.0
        info = self._tcp_info(_TCP_INFO_LAST_ACK + 4)
        if len(info) < _TCP_INFO_LAST_ACK + 4:
            return 0.0
        (unacknowledged,) = struct.unpack_from("=I", info, _TCP_INFO_UNACKED)
        (last_ack_ms,) = struct.unpack_from("=I", info, _TCP_INFO_LAST_ACK)
        return last_ack_ms / 1000 if unacknowledged or info[_TCP_INFO_PROBES] else 0.0


class SocketLikeConn:
    """Anything with ``recv_into``, ``sendall`` and ``close`` that waits cooperatively: a TLS socket, a stream of another mesh."""

    batch_bytes = BATCH_BYTES

    def __init__(self, sock: Any) -> None:
        self.remote_address, self.local_address = _addresses(sock)
        self._sock = sock

    def recv_into(self, view: memoryview) -> int:
        return int(self._sock.recv_into(view))

    def try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        return parts

    def send_all(self, parts: Sequence[Buffer]) -> None:
        self._sock.sendall(b"".join(parts))

    def finish(self) -> bool:
        return False

    def shutdown(self) -> None:
        for verb in ("shutdown", "close"):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                getattr(self._sock, verb)(*([socket.SHUT_RDWR] if verb == "shutdown" else []))

    def close(self) -> None:
        self.shutdown()

    def unanswered_for(self) -> float:
        return 0.0


class FileConn:
    """A reading and a writing file-like object (may be one): cooperative ones, such as gevent's FileObject over pipes."""

    batch_bytes = BATCH_BYTES

    def __init__(self, reader: Any, writer: Any) -> None:
        self.remote_address = self.local_address = ""
        self._reader = reader
        self._writer = writer
        # A buffered reader's read() and readinto() wait until all of the buffer is full; the "1" forms return what is there.
        self._read = next((getattr(reader, name) for name in ("read1", "read") if hasattr(reader, name)), reader)
        self._readinto = getattr(reader, "readinto1", None) or (reader.readinto if isinstance(reader, io.RawIOBase) else None)
        self._flush = getattr(writer, "flush", None)

    def recv_into(self, view: memoryview) -> int:
        try:
            if self._readinto is not None:
                return self._readinto(view) or 0
            data = self._read(len(view))
        except ValueError as error:
            # What Python's files raise once they are closed.
            raise OSError(errno.EBADF, f"attached file: {error}") from error
        if not data:
            return 0
        view[: len(data)] = data
        return len(data)

    def try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        return parts

    def send_all(self, parts: Sequence[Buffer]) -> None:
        view = memoryview(b"".join(parts))
        try:
            while view:
                # None: an object that reports nothing has written everything.
                written = self._writer.write(view)
                view = view[len(view) if written is None else written :]
            if self._flush is not None:
                self._flush()
        except ValueError as error:
            raise OSError(errno.EBADF, f"attached file: {error}") from error

    def finish(self) -> bool:
        return False

    def shutdown(self) -> None:
        for end in (self._writer, self._reader):
            try:
                end.close()
            except RuntimeError:
                # A buffered file that somebody waits in cannot be closed; the file below it can, and that ends the wait.
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    end.raw.close()
            except (OSError, ValueError, AttributeError):
                continue

    def close(self) -> None:
        self.shutdown()

    def unanswered_for(self) -> float:
        return 0.0


def wrap_conn(conn: Any, hub: Hub, config: Config) -> Conn | SocketConn:
    """The Conn for what a user attaches: a Conn, a socket, a socket-like object, a file-like object, or ``(reader, writer)``.

    Raises ConfigError for anything else.
    """
    if hasattr(conn, "try_send") and hasattr(conn, "send_all"):
        return conn  # type: ignore[no-any-return]
    if isinstance(conn, tuple) and len(conn) == 2:
        return FileConn(*conn)
    if type(conn).__module__ in ("socket", "gevent._socket3", "gevent.socket") and hasattr(conn, "detach"):
        if conn.type != socket.SOCK_STREAM:
            raise ConfigError(f"cannot attach a socket of type {conn.type!r}: a link needs SOCK_STREAM")
        return SocketConn(conn, hub, config)
    if hasattr(conn, "recv_into") and hasattr(conn, "sendall"):
        return SocketLikeConn(conn)
    if hasattr(conn, "read") and hasattr(conn, "write"):
        return FileConn(conn, conn)
    raise ConfigError(f"cannot attach {conn!r}: it has neither recv_into and sendall nor read and write")


def _addresses(sock: Any) -> tuple[str, str]:
    texts = []
    for verb in ("getpeername", "getsockname"):
        try:
            address = getattr(sock, verb)()
        except (OSError, AttributeError):
            address = None
        texts.append(_address_text(address))
    return texts[0], texts[1]


def _address_text(address: Any) -> str:
    if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[0], str):
        return ""
    host = address[0].partition("%")[0]
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def _set_tcp_options(raw: _socket.socket, config: Config) -> None:
    """No Nagle delay; the kernel's own checks, so that a host that is gone is noticed even while nothing is sent."""
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    dead_after = max(4, round(config.dead_host_timeout))
    wanted = {
        "TCP_KEEPIDLE": dead_after // 2,
        "TCP_KEEPALIVE": dead_after // 2,  # the name on macOS
        "TCP_KEEPINTVL": max(1, dead_after // 4),
        "TCP_KEEPCNT": 2,
        # Not dead_host_timeout: Linux also counts the time for which a live host with a busy process keeps its receive window shut.
        # A host that acknowledges nothing is found earlier, by unanswered_for().
        "TCP_USER_TIMEOUT": round(max(config.keepalive_timeout, config.dead_host_timeout) * 1000),
    }
    for name, value in wanted.items():
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.IPPROTO_TCP, option, value)


def _is_within_host(raw: _socket.socket) -> bool:
    try:
        (remote, *_), (local, *_) = raw.getpeername(), raw.getsockname()
    except OSError:
        return False
    return bool(remote == local or (remote.startswith("127.") and local.startswith("127.")))


def _set_host_options(raw: _socket.socket) -> None:
    """Where there is no network: no congestion to control, and no reason for the system to hold much.

    reno, which every Linux has, in place of the system's congestion control: that may be BBR, whose timers take a fourth of the rate there.
    A receive buffer of a given size, for Linux lets others grow to megabytes; TCP_WINDOW_CLAMP does not hold it back.
    """
    _set_receive_buffer(raw, _RECEIVE_BUFFER_WITHIN_HOST)
    if hasattr(socket, "TCP_CONGESTION"):
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def _set_receive_buffer(raw: _socket.socket, size: int) -> None:
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
