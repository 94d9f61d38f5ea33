"""Selectors: the same choice in every process, as few moves as can be, an even share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import astranet_gevent
from astranet_gevent import HashRing, RoundRobin
from astranet_gevent.protocol.registry import Service
from astranet_gevent.protocol.selectors import RandomChoice

from .tools import PROPERTY


def servers(*node_ids: int, port: int = 80) -> list[Service]:
    """One server of a service per node."""
    return [Service("web", node_id, port, 0) for node_id in node_ids]


candidate_lists = st.lists(
    st.builds(Service, st.just("web"), st.integers(1, 2**64 - 1), st.integers(1, 2**32 - 1), st.integers(0, 1)),
    min_size=1,
    max_size=6,
    unique_by=lambda server: (server.node_id, server.port),
)

# -- random -----------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(candidate_lists, st.data())
def test_random_choice_leaves_the_dice_to_the_caller(candidates: list[Service], data: st.DataObject) -> None:
    asked: list[int] = []
    index = data.draw(st.integers(0, len(candidates) - 1))

    def below(limit: int) -> int:
        asked.append(limit)
        return index

    assert RandomChoice(below)(candidates) == candidates[index if len(candidates) > 1 else 0]
    assert asked == ([len(candidates)] if len(candidates) > 1 else [])


# -- in turn ----------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(candidate_lists, st.randoms(use_true_random=False))
def test_each_server_in_turn_whatever_order_they_are_given_in(candidates: list[Service], random: object) -> None:
    choose = RoundRobin()
    turns = []
    for _ in range(3 * len(candidates)):
        random.shuffle(candidates)  # type: ignore[attr-defined]
        turns.append(choose(candidates))
    one_round = sorted(candidates, key=lambda server: (server.node_id, server.port))
    assert turns == one_round * 3


@PROPERTY
@given(st.lists(st.sets(st.integers(1, 6), min_size=1), max_size=20))
def test_turns_go_on_behind_the_last_one_when_servers_come_and_go(sets: list[set[int]]) -> None:
    choose = RoundRobin()
    last = 0
    for present in sets:
        chosen = choose(servers(*present)).node_id
        assert chosen == min((node for node in present if node > last), default=min(present))
        last = chosen


@PROPERTY
@given(st.lists(st.sets(st.integers(1, 5)), min_size=1, max_size=30))
def test_a_server_that_stays_gets_its_turn_whoever_else_comes_and_goes(sets: list[set[int]]) -> None:
    choose = RoundRobin()
    since = 0
    for others in sets:
        chosen = choose(servers(*others, 6)).node_id
        since = 0 if chosen == 6 else since + 1
        # At most one turn each for those before it in the order of ids.
        assert since <= 5


def test_two_ports_of_one_node_are_two_servers() -> None:
    choose = RoundRobin()
    pair = servers(1, port=80) + servers(1, port=81)
    assert [choose(pair).port for _ in range(4)] == [80, 81, 80, 81]


# -- the ring ---------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(candidate_lists, st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.binary()), st.randoms(use_true_random=False))
def test_the_ring_knows_no_order_and_no_distance(candidates: list[Service], key: str | bytes, random: object) -> None:
    chosen = HashRing(key)(candidates)
    assert chosen in candidates
    moved = [server._replace(distance=1 - server.distance) for server in candidates]
    random.shuffle(moved)  # type: ignore[attr-defined]
    assert HashRing(key)(moved)[:3] == chosen[:3]


@PROPERTY
@given(candidate_lists, st.sets(st.binary(max_size=2), max_size=12), st.data())
def test_only_the_keys_of_a_server_that_leaves_move(candidates: list[Service], keys: set[bytes], data: st.DataObject) -> None:
    before = {key: HashRing(key)(candidates) for key in keys}
    gone = data.draw(st.sampled_from(candidates))
    left = [server for server in candidates if server != gone]
    if left:
        after = {key: HashRing(key)(left) for key in keys}
        assert all(after[key] == before[key] for key in keys if before[key] != gone)


def test_the_ring_shares_evenly() -> None:
    """Also among ids that differ in one bit, and among ports of one node."""
    group = servers(1, 2, 3, 2**62) + servers(1, port=81)
    shares = Counter(HashRing(f"user:{number}")(group) for number in range(5000))
    assert set(shares) == set(group)
    # Five standard deviations of a fair draw (28) around 1000.
    assert all(860 <= share <= 1140 for share in shares.values())


def test_the_keys_of_a_server_that_leaves_are_shared_by_the_others() -> None:
    group = servers(1, 2, 3, 4)
    keys = [f"user:{number}" for number in range(4000)]
    orphans = [key for key in keys if HashRing(key)(group).node_id == 1]
    shares = Counter(HashRing(key)(group[1:]).node_id for key in orphans)
    assert all(share > len(orphans) / 4 for share in shares.values())
    assert len(shares) == 3


def test_text_and_its_bytes_are_one_key() -> None:
    group = servers(*range(1, 50))
    assert all(HashRing(text)(group) == HashRing(text.encode())(group) for text in ("", "a", "schlüssel"))


def test_the_choice_does_not_change_from_release_to_release() -> None:
    """Processes of two versions must agree: these were chosen by the first."""
    group = servers(*range(1, 101))
    assert [HashRing(f"user:{number}")(group).node_id for number in range(8)] == [57, 100, 93, 35, 86, 39, 66, 10]


PROGRAM = """
from astranet_gevent import HashRing
from astranet_gevent.protocol.registry import Service
group = [Service("web", node_id, 80, 0) for node_id in range(1, 101)]
print([HashRing(f"key {number}")(group).node_id for number in range(200)], hash("x"))
"""


def test_another_process_makes_the_same_choices() -> None:
    """The original's ring has a memory address in its keys, so no two processes agree."""
    root = os.path.dirname(os.path.dirname(astranet_gevent.__file__))
    answers = []
    for seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        run = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=30, check=True)
        answers.append(run.stdout.rpartition(" "))
    group = servers(*range(1, 101))
    ours = str([HashRing(f"key {number}")(group).node_id for number in range(200)])
    assert [choices for choices, _, _ in answers] == [ours, ours]
    assert answers[0][2] != answers[1][2], "the hash seeds made no difference: the test proves nothing"


@pytest.mark.parametrize("selector", [RandomChoice(lambda limit: 0), RoundRobin(), HashRing("k")])
def test_a_single_server(selector: object) -> None:
    [server] = servers(9)
    assert selector([server]) == server  # type: ignore[operator]
