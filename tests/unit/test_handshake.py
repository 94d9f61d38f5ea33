"""The handshake: taken and refused as the original does, and whatever a peer sends, nothing but a protocol error comes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from astranet_gevent.errors import RemoteProtocolError
from astranet_gevent.protocol.handshake import ORIGINAL, OURS, Capabilities, Handshake, decode_handshake, encode_handshake

from .tools import PROPERTY

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@PROPERTY
@given(st.text(max_size=60))
@example("127.0.0.1:1234")
@example("")
def test_ours_is_read_back(address: str) -> None:
    handshake = decode_handshake(encode_handshake(address))
    assert handshake == Handshake(address, OURS)
    assert handshake.capabilities.own_kind


def test_the_original_reads_ours() -> None:
    """It wants an object with a text under RAddr, and looks at nothing else."""
    value = json.loads(encode_handshake("[::1]:80"))
    assert value["RAddr"] == "[::1]:80"
    assert next(iter(value)) == "RAddr"
    assert set(value) == {"RAddr", "astranet_gevent"}


@pytest.mark.parametrize(
    ("payload", "address"),
    [
        (b'{"RAddr":"10.0.0.1:7"}', "10.0.0.1:7"),
        (b'{"RAddr":""}', ""),
        (b"{}", ""),
        (b"null", ""),
        (b'{"RAddr":null}', ""),
        (b'{"raddr":"a:1"}', "a:1"),
        (b'{"RADDR":"a:1","other":[1,{}]}', "a:1"),
        (b'{"RAddr":"a:1","raddr":"b:2"}', "b:2"),
        (b'{"RAddr":"a:1","raddr":null}', "a:1"),
        (b' \n{"RAddr" : "a:1"}\t ', "a:1"),
        (b'{"RAddr":"\xff:1"}', "\ufffd:1"),
    ],
)
def test_taken_as_the_original_does(payload: bytes, address: str) -> None:
    handshake = decode_handshake(payload)
    assert handshake == Handshake(address, ORIGINAL)
    assert not handshake.capabilities.own_kind


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"x",
        b"{",
        b"{}x",
        b"{} {}",
        b"[]",
        b'"text"',
        b"7",
        b"true",
        b'{"RAddr":7}',
        b'{"RAddr":{}}',
        b'{"raddr":[]}',
        b"\xff",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        '{"RAddr":"a:1"}'.encode("utf-16"),
        '{"RAddr":"a:1"}'.encode("utf-32"),
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_refused_as_the_original_does(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_handshake(payload)
    assert "handshake" in str(caught.value)
    assert len(str(caught.value)) < 500


@PROPERTY
@given(st.binary(max_size=60))
def test_any_bytes(payload: bytes) -> None:
    try:
        decode_handshake(payload)
    except RemoteProtocolError:
        pass


@PROPERTY
@given(st.dictionaries(st.sampled_from(["RAddr", "raddr", "astranet_gevent", "x"]), json_values))
def test_any_object(value: dict[str, Any]) -> None:
    payload = json.dumps(value).encode()
    wrong = [item for key, item in value.items() if key.lower() == "raddr" and not isinstance(item, str | None)]
    if wrong:
        with pytest.raises(RemoteProtocolError, match="RAddr"):
            decode_handshake(payload)
    else:
        assert decode_handshake(payload).capabilities.version >= 0


# -- capabilities -----------------------------------------------------------------------------------------------------------


def capabilities(ours: Any) -> Capabilities:
    """What is understood of our own key."""
    return decode_handshake(json.dumps({"RAddr": "", "astranet_gevent": ours}).encode()).capabilities


@PROPERTY
@given(st.lists(st.sampled_from(["reset", "window", "goodbye", "pause", "reserved", ""]) | json_values, max_size=6), st.integers(1, 9))
@example([], 1)
def test_each_feature_by_its_name(features: list[Any], version: int) -> None:
    peer = capabilities({"version": version, "features": features, "later": {}})
    assert peer.own_kind
    assert peer.version == version
    for name in ("reset", "window", "goodbye", "pause"):
        assert getattr(peer, name) is (name in features)


@pytest.mark.parametrize(
    "ours",
    [
        None,
        7,
        "x",
        [],
        {},
        {"version": 1},
        {"features": ["reset"]},
        {"version": 0, "features": []},
        {"version": -1, "features": []},
        {"version": "1", "features": []},
        {"version": 1.5, "features": []},
        {"version": True, "features": []},
        {"version": None, "features": []},
        {"version": 1, "features": "reset"},
        {"version": 1, "features": {"reset": True}},
        {"version": 1, "features": None},
    ],
)
def test_what_is_malformed_counts_as_absent(ours: Any) -> None:
    assert capabilities(ours) == ORIGINAL


def test_our_key_is_taken_in_its_own_letters_only() -> None:
    payload = json.dumps({"Astranet_Gevent": {"version": 1, "features": []}}).encode()
    assert decode_handshake(payload).capabilities == ORIGINAL
