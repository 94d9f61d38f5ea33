"""The announcer: batches no closer than the interval, what comes and goes in between untold, and a peer that does not read."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest
from gevent.event import Event

from astranet_gevent.announcing import Announcer
from astranet_gevent.protocol.frame import Command, FrameBuffer, address_key
from astranet_gevent.protocol.registry import ServiceKey
from astranet_gevent.transport.send_queue import SendQueue

INTERVAL = 0.03
DEADLINE = 5.0
WEB, DB, MAIL = (ServiceKey(name, 7, 80 + index) for index, name in enumerate((b"web", b"db", b"mail")))


class FullQueue(SendQueue):
    """One without room, that tells when it was asked for some."""

    def __init__(self) -> None:
        super().__init__(10)
        self.asked = Event()
        self.push_small(bytes(29))

    @property
    def small_room(self) -> bool:
        self.asked.set()
        return super().small_room


class FakeLink:
    """What an announcer needs of a link."""

    def __init__(self) -> None:
        self.hub = gevent.get_hub()
        self.ended = Event()
        self.queue = SendQueue(1_000_000)
        self.flush_scheduled = False
        self.flushed_at: list[float] = []
        self._flushed = Event()

    def schedule_flush(self) -> None:
        self.flush_scheduled = True
        self.flushed_at.append(time.monotonic())
        self._flushed.set()

    def batch(self) -> list[tuple[int, bytes]]:
        """Wait for the next batch: ``(command, name)`` of each announcement."""
        assert self._flushed.wait(DEADLINE), "nothing was announced"
        return self.take()

    def take(self) -> list[tuple[int, bytes]]:
        """What has been queued."""
        self._flushed.clear()
        self.flush_scheduled = False
        data = b"".join(bytes(part) for part in self.queue.take())
        buffer = FrameBuffer()
        frames = []
        while data:
            space = buffer.writable()
            count = min(len(space), len(data))
            space[:count] = data[:count]
            frames += buffer.decode(count)
            data = data[count:]
        for _, key, name in frames:
            index = next(service.port for service in (WEB, DB, MAIL) if service.name == name) if name in (b"web", b"db", b"mail") else 1
            assert key == address_key(0, 7, 0, index)
        return [(command, name) for command, _, name in frames]


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def announcer(link: FakeLink) -> Any:
    announcer = Announcer(link, INTERVAL)  # type: ignore[arg-type]
    yield announcer
    announcer.close()


def test_changes_are_told_together_sorted_by_name(link: FakeLink, announcer: Announcer) -> None:
    for key in (WEB, MAIL, DB):
        announcer.add(key, True)
    assert link.batch() == [(Command.SERVICE, b"db"), (Command.SERVICE, b"mail"), (Command.SERVICE, b"web")]
    announcer.add(MAIL, False)
    assert link.batch() == [(Command.NO_SERVICE, b"mail")]


def test_batches_are_an_interval_apart(link: FakeLink, announcer: Announcer) -> None:
    for number in range(4):
        announcer.add(WEB, number % 2 == 0)
        link.batch()
    gaps = [after - before for before, after in zip(link.flushed_at, link.flushed_at[1:])]
    # A timer of the loop may be a little early.
    assert all(gap >= INTERVAL - 0.002 for gap in gaps)


def test_what_comes_and_goes_within_an_interval_is_never_told(link: FakeLink, announcer: Announcer) -> None:
    announcer.add(WEB, True)
    link.batch()
    for _ in range(3):
        announcer.add(WEB, False)
        announcer.add(DB, True)
        announcer.add(WEB, True)
        announcer.add(DB, False)
    announcer.add(MAIL, True)
    assert link.batch() == [(Command.SERVICE, b"mail")]


def test_a_long_list_comes_in_parts(link: FakeLink, announcer: Announcer) -> None:
    names = [f"service-{number:04}".encode() for number in range(1100)]
    for name in names:
        announcer.add(ServiceKey(name, 7, 1), True)
    batches = [link.batch() for _ in range(3)]
    assert [len(batch) for batch in batches] == [512, 512, 76]
    assert [name for batch in batches for _, name in batch] == names


def test_a_peer_that_does_not_read_is_told_later(link: FakeLink, announcer: Announcer) -> None:
    link.queue = queue = FullQueue()
    announcer.add(WEB, True)
    announcer.add(DB, True)
    assert queue.asked.wait(DEADLINE)
    assert queue.small_bytes == 29, "the batch that was due is put off"
    # What changes meanwhile is told as it is then.
    announcer.add(DB, False)
    queue.take()
    link.take()
    assert link.batch() == [(Command.SERVICE, b"web")]


@pytest.mark.parametrize("how", ["link ended", "closed"])
def test_nothing_is_told_after_the_end(link: FakeLink, announcer: Announcer, how: str) -> None:
    announcer.add(WEB, True)
    if how == "closed":
        announcer.close()
    else:
        link.ended.set()
    gevent.idle()
    gevent.idle()
    assert not link.queue
