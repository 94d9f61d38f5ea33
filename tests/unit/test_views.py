"""The views of a node and their watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from astranet_gevent import AstraNet, LimitError, NoRouteError, Role, Route, Service, ServiceNotFoundError, StreamClosedError
from astranet_gevent.testing import Network
from astranet_gevent.views import Change, Watch

DEADLINE = 5.0


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Nothing here waits for long."""
    with gevent.Timeout(DEADLINE):
        yield


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def pair(network: Network) -> tuple[AstraNet, AstraNet]:
    """Two nodes with a link."""
    near, far = (network.node(announce_interval=0.001) for _ in range(2))
    network.connect(near, far)
    return near, far


# -- a watch by itself ------------------------------------------------------------------------------------------------------


class Source:
    """Something to watch."""

    def __init__(self) -> None:
        self.notes: list[Callable[[Any, bool], None]] = []

    def connect(self, note: Callable[[Any, bool], None]) -> Callable[[], None]:
        self.notes.append(note)
        return lambda: self.notes.remove(note)


def seen(watch: Watch[Any]) -> list[tuple[str, Any]]:
    """What waits in a watch."""
    changes = []
    while (change := watch.get(0)) is not None:
        changes.append((change.kind, change.item))
    return changes


def test_a_watch_begins_with_what_is_there() -> None:
    source = Source()
    with Watch(["a", "b"], source.connect) as watch:
        source.notes[0]("c", True)
        source.notes[0]("a", False)
        assert seen(watch) == [("added", "a"), ("added", "b"), ("added", "c"), ("removed", "a")]
        assert watch.get(0) is None
    assert source.notes == []


def test_a_watch_that_is_closed_gives_what_waits_and_ends() -> None:
    source = Source()
    watch = Watch(["a"], source.connect)
    source.notes[0]("b", True)
    watch.close()
    watch.close()
    assert [(change.kind, change.item) for change in watch] == [("added", "a"), ("added", "b")]
    assert list(watch) == []
    assert watch.get() is None


def test_closing_wakes_who_waits(spawn: Callable[..., Any]) -> None:
    watch = Watch[Any]([], Source().connect)
    waiter = spawn(watch.get)
    gevent.idle()
    assert not waiter.ready()
    watch.close()
    assert waiter.get() is None


def test_a_change_wakes_who_waits(spawn: Callable[..., Any]) -> None:
    source = Source()
    watch = Watch[Any]([], source.connect)
    waiter = spawn(next, watch)
    gevent.idle()
    source.notes[0]("a", True)
    assert repr(waiter.get()) == "Change('added', 'a')"


def test_a_watch_that_is_not_read_ends() -> None:
    source = Source()
    watch = Watch[Any]([], source.connect)
    note = source.notes[0]
    for number in range(65536):
        note(number, True)
    assert source.notes == [note]
    note("one too many", True)
    assert source.notes == []
    for _ in range(2):
        with pytest.raises(LimitError, match="65536 changes"):
            watch.get()


def test_a_change_is_named_after_what_is_watched() -> None:
    assert Change("added", "x").service == Change("added", "x").node_id == "x"


# -- services ---------------------------------------------------------------------------------------------------------------


def test_services_come_and_go(pair: tuple[AstraNet, AstraNet]) -> None:
    near, far = pair
    with near.service_map.watch() as watch:
        listener = far.bind("web:80")
        service = Service("web", far.node_id, 80, 0)
        change = watch.get(DEADLINE)
        assert change is not None
        assert (change.kind, change.service) == ("added", service)
        assert near.service_map["web"] == near.service_map["web:80"] == (service,)
        assert dict(near.service_map) == {"web": (service,)}
        assert near.services() == [service]
        listener.close()
        change = watch.get(DEADLINE)
        assert change is not None
        assert (change.kind, change.service) == ("removed", service)
        assert len(near.service_map) == 0
        assert "web" not in near.service_map


def test_the_map_is_sorted_and_counts_names(network: Network) -> None:
    node = network.node()
    for text in ("b:5", "a:7", "b:4", ":9"):
        node.bind(text)
    assert list(node.service_map) == ["a", "b"]
    assert len(node.service_map) == 2
    assert [service.port for service in node.service_map["b"]] == [4, 5]
    assert "b:5" in node.service_map
    assert "b:6" not in node.service_map
    with pytest.raises(KeyError):
        node.service_map["c"]


def test_waiting_for_a_service(pair: tuple[AstraNet, AstraNet], spawn: Callable[..., Any]) -> None:
    near, far = pair
    waiter = spawn(near.service_map.wait_for, "web", DEADLINE)
    gevent.idle()
    far.bind("other")
    far.bind("web:80")
    assert waiter.get() == (Service("web", far.node_id, 80, 0),)
    assert near.service_map.wait_for("web", 0) == waiter.get()


def test_waiting_in_vain(network: Network) -> None:
    node = network.node()
    node.bind("other")
    with pytest.raises(ServiceNotFoundError, match=r"nobody offered service 'web' within 0\.02 s"):
        node.service_map.wait_for("web", 0.02)
    with pytest.raises(NoRouteError, match=r"no link to node AAAAAAAAAAc within 0\.02 s"):
        node.route_map.wait_for(7, 0.02)


def test_a_node_that_closes_ends_what_watches_it(network: Network, spawn: Callable[..., Any]) -> None:
    node = network.node()
    services, routes = node.service_map.watch(), node.route_map.watch()
    readers = [spawn(list, services), spawn(list, routes)]
    waiters = [spawn(_outcome, node.service_map.wait_for, "web"), spawn(_outcome, node.route_map.wait_for, 7)]
    gevent.idle()
    node.close()
    assert [reader.get() for reader in readers] == [[], []]
    assert all(isinstance(waiter.get(), StreamClosedError) for waiter in waiters)
    with pytest.raises(StreamClosedError):
        node.service_map.watch()


def _outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What a call raises, for a greenlet in which an error would be reported."""
    try:
        return function(*args)
    except StreamClosedError as error:
        return error


# -- environments -----------------------------------------------------------------------------------------------------------


def test_services_of_other_environments_are_not_there(network: Network) -> None:
    plain = network.node(role=Role.ROUTER, announce_interval=0.001)
    staged = network.node(env=("staging",), announce_interval=0.001)
    network.connect(plain, staged)
    plain.bind("web:80")
    staged.bind("web:81")
    staged.bind("db:82")
    plain.service_map.wait_for("db.staging", DEADLINE)
    assert dict(staged.service_map).keys() == {"db", "web"}
    assert [service.port for service in staged.service_map["web"]] == [81]
    assert set(plain.service_map) == {"web", "web.staging", "db.staging"}


# -- routes -----------------------------------------------------------------------------------------------------------------


def test_routes_come_and_go(network: Network) -> None:
    near, far = network.node(), network.node()
    with near.route_map.watch() as watch:
        cable = network.connect(near, far)
        change = watch.get(DEADLINE)
        assert change is not None
        assert (change.kind, change.node_id) == ("added", far.node_id)
        route = Route(far.node_id, 0, far.node_id)
        assert near.route_map[far.node_id] == (route,)
        assert dict(near.route_map) == {far.node_id: (route,)}
        assert near.route_map.wait_for(far.node_id, 0) == (route,)
        cable.cut()
        change = watch.get(DEADLINE)
        assert change is not None
        assert (change.kind, change.node_id) == ("removed", far.node_id)
        assert len(near.route_map) == 0
        with pytest.raises(KeyError):
            near.route_map[far.node_id]


def test_a_node_behind_a_relay(network: Network) -> None:
    near, router, far = network.node(), network.node(role=Role.ROUTER, announce_interval=0.001), network.node(announce_interval=0.001)
    network.connect(near, router)
    network.connect(router, far)
    far.bind("web:80")
    assert near.service_map.wait_for("web", DEADLINE) == (Service("web", far.node_id, 80, 1),)
    assert near.route_map[far.node_id] == (Route(far.node_id, 1, router.node_id),)
    assert set(near.route_map) == {router.node_id, far.node_id}
