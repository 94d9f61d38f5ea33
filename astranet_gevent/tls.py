"""TLS over any connected stream, without a file descriptor.

``ssl.SSLSocket`` wants a descriptor; this runs OpenSSL between two memory buffers and moves the
bytes itself. The rules that keep it right, for whoever edits this file:

- Bytes from the stream enter OpenSSL one TLS record at a time. Whatever is taken too early is
  invisible to ``pending()`` and to anybody who polls the stream, and ``unwrap()`` could not give
  it back.
- Ciphertext leaves in the order in which OpenSSL made it: only the holder of ``_writing`` sends.
  What a time-out or a killed greenlet leaves behind stays in ``_unsent`` and goes out before
  anything else.
- A reader never waits for room to write. What reading makes OpenSSL say (an answer to a
  certificate request, an alert) is sent by the writer that is at work, else at once, else by a
  greenlet made for it; otherwise two peers that both write without reading would wait for each
  other.
- No switch to another greenlet between taking bytes from the stream and putting them into the
  buffer, or back.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import ssl
import struct
import sys
import time
import weakref
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar, overload

import gevent
from gevent.event import Event
from gevent.lock import Semaphore

from .errors import (
    ConcurrentUseError,
    StreamBrokenPipeError,
    StreamClosedError,
    StreamResetError,
    StreamTimeout,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["StreamLike", "TLSStream", "wrap_stream"]

# RFC 8446 section 5: type, version and length stand before each record.
_HEADER = 5
# OpenSSL reads at most one record's plaintext per call; more would be allocated for nothing.
_PLAINTEXT_MAX = 16384
# RFC 5246 section 6.2.3: up to 2048 bytes for compression and encryption (TLS 1.3: 256).
_CIPHERTEXT_MAX = _PLAINTEXT_MAX + 2048
_RECORD_TYPES = range(20, 25)
# Plaintext encrypted before it is sent: four records, so that four share one send, and at most this
# much is in doubt after a time-out.
_CHUNK = 4 * _PLAINTEXT_MAX
# Records looked at on close. A TLS 1.3 server sends two session tickets by default.
_CLOSING_RECORDS = 8
# Bytes thrown away on close within the handshake. A flight of certificates is some kB.
_CLOSING_BYTES = 65536
# SO_LINGER with a time of 0.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class StreamLike(Protocol):
    """What TLS needs of the stream below: a gevent socket has it, and so has a Stream."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: memoryview, /) -> int: ...
    def settimeout(self, value: float | None, /) -> None: ...
    def gettimeout(self) -> float | None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def getpeername(self) -> Any: ...
    def getsockname(self) -> Any: ...


def wrap_stream(
    stream: StreamLike,
    context: ssl.SSLContext,
    server_side: bool = False,
    server_hostname: str | None = None,
    do_handshake_on_connect: bool = True,
    suppress_ragged_eofs: bool = True,
    session: ssl.SSLSession | None = None,
) -> TLSStream:
    """TLS over ``stream``, which belongs to the result, as with ``SSLContext.wrap_socket``.

    The handshake is done here, within the stream's own time-out, unless
    ``do_handshake_on_connect`` is false. If it fails the stream is closed, after the peer has been
    told why. Raises what ``ssl`` raises (``SSLCertVerificationError``, ``SSLEOFError`` …),
    ``StreamTimeout``, and ``ValueError`` for arguments that contradict each other.
    """
    if server_side and server_hostname:
        raise ValueError("server_hostname can only be specified in client mode")
    if server_side and session is not None:
        raise ValueError("session can only be specified in client mode")
    if context.check_hostname and not server_hostname:
        raise ValueError("check_hostname requires server_hostname")
    wrapped = TLSStream(stream, context, server_side, server_hostname, session)
    wrapped.do_handshake_on_connect = do_handshake_on_connect
    wrapped.suppress_ragged_eofs = suppress_ragged_eofs
    if do_handshake_on_connect:
        try:
            if wrapped.gettimeout() == 0.0:
                raise ValueError("do_handshake_on_connect needs a blocking stream")
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
    return wrapped


class _Phase(Enum):
    HANDSHAKE = "in handshake"
    OPEN = "open"
    FINISHED = "shut down for writing"  # close_notify is on its way; reading goes on
    UNWRAPPED = "unwrapped"
    CLOSED = "closed"


class _Patience:
    """How long one call may wait in all, over every wait that it is made of."""

    __slots__ = ("_deadline", "_operation")

    def __init__(self, timeout: float | None, operation: str) -> None:
        self._deadline = timeout if not timeout else time.monotonic() + timeout
        self._operation = operation

    @property
    def is_none(self) -> bool:
        """The call must not wait at all."""
        return self._deadline == 0.0

    def remaining(self) -> float | None:
        """Seconds left, None for ever; raises StreamTimeout when there are none."""
        if not self._deadline:
            return self._deadline
        left = self._deadline - time.monotonic()
        if left <= 0.0:
            raise StreamTimeout(f"The {self._operation} operation timed out")
        return left


class TLSStream:
    """One TLS connection, shaped like ``ssl.SSLSocket``; made by :func:`wrap_stream`.

    One greenlet may read while another writes. Two in ``recv`` at once get a ConcurrentUseError;
    two in ``send`` take turns. A time-out covers the whole call. Flags other than 0 are refused, as
    ``ssl`` does.

    Unlike an SSLSocket it says goodbye: ``close()`` and ``shutdown(SHUT_WR)`` send TLS's
    close_notify, so that the other side can tell the end of the data from a cut, and after
    ``shutdown(SHUT_WR)`` it goes on reading.
    """

    __slots__ = (
        "__weakref__",
        "_body_left",
        "_closed",
        "_ended",
        "_fed",
        "_feeding",
        "_header",
        "_incoming",
        "_io_refs",
        "_outgoing",
        "_owed",
        "_phase",
        "_plain",
        "_process",
        "_reader",
        "_stream",
        "_timeout",
        "_tls",
        "_unframed",
        "_unsent",
        "_writing",
        "do_handshake_on_connect",
        "server_side",
        "suppress_ragged_eofs",
    )

    def __init__(
        self,
        stream: StreamLike,
        context: ssl.SSLContext,
        server_side: bool,
        server_hostname: str | None,
        session: ssl.SSLSession | None,
    ) -> None:
        self._stream = stream
        self._timeout = stream.gettimeout()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname, session)
        # gevent.ssl's contexts ask what their callbacks get (SNI, messages) for its socket.
        self._tls._sslsock = weakref.ref(self)  # type: ignore[attr-defined]
        self._phase = _Phase.HANDSHAKE
        self.server_side = server_side
        self.do_handshake_on_connect = True
        self.suppress_ragged_eofs = True

        # Receiving: where the next record stands, who waits for it, and what was decrypted early.
        self._header = b""
        self._body_left = 0
        self._unframed = False
        self._feeding = False
        self._fed: Event | None = None
        self._reader = False
        self._plain = b""
        self._ended = False

        # Sending: ciphertext taken from OpenSSL and not yet by the stream, and plaintext that is
        # encrypted although the call that brought it has failed.
        self._writing = Semaphore(1)
        self._unsent = memoryview(b"")
        self._owed = b""

        self._io_refs = 0
        self._closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        side = "server" if self.server_side else "client"
        return f"<TLSStream {side} {self._phase.value}, {self._tls.version()} over {self._stream!r}>"

    def __enter__(self) -> TLSStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- handshake ---------------------------------------------------------------------------

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands. A non-blocking stream raises SSLWantReadError or -WriteError until then.

        After a failure the peer has been sent the alert, as far as there was room for it.
        """
        self._require_tls()
        patience = _Patience(None if block and self._timeout == 0.0 else self._timeout, "handshake")
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    pass
                self._flush(patience)
                self._feed(patience)
            self._flush(patience)
        except ssl.SSLError:
            self._flush_soon()
            raise
        self._note_handshake()

    def _note_handshake(self) -> None:
        if self._phase is _Phase.HANDSHAKE:
            self._phase = _Phase.OPEN

    def verify_client_post_handshake(self) -> None:
        """Ask the client for a certificate (TLS 1.3); the request leaves with the next write."""
        self._require_tls()
        self._tls.verify_client_post_handshake()

    # -- reading -----------------------------------------------------------------------------

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Up to ``buflen`` bytes, ``b""`` at the end."""
        _refuse_flags(flags, "recv")
        return self.read(buflen)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Fill the beginning of ``buffer``; the number of bytes, 0 at the end."""
        _refuse_flags(flags, "recv_into")
        with memoryview(buffer) as view:
            return self.read(nbytes or view.nbytes, view)

    @overload
    def read(self, len: int = 1024, buffer: None = None) -> bytes: ...

    @overload
    def read(self, len: int, buffer: WriteableBuffer) -> int: ...

    def read(self, len: int = 1024, buffer: WriteableBuffer | None = None) -> bytes | int:
        """As ``SSLSocket.read``: bytes, or with a buffer their number.

        At an end without close_notify: nothing if ``suppress_ragged_eofs``, else SSLEOFError.
        """
        self._require_tls()
        if len < 0:
            raise ValueError("size should not be negative")
        nothing: bytes | int = b"" if buffer is None else 0
        if len == 0 or (self._ended and not self._plain):
            return nothing
        if self._plain:
            return self._take_plain(len, buffer)
        try:
            got = self._decrypt(min(len, _PLAINTEXT_MAX), buffer)
        except ssl.SSLZeroReturnError:
            # OpenSSL's way to report the peer's close_notify once we have sent our own.
            got = nothing
        except ssl.SSLEOFError:
            if not (self.suppress_ragged_eofs or self._ended):
                raise
            got = nothing
        finally:
            if self._outgoing.pending:
                self._flush_soon()
        if not got:
            self._ended = True
        return got

    def _decrypt(self, size: int, buffer: WriteableBuffer | None) -> bytes | int:
        patience = _Patience(self._timeout, "read")
        # OpenSSL takes an exception of some microseconds to say that it has nothing: it is not
        # asked when that is known.
        known_empty = self._phase is not _Phase.HANDSHAKE and not (self._incoming.pending or self._tls.pending())
        while True:
            if known_empty:
                self._wait_for_record(patience)
            known_empty = True
            try:
                got = self._tls.read(size) if buffer is None else self._tls.read(size, buffer)
            except ssl.SSLWantReadError:
                self._flush_soon()
            else:
                self._note_handshake()
                return got

    def _take_plain(self, size: int, buffer: WriteableBuffer | None) -> bytes | int:
        taken, self._plain = self._plain[:size], self._plain[size:]
        if buffer is None:
            return taken
        with memoryview(buffer) as view, view.cast("B") as target:
            # A nbytes beyond the buffer fills the buffer, as in ssl.
            room = min(len(taken), len(target))
            target[:room] = taken[:room]
            self._plain = taken[room:] + self._plain
            return room

    def pending(self) -> int:
        """Bytes that ``recv`` returns without waiting."""
        self._require_tls()
        return len(self._plain) + self._tls.pending()

    def _wait_for_record(self, patience: _Patience) -> None:
        if self._reader:
            raise ConcurrentUseError("another greenlet is reading from this TLS stream")
        self._reader = True
        try:
            self._feed(patience)
        finally:
            self._reader = False

    def _feed(self, patience: _Patience) -> None:
        """Put one more record, or the end, into OpenSSL, or wait until another greenlet has done so.

        Both come here when reader and writer are in a handshake. Each has to look again after every record: the writer
        sends what the reader's look has made.
        """
        if self._feeding:
            self._await_feeder(patience)
            return
        self._feeding = True
        try:
            self._feed_record(patience)
        finally:
            self._feeding = False
            fed, self._fed = self._fed, None
            if fed is not None:
                fed.set()

    def _await_feeder(self, patience: _Patience) -> None:
        if patience.is_none:
            raise _would_block(ssl.SSLWantReadError)
        if self._fed is None:
            self._fed = Event()
        self._fed.wait(patience.remaining())

    def _feed_record(self, patience: _Patience) -> None:
        while True:
            data = self._receive(self._body_left or _HEADER - len(self._header), patience)
            if not data:
                self._incoming.write_eof()
                return
            self._incoming.write(data)
            if self._body_left:
                self._body_left -= len(data)
            elif self._unframed:
                return
            else:
                self._header += data
                if len(self._header) < _HEADER:
                    continue
                self._read_header()
            if not self._body_left:
                return

    def _read_header(self) -> None:
        kind, major = self._header[0], self._header[1]
        length = int.from_bytes(self._header[3:5], "big")
        self._header = b""
        if kind in _RECORD_TYPES and major == 3 and length <= _CIPHERTEXT_MAX:
            self._body_left = length
        else:
            # Not TLS. Its supposed length may never come: OpenSSL judges it now.
            self._unframed = True

    def _receive(self, size: int, patience: _Patience) -> bytes:
        return self._call(self._stream.recv, size, patience, ssl.SSLWantReadError)

    # -- writing -----------------------------------------------------------------------------

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        """Encrypt and send; returns how many bytes of ``data`` have left, never before they have.

        When it fails half-way (SSLWantWriteError, StreamTimeout, a killed greenlet) a part of
        ``data`` may be encrypted already. It goes out before anything else, and a call with the
        same data reports it instead of sending it twice: so the rule for sockets, to repeat what
        was not sent, holds. Other data is sent behind it.
        """
        _refuse_flags(flags, "send")
        with memoryview(data) as view, view.cast("B") as plain:
            return self._write(plain[:_CHUNK], _Patience(self._timeout, "write"))

    def write(self, data: ReadableBuffer) -> int:
        """The same as :meth:`send`."""
        return self.send(data)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        """Send everything. After a time-out it is unknown how much has left, as with any socket."""
        _refuse_flags(flags, "sendall")
        patience = _Patience(self._timeout, "write")
        with memoryview(data) as view, view.cast("B") as plain:
            sent = 0
            try:
                while sent < len(plain):
                    sent += self._write(plain[sent : sent + _CHUNK], patience)
            except BaseException:
                # Nobody can repeat just the rest, so nothing is to be reported to a later call.
                self._owed = b""
                raise

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """Send ``count`` bytes of a file from ``offset`` on, or all; the number of bytes sent."""
        if self._timeout == 0.0:
            raise ValueError("non-blocking streams are not supported")
        file.seek(offset)
        sent = 0
        try:
            while count is None or sent < count:
                block = file.read(_CHUNK if count is None else min(_CHUNK, count - sent))
                if not block:
                    break
                self.sendall(block)
                sent += len(block)
        finally:
            file.seek(offset + sent)
        return sent

    def _write(self, plain: memoryview, patience: _Patience) -> int:
        self._require_tls()
        self._acquire(self._writing, patience, ssl.SSLWantWriteError)
        try:
            self._require_tls()
            if self._phase is _Phase.FINISHED:
                raise StreamBrokenPipeError("the TLS stream has been shut down for writing")
            self._push(patience)
            taken = self._settle_owed(plain)
            if taken or not plain:
                return taken
            taken = self._encrypt(plain, patience)
            try:
                self._push(patience)
            except StreamTimeout as error:
                self._owed = bytes(plain[:taken])
                raise StreamTimeout(f"{error}; {taken} bytes are encrypted and go first") from None
            except BaseException:
                self._owed = bytes(plain[:taken])
                raise
            return taken
        finally:
            self._writing.release()

    def _settle_owed(self, plain: memoryview) -> int:
        """How much of ``plain`` repeats a call that failed, and so has been sent by now."""
        owed, self._owed = self._owed, b""
        length = min(len(owed), len(plain))
        if owed[:length] != plain[:length]:
            return 0
        self._owed = owed[length:]
        return length

    def _encrypt(self, plain: memoryview, patience: _Patience) -> int:
        while True:
            try:
                taken = self._tls.write(plain)
            except ssl.SSLWantReadError:
                # No handshake yet, or the peer wants another one (before TLS 1.3).
                self._push(patience)
                self._feed(patience)
            else:
                self._note_handshake()
                return taken

    def _push(self, patience: _Patience) -> None:
        """Send all ciphertext there is. The caller holds ``_writing``."""
        while True:
            if not self._unsent:
                if not self._outgoing.pending:
                    return
                self._unsent = memoryview(self._outgoing.read())
            sent = self._call(self._stream.send, self._unsent, patience, ssl.SSLWantWriteError)
            self._unsent = self._unsent[sent:]

    def _flush(self, patience: _Patience) -> None:
        if not self._outgoing.pending and not self._unsent:
            return
        self._acquire(self._writing, patience, ssl.SSLWantWriteError)
        try:
            self._push(patience)
        finally:
            self._writing.release()

    def _flush_soon(self, then: Callable[[], None] | None = None) -> None:
        """Send all ciphertext without waiting for it, and run ``then`` afterwards."""
        if not self._writing.acquire(blocking=False):
            # Whoever holds it sends this too before letting go.
            if then is not None:
                gevent.spawn(self._flush_later, then)
        elif self._try_push():
            self._writing.release()
            if then is not None:
                then()
        else:
            self._writing.release()
            gevent.spawn(self._flush_later, then)

    def _try_push(self) -> bool:
        """Send what there is room for; whether that was all. The caller holds ``_writing``."""
        previous = self._stream.gettimeout()
        try:
            self._push(_Patience(0.0, "write"))
        except ssl.SSLWantWriteError:
            return False
        except OSError:
            # The stream is broken: whoever reads from it or writes to it is told by it.
            return True
        finally:
            if previous != 0.0 and self._phase is not _Phase.CLOSED:
                self._stream.settimeout(previous)
        return True

    def _flush_later(self, then: Callable[[], None] | None) -> None:
        try:
            self._acquire(self._writing, _Patience(None, "write"), ssl.SSLWantWriteError)
            try:
                self._push(_Patience(None, "write"))
            finally:
                self._writing.release()
            if then is not None:
                then()
        except OSError:
            pass  # as in _try_push; closing the stream ends the wait this way too

    # -- ending ------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one half or both; the writing half with close_notify, behind everything written.

        It never waits: if the stream has no room, the end follows when there is some.
        """
        self._require_tls()
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if how != socket.SHUT_RD and self._phase is not _Phase.FINISHED:
            self._make_close_notify()
            self._phase = _Phase.FINISHED
            self._flush_soon(lambda: self._stream.shutdown(how))
        else:
            self._stream.shutdown(how)
        if how != socket.SHUT_WR:
            self._ended = True
            self._plain = b""

    def _make_close_notify(self) -> None:
        """Have OpenSSL write close_notify into the buffer (or nothing, during the handshake)."""
        try:
            # SSL_shutdown looks for the peer's answer at once; data before it is fatal to it.
            while self._tls.pending() or self._incoming.pending:
                data = self._tls.read(_PLAINTEXT_MAX)
                if not data:
                    break
                self._plain += data
        except ssl.SSLError:
            pass  # an unfinished record, or the end
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # SSLWantReadError: the answer has not come

    def unwrap(self) -> Any:
        """End TLS on both sides and return the stream below, for what follows in plain text.

        Only the returned stream can be used afterwards; closing this object closes it too.
        """
        self._require_tls()
        patience = _Patience(self._timeout, "shutdown")
        while True:
            try:
                self._tls.unwrap()
                break
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                break  # the peer has left without an answer, as most do
            self._flush(patience)
            self._feed(patience)
        self._flush(patience)
        self._phase = _Phase.UNWRAPPED
        self._stream.settimeout(self._timeout)
        return self._stream

    def close(self) -> None:
        """Close, once the files made by ``makefile`` are closed too. Never waits.

        As with TCP, data that was not read resets the stream.
        """
        self._closed = True
        if self._io_refs <= 0:
            self._real_close()

    def _real_close(self) -> None:
        if self._phase is _Phase.CLOSED:
            return
        try:
            self._say_goodbye()
        except OSError:
            pass  # the stream is broken, or is about to be reset: no goodbye
        finally:
            self._phase = _Phase.CLOSED
            self._stream.close()

    def _say_goodbye(self) -> None:
        if self._process != os.getpid():
            return  # a forked child closes its copy; the connection goes on, and is its parent's
        if not self._feeding:
            if self._phase is _Phase.HANDSHAKE:
                self._discard_flight()
            elif not self.server_side and self._tls.version() == "TLSv1.3":
                self._discard_tickets()
        # While another greenlet is writing, its record may be half sent: no byte may come between.
        if self._phase is _Phase.OPEN and not self._writing.locked():
            self._make_close_notify()
            self._try_push()

    def _discard_flight(self) -> None:
        """Read what arrived while the handshake failed.

        Left unread it would turn the close into a reset, and the peer might never see the alert.
        """
        self._stream.settimeout(0.0)
        left = _CLOSING_BYTES
        while left > 0:
            data = self._stream.recv(left)
            if not data:
                return
            left -= len(data)

    def _discard_tickets(self) -> None:
        """Read session tickets that have arrived and that no ``recv`` came for.

        Left unread they would reset the stream of a client that only writes, and cost it its last
        bytes. Data that was not read is meant to do so, and does.
        """
        patience = _Patience(0.0, "read")
        for _ in range(_CLOSING_RECORDS):
            try:
                self._feed_record(patience)
            except ssl.SSLWantReadError:
                return
            try:
                unread = self._tls.read(1)
            except ssl.SSLWantReadError:
                continue  # it was a ticket
            except ssl.SSLError:
                return  # the end
            if unread:
                self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                raise StreamResetError("closed with unread data")
            return

    def _decref_socketios(self) -> None:  # called by socket.SocketIO
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._closed:
            self.close()

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """A file over this stream, with the arguments and the rules of ``socket.makefile``."""
        if not set(mode) <= {"r", "w", "b"}:
            raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
        writing = "w" in mode
        reading = "r" in mode or not writing
        raw_mode: Any = "r" * reading + "w" * writing
        if buffering == 0 and "b" not in mode:
            raise ValueError("unbuffered streams must be binary")
        raw: Any = socket.SocketIO(self, raw_mode)  # type: ignore[arg-type]
        self._io_refs += 1
        if buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        buffered: Any
        if reading and writing:
            buffered = io.BufferedRWPair(raw, raw, size)
        else:
            buffered = io.BufferedReader(raw, size) if reading else io.BufferedWriter(raw, size)
        if "b" in mode:
            return buffered
        text: Any = io.TextIOWrapper(buffered, encoding, errors, newline)
        text.mode = mode
        return text

    # -- waiting -----------------------------------------------------------------------------

    def _call(
        self,
        method: Callable[[_Argument], _Result],
        argument: _Argument,
        patience: _Patience,
        would_block: type[ssl.SSLError],
    ) -> _Result:
        """One ``recv`` or ``send`` of the stream below, within what is left of the call's time."""
        stream = self._stream
        while True:
            remaining = patience.remaining()
            if stream.gettimeout() != remaining:
                stream.settimeout(remaining)
            try:
                return method(argument)
            except BlockingIOError:
                if patience.is_none:
                    raise _would_block(would_block) from None
            except TimeoutError as error:
                # ETIMEDOUT is the connection's death. What has no errno is a time-out, perhaps
                # that of the greenlet that uses the other direction: remaining() tells.
                if error.errno is not None or remaining is None:
                    raise

    def _acquire(self, lock: Semaphore, patience: _Patience, would_block: type[ssl.SSLError]) -> None:
        if lock.acquire(blocking=False):
            return
        if patience.is_none:
            raise _would_block(would_block)
        while not lock.acquire(timeout=patience.remaining()):
            pass

    def _require_tls(self) -> None:
        if self._phase is _Phase.CLOSED:
            raise StreamClosedError
        if self._phase is _Phase.UNWRAPPED:
            # SSLSocket would go on in plain text here, without a word.
            raise ValueError("TLS has been unwrapped: use the stream that unwrap() returned")

    def settimeout(self, value: float | None) -> None:
        """Seconds for each call in all, None to wait for ever, 0 never to wait."""
        self._stream.settimeout(value)
        self._timeout = self._stream.gettimeout()

    def gettimeout(self) -> float | None:
        return self._timeout

    @property
    def timeout(self) -> float | None:
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self._timeout != 0.0

    # -- what is known about the connection --------------------------------------------------

    @property
    def context(self) -> ssl.SSLContext:
        """The context; an SNI callback may set another one."""
        return self._tls.context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        self._tls.context = context

    @property
    def server_hostname(self) -> str | None:
        return self._tls.server_hostname

    @property
    def session(self) -> ssl.SSLSession | None:
        return self._tls.session

    @session.setter
    def session(self, session: ssl.SSLSession) -> None:
        self._tls.session = session

    @property
    def session_reused(self) -> bool | None:
        return self._tls.session_reused

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The peer's certificate as a dict, or in DER; None if it has none."""
        self._require_tls()
        return self._tls.getpeercert(binary_form)

    if sys.version_info >= (3, 13):

        def get_verified_chain(self) -> list[bytes]:
            return self._tls.get_verified_chain()

        def get_unverified_chain(self) -> list[bytes]:
            return self._tls.get_unverified_chain()

    def selected_alpn_protocol(self) -> str | None:
        return self._tls.selected_alpn_protocol()

    def selected_npn_protocol(self) -> None:
        """Always None: NPN is no more."""

    def cipher(self) -> tuple[str, str, int] | None:
        return self._tls.cipher()

    def shared_ciphers(self) -> list[tuple[str, str, int]] | None:
        return self._tls.shared_ciphers()

    def compression(self) -> str | None:
        return self._tls.compression()

    def version(self) -> str | None:
        """``"TLSv1.3"`` for example, None before the handshake."""
        return self._tls.version()

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        return self._tls.get_channel_binding(cb_type)

    # -- the stream below --------------------------------------------------------------------

    def fileno(self) -> int:
        """The stream's own; what :meth:`pending` counts does not show there, as with SSLSocket."""
        return self._stream.fileno()

    def getpeername(self) -> Any:
        return self._stream.getpeername()

    def getsockname(self) -> Any:
        return self._stream.getsockname()

    def getsockopt(self, *arguments: Any) -> Any:
        stream: Any = self._stream
        return stream.getsockopt(*arguments)

    def setsockopt(self, *arguments: Any) -> None:
        stream: Any = self._stream
        stream.setsockopt(*arguments)

    @property
    def family(self) -> Any:
        stream: Any = self._stream
        return stream.family

    @property
    def type(self) -> Any:
        stream: Any = self._stream
        return stream.type

    @property
    def proto(self) -> Any:
        stream: Any = self._stream
        return stream.proto

    # -- refused, as by SSLSocket: they would send or read plain text, or split the connection --

    def recvfrom(self, *arguments: Any) -> Any:
        raise ValueError("recvfrom not allowed on a TLS stream")

    def recvfrom_into(self, *arguments: Any) -> Any:
        raise ValueError("recvfrom_into not allowed on a TLS stream")

    def sendto(self, *arguments: Any) -> int:
        raise ValueError("sendto not allowed on a TLS stream")

    def recvmsg(self, *arguments: Any) -> Any:
        raise NotImplementedError("recvmsg not allowed on a TLS stream")

    def recvmsg_into(self, *arguments: Any) -> Any:
        raise NotImplementedError("recvmsg_into not allowed on a TLS stream")

    def sendmsg(self, *arguments: Any) -> int:
        raise NotImplementedError("sendmsg not allowed on a TLS stream")

    def dup(self) -> Any:
        raise NotImplementedError("a TLS stream cannot be duplicated")


def _refuse_flags(flags: int, method: str) -> None:
    if flags:
        raise ValueError(f"non-zero flags not allowed in calls to {method}() on a TLS stream")


def _would_block(kind: type[ssl.SSLError]) -> ssl.SSLError:
    direction, number = ("read", ssl.SSL_ERROR_WANT_READ) if kind is ssl.SSLWantReadError else ("write", ssl.SSL_ERROR_WANT_WRITE)
    return kind(number, f"The operation did not complete ({direction})")
