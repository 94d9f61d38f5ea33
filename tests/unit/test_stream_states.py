"""A stream's states against a model of what they mean: two halves, each open, ended or broken, after one opening step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astranet_gevent.protocol.stream import ENDED, LIVE, Step, StreamCore, StreamState
from astranet_gevent.transport.stream import Stream

from .tools import PROPERTY


@dataclass(frozen=True)
class Model:
    """Both halves as "open", "ended" or "broken"."""

    opened: bool = False
    closed: bool = False
    sending: str = "open"
    receiving: str = "open"

    @property
    def live(self) -> bool:
        """Frames still matter: something can arrive, or something can be written."""
        return not self.closed and (self.sending == "open" or self.receiving == "open")

    @property
    def state(self) -> StreamState:
        """The name of all that."""
        if self.closed:
            return StreamState.CLOSED
        if self.receiving == "broken":
            return StreamState.RESET
        if not self.opened:
            return StreamState.DIALING
        if self.receiving == "ended":
            return {"open": StreamState.GOT_FIN, "ended": StreamState.FINISHED, "broken": StreamState.PEER_GONE}[self.sending]
        return {"open": StreamState.OPEN, "ended": StreamState.SENT_FIN}[self.sending]

    def after(self, step: Step) -> Model | None:
        """The model after a step, None for a step that has no meaning now."""
        if step is Step.CLOSE:
            return None if self.closed else replace(self, closed=True)
        if step is Step.SHUTDOWN:
            return self.end_sending()
        if not self.live or (step is not Step.BREAK and (step is Step.SYN) is self.opened):
            return None
        if step is Step.SYN:
            return replace(self, opened=True)
        if step is Step.BREAK:
            return self.break_off()
        if step is Step.FIN:
            return replace(self, receiving="ended") if self.receiving == "open" else None
        assert step is Step.GONE
        return replace(self, receiving="ended", sending="broken" if self.sending == "open" else self.sending)

    def end_sending(self) -> Model | None:
        """A half that the peer's close broke can be ended too: writing after that is the writer's mistake, as with TCP."""
        if not self.opened or self.closed or self.sending == "ended" or self.receiving == "broken":
            return None
        return replace(self, sending="ended")

    def break_off(self) -> Model:
        """What has ended stays ended; what is open breaks."""
        sending = "broken" if self.sending == "open" else self.sending
        receiving = "broken" if self.receiving == "open" else self.receiving
        return replace(self, sending=sending, receiving=receiving)


def reachable() -> dict[StreamState, list[Model]]:
    """Every situation there is, by the state that it is called."""
    found: dict[StreamState, list[Model]] = {}
    waiting = [Model()]
    while waiting:
        model = waiting.pop()
        same = found.setdefault(model.state, [])
        if model not in same:
            same.append(model)
            waiting += [after for step in Step if (after := model.after(step)) is not None]
    return found


SITUATIONS = reachable()


def test_every_state_can_be_reached() -> None:
    assert set(SITUATIONS) == set(StreamState)


@pytest.mark.parametrize("state", StreamState)
@pytest.mark.parametrize("step", Step)
def test_every_step_from_every_state(state: StreamState, step: Step) -> None:
    for model in SITUATIONS[state]:
        core = StreamCore(bytes(24), state)
        after = model.after(step)
        assert core.step(step) is (after is not None)
        assert core.state is (state if after is None else after.state)


@pytest.mark.parametrize("state", StreamState)
def test_live_and_ended_follow_from_the_halves(state: StreamState) -> None:
    for model in SITUATIONS[state]:
        assert (state in LIVE) is model.live
        assert (state in ENDED) is (not model.closed and model.receiving == "ended")


def test_what_the_sets_promise() -> None:
    for state in StreamState:
        for step in Step:
            core = StreamCore(bytes(24), state)
            took = core.step(step)
            if state not in LIVE:
                # Out of the link's table for good.
                assert core.state not in LIVE
                ends_writing = step is Step.SHUTDOWN and state is StreamState.PEER_GONE
                assert took is (ends_writing or (step is Step.CLOSE and state is not StreamState.CLOSED))
            if state in ENDED:
                # An end that has arrived stays one until the stream is closed.
                assert core.state in ENDED or core.state is StreamState.CLOSED
    assert all(StreamCore(bytes(24), state).step(Step.CLOSE) for state in StreamState if state is not StreamState.CLOSED)
    assert not any(StreamCore(bytes(24), StreamState.CLOSED).step(step) for step in Step)


@PROPERTY
@given(st.lists(st.sampled_from(Step), max_size=12))
def test_any_sequence_of_steps(steps: list[Step]) -> None:
    model, core = Model(), StreamCore(bytes(24), StreamState.DIALING)
    for step in steps:
        after = model.after(step)
        before = core.state
        assert core.step(step) is (after is not None)
        model = after or model
        assert core.state is model.state
        assert (core.state is not before) is (after is not None and after.state is not before)


def test_a_peer_that_closes_after_our_shutdown_has_ended_properly() -> None:
    """Nothing that we wrote is lost: no error for the reader, and none for the writer, who is done."""
    core = StreamCore(bytes(24), StreamState.OPEN)
    assert [core.step(step) for step in (Step.SHUTDOWN, Step.GONE, Step.BREAK)] == [True, True, False]
    assert core.state is StreamState.FINISHED


def test_a_stream_that_was_never_initialised_raises() -> None:
    """In the compiled build as well, where a missing check would read from address 0."""
    stream = Stream.__new__(Stream)
    for call in (lambda: stream.recv(1), lambda: stream.send(b"x"), stream.fileno, stream.close):
        with pytest.raises(AttributeError):
            call()
