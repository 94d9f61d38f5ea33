"""Reads the recordings: what Go nodes said on a link, and what their applications did meanwhile."""

from __future__ import annotations

import base64
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .peer import DATA, REWIND, WND_SIZE, Frame, split_frames, u32

# Of an event that is none. No recording has a command 0.
NO_FRAME = Frame(0)

FOLDER = Path(__file__).parent / "recordings"

# Which end of each hop a node of the recording held: hop -> end.
ENDS = {
    "A": {"link": "a", "hop_A_R": "a"},
    "B": {"link": "b", "hop_B_R": "a"},
    "R": {"hop_A_R": "b", "hop_B_R": "b"},
}


@dataclass(frozen=True)
class Moment:
    """What happened: ``kind`` is "frame", "open" or "eof" on a hop, or "api" in a node."""

    t_ms: float
    kind: str
    hop: str = ""
    sender: str = ""
    frame: Frame = NO_FRAME
    api: dict[str, Any] = field(default_factory=dict)


class Recording:
    """One recorded scenario."""

    def __init__(self, name: str) -> None:
        self.name = name
        with open(FOLDER / f"{name}.json", encoding="utf-8") as file:
            self.data: dict[str, Any] = json.load(file)
        self.api: dict[str, list[dict[str, Any]]] = self.data["api_events"]
        self.hops = {hop: self.data[hop]["conn0"] for hop in ("link", "hop_A_R", "hop_B_R") if hop in self.data}

    def events(self, node: str) -> list[Moment]:
        """What the node did and what came and went on its links, in order of time.

        The order is causal: both hops were recorded by one process, a call is stamped before it is
        made and a result after it is known.
        """
        events = [Moment(item["t_ms"], "api", api=item) for item in self.api.get(node, [])]
        for hop in self.hops:
            if hop in ENDS[node]:
                events += self.link_events(hop)
        return sorted(events, key=lambda event: event.t_ms)

    def link_events(self, hop: str) -> list[Moment]:
        """Everything on one hop; ``sender`` is the end ("a" or "b") that a frame came from."""
        chunks = self.hops[hop]["chunks"]
        if any(chunk["dir"] != "event" and "hex" not in chunk for chunk in chunks):
            return self._from_headers(hop)
        events = []
        partial = {"a": b"", "b": b""}
        for chunk in chunks:
            if chunk["dir"] == "event":
                events.append(_link_event(chunk, hop))
                continue
            sender = chunk["dir"][0]
            data = partial[sender] + bytes.fromhex(chunk["hex"])
            frames, partial[sender] = split_frames(data)
            events += [Moment(chunk["t_ms"], "frame", hop, sender, frame) for frame in frames]
        assert not any(partial.values()), partial
        return events

    def _from_headers(self, hop: str) -> list[Moment]:
        """For a recording that kept headers only: the payloads are made anew."""
        connection = self.hops[hop]
        events = [_link_event(item, hop) for item in connection["chunks"] if item["dir"] == "event"]
        for direction, frames in connection["frames"].items():
            sender = direction[0]
            content = _written(self.api[sender.upper()])
            for item in frames:
                payload = _payload(item)
                if item["cmd"] == DATA:
                    payload, content = content[: item["len"]], content[item["len"] :]
                frame = recorded_frame(item, payload)
                events.append(Moment(item["t_ms"], "frame", hop, sender, frame))
        return sorted(events, key=lambda event: event.t_ms)


def recorded_frame(item: dict[str, Any], payload: bytes) -> Frame:
    """A frame from the recording's own decoding of it."""
    ids = int(item["remote"], 16), int(item["local"], 16)
    return Frame(item["cmd"], *ids, item["rport"], item["lport"], payload)


def _payload(item: dict[str, Any]) -> bytes:
    if "hex" in item:
        return bytes.fromhex(item["hex"])
    if item["cmd"] in (REWIND, WND_SIZE):
        return u32(item["u32"])
    return str(item.get("text", "")).encode()


def _link_event(chunk: dict[str, Any], hop: str) -> Moment:
    kind, _, direction = chunk["note"].partition(" ")
    return Moment(chunk["t_ms"], kind, hop, direction[:1])


def _written(api: list[dict[str, Any]]) -> bytes:
    """All that a node wrote, if it had one stream."""
    calls = [item["call"].split() for item in api if "call" in item]
    return b"".join(pattern(int(call[2])) for call in calls if call[0] == "write")


@functools.cache
def pattern(size: int) -> bytes:
    """What the recorded applications wrote for ``write id size``: Marsaglia's xorshift32.

    Found from the bytes that 06b holds; every SHA-256 in the recordings confirms it.
    """
    value, out = 2463534242, bytearray(size)
    for index in range(size):
        value ^= value << 13 & 0xFFFFFFFF
        value ^= value >> 17
        value ^= value << 5 & 0xFFFFFFFF
        out[index] = value & 0xFF
    return bytes(out)


def parse_id(text: str) -> int:
    """A node id from its text form in the recordings."""
    return int.from_bytes(base64.urlsafe_b64decode(text + "="), "big")
