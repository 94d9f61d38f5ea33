"""Services: who offers what over which link, what changed, and what has to be told to whom.

A service is ``(wire name, node, port)``. It may be heard over several links: directly from its node, or from relays. The registry counts
those offers and reports two kinds of change: of the service itself (first offer, last offer gone) and of its direct offers, which is what
a router passes on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Final, NamedTuple

__all__ = ["Announcements", "Registry", "Service", "ServiceKey"]

# Stands for this node's own listeners where a link is expected.
LOCAL: Final = "local"


class Service(NamedTuple):
    """One server of one service: ``distance`` is 0 for this node and its direct peers, 1 behind a relay."""

    name: str
    node_id: int
    port: int
    distance: int


class ServiceKey(NamedTuple):
    """A service as the wire knows it; sorts by name."""

    name: bytes
    node_id: int
    port: int


class _Offers:
    """The links that offer one service, directly and behind a relay, in the order in which they came."""

    __slots__ = ("direct", "relayed")

    def __init__(self) -> None:
        self.direct: dict[Hashable, None] = {}
        self.relayed: dict[Hashable, None] = {}

    def side(self, direct: bool) -> dict[Hashable, None]:
        return self.direct if direct else self.relayed

    @property
    def distance(self) -> int:
        return 0 if self.direct else 1


Changed = Callable[[ServiceKey, bool, int], None]
DirectChanged = Callable[[ServiceKey, bool], None]


class Registry:
    """All services known to a node.

    ``changed(key, added, distance)`` is called when a service appears or disappears, ``direct_changed(key, added)`` when its first direct
    offer appears or its last one disappears; both after the registry has its new state. At most ``services_per_link`` offers are held per
    link; further ones are refused and counted.
    """

    def __init__(self, services_per_link: int, changed: Changed, direct_changed: DirectChanged) -> None:
        # Counts services that came or went, and all changes of offers: what was looked up stays right while it stands.
        self.revision = 0
        self.generation = 0
        self.refused = 0
        self._limit = services_per_link
        self._changed = changed
        self._direct_changed = direct_changed
        self._offers: dict[ServiceKey, _Offers] = {}
        self._by_name: dict[bytes, dict[tuple[int, int], ServiceKey]] = {}
        self._by_link: dict[Hashable, dict[ServiceKey, bool]] = {}

    def __len__(self) -> int:
        return len(self._offers)

    def __iter__(self) -> Iterator[ServiceKey]:
        return iter(self._offers)

    def announce(self, link: Hashable, key: ServiceKey, direct: bool) -> bool:
        """Record an offer; False when the link's limit is reached. A repeated offer changes nothing."""
        offered = self._by_link.setdefault(link, {})
        if key in offered:
            return True
        if len(offered) >= self._limit and link is not LOCAL:
            self.refused += 1
            return False
        offered[key] = direct
        offers = self._offers.get(key)
        is_new = offers is None
        if offers is None:
            offers = self._offers[key] = _Offers()
            self._by_name.setdefault(key.name, {})[key.node_id, key.port] = key
        is_first_direct = direct and not offers.direct
        offers.side(direct)[link] = None
        self._report(key, is_new, is_first_direct, True, int(not direct))
        return True

    def withdraw(self, link: Hashable, key: ServiceKey) -> bool:
        """Remove an offer; False when there was none."""
        offered = self._by_link.get(link)
        if offered is None or key not in offered:
            return False
        direct = offered.pop(key)
        if not offered:
            del self._by_link[link]
        offers = self._offers[key]
        side = offers.side(direct)
        del side[link]
        is_gone = not offers.direct and not offers.relayed
        if is_gone:
            self._forget(key)
        self._report(key, is_gone, direct and not side, False, int(not direct))
        return True

    def remove_link(self, link: Hashable) -> None:
        """Withdraw everything that a link offered."""
        for key in list(self._by_link.get(link, ())):
            self.withdraw(link, key)

    def find(self, name: bytes, port: int = 0) -> list[tuple[ServiceKey, int]]:
        """``(key, distance)`` of every server of a name, ``port`` 0 for any.

        Sorted, so that the same set gives the same list everywhere.
        """
        servers = self._by_name.get(name, {})
        return [(key, self._offers[key].distance) for _, key in sorted(servers.items()) if not port or key.port == port]

    def links_to(self, key: ServiceKey) -> list[Hashable]:
        """The links to dial a service over: those to the node itself if there are any, else the relays."""
        offers = self._offers.get(key)
        return list(offers.direct or offers.relayed) if offers is not None else []

    def distance(self, key: ServiceKey) -> int:
        """0 when a direct offer is known, else 1."""
        return self._offers[key].distance

    def is_relayed(self, key: ServiceKey) -> bool:
        """Whether a relay offers that service."""
        offers = self._offers.get(key)
        return offers is not None and bool(offers.relayed)

    def direct_services(self) -> list[ServiceKey]:
        """What a router passes on: every service with a direct offer."""
        return [key for key, offers in self._offers.items() if offers.direct]

    def offered_by(self, link: Hashable) -> list[ServiceKey]:
        """What one link offers."""
        return list(self._by_link.get(link, ()))

    def is_offered(self, link: Hashable, key: ServiceKey) -> bool:
        """Whether that link offers that service."""
        return key in self._by_link.get(link, ())

    def _forget(self, key: ServiceKey) -> None:
        del self._offers[key]
        servers = self._by_name[key.name]
        del servers[key.node_id, key.port]
        if not servers:
            del self._by_name[key.name]

    def _report(self, key: ServiceKey, changed: bool, direct_changed: bool, added: bool, distance: int) -> None:
        self.generation += 1
        if direct_changed:
            self._direct_changed(key, added)
        if changed:
            self.revision += 1
            self._changed(key, added, distance)


class Announcements:
    """What has still to be told to one peer. A service that came and went in between is never mentioned.

    Bounded by the services known: each key waits here at most once.
    """

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: dict[ServiceKey, bool] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, key: ServiceKey, added: bool) -> None:
        """Note one change. Changes of a key alternate, so the opposite of a waiting one cancels it."""
        if self._pending.pop(key, added) is added:
            self._pending[key] = added

    def take(self, limit: int) -> list[tuple[ServiceKey, bool]]:
        """Up to ``limit`` changes, sorted by name as the original sends them."""
        batch = sorted(self._pending.items())[:limit]
        for key, _ in batch:
            del self._pending[key]
        return batch
