"""Routes: which links lead to a node, directly or behind a relay, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Route", "RouteTable"]

LinkT = TypeVar("LinkT", bound=Hashable)


class Route(NamedTuple):
    """One way to a node: ``distance`` 0 over a link of its own, 1 behind the relay ``via``."""

    node_id: int
    distance: int
    via: int


class RouteTable(Generic[LinkT]):
    """Links by the node that they lead to.

    A relay is held as long as something was heard of the node through it: every ``add_behind`` wants a ``remove_behind``.
    ``changed(node_id, added)`` is called when a node gets its first direct link or loses its last.
    """

    def __init__(self, changed: Callable[[int, bool], None]) -> None:
        self._changed = changed
        self._direct: dict[int, list[LinkT]] = {}
        self._behind: dict[int, dict[LinkT, int]] = {}

    def add_direct(self, node_id: int, link: LinkT) -> None:
        """A link to the node itself is ready."""
        links = self._direct.setdefault(node_id, [])
        links.append(link)
        if len(links) == 1:
            self._changed(node_id, True)

    def remove_direct(self, node_id: int, link: LinkT) -> None:
        """A link to the node takes no more streams or has ended; unknown ones are ignored."""
        links = self._direct.get(node_id, [])
        if link not in links:
            return
        links.remove(link)
        if not links:
            del self._direct[node_id]
            self._changed(node_id, False)

    def add_behind(self, node_id: int, link: LinkT) -> None:
        """Something of the node was heard over the relay at the end of ``link``."""
        links = self._behind.setdefault(node_id, {})
        links[link] = links.get(link, 0) + 1

    def remove_behind(self, node_id: int, link: LinkT) -> None:
        """The reverse of one ``add_behind``."""
        links = self._behind.get(node_id)
        if links is None or link not in links:
            return
        links[link] -= 1
        if not links[link]:
            del links[link]
            if not links:
                del self._behind[node_id]

    def direct(self, node_id: int) -> list[LinkT]:
        """The links to the node itself, oldest first."""
        return self._direct.get(node_id, [])

    def links_to(self, node_id: int) -> list[LinkT]:
        """The links to dial the node over: direct ones if there are any, else the relays."""
        direct = self._direct.get(node_id)
        return list(direct) if direct else list(self._behind.get(node_id, ()))

    def is_behind(self, node_id: int, link: LinkT) -> bool:
        """Whether the node is known to be behind that relay."""
        return link in self._behind.get(node_id, ())

    def direct_nodes(self) -> list[int]:
        """Every node with a direct link."""
        return list(self._direct)

    def items(self) -> list[tuple[int, int, LinkT]]:
        """``(node_id, distance, link)`` of every route."""
        rows = [(node_id, 0, link) for node_id, links in self._direct.items() for link in links]
        rows += [(node_id, 1, link) for node_id, links in self._behind.items() for link in links]
        return rows
