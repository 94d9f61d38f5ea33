"""A peer node as reached over one link: what it understands, and what all its streams on that link share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..protocol.frame import Command, encode_frame, encode_u32
from ..protocol.handshake import Capabilities

if TYPE_CHECKING:
    from .link import Link
    from .stream import Stream

__all__ = ["Path", "ResetCode", "encode_reset"]

# Longest text sent or kept of a reset's reason.
MAX_REASON: Final = 256


class ResetCode:
    """Codes of FORCE_CLOSED: the first u32 of its payload. Unknown ones are taken for RESET."""

    RESET: Final = 1  # closed with unread data, linger 0, or aborted
    REFUSED: Final = 2  # no listener there, or its backlog is full
    OVERRUN: Final = 3  # more data than the window allowed, or a malformed frame of that stream
    LIMIT: Final = 4  # a limit of the node was reached
    CANCELLED: Final = 5  # the dialler gave up
    RELAY: Final = 6  # the relay could not hold the stream's data


def encode_reset(key: bytes, code: int, reason: str) -> bytes:
    """A FORCE_CLOSED frame."""
    return encode_frame(Command.FORCE_CLOSED, key, encode_u32(code) + reason.encode()[:MAX_REASON])


class Path:
    """One peer node over one link. A link has one path to its peer, and more behind a relay."""

    __slots__ = ("blocked", "capabilities", "greeted", "link", "max_payload", "node_id", "paused", "stream_count")

    def __init__(self, link: Link, node_id: int, capabilities: Capabilities) -> None:
        self.link = link
        self.node_id = node_id
        self.learn(capabilities)
        # Whether our HELLO has been sent this way.
        self.greeted = False
        self.stream_count = 0
        # Set while a relay on the way cannot take more; the streams that wait for its end.
        self.paused = False
        self.blocked: dict[Stream, None] = {}

    def learn(self, capabilities: Capabilities) -> None:
        """Note what the node understands. Its frames must suit us, it, and the relay in between."""
        self.capabilities = capabilities
        self.max_payload = min(self.link.frame_size, capabilities.max_payload, self.link.core.capabilities.max_payload)

    def reset_frames(self, key: bytes, code: int, reason: str) -> bytes:
        """What ends a stream at the peer: the original knows no reset, but ends its reads on FIN2 and its writes on FIN1."""
        if self.capabilities.reset:
            return encode_reset(key, code, reason)
        return encode_frame(Command.FIN2, key) + encode_frame(Command.FIN1, key)

    def close_frames(self, key: bytes, finished: bool) -> bytes:
        """What tells the peer of a close; ``finished``: FIN2 has been sent before."""
        gone = encode_frame(Command.FIN1, key)
        if finished or self.capabilities.reset:
            return gone
        return encode_frame(Command.FIN2, key) + gone
