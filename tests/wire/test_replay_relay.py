"""Recordings of two nodes that talk through a third; ours is either end, or the relay."""

from __future__ import annotations

import pytest

from astranet_gevent import Role

from .conftest import Bench
from .replay import Case, Replay

BY_HOST = {"t8": "dialling by node id through a relay fails in the original and works here"}
FOLLOWED = dict.fromkeys(("t2", "t3"), "shows the direct link that following made, which was not recorded")
ROUTER = {"role": Role.ROUTER}

CASES = [
    Case("06a_relay_far_node_dies", "A", left_out=BY_HOST),
    Case("06a_relay_far_node_dies", "B"),
    Case("06a_relay_far_node_dies", "R", ROUTER),
    Case("06b_relay_dialler_dies", "A"),
    Case("06b_relay_dialler_dies", "B"),
    Case("06b_relay_dialler_dies", "R", ROUTER),
    Case("06c_relay_router_dies", "A"),
    Case("06c_relay_router_dies", "B"),
    Case("06c_relay_router_dies", "R", ROUTER),
    Case("08b_discover_follow_via_router", "A", left_out=FOLLOWED),
    Case("08b_discover_follow_via_router", "B"),
    Case("08b_discover_follow_via_router", "R", ROUTER),
    Case("08c_non_router_middle", "A"),
    Case("08c_non_router_middle", "B"),
    Case("08c_non_router_middle", "R", {"role": Role.SERVER}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_replay(bench: Bench, case: Case) -> None:
    Replay(bench, case).run().verify()


def test_neighbours_of_a_router_that_dies_see_their_links_end(bench: Bench) -> None:
    replay = Replay(bench, Case("06c_relay_router_dies", "R", ROUTER)).run()
    replay.mesh.close()
    for side in replay.sides.values():
        side.wait_end()
