"""TLS over a stream for gevent's SSLSocket: the place of OpenSSL's object is taken by one that works through memory.

gevent's class does the waiting: it calls these methods, and waits when they raise SSLWantReadError or SSLWantWriteError. Records are fed
one at a time, because what lies decrypted or undecrypted in here is seen neither by ``pending()`` nor by a descriptor that is polled.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable
from typing import Any, Final

__all__ = ["MemoryTLS"]

# The header of a record: type, version (2 bytes), length (2 bytes). RFC 8446, section 5.1.
_HEADER_SIZE: Final = 5

# Bytes that OpenSSL gets at a time: four records. A memory takes as much as there is, and what it has taken is held and compared until it
# is sent: with 3 MB at a time a program that polls, and begins its write again and again, took thirty times as long.
_WRITE_BYTES: Final = 65536


class MemoryTLS:
    """Stands in for ``_ssl._SSLSocket``: the TLS of one SSLSocket, over a raw socket that never waits."""

    def __init__(self, context: ssl.SSLContext, raw: Any, owner: Any, server_side: bool, hostname: str | None, session: Any) -> None:
        self._raw = raw
        # OpenSSL's object only has a weak reference to it.
        self._owner = owner
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        # Bytes of a record's header or body that have come so far, and ciphertext that the raw socket has not taken yet.
        self._partial = bytearray()
        self._unsent = memoryview(b"")
        # What the raw socket said to a send that nobody was waiting for: a socket says it once, and whoever sends next has to learn it.
        self._failure: OSError | None = None
        # Plaintext that OpenSSL has taken in a write() which could not be reported yet, _WRITE_BYTES at most.
        self._begun = b""
        self._tls: Any = context._wrap_bio(  # type: ignore[attr-defined]
            self._incoming, self._outgoing, server_side=server_side, server_hostname=hostname, owner=owner, session=session
        )

    def __getattr__(self, name: str) -> Any:
        # cipher, version, selected_alpn_protocol, getpeercert and so on: they ask OpenSSL and do no input or output.
        return getattr(self._tls, name)

    @property
    def context(self) -> ssl.SSLContext:
        """The context; a callback for server names may set another."""
        context: ssl.SSLContext = self._tls.context
        return context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        self._tls.context = context

    @property
    def session(self) -> Any:
        """The TLS session, to be used again."""
        return self._tls.session

    @session.setter
    def session(self, session: Any) -> None:
        self._tls.session = session

    def do_handshake(self) -> None:
        """Go on with the handshake. Raises SSLWantReadError, SSLWantWriteError, SSLError."""
        self._call(self._push, self._tls.do_handshake)

    def verify_client_post_handshake(self) -> None:
        """Ask the client for a certificate."""
        self._call(self._push, self._tls.verify_client_post_handshake)

    def read(self, *args: Any) -> Any:
        """Decrypted bytes, or their number when a buffer is given."""
        # What another greenlet has written, and waits to send, must not make this one wait to write.
        return self._call(self._push_if_possible, self._tls.read, *args)

    def write(self, data: Any) -> int:
        """Encrypt and send; reported only when all of the ciphertext has been taken by the stream.

        What could not be reported is gone on with by the same data again. When other data comes instead, what OpenSSL has taken goes out
        whole, and the new data behind it. OpenSSL itself takes the new data for the old, or refuses it as too short.
        """
        try:
            if self._begun and _octets(data)[: len(self._begun)].tobytes() != self._begun:
                self._push()
                self._begun = b""
            taken = len(self._begun)
            if not taken:
                self._push()
                data = _octets(data)[:_WRITE_BYTES]
                taken = self._call(self._push, self._tls.write, data)
                if self._unsent or self._outgoing.pending:
                    self._begun = bytes(data[:taken])
            self._push()
        except ssl.SSLWantWriteError:
            if not self._owner.waits:
                # Of SSLWantWriteError gevent's send() makes a 0, where Python's raises it: paho takes the data for sent, and loses it.
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
            raise
        except OSError:
            # Nothing can be gone on with.
            self._begun = b""
            raise
        self._begun = b""
        return taken

    def shutdown(self) -> Any:
        """Exchange the closing alerts; the raw socket goes on in the clear."""
        self._call(self._push, self._tls.shutdown)
        return self._raw

    def _call(self, push: Callable[[], None], function: Any, *args: Any) -> Any:
        """Call OpenSSL until it needs nothing more from the peer, or the peer has sent no more."""
        while True:
            try:
                result = function(*args)
            except ssl.SSLWantReadError:
                push()
                self._feed()
            except ssl.SSLError:
                # An alert says why; if it cannot be sent any more, the error still counts.
                self._push_if_possible()
                raise
            else:
                self._push_if_possible()
                return result

    def _push(self) -> None:
        """Send what OpenSSL has written. Raises SSLWantWriteError when the stream takes no more now."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        while True:
            if not self._unsent:
                if not self._outgoing.pending:
                    return
                self._unsent = memoryview(self._outgoing.read())
            try:
                sent = self._raw.send(self._unsent)
            except BlockingIOError:
                raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)") from None
            self._unsent = self._unsent[sent:]

    def _push_if_possible(self) -> None:
        try:
            self._push()
        except ssl.SSLWantWriteError:
            # It goes with the next call.
            return
        except OSError as error:
            self._failure = error

    def _feed(self) -> None:
        """Give OpenSSL the next record, or the end. Raises SSLWantReadError when it has not come yet."""
        if self._incoming.eof:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")
        partial = self._partial
        whole = self._fill(_HEADER_SIZE) and self._fill(_HEADER_SIZE + int.from_bytes(partial[3:5], "big"))
        self._incoming.write(partial)
        partial.clear()
        if not whole:
            self._incoming.write_eof()

    def _fill(self, size: int) -> bool:
        """Have ``size`` bytes of the record; False when the peer has ended before. Raises SSLWantReadError."""
        partial = self._partial
        while len(partial) < size:
            try:
                data = self._raw.recv(size - len(partial))
            except BlockingIOError:
                raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)") from None
            if not data:
                return False
            partial += data
        return True


def _octets(data: Any) -> memoryview:
    return memoryview(data).cast("B")
