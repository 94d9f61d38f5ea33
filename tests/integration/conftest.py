"""Fixtures of the integration tests: nodes that are closed again, and the watch for leaks and stray errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from astranet_gevent.transport.link import PROCESS_BUDGET

from .tools import Bench


@pytest.fixture(scope="session", autouse=True)
def resolver_threads() -> None:
    """The threads of gevent's resolver stay for good once they are there: have all of them before leaks are counted."""
    pool = gevent.get_hub().threadpool
    gevent.joinall([pool.spawn(_rest) for _ in range(pool.maxsize)])


def _rest() -> None:
    # Long enough for all threads to have started: the pool starts another only while the others are busy.
    import time

    time.sleep(0.02)


class _ErrorLog(logging.Handler):
    def __init__(self, errors: list[Any]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(record.getMessage())


@pytest.fixture(autouse=True)
def hub_errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Fails the test if an exception left a greenlet or a callback, or if the library logged an error."""
    errors: list[Any] = []
    hub = gevent.get_hub()
    report: Callable[..., None] = hub.handle_error

    def handle_error(context: Any, kind: Any, value: Any, traceback: Any) -> None:
        if not issubclass(kind, hub.NOT_ERROR):
            errors.append((context, kind, value))
        report(context, kind, value, traceback)

    monkeypatch.setattr(hub, "handle_error", handle_error)
    handler = _ErrorLog(errors)
    logger = logging.getLogger("astranet_gevent")
    logger.addHandler(handler)
    yield errors
    logger.removeHandler(handler)
    assert not errors, errors


@pytest.fixture
def bench(no_leaks: Callable[[str, Callable[[], int]], None], hub_errors: list[Any]) -> Iterator[Bench]:
    """Nodes, cables, raw peers; afterwards all are closed and nothing of them may be left."""
    no_leaks("granted window", lambda: PROCESS_BUDGET.used)
    with Bench() as made:
        yield made


@pytest.fixture
def hold() -> Callable[[float], bool]:
    """``hold(seconds)``: let time pass, for tests of what must not happen within it."""
    return Event().wait
