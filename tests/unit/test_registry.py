"""The registry against a plain set of offers; announcements against what a peer has been told."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from astranet_gevent.protocol.registry import LOCAL, Announcements, Registry, Service, ServiceKey

from .tools import PROPERTY, STATEFUL

# Few of each, so that they meet: two names, one of them bytes that are no text, two nodes, two ports.
KEYS = [ServiceKey(name, node_id, port) for name in (b"web", b"\xff") for node_id in (1, 2) for port in (5, 80)]
LINKS: list[Any] = [LOCAL, "a", "b", ("c", 3)]

keys = st.sampled_from(KEYS)
links = st.sampled_from(LINKS)


class RegistryOfOffers(RuleBasedStateMachine):
    """Links announce, withdraw and end in any order."""

    @initialize(limit=st.integers(1, 6))
    def create(self, limit: int) -> None:
        self.limit = limit
        self.registry = Registry(limit, self.on_changed, self.on_direct_changed)
        # The model: offers in the order in which they came, with whether each is direct.
        self.offers: list[tuple[Any, ServiceKey, bool]] = []
        self.known: set[ServiceKey] = set()
        self.direct: set[ServiceKey] = set()
        self.changes = self.refused = 0

    # Events: they must alternate, and come when the registry has its new state.

    def on_changed(self, key: ServiceKey, added: bool, distance: int) -> None:
        assert (key in self.known) is not added, "told twice"
        self.known ^= {key}
        self.changes += 1
        assert (key in set(self.registry)) is added
        assert (key in [found for found, _ in self.registry.find(key.name)]) is added

    def on_direct_changed(self, key: ServiceKey, added: bool) -> None:
        assert (key in self.direct) is not added, "told twice"
        self.direct ^= {key}
        assert (key in self.registry.direct_services()) is added

    @rule(link=links, key=keys, direct=st.booleans())
    def announce(self, link: Any, key: ServiceKey, direct: bool) -> None:
        offered = [offer for offer in self.offers if offer[0] == link]
        repeated = any(offer[1] == key for offer in offered)
        fits = link is LOCAL or len(offered) < self.limit
        assert self.registry.announce(link, key, direct) is (repeated or fits)
        if fits and not repeated:
            self.offers.append((link, key, direct))
        self.refused += not fits and not repeated

    @rule(link=links, key=keys)
    def withdraw(self, link: Any, key: ServiceKey) -> None:
        left = [offer for offer in self.offers if offer[:2] != (link, key)]
        assert self.registry.withdraw(link, key) is (len(left) < len(self.offers))
        self.offers = left

    @rule(link=links)
    def remove_link(self, link: Any) -> None:
        self.registry.remove_link(link)
        self.offers = [offer for offer in self.offers if offer[0] != link]

    @invariant()
    def it_knows_what_is_offered(self) -> None:
        registry, offers = self.registry, self.offers
        expected = {key for _, key, _ in offers}
        assert set(registry) == expected == self.known
        assert len(registry) == len(expected)
        assert registry.revision == self.changes
        assert registry.refused == self.refused
        assert set(registry.direct_services()) == {key for _, key, direct in offers if direct} == self.direct
        for link in LINKS:
            assert registry.offered_by(link) == [key for by, key, _ in offers if by == link]
            for key in KEYS:
                assert registry.is_offered(link, key) is ((link, key) in [offer[:2] for offer in offers])

    @invariant()
    def it_finds_servers_and_the_links_to_them(self) -> None:
        registry = self.registry
        distances = {key: 0 if key in self.direct else 1 for key in self.known}
        for key in KEYS:
            direct = [link for link, offered, is_direct in self.offers if offered == key and is_direct]
            relays = [link for link, offered, is_direct in self.offers if offered == key and not is_direct]
            assert registry.links_to(key) == (direct or relays)
            if key in self.known:
                assert registry.distance(key) == distances[key]
        for name in (b"web", b"\xff", b"other"):
            for port in (0, 5, 80, 7):
                expected = sorted(key for key in self.known if key.name == name and port in (0, key.port))
                assert registry.find(name, port) == [(key, distances[key]) for key in expected]


TestRegistry = RegistryOfOffers.TestCase
TestRegistry.settings = STATEFUL


def quiet_registry(limit: int = 100) -> Registry:
    """One that tells nobody."""
    return Registry(limit, lambda key, added, distance: None, lambda key, added: None)


def test_a_service_keeps_its_first_offers_nearness() -> None:
    registry = quiet_registry()
    assert registry.announce("relay", KEYS[0], False)
    assert registry.announce("relay", KEYS[0], True)
    assert registry.distance(KEYS[0]) == 1


def test_the_limit_is_per_link_and_spares_our_own() -> None:
    registry = quiet_registry(2)
    assert [registry.announce(link, key, True) for link in ("a", "b", LOCAL) for key in KEYS[:3]] == [True, True, False] * 2 + [True] * 3
    assert registry.refused == 2
    assert registry.withdraw("a", KEYS[0])
    assert registry.announce("a", KEYS[2], True)


def test_nothing_is_left_when_all_links_have_gone() -> None:
    registry = quiet_registry()
    for link in LINKS:
        for key in KEYS:
            registry.announce(link, key, link == "a")
    for link in LINKS:
        registry.remove_link(link)
    assert not any(vars(registry)[name] for name in ("_offers", "_by_name", "_by_link"))


def test_a_service_sorts_by_its_name_first() -> None:
    assert sorted([Service("b", 1, 1, 0), Service("a", 2, 2, 1)])[0].name == "a"
    assert sorted(KEYS) == sorted(KEYS, key=lambda key: (key.name, key.node_id, key.port))


# -- announcements ----------------------------------------------------------------------------------------------------------


@PROPERTY
@given(st.lists(st.one_of(keys, st.integers(1, 5)), max_size=60))
def test_a_peer_hears_what_is_and_nothing_that_came_and_went(steps: list[ServiceKey | int]) -> None:
    """A step is a service that appears or disappears, or a batch of so many announcements."""
    pending = Announcements()
    real: set[ServiceKey] = set()
    told: set[ServiceKey] = set()
    for step in [*steps, 1000]:
        if isinstance(step, ServiceKey):
            real ^= {step}
            pending.add(step, step in real)
        else:
            expected = sorted((key, key in real) for key in real ^ told)[:step]
            assert pending.take(step) == expected
            told ^= {key for key, _ in expected}
        assert len(pending) == len(real ^ told)
        assert bool(pending) is (real != told)
    assert told == real


def test_announcements_are_taken_in_order_of_their_names() -> None:
    pending = Announcements()
    order = [KEYS[index] for index in (3, 7, 0, 5, 1)]
    for key in order:
        pending.add(key, True)
    assert [key for key, _ in pending.take(3) + pending.take(3)] == sorted(order)
    assert pending.take(3) == []
