"""Each way a peer can misbehave, or merely be odd: what our node answers.

``PROBES`` maps every probe of the Go node (10_probes.json) and every defect found in it
(11_bug_probes.json) to the tests here, or says why there is nothing to test on the wire.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket

from astranet_gevent import AstraNet, Role
from astranet_gevent.errors import (
    DialTimeout,
    LinkLostError,
    NoRouteError,
    ServiceNotFoundError,
    StreamClosedError,
    StreamResetError,
)

from . import test_replay_link, test_replay_relay, test_replay_streams, test_rules
from .conftest import PORT, Bench, outcome
from .peer import (
    ACK,
    BACKGROUND,
    BLOCKED,
    DATA,
    DEADLINE,
    DIAL,
    DISCOVER,
    ERR,
    FIN1,
    FIN2,
    FOLLOW,
    FORCE_CLOSED,
    GOODBYE,
    HANDSHAKE,
    HEADER,
    HELLO,
    MAX_PAYLOAD,
    NO_SERVICE,
    OTHER_ID,
    PAUSE,
    PEER_ID,
    PEER_PORT,
    PING,
    PONG,
    RESET,
    RESUME,
    REWIND,
    SERVICE,
    SYN,
    SYN_ACK,
    THIRD_ID,
    WINDOW,
    WND_SIZE,
    Frame,
    RawPeer,
    RawStream,
    u32,
)
from .recording import FOLDER

Spawn = Callable[..., gevent.Greenlet]
Eventually = Callable[..., None]


class Reason(str):
    """Why a probe has no test on the wire."""


HANDSHAKES = ("test_handshake_is_accepted",)
BAD_HANDSHAKES = ("test_handshake_is_refused",)
PAYLOADS = ("test_payload_of_65536_is_read", "test_larger_payload_ends_the_link")
HINT = Reason("what the original dials or advertises by itself; no peer behaviour")

PROBES: dict[str, tuple[str, ...] | Reason] = {
    # 10_probes.json
    "handshake extra keys": HANDSHAKES,
    "handshake empty object": HANDSHAKES,
    "handshake lower-case raddr": HANDSHAKES,
    "handshake whitespace/unicode": HANDSHAKES,
    "handshake RAddr null": HANDSHAKES,
    "handshake json null": HANDSHAKES,
    "handshake json string": BAD_HANDSHAKES,
    "handshake RAddr number": BAD_HANDSHAKES,
    "handshake empty payload": BAD_HANDSHAKES,
    "handshake not json": BAD_HANDSHAKES,
    "handshake trailing garbage": BAD_HANDSHAKES,
    "no handshake sent": ("test_no_handshake_ends_the_link",),
    "frames before handshake": ("test_frames_before_the_handshake_are_dropped",),
    "handshake after those": ("test_frames_before_the_handshake_are_dropped",),
    "order": ("test_rules.test_rule_01_nothing_follows_the_handshake_until_the_peers_is_in",),
    "second handshake other id": (
        "test_second_handshake_with_another_id_ends_the_link",
        "test_second_handshake_with_the_same_id_is_ignored",
    ),
    "routes after all links closed": ("test_services_and_routes_go_with_the_link",),
    "unknown cmd values": ("test_unknown_commands_are_ignored",),
    "unsolicited stream frames": ("test_unsolicited_stream_frames_are_ignored",),
    "frame for unknown host": ("test_frame_for_an_unknown_node_is_answered_by_reset",),
    "PING with remote/payload": ("test_ping_with_ids_and_payload_gets_a_plain_pong",),
    "DIAL with remote=0": ("test_dial_to_nobody_is_ignored",),
    "DIAL unbound port": ("test_dial_to_an_unbound_port_is_refused",),
    "SERVICE dup/empty/binary": ("test_services_named_twice_empty_or_binary",),
    "SERVICE of a foreign host": (
        "test_service_of_another_node_is_behind_the_peer",
        "test_service_of_another_node_is_followed_up",
    ),
    "services after link close": ("test_services_and_routes_go_with_the_link",),
    "DATA payload 65535": PAYLOADS,
    "DATA payload 65536": PAYLOADS,
    "DATA payload 65537": PAYLOADS,
    "DATA payload 65565": PAYLOADS,
    "DATA payload 1048576": PAYLOADS,
    "DATA payload 4294967295": PAYLOADS,
    "SERVICE payload 65536": PAYLOADS,
    "SERVICE payload 65537": PAYLOADS,
    "HANDSHAKE payload 65536": ("test_handshake_of_65536_bytes_is_read",),
    "HANDSHAKE payload 65537": PAYLOADS,
    "200 payload 65536": PAYLOADS,
    "200 payload 65537": PAYLOADS,
    "WND_SIZE=1MiB sent to Go": ("test_rules.test_rule_02_no_frame_over_65536_bytes_however_large_the_window",),
    "WND_SIZE=1000, then REWIND 400": ("test_small_window_is_kept_to",),
    "8 MiB sent without any REWIND": ("test_overrun_of_the_window_resets_that_stream",),
    "DIAL+ACK+DATA in one segment": ("test_data_in_one_segment_with_dial_is_delivered",),
    "ACK+DATA right after SYN": ("test_data_right_after_syn_is_delivered",),
    "DATA without any ACK": ("test_ack_is_not_needed",),
    "... then ACK": ("test_ack_is_not_needed",),
    "SYN_ACK instead of ACK to a Go server": ("test_ack_is_not_needed",),
    "DIAL to a listener that does not Accept": ("test_rules.test_rule_07_the_stream_is_open_before_anybody_accepts",),
    "same 4-tuple dialled twice": ("test_newest_of_two_dials_with_the_same_ports_wins",),
    "Go client: SYN+DATA+FIN2 in one segment, other port": ("test_syn_from_another_port_with_data_and_fin",),
    "Go client: SYN+SYN_ACK back to back": ("test_syn_and_syn_ack_back_to_back",),
    "Go client Write needs SYN_ACK": ("test_rules.test_rule_06_nothing_follows_dial_until_syn",),
    "second SYN on same stream": ("test_second_syn_is_ignored",),
    "FIN1 received from peer": ("test_fin1_ends_writing",),
    "ERR received from peer": ("test_err_is_ignored",),
    "FORCE_CLOSED received": ("test_force_closed_resets_that_stream",),
    "RESET(local=peer) received": (
        "test_reset_in_the_peers_own_name_is_ignored",
        "test_reset_of_a_node_breaks_all_streams_to_it",
    ),
    "FIN2 received": ("test_fin2_is_the_end_of_reading_only",),
    "Close before SYN": ("test_syn_after_the_dial_was_given_up_leaves_no_stream",),
    "REWIND with a 2-byte payload": ("test_credit_of_a_wrong_size",),
    "WND_SIZE with a 2-byte payload": ("test_credit_of_a_wrong_size",),
    "REWIND of bytes never sent": ("test_credit_for_bytes_never_sent",),
    "plain Server node forwards": ("test_every_role_forwards_unchanged",),
    "forwarding of unknown cmd + spoofed source": (
        "test_every_role_forwards_unchanged",
        "test_frame_with_a_forged_source_is_not_forwarded",
    ),
    "PING with a remote is not forwarded": ("test_ping_is_never_forwarded",),
    "peer link closed -> RESET to the other": ("test_relay_resets_the_pair_of_a_lost_link",),
    "FOLLOW to any address": ("test_follow_only_from_its_owner",),
    "FOLLOW garbage": ("test_follow_garbage_is_ignored",),
    "DISCOVER": ("test_discover_is_answered_with_the_address",),
    "client-mode node: port 1": ("test_client_announces_nothing_and_has_no_port_1",),
    "late reader after FIN2": ("test_rules.test_rule_09_what_came_before_fin2_waits_for_a_late_reader",),
    "Close with a Read in progress": ("test_close_ends_a_read_in_progress",),
    "Read after own Close": ("test_close_ends_a_read_in_progress",),
    "payload stalls half way": ("test_frame_that_stalls_ends_the_link",),
    "header stalls half way": ("test_frame_that_stalls_ends_the_link",),
    "peer never sends anything after the handshake": ("test_silent_peer_is_dropped",),
    "RAddr decides what Go advertises": ("test_raddr_does_not_decide_what_is_advertised",),
    "later joiner": ("test_raddr_does_not_decide_what_is_advertised",),
    "two routers in a chain": ("test_service_from_behind_another_router",),
    "R1 dials through R2": ("test_replay_relay.test_replay",),
    "DIAL with a source id that is not mine": ("test_dial_from_a_node_behind_the_peer",),
    "empty DATA": ("test_empty_data_is_nothing",),
    "DATA+FIN2 to an echo server": ("test_data_after_both_fins_is_ignored",),
    "DATA after both FIN2": ("test_data_after_both_fins_is_ignored",),
    "same local port dialled again right after close": ("test_port_dialled_again_right_after_close",),
    "join to a refused port: retry times": ("test_node_comes_back_to_a_peer_that_drops_it",),
    "peer accepts and drops at once: reconnect times": ("test_node_comes_back_to_a_peer_that_drops_it",),
    "peer handshakes, then drops: reconnect times": ("test_node_comes_back_to_a_peer_that_drops_it",),
    "client-mode node forwards between its links": ("test_every_role_forwards_unchanged",),
    "Close called twice": ("test_rules.test_rules_7_and_8_closing_sends_each_end_once",),
    "vport2registry consistent hashing, 4 client processes, keys 10..17, 3 servers": Reason(
        "a choice made before anything is sent; see the tests of the selectors"
    ),
    # 11_bug_probes.json
    "service name of 11 base64url chars": ("test_service_name_that_looks_like_a_node_id",),
    "Bind web:8080 then Dial web:8080 / web": ("test_name_with_a_port_is_found_both_ways",),
    "Dial vport2registry web:8080": ("test_name_with_a_port_is_found_both_ways",),
    "Dial own service (no loopback)": Reason("nothing is sent on a link"),
    "Dial own service with WithLoopBack": Reason("nothing is sent on a link"),
    "loopback echo": Reason("nothing is sent on a link"),
    "rejoin after peer restart, down 0.0s": ("test_node_comes_back_to_a_peer_that_drops_it",),
    "rejoin after peer restart, down 3.0s": ("test_node_comes_back_to_a_peer_that_drops_it",),
    "rejoin after peer restart, down 8.0s": ("test_node_comes_back_to_a_peer_that_drops_it",),
    "peer keeps writing after I closed": ("test_peer_that_writes_on_after_our_close",),
    "idle CPU, 1 link": Reason("a measurement, no peer behaviour"),
    "handshake+SERVICE sent at once, many connects": ("test_frames_in_one_segment_with_the_handshake",),
    "announce convergence": ("test_replay_link.test_replay",),
    "frozen peer (SIGSTOP)": ("test_silent_peer_is_dropped",),
    "open/echo/close leak": ("test_streams_leave_nothing_behind",),
    "500 link connects/disconnects": ("test_links_leave_nothing_behind",),
}


@pytest.mark.parametrize("file", ["10_probes", "11_bug_probes"])
def test_every_probe_has_its_test(file: str) -> None:
    with open(FOLDER / f"{file}.json", encoding="utf-8") as opened:
        names = set(json.load(opened)["probes"])
    assert not names - set(PROBES), "probes without a test"
    assert len(PROBES) == 106
    for tests in PROBES.values():
        for name in () if isinstance(tests, Reason) else tests:
            module, _, function = name.rpartition(".")
            where = sys.modules[f"{__package__}.{module}" if module else __name__]
            assert callable(getattr(where, function)), name


# The modules that the table names; importing them is what makes the names checkable.
_NAMED = (test_replay_link, test_replay_relay, test_replay_streams, test_rules)


# -- handshakes


@pytest.mark.parametrize(
    "payload",
    [
        b'{"RAddr":"127.0.0.1:1","Proto":"x","n":[1,2]}',
        b"{}",
        b'{"raddr":"127.0.0.1:1"}',
        b' {"RAddr":"\\u00311"} ',
        b'{"RAddr":null}',
        b"null",
        b'{"RAddr":"","astranet_gevent":null}',
        b'{"RAddr":"","astranet_gevent":"nonsense"}',
        b'{"RAddr":"","astranet_gevent":{"version":"1","features":7}}',
    ],
)
def test_handshake_is_accepted(bench: Bench, payload: bytes) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh, payload=payload)
    theirs = peer.dial(PORT)
    theirs.send(DATA, b"hello")
    assert listener.accept()[0].recv(100) == b"hello"
    peer.assert_quiet()


@pytest.mark.parametrize(
    "payload",
    [
        b'"a string"',
        b'{"RAddr":7}',
        b"",
        b"not json",
        b'{"RAddr":""} garbage',
        b"[]",
        b'{"RAddr":{}}',
        b"\xff\xfe\x00",
        b"[" * 60000,
    ],
)
def test_handshake_is_refused(bench: Bench, payload: bytes) -> None:
    mesh = bench.node()
    other = bench.peer(mesh, OTHER_ID)
    peer, link = bench.silent_peer(mesh)
    peer.send_handshake(payload)
    assert [frame.cmd for frame in peer.wait_end()] in ([HANDSHAKE], [])
    link.wait(DEADLINE)
    other.assert_quiet()


def test_handshake_of_65536_bytes_is_read(bench: Bench) -> None:
    mesh = bench.node()
    bench.listener(mesh)
    peer = bench.peer(mesh, payload=b'{"RAddr":""}'.ljust(MAX_PAYLOAD))
    peer.dial(PORT)


def test_no_handshake_ends_the_link(bench: Bench) -> None:
    mesh = bench.node(handshake_timeout=0.05)
    peer, link = bench.silent_peer(mesh)
    assert [frame.cmd for frame in peer.wait_end()] == [HANDSHAKE]
    link.wait(DEADLINE)


def test_frames_before_the_handshake_are_dropped(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer, _ = bench.silent_peer(mesh)
    peer.receive_handshake()
    peer.send(
        Frame(PING),
        peer.frame(DIAL, PORT, 4711),
        Frame(SERVICE, 0, PEER_ID, 0, 9, b"too early"),
        Frame(77, payload=b"unknown"),
    )
    peer.send_handshake()
    peer.assert_quiet(skip=BACKGROUND | {PONG})
    assert not [service for service in mesh.services() if service.name == "too early"]
    peer.dial(PORT)
    assert listener.accept()[1] == (PEER_ID, PEER_PORT)


def test_frames_in_one_segment_with_the_handshake(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    for _ in range(20):
        peer, _ = bench.silent_peer(mesh)
        peer.receive_handshake()
        theirs = RawStream(peer, PORT, PEER_PORT)
        hello = Frame(HANDSHAKE, local=PEER_ID, payload=b'{"RAddr":""}')
        peer.send(hello, Frame(SERVICE, 0, PEER_ID, 0, 9, b"quick"), theirs.frame(DIAL))
        theirs.expect(SYN)
        assert listener.accept()[1] == (PEER_ID, PEER_PORT)
        mesh.service_map.wait_for("quick", DEADLINE)
        peer.close()


def test_second_handshake_with_another_id_ends_the_link(bench: Bench) -> None:
    mesh = bench.node()
    other = bench.peer(mesh, OTHER_ID)
    peer, link = bench.linked(mesh)
    peer.send(Frame(HANDSHAKE, local=THIRD_ID, payload=b"{}"))
    peer.wait_end()
    link.wait(DEADLINE)
    other.assert_quiet()
    assert {route.node_id for route in mesh.routes()} == {OTHER_ID}


def test_second_handshake_with_the_same_id_is_ignored(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    pair.peer.send(Frame(HANDSHAKE, local=PEER_ID, payload=b'{"RAddr":"10.0.0.1:1"}'))
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"
    pair.peer.assert_quiet()


# -- what is not ours to understand


@pytest.mark.parametrize("remote", ["node", 0])
@pytest.mark.parametrize("payload", [b"", b"abc"])
def test_unknown_commands_are_ignored(bench: Bench, remote: object, payload: bytes) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    peer = pair.peer
    known = {
        *(SYN, ACK, SYN_ACK, FIN1, FIN2, ERR, FORCE_CLOSED, DATA, WND_SIZE, REWIND, PING, PONG),
        *(DIAL, HANDSHAKE, SERVICE, NO_SERVICE, FOLLOW, DISCOVER, RESET),
        *(HELLO, GOODBYE, PAUSE, RESUME, BLOCKED),
    }
    target = mesh.node_id if remote == "node" else 0
    for command in sorted(set(range(256)) - known):
        peer.send(Frame(command, target, PEER_ID, 1, 2, payload))
    peer.assert_quiet()
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"


def test_unsolicited_stream_frames_are_ignored(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    peer = pair.peer
    for command in (SYN, ACK, SYN_ACK, FIN1, FIN2, ERR, FORCE_CLOSED, DATA, WND_SIZE, REWIND):
        for payload in (b"", b"xy", u32(1000)):
            # A bound port with an unknown peer port, an unbound port, and no port at all.
            peer.send(peer.frame(command, PORT, 999, payload))
            peer.send(peer.frame(command, 4999, PEER_PORT, payload))
            peer.send(Frame(command, 0, PEER_ID, 0, 0, payload))
    peer.assert_quiet()
    assert pair.link.stream_count == 1
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"


def test_ping_with_ids_and_payload_gets_a_plain_pong(bench: Bench) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.send(Frame(PING, mesh.node_id, 5, 1, 2, b"payload"))
    assert peer.expect(PONG) == Frame(PONG)
    peer.send(Frame(PING, THIRD_ID, 5, 1, 2, b"payload"))
    assert peer.expect(PONG) == Frame(PONG)
    peer.assert_quiet()


# -- dialling our node


def test_dial_to_nobody_is_ignored(bench: Bench) -> None:
    mesh = bench.node()
    bench.listener(mesh)
    peer, link = bench.linked(mesh)
    peer.send(Frame(DIAL, 0, PEER_ID, PORT, PEER_PORT))
    peer.assert_quiet()
    assert link.stream_count == 0


@pytest.mark.parametrize("port", [1, 4999, 0, 2**32 - 1])
def test_dial_to_an_unbound_port_is_refused(bench: Bench, port: int) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    theirs = RawStream(peer, port, PEER_PORT)
    theirs.send(DIAL)
    # A Go dialler waits for SYN with all else; then its reads (FIN2) and its writes (FIN1) end.
    theirs.expect(SYN)
    theirs.expect(FIN2)
    theirs.expect(FIN1)
    theirs.send(ACK)
    theirs.send(DATA, b"into the void")
    theirs.send(FIN2)
    peer.assert_quiet()
    assert link.stream_count == 0


def test_dial_to_a_full_backlog_is_refused(bench: Bench) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    mesh.bind(f"svc:{PORT}", backlog=1)
    peer.dial(PORT, lport=1001)
    late = RawStream(peer, PORT, 1002)
    late.send(DIAL)
    late.expect(SYN)
    late.expect(FIN2)
    late.expect(FIN1)
    peer.assert_quiet()
    assert link.stream_count == 1


def test_client_announces_nothing_and_has_no_port_1(bench: Bench) -> None:
    mesh = bench.node(role=Role.CLIENT)
    peer = bench.peer(mesh)
    theirs = RawStream(peer, 1, PEER_PORT)
    theirs.send(DIAL)
    theirs.expect(SYN)
    theirs.expect(FIN2)
    theirs.expect(FIN1)
    peer.fence()
    assert not [frame for frame in peer.received if frame.cmd in BACKGROUND]


def test_data_in_one_segment_with_dial_is_delivered(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh)
    theirs = RawStream(peer, PORT, PEER_PORT)
    peer.send(theirs.frame(DIAL), theirs.frame(ACK), theirs.frame(DATA, b"too early for Go"))
    assert listener.accept()[0].recv(100) == b"too early for Go"


def test_data_right_after_syn_is_delivered(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh)
    theirs = RawStream(peer, PORT, PEER_PORT)
    theirs.send(DIAL)
    theirs.expect(SYN)
    peer.send(theirs.frame(ACK), theirs.frame(DATA, b"at once"))
    assert listener.accept()[0].recv(100) == b"at once"


@pytest.mark.parametrize("instead", [(), (SYN_ACK,), (ACK, ACK)])
def test_ack_is_not_needed(bench: Bench, instead: tuple[int, ...]) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh)
    theirs = RawStream(peer, PORT, PEER_PORT)
    theirs.send(DIAL)
    theirs.expect(SYN)
    theirs.expect(SYN_ACK)
    for command in instead:
        theirs.send(command)
    theirs.send(DATA, b"ping")
    stream, _ = listener.accept()
    assert stream.recv(100) == b"ping"
    stream.sendall(b"pong")
    theirs.expect(DATA, payload=b"pong")
    theirs.send(ACK)
    peer.assert_quiet()


def test_newest_of_two_dials_with_the_same_ports_wins(bench: Bench) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    listener = bench.listener(mesh)
    first = peer.dial(PORT)
    old, _ = listener.accept()
    first.send(DATA, b"of the first")
    second = peer.dial(PORT)
    new, _ = listener.accept()
    second.send(DATA, b"of the second")
    assert new.recv(100) == b"of the second"
    assert old.recv(100) == b"of the first"
    with pytest.raises(StreamResetError):
        old.recv(100)
    # Ending the old one must not touch the new one, which has the same addresses.
    old.close()
    peer.assert_quiet()
    new.sendall(b"alive")
    second.expect(DATA, payload=b"alive")
    assert link.stream_count == 1


def test_port_dialled_again_right_after_close(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer, link = bench.linked(mesh)
    for content in (b"first", b"second", b"third"):
        theirs = peer.dial(PORT)
        theirs.send(DATA, content)
        theirs.send(FIN2)
        stream, _ = listener.accept()
        assert (stream.recv(100), stream.recv(100)) == (content, b"")
        stream.close()
        theirs.expect(FIN2)
    peer.assert_quiet()
    assert link.stream_count == 0


def test_dial_from_a_node_behind_the_peer(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer = bench.peer(mesh)
    peer.send(Frame(DIAL, mesh.node_id, THIRD_ID, PORT, 5))
    peer.expect(SYN, remote=THIRD_ID, local=mesh.node_id, rport=5, lport=PORT)
    peer.expect(SYN_ACK, remote=THIRD_ID, local=mesh.node_id, rport=5, lport=PORT)
    peer.send(Frame(DATA, mesh.node_id, THIRD_ID, PORT, 5, b"from afar"))
    stream, address = listener.accept()
    assert address == (THIRD_ID, 5)
    assert stream.recv(100) == b"from afar"
    stream.sendall(b"answer")
    peer.expect(DATA, remote=THIRD_ID, rport=5, payload=b"answer")


# -- dialled by our node


def test_syn_from_another_port_with_data_and_fin(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    dial = spawn(mesh.dial, (PEER_ID, PORT))
    asked = peer.receive_dial()
    theirs = RawStream(peer, asked.rport, 4242)
    peer.send(theirs.frame(SYN), theirs.frame(DATA, b"first bytes"), theirs.frame(FIN2))
    stream = dial.get(timeout=DEADLINE)
    theirs.expect(ACK)
    assert (stream.recv(100), stream.recv(100)) == (b"first bytes", b"")
    stream.sendall(b"to the new port")
    theirs.expect(DATA, payload=b"to the new port")
    assert stream.getpeername() == (PEER_ID, 4242)


def test_syn_and_syn_ack_back_to_back(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    dial = spawn(mesh.dial, (PEER_ID, PORT))
    theirs = peer.receive_dial()
    peer.send(theirs.frame(SYN), theirs.frame(SYN_ACK))
    stream = dial.get(timeout=DEADLINE)
    theirs.expect(ACK)
    stream.sendall(b"at once")
    theirs.expect(DATA, payload=b"at once")
    peer.assert_quiet()


def test_second_syn_is_ignored(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.dialled(mesh)
    peer, theirs, stream = pair.peer, pair.theirs, pair.stream
    theirs.send(SYN)
    elsewhere = RawStream(peer, theirs.rport, 4244)
    elsewhere.send(SYN)
    elsewhere.send(SYN_ACK)
    peer.assert_quiet()
    stream.sendall(b"to the first")
    theirs.expect(DATA, payload=b"to the first")
    theirs.send(DATA, b"from the first")
    assert stream.recv(100) == b"from the first"


def test_syn_after_the_dial_was_given_up_leaves_no_stream(bench: Bench) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    with pytest.raises(DialTimeout):
        mesh.dial((PEER_ID, PORT), timeout=0.05)
    theirs = peer.receive_dial()
    peer.fence()
    theirs.send(SYN)
    # Whatever is said, an acceptor in Go must learn that nobody is there.
    answers = {frame.cmd for frame in peer.received if theirs.owns(frame)}
    while FIN2 not in answers:
        answers.add(peer.receive().cmd)
    peer.fence()
    assert link.stream_count == 0


def test_dial_that_is_refused_by_fin_right_after_syn(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    dial = spawn(outcome, mesh.dial, (PEER_ID, PORT))
    theirs = peer.receive_dial()
    peer.send(theirs.frame(SYN), theirs.frame(FIN2), theirs.frame(FIN1))
    stream = dial.get(timeout=DEADLINE)
    if not isinstance(stream, ConnectionRefusedError):
        assert stream.recv(100) == b""


# -- frames of an open stream


@pytest.mark.parametrize("side", ["accepted", "dialled"])
def test_fin1_ends_writing(bench: Bench, side: str) -> None:
    mesh = bench.node()
    pair = getattr(bench, side)(mesh)
    pair.theirs.send(DATA, b"last words")
    pair.theirs.send(FIN1)
    pair.peer.assert_quiet()
    assert pair.stream.recv(100) == b"last words"
    # As with TCP, the first write after the peer's close may pass, the next one fails.
    outcome(pair.stream.sendall, b"nobody reads this")
    with pytest.raises(ConnectionError):
        pair.stream.sendall(b"nor this")
    pair.stream.close()
    pair.peer.fence()
    assert pair.link.stream_count == 0


@pytest.mark.parametrize("side", ["accepted", "dialled"])
def test_err_is_ignored(bench: Bench, side: str) -> None:
    pair = getattr(bench, side)(bench.node())
    pair.theirs.send(ERR, b"what for")
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"
    pair.stream.sendall(b"and on")
    pair.theirs.expect(DATA, payload=b"and on")


@pytest.mark.parametrize("payload", [b"", b"\0", u32(104), u32(104) + b"why", b"\xff" * 300])
@pytest.mark.parametrize("side", ["accepted", "dialled"])
def test_force_closed_resets_that_stream(bench: Bench, side: str, payload: bytes) -> None:
    pair = getattr(bench, side)(bench.node())
    pair.theirs.send(DATA, b"before")
    pair.theirs.send(FORCE_CLOSED, payload)
    pair.peer.assert_quiet()
    assert pair.stream.recv(100) == b"before"
    with pytest.raises(StreamResetError):
        pair.stream.recv(100)
    pair.stream.close()
    pair.peer.assert_quiet()
    assert pair.link.stream_count == 0


@pytest.mark.parametrize("side", ["accepted", "dialled"])
def test_fin2_is_the_end_of_reading_only(bench: Bench, side: str) -> None:
    pair = getattr(bench, side)(bench.node())
    pair.theirs.send(FIN2)
    assert pair.stream.recv(100) == b""
    pair.stream.sendall(b"still writing")
    pair.theirs.expect(DATA, payload=b"still writing")
    pair.theirs.send(FIN2)
    pair.theirs.send(DATA, b"after the end")
    pair.peer.assert_quiet()
    assert pair.stream.recv(100) == b""


def test_reset_in_the_peers_own_name_is_ignored(bench: Bench) -> None:
    """RESET tells of a node that cannot be reached any more: it cannot be the one who says so."""
    mesh = bench.node()
    pair = bench.dialled(mesh)
    pair.peer.send(Frame(RESET, mesh.node_id, PEER_ID), Frame(RESET, 0, PEER_ID))
    pair.peer.assert_quiet()
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"


def test_reset_of_a_node_breaks_all_streams_to_it(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    peer, link = pair.peer, pair.link
    peer.announce("far", 9, local=THIRD_ID)
    peer.announce("other", 9, local=OTHER_ID)
    mesh.service_map.wait_for("far", DEADLINE)
    # One stream that the far node dialled, one that we dialled, a dial under way.
    listener = bench.listener(mesh, "second:5002")
    peer.send(Frame(DIAL, mesh.node_id, THIRD_ID, 5002, 5))
    accepted, _ = listener.accept()
    dial = spawn(mesh.dial, "far")
    frame = peer.wait_for(DIAL, remote=THIRD_ID)
    peer.send(Frame(SYN, mesh.node_id, THIRD_ID, frame.lport, 9))
    dialled = dial.get(timeout=DEADLINE)
    pending = spawn(outcome, mesh.dial, (THIRD_ID, 9))
    peer.wait_for(DIAL, remote=THIRD_ID)

    peer.send(Frame(RESET, mesh.node_id, OTHER_ID), Frame(RESET, mesh.node_id, mesh.node_id))
    peer.send(Frame(DATA, mesh.node_id, THIRD_ID, 5002, 5, b"a RESET of others is nothing"))
    assert accepted.recv(100) == b"a RESET of others is nothing"
    peer.send(Frame(RESET, mesh.node_id, THIRD_ID))
    for stream in (accepted, dialled):
        with pytest.raises(StreamResetError):
            stream.recv(100)
        stream.close()
    assert isinstance(pending.get(timeout=DEADLINE), NoRouteError | LinkLostError)
    # Streams to the relay itself are not touched.
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"
    assert link.stream_count == 1


def test_empty_data_is_nothing(bench: Bench) -> None:
    pair = bench.accepted(bench.node())
    pair.theirs.send(DATA)
    pair.peer.assert_quiet()
    # An empty result would be read as the end of the stream.
    pair.theirs.send(DATA, b"something")
    assert pair.stream.recv(100) == b"something"


def test_data_after_both_fins_is_ignored(bench: Bench) -> None:
    pair = bench.accepted(bench.node())
    pair.theirs.send(DATA, b"abc")
    pair.theirs.send(FIN2)
    assert (pair.stream.recv(100), pair.stream.recv(100)) == (b"abc", b"")
    pair.stream.sendall(b"abc")
    pair.stream.close()
    pair.theirs.expect(DATA, payload=b"abc")
    pair.theirs.expect(FIN2)
    pair.theirs.send(DATA, b"after fin")
    pair.theirs.send(FIN2)
    pair.peer.assert_quiet()
    assert pair.link.stream_count == 0


def test_peer_that_writes_on_after_our_close(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    pair.stream.close()
    pair.theirs.expect(FIN2)
    pair.theirs.expect(FIN1)
    for _ in range(3):
        pair.theirs.send(DATA, bytes(50000))
    for frame in pair.peer.fence():
        assert frame.cmd in BACKGROUND | {FIN1, FIN2, FORCE_CLOSED}, frame
    pair.theirs.send(FIN2)
    pair.peer.fence()
    assert pair.link.stream_count == 0


def test_close_ends_a_read_in_progress(bench: Bench, spawn: Spawn) -> None:
    pair = bench.accepted(bench.node())
    reading = spawn(outcome, pair.stream.recv, 100)
    pair.peer.assert_quiet()
    pair.stream.close()
    assert isinstance(reading.get(timeout=DEADLINE), StreamClosedError)
    with pytest.raises(StreamClosedError):
        pair.stream.recv(100)
    pair.theirs.expect(FIN2)


# -- windows


def test_small_window_is_kept_to(bench: Bench, spawn: Spawn) -> None:
    pair = bench.accepted(bench.node())
    pair.theirs.send(WND_SIZE, u32(1000))
    pair.peer.fence()
    spawn(pair.stream.sendall, bytes(5000))
    assert len(pair.theirs.expect_data(1000)) == 1000
    pair.peer.assert_quiet()
    pair.theirs.send(REWIND, u32(400))
    assert len(pair.theirs.expect_data(400)) == 400
    pair.peer.assert_quiet()


@pytest.mark.parametrize("window", [0, 1, 2**31, 2**32 - 1])
def test_extreme_windows_are_survived(bench: Bench, spawn: Spawn, window: int) -> None:
    pair = bench.accepted(bench.node())
    spawn(pair.stream.sendall, bytes(100_000))
    pair.theirs.expect_data(WINDOW)
    pair.theirs.send(WND_SIZE, u32(window))
    if window > WINDOW:
        pair.theirs.expect_data(100_000 - WINDOW)
    pair.peer.assert_quiet()
    pair.theirs.send(WND_SIZE, u32(WINDOW))
    pair.theirs.send(REWIND, u32(WINDOW))
    pair.peer.fence()


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\1", b"\0\0\1", bytes(5), bytes(100)])
@pytest.mark.parametrize("command", [REWIND, WND_SIZE])
def test_credit_of_a_wrong_size(bench: Bench, command: int, payload: bytes) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    pair.stream.sendall(b"x")
    pair.theirs.expect(DATA)
    pair.theirs.send(command, payload)
    # That stream is broken, by itself or with its link; nothing else is.
    with pytest.raises(ConnectionResetError):
        pair.stream.recv(100)
    other.assert_quiet()


@pytest.mark.parametrize("credit", [1, WINDOW, 2**32 - 1])
def test_credit_for_bytes_never_sent(bench: Bench, credit: int) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    pair.theirs.send(REWIND, u32(credit))
    with pytest.raises(ConnectionResetError):
        pair.stream.recv(100)
    other.assert_quiet()


def test_overrun_of_the_window_resets_that_stream(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer, link = bench.linked(mesh)
    greedy, modest = peer.dial(PORT, lport=1), peer.dial(PORT, lport=2)
    overrun, _ = listener.accept()
    untouched, _ = listener.accept()
    greedy.send(DATA, bytes(WINDOW))
    greedy.send(DATA, b"x")
    for frame in peer.fence():
        # To a Go peer: reads end, writes end.
        assert frame.cmd in BACKGROUND | {FORCE_CLOSED, FIN1, FIN2}, frame
    for _ in range(20):
        greedy.send(DATA, bytes(WINDOW))
    received = 0
    while isinstance(part := outcome(overrun.recv, WINDOW), bytes):
        received += len(part)
    assert isinstance(part, ConnectionResetError)
    assert received <= WINDOW
    modest.send(DATA, b"fine")
    assert untouched.recv(100) == b"fine"
    peer.assert_quiet()
    overrun.close()
    assert link.stream_count == 1


@pytest.mark.parametrize("command", [DATA, SERVICE, 200, FOLLOW, REWIND])
def test_payload_of_65536_is_read(bench: Bench, command: int) -> None:
    pair = bench.accepted(bench.node())
    pair.theirs.send(command, bytes(MAX_PAYLOAD))
    for frame in pair.peer.fence():
        # A REWIND of that size is wrong in another way.
        assert command == REWIND or frame.cmd in BACKGROUND, frame
    if command == DATA:
        received = 0
        while received < MAX_PAYLOAD:
            received += len(pair.stream.recv(MAX_PAYLOAD))
        assert received == MAX_PAYLOAD
        pair.theirs.expect(REWIND)
    pair.peer.dial(PORT, lport=4711)


@pytest.mark.parametrize("size", [65537, 65565, 1 << 20, 2**32 - 1])
@pytest.mark.parametrize("command", [DATA, SERVICE, HANDSHAKE, 200])
def test_larger_payload_ends_the_link(bench: Bench, command: int, size: int) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    # The header alone is enough: nothing of the payload is waited for, or stored.
    fields = mesh.node_id, PEER_ID, PORT, PEER_PORT
    pair.peer.send(HEADER.pack(command, *fields, size))
    pair.peer.wait_end()
    pair.link.wait(DEADLINE)
    with pytest.raises(LinkLostError):
        pair.stream.recv(100)
    other.assert_quiet()


# -- services


def _services(mesh: object) -> set[tuple[str, int, int, int]]:
    return {
        (service.name, service.node_id, service.port, service.distance)
        for service in mesh.services()  # type: ignore[attr-defined]
    }


def test_services_named_twice_empty_or_binary(bench: Bench) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    for name, port in [(b"py", 9), (b"py", 9), (b"", 10), (b"\xff\xfe\n", 11)]:
        peer.announce(name, port)
    peer.assert_quiet()
    odd = b"\xff\xfe\n".decode("utf-8", "surrogateescape")
    assert _services(mesh) >= {("py", PEER_ID, 9, 0), (odd, PEER_ID, 11, 0)}
    assert len([item for item in _services(mesh) if item[0] == "py"]) == 1
    peer.send(Frame(NO_SERVICE, 0, PEER_ID, 0, 9, b"py"))
    peer.send(Frame(NO_SERVICE, 0, PEER_ID, 0, 99, b"nope"))
    peer.assert_quiet()
    assert not [item for item in _services(mesh) if item[0] == "py"]
    assert (odd, PEER_ID, 11, 0) in _services(mesh)
    with pytest.raises(ServiceNotFoundError):
        mesh.dial("py", timeout=0.02)


def test_more_services_than_allowed(bench: Bench) -> None:
    mesh = bench.node(services_per_link=10)
    peer = bench.peer(mesh)
    other = bench.peer(mesh, OTHER_ID)
    for number in range(100):
        peer.announce(f"s{number}", 100 + number)
    other.announce("mine", 9)
    other.assert_quiet()
    other.assert_quiet()
    assert len([item for item in _services(mesh) if item[1] == PEER_ID]) <= 10
    assert ("mine", OTHER_ID, 9, 0) in _services(mesh)


def test_service_of_another_node_is_behind_the_peer(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.announce("far", 9, local=THIRD_ID)
    peer.assert_quiet(skip=())
    assert ("far", THIRD_ID, 9, 1) in _services(mesh)
    dial = spawn(mesh.dial, "far")
    frame = peer.wait_for(DIAL, remote=THIRD_ID, rport=9)
    peer.send(Frame(SYN, mesh.node_id, THIRD_ID, frame.lport, 9))
    stream = dial.get(timeout=DEADLINE)
    assert stream.getpeername() == (THIRD_ID, 9)
    peer.expect(ACK, remote=THIRD_ID, rport=9)


def test_service_of_another_node_is_followed_up(bench: Bench) -> None:
    mesh = bench.node(follow=True)
    peer = bench.peer(mesh)
    peer.announce("far", 9, local=THIRD_ID)
    peer.announce("far too", 10, local=THIRD_ID)
    asked = [frame for frame in peer.fence() if frame.cmd == DISCOVER]
    # Once per node, where the original asks once per service.
    assert asked == [Frame(DISCOVER, THIRD_ID, mesh.node_id)]


def test_services_and_routes_go_with_the_link(bench: Bench) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    peer.announce("near", 9)
    peer.announce("far", 9, local=THIRD_ID)
    mesh.service_map.wait_for("near", DEADLINE)
    mesh.service_map.wait_for("far", DEADLINE)
    assert PEER_ID in {route.node_id for route in mesh.routes()}
    with mesh.service_map.watch() as events:
        peer.close()
        link.wait(DEADLINE)
        gone = {next(events).service.name for _ in range(2)}
    assert gone == {"near", "far"}
    assert not [item for item in _services(mesh) if item[1] != mesh.node_id]
    assert not [route for route in mesh.routes() if route.node_id != mesh.node_id]


def test_service_name_that_looks_like_a_node_id(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.announce("hello-world", 9)
    dial = spawn(mesh.dial, "hello-world")
    peer.accept(9)
    dial.get(timeout=DEADLINE)


@pytest.mark.parametrize("target", ["web", "web:8080"])
def test_name_with_a_port_is_found_both_ways(bench: Bench, spawn: Spawn, target: str) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.announce("web", 8080)
    dial = spawn(mesh.dial, target)
    peer.accept(8080)
    dial.get(timeout=DEADLINE)
    bench.listener(mesh, "own:8081")
    assert peer.expect(SERVICE, skip=()).payload == b"own"


# -- relaying


@pytest.mark.parametrize("role", list(Role))
def test_every_role_forwards_unchanged(bench: Bench, role: Role) -> None:
    mesh = bench.node(role=role)
    one, two = bench.peer(mesh), bench.peer(mesh, OTHER_ID)
    sent = [
        Frame(DIAL, OTHER_ID, PEER_ID, 1, 2),
        Frame(99, OTHER_ID, PEER_ID, 3, 4, b"any cmd"),
        Frame(DISCOVER, OTHER_ID, PEER_ID),
        Frame(FOLLOW, OTHER_ID, PEER_ID, 0, 0, b"127.0.0.1:9"),
        Frame(RESET, OTHER_ID, PEER_ID),
    ]
    for frame in sent:
        one.send(frame)
        assert two.expect(frame.cmd, skip=()) == frame
    for size in (0, 1, MAX_PAYLOAD):
        frame = Frame(DATA, PEER_ID, OTHER_ID, 2, 1, bytes(size))
        two.send(frame)
        assert one.expect(DATA) == frame
    one.assert_quiet()
    two.assert_quiet()


def test_frame_for_an_unknown_node_is_answered_by_reset(bench: Bench) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.send(Frame(DATA, 0x4242, PEER_ID, PORT, 999, b"x"))
    peer.expect(RESET, remote=PEER_ID, local=0x4242, rport=0, lport=0, payload=b"")
    peer.assert_quiet()
    # A RESET that finds no way is not answered: two nodes would go on for ever.
    peer.send(Frame(RESET, 0x4242, PEER_ID))
    peer.assert_quiet()


def test_frame_with_a_forged_source_is_not_forwarded(bench: Bench) -> None:
    mesh = bench.node()
    one, two = bench.peer(mesh), bench.peer(mesh, OTHER_ID)
    three = bench.peer(mesh, THIRD_ID)
    # One peer speaks in the name of another that has a link of its own here.
    one.send(Frame(DIAL, OTHER_ID, THIRD_ID, 1, 2))
    one.send(Frame(99, OTHER_ID, THIRD_ID, 1, 2, b"spoofed"))
    one.fence()
    two.assert_quiet()
    three.assert_quiet()


def test_ping_is_never_forwarded(bench: Bench) -> None:
    mesh = bench.node()
    one, two = bench.peer(mesh), bench.peer(mesh, OTHER_ID)
    one.send(Frame(PING, OTHER_ID, PEER_ID), Frame(PONG, OTHER_ID, PEER_ID))
    assert one.expect(PONG) == Frame(PONG)
    one.assert_quiet()
    two.assert_quiet()


def test_relay_resets_the_pair_of_a_lost_link(bench: Bench) -> None:
    mesh = bench.node(role=Role.ROUTER)
    one, two = bench.peer(mesh), bench.peer(mesh, OTHER_ID)
    three = bench.peer(mesh, THIRD_ID)
    two.announce("far", 9)
    one.wait_for(SERVICE, payload=b"far")
    three.wait_for(SERVICE, payload=b"far")
    one.send(Frame(DIAL, OTHER_ID, PEER_ID, 9, 1))
    two.expect(DIAL)
    two.close()
    got = {}
    while set(got) != {NO_SERVICE, RESET}:
        frame = one.receive()
        got[frame.cmd] = frame
    assert got[RESET] == Frame(RESET, PEER_ID, OTHER_ID)
    assert got[NO_SERVICE] == Frame(NO_SERVICE, 0, OTHER_ID, 0, 9, b"far")
    three.expect(NO_SERVICE, skip=(), local=OTHER_ID, lport=9)
    # A node that never spoke with the lost one need not hear of it.
    three.assert_quiet()


def test_service_from_behind_another_router(bench: Bench) -> None:
    """The original's routers pass on what they hear at first hand only; to more is our freedom."""
    mesh = bench.node(role=Role.ROUTER)
    router = bench.peer(mesh)
    client = bench.peer(mesh, OTHER_ID)
    router.announce("deep", 9, local=THIRD_ID)
    router.announce("shallow", 10)
    client.wait_for(SERVICE, payload=b"shallow", local=PEER_ID)
    assert ("deep", THIRD_ID, 9, 1) in _services(mesh)
    # Never back to where it came from: two routers would keep each other's services alive.
    router.fence()
    assert not [frame for frame in router.received if frame.payload == b"deep"]


# -- following


def listen_anywhere(where: tuple[str, int] = ("127.0.0.1", 0)) -> socket.socket:
    """A listening socket. Not socket.create_server(): that makes one that stops the whole hub."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(where)
    listener.listen()
    listener.settimeout(DEADLINE)
    return listener


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """Four listening sockets."""
    made = [listen_anywhere() for _ in range(4)]
    yield made
    for listener in made:
        listener.close()


def behind(bench: Bench, mesh: AstraNet, *nodes: int) -> RawPeer:
    """A relay that has announced a service of each of the nodes."""
    relay = bench.peer(mesh)
    for node_id in nodes:
        relay.announce("far", 9, local=node_id)
    relay.fence()
    return relay


def text_of(listener: socket.socket) -> bytes:
    """A listener's address as FOLLOW carries it."""
    return b"127.0.0.1:%d" % listener.getsockname()[1]


def assert_nobody_came(listener: socket.socket) -> None:
    """No connection waits at the listener."""
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_follow_only_from_its_owner(bench: Bench, listeners: list[socket.socket]) -> None:
    mesh = bench.node(follow=True)
    relay = behind(bench, mesh, THIRD_ID)
    own, unknown, right = listeners[:3]
    # In the relay's own name (there is a link already), in that of a node that it does not lead to,
    # and in that of the node behind it.
    relay.send(Frame(FOLLOW, 0, PEER_ID, 0, 0, text_of(own)))
    relay.send(Frame(FOLLOW, mesh.node_id, OTHER_ID, 0, 0, text_of(unknown)))
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, text_of(right)))
    peer = bench.adopt(right.accept()[0], THIRD_ID)
    peer.handshake()
    peer.assert_quiet()
    assert (THIRD_ID, 0) in {(route.node_id, route.distance) for route in mesh.routes()}
    assert_nobody_came(own)
    assert_nobody_came(unknown)


def test_follow_ends_when_another_node_answers(bench: Bench, listeners: list[socket.socket]) -> None:
    mesh = bench.node(follow=True)
    relay = behind(bench, mesh, THIRD_ID)
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, text_of(listeners[0])))
    stranger = bench.adopt(listeners[0].accept()[0], OTHER_ID)
    stranger.handshake()
    stranger.wait_end()


def test_follow_tries_every_address_of_a_node(bench: Bench, listeners: list[socket.socket]) -> None:
    """A Go node announces each of its addresses with each of its ports; the first need not do."""
    mesh = bench.node(follow=True, rejoin_min=0.01, rejoin_max=0.02)
    relay = behind(bench, mesh, THIRD_ID)
    dead = text_of(listeners[0])
    listeners[0].close()
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, dead))
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, text_of(listeners[1])))
    peer = bench.adopt(listeners[1].accept()[0], THIRD_ID)
    peer.handshake()


def test_follow_is_limited(bench: Bench, listeners: list[socket.socket]) -> None:
    mesh = bench.node(follow=True, max_followed=2)
    nodes = [THIRD_ID + number for number in range(4)]
    relay = behind(bench, mesh, *nodes)
    for node_id, listener in zip(nodes, listeners, strict=True):
        relay.send(Frame(FOLLOW, mesh.node_id, node_id, 0, 0, text_of(listener)))
    for listener in listeners[:2]:
        bench.adopt(listener.accept()[0]).receive_handshake()
    for listener in listeners[2:]:
        assert_nobody_came(listener)


@pytest.mark.parametrize("off", [{"follow": False}, {"role": Role.SERVER, "follow": True}, {"max_followed": 0}])
def test_follow_can_be_off(bench: Bench, listeners: list[socket.socket], off: dict[str, object]) -> None:
    mesh = bench.node(**{"follow": True, **off})
    relay = behind(bench, mesh, THIRD_ID)
    assert not [frame for frame in relay.received if frame.cmd == DISCOVER]
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, text_of(listeners[0])))
    relay.fence()
    # A connection that the node does open, to the same place and later, is the first to arrive.
    mesh.join(listeners[0].getsockname())
    bench.adopt(listeners[0].accept()[0], OTHER_ID).handshake()
    assert_nobody_came(listeners[0])


@pytest.mark.parametrize(
    "payload",
    [b"garbage", b"", b":0", b"127.0.0.1:99999", b"\xff\xfe:1", b"[::1:80", b"a" * 60000, b"x:-1"],
)
def test_follow_garbage_is_ignored(bench: Bench, payload: bytes) -> None:
    mesh = bench.node(follow=True)
    pair = bench.accepted(mesh)
    pair.peer.send(Frame(FOLLOW, 0, PEER_ID, 0, 0, payload))
    pair.peer.send(Frame(FOLLOW, mesh.node_id, PEER_ID, 0, 0, payload))
    pair.peer.assert_quiet()
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"


def test_discover_is_answered_with_the_address(bench: Bench) -> None:
    mesh = bench.node()
    listener = mesh.listen(("127.0.0.1", 0))
    text = f"127.0.0.1:{listener.address[1]}".encode()
    peer = bench.peer(mesh)
    peer.fence()
    peer.send(Frame(DISCOVER, mesh.node_id, PEER_ID))
    answer = peer.expect(FOLLOW, skip=(SERVICE,), remote=PEER_ID)
    assert answer == Frame(FOLLOW, PEER_ID, mesh.node_id, 0, 0, text)
    # From behind a relay: the answer goes back the way it came.
    peer.send(Frame(DISCOVER, mesh.node_id, THIRD_ID))
    assert peer.expect(FOLLOW, skip=(SERVICE,), remote=THIRD_ID).payload == text


def test_raddr_does_not_decide_what_is_advertised(bench: Bench) -> None:
    mesh = bench.node()
    port = mesh.listen(("127.0.0.1", 0)).address[1]
    liar = bench.peer(mesh, payload=b'{"RAddr":"127.0.0.99:1"}')
    later = bench.peer(mesh, OTHER_ID, payload=b'{"RAddr":"127.0.0.98:1"}')
    for peer in (liar, later):
        peer.send(Frame(DISCOVER, mesh.node_id, peer.node_id))
        peer.fence()
        told = {frame.payload for frame in peer.received if frame.cmd == FOLLOW}
        assert told <= {f"127.0.0.1:{port}".encode()}


# -- links that stall, fall silent, come and go


def test_silent_peer_is_dropped(bench: Bench) -> None:
    mesh = bench.node(keepalive_interval=0.05, keepalive_timeout=0.2)
    pair = bench.accepted(mesh)
    # Our PINGs go unanswered from here on.
    frames = pair.peer.wait_end()
    assert PING in {frame.cmd for frame in frames}
    pair.link.wait(DEADLINE)
    with pytest.raises(LinkLostError):
        pair.stream.recv(100)


def test_peer_that_only_answers_pings_is_kept(bench: Bench) -> None:
    mesh = bench.node(keepalive_interval=0.05, keepalive_timeout=0.2)
    pair = bench.accepted(mesh)
    for _ in range(8):
        pair.peer.wait_for(PING)
        pair.peer.send(Frame(PONG))
    pair.theirs.send(DATA, b"alive")
    assert pair.stream.recv(100) == b"alive"


@pytest.mark.parametrize("cut", [1, 20, 28, 29, 33])
def test_frame_that_stalls_ends_the_link(bench: Bench, cut: int) -> None:
    mesh = bench.node(frame_timeout=0.1)
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    frame = Frame(SERVICE, 0, PEER_ID, 0, 5, b"slow one").encode()
    pair.peer.send(frame[:cut])
    pair.peer.wait_end()
    pair.link.wait(DEADLINE)
    with pytest.raises(LinkLostError):
        pair.stream.recv(100)
    other.assert_quiet()


def test_frame_in_pieces_is_read(bench: Bench) -> None:
    mesh = bench.node()
    pair = bench.accepted(mesh)
    other = bench.peer(mesh, OTHER_ID)
    for byte in pair.theirs.frame(DATA, b"piece by piece").encode():
        pair.peer.send(bytes([byte]))
        # The node has read the piece before the next is sent.
        other.fence()
    assert pair.stream.recv(100) == b"piece by piece"
    pair.peer.assert_quiet()


def test_node_comes_back_to_a_peer_that_drops_it(bench: Bench, listeners: list[socket.socket]) -> None:
    listener = listeners[0]
    mesh = bench.node(rejoin_min=0.01, rejoin_max=0.05)
    where = listener.getsockname()
    peering = mesh.join(where)
    for _ in range(2):  # accepted and dropped at once
        listener.accept()[0].close()
    for _ in range(2):  # dropped after the handshake
        peer = bench.adopt(listener.accept()[0])
        peer.handshake()
        peer.fence()
        peer.close()
    listener.close()  # refused for a while
    again = listeners[0] = listen_anywhere(where)
    peer = bench.adopt(again.accept()[0])
    peer.handshake()
    peering.wait_ready(DEADLINE)
    peer.announce("back", 9)
    mesh.service_map.wait_for("back", DEADLINE)


def test_streams_leave_nothing_behind(bench: Bench) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    peer, link = bench.linked(mesh)
    for number in range(300):
        theirs = peer.dial(PORT, lport=1000 + number)
        stream, _ = listener.accept()
        theirs.send(DATA, b"ping")
        assert stream.recv(100) == b"ping"
        stream.close()
        theirs.expect(FIN2)
        theirs.expect(FIN1)
        theirs.send(FIN2)
    peer.assert_quiet()
    assert link.stream_count == 0


def test_links_leave_nothing_behind(bench: Bench, no_leaks: Callable[..., None], eventually: Eventually) -> None:
    mesh = bench.node()
    listener = bench.listener(mesh)
    for number in range(50):
        peer, link = bench.linked(mesh, PEER_ID + number)
        peer.announce("svc", 9)
        peer.dial(PORT)
        stream, _ = listener.accept()
        peer.close()
        link.wait(DEADLINE)
        with pytest.raises(LinkLostError):
            stream.recv(1)
        stream.close()
    assert [service for service in mesh.services() if service.node_id != mesh.node_id] == []
    assert [route for route in mesh.routes() if route.node_id != mesh.node_id] == []
