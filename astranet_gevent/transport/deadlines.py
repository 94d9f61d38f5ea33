"""Deadlines: the time-outs of all who wait for something of one link.

A timer of the event loop for each wait costs a tenth of what a dial costs. Most waits of a program have the same time-out, so they end in
the order in which they began, and one timer does for them all: it runs for the first of a queue. Who leaves the queue before its time, as
nearly everybody does, touches no timer.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

__all__ = ["Deadlines"]


class Deadlines:
    """Calls those back who have waited too long, in the hub, never early.

    Each call may switch greenlets, end waits and begin others. ``clock`` counts seconds as ``loop`` does.
    """

    def __init__(self, loop: Any, clock: Callable[[], float] = monotonic) -> None:
        self._loop = loop
        self._clock = clock
        # When, whom to call and with what, by who waits; the earliest first.
        self._waits: dict[Any, tuple[float, Callable[[Any, Any], None], Any]] = {}
        # When the last one in the queue is due.
        self._latest = 0.0
        # It runs until the first is due, or until one was that has left.
        self._timer: Any = None
        self._timer_due = 0.0

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self, waiter: Any, timeout: float, expire: Callable[[Any, Any], None], what: Any) -> Any:
        """Have ``expire(what, waiter)`` called in ``timeout`` seconds, unless ``finish()`` comes before.

        Gives what ``finish()`` takes. A waiter waits for one thing at a time.
        """
        deadline = self._clock() + timeout
        if not self._waits:
            if self._timer is None or deadline < self._timer_due:
                self._arm(deadline)
        elif deadline < self._latest:
            # It overtakes others: a timer of its own. The loop's own idea of the time may be old, and a time-out must not come early.
            timer = self._loop.timer(timeout)
            timer.start(expire, what, waiter, update=True)
            return timer
        self._latest = deadline
        self._waits[waiter] = (deadline, expire, what)
        return None

    def finish(self, waiter: Any, timer: Any) -> None:
        """Forget a wait, whether its time has come or not."""
        if timer is None:
            self._waits.pop(waiter, None)
        else:
            timer.close()

    def resume(self) -> None:
        """Make up for an interrupt at a place where nothing catches it, as at the entry of a callback."""
        if self._waits and not (self._timer is not None and self._timer.active):
            self._arm_for_first()

    def stop(self) -> None:
        """End the timer: who still waits is woken by something else."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _arm(self, due: float) -> None:
        self.stop()
        self._timer_due = due
        self._timer = self._loop.timer(max(0.0, due - self._clock()))
        self._timer.start(self._on_timer, update=True)

    def _arm_for_first(self) -> None:
        for deadline, _, _ in self._waits.values():
            self._arm(deadline)
            return

    def _on_timer(self) -> None:
        now = self._clock()
        # All at once: to look for the first of a dict passes over all that were removed before it.
        due = []
        for waiter, wait in self._waits.items():
            if wait[0] > now:
                break
            due.append((waiter, wait))
        try:
            for waiter, wait in due:
                # Whoever was called before may have ended this wait, and even begun another.
                if self._waits.get(waiter) is wait:
                    del self._waits[waiter]
                    wait[1](wait[2], waiter)
        finally:
            # Also after an interrupt, for those who have not been called.
            if not (self._timer is not None and self._timer.active):
                self.stop()
                self._arm_for_first()
