"""Fixtures of the conformance tests: every test runs over every provider, under a deadline, without leaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from .providers import PROVIDERS, Pair, Provider, Trait
from .tools import DEADLINE

_FAILED = pytest.StashKey[bool]()


class DeadlineError(Exception):
    """The test did not end in time."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker of this folder known."""
    config.addinivalue_line("markers", "needs(*traits): skip where the provider lacks one of them")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Note failures, so that the next test gets fresh nodes instead of what the failure left."""
    outcome: Any = yield
    if outcome.get_result().failed:
        item.stash[_FAILED] = True


@pytest.fixture(scope="module", params=PROVIDERS, ids=lambda kind: str(kind.name))
def opened_provider(request: pytest.FixtureRequest) -> Iterator[Provider]:
    """A provider, started once per module."""
    provider: Provider = request.param()
    provider.open()
    yield provider
    provider.close()


@pytest.fixture
def provider(opened_provider: Provider, request: pytest.FixtureRequest) -> Iterator[Provider]:
    """The provider of this test, which is skipped if it needs what the provider lacks."""
    for marker in request.node.iter_markers("needs"):
        for trait in marker.args:
            if trait in opened_provider.lacks:
                reason = opened_provider.lacks[trait]
                pytest.skip(f"{opened_provider.name} not: {trait.value}: {reason}")
    with gevent.Timeout(DEADLINE, DeadlineError(f"not done within {DEADLINE:g} s")):
        yield opened_provider
    if request.node.stash.get(_FAILED, False):
        opened_provider.close()
        opened_provider.open()


@pytest.fixture
def watched(provider: Provider, no_leaks: Callable[[str, Callable[[], int]], None]) -> Provider:
    """The provider, with a check that no greenlet, descriptor or stream is left after the test."""
    no_leaks("streams", provider.live_streams)
    return provider


@pytest.fixture
def pair(watched: Provider) -> Iterator[Pair]:
    """Two connected streams: (dialling end, accepting end)."""
    client, server = watched.connect_pair()
    yield client, server
    client.close()
    server.close()


@pytest.fixture(params=("dialler", "acceptor"))
def sides(request: pytest.FixtureRequest, pair: Pair) -> Pair:
    """Two connected streams, each end once in the first place."""
    return pair if request.param == "dialler" else (pair[1], pair[0])


@pytest.fixture
def listener(watched: Provider) -> Iterator[Any]:
    """A listener of its own for the test; dial ``provider.address(listener)``."""
    if Trait.LISTENER in watched.lacks:
        pytest.skip(f"{watched.name} not: {Trait.LISTENER.value}: {watched.lacks[Trait.LISTENER]}")
    listener = watched.listener()
    yield listener
    listener.close()
