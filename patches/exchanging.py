"""What a gevent socket holds - a raw socket and two watchers - exchanged: the system's for ours, and back."""

from __future__ import annotations

import _socket
import os
import weakref
from collections.abc import Iterable
from typing import Any

from .dialling import PendingDial
from .listening import RawListener, make_placeholder
from .options import changed_options
from .raw import RawSocket, RawStream

__all__ = ["Loan", "Seen", "exchange"]

#: Numbers that somebody has asked for before the socket was connected or bound, each with the system's socket that had it then: after that
#: one's end the number is given away anew.
Seen = dict[int, weakref.ref[Any]]


def exchange(sock: Any, raw: RawStream | RawListener, seen: Seen) -> None:
    """Put ``raw`` in place of what the socket holds, which is closed; its number stays if somebody knows it."""
    system = sock._sock
    number = _known_number(system, seen)
    if isinstance(raw, RawStream) and number >= 0:
        # What may fail for want of descriptors, while nothing has been changed.
        raw.prepare_number()
    _carry_options(system, raw)
    _succeed(sock, system, (sock._read_event, sock._write_event), raw, number)
    _put(sock, raw)


class Loan:
    """``raw``, which is being dialled, in place of what the socket holds: then one ``keep()``, or ``take_back()``.

    Its number stays what it is, and is the raw socket's only if somebody asks for it meanwhile: what polls neither readable nor writable
    costs more than what polls a stream.
    """

    __slots__ = ("_dial", "_events", "_placeholder", "_raw", "_seen", "_sock", "_system")

    def __init__(self, sock: Any, dial: PendingDial, raw: RawStream, seen: Seen) -> None:
        self._sock, self._dial, self._raw, self._seen = sock, dial, raw, seen
        self._system: Any = sock._sock
        self._events = sock._read_event, sock._write_event
        # What stands under a listener's number again when it is taken back: got while failing does no harm.
        self._placeholder = -1
        try:
            _carry_options(self._system, raw)
        except BaseException:
            raw.close()
            raise
        dial.on_polled = self._lend_number
        _put(sock, raw)

    def _lend_number(self) -> None:
        system, raw = self._system, self._raw
        number = system.known_number if isinstance(system, RawListener) else system.fileno()
        if isinstance(system, RawListener):
            self._placeholder = make_placeholder()
            if number < 0:
                return
            system.lend_number()
        else:
            # Lives on under another number.
            self._system = _remade(system, os.dup(number))
            system.detach()
        raw.keep_number(number)

    def keep(self) -> None:
        """It has become a stream: what was there before is closed. Raises OSError when the system has no descriptor left for its number."""
        sock, raw, system = self._sock, self._raw, self._system
        self._dial.on_polled = None
        number = _known_number(system, self._seen)
        if number >= 0:
            raw.prepare_number()
        _succeed(sock, system, self._events, raw, number)
        self._drop_placeholder()
        if sock._read_event.callback is sock._write_event.callback is None:
            # Nobody waits with these: others reach the stream with a call less.
            sock._read_event, sock._write_event = raw.watchers()

    def take_back(self) -> None:
        """It could not connect: the socket is what it was."""
        self._dial.on_polled = None
        sock, raw, system = self._sock, self._raw, self._system
        if sock._sock is not raw:
            # Closed meanwhile, or taken over by a socket object that wraps it.
            for event in self._events:
                event.close()
            self._drop_placeholder()
            system.close()
            return
        number = raw.take_number()
        raw.close()
        sock._sock, (sock._read_event, sock._write_event) = system, self._events
        if number < 0:
            return
        if isinstance(system, RawListener):
            system.take_number_back(number, self._placeholder)
        else:
            os.dup2(system.fileno(), number, inheritable=False)
            system.close()
            sock._sock = _remade(system, number)
            self._seen[number] = weakref.ref(sock._sock)
        # For those who poll it: there is something else under the number.
        sock.hub.loop.closing_fd(number)

    def _drop_placeholder(self) -> None:
        if self._placeholder >= 0:
            os.close(self._placeholder)
            self._placeholder = -1


def _put(sock: Any, raw: RawSocket) -> None:
    sock._read_event, sock._write_event = raw.watchers()
    sock._sock = raw


def _known_number(system: Any, seen: Seen) -> int:
    """The number of what a socket holds if somebody may know it, else -1."""
    if isinstance(system, RawListener):
        return system.known_number
    number: int = _socket.socket.fileno(system)
    known = seen.get(number)
    return number if known is not None and known() is system else -1


def _carry_options(system: Any, raw: RawStream | RawListener) -> None:
    options = system.options if isinstance(system, RawListener) else changed_options(system)
    for (level, option), value in options.items():
        raw.setsockopt(level, option, value)


def _succeed(sock: Any, system: Any, events: Iterable[Any], raw: RawStream | RawListener, number: int) -> None:
    """End what was there before, but for ``number``, if that is known: it is the raw socket's from now on."""
    for event in events:
        event.close()
    if isinstance(system, RawListener):
        system.give_up()
    else:
        sock.hub.loop.closing_fd(_socket.socket.fileno(system))
        if number >= 0:
            system.detach()
        else:
            system.close()
    if number >= 0:
        raw.keep_number(number)


def _remade(system: Any, number: int) -> Any:
    """Another object for a socket of the system, under a number."""
    other = type(system)(system.family, system.type, system.proto, number)
    _socket.socket.setblocking(other, False)
    return other
