"""Recordings of links: handshakes, announcements, keepalive, nodes that both listen."""

from __future__ import annotations

import pytest

from astranet_gevent import Role

from .conftest import Bench
from .peer import PING, Frame
from .replay import Case, Replay

CASES = [
    Case("01a_handshake_client_joiner", "A", {"role": Role.CLIENT}),
    Case("01a_handshake_client_joiner", "B", {"role": Role.SERVER}),
    Case("01b_handshake_server_joiner", "A", {"role": Role.SERVER}),
    Case("01b_handshake_server_joiner", "B", {"role": Role.SERVER}),
    # Fifty ms, as the original: "blip" lives shorter than that and must never be announced.
    Case("02a_service_announce_withdraw", "A", {"announce_interval": 0.05}),
    Case("02a_service_announce_withdraw", "B", {"announce_interval": 0.05}),
    Case("02b_service_withenv", "A", {"env": ("x", "y")}),
    Case("02b_service_withenv", "B", {"env": ("x", "y")}),
    Case("08a_follow_both_listen", "A"),
    Case("08a_follow_both_listen", "B"),
    # Rule 12: the same without any address advertised.
    Case("08a_follow_both_listen", "A", {"advertise": ()}),
    Case("08a_follow_both_listen", "B", {"advertise": ()}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_replay(bench: Bench, case: Case) -> None:
    Replay(bench, case).run().verify()


@pytest.mark.parametrize("node", ["A", "B"])
def test_replay_of_an_idle_link(bench: Bench, node: str) -> None:
    case = Case("07_keepalive_idle", node, {"keepalive_interval": 0.05})
    replay = Replay(bench, case).run()
    side = replay.sides["link"]
    # The peer has said all it had to say; our node goes on asking whether it is there.
    side.wait_until(lambda: side.peer.received.count(Frame(PING)) >= 2, "PINGs")
    replay.verify()
