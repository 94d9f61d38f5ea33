"""Fixtures of the integration tests: nodes that are closed again, and the watch for leaks and stray errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.threadpool import ThreadPool

from astranet_gevent.transport.link import PROCESS_BUDGET

from .tools import Bench


@pytest.fixture(scope="session", autouse=True)
def resolver_threads() -> None:
    """Give gevent's resolver threads that stay. Those of the default pool end after 5 s without work: until then they count as leaks."""
    hub = gevent.get_hub()
    hub.threadpool = pool = ThreadPool(2, hub=hub)
    hub.resolver = hub.resolver_class(hub=hub)
    # Its threads start when there is work for them; each has to rest long enough for the other to start too.
    gevent.joinall([pool.spawn(time.sleep, 0.05) for _ in range(pool.maxsize)])


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
def bench(no_leaks: Callable[[str, Callable[[], int]], None], hub_errors: list[Any], eventually: Callable[..., None]) -> Iterator[Bench]:
    """Nodes, cables, raw peers; afterwards all are closed and nothing of them may be left."""
    no_leaks("granted window", lambda: PROCESS_BUDGET.used)
    with Bench(eventually) as made:
        yield made


@pytest.fixture
def hold() -> Callable[[float], bool]:
    """``hold(seconds)``: let time pass, for tests of what must not happen within it."""
    return Event().wait
