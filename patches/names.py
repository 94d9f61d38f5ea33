"""Which names belong to the mesh, and the synthetic addresses that stand for them.

A service name becomes an address of a block that no kernel routes (239.0.0.0/8: a connect that leaks to the system is refused at once, and
no packet is sent), because many programs resolve first and connect to what they got. Peers of accepted connections get addresses of a
second block. The tables go both ways and are bounded; an address stays with its name for as long as the process lives.
"""

from __future__ import annotations

import os
import unicodedata
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any, Final

from astranet_gevent.address import parse_service
from astranet_gevent.errors import ConfigError, LimitError

__all__ = ["AddressBook", "Rules", "host_text", "is_address", "is_wildcard", "parse_binding", "parse_flag", "parse_seconds"]

WILDCARDS: Final = frozenset(("", "0.0.0.0", "::", "*"))

# Addresses in use at most, per block. A block of /8 has 16 million.
_MAX_ADDRESSES: Final = 262_144


# Seconds for which a program may be told to wait: longer than that it is a mistake, or should wait by itself.
_MAX_WAIT: Final = 3600


@dataclass(frozen=True)
class Rules:
    """What belongs to the mesh, and how long to wait for it.

    suffix:        names that end so are the mesh's and nobody else's; "" for none.
    names:         further names that are always the mesh's, as a program writes them.
    bare:          whether a name without a dot is the mesh's while the mesh knows a service of that name.
    name_wait:     seconds to wait for a name that nobody offers yet, when it is resolved or dialled.
    block:         IPv4 network of the addresses that stand for names.
    peer_block:    IPv4 network of the addresses that stand for the peers of accepted connections.
    bindings:      what a program binds when it cannot be told a name, as ``{("0.0.0.0", 8000): "users-api"}``, or ``"users-api:80"`` for a
                   service with a port. All wildcards are the same.
    """

    suffix: str = ".mesh"
    names: Collection[str] = ()
    bare: bool = True
    name_wait: float = 5.0
    block: str = "239.0.0.0/8"
    peer_block: str = "240.0.0.0/8"
    bindings: Mapping[tuple[str, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_names()
        if not isinstance(self.bare, bool):
            raise ConfigError(f"bare {self.bare!r} is not a bool")
        if not isinstance(self.name_wait, (int, float)) or not 0 <= self.name_wait <= _MAX_WAIT:
            raise ConfigError(f"name_wait {self.name_wait!r} is not within 0..{_MAX_WAIT} seconds")
        block, peer_block = (_parse_block(name, getattr(self, name)) for name in ("block", "peer_block"))
        if block.overlaps(peer_block):
            raise ConfigError(f"block {block} and peer_block {peer_block} overlap")
        self._check_bindings()

    def _check_names(self) -> None:
        if not isinstance(self.suffix, str) or (self.suffix and not _is_host_name(self.suffix.removeprefix("."))):
            raise ConfigError(f"suffix {self.suffix!r} is no end of a host name, as '.mesh' is")
        if self.suffix and not self.suffix.startswith("."):
            raise ConfigError(f"suffix {self.suffix!r} does not begin with a dot, as '.mesh' does")
        if isinstance(self.names, str):
            raise ConfigError(f"names {self.names!r} is one text, not a collection of names")
        for name in self.names:
            if not isinstance(name, str) or not _is_host_name(name):
                raise ConfigError(f"names: {name!r} is no host name")

    def _check_bindings(self) -> None:
        wildcards: dict[int, str] = {}
        for key, service in self.bindings.items():
            if not isinstance(key, tuple) or len(key) != 2 or not isinstance(key[0], str) or not isinstance(key[1], int):
                raise ConfigError(f"binding {key!r}: {service!r} is not (host, port): service name")
            if not 0 < key[1] <= 65535:
                raise ConfigError(f"binding {key!r}: port {key[1]} is not within 1..65535")
            if not parse_service(service).name:
                raise ConfigError(f"binding {key!r}: {service!r} has no name")
            if is_wildcard(key[0]) and wildcards.setdefault(key[1], service) != service:
                raise ConfigError(f"binding {key!r}: {service!r} contradicts {wildcards[key[1]]!r}: all wildcards are the same")

    def service_of(self, host: str) -> tuple[str, bool] | None:
        """The service name in a host name, and whether it is the mesh's in any case (else, if the mesh knows it).

        None for a host name that cannot be the mesh's.
        """
        host = _decode(host.rstrip("."))
        folded = host.casefold()
        if self.suffix and folded.endswith(self._folded_suffix) and len(host) > len(self.suffix):
            return host[: -len(self.suffix)], True
        if folded in self._folded_names:
            return host, True
        # An address has a dot or a colon.
        if self.bare and host and "." not in host and ":" not in host and folded != "localhost":
            return host, False
        return None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Rules:
        """Rules from ASTRANET_SUFFIX, ASTRANET_NAMES, ASTRANET_BARE and so on: ASTRANET_ and the name of the field.

        Names and bindings (``0.0.0.0:8000=users-api``) are separated by commas. ``overrides`` win. Raises ConfigError naming the variable.
        """
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field_name, parse in _PARSERS.items():
            variable = f"ASTRANET_{field_name.upper()}"
            # A suffix that is set to nothing means that there is none.
            if source.get(variable) or (field_name == "suffix" and variable in source):
                try:
                    values[field_name] = parse(source[variable])
                except ConfigError as error:
                    raise ConfigError(f"environment variable {variable}: {error}") from error
        values.update(overrides)
        return cls(**values)

    @cached_property
    def _folded_suffix(self) -> str:
        return self.suffix.casefold()

    @cached_property
    def _folded_names(self) -> frozenset[str]:
        return frozenset(name.casefold() for name in self.names)

    def binding_of(self, host: str, port: int) -> str | None:
        """The service that the rules bind in place of an address."""
        for (bound_host, bound_port), service in self.bindings.items():
            if bound_port == port and (bound_host == host or (is_wildcard(bound_host) and is_wildcard(host))):
                return service
        return None


def parse_flag(text: str) -> bool:
    """``1``, ``true``, ``yes``, ``on``, or their contraries and nothing at all, in any case. Raises ConfigError for anything else."""
    folded = text.strip().casefold()
    if folded in ("1", "true", "yes", "on"):
        return True
    if folded in ("", "0", "false", "no", "off"):
        return False
    raise ConfigError(f"{text!r} is neither yes (1, true, yes, on) nor no (0, false, no, off)")


def parse_binding(text: str) -> tuple[tuple[str, int], str]:
    """``HOST:PORT=SERVICE``: what a program binds, and the service to offer instead. Raises ConfigError."""
    address, _, service = text.partition("=")
    host, colon, port = address.strip().rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or not service.strip():
        raise ConfigError(f"{text!r} is not HOST:PORT=SERVICE, as in 0.0.0.0:8000=users-api")
    return (host.removeprefix("[").removesuffix("]"), int(port)), service.strip()


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _parse_bindings(text: str) -> dict[tuple[str, int], str]:
    return dict(parse_binding(part) for part in _parse_names(text))


def parse_seconds(text: str) -> float:
    """Seconds to wait, at most an hour. Raises ConfigError."""
    try:
        seconds = float(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a number of seconds") from error
    # Not so for "nan" either.
    if not 0 <= seconds <= _MAX_WAIT:
        raise ConfigError(f"{text!r} is not within 0..{_MAX_WAIT} seconds")
    return seconds


# How the text of an environment variable becomes a field of Rules.
_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "suffix": str.strip,
    "names": _parse_names,
    "bare": parse_flag,
    "name_wait": parse_seconds,
    "block": str.strip,
    "peer_block": str.strip,
    "bindings": _parse_bindings,
}


def _is_host_name(text: str) -> bool:
    """Whether programs could write this as a host: labels between dots, none of them empty, without white space and commas."""
    return all(part and not any(letter.isspace() or letter in ",/:@" for letter in part) for part in text.split("."))


def _parse_block(name: str, text: str) -> IPv4Network:
    try:
        network = IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"{name} {text!r} is not an IPv4 network: {error}") from error
    if network.prefixlen > 24:
        raise ConfigError(f"{name} {text!r} has {network.num_addresses} addresses: at least a /24 is needed")
    return network


def _decode(host: str) -> str:
    """Programs that speak DNS write an international name in its ASCII form."""
    if "xn--" not in host.lower():
        return host
    try:
        return host.encode("ascii").decode("idna")
    except UnicodeError:
        return host


def host_text(host: Any) -> str | None:
    """A host that a program gives, as the system would read it: up to a NUL, where C ends it, and with IDNA's forms of letters and dots.

    None for what is no text.
    """
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("utf-8", "replace")
    if not isinstance(host, str):
        return None
    host = host.partition("\0")[0]
    return host if host.isascii() else unicodedata.normalize("NFKC", host).replace("\u3002", ".")


def is_address(host: str) -> bool:
    """Whether a host is written as an IP address."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_wildcard(host: str) -> bool:
    """Whether a host to bind means every interface."""
    return host in WILDCARDS


class AddressBook:
    """Addresses of one block for things of any kind, in both directions.

    As many as ``_MAX_ADDRESSES``. Then a new thing is refused with LimitError, or with ``forgets`` the one that was used longest ago goes.
    """

    def __init__(self, block: str, *, forgets: bool = False) -> None:
        self._forgets = forgets
        self._network = _parse_block("block", block)
        first = int(self._network.network_address)
        # Neither the first nor the last address of the block: some programs take those for a network and a broadcast.
        self._first = first + 1
        self._size = min(self._network.num_addresses - 2, 2**31)
        # The prefix as text, where it ends on a dot, sorts out most other addresses at the cost of a comparison.
        self.prefix = ".".join(str(self._network.network_address).split(".")[: self._network.prefixlen // 8]) + "."
        self._addresses: dict[Any, str] = {}
        self._things: OrderedDict[str, Any] = OrderedDict()

    def address_of(self, thing: Any) -> str:
        """The address that stands for a thing; the same in every process, unless two things collide. Raises LimitError."""
        address = self._addresses.get(thing)
        if address is not None:
            if self._forgets:
                self._things.move_to_end(address)
            return address
        if len(self._addresses) >= min(_MAX_ADDRESSES, self._size // 2):
            if not self._forgets:
                raise LimitError(f"{len(self._addresses)} synthetic addresses of {self._network} are in use")
            _, forgotten = self._things.popitem(last=False)
            del self._addresses[forgotten]
        offset = zlib.crc32(repr(thing).encode()) % self._size
        while True:
            address = str(IPv4Address(self._first + offset))
            if address not in self._things:
                break
            offset = (offset + 1) % self._size
        self._addresses[thing] = address
        self._things[address] = thing
        return address

    def covers(self, address: str) -> bool:
        """Whether an address may be of the block, by how it begins; always so for those that are."""
        return self.prefix == "." or address.startswith(self.prefix)

    def thing_of(self, address: str) -> Any:
        """What an address stands for, None when it stands for nothing."""
        return self._things.get(address) if self.covers(address) else None
