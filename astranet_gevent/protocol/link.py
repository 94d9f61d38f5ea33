"""One link's state: handshake, keepalive deadlines, goodbye. The driver owns the clock and the socket.

Keepalive is judged by time that this process spent awake: a timer that fires late means that nobody was reading, so the lateness is
added to every deadline before one of them is applied.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from ..config import Config
from ..errors import RemoteProtocolError
from .frame import Command, encode_frame, split_key
from .handshake import ORIGINAL, Capabilities, Handshake, decode_handshake, encode_handshake

__all__ = ["CLOSED", "DRAINING", "GOODBYE", "HANDSHAKE", "PING", "PONG", "READY", "LinkCore", "LinkState", "LinkTimeoutError", "TimerEvent"]

_ZERO_KEY: Final = bytes(24)

PING: Final = encode_frame(Command.PING, _ZERO_KEY)
PONG: Final = encode_frame(Command.PONG, _ZERO_KEY)
GOODBYE: Final = encode_frame(Command.GOODBYE, _ZERO_KEY)


class LinkState(IntEnum):
    """HANDSHAKE until the peer's has come; DRAINING takes no new streams; CLOSED is final."""

    HANDSHAKE = 0
    READY = 1
    DRAINING = 2
    CLOSED = 3


# Looked up for every message: as members of the class they take three times as long.
HANDSHAKE: Final = LinkState.HANDSHAKE
READY: Final = LinkState.READY
DRAINING: Final = LinkState.DRAINING
CLOSED: Final = LinkState.CLOSED


class TimerEvent(IntEnum):
    """What a timer asks the driver to do."""

    NOTHING = 0
    PING = 1


class LinkTimeoutError(RemoteProtocolError):
    """The peer said nothing for too long."""


class LinkCore:
    """State of one link. ``now`` is always monotonic seconds from the same clock."""

    def __init__(self, config: Config, node_id: int, now: float) -> None:
        self.state = LinkState.HANDSHAKE
        self.peer_id = 0
        self.capabilities: Capabilities = ORIGINAL
        # Our address as the peer sees it, from its handshake.
        self.seen_address = ""
        self.goodbye_sent = False
        self.goodbye_received = False
        self._config = config
        self._node_id = node_id
        self._handshake_deadline = now + config.handshake_timeout
        self._last_received = now
        self._last_sent = now
        self._last_ping = now
        self._last_tick = now
        self._stalled_since: float | None = None
        self._armed_for: float | None = None

    def handshake_frame(self, remote_address: str) -> bytes:
        """Our HANDSHAKE, the first frame on the link; ``remote_address`` is the peer's address as we see it, or ``""``."""
        key = bytes(8) + self._node_id.to_bytes(8, "big") + bytes(8)
        return encode_frame(Command.HANDSHAKE, key, encode_handshake(remote_address, self._config.frame_size))

    def receive_handshake(self, key: bytes, payload: bytes) -> Handshake | None:
        """Apply a HANDSHAKE: the peer's on the first, None on a repeated one. Raises RemoteProtocolError for a bad or a changed one."""
        _, peer_id, _, _ = split_key(key)
        handshake = decode_handshake(payload)
        if self.state is not LinkState.HANDSHAKE:
            if peer_id != self.peer_id:
                raise RemoteProtocolError(f"second handshake names node {peer_id:#x}, the first named {self.peer_id:#x}")
            return None
        if not 0 < peer_id < 2**64:
            raise RemoteProtocolError("handshake names node 0")
        self.peer_id = peer_id
        self.capabilities = handshake.capabilities
        self.seen_address = handshake.remote_address
        self.state = LinkState.READY
        return handshake

    def note_received(self, now: float, partial: bool) -> None:
        """Bytes arrived; ``partial``: the last frame is not complete."""
        self._last_received = now
        self._stalled_since = now if partial else None

    def note_sent(self, now: float) -> None:
        """Bytes were handed to the system."""
        self._last_sent = now

    def drain(self) -> None:
        """Take no more streams."""
        if self.state is LinkState.READY:
            self.state = LinkState.DRAINING

    def start_goodbye(self) -> bool:
        """Take no more streams; True when a GOODBYE has to be sent."""
        if self.goodbye_sent or self.state not in (LinkState.READY, LinkState.DRAINING):
            return False
        self.goodbye_sent = True
        self.state = LinkState.DRAINING
        return True

    def receive_goodbye(self) -> bool:
        """The peer dials no more on this link; True when ours has to be sent in answer."""
        self.goodbye_received = True
        return self.start_goodbye()

    def close(self) -> bool:
        """End the link; True the first time."""
        if self.state is LinkState.CLOSED:
            return False
        self.state = LinkState.CLOSED
        return True

    def next_deadline(self) -> float | None:
        """When ``handle_timer`` wants to be called, at the latest; None once closed."""
        if self.state is LinkState.CLOSED:
            self._armed_for = None
        elif self.state is LinkState.HANDSHAKE:
            self._armed_for = self._handshake_deadline
        else:
            config = self._config
            # At least every frame_timeout: a frame may have stalled since the timer was set.
            deadline = min(self._ping_due(), self._last_received + config.keepalive_timeout, self._last_tick + config.frame_timeout)
            if self._stalled_since is not None:
                deadline = min(deadline, self._stalled_since + config.frame_timeout)
            self._armed_for = deadline
        return self._armed_for

    def handle_timer(self, now: float) -> TimerEvent:
        """Apply the deadlines that have passed. Raises LinkTimeoutError when the link is to be closed."""
        if self.state is LinkState.CLOSED:
            return TimerEvent.NOTHING
        self._forgive(now)
        self._last_tick = now
        config = self._config
        if self.state is LinkState.HANDSHAKE:
            if now >= self._handshake_deadline:
                raise LinkTimeoutError(f"no handshake within {config.handshake_timeout:g} s (handshake_timeout)")
            return TimerEvent.NOTHING
        if now >= self._last_received + config.keepalive_timeout:
            raise LinkTimeoutError(f"nothing received for {config.keepalive_timeout:g} s (keepalive_timeout)")
        if self._stalled_since is not None and now >= self._stalled_since + config.frame_timeout:
            raise LinkTimeoutError(f"a frame stopped in its middle for {config.frame_timeout:g} s (frame_timeout)")
        if now >= self._ping_due():
            self._last_ping = now
            return TimerEvent.PING
        return TimerEvent.NOTHING

    def _ping_due(self) -> float:
        # The original pings when it has not written; asking also when nothing was heard finds a dead peer while we keep writing.
        quiet_since = min(self._last_sent, self._last_received)
        return max(quiet_since, self._last_ping) + self._config.keepalive_interval

    def _forgive(self, now: float) -> None:
        """Add the time that this process was not awake to the deadlines."""
        late = now - self._armed_for if self._armed_for is not None else 0.0
        # Ordinary scheduling delays are a few ms; a fifth of the interval is far above them and far below any deadline.
        ordinary = self._config.keepalive_interval / 5
        if late <= ordinary:
            return
        # By the lateness alone the deadline that was armed would pass just now, with what came in the meantime still unread.
        late += ordinary
        self._handshake_deadline += late
        self._last_received = min(now, self._last_received + late)
        if self._stalled_since is not None:
            self._stalled_since = min(now, self._stalled_since + late)
