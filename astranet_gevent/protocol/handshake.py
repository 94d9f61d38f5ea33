"""The handshake: a JSON object each side sends first, and what it tells of a peer.

The original knows one key, ``RAddr``: the address of the other end as the sender sees it. Ours adds ``astranet_gevent``, which the original
ignores; a peer that sends it is of our own kind. Between nodes with a relay in between the same object travels in a HELLO frame.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from ..errors import RemoteProtocolError
from .frame import MAX_PAYLOAD

__all__ = ["Capabilities", "Handshake", "decode_handshake", "encode_handshake"]

# Raised when a later version must be told apart; capabilities are told apart by their names.
PROTOCOL_VERSION: Final = 1

# Less than this would make frames mostly of headers.
MIN_MAX_PAYLOAD: Final = 1024

_KEY: Final = "astranet_gevent"

# Names of what a peer understands beyond the original's frames.
_FEATURES: Final = ("reset", "window", "goodbye", "pause")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a peer of our own kind understands. ``ORIGINAL`` stands for a peer that is not, or of which nothing is known yet."""

    version: int = 0
    reset: bool = False
    window: bool = False
    goodbye: bool = False
    pause: bool = False
    # Largest payload that it reads. Told only when it is smaller than the wire's 65536.
    max_payload: int = MAX_PAYLOAD

    @property
    def own_kind(self) -> bool:
        """Whether the peer is a node of this library."""
        return self.version > 0


ORIGINAL: Final = Capabilities()
OURS: Final = Capabilities(PROTOCOL_VERSION, True, True, True, True)


@dataclass(frozen=True, slots=True)
class Handshake:
    """A peer's handshake: ``remote_address`` is our own address as the peer sees it, or ``""``."""

    remote_address: str
    capabilities: Capabilities


def encode_handshake(remote_address: str, max_payload: int = MAX_PAYLOAD) -> bytes:
    """Our handshake's payload; the original's key first."""
    ours: dict[str, Any] = {"version": PROTOCOL_VERSION, "features": list(_FEATURES)}
    if max_payload < MAX_PAYLOAD:
        ours["max_payload"] = max_payload
    return json.dumps({"RAddr": remote_address, _KEY: ours}, separators=(",", ":")).encode()


def decode_handshake(payload: bytes) -> Handshake:
    """A peer's handshake, accepted and refused as the original does: any object or null, RAddr a string or null in any case of letters.

    Raises RemoteProtocolError for anything else.
    """
    try:
        # Given bytes, json would guess at UTF-16 and 32 too; the original reads UTF-8 and puts up with what is not.
        value = json.loads(payload.decode("utf-8", "replace"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"handshake of {len(payload)} bytes is not JSON: {payload[:80]!r}") from error
    if value is None:
        return Handshake("", ORIGINAL)
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"handshake is a JSON {type(value).__name__}, not an object")
    address = ""
    for key, item in value.items():
        if key.lower() == "raddr" and item is not None:
            if not isinstance(item, str):
                raise RemoteProtocolError(f"RAddr in the handshake is a JSON {type(item).__name__}, not a string")
            address = item
    return Handshake(address, _decode_capabilities(value.get(_KEY)))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is Python's, not JSON")


def _decode_capabilities(value: Any) -> Capabilities:
    # A malformed value of ours is treated as absent: the peer then gets what the original gets.
    if not isinstance(value, dict):
        return ORIGINAL
    version, features = value.get("version"), value.get("features")
    if type(version) is not int or version < 1 or not isinstance(features, list):
        return ORIGINAL
    max_payload = value.get("max_payload")
    if type(max_payload) is not int or not MIN_MAX_PAYLOAD <= max_payload <= MAX_PAYLOAD:
        max_payload = MAX_PAYLOAD
    understood: dict[str, Any] = {name: name in features for name in _FEATURES}
    return Capabilities(version, max_payload=max_payload, **understood)
