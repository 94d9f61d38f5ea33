"""Frames: what is encoded, and the buffer against a decoder that sees the whole byte stream at once."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from astranet_gevent.errors import RemoteProtocolError
from astranet_gevent.protocol.frame import (
    COMMAND_NAMES,
    FIRST_SLAB_SIZE,
    HEADER_SIZE,
    MAX_PAYLOAD,
    RUN,
    SLAB_SIZE,
    Command,
    Frame,
    FrameBuffer,
    address_key,
    decode_u32,
    encode_frame,
    encode_u32,
    reverse_key,
    split_frames,
    split_key,
)

from .tools import PROPERTY, source_bytes

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
keys = st.binary(min_size=24, max_size=24)

# -- encoding ---------------------------------------------------------------------------------------------------------------


def test_commands_are_those_of_the_wire() -> None:
    original = {
        "SYN": 2, "ACK": 4, "SYN_ACK": 6, "FIN1": 8, "FIN2": 16, "ERR": 32, "FORCE_CLOSED": 62, "DATA": 128, "WND_SIZE": 129,
        "REWIND": 130, "PING": 160, "PONG": 161, "DIAL": 190, "HANDSHAKE": 191, "SERVICE": 192, "NO_SERVICE": 193, "FOLLOW": 194,
        "DISCOVER": 195, "RESET": 196,
    }  # fmt: skip
    assert {name: getattr(Command, name) for name in original} == original
    ours = set(COMMAND_NAMES) - set(original.values())
    assert ours == {Command.HELLO, Command.GOODBYE, Command.PAUSE, Command.RESUME, Command.BLOCKED}
    assert all(196 < command < 256 for command in ours)


def test_a_frame_by_hand() -> None:
    key = address_key(0x0102030405060708, 0x1112131415161718, 0x21222324, 0x31323334)
    expected = "80 0102030405060708 1112131415161718 21222324 31323334 00000003 616263"
    assert encode_frame(Command.DATA, key, b"abc") == bytes.fromhex(expected.replace(" ", ""))
    assert HEADER_SIZE == 29
    assert encode_frame(Command.PING, bytes(24)) == b"\xa0" + bytes(28)


@PROPERTY
@given(u64, u64, u32, u32)
def test_keys(remote: int, local: int, rport: int, lport: int) -> None:
    key = address_key(remote, local, rport, lport)
    assert len(key) == 24
    assert split_key(key) == (remote, local, rport, lport)
    assert reverse_key(key) == address_key(local, remote, lport, rport)
    assert reverse_key(reverse_key(key)) == key


@PROPERTY
@given(u32)
def test_numbers(value: int) -> None:
    assert encode_u32(value) == value.to_bytes(4, "big")
    assert decode_u32(encode_u32(value)) == (value,)


# -- the model --------------------------------------------------------------------------------------------------------------


@dataclass
class Decoded:
    """What a byte stream means."""

    frames: list[Frame]
    oversize: tuple[int, int] | None
    rest: int


def decode_at_once(data: bytes, max_payload: int) -> Decoded:
    """The naive decoder: up to the first frame that is too large."""
    frames: list[Frame] = []
    at = 0
    while len(data) - at >= 29:
        command, key, size = struct.unpack_from(">B24sI", data, at)
        if size > max_payload:
            return Decoded(frames, (command, size), len(data) - at)
        if len(data) - at < 29 + size:
            break
        frames.append((command, key, data[at + 29 : at + 29 + size]))
        at += 29 + size
    return Decoded(frames, None, len(data) - at)


def feed(buffer: FrameBuffer, data: bytes, cuts: list[int]) -> list[Frame]:
    """Give ``data`` to the buffer in pieces of the sizes ``cuts``, over and over, each as large as there is room; stop at an error."""
    frames: list[Frame] = []
    at = turn = 0
    while at < len(data) and buffer.error is None:
        space = buffer.writable()
        assert len(space), "a buffer without room would look like the end of the connection"
        count = min(len(space), cuts[turn % len(cuts)], len(data) - at)
        space[:count] = data[at : at + count]
        frames += buffer.decode(count)
        at += count
        turn += 1
        if buffer.error is None:
            assert buffer.pending < HEADER_SIZE + MAX_PAYLOAD
    return frames


def check(data: bytes, cuts: list[int], max_payload: int = MAX_PAYLOAD) -> FrameBuffer:
    """The buffer must say what the naive decoder says."""
    buffer = FrameBuffer(max_payload)
    expected = decode_at_once(data, max_payload)
    frames = feed(buffer, data, cuts)
    assert all(type(key) is bytes for _, key, _ in frames)
    assert frames == expected.frames
    if expected.oversize is None:
        assert buffer.error is None
        assert buffer.pending == expected.rest
    else:
        command, size = expected.oversize
        assert isinstance(buffer.error, RemoteProtocolError)
        name = COMMAND_NAMES.get(command, str(command))
        assert str(buffer.error) == f"{name} frame with a payload of {size} bytes, more than {max_payload}"
    return buffer


# -- the buffer -------------------------------------------------------------------------------------------------------------

small_frames = st.lists(st.tuples(st.integers(0, 255), keys, st.binary(max_size=60)), max_size=20)
cuts = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 2000)), min_size=1, max_size=8)


@PROPERTY
@given(small_frames, cuts, st.binary(max_size=28))
@example([], [1], b"")
def test_frames_cut_anywhere(frames: list[Frame], cuts: list[int], rest: bytes) -> None:
    data = b"".join(encode_frame(*frame) for frame in frames) + rest
    buffer = check(data, cuts)
    assert buffer.pending == len(rest)


@PROPERTY
@given(st.binary(max_size=400), cuts, st.integers(0, 100))
def test_any_bytes(data: bytes, cuts: list[int], max_payload: int) -> None:
    # Lengths among arbitrary bytes are huge: make half of the top bytes zero, so that frames go on.
    check(data, cuts, max_payload)
    check(data.replace(b"\xff", b"\0"), cuts, max_payload)


@PROPERTY
@given(small_frames, st.integers(0, 60), cuts)
def test_an_oversize_frame_ends_it_and_the_frames_before_are_there(frames: list[Frame], max_payload: int, cuts: list[int]) -> None:
    data = b"".join(encode_frame(*frame) for frame in frames)
    check(data, cuts, max_payload)
    check(data, [len(data) + 1], max_payload)


# Around everything where the slab may begin anew: whole frames, a few bytes less and more.
large_sizes = st.one_of(
    st.sampled_from([0, 1, MAX_PAYLOAD - 1, MAX_PAYLOAD, MAX_PAYLOAD // 2, SLAB_SIZE // 9, SLAB_SIZE // 8 - HEADER_SIZE - 65]),
    st.integers(0, MAX_PAYLOAD),
)
large_cuts = st.lists(
    st.one_of(st.sampled_from([1, 28, 29, 30, MAX_PAYLOAD, MAX_PAYLOAD + 29, SLAB_SIZE]), st.integers(3000, SLAB_SIZE)),
    min_size=1,
    max_size=6,
)


@PROPERTY
@given(st.lists(large_sizes, min_size=8, max_size=24), large_cuts)
@example([MAX_PAYLOAD] * 24, [SLAB_SIZE])
@example([*[MAX_PAYLOAD, 4] * 8, *[MAX_PAYLOAD] * 8], [SLAB_SIZE])
@example([MAX_PAYLOAD] * 17, [SLAB_SIZE - 1])
@example([MAX_PAYLOAD - 29] * 16, [MAX_PAYLOAD - 1])
@example([1, MAX_PAYLOAD] * 8, [SLAB_SIZE - 29, 28])
def test_the_slab_goes_round(sizes: list[int], cuts: list[int]) -> None:
    # Single bytes over megabytes would take seconds: they come in turn with larger pieces.
    cuts = cuts if max(cuts) > 1000 else [*cuts, 20_000]
    data = b"".join(encode_frame(index, address_key(index, 2, 3, 4), source_bytes(index * 777, size)) for index, size in enumerate(sizes))
    buffer = check(data, cuts)
    assert buffer.pending == 0


@pytest.mark.parametrize("distance", [-30, -29, -28, -1, 0, 1, 28, 29, 30])
def test_a_full_frame_that_just_fits_behind_the_others_or_just_does_not(distance: int) -> None:
    """The frame that is cut by the slab's end begins ``distance`` bytes before the last place where a full one fits."""
    place = SLAB_SIZE - MAX_PAYLOAD - HEADER_SIZE - distance
    sizes: list[int] = []
    while (left := place - sum(sizes) - len(sizes) * HEADER_SIZE) > MAX_PAYLOAD + HEADER_SIZE:
        sizes.append(60_000)
    sizes.append(left - HEADER_SIZE)
    assert 0 <= sizes[-1] <= MAX_PAYLOAD
    data = b"".join(encode_frame(128, bytes(24), source_bytes(size, size)) for size in [*sizes, *[MAX_PAYLOAD] * 9])
    for cut in (SLAB_SIZE, place + 1, place + 29):
        check(data, [cut, SLAB_SIZE])


def test_frames_do_not_change_when_the_slab_is_written_again() -> None:
    buffer = FrameBuffer()
    data = encode_frame(Command.DATA, b"k" * 24, b"first")
    first = feed(buffer, data, [1000])
    feed(buffer, encode_frame(Command.PING, b"x" * 24, b"OTHER"), [1000])
    assert first == [(Command.DATA, b"k" * 24, b"first")]


def test_the_largest_payload_and_one_byte_more() -> None:
    check(encode_frame(Command.DATA, bytes(24), bytes(MAX_PAYLOAD)), [SLAB_SIZE])
    buffer = check(encode_frame(Command.DATA, bytes(24), bytes(MAX_PAYLOAD + 1)), [SLAB_SIZE])
    assert str(buffer.error) == "DATA frame with a payload of 65537 bytes, more than 65536"


def test_an_oversize_frame_is_refused_by_its_header_alone() -> None:
    header = encode_frame(250, bytes(24))[:25] + encode_u32(2**32 - 1)
    buffer = FrameBuffer()
    good = encode_frame(Command.PING, bytes(24))
    assert feed(buffer, good + header[:-1], [1000]) == [(Command.PING, bytes(24), b"")]
    assert buffer.error is None
    assert feed(buffer, header[-1:], [1]) == []
    assert str(buffer.error) == "250 frame with a payload of 4294967295 bytes, more than 65536"


@pytest.mark.parametrize("size", [0, 1, 65536])
def test_nothing_pending_between_frames(size: int) -> None:
    buffer = FrameBuffer()
    data = encode_frame(Command.DATA, bytes(24), bytes(size))
    feed(buffer, data[:-1], [SLAB_SIZE])
    assert buffer.pending == len(data) - 1
    assert len(feed(buffer, data[-1:], [1])) == 1
    assert buffer.pending == 0


# -- what goes on to another node -------------------------------------------------------------------------------------------

# Two pairs that are relayed, from one node to two, and one that is not, from another node to the first: frames of all of them have the same
# ports.
PAIRS = [b"to-one--from-us-", b"to-two--from-us-", b"to-one--forged--"]
RELAYED = PAIRS[:2]

mixed_frames = st.lists(
    st.tuples(
        st.one_of(st.just(Command.DATA), st.sampled_from([0, Command.FIN2, Command.REWIND, 255])),
        st.builds(bytes.__add__, st.sampled_from(PAIRS), st.sampled_from([b"port-one", b"port-two"])),
        st.one_of(
            st.binary(max_size=60), st.sampled_from([bytes(4095), bytes(4096), bytes(9000), bytes(16_384), bytes(16_385), bytes(65_536)])
        ),
    ),
    max_size=24,
)


@PROPERTY
@given(mixed_frames, st.one_of(cuts, st.just([SLAB_SIZE])), st.sampled_from([50, 4095, MAX_PAYLOAD]))
def test_runs_stand_for_frames_that_are_relayed(frames: list[Frame], cuts: list[int], max_payload: int) -> None:
    """Each run for the very frames that the naive decoder finds in its place: small or large data of one pair that is relayed."""
    data = b"".join(encode_frame(*frame) for frame in frames)
    buffer = FrameBuffer(max_payload, RELAYED)
    expected = decode_at_once(data, max_payload)
    found: list[Frame] = []
    for command, key, payload in feed(buffer, data, cuts):
        if command != RUN:
            found.append((command, key, payload))
            continue
        run = list(split_frames(payload))
        assert run
        assert key in RELAYED
        assert {(each, key_of_each[:16]) for each, key_of_each, _ in run} == {(Command.DATA, key)}
        sizes = [len(each) for _, _, each in run]
        assert max(sizes) < 4096 if type(payload) is bytes else min(sizes) > 16_384
        assert len(payload) <= 2 * (MAX_PAYLOAD + HEADER_SIZE)
        found += run
    assert found == expected.frames
    assert (buffer.error is None) == (expected.oversize is None)


def test_frames_of_one_pair_stay_together_until_another_comes() -> None:
    here, there, own = (pair + b"port-one" for pair in PAIRS)
    # The ports count for nothing.
    beside = PAIRS[0] + b"another-"
    parts = [encode_frame(Command.DATA, key, b"data") for key in (here, beside, there, here, own, here, here)]
    parts.insert(6, encode_frame(Command.FIN2, here))
    found = feed(FrameBuffer(relayed=RELAYED), b"".join(parts), [SLAB_SIZE])
    assert found == [
        (RUN, PAIRS[0], parts[0] + parts[1]),
        (RUN, PAIRS[1], parts[2]),
        (RUN, PAIRS[0], parts[3]),
        (Command.DATA, own, b"data"),
        (RUN, PAIRS[0], parts[5]),
        (Command.FIN2, here, b""),
        (RUN, PAIRS[0], parts[7]),
    ]


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("missing", [1, 4, 5, HEADER_SIZE])
def test_a_run_ends_before_a_frame_that_is_not_complete(size: int, missing: int) -> None:
    """Be that as long as the one before or longer, and be its header complete or not."""
    here = PAIRS[0] + b"port-one"
    parts = [encode_frame(Command.DATA, here, bytes(length)) for length in (4, 4, size)]
    data = b"".join(parts)
    buffer = FrameBuffer(relayed=RELAYED)
    assert feed(buffer, data[:-missing], [SLAB_SIZE]) == [(RUN, PAIRS[0], parts[0] + parts[1])]
    assert buffer.pending == len(parts[2]) - missing
    assert feed(buffer, data[-missing:], [SLAB_SIZE]) == [(RUN, PAIRS[0], parts[2])]


def test_large_frames_of_one_pair_stay_together_by_turns() -> None:
    here, there, own = (pair + b"port-one" for pair in PAIRS)
    keys = [here, here, here, here, there, own, here]
    parts = [encode_frame(Command.DATA, key, source_bytes(number, MAX_PAYLOAD)) for number, key in enumerate(keys)]
    parts.insert(1, encode_frame(Command.DATA, here, source_bytes(9, 16_384)))
    buffer = FrameBuffer(relayed=RELAYED)
    # A slab that has room for all of them.
    feed(buffer, parts[0], [len(parts[0])])
    found = feed(buffer, b"".join(parts), [SLAB_SIZE])
    assert found == [
        (RUN, PAIRS[0], parts[0]),
        (Command.DATA, here, parts[1][HEADER_SIZE:]),
        (RUN, PAIRS[0], parts[2] + parts[3]),
        (RUN, PAIRS[0], parts[4]),
        (RUN, PAIRS[1], parts[5]),
        (Command.DATA, own, parts[6][HEADER_SIZE:]),
        (RUN, PAIRS[0], parts[7]),
    ]


# -- payloads that are lent -------------------------------------------------------------------------------------------------

FULL = encode_frame(Command.DATA, bytes(24), bytes(MAX_PAYLOAD))


def read_full_frames(buffer: FrameBuffer, count: int = 1) -> list[Frame]:
    """What the buffer makes of so many full frames, one at a time."""
    return [frame for _ in range(count) for frame in feed(buffer, FULL, [len(FULL)])]


large_frames = st.lists(st.tuples(st.sampled_from([4095, 4096, 4097, 20_000, 65_536, 0, 7]), st.integers(0, 255)), min_size=1, max_size=60)


@PROPERTY
@given(large_frames, st.lists(st.integers(1, 300_000), min_size=1, max_size=8), st.sets(st.integers(0, 59)), st.integers(0, 2**32))
@example([(65_536, 0)] * 60, [300_000], set(range(0, 60, 4)), 0)
@example([(65_536, 0)] * 60, [300_000], set(range(1, 60, 7)), 0)
def test_what_is_held_stays_as_it_was(frames: list[tuple[int, int]], cuts: list[int], held: set[int], seed: int) -> None:
    """Views that somebody holds are not written over, whichever of the others have been let go of."""
    wire = [encode_frame(Command.DATA, bytes(24), source_bytes(seed + number, size)) for number, (size, _) in enumerate(frames)]
    buffer = FrameBuffer()
    kept: dict[int, Any] = {}
    data, at, turn, number = b"".join(wire), 0, 0, 0
    while at < len(data):
        space = buffer.writable()
        count = min(len(space), cuts[turn % len(cuts)], len(data) - at)
        space[:count] = data[at : at + count]
        at, turn = at + count, turn + 1
        for _, _, payload in buffer.decode(count):
            assert payload == wire[number][HEADER_SIZE:]
            if number in held:
                kept[number] = payload
            number += 1
    assert number == len(frames)
    assert all(payload == wire[number][HEADER_SIZE:] for number, payload in kept.items())


def test_only_large_payloads_of_data_are_lent() -> None:
    sizes_and_commands = [(4095, Command.DATA), (4096, Command.DATA), (65_536, Command.DATA), (65_536, Command.SERVICE)]
    for size, command in sizes_and_commands:
        (frame,) = feed(FrameBuffer(), encode_frame(command, bytes(24), bytes(size)), [100_000])
        assert type(frame[2]) is (memoryview if size >= 4096 and command == Command.DATA else bytes)


def test_a_reader_who_keeps_everything_holds_a_bounded_number_of_slabs() -> None:
    buffer = FrameBuffer()
    frames = read_full_frames(buffer, 200)
    slabs = {id(payload.obj) for _, _, payload in frames if type(payload) is memoryview}
    assert 1 < len(slabs) <= 5
    assert type(frames[-1][2]) is bytes


def test_slabs_come_back() -> None:
    buffer = FrameBuffer()
    held = read_full_frames(buffer, 200)
    assert type(held[-1][2]) is bytes
    held.clear()
    slabs = set()
    for _ in range(200):
        ((_, _, payload),) = read_full_frames(buffer)
        assert type(payload) is memoryview
        slabs.add(id(payload.obj))
    assert 1 < len(slabs) <= 5


def test_a_renewed_buffer_goes_on_with_less_memory() -> None:
    """Unless a frame has begun; and what somebody holds stays as it was."""
    buffer = FrameBuffer()
    feed(buffer, FULL * 3, [len(FULL)])
    assert len(buffer.writable().obj) == SLAB_SIZE
    buffer.renew()
    assert len(buffer.writable().obj) == FIRST_SLAB_SIZE
    for cut in (1, HEADER_SIZE, len(FULL) - 1):
        assert feed(buffer, FULL[:cut], [cut]) == []
        buffer.renew()
        ((_, _, payload),) = feed(buffer, FULL[cut:], [len(FULL)])
        buffer.renew()
        assert payload == FULL[HEADER_SIZE:]
        feed(buffer, bytes(HEADER_SIZE), [HEADER_SIZE])
        assert payload == FULL[HEADER_SIZE:]


def test_renewing_again_and_again_does_not_let_a_reader_hold_more() -> None:
    """A little of each slab, kept by somebody who does not read: those of the first size count too."""
    buffer = FrameBuffer()
    little = encode_frame(Command.DATA, bytes(24), bytes(4096))
    held = []
    for _ in range(20):
        held += feed(buffer, little, [len(little)])
        held += feed(buffer, FULL * 2, [len(FULL)])
        buffer.trim()
        buffer.renew()
    assert len({id(payload.obj) for _, _, payload in held if type(payload) is memoryview}) <= 5
    assert type(held[-1][2]) is bytes


def test_slabs_of_a_link_that_was_busy_once_are_freed() -> None:
    tracemalloc.start()
    try:
        buffer = FrameBuffer()
        before = tracemalloc.get_traced_memory()[0]
        held = read_full_frames(buffer, 30)
        assert tracemalloc.get_traced_memory()[0] - before > 3 * SLAB_SIZE
        held.clear()
        buffer.trim()
        assert tracemalloc.get_traced_memory()[0] - before < 2 * SLAB_SIZE
    finally:
        tracemalloc.stop()
