"""Fixtures for every test: waiting with a deadline, helper greenlets that never outlive their test, and the leak check."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gevent
import greenlet
import pytest

from astranet_gevent import AstraNet, Role

T = TypeVar("T")
Counter = Callable[[], int]

# How long a leaked thing may take to go away by itself. Only a failing test waits for it.
LEAK_DEADLINE = 5.0

# Some state changes without an event that a test could wait for (a descriptor closed by a callback
# that ran after the last look); it is looked at again after this many seconds.
LOOK_AGAIN = 0.005

DESCRIPTORS = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Look at the condition after each turn of the loop that did something; whether it came true."""
    hub = gevent.get_hub()
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        turn = hub.loop.check()
        look_again = gevent.Timeout.start_new(LOOK_AGAIN)
        try:
            hub.wait(turn)
        except gevent.Timeout as caught:
            if caught is not look_again:
                raise
        finally:
            look_again.close()
            turn.stop()
            turn.close()
    return True


@pytest.fixture
def eventually() -> Callable[..., None]:
    """``eventually(condition, what, timeout=5.0)``: fails if the condition is not true in time."""

    def wait(condition: Callable[[], bool], what: str, timeout: float = 5.0) -> None:
        assert wait_until(condition, timeout), f"not within {timeout:g} s: {what}"

    return wait


@pytest.fixture
def spawn() -> Iterator[Callable[..., gevent.Greenlet[..., Any]]]:
    """``spawn(function, *args)``: a greenlet that is gone when the test is over, however it ended."""
    started: list[gevent.Greenlet[..., Any]] = []

    def start(function: Callable[..., Any], *args: Any, **kwargs: Any) -> gevent.Greenlet[..., Any]:
        started.append(gevent.spawn(function, *args, **kwargs))
        return started[-1]

    yield start
    gevent.killall(started, timeout=LEAK_DEADLINE)


class LeakCheck:
    """Counts before and after a test; what has grown and does not shrink back within the deadline is a leak.

    Greenlets are found through the garbage collector. A full scan costs 10 ms and more with pytest
    loaded, so everything that exists before the test is put aside with ``gc.freeze()``: afterwards the
    collector lists only what the test made (well under 1 ms).
    """

    def __init__(self) -> None:
        self._counters: dict[str, tuple[Counter, int]] = {}
        # The loop's own descriptors must exist before they are counted.
        gevent.idle()
        if DESCRIPTORS is not None:
            self.watch("descriptors", count_descriptors)
        gc.freeze()

    def watch(self, name: str, count: Counter) -> None:
        """Count something else too: at the end it must not be above what it is now."""
        self._counters[name] = (count, count())

    def verify(self) -> None:
        """Fail with what leaked."""
        try:
            if wait_until(self._is_clean, 0.5):
                return
            # A cycle that nobody holds is not a leak, only late.
            gc.collect()
            assert wait_until(self._is_clean, LEAK_DEADLINE), self._describe()
        finally:
            gc.unfreeze()

    def _is_clean(self) -> bool:
        return not new_greenlets() and all(count() <= before for count, before in self._counters.values())

    def _describe(self) -> str:
        lines = [f"{name}: {before} before, {count()} now" for name, (count, before) in self._counters.items()]
        for left in new_greenlets():
            lines.append(f"greenlet left: {left!r}")
            if left.gr_frame is not None:
                lines += traceback.format_stack(left.gr_frame, limit=-4)
        return "leaked:\n" + "\n".join(lines)


def count_descriptors() -> int:
    """Open descriptors of this process."""
    assert DESCRIPTORS is not None
    return len(os.listdir(DESCRIPTORS))


def new_greenlets() -> list[greenlet.greenlet]:
    """Greenlets made since ``gc.freeze()`` that have not ended."""
    return [item for item in gc.get_objects() if isinstance(item, greenlet.greenlet) and not item.dead]


@pytest.fixture
def no_leaks() -> Iterator[Callable[[str, Counter], None]]:
    """Fails the test if greenlets or descriptors stay behind; ``no_leaks(name, count)`` watches a further count.

    What the test makes on purpose for longer (a node, a link) belongs in a fixture set up before this one.
    """
    check = LeakCheck()
    yield check.watch
    check.verify()


@pytest.fixture
def address() -> Iterator[str]:
    """Of a router behind which a service named "greeting" says hello to who connects."""
    with AstraNet(role=Role.ROUTER, loopback=True) as mesh:
        listener = mesh.bind("greeting:80")
        gevent.spawn(lambda: [stream.sendall(b"hello") or stream.close() for stream, _ in listener])
        host, port = mesh.listen(("127.0.0.1", 0)).address
        yield f"{host}:{port}"
