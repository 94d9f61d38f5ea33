"""Relaying: frames of one peer that are meant for another, passed on as they are.

A relay keeps no state of streams, only of pairs: (destination, source) and what waits for the destination's link. Bounds: a pair may have
``relay_bytes`` waiting; the sender is asked to pause (PAUSE) at a sixteenth of that and told to go on (RESUME) at half of it, so only a
sender that does not know PAUSE can pass the bound, and then the stream whose frame it was is reset at both ends. Frames that cannot go
anywhere are answered with RESET, as the original answers for a host that has gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ..address import format_node_id
from ..config import Config
from ..protocol.frame import HEADER_SIZE, Command, address_key, encode_frame, encode_header, reverse_key
from .conn import Buffer
from .link import Link
from .path import ResetCode, encode_reset
from .send_queue import SMALL_FRAME, UNJOINED_PAYLOAD, TurnSource

__all__ = ["Relay", "RelayPair", "encode_unreachable"]

log = logging.getLogger("astranet_gevent")

# What the original writes before data, and what of ours has to keep its place among those.
_PRIORITY: Final = frozenset(
    (
        Command.SYN,
        Command.ACK,
        Command.SYN_ACK,
        Command.REWIND,
        Command.DIAL,
        Command.HANDSHAKE,
        Command.RESET,
        Command.WND_SIZE,
        Command.BLOCKED,
        Command.HELLO,
        Command.PAUSE,
        Command.RESUME,
    )
)

# Control frames carry a handshake at most; larger ones go with the data, which is bounded by bytes.
_MAX_PRIORITY_PAYLOAD: Final = 256

# Part of control_frames up to which relayed ones may wait on one link.
_CONTROL_SHARE: Final = 4

# Reset streams remembered per pair; beyond that some are reset twice.
_MAX_OVERRUN: Final = 65536

# Part of relay_bytes at which the sender is asked to pause.
_PAUSE_SHARE: Final = 16


def encode_unreachable(node_id: int, addressee: int) -> bytes:
    """A RESET frame: ``node_id`` cannot be reached from here."""
    return encode_frame(Command.RESET, address_key(addressee, node_id, 0, 0))


class RelayPair(TurnSource):
    """Frames from one node to another that wait in the destination's link."""

    is_relayed = True

    __slots__ = ("_pause_at", "_relay", "overrun", "paused", "source", "target")

    def __init__(self, relay: Relay, source: Link, target: Link, pause_at: int) -> None:
        super().__init__()
        self.source = source
        self.target = target
        self.paused = False
        # Keys of streams that were reset because the pair was full: what still comes of them has a gap in it.
        self.overrun: set[bytes] = set()
        self._relay = relay
        self._pause_at = pause_at

    def forward_run(self, run: Buffer) -> bool:
        """Pass on frames of DATA as they are, or False if each has to be looked at: small ones, or a view of large ones."""
        target = self.target
        queue = target.queue
        if self.overrun:
            return False
        if type(run) is bytes:
            if self.pending or queue.small_bytes >= queue.limit:
                return False
            queue.push_small(run)
        else:
            if not self._relay.has_room(self, len(run)):
                return False
            queue.push_turn(self, (run,))
            self.on_queued()
        if not target.flush_scheduled:
            target.schedule_flush()
        return True

    def forward(self, command: int, key: bytes, payload: Buffer) -> None:
        """Pass on a frame that keeps its place among the data."""
        if self.overrun and key in self.overrun:
            return
        target = self.target
        queue = target.queue
        length = len(payload)
        size = HEADER_SIZE + length
        if size <= SMALL_FRAME and not self.pending and queue.small_bytes < queue.limit:
            if length < UNJOINED_PAYLOAD:
                queue.push_small(encode_header(command, key, length) + payload)
            else:
                queue.push_small_parts(encode_header(command, key, length), payload)
        elif self._relay.has_room(self, size):
            # The payload goes on as it was read, without a copy.
            queue.push_turn(self, (encode_header(command, key, length), payload))
            self.on_queued()
        else:
            self._relay.reset_stream(self, key)
            return
        if not target.flush_scheduled:
            target.schedule_flush()

    def on_queued(self) -> None:
        """Ask the sender to pause when enough waits."""
        if self.size >= self._pause_at and not self.paused and self.source.core.capabilities.pause:
            self.paused = True
            self._tell(Command.PAUSE)

    def on_sent(self, size: int) -> None:
        """Let the sender go on when half of that is gone."""
        if self.paused and self.size <= self._pause_at // 2:
            self.paused = False
            self._tell(Command.RESUME)

    def _tell(self, command: int) -> None:
        key = address_key(self.source.peer_id, self.target.peer_id, 0, 0)
        self.source.send_control(encode_frame(command, key))


class Relay:
    """The relay of one node. ``find_link(node_id)`` returns the link to a direct peer, or None."""

    def __init__(self, config: Config, find_link: Callable[[int], Link | None]) -> None:
        self._config = config
        self._find_link = find_link
        # Links that frames come over, with their pairs: the ``relayed`` of each.
        self._pairs: dict[Link, dict[bytes, RelayPair]] = {}
        self._reported: set[Link] = set()

    def forward(self, link: Link, command: int, key: bytes, payload: bytes) -> None:
        """Pass a frame on, or answer that it cannot be. Frames of DATA may go to their pair together (``forward_run``)."""
        pair = link.relayed.get(key[:16])
        if pair is None:
            pair = self._open_pair(link, command, key)
            if pair is None:
                return
        if command in _PRIORITY and len(payload) <= _MAX_PRIORITY_PAYLOAD:
            self._forward_control(pair, command, encode_frame(command, key, payload))
        else:
            pair.forward(command, key, payload)

    def _forward_control(self, pair: RelayPair, command: int, frame: bytes) -> None:
        # A flood must not cost the destination its link: the source is answered long before that bound.
        if pair.target.queue.control_count < self._config.control_frames // _CONTROL_SHARE:
            pair.target.send_control(frame)
            return
        if command != Command.RESET:
            pair.source.send_control(encode_unreachable(pair.target.peer_id, pair.source.peer_id))

    def has_room(self, pair: RelayPair, size: int) -> bool:
        """Whether that many bytes more may wait."""
        config = self._config
        return pair.size + size <= config.relay_bytes and pair.target.queue.relayed_bytes + size <= config.relay_link_bytes

    def _open_pair(self, link: Link, command: int, key: bytes) -> RelayPair | None:
        source_id = int.from_bytes(key[8:16], "big")
        target_id = int.from_bytes(key[:8], "big")
        target = self._find_link(target_id)
        if source_id != link.peer_id:
            # Only a node itself may speak for itself here: one hop is all that the wire knows.
            self._report_forgery(link, source_id)
        elif target is not None:
            return self._add_pair(link, target, key[:16])
        if command != Command.RESET:
            link.send_control(encode_unreachable(target_id, source_id))
        return None

    def _report_forgery(self, link: Link, source_id: int) -> None:
        # Once per link: a peer must not be able to fill our log.
        if link not in self._reported:
            self._reported.add(link)
            log.warning("frames from %s claim to come from %s: refused", format_node_id(link.peer_id), format_node_id(source_id))

    def _add_pair(self, link: Link, target: Link, pair_key: bytes) -> RelayPair:
        pairs = self._pairs[link] = link.relayed
        if len(pairs) >= self._config.paths_per_link:
            # The oldest one with nothing waiting: it is made anew when it is needed.
            idle = next((old for old, pair in pairs.items() if not pair.pending and not pair.paused), None)
            if idle is not None:
                del pairs[idle]
        pair = pairs[pair_key] = RelayPair(self, link, target, self._config.relay_bytes // _PAUSE_SHARE)
        return pair

    def reset_stream(self, pair: RelayPair, key: bytes) -> None:
        """The pair is full: end the stream whose frame does not fit, at both ends."""
        if key in pair.overrun:
            return
        if len(pair.overrun) >= _MAX_OVERRUN:
            pair.overrun.clear()
        pair.overrun.add(key)
        reason = f"the relay holds {pair.size} bytes for this pair (relay_bytes {self._config.relay_bytes})"
        log.info("stream from %s reset: %s", format_node_id(pair.source.peer_id), reason)
        for link, frame_key in ((pair.source, reverse_key(key)), (pair.target, key)):
            link.send_control(encode_reset(frame_key, ResetCode.RELAY, reason))
            if not link.is_own_kind:
                link.send_control(encode_frame(Command.FIN2, frame_key) + encode_frame(Command.FIN1, frame_key))

    def link_ended(self, link: Link) -> None:
        """Tell everybody who talked with that peer through us that it is gone."""
        gone = link.peer_id
        self._reported.discard(link)
        told: set[Link] = set()
        said: set[Link] = {link}
        for pair in self._pairs.pop(link, {}).values():
            if pair.target is not link:
                said.add(pair.target)
                self._say_last(pair, encode_unreachable(gone, pair.target.peer_id))
        link.relayed.clear()
        for source, pairs in self._pairs.items():
            for pair_key, pair in list(pairs.items()):
                if pair.target is link:
                    del pairs[pair_key]
                    told.add(source)
        for other in told - said:
            other.send_control(encode_unreachable(gone, other.peer_id))

    def _say_last(self, pair: RelayPair, frame: bytes) -> None:
        """Send a frame behind what the pair has waiting: what its source wrote before it left still arrives."""
        queue = pair.target.queue
        if pair.pending:
            queue.push_turn(pair, (frame,))
        else:
            queue.push_small(frame)
        if not pair.target.flush_scheduled:
            pair.target.schedule_flush()

    def uses(self, link: Link) -> bool:
        """Whether any pair comes over that link or goes over it."""
        return bool(self._pairs.get(link)) or any(pair.target is link for pairs in self._pairs.values() for pair in pairs.values())
