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
        # When, whom to call, with what and whom; by the id of who waits, for that may be without a hash. The earliest first.
        self._waits: dict[int, tuple[float, Callable[[Any, Any], None], Any, Any]] = {}
        # When the last one in the queue is due.
        self._latest = 0.0
        # It runs until the first is due, or until one was that has left.
        self._timer: Any = None
        self._timer_due = 0.0
        self._closed = False

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self, waiter: Any, timeout: float, expire: Callable[[Any, Any], None], what: Any) -> Any:
        """Have ``expire(what, waiter)`` called in ``timeout`` seconds, unless ``finish()`` comes before.

        Gives what ``finish()`` takes. A waiter waits for one thing at a time.
        """
        deadline = self._clock() + timeout
        # If an interrupt has kept the last wait from being finished, it would keep its place in the queue.
        self._waits.pop(id(waiter), None)
        if not self._waits:
            if self._timer is None or deadline < self._timer_due or not self._timer.active:
                self._arm(deadline)
        elif deadline < self._latest:
            # It overtakes others: a timer of its own. The loop's own idea of the time may be old, and a time-out must not come early.
            timer = self._loop.timer(timeout)
            timer.start(expire, what, waiter, update=True)
            return timer
        self._latest = deadline
        self._waits[id(waiter)] = (deadline, expire, what, waiter)
        return None

    def finish(self, waiter: Any, timer: Any) -> None:
        """Forget a wait, whether its time has come or not."""
        if timer is not None:
            timer.close()
            return
        self._waits.pop(id(waiter), None)
        if self._closed and not self._waits:
            self._stop()

    def resume(self) -> None:
        """Make up for an interrupt at a place where nothing catches it, as at the entry of a callback."""
        if self._waits and (self._timer is None or not self._timer.active):
            self._arm(next(iter(self._waits.values()))[0])

    def close(self) -> None:
        """Keep the timer no longer than somebody waits."""
        self._closed = True
        if not self._waits:
            self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _arm(self, due: float) -> None:
        self._stop()
        self._timer_due = due
        self._timer = self._loop.timer(max(0.0, due - self._clock()))
        self._timer.start(self._on_timer, update=True)

    def _on_timer(self) -> None:
        try:
            now = self._clock()
            # All at once: to look for the first of a dict passes over all that were removed before it.
            due = []
            for key, wait in self._waits.items():
                if wait[0] > now:
                    break
                due.append((key, wait))
            for key, wait in due:
                # Whoever was called before may have ended this wait, and even begun another.
                if self._waits.get(key) is wait:
                    del self._waits[key]
                    wait[1](wait[2], wait[3])
        finally:
            # Also after an interrupt, for those who have not been called.
            self.resume()
