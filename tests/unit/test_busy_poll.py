"""Busy polling, with a loop and a clock of the test's own: when it begins, when it ends, and that what it takes has been earned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astranet_gevent.transport.busy_poll import BusyPoll

from .tools import PROPERTY

US = 1e-6
LIMIT = 500 * US
# What a poll that ends with something read earns, and how much of polling in vain a trial may take.
WORTH = 100 * US
TRIAL = 8 * LIMIT


class FakeWatcher:
    def __init__(self) -> None:
        self.callback: Callable[[], None] | None = None
        self.closed = False

    def start(self, callback: Callable[[], None]) -> None:
        assert self.callback is None
        assert not self.closed
        self.callback = callback

    def stop(self) -> None:
        self.callback = None

    def close(self) -> None:
        self.closed = True


class Host:
    """A loop whose time passes as it is told: at work in ``read``, or in ``wait`` with nothing to do."""

    def __init__(self, limit: float = LIMIT, step: float = US) -> None:
        self.now = 1000.0
        # How long it takes to ask the system once, and how long the core is away when it is given away.
        self.step = step
        self.away = 0.0
        self.polled = 0.0
        self.given_away = 0.0
        self.watcher = FakeWatcher()
        self.poll = BusyPoll(self, limit, self.clock, self.yield_core)

    def idle(self) -> FakeWatcher:
        return self.watcher

    def clock(self) -> float:
        return self.now

    def yield_core(self) -> None:
        self.now += self.away
        self.given_away += self.away

    def wait(self, seconds: float) -> bool:
        """Have nothing to do for some time; whether the loop still polled at the end, instead of sleeping."""
        end = self.now + seconds
        while self.watcher.callback is not None and self.now < end:
            before = self.now
            self.watcher.callback()
            self.now += min(self.step, max(0.0, end - self.now))
            self.polled += self.now - before
        awake = self.watcher.callback is not None
        self.now = max(self.now, end)
        return awake

    def read(self, wait: float, work: float = 20 * US, passed_on: bool = False) -> bool:
        """Something comes after that time, and is handled in that; whether the loop was awake."""
        awake = self.wait(wait)
        self.poll.received(self.now)
        self.now += work
        if passed_on:
            self.poll.passed_on = True
        self.poll.expect(self.now)
        return awake

    def reads_until_asleep(self, wait: float, passed_on: bool = False) -> int:
        """How many of these it takes until polling is given up; 1000 if it is not."""
        for reads in range(1000):
            if not self.poll.polling:
                return reads
            self.read(wait, passed_on=passed_on)
        return 1000

    def warm_up(self) -> None:
        """What it takes for polling to be tried."""
        for _ in range(18):
            self.read(50 * US)
        assert self.poll.polling


def test_polling_is_tried_after_sixteen_short_waits() -> None:
    host = Host()
    host.read(1.0)
    for _ in range(16):
        assert not host.read(400 * US)
    assert not host.poll.polling
    assert not host.read(400 * US)
    assert host.poll.polling
    assert host.read(50 * US)
    assert host.polled == pytest.approx(50 * US, abs=2 * US)


def test_a_long_wait_begins_the_count_anew() -> None:
    host = Host()
    for _ in range(10):
        for _ in range(16):
            host.read(400 * US)
        host.read(LIMIT + 10 * US)
    assert not host.poll.polling
    assert not host.polled


def test_a_poll_ends_at_its_limit_and_the_loop_sleeps() -> None:
    host = Host()
    host.warm_up()
    host.polled = 0.0
    assert not host.read(10.0)
    assert host.polled == pytest.approx(LIMIT, abs=3 * US)
    # One wait in vain is nothing against what has been earned.
    assert host.poll.polling
    assert host.read(50 * US)


def test_it_is_kept_up_while_it_pays_and_ended_when_it_does_not() -> None:
    host = Host()
    host.warm_up()
    for _ in range(1000):
        assert host.read(90 * US)
    # Each loses 100 us, and two trials' worth has been saved up at most.
    assert host.reads_until_asleep(200 * US) == pytest.approx(2 * TRIAL / (100 * US), abs=2)
    host.polled = 0.0
    host.read(100 * US)
    assert not host.polled
    assert host.watcher.callback is None


def test_trials_that_fail_become_rare() -> None:
    host = Host(step=20 * US)
    begun, trials = host.now, 0
    while host.now < begun + 10:
        polling = host.poll.polling
        host.read(300 * US)
        trials += host.poll.polling and not polling
    # Pauses of 10 ms, doubled until they are 1 s, take 1.27 s; each poll loses 200 us of the 300 that it takes.
    assert trials == pytest.approx(7 + (10 - 1.27), abs=1)
    assert host.polled == pytest.approx(trials * TRIAL * 300 / 200, rel=0.1)


def test_a_trial_that_succeeds_makes_the_next_one_prompt() -> None:
    host = Host(step=20 * US)
    for _ in range(20_000):
        host.read(300 * US)
    while not host.poll.polling:
        host.read(50 * US)
    for _ in range(1000):
        host.read(20 * US)
    while host.poll.polling:
        host.read(300 * US)
    given_up = host.now
    while not host.poll.polling:
        host.read(50 * US)
    assert host.now - given_up < 0.012


def test_nothing_is_earned_where_somebody_else_wants_the_core() -> None:
    host = Host()
    host.warm_up()
    host.away = 30 * US
    assert host.reads_until_asleep(60 * US) <= 2 * TRIAL / (60 * US) + 1


def test_a_relay_earns_and_does_not_pay_where_those_it_serves_have_the_core() -> None:
    host = Host()
    host.warm_up()
    host.away = 300 * US
    host.read(0.0, passed_on=True)
    for _ in range(1000):
        assert host.read(300 * US, passed_on=True)
    assert host.given_away > 0.2
    # What it polls itself it pays for as everybody does.
    host.away = 0.0
    assert host.reads_until_asleep(200 * US, passed_on=True) <= 2 * TRIAL / (100 * US) + 2


def test_a_relay_sleeps_where_somebody_computes_on_its_core() -> None:
    host = Host()
    host.warm_up()
    host.away = 1500 * US
    assert host.reads_until_asleep(60 * US, passed_on=True) <= 2 * TRIAL / host.away + 1


def test_what_was_passed_on_counts_for_one_poll() -> None:
    host = Host()
    host.warm_up()
    host.away = 30 * US
    host.read(60 * US, passed_on=True)
    assert host.reads_until_asleep(60 * US) <= 2 * TRIAL / (60 * US) + 1


def test_nothing_is_charged_while_there_is_work() -> None:
    host = Host()
    host.warm_up()
    for _ in range(10_000):
        # What comes is there as soon as the loop asks: it never calls an idle watcher.
        assert host.read(0.0, work=2000 * US)
    assert host.poll.polling


def test_sending_without_an_answer_ends_polling() -> None:
    """Each time the wait for an answer begins anew: without an end of its own that would poll for ever."""
    host = Host()
    host.warm_up()
    for _ in range(100):
        host.wait(400 * US)
        host.poll.expect(host.now)
    assert not host.poll.polling
    assert host.watcher.callback is None
    assert host.polled < 2 * TRIAL + 18 * WORTH + LIMIT


def test_a_limit_of_zero_never_polls() -> None:
    host = Host(limit=0.0)
    for _ in range(1000):
        host.read(1 * US)
    assert not host.poll.polling
    assert not host.polled


def test_close_is_for_good() -> None:
    host = Host()
    host.warm_up()
    assert host.watcher.callback is not None
    host.poll.close()
    assert host.watcher.closed
    assert host.watcher.callback is None
    for _ in range(1000):
        host.read(50 * US)
    assert not host.poll.polling


waits = st.sampled_from([0.0, 5 * US, 50 * US, 99 * US, 150 * US, 400 * US, 600 * US, 0.01, 0.3])
events = st.lists(st.tuples(st.sampled_from(["read", "send"]), waits, st.integers(1, 40)), min_size=1, max_size=30)


@PROPERTY
@given(events, st.sampled_from([0.0, 0.0, 30 * US, 2000 * US]), st.booleans())
def test_what_is_polled_away_has_been_earned(steps: list[tuple[str, float, int]], away: float, relays: bool) -> None:
    """Whatever comes and goes: no more than the worth of the polls that ended with something read, and trials that end.

    A relay earns as well where the core was away for a moment, and that moment is not its own; else what is away is paid for.
    """
    host = Host(step=10 * US)
    host.away = away
    host.poll.passed_on = relays
    unpaid = relays and away < 1000 * US
    earned = 0.0
    trials = polls = 0
    for what, wait, times in steps:
        for _ in range(times):
            polling, before = host.poll.polling, host.polled
            if what == "read":
                if host.read(wait, passed_on=relays) and host.polled > before and (unpaid or not away):
                    earned += WORTH
            else:
                host.wait(wait)
                host.poll.expect(host.now)
            trials += host.poll.polling and not polling
            polls += host.polled > before
            # The polls of a trial and the one in which it runs out. The loop is asked once more at the end of each, and may have slept.
            own = host.polled - unpaid * host.given_away
            assert own <= earned + trials * (TRIAL + max(LIMIT, away)) + polls * 2 * host.step + US
            assert (host.watcher.callback is None) or host.poll.polling
