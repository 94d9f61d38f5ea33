"""Read-only views of what a node knows: services by name, routes by node, and watches that report their changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from gevent.queue import Empty, Queue

from .address import format_node_id, parse_service
from .errors import ConfigError, LimitError, NoRouteError, ServiceNotFoundError
from .node import Node
from .protocol.registry import Service
from .protocol.routing import Route

__all__ = ["Change", "RouteMap", "ServiceMap", "Watch"]

ItemT = TypeVar("ItemT")

# Changes that may wait in a watch; whoever reads so late starts anew from the map.
_MAX_PENDING = 65536


class Change(Generic[ItemT]):
    """``kind`` is "added" or "removed"; ``item`` is what it happened to, also called ``service`` or ``node_id`` after what is watched."""

    __slots__ = ("item", "kind")

    def __init__(self, kind: str, item: ItemT) -> None:
        self.kind = kind
        self.item = item

    @property
    def service(self) -> ItemT:
        """The service of a service watch."""
        return self.item

    @property
    def node_id(self) -> ItemT:
        """The node id of a route watch."""
        return self.item

    def __repr__(self) -> str:
        return f"Change({self.kind!r}, {self.item!r})"


class Watch(Generic[ItemT]):
    """An iterator over changes: first what is there ("added"), then what happens. Close it, or use it as a context manager.

    At most 65536 changes wait; beyond that the next read raises LimitError and the watch is closed.
    """

    def __init__(self, present: list[ItemT], connect: Callable[[Callable[[ItemT, bool], None]], Callable[[], None]]) -> None:
        self._queue: Queue[Change[ItemT] | None] = Queue()
        self._closed = False
        self._overrun = False
        for item in present:
            self._queue.put_nowait(Change("added", item))
        self._disconnect = connect(self._note)

    def _note(self, item: ItemT, added: bool) -> None:
        if self._queue.qsize() >= _MAX_PENDING:
            self._overrun = True
            self.close()
        else:
            self._queue.put_nowait(Change("added" if added else "removed", item))

    def get(self, timeout: float | None = None) -> Change[ItemT] | None:
        """The next change; None after ``timeout`` seconds without one, or once closed. Raises LimitError after an overrun."""
        if self._overrun:
            raise LimitError(f"more than {_MAX_PENDING} changes waited in a watch: read the map and watch again")
        if self._closed and self._queue.empty():
            return None
        try:
            return self._queue.get(timeout=timeout)
        except Empty:
            return None

    def __iter__(self) -> Iterator[Change[ItemT]]:
        return self

    def __next__(self) -> Change[ItemT]:
        change = self.get()
        if change is None:
            raise StopIteration
        return change

    def close(self) -> None:
        """Stop watching; who waits for a change wakes."""
        if not self._closed:
            self._closed = True
            self._disconnect()
            self._queue.put_nowait(None)

    def __enter__(self) -> Watch[ItemT]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class ServiceMap(Mapping[str, tuple[Service, ...]]):
    """The servers of each service, by name (``name:port`` works for look-ups too)."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __getitem__(self, name: str) -> tuple[Service, ...]:
        try:
            service = parse_service(name)
        except ConfigError as error:
            raise KeyError(name) from error
        found = tuple(public for _, public in self._node.find_services(service.name, service.port))
        if not found:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({service.name for service in self._node.services()}))

    def __len__(self) -> int:
        return len({service.name for service in self._node.services()})

    @property
    def version(self) -> int:
        """A number that is another one after every change, for those who keep what they have looked up."""
        return self._node.registry.generation

    def wait_for(self, name: str, timeout: float | None = None) -> tuple[Service, ...]:
        """Wait until somebody offers ``name``; its servers. Raises ServiceNotFoundError after ``timeout`` seconds."""
        with self.watch() as changes:
            if not _wait_until(lambda: name in self, changes, timeout):
                self._node.check()
                raise ServiceNotFoundError(f"nobody offered service {name!r} within {timeout:g} s")
        return self[name]

    def watch(self) -> Watch[Service]:
        """Report services as they come and go."""
        node = self._node
        node.check()

        def connect(note: Callable[[Service, bool], None]) -> Callable[[], None]:
            node.service_watchers[note] = None
            return lambda: node.service_watchers.pop(note, None)

        return _closed_with(node, Watch(node.services(), connect))


class RouteMap(Mapping[int, tuple[Route, ...]]):
    """The ways to each node, by node id."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __getitem__(self, node_id: int) -> tuple[Route, ...]:
        found = tuple(route for route in self._node.route_list() if route.node_id == node_id)
        if not found:
            raise KeyError(node_id)
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(sorted({route.node_id for route in self._node.route_list()}))

    def __len__(self) -> int:
        return len({route.node_id for route in self._node.route_list()})

    def wait_for(self, node_id: int, timeout: float | None = None) -> tuple[Route, ...]:
        """Wait until a node has a direct link; the ways to it. Raises NoRouteError after ``timeout`` seconds."""
        with self.watch() as changes:
            if not _wait_until(lambda: any(not route.distance for route in self.get(node_id, ())), changes, timeout):
                self._node.check()
                raise NoRouteError(f"no link to node {format_node_id(node_id)} within {timeout:g} s")
        return self[node_id]

    def watch(self) -> Watch[int]:
        """Report nodes as they get their first direct link or lose their last."""
        node = self._node
        node.check()

        def connect(note: Callable[[int, bool], None]) -> Callable[[], None]:
            node.route_watchers[note] = None
            return lambda: node.route_watchers.pop(note, None)

        return _closed_with(node, Watch(node.routes.direct_nodes(), connect))


def _wait_until(condition: Callable[[], bool], changes: Watch[ItemT], timeout: float | None) -> bool:
    """Wait for a condition that the changes may bring about; whether it holds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while not condition():
        left = None if deadline is None else deadline - time.monotonic()
        if (left is not None and left <= 0) or changes.get(left) is None:
            return condition()
    return True


def _closed_with(node: Node, watch: Watch[ItemT]) -> Watch[ItemT]:
    """Have the watch end when its node closes."""

    def end(_: object) -> None:
        watch.close()

    node.closed.rawlink(end)
    disconnect = watch._disconnect

    def unlink() -> None:
        node.closed.unlink(end)
        disconnect()

    watch._disconnect = unlink
    return watch
