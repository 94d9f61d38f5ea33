"""Node ids, link addresses, service names: what is read back, what is refused, and that nothing but ConfigError comes out."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from astranet_gevent import AstraNet
from astranet_gevent.address import (
    MAX_NAME_BYTES,
    LinkAddress,
    ServiceAddress,
    decode_name,
    encode_name,
    format_address,
    format_node_id,
    new_node_id,
    parse_address,
    parse_dial_target,
    parse_node_id,
    parse_service,
)
from astranet_gevent.errors import ConfigError

from .tools import PROPERTY

ids = st.integers(0, 2**64 - 1)
ports = st.integers(0, 65535)
# What a service may be called: no surrogates, since they are not UTF-8.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)

# -- node ids ---------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(ids)
@example(0)
@example(2**64 - 1)
@example(0xFBEFBEFBEFBEFBEF)  # all "-" and "_"
def test_node_id_text_is_the_originals(node_id: int) -> None:
    text = format_node_id(node_id)
    assert text == base64.urlsafe_b64encode(node_id.to_bytes(8, "big")).decode().rstrip("=")
    assert len(text) == 11
    assert parse_node_id(text) == node_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "A" * 10,
        "A" * 12,
        "A" * 22,
        "AAAAAAAAAA=",
        "AAAAA AAAAA",
        "AAAAAAAAAA\n",
        "äAAAAAAAAAA",
        "AAAA.AAAAAA",
        "AAAAAAAAA+A",
        "A/AAAAAAAAA",
    ],
)
def test_other_texts_are_no_node_ids(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_node_id(text)
    assert repr(text) in str(caught.value)


@PROPERTY
@given(st.text(st.sampled_from("ABab09-_+/= .é"), max_size=13))
def test_node_id_parser_raises_nothing_else(text: str) -> None:
    try:
        node_id = parse_node_id(text)
    except ConfigError:
        return
    assert 0 <= node_id < 2**64
    # The last character holds four bits of the id and two that are nobody's: the original ignores them too.
    assert format_node_id(node_id)[:10] == text[:10]


def test_new_ids_are_below_2_to_63_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(0 < new_node_id() < 2**63 for _ in range(1000))
    limits: list[int] = []

    def smallest(limit: int) -> int:
        limits.append(limit)
        return 0

    monkeypatch.setattr("secrets.randbelow", smallest)
    assert new_node_id() == 1
    monkeypatch.setattr("secrets.randbelow", lambda limit: limit - 1)
    assert new_node_id() == 2**63 - 1


# -- link addresses ---------------------------------------------------------------------------------------------------------

hosts = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9-]{0,20}){0,3}", fullmatch=True).filter(lambda host: host != "unix"),
    st.just(""),
)
link_addresses = st.one_of(
    st.builds(LinkAddress, st.just("tcp"), hosts, ports),
    st.builds(LinkAddress, st.just("unix"), st.from_regex(r"/?[a-z .:]{1,20}(/[a-z .:]{1,9}){0,3}", fullmatch=True), st.just(0)),
)


@PROPERTY
@given(link_addresses)
@example(LinkAddress("tcp", "::1", 0))
@example(LinkAddress("unix", "/run/a:1"))
def test_address_text_is_read_back(address: LinkAddress) -> None:
    assert parse_address(format_address(address)) == address
    assert parse_address(str(address)) == address
    assert parse_address(address) == address
    if address.kind == "tcp":
        assert parse_address((address.host, address.port)) == address


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ((("10.0.0.1", 80),), LinkAddress("tcp", "10.0.0.1", 80)),
        ((("::1", 80, 0, 0),), LinkAddress("tcp", "::1", 80)),
        (("localhost:80",), LinkAddress("tcp", "localhost", 80)),
        (("tcp://localhost:80",), LinkAddress("tcp", "localhost", 80)),
        (("[fe80::1%eth0]:80",), LinkAddress("tcp", "fe80::1%eth0", 80)),
        ((":80",), LinkAddress("tcp", "", 80)),
        (("unix:/run/mesh.sock",), LinkAddress("unix", "/run/mesh.sock")),
        (("unix:///run/mesh.sock",), LinkAddress("unix", "/run/mesh.sock")),
        (("tcp4", ":10000"), LinkAddress("tcp", "0.0.0.0", 10000)),
        (("tcp", ":10000"), LinkAddress("tcp", "0.0.0.0", 10000)),
        (("tcp6", ":10000"), LinkAddress("tcp", "::", 10000)),
        (("tcp4", "10.0.0.1:1"), LinkAddress("tcp", "10.0.0.1", 1)),
        (("unix", "/run/mesh.sock"), LinkAddress("unix", "/run/mesh.sock")),
    ],
)
def test_ways_to_write_an_address(written: tuple[Any, ...], meant: LinkAddress) -> None:
    assert parse_address(*written) == meant


@pytest.mark.parametrize(
    "written",
    [
        (),
        (None,),
        (80,),
        (b"localhost:80",),
        ("localhost",),
        ("localhost:",),
        ("localhost:http",),
        ("localhost:-1",),
        ("localhost:65536",),
        ("localhost:8_0",),
        ("localhost: 80",),
        ("localhost:٨٠",),
        ("localhost:" + "9" * 5000,),
        ("::1:80",),
        ("unix:",),
        (("localhost", None),),
        (("localhost", -1),),
        (("localhost", 65536),),
        (("localhost", 80.5),),
        (("localhost", True),),
        (("localhost", float("inf")),),
        ((80, "localhost"),),
        (("localhost", 80, 0),),
        ("udp", ":80"),
        ("localhost", 80),
        ("tcp", ":1", "x"),
    ],
)
def test_addresses_that_are_refused(written: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(*written)
    assert not written or any(str(part)[:40] in str(caught.value) for part in written)


@PROPERTY
@given(st.text(st.sampled_from("a1:[]/.%unixtcp -٣"), max_size=15))
def test_address_parser_raises_nothing_else(text: str) -> None:
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert address.kind in ("tcp", "unix")
    assert 0 <= address.port <= 65535


# -- service names ----------------------------------------------------------------------------------------------------------


@PROPERTY
@given(texts)
@example("hello-world")
@example("é" * 64)
@example("é" * 64 + "x")
@example("a" * 128)
@example("a" * 129)
@example("\U0001f600" * 32)
@example("\0")
def test_any_utf8_up_to_128_bytes_is_a_name(name: str) -> None:
    size = len(name.encode())
    if size <= 128:
        raw = encode_name(name)
        assert raw == name.encode()
        assert decode_name(raw) == name
    else:
        with pytest.raises(ConfigError, match=f"has {size} bytes, more than 128"):
            encode_name(name)


def test_the_limit_of_names() -> None:
    assert MAX_NAME_BYTES == 128
    for filler in ("a", "é", "€", "\U0001f600"):
        fits = (filler * 128)[: 128 // len(filler.encode())]
        assert encode_name(fits)
        assert parse_service(fits) == ServiceAddress(fits, 0)
        over = fits + "a" * (129 - len(fits.encode()))
        assert len(over.encode()) == 129
        for parse in (encode_name, parse_service, parse_dial_target):
            with pytest.raises(ConfigError, match="129 bytes"):
                parse(over)
        with pytest.raises(ConfigError, match="129 bytes"):
            parse_service(f"{over}:80")
        assert parse_service(f"{fits}:80") == ServiceAddress(fits, 80)


@PROPERTY
@given(st.binary(max_size=128))
def test_names_from_the_wire_survive_whatever_they_are(raw: bytes) -> None:
    assert encode_name(decode_name(raw)) == raw


@pytest.mark.parametrize("name", [chr(0xD800), f"a{chr(0xDBFF)}b"])
def test_what_is_not_encodable_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        encode_name(name)


@PROPERTY
@given(texts.filter(lambda name: len(name.encode()) <= 128), st.integers(1, 2**32 - 1))
def test_name_and_port(name: str, port: int) -> None:
    assert parse_service(f"{name}:{port}") == ServiceAddress(name, port)
    assert parse_dial_target(f"{name}:{port}") == ServiceAddress(name, port)
    assert parse_service(f":{port}") == ServiceAddress("", port)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a", ("a", 0)),
        ("a:", ("a:", 0)),
        (":", (":", 0)),
        ("a:b", ("a:b", 0)),
        ("a:b:7", ("a:b", 7)),
        ("a:²", ("a:²", 0)),
        ("a:٣", ("a:٣", 0)),
        ("a:-1", ("a:-1", 0)),
        ("a:007", ("a", 7)),
        (":4294967295", ("", 4294967295)),
    ],
)
def test_what_counts_as_a_port(text: str, meant: tuple[str, int]) -> None:
    assert parse_service(text) == meant


@pytest.mark.parametrize("text", ["", None, 7, b"a", "a:0", ":0", "a:4294967296", "a:" + "9" * 5000])
def test_services_that_are_refused(text: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_service(text)
    assert str(text)[:20] in str(caught.value)


# -- dial targets -----------------------------------------------------------------------------------------------------------


def test_eleven_characters_are_a_name_and_not_a_node_id() -> None:
    """The original takes such a name for a node id, and the service cannot be reached."""
    text = "hello-world"
    assert len(text) == 11
    assert parse_node_id(text)
    assert parse_dial_target(text) == ServiceAddress(text, 0)
    assert parse_dial_target(f"{text}:80") == ServiceAddress(text, 80)


def test_a_service_of_eleven_characters_can_be_dialled() -> None:
    with AstraNet(loopback=True) as mesh, mesh.bind("hello-world") as listener, mesh.dial("hello-world", timeout=5) as stream:
        accepted, peer = listener.accept()
        assert peer == stream.getsockname()
        accepted.close()


@PROPERTY
@given(st.integers(-1, 2**64), st.integers(-1, 2**32))
@example(0, 1)
@example(1, 0)
@example(2**64 - 1, 2**32 - 1)
@example(2**64, 1)
@example(1, 2**32)
def test_node_and_port(node_id: int, port: int) -> None:
    if 0 < node_id < 2**64 and 0 < port < 2**32:
        assert parse_dial_target((node_id, port)) == (node_id, port)
    else:
        with pytest.raises(ConfigError) as caught:
            parse_dial_target((node_id, port))
        assert repr((node_id, port)) in str(caught.value)


@pytest.mark.parametrize("target", [None, 7, b"a", ("a", 1), (1,), (1, 2, 3), [1, 2], ":80", "", (1.0, 2)])
def test_dial_targets_that_are_refused(target: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_dial_target(target)
    assert repr(target) in str(caught.value)
