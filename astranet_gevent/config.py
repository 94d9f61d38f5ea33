"""The one configuration value of a node: frozen, verified when it is made, read from the environment at one named door."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from .address import LinkAddress, encode_name, parse_address
from .errors import ConfigError

__all__ = ["Config", "Role"]

_KIB = 1024
_MIB = 1024 * _KIB


class Role(Enum):
    """What a node tells others and what it listens to, as in the original."""

    CLIENT = "client"  # hears services, follows; announces nothing
    SERVER = "server"  # announces its services; does not follow
    BOTH = "both"  # the default: both of the above
    ROUTER = "router"  # both, and passes the services of its direct peers on to the others

    @property
    def announces(self) -> bool:
        """Whether the node announces its own services and addresses."""
        return self is not Role.CLIENT

    @property
    def follows(self) -> bool:
        """Whether the node may dial the addresses that others announce."""
        return self is not Role.SERVER


# Per number: smallest and largest value that makes sense. The docstring of Config says what each is.
_RANGES: dict[str, tuple[float, float]] = {
    "handshake_timeout": (0.05, 3600),
    "keepalive_interval": (0.05, 3600),
    "keepalive_timeout": (0.1, 24 * 3600),
    "dead_host_timeout": (1, 24 * 3600),
    "frame_timeout": (0.1, 3600),
    "dial_timeout": (0.001, 24 * 3600),
    "rejoin_min": (0.01, 3600),
    "rejoin_max": (0.01, 24 * 3600),
    "announce_interval": (0.001, 60),
    "busy_poll": (0, 0.01),
    "frame_size": (1024, 65536),
    "max_window": (65536, 2**31 - 1),
    "link_window_budget": (0, 2**62),
    "process_window_budget": (0, 2**62),
    "backlog": (1, 2**31 - 1),
    "streams_per_link": (1, 2**31 - 1),
    "services_per_link": (1, 2**31 - 1),
    "paths_per_link": (1, 2**31 - 1),
    "control_frames": (64, 2**31 - 1),
    "queue_bytes": (65536, 2**40),
    # Room for a window of 64 KiB sent one byte at a time before the sender has been told to pause.
    "relay_bytes": (262144, 2**40),
    "relay_link_bytes": (262144, 2**42),
    "handshakes": (1, 2**31 - 1),
    "max_followed": (0, 2**31 - 1),
}


@dataclass(frozen=True)
class Config:
    """Every setting of a node. Times are seconds, sizes bytes; a value out of range raises ConfigError.

    Who and where:
        role: what the node announces and hears (``Role``).
        env: parts appended to every service name on the wire, so that environments do not see each other.
        loopback: whether the node may dial its own services.
        listen, join: addresses to listen on and to join at ``start()``.
        follow: whether to open direct links to nodes that announce an address; ``max_followed`` is the most of them.
        advertise: addresses announced to others as one's own; None derives them from ``listen()``, ``()`` announces none.

    Time-outs:
        handshake_timeout: a link without the peer's handshake by then is closed (10, as the original).
        keepalive_interval: a PING is sent when nothing was for that long (5, as the original).
        keepalive_timeout: a link on which nothing arrived for that long is closed (100, as the original).
        dead_host_timeout: a host that acknowledges nothing at TCP level for that long is taken for dead.
        frame_timeout: a frame that began and then stalls for that long ends its link (10, as the original).
        dial_timeout: default of ``dial()``.
        rejoin_min, rejoin_max: bounds of the back-off between attempts to join.
        announce_interval: least time between two batches of announcements on a link (0.05, as the original).
        busy_poll: longest time for which the loop asks for what is about to come, instead of sleeping, where that pays; 0 for never.

    Limits (what happens at each is in docs/design.md):
        frame_size: largest payload sent or accepted; the original reads at most 65536.
        max_window: how far the receive window of one stream may grow from 64 KiB, for peers of our own kind.
        link_window_budget, process_window_budget: bytes of window beyond 64 KiB granted to all streams together.
        backlog: default of ``bind()``.
        streams_per_link, services_per_link: entries held per link.
        paths_per_link: nodes heard of behind one relay.
        control_frames: control frames waiting on one link.
        queue_bytes: bytes of stream data waiting on one link, for small and for large frames each.
        relay_bytes, relay_link_bytes: bytes waiting in a relay for one pair of nodes in one direction, and for all pairs on one link.
        handshakes: accepted links that have not finished their handshake.
    """

    role: Role = Role.BOTH
    env: tuple[str, ...] = ()
    loopback: bool = False
    listen: tuple[LinkAddress, ...] = ()
    join: tuple[LinkAddress, ...] = ()
    follow: bool = True
    max_followed: int = 16
    advertise: tuple[LinkAddress, ...] | None = None

    handshake_timeout: float = 10.0
    keepalive_interval: float = 5.0
    keepalive_timeout: float = 100.0
    dead_host_timeout: float = 20.0
    frame_timeout: float = 10.0
    dial_timeout: float = 10.0
    rejoin_min: float = 0.5
    rejoin_max: float = 30.0
    announce_interval: float = 0.05
    busy_poll: float = 500e-6

    frame_size: int = 64 * _KIB
    # Beyond 4 MiB for streams that are read quickly only: protocol/window.py.
    max_window: int = 8 * _MIB
    link_window_budget: int = 256 * _MIB
    process_window_budget: int = 1024 * _MIB
    backlog: int = 1024
    streams_per_link: int = 1_000_000
    services_per_link: int = 65536
    paths_per_link: int = 65536
    # A stream opened costs one; a peer that makes us owe more than this without reading is not going to.
    control_frames: int = 1_048_576
    queue_bytes: int = 1 * _MIB
    # A sender is asked to pause at a sixteenth of this; the rest is for what is under way by then.
    relay_bytes: int = 16 * _MIB
    relay_link_bytes: int = 256 * _MIB
    handshakes: int = 128

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            self._check_number(name, low, high)
        for name in ("loopback", "follow"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} {getattr(self, name)!r} is not a bool")
        if not isinstance(self.role, Role):
            object.__setattr__(self, "role", _parse_role(self.role))
        object.__setattr__(self, "env", _parse_env(self.env))
        for name in ("listen", "join", "advertise"):
            object.__setattr__(self, name, _parse_addresses(name, getattr(self, name)))
        for address in self.join:
            if address.kind == "tcp" and not address.port:
                raise ConfigError(f"join: cannot join {address}: port 0 is nobody's")
        if self.rejoin_max < self.rejoin_min:
            raise ConfigError(f"rejoin_max {self.rejoin_max} is below rejoin_min {self.rejoin_min}")
        if self.keepalive_timeout <= self.keepalive_interval:
            raise ConfigError(f"keepalive_timeout {self.keepalive_timeout} must be above keepalive_interval {self.keepalive_interval}")

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        wanted = (int, float) if name in _SECONDS else (int,)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ConfigError(f"{name} {value!r} is not {'a whole number' if wanted == (int,) else 'a number'}")
        if not low <= value <= high:
            raise ConfigError(f"{name} {value} is not within {low}..{high}")

    @property
    def env_suffix(self) -> str:
        """What ``env`` appends to a service name on the wire, ``".x.y"`` or ``""``."""
        return "".join(f".{part}" for part in self.env)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        """A Config from ASTRANET_JOIN, ASTRANET_LISTEN, ASTRANET_ENV, ASTRANET_BUSY_POLL, and the original's MPXROUTER (join) and
        SKYNET_BIND (listen).

        Addresses are separated by commas, environments by dots; ``busy_poll`` is in seconds. ``overrides`` win. Raises ConfigError naming
        the variable.
        """
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field_name, names in (("join", ("ASTRANET_JOIN", "MPXROUTER")), ("listen", ("ASTRANET_LISTEN", "SKYNET_BIND"))):
            for name in names:
                if source.get(name):
                    values[field_name] = _addresses_from_environ(name, source[name])
                    break
        if source.get("ASTRANET_ENV"):
            values["env"] = _env_from_environ("ASTRANET_ENV", source["ASTRANET_ENV"])
        if source.get("ASTRANET_BUSY_POLL"):
            values["busy_poll"] = _seconds_from_environ("ASTRANET_BUSY_POLL", source["ASTRANET_BUSY_POLL"], "busy_poll")
        values.update(overrides)
        return cls(**values)


_SECONDS = frozenset(name for name in _RANGES if name.endswith(("_timeout", "_interval", "rejoin_min", "rejoin_max", "busy_poll")))

FIELD_NAMES = frozenset(field.name for field in fields(Config))


def _parse_role(value: object) -> Role:
    try:
        return Role(value)
    except ValueError as error:
        choices = ", ".join(repr(role.value) for role in Role)
        raise ConfigError(f"role {value!r} is not one of {choices}") from error


def _parse_env(value: object) -> tuple[str, ...]:
    parts = (value,) if isinstance(value, str) else value
    if not isinstance(parts, (tuple, list)) or not all(isinstance(part, str) and part for part in parts):
        raise ConfigError(f"env {value!r} is not a sequence of non-empty strings")
    try:
        encode_name("".join(f".{part}" for part in parts))
    except ConfigError as error:
        raise ConfigError(f"env {value!r} is part of every name: {error}") from error
    return tuple(parts)


def _parse_addresses(name: str, value: object) -> tuple[LinkAddress, ...] | None:
    if value is None and name == "advertise":
        return None
    if not isinstance(value, (tuple, list)) or (len(value) == 2 and isinstance(value[1], int)):
        raise ConfigError(f"{name} {value!r} is not a sequence of addresses: write [('10.0.0.1', 10000)]")
    try:
        return tuple(parse_address(item) for item in value)
    except ConfigError as error:
        raise ConfigError(f"{name} {value!r}: {error}") from error


def _addresses_from_environ(variable: str, text: str) -> tuple[LinkAddress, ...]:
    try:
        return tuple(parse_address(part.strip()) for part in text.split(",") if part.strip())
    except ConfigError as error:
        raise ConfigError(f"environment variable {variable}: {error}") from error


def _seconds_from_environ(variable: str, text: str, field_name: str) -> float:
    low, high = _RANGES[field_name]
    try:
        seconds = float(text)
    except ValueError as error:
        raise ConfigError(f"environment variable {variable}: {text!r} is not a number of seconds") from error
    if not low <= seconds <= high:
        raise ConfigError(f"environment variable {variable}: {text} s are not within {low}..{high}")
    return seconds


def _env_from_environ(variable: str, text: str) -> tuple[str, ...]:
    try:
        return _parse_env(tuple(text.strip(".").split(".")))
    except ConfigError as error:
        raise ConfigError(f"environment variable {variable}: {error}") from error
