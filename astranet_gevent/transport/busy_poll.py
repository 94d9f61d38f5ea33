"""Busy polling: the loop asks again and again for what is about to come, where sleeping until it comes would take as long.

Rules for editing: time that is polled away has to be earned, or belong to a trial, whatever the peer does; see ``BusyPoll``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any, Final

__all__ = ["BusyPoll"]

# Seconds of polling that are worth a sleep: what that and being woken cost in processor time, and more in waiting. Measured on a virtual
# machine with an echo between two processes: each took 115 us for one when they slept, and 60 when they polled, 30 of these in polls.
# With 50 instead of 100 a dial and an echo, 70 us of polling each, are as slow as without.
_WORTH: Final = 100e-6

# Waits in a row that end before the longest poll would, after which polling is tried.
_SHORT_WAITS: Final = 16

# Longest polls that a trial may take without earning anything.
_TRIAL: Final = 8

# Seconds from a trial that failed to the next: at first, and the most after doubling each time.
_FIRST_PAUSE: Final = 0.01
_LAST_PAUSE: Final = 1.0

# Seconds for which the core is away when somebody else wanted it; else giving it away takes one or two microseconds. Where processes
# share a core it may be the peer that wants it, and then a sleep costs nothing that polling could save.
_CORE_TAKEN: Final = 10e-6

# Seconds for which the core may be away in one piece without that being counted to a relay: those between which it passes on handle in a
# turn what it has sent them. Who computes has the core until the system takes it away, 1.5 to 3 ms, and waking would have been sooner.
_PEERS_TURN: Final = 1e-3

_sched_yield: Callable[[], object] = getattr(os, "sched_yield", lambda: None)


class BusyPoll:
    """Keeps a node's loop from sleeping while what it waits for comes sooner than a wake-up takes.

    An idle watcher makes the loop ask the system without waiting, for at most ``limit`` seconds after something was sent or read. What
    comes is handled as ever, for all descriptors and timers alike; only whoever takes the core meanwhile can delay it, for a turn of the
    system's scheduler, and then polling soon ends. It is tried once waits have been short for a while, and kept up for as long as it
    pays: a poll that ends with something read earns what a sleep would have cost, and the time it took is paid from that. So a second of
    polling replaces at least as much of sleeping and waking, or belongs to a trial that failed, of which there is at most one a second
    before long. To poll for about as long as a sleep costs is never far from the best: Karlin, Li, Manasse, Owicki, "Empirical studies of
    competitive spinning for a shared-memory multiprocessor" (1991).

    A relay that shares two cores with both ends earns where others had its core, too, and for that time it does not pay: while it sleeps
    both ends wait for its waking twice in a round trip, and a core of the two is idle for a fifth of the time. See ``passed_on``.
    """

    def __init__(
        self, loop: Any, limit: float, clock: Callable[[], float] = monotonic, yield_core: Callable[[], object] = _sched_yield
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._yield_core = yield_core
        #: Whether the loop polls when it has nothing else to do.
        self.polling = False
        # Until when what is expected would come soon.
        self._until = 0.0
        # When the loop had nothing to do for the first time since something was read or sent; 0.0 while it has not.
        self._idle_since = 0.0
        # Whether somebody else has run on this core since then, and for how many seconds of what a relay does not pay for.
        self._core_taken = False
        self._away = 0.0
        #: Whether what was read last was passed on, at least in part: set by the links.
        self.passed_on = False
        self._short_waits = 0
        # Seconds that may be polled away without earning anything.
        self._credit = 0.0
        self._pause = _FIRST_PAUSE
        self._resume_at = 0.0
        self._watcher: Any = loop.idle()
        self._watching = False

    def received(self, now: float) -> None:
        """Something has come. ``now`` is the clock's, here and below."""
        if self.polling:
            if self._idle_since:
                self._settle(now, 0.0 if self._core_taken else _WORTH)
        elif now > self._until:
            self._short_waits = 0
        elif self._short_waits < _SHORT_WAITS:
            self._short_waits += 1
        elif now >= self._resume_at:
            self.polling = True
            self._credit = _TRIAL * self._limit
        self.passed_on = False

    def expect(self, now: float) -> None:
        """What came has been handled, or something has been sent: an answer may come soon."""
        if self._idle_since:
            # Sent by itself, not because of something that was read: the poll until now was in vain.
            self._settle(now, 0.0)
        self._until = now + self._limit
        if self.polling and not self._watching:
            self._watching = True
            self._watcher.start(self._on_idle)

    def _on_idle(self) -> None:
        """There is nothing to do: called before the loop asks the system again."""
        now = self._clock()
        if not self._idle_since:
            self._idle_since = now
        if now > self._until:
            self._stop()
            self._settle(now, 0.0)
            return
        self._yield_core()
        away = self._clock() - now
        if away > _CORE_TAKEN:
            if self.passed_on and away < _PEERS_TURN:
                self._away += away
            else:
                self._core_taken = True

    def _settle(self, now: float, earned: float) -> None:
        self._credit += earned - (now - self._idle_since - self._away)
        self._idle_since = self._away = 0.0
        self._core_taken = False
        if self._credit < 0.0:
            self.polling = False
            self._short_waits = 0
            self._resume_at = now + self._pause
            self._pause = min(2 * self._pause, _LAST_PAUSE)
            self._stop()
        elif self._credit > 2 * _TRIAL * self._limit:
            # It pays. What has been earned covers as many polls in vain as two trials, not more.
            self._credit = 2 * _TRIAL * self._limit
            self._pause = _FIRST_PAUSE

    def _stop(self) -> None:
        if self._watching:
            self._watching = False
            self._watcher.stop()

    def close(self) -> None:
        """Poll no more, for good."""
        self.polling = False
        self._idle_since = 0.0
        self._resume_at = inf
        self._stop()
        self._watcher.close()
