"""The recordings as these tests read them: their own frame code against the recorder's."""

from __future__ import annotations

import hashlib

import pytest

from .peer import DATA, HEADER, Frame, split_frames
from .recording import FOLDER, Recording, pattern, recorded_frame

NAMES = sorted(path.stem for path in FOLDER.glob("0*.json"))


def test_every_recording_is_here() -> None:
    assert len(NAMES) == 18


@pytest.mark.parametrize("name", NAMES)
def test_frames_of_chunks_are_what_the_recorder_decoded(name: str) -> None:
    recording = Recording(name)
    for hop, connection in recording.hops.items():
        events = [event for event in recording.link_events(hop) if event.kind == "frame"]
        for direction, items in connection["frames"].items():
            ours = [event.frame for event in events if event.sender == direction[0]]
            theirs = [recorded_frame(item, b"") for item in items]
            assert [frame._replace(payload=b"") for frame in ours] == theirs
            assert [len(frame.payload) for frame in ours] == [item["len"] for item in items]


def test_payloads_made_anew_have_the_recorded_hashes() -> None:
    recording = Recording("04_transfer_1MiB")
    connection = recording.hops["link"]
    events = recording.link_events("link")
    for sender in "ab":
        sent = [event.frame for event in events if event.sender == sender]
        content = b"".join(frame.payload for frame in sent if frame.cmd == DATA)
        digests = connection[f"sha256_stream_payload {'a>b' if sender == 'a' else 'b>a'}"]
        assert list(digests.values()) == [hashlib.sha256(content).hexdigest()]
    assert pattern(1048576)[:16].hex() == "637aa07ee1eaf23dc7396d0da6781680"


def test_frames_survive_their_own_encoding_cut_anywhere() -> None:
    frames = [Frame(128, 2**64 - 1, 1, 2**32 - 1, 2, b"payload"), Frame(160)]
    data = b"".join(frame.encode() for frame in frames)
    assert split_frames(data) == (frames, b"")
    for cut in range(len(data)):
        head, rest = split_frames(data[:cut])
        tail, left = split_frames(rest + data[cut:])
        assert (head + tail, left) == (frames, b"")
    assert HEADER.size == 29
