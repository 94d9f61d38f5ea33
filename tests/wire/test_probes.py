"""Each way a peer can misbehave, or merely be odd: what our node answers.

``PROBES`` maps every probe of the Go node (10_probes.json) and every defect found in it
(11_bug_probes.json) to the tests here, or says why there is nothing to test on the wire.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from . import test_peer_dials as dials
from . import test_peer_handshake as handshake
from . import test_peer_links as links
from . import test_peer_relays as relays
from . import test_peer_services as services
from . import test_peer_streams as streams
from . import test_replay_link as replay_link
from . import test_replay_relay as replay_relay
from . import test_rules as rules
from .recording import FOLDER


class Reason(str):
    """Why a probe has no test on the wire."""


HANDSHAKES = (handshake.test_handshake_is_accepted,)
BAD_HANDSHAKES = (handshake.test_handshake_is_refused,)
PAYLOADS = (streams.test_payload_of_65536_is_read, streams.test_larger_payload_ends_the_link)

PROBES: dict[str, tuple[Callable[..., None], ...] | Reason] = {
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
    "no handshake sent": (handshake.test_no_handshake_ends_the_link,),
    "frames before handshake": (handshake.test_frames_before_the_handshake_are_dropped,),
    "handshake after those": (handshake.test_frames_before_the_handshake_are_dropped,),
    "order": (rules.test_rule_01_nothing_follows_the_handshake_until_the_peers_is_in,),
    "second handshake other id": (
        handshake.test_second_handshake_with_another_id_ends_the_link,
        handshake.test_second_handshake_with_the_same_id_is_ignored,
    ),
    "routes after all links closed": (services.test_services_and_routes_go_with_the_link,),
    "unknown cmd values": (dials.test_unknown_commands_are_ignored,),
    "unsolicited stream frames": (dials.test_unsolicited_stream_frames_are_ignored,),
    "frame for unknown host": (relays.test_frame_for_an_unknown_node_is_answered_by_reset,),
    "PING with remote/payload": (dials.test_ping_with_ids_and_payload_gets_a_plain_pong,),
    "DIAL with remote=0": (dials.test_dial_to_nobody_is_ignored,),
    "DIAL unbound port": (dials.test_dial_to_an_unbound_port_is_refused,),
    "SERVICE dup/empty/binary": (services.test_services_named_twice_empty_or_binary,),
    "SERVICE of a foreign host": (
        services.test_service_of_another_node_is_behind_the_peer,
        services.test_service_of_another_node_is_followed_up,
    ),
    "services after link close": (services.test_services_and_routes_go_with_the_link,),
    "DATA payload 65535": PAYLOADS,
    "DATA payload 65536": PAYLOADS,
    "DATA payload 65537": PAYLOADS,
    "DATA payload 65565": PAYLOADS,
    "DATA payload 1048576": PAYLOADS,
    "DATA payload 4294967295": PAYLOADS,
    "SERVICE payload 65536": PAYLOADS,
    "SERVICE payload 65537": PAYLOADS,
    "HANDSHAKE payload 65536": (handshake.test_handshake_of_65536_bytes_is_read,),
    "HANDSHAKE payload 65537": PAYLOADS,
    "200 payload 65536": PAYLOADS,
    "200 payload 65537": PAYLOADS,
    "WND_SIZE=1MiB sent to Go": (rules.test_rule_02_no_frame_over_65536_bytes_however_large_the_window,),
    "WND_SIZE=1000, then REWIND 400": (streams.test_small_window_is_kept_to,),
    "8 MiB sent without any REWIND": (streams.test_overrun_of_the_window_resets_that_stream,),
    "DIAL+ACK+DATA in one segment": (dials.test_data_in_one_segment_with_dial_is_delivered,),
    "ACK+DATA right after SYN": (dials.test_data_right_after_syn_is_delivered,),
    "DATA without any ACK": (dials.test_ack_is_not_needed,),
    "... then ACK": (dials.test_ack_is_not_needed,),
    "SYN_ACK instead of ACK to a Go server": (dials.test_ack_is_not_needed,),
    "DIAL to a listener that does not Accept": (rules.test_rule_07_the_stream_is_open_before_anybody_accepts,),
    "same 4-tuple dialled twice": (dials.test_newest_of_two_dials_with_the_same_ports_wins,),
    "Go client: SYN+DATA+FIN2 in one segment, other port": (dials.test_syn_from_another_port_with_data_and_fin,),
    "Go client: SYN+SYN_ACK back to back": (dials.test_syn_and_syn_ack_back_to_back,),
    "Go client Write needs SYN_ACK": (rules.test_rule_06_nothing_follows_dial_until_syn,),
    "second SYN on same stream": (dials.test_second_syn_is_ignored,),
    "FIN1 received from peer": (streams.test_fin1_ends_writing,),
    "ERR received from peer": (streams.test_err_is_ignored,),
    "FORCE_CLOSED received": (streams.test_force_closed_resets_that_stream,),
    "RESET(local=peer) received": (
        streams.test_reset_in_the_peers_own_name_is_ignored,
        streams.test_reset_of_a_node_breaks_all_streams_to_it,
    ),
    "FIN2 received": (streams.test_fin2_is_the_end_of_reading_only,),
    "Close before SYN": (dials.test_syn_after_the_dial_was_given_up_leaves_no_stream,),
    "REWIND with a 2-byte payload": (streams.test_credit_of_a_wrong_size,),
    "WND_SIZE with a 2-byte payload": (streams.test_credit_of_a_wrong_size,),
    "REWIND of bytes never sent": (streams.test_credit_for_bytes_never_sent,),
    "plain Server node forwards": (relays.test_every_role_forwards_unchanged,),
    "forwarding of unknown cmd + spoofed source": (
        relays.test_every_role_forwards_unchanged,
        relays.test_frame_with_a_forged_source_is_not_forwarded,
    ),
    "PING with a remote is not forwarded": (relays.test_ping_is_never_forwarded,),
    "peer link closed -> RESET to the other": (relays.test_relay_resets_the_pair_of_a_lost_link,),
    "FOLLOW to any address": (services.test_follow_only_from_its_owner,),
    "FOLLOW garbage": (services.test_follow_garbage_is_ignored,),
    "DISCOVER": (services.test_discover_is_answered_with_the_address,),
    "client-mode node: port 1": (dials.test_client_announces_nothing_and_has_no_port_1,),
    "late reader after FIN2": (rules.test_rule_09_what_came_before_fin2_waits_for_a_late_reader,),
    "Close with a Read in progress": (streams.test_close_ends_a_read_in_progress,),
    "Read after own Close": (streams.test_close_ends_a_read_in_progress,),
    "payload stalls half way": (links.test_frame_that_stalls_ends_the_link,),
    "header stalls half way": (links.test_frame_that_stalls_ends_the_link,),
    "peer never sends anything after the handshake": (links.test_silent_peer_is_dropped,),
    "RAddr decides what Go advertises": (services.test_raddr_does_not_decide_what_is_advertised,),
    "later joiner": (services.test_raddr_does_not_decide_what_is_advertised,),
    "two routers in a chain": (relays.test_service_from_behind_another_router,),
    "R1 dials through R2": (replay_relay.test_replay,),
    "DIAL with a source id that is not mine": (dials.test_dial_from_a_node_behind_the_peer,),
    "empty DATA": (streams.test_empty_data_is_nothing,),
    "DATA+FIN2 to an echo server": (streams.test_data_after_both_fins_is_ignored,),
    "DATA after both FIN2": (streams.test_data_after_both_fins_is_ignored,),
    "same local port dialled again right after close": (dials.test_port_dialled_again_right_after_close,),
    "join to a refused port: retry times": (links.test_node_comes_back_to_a_peer_that_drops_it,),
    "peer accepts and drops at once: reconnect times": (links.test_node_comes_back_to_a_peer_that_drops_it,),
    "peer handshakes, then drops: reconnect times": (links.test_node_comes_back_to_a_peer_that_drops_it,),
    "client-mode node forwards between its links": (relays.test_every_role_forwards_unchanged,),
    "Close called twice": (rules.test_rules_7_and_8_closing_sends_each_end_once,),
    "vport2registry consistent hashing, 4 client processes, keys 10..17, 3 servers": Reason(
        "a choice made before anything is sent; see the tests of the selectors"
    ),
    # 11_bug_probes.json
    "service name of 11 base64url chars": (services.test_service_name_that_looks_like_a_node_id,),
    "Bind web:8080 then Dial web:8080 / web": (services.test_name_with_a_port_is_found_both_ways,),
    "Dial vport2registry web:8080": (services.test_name_with_a_port_is_found_both_ways,),
    "Dial own service (no loopback)": Reason("nothing is sent on a link"),
    "Dial own service with WithLoopBack": Reason("nothing is sent on a link"),
    "loopback echo": Reason("nothing is sent on a link"),
    "rejoin after peer restart, down 0.0s": (links.test_node_comes_back_to_a_peer_that_drops_it,),
    "rejoin after peer restart, down 3.0s": (links.test_node_comes_back_to_a_peer_that_drops_it,),
    "rejoin after peer restart, down 8.0s": (links.test_node_comes_back_to_a_peer_that_drops_it,),
    "peer keeps writing after I closed": (streams.test_peer_that_writes_on_after_our_close,),
    "idle CPU, 1 link": Reason("a measurement, no peer behaviour"),
    "handshake+SERVICE sent at once, many connects": (handshake.test_frames_in_one_segment_with_the_handshake,),
    "announce convergence": (replay_link.test_replay,),
    "frozen peer (SIGSTOP)": (links.test_silent_peer_is_dropped,),
    "open/echo/close leak": (links.test_streams_leave_nothing_behind,),
    "500 link connects/disconnects": (links.test_links_leave_nothing_behind,),
}


def test_every_probe_has_its_test_and_no_other_is_named() -> None:
    made: set[str] = set()
    for file in ("10_probes", "11_bug_probes"):
        with open(FOLDER / f"{file}.json", encoding="utf-8") as opened:
            made |= set(json.load(opened)["probes"])
    assert set(PROBES) == made
    # An empty tuple or reason says nothing.
    assert all(PROBES.values())
