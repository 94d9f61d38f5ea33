"""A link's state: handshake, goodbye, and the keepalive deadlines on a clock that the test moves."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from astranet_gevent.config import Config
from astranet_gevent.errors import RemoteProtocolError
from astranet_gevent.protocol.frame import Command, FrameBuffer, address_key
from astranet_gevent.protocol.handshake import ORIGINAL, OURS, encode_handshake
from astranet_gevent.protocol.link import GOODBYE, PING, PONG, LinkCore, LinkState, LinkTimeoutError, TimerEvent
from astranet_gevent.testing import ManualClock

from .tools import PROPERTY

OUR_ID, PEER_ID, OTHER_ID = 11, 22, 33
CONFIG = Config()


def peer_key(node_id: int = PEER_ID) -> bytes:
    """The key of a peer's HANDSHAKE."""
    return address_key(0, node_id, 0, 0)


def ready_core(config: Config = CONFIG, now: float = 0.0) -> LinkCore:
    """A link whose handshake is done."""
    core = LinkCore(config, OUR_ID, now)
    assert core.receive_handshake(peer_key(), encode_handshake("")) is not None
    return core


# -- handshake --------------------------------------------------------------------------------------------------------------


def test_our_handshake() -> None:
    data = LinkCore(CONFIG, OUR_ID, 0.0).handshake_frame("10.0.0.1:7")
    buffer = FrameBuffer()
    buffer.writable()[: len(data)] = data
    [(command, key, payload)] = buffer.decode(len(data))
    assert (command, key) == (Command.HANDSHAKE, address_key(0, OUR_ID, 0, 0))
    assert json.loads(payload)["RAddr"] == "10.0.0.1:7"


def test_the_fixed_frames() -> None:
    for frame, command in ((PING, Command.PING), (PONG, Command.PONG), (GOODBYE, Command.GOODBYE)):
        assert frame == bytes((command,)) + bytes(28)


@pytest.mark.parametrize(
    ("payload", "capabilities", "address"),
    [(encode_handshake("a:1"), OURS, "a:1"), (b'{"RAddr":"b:2"}', ORIGINAL, "b:2"), (b"null", ORIGINAL, "")],
)
def test_the_peers_handshake(payload: bytes, capabilities: object, address: str) -> None:
    core = LinkCore(CONFIG, OUR_ID, 0.0)
    assert (core.state, core.peer_id, core.capabilities) == (LinkState.HANDSHAKE, 0, ORIGINAL)
    handshake = core.receive_handshake(peer_key(), payload)
    assert handshake is not None
    assert handshake.capabilities == capabilities
    assert (core.state, core.peer_id, core.capabilities, core.seen_address) == (LinkState.READY, PEER_ID, capabilities, address)


def test_a_second_handshake_changes_nothing() -> None:
    core = ready_core()
    assert core.receive_handshake(peer_key(), b'{"RAddr":"elsewhere:1"}') is None
    assert (core.state, core.peer_id, core.capabilities, core.seen_address) == (LinkState.READY, PEER_ID, OURS, "")


@pytest.mark.parametrize("when", ["ready", "draining"])
def test_a_second_handshake_of_another_node_is_refused(when: str) -> None:
    core = ready_core()
    if when == "draining":
        core.start_goodbye()
    with pytest.raises(RemoteProtocolError, match="second handshake names node 0x21, the first named 0x16"):
        core.receive_handshake(peer_key(OTHER_ID), b"{}")
    assert core.peer_id == PEER_ID


@pytest.mark.parametrize(("node_id", "payload"), [(0, b"{}"), (PEER_ID, b""), (PEER_ID, b"[]"), (PEER_ID, b'{"RAddr":1}')])
def test_bad_handshakes(node_id: int, payload: bytes) -> None:
    core = LinkCore(CONFIG, OUR_ID, 0.0)
    with pytest.raises(RemoteProtocolError):
        core.receive_handshake(peer_key(node_id), payload)
    assert (core.state, core.peer_id) == (LinkState.HANDSHAKE, 0)
    with pytest.raises(RemoteProtocolError):
        ready_core().receive_handshake(peer_key(node_id), payload)


# -- goodbye and close ------------------------------------------------------------------------------------------------------


@PROPERTY
@given(st.lists(st.sampled_from(["handshake", "drain", "say", "hear", "close"]), max_size=8))
@example(["say", "handshake", "say", "hear", "say", "close", "close", "hear"])
@example(["hear", "drain", "handshake", "drain", "drain", "say", "drain", "close", "drain"])
def test_goodbye_is_sent_once_and_only_on_a_link_that_is_ready(steps: list[str]) -> None:
    core = LinkCore(CONFIG, OUR_ID, 0.0)
    state, sent, heard = LinkState.HANDSHAKE, False, False
    for step in steps:
        if step == "handshake" and state is not LinkState.CLOSED:
            first = core.receive_handshake(peer_key(), b"{}") is not None
            assert first is (state is LinkState.HANDSHAKE)
            state = LinkState.READY if first else state
        elif step in ("say", "hear"):
            may_send = state in (LinkState.READY, LinkState.DRAINING) and not sent
            assert (core.start_goodbye() if step == "say" else core.receive_goodbye()) is may_send
            sent, heard = sent or may_send, heard or step == "hear"
            state = LinkState.DRAINING if may_send else state
        elif step == "drain":
            core.drain()
            state = LinkState.DRAINING if state is LinkState.READY else state
        elif step == "close":
            assert core.close() is (state is not LinkState.CLOSED)
            state = LinkState.CLOSED
        assert (core.state, core.goodbye_sent, core.goodbye_received) == (state, sent, heard)


def test_a_closed_link_has_no_deadline() -> None:
    core = ready_core()
    core.next_deadline()
    core.close()
    assert core.next_deadline() is None
    assert core.handle_timer(10_000.0) is TimerEvent.NOTHING


# -- a driver on a clock ----------------------------------------------------------------------------------------------------


@dataclass
class Driver:
    """Drives a LinkCore as transport/ does: a timer that is set anew only when it has fired, and bytes that arrive in between.

    The process sleeps between ``sleeps[n]`` and its end: then nothing is read and no timer fires. Afterwards the timer comes first and
    the bytes that wait come behind it, which is the order of gevent's loop.
    """

    config: Config = CONFIG
    clock: ManualClock = field(default_factory=lambda: ManualClock(0.0))
    sleeps: list[tuple[float, float]] = field(default_factory=list)
    pings: list[float] = field(default_factory=list)
    error: LinkTimeoutError | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        self.core = LinkCore(self.config, OUR_ID, self.clock())
        self.timer = self.core.next_deadline()
        # (time, order, what): "bytes", "part" (of a frame), "handshake" and "write".
        self._events: list[tuple[float, int, str]] = []
        self._count = 0

    def at(self, times: Iterable[float], what: str = "bytes") -> Driver:
        """Have something happen at those times."""
        for time in times:
            self._count += 1
            heapq.heappush(self._events, (time, self._count, what))
        return self

    def ready(self) -> Driver:
        """The handshake comes at once."""
        return self.at([self.clock()], "handshake")

    def run(self, until: float) -> Driver:
        """Until that time, or until the link is dropped; ``clock`` tells when that was."""
        while self.error is None:
            coming = self._events[0][0] if self._events else until
            due = self.timer if self.timer is not None else until
            if min(coming, due) >= until:
                break
            now = self._awake(min(coming, due))
            self.clock.advance(max(0.0, now - self.clock()))
            if due <= self.clock():
                self._fire()
            elif coming <= self.clock():
                self._happen(heapq.heappop(self._events)[2])
        return self

    def _awake(self, time: float) -> float:
        """When the process gets to what is due at ``time``."""
        return next((end for start, end in self.sleeps if start <= time < end), time)

    def _fire(self) -> None:
        now = self.clock()
        try:
            event = self.core.handle_timer(now)
        except LinkTimeoutError as error:
            self.error = error
            return
        if event is TimerEvent.PING:
            self.pings.append(now)
            self.core.note_sent(now)
        deadline = self.core.next_deadline()
        assert deadline is not None
        # As the transport: later than now, or a deadline that stays in the past would hold the loop.
        self.timer = deadline if deadline > now else now + 0.001

    def _happen(self, what: str) -> None:
        now = self.clock()
        if what == "write":
            self.core.note_sent(now)
        elif what == "handshake":
            self.core.receive_handshake(peer_key(), b"{}")
            self.core.note_received(now, False)
            self.timer = self.core.next_deadline()
        else:
            self.core.note_received(now, what == "part")


def times(gaps: Iterable[float]) -> list[float]:
    """Points in time from the gaps between them."""
    total, points = 0.0, []
    for gap in gaps:
        total += gap
        points.append(total)
    return points


# -- deadlines --------------------------------------------------------------------------------------------------------------


def test_no_handshake() -> None:
    driver = Driver().run(1000)
    assert driver.clock() == 10.0
    assert str(driver.error) == "no handshake within 10 s (handshake_timeout)"


def test_bytes_without_a_handshake_do_not_help() -> None:
    driver = Driver().at(range(1, 30)).run(1000)
    assert driver.clock() == 10.0
    assert "handshake_timeout" in str(driver.error)
    assert not driver.pings


def test_a_handshake_at_the_last_moment() -> None:
    driver = Driver().at([9.999], "handshake").at(range(10, 50)).run(50)
    assert driver.error is None


def test_a_silent_peer_is_pinged_and_then_dropped() -> None:
    driver = Driver().ready().run(1000)
    assert driver.clock() == pytest.approx(100.0)
    assert str(driver.error) == "nothing received for 100 s (keepalive_timeout)"
    assert driver.pings == pytest.approx(list(range(5, 100, 5)))


def test_a_peer_that_answers_pings_stays() -> None:
    driver = Driver().ready()
    for end in range(1, 400):
        asked = len(driver.pings)
        driver.run(float(end))
        driver.at(time + 0.3 for time in driver.pings[asked:])
    assert driver.error is None
    # A PONG is heard 0.3 s after each PING: it is quiet for 5 s only after that, as far as receiving goes; our own last write was the PING.
    assert len(driver.pings) in (79, 80)


def test_a_peer_that_talks_while_we_do_not_is_pinged() -> None:
    """The original's clock runs on writes; a peer of that kind must hear from us."""
    driver = Driver().ready().at([n / 2 for n in range(1, 60)]).run(30)
    assert driver.pings == pytest.approx([5, 10, 15, 20, 25])


def test_a_peer_that_we_talk_to_but_do_not_hear_is_pinged() -> None:
    driver = Driver().ready().at([n / 2 for n in range(1, 60)], "write").run(30)
    assert driver.pings == pytest.approx([5, 10, 15, 20, 25])


def test_no_pings_while_both_talk() -> None:
    driver = Driver().ready().at(range(1, 60)).at([n + 0.5 for n in range(60)], "write").run(60)
    assert not driver.pings


def test_a_frame_that_stops_in_its_middle() -> None:
    driver = Driver().ready().at([1.0, 2.0, 3.0]).at([4.0], "part").run(1000)
    assert driver.clock() == pytest.approx(14.0)
    assert str(driver.error) == "a frame stopped in its middle for 10 s (frame_timeout)"


def test_a_frame_that_comes_slowly_is_not_stalled() -> None:
    driver = Driver().ready().at(range(1, 100, 9), "part").at([100.5]).run(105)
    assert driver.error is None


def test_a_frame_stall_shorter_than_a_ping_interval() -> None:
    config = Config(frame_timeout=0.5, keepalive_interval=50)
    driver = Driver(config).ready().at([7.0]).at([7.1], "part").run(1000)
    assert driver.clock() == pytest.approx(7.6)
    assert "0.5 s (frame_timeout)" in str(driver.error)


configs = st.builds(
    lambda interval, factor, frame: Config(keepalive_interval=interval, keepalive_timeout=interval * factor, frame_timeout=frame),
    st.sampled_from([0.05, 1.0, 5.0]),
    st.sampled_from([3.0, 20.0]),
    st.sampled_from([0.1, 10.0, 500.0]),
)
gaps = st.lists(st.floats(0.001, 15), max_size=25)


@PROPERTY
@given(configs, gaps, gaps)
def test_dropped_exactly_after_the_silence_that_is_too_long(config: Config, arrivals: list[float], writes: list[float]) -> None:
    timeout = config.keepalive_timeout
    points = [0.0, *times(arrivals)]
    driver = Driver(config).ready().at(points[1:]).at(times(writes), "write").run(10_000)
    dropped_at = next(time for time, after in zip(points, [*points[1:], float("inf")]) if after >= time + timeout) + timeout
    assert driver.error is not None
    assert driver.clock() == pytest.approx(dropped_at)
    assert "keepalive_timeout" in str(driver.error)


@PROPERTY
@given(configs, gaps, gaps)
@example(Config(keepalive_interval=1.0, keepalive_timeout=20.0), [0.001], [0.5])  # the last PING is due 2e-15 s before the end
def test_pings_exactly_when_one_side_has_been_quiet(config: Config, arrivals: list[float], writes: list[float]) -> None:
    """Never before the interval is over, and never later: counted from the quieter side, and from the last PING."""
    heard, wrote = times(arrivals), times(writes)
    driver = Driver(config).ready().at(heard).at(wrote, "write").run(10_000)
    expected: list[float] = []
    end = driver.clock()
    moments = sorted({*heard, *wrote})
    last_heard = last_wrote = last_ping = 0.0
    while True:
        due = max(min(last_heard, last_wrote), last_ping) + config.keepalive_interval
        event = moments[0] if moments else end
        if min(due, event) >= end - 1e-9:
            break
        if due <= event:
            expected.append(due)
            last_ping = last_wrote = due
        else:
            moments.pop(0)
            last_heard = event if event in heard else last_heard
            last_wrote = event if event in wrote else last_wrote
    # One that falls together with the end by a rounding error may be sent or not.
    assert [ping for ping in driver.pings if ping < end - 1e-9] == pytest.approx(expected)


# -- a process that did not get to run --------------------------------------------------------------------------------------


def test_a_busy_process_does_not_blame_its_peer() -> None:
    """20 s without reading, for a peer that answers: with deadlines shorter than that."""
    config = Config(keepalive_interval=5, keepalive_timeout=12)
    arrivals = [n * 2.0 for n in range(1, 60)]
    driver = Driver(config, sleeps=[(3.0, 23.0), (40.0, 60.0)]).ready().at(arrivals).run(100)
    assert driver.error is None


def test_a_peer_that_is_dead_is_dropped_all_the_same() -> None:
    config = Config(keepalive_interval=5, keepalive_timeout=12)
    driver = Driver(config, sleeps=[(3.0, 23.0)]).ready().at([1.0]).run(1000)
    assert driver.error is not None
    # It was awake for 12 s of silence then, give or take what it cannot know: when between two timers it fell asleep.
    awake = driver.clock() - 20.0 - 1.0
    assert 12.0 - config.keepalive_interval <= awake <= 12.0 + 2.0


def test_bytes_that_wait_behind_a_late_timer_are_read_first() -> None:
    """The timer that was due was the one for silence itself."""
    config = Config(keepalive_interval=5, keepalive_timeout=6)
    driver = Driver(config, sleeps=[(5.5, 25.5)]).ready().at([5.6, *range(26, 60)]).run(60)
    assert driver.error is None


def test_a_handshake_that_waits_behind_a_late_timer_is_read_first() -> None:
    driver = Driver(sleeps=[(0.1, 20.1)]).at([0.2], "handshake").at(range(21, 60)).run(60)
    assert driver.error is None
    assert driver.core.state is LinkState.READY


def test_a_frame_whose_rest_waits_behind_a_late_timer_is_read_first() -> None:
    config = Config(frame_timeout=2, keepalive_interval=50)
    driver = Driver(config, sleeps=[(4.5, 24.5)]).ready().at([3.0], "part").at([4.6, *range(25, 60)]).run(60)
    assert driver.error is None


def test_late_by_what_is_ordinary_is_not_forgiven() -> None:
    """Else many small delays would keep a dead peer for ever."""
    driver = Driver(sleeps=[(n - 0.4, n + 0.4) for n in range(5, 1000, 5)]).ready().run(1000)
    assert driver.error is not None
    assert driver.clock() <= 101


naps = st.lists(st.tuples(st.floats(0.01, 30), st.floats(0.01, 60)), max_size=6)


@PROPERTY
@given(configs.filter(lambda config: config.frame_timeout > 1), naps)
def test_no_sleep_costs_a_peer_that_answers_its_link(config: Config, naps: list[tuple[float, float]]) -> None:
    sleeps: list[tuple[float, float]] = []
    now = 0.0
    for awake, asleep in naps:
        sleeps.append((now + awake, now + awake + asleep))
        now += awake + asleep
    scale = config.keepalive_interval / 5
    sleeps = [(start * scale, end * scale) for start, end in sleeps]
    end = now * scale + 30 * scale
    step = config.keepalive_interval
    driver = Driver(config, sleeps=sleeps).ready().at(n * step for n in range(1, int(end / step) + 2)).run(end)
    assert driver.error is None


@pytest.mark.parametrize("field", ["handshake_timeout", "keepalive_timeout", "frame_timeout"])
def test_what_an_error_says_names_the_setting_and_its_value(field: str) -> None:
    changes: dict[str, Any] = {field: 7.5, "keepalive_interval": 5.0}
    driver = Driver(Config(**changes))
    if field != "handshake_timeout":
        driver.ready()
    if field == "frame_timeout":
        driver.at([1.0], "part")
    driver.run(1000)
    assert f"7.5 s ({field})" in str(driver.error)
