"""Routes against a plain list of what has been added."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from astranet_gevent.protocol.routing import Route, RouteTable

from .tools import STATEFUL

NODES = [1, 2, 3]
LINKS = ["a", "b", "c"]

nodes = st.sampled_from(NODES)
links = st.sampled_from(LINKS)


class Routes(RuleBasedStateMachine):
    """Links come and go, and nodes are heard of behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.table: RouteTable[str] = RouteTable(self.on_changed)
        self.direct: list[tuple[int, str]] = []
        self.behind: list[tuple[int, str]] = []
        self.linked: set[int] = set()

    def on_changed(self, node_id: int, added: bool) -> None:
        assert (node_id in self.linked) is not added, "told twice"
        self.linked ^= {node_id}
        assert bool(self.table.direct(node_id)) is added

    @rule(node_id=nodes, link=links)
    def add_direct(self, node_id: int, link: str) -> None:
        # A link leads to one node, and is added once.
        if link not in [name for _, name in self.direct]:
            self.table.add_direct(node_id, link)
            self.direct.append((node_id, link))

    @rule(node_id=nodes, link=links)
    def remove_direct(self, node_id: int, link: str) -> None:
        self.table.remove_direct(node_id, link)
        self.direct = [route for route in self.direct if route != (node_id, link)]

    @rule(node_id=nodes, link=links)
    def add_behind(self, node_id: int, link: str) -> None:
        self.table.add_behind(node_id, link)
        self.behind.append((node_id, link))

    @rule(node_id=nodes, link=links)
    def remove_behind(self, node_id: int, link: str) -> None:
        self.table.remove_behind(node_id, link)
        if (node_id, link) in self.behind:
            # The last, so that the order of the first ones stays as it was.
            self.behind.reverse()
            self.behind.remove((node_id, link))
            self.behind.reverse()

    @invariant()
    def it_knows_every_way(self) -> None:
        for node_id in NODES:
            direct = [link for node, link in self.direct if node == node_id]
            relays = list(dict.fromkeys(link for node, link in self.behind if node == node_id))
            assert self.table.direct(node_id) == direct
            assert self.table.links_to(node_id) == (direct or relays)
            for link in LINKS:
                assert self.table.is_behind(node_id, link) is (link in relays)
        assert sorted(self.table.direct_nodes()) == sorted({node for node, _ in self.direct}) == sorted(self.linked)
        rows = [(node, 0, link) for node, link in self.direct] + [(node, 1, link) for node, link in set(self.behind)]
        assert sorted(self.table.items()) == sorted(rows)


TestRoutes = Routes.TestCase
TestRoutes.settings = STATEFUL


def test_who_got_the_links_to_a_node_has_a_list_of_its_own() -> None:
    table: RouteTable[str] = RouteTable(lambda node_id, added: None)
    table.add_direct(1, "a")
    table.links_to(1).clear()
    table.links_to(2).append("x")
    assert table.links_to(1) == ["a"]
    assert table.links_to(2) == []


def test_routes_sort_by_node_and_then_by_distance() -> None:
    assert sorted([Route(2, 0, 2), Route(1, 1, 9), Route(1, 0, 1)]) == [Route(1, 0, 1), Route(1, 1, 9), Route(2, 0, 2)]
