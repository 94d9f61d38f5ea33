"""Time-outs of many waits with one timer, against a model: a loop of which the test is the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astranet_gevent.transport.deadlines import Deadlines


class ManualTimer:
    """As gevent's: inactive before its callback runs, and never again after close()."""

    def __init__(self, loop: ManualLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self.due = 0.0
        self.active = False
        self._work: tuple[Callable[..., None], tuple[Any, ...]] | None = None

    def start(self, callback: Callable[..., None], *args: Any, update: bool = False) -> None:
        # Without update a timer counts from a time that may be long past.
        assert update
        self.due = self._loop.now + self._seconds
        self.active = True
        self._work = callback, args
        self._loop.timers.append(self)

    def stop(self) -> None:
        self.active = False
        if self in self._loop.timers:
            self._loop.timers.remove(self)

    close = stop

    def fire(self) -> None:
        assert self._work is not None
        self.stop()
        callback, args = self._work
        callback(*args)


class ManualLoop:
    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[ManualTimer] = []
        self.made = 0

    def timer(self, seconds: float) -> ManualTimer:
        assert seconds >= 0
        self.made += 1
        return ManualTimer(self, seconds)

    def advance(self, seconds: float, early: float = 0.0) -> None:
        """Let time pass; every timer fires ``early`` seconds before it should."""
        end = self.now + seconds
        while timers := [timer for timer in self.timers if timer.due - early <= end]:
            timer = min(timers, key=lambda each: each.due)
            self.now = max(self.now, timer.due - early)
            timer.fire()
            early = 0.0
        self.now = end


class Waits:
    """Waits by number, and when each was told that its time is over."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.deadlines = Deadlines(self.loop, lambda: self.loop.now)
        self.due: dict[int, float] = {}
        self.timers: dict[int, Any] = {}
        self.expired: list[tuple[int, float]] = []
        # What a wait does when its time is over, before it ends.
        self.then: dict[int, Callable[[], None]] = {}

    def begin(self, waiter: int, timeout: float) -> None:
        self.due[waiter] = self.loop.now + timeout
        self.timers[waiter] = self.deadlines.begin(waiter, timeout, self._expire, "slot")

    def finish(self, waiter: int) -> None:
        del self.due[waiter]
        self.deadlines.finish(waiter, self.timers.pop(waiter))

    def _expire(self, what: Any, waiter: int) -> None:
        assert what == "slot"
        assert self.due[waiter] <= self.loop.now
        self.expired.append((waiter, self.loop.now))
        self.finish(waiter)
        self.then.pop(waiter, lambda: None)()


# Which waiter, and in how many seconds; less than nothing ends its wait, None lets that time pass.
steps = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([-1.0, 0.1, 0.2, 1.0, 1.0, 10.0]), st.booleans()), max_size=60)


@given(steps)
def test_each_wait_ends_when_its_time_is_over_and_no_other_does(steps: list[tuple[int, float, bool]]) -> None:
    waits = Waits()
    for waiter, seconds, passes in steps:
        if passes:
            before = waits.loop.now
            due = sorted((when, who) for who, when in waits.due.items() if when <= before + abs(seconds))
            waits.expired.clear()
            waits.loop.advance(abs(seconds))
            assert sorted((when, who) for who, when in waits.expired) == [(pytest.approx(when), who) for when, who in due]
        elif waiter in waits.due:
            waits.finish(waiter)
        else:
            waits.begin(waiter, abs(seconds))
    waits.loop.advance(20)
    assert not waits.due
    assert not len(waits.deadlines)
    assert not waits.loop.timers


def test_waits_of_the_same_length_share_a_timer() -> None:
    waits = Waits()
    for waiter in range(1000):
        waits.begin(waiter, 10)
        waits.loop.advance(0.001)
    assert waits.loop.made == 1
    for waiter in range(1000):
        waits.finish(waiter)
    for waiter in range(1000):
        waits.begin(waiter, 10)
        waits.finish(waiter)
    assert waits.loop.made == 1


def test_a_shorter_wait_after_a_longer_one_has_left() -> None:
    waits = Waits()
    waits.begin(1, 10)
    waits.finish(1)
    waits.begin(2, 0.5)
    waits.loop.advance(0.5)
    assert waits.expired == [(2, 100.5)]


def test_a_timer_that_fires_early_expires_nobody() -> None:
    waits = Waits()
    waits.begin(1, 1)
    waits.loop.advance(1, early=0.25)
    assert waits.expired == [(1, 101.0)]


def test_whoever_is_called_ends_a_wait_and_begins_another() -> None:
    waits = Waits()

    def change() -> None:
        waits.finish(2)
        waits.begin(2, 5)
        waits.begin(1, 5)

    waits.then[1] = change
    for waiter in (1, 2, 3):
        waits.begin(waiter, 1)
    waits.loop.advance(4)
    assert waits.expired == [(1, 101.0), (3, 101.0)]
    waits.loop.advance(3)
    assert waits.expired[2:] == [(2, 106.0), (1, 106.0)]


@pytest.mark.parametrize("with_more_behind", [False, True])
def test_who_is_interrupted_loses_nobody(with_more_behind: bool) -> None:
    waits = Waits()

    def interrupt() -> None:
        raise KeyboardInterrupt

    waits.then[1] = interrupt
    for waiter in (1, 2):
        waits.begin(waiter, 1)
    if with_more_behind:
        waits.begin(3, 2)
    with pytest.raises(KeyboardInterrupt):
        waits.loop.advance(1)
    waits.loop.advance(1)
    assert waits.expired[:2] == [(1, 101.0), (2, 101.0)]
    assert [who for who, _ in waits.expired[2:]] == [3] * with_more_behind


def test_an_interrupt_at_the_entry_of_the_callback_is_made_up_for() -> None:
    waits = Waits()
    waits.begin(1, 1)
    # It fired, and its callback did not come to its first line.
    for timer in list(waits.loop.timers):
        timer.stop()
    waits.loop.advance(2)
    assert not waits.expired
    waits.deadlines.resume()
    waits.loop.advance(0)
    assert waits.expired == [(1, 102.0)]
    waits.deadlines.resume()
    assert not waits.loop.timers


def test_who_is_called_and_does_nothing_is_not_called_again() -> None:
    # As a stream does whose waiter has just been woken by something else.
    loop = ManualLoop()
    called: list[int] = []
    deadlines = Deadlines(loop, lambda: loop.now)
    deadlines.begin(1, 1, lambda _, waiter: called.append(waiter), "slot")
    loop.advance(5)
    assert called == [1]
    assert not len(deadlines)
    assert not loop.timers


def test_closed_it_has_a_timer_only_as_long_as_somebody_waits() -> None:
    waits = Waits()
    waits.begin(1, 1)
    waits.finish(1)
    assert waits.loop.timers
    waits.deadlines.close()
    assert not waits.loop.timers

    waits.begin(1, 1)
    waits.begin(2, 1)
    waits.begin(3, 3600)
    waits.deadlines.close()
    waits.finish(1)
    waits.loop.advance(1)
    assert [who for who, _ in waits.expired] == [2]
    waits.finish(3)
    assert not waits.loop.timers


def test_closed_in_the_course_of_a_timeout() -> None:
    """As when who is told closes the link: another waiter, with long to go, is woken later."""
    waits = Waits()
    waits.then[1] = waits.deadlines.close
    waits.begin(1, 1)
    waits.begin(2, 3600)
    waits.loop.advance(1)
    waits.finish(2)
    assert not waits.loop.timers


def test_a_wait_that_an_interrupt_kept_from_being_finished() -> None:
    """The next one of the same waiter has its own place, and does not end early."""
    waits = Waits()
    for next_timeout in (100, 1):
        waits.expired.clear()
        start = waits.loop.now
        waits.begin(1, 10)
        waits.begin(2, 10)
        waits.begin(1, next_timeout)
        waits.loop.advance(200)
        assert sorted(waits.expired) == [(1, start + next_timeout), (2, start + 10)]


def test_a_timer_that_an_interrupt_has_ended_does_not_count() -> None:
    waits = Waits()
    waits.begin(1, 1)
    waits.finish(1)
    for timer in list(waits.loop.timers):
        timer.stop()
    waits.begin(2, 1)
    waits.loop.advance(1)
    assert waits.expired == [(2, 101.0)]


def test_who_waits_need_not_be_hashable() -> None:
    loop = ManualLoop()
    called: list[Any] = []
    deadlines = Deadlines(loop, lambda: loop.now)
    waiters: list[list[int]] = [[], []]
    for waiter in waiters:
        deadlines.begin(waiter, 1, lambda _, who: called.append(who), "slot")
    deadlines.finish(waiters[0], None)
    loop.advance(1)
    assert len(called) == 1
    assert called[0] is waiters[1]
