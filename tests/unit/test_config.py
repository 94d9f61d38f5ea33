"""Config: what it refuses and how it says so, what it takes from the environment, that it is a value."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astranet_gevent import AstraNet, Config, ConfigError, Role
from astranet_gevent.address import LinkAddress

from .tools import PROPERTY

DEFAULTS = Config()
NUMBERS = [field.name for field in dataclasses.fields(Config) if type(field.default) in (int, float)]
WHOLE_NUMBERS = [name for name in NUMBERS if type(getattr(DEFAULTS, name)) is int]
SECONDS = [name for name in NUMBERS if name not in WHOLE_NUMBERS]


def made(**settings: Any) -> Config:
    """A Config of settings whose names come from elsewhere."""
    return Config(**settings)


def refusal(**settings: Any) -> str:
    """What a Config says when it refuses a value."""
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    return str(caught.value)


def test_every_number_has_been_found() -> None:
    assert len(NUMBERS) >= 20
    assert {"handshake_timeout", "announce_interval", "rejoin_min"} <= set(SECONDS)
    assert {"frame_size", "backlog", "relay_bytes", "max_window"} <= set(WHOLE_NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_range_that_a_refusal_names_is_the_one_that_holds(name: str) -> None:
    # The range is read from the text.
    low, high = (float(bound) if "." in bound else int(bound) for bound in refusal(**{name: -1}).rpartition(" ")[2].split(".."))
    assert low <= getattr(DEFAULTS, name) <= high
    # Wide enough that the pairs which depend on each other do not get in the way.
    room = {"rejoin_min": 0.01, "rejoin_max": 24 * 3600.0, "keepalive_interval": 0.05, "keepalive_timeout": 24 * 3600.0}
    for bound in (low, high):
        assert getattr(made(**{**room, name: bound}), name) == bound
    step = 1 if name in WHOLE_NUMBERS else 0.0001
    for outside in (-1, low - step, high + step, 10**30):
        assert f"{name} {outside} is not within {low}..{high}" == refusal(**{**room, name: outside})


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number(name: str) -> None:
    values: list[Any] = [None, "10", b"10", True, [1], 1j]
    for value in values:
        assert refusal(**{name: value}).startswith(f"{name} {value!r} is not a ")


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_no_fractions_where_things_are_counted(name: str) -> None:
    value = float(getattr(DEFAULTS, name))
    assert refusal(**{name: value}) == f"{name} {value!r} is not a whole number"


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_that_are_none(name: str) -> None:
    for value in (float("nan"), float("inf"), -1e-9):
        assert refusal(**{name: value}).startswith(f"{name} {value} is not within ")


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_may_be_whole(name: str) -> None:
    room = {"rejoin_min": 1, "rejoin_max": 60, "keepalive_interval": 1, "keepalive_timeout": 100}
    # What is only ever a fraction of a second has zero.
    value = 0 if name == "busy_poll" else 60
    assert getattr(made(**{**room, name: value}), name) == value


@pytest.mark.parametrize("name", ["loopback", "follow"])
@pytest.mark.parametrize("value", [0, 1, None, "yes"])
def test_flags_are_bools(name: str, value: object) -> None:
    assert refusal(**{name: value}) == f"{name} {value!r} is not a bool"


def test_bounds_that_depend_on_each_other() -> None:
    assert refusal(rejoin_min=5.0, rejoin_max=4.0) == "rejoin_max 4.0 is below rejoin_min 5.0"
    assert Config(rejoin_min=5.0, rejoin_max=5.0).rejoin_max == 5.0
    assert "keepalive_timeout 5.0" in refusal(keepalive_timeout=5.0)
    assert "keepalive_interval 100" in refusal(keepalive_interval=100)


# -- who and where ----------------------------------------------------------------------------------------------------------


def test_roles() -> None:
    assert DEFAULTS.role is Role.BOTH
    for role in Role:
        assert Config(role=role).role is role
        assert Config(role=role.value).role is role  # type: ignore[arg-type]
    others: list[Any] = ["CLIENT", "", None, 1, []]
    for value in others:
        text = refusal(role=value)
        assert text.startswith(f"role {value!r} is not one of ")
        assert all(repr(role.value) in text for role in Role)


def test_what_the_roles_do() -> None:
    assert {role for role in Role if role.announces} == {Role.SERVER, Role.BOTH, Role.ROUTER}
    assert {role for role in Role if role.follows} == {Role.CLIENT, Role.BOTH, Role.ROUTER}


@pytest.mark.parametrize(
    ("written", "env", "suffix"),
    [
        ((), (), ""),
        (("x", "y"), ("x", "y"), ".x.y"),
        (["x"], ("x",), ".x"),
        ("staging", ("staging",), ".staging"),
        ("a.b", ("a.b",), ".a.b"),
    ],
)
def test_env(written: Any, env: tuple[str, ...], suffix: str) -> None:
    config = Config(env=written)
    assert config.env == env
    assert config.env_suffix == suffix


@pytest.mark.parametrize("value", [None, 7, ("",), ("a", ""), ("a", 7), {"a"}, "", ("x" * 129,), ("\ud800",)])
def test_env_that_is_refused(value: Any) -> None:
    assert refusal(env=value).startswith("env ")


@pytest.mark.parametrize("name", ["listen", "join", "advertise"])
def test_addresses_of_all_kinds(name: str) -> None:
    config = made(**{name: [("10.0.0.1", 80), "[::1]:81", "unix:/run/x"]})
    expected = (LinkAddress("tcp", "10.0.0.1", 80), LinkAddress("tcp", "::1", 81), LinkAddress("unix", "/run/x"))
    assert getattr(config, name) == expected
    assert getattr(made(**{name: ()}), name) == ()


@pytest.mark.parametrize("name", ["listen", "join", "advertise"])
@pytest.mark.parametrize(
    "value", [("10.0.0.1", 80), "10.0.0.1:80", 80, LinkAddress("tcp", "10.0.0.1", 80), ["nonsense"], [("h", 65536)], [None]]
)
def test_addresses_that_are_refused(name: str, value: Any) -> None:
    assert refusal(**{name: value}).startswith(f"{name} ")


def test_only_advertise_may_be_left_to_the_node() -> None:
    assert DEFAULTS.advertise is None
    assert refusal(listen=None).startswith("listen None ")
    assert refusal(join=None).startswith("join None ")


# -- a value ----------------------------------------------------------------------------------------------------------------


def test_is_a_frozen_value() -> None:
    config = Config(join=["h:1"], env="x", role="client")  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.backlog = 2  # type: ignore[misc]
    assert config == Config(join=(LinkAddress("tcp", "h", 1),), env=("x",), role=Role.CLIENT)
    assert hash(config) == hash(dataclasses.replace(config))
    assert pickle.loads(pickle.dumps(config)) == config
    assert config != DEFAULTS


def test_replacing_verifies_too() -> None:
    with pytest.raises(ConfigError, match=r"backlog 0 is not within 1\.\."):
        dataclasses.replace(DEFAULTS, backlog=0)
    with pytest.raises(ConfigError, match=r"backlog 0 is not within 1\.\."):
        AstraNet(DEFAULTS, backlog=0)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'backlogs'.* backlog,"):
        AstraNet(backlogs=3)


# -- the environment --------------------------------------------------------------------------------------------------------

H1, H2 = LinkAddress("tcp", "h1", 1), LinkAddress("tcp", "h2", 2)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {}),
        ({"ASTRANET_JOIN": "", "MPXROUTER": "", "ASTRANET_LISTEN": "", "SKYNET_BIND": "", "ASTRANET_ENV": ""}, {}),
        ({"ASTRANET_JOIN": "h1:1, h2:2"}, {"join": (H1, H2)}),
        ({"MPXROUTER": "h1:1"}, {"join": (H1,)}),
        ({"MPXROUTER": "h1:1", "ASTRANET_JOIN": "h2:2"}, {"join": (H2,)}),
        ({"MPXROUTER": "h1:1", "ASTRANET_JOIN": ""}, {"join": (H1,)}),
        ({"ASTRANET_LISTEN": "h1:1,"}, {"listen": (H1,)}),
        ({"SKYNET_BIND": ":80"}, {"listen": (LinkAddress("tcp", "", 80),)}),
        ({"SKYNET_BIND": ":80", "ASTRANET_LISTEN": "unix:/run/x"}, {"listen": (LinkAddress("unix", "/run/x"),)}),
        ({"ASTRANET_ENV": "staging"}, {"env": ("staging",)}),
        ({"ASTRANET_ENV": ".x.y"}, {"env": ("x", "y")}),
        ({"ASTRANET_BUSY_POLL": "0"}, {"busy_poll": 0.0}),
        ({"ASTRANET_BUSY_POLL": " 2e-4"}, {"busy_poll": 2e-4}),
        ({"ASTRANET_BUSY_POLL": ""}, {}),
        ({"ASTRANET_OTHER": "1", "JOIN": "h1:1"}, {}),
    ],
)
def test_from_environ(environ: dict[str, str], expected: dict[str, Any]) -> None:
    assert Config.from_environ(environ) == made(**expected)


def test_overrides_win_over_the_environment() -> None:
    environ = {"ASTRANET_JOIN": "h1:1", "ASTRANET_ENV": "x"}
    config = Config.from_environ(environ, join=[H2], backlog=7)
    assert config == Config(join=(H2,), env=("x",), backlog=7)


def test_the_environment_of_the_process_is_read_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRANET_JOIN", "h1:1")
    assert Config.from_environ().join == (H1,)
    assert Config().join == ()


@pytest.mark.parametrize("variable", ["ASTRANET_JOIN", "ASTRANET_LISTEN", "MPXROUTER", "SKYNET_BIND"])
def test_bad_addresses_in_the_environment_name_their_variable(variable: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_environ({variable: "h1:1,h2"})
    assert variable in str(caught.value)
    assert "'h2'" in str(caught.value)


@pytest.mark.parametrize("text", [".", "a..b", "x" * 200])
def test_a_bad_environment_names_its_variable(text: str) -> None:
    with pytest.raises(ConfigError, match="ASTRANET_ENV"):
        Config.from_environ({"ASTRANET_ENV": text})


@pytest.mark.parametrize("text", ["fast", "-1", "1", "nan", "inf", "0,1"])
def test_a_bad_time_in_the_environment_names_its_variable(text: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable ASTRANET_BUSY_POLL: .*{text}"):
        Config.from_environ({"ASTRANET_BUSY_POLL": text})


variables = st.sampled_from(["ASTRANET_JOIN", "MPXROUTER", "ASTRANET_LISTEN", "SKYNET_BIND", "ASTRANET_ENV", "ASTRANET_BUSY_POLL"])


@PROPERTY
@given(st.dictionaries(variables, st.text(max_size=20)))
def test_the_environment_raises_nothing_else(environ: dict[str, str]) -> None:
    said = ""
    try:
        Config.from_environ(environ)
    except ConfigError as error:
        said = str(error)
    assert not said or any(variable in said for variable in environ)
