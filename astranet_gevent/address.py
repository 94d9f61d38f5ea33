"""Node ids, link addresses and service names: their text forms and limits."""

from __future__ import annotations

import base64
import functools
import re
import secrets
from typing import NamedTuple

from .errors import ConfigError

__all__ = [
    "ANY_NODE",
    "MAX_NAME_BYTES",
    "MAX_WIRE_NAME_BYTES",
    "LinkAddress",
    "ServiceAddress",
    "decode_name",
    "encode_name",
    "format_address",
    "format_node_id",
    "new_node_id",
    "parse_address",
    "parse_dial_target",
    "parse_node_id",
    "parse_service",
]

# "Whoever is at the other end of this link" in the remote field of a frame.
ANY_NODE = 0

# The original has no limit but its frame size. 128 bytes hold any DNS label pair and keep a registry of 65536 names below 20 MB.
MAX_NAME_BYTES = 128

# The same with an environment's suffix, which may be as long: what is accepted from peers.
MAX_WIRE_NAME_BYTES = 2 * MAX_NAME_BYTES

_MAX_PORT = 0xFFFF_FFFF

# b64decode() would take "+" and "/" too, whatever its altchars are.
_NODE_ID = re.compile(r"[A-Za-z0-9_-]{11}")


class LinkAddress(NamedTuple):
    """Where links are listened for or dialled: ``kind`` is "tcp" or "unix"; ``port`` is 0 for unix."""

    kind: str
    host: str
    port: int = 0

    def __str__(self) -> str:
        return format_address(self)


class ServiceAddress(NamedTuple):
    """A service as written by a user: ``name`` may be empty (port only), ``port`` is 0 when none was given."""

    name: str
    port: int


def new_node_id() -> int:
    """A random id, 0 < id < 2**63, from the system's generator (the original's is 63 bits wide and predictable)."""
    return secrets.randbelow(2**63 - 1) + 1


def format_node_id(node_id: int) -> str:
    """The original's text form: base64url of the 8 bytes without padding, 11 characters."""
    return base64.urlsafe_b64encode(node_id.to_bytes(8, "big")).rstrip(b"=").decode("ascii")


def parse_node_id(text: str) -> int:
    """The id behind an 11-character text form; raises ConfigError for anything else."""
    if not isinstance(text, str) or not _NODE_ID.fullmatch(text):
        raise ConfigError(f"node id {text!r} must be 11 base64url characters (8 bytes)")
    return int.from_bytes(base64.urlsafe_b64decode(text + "="), "big")


def parse_address(*address: object) -> LinkAddress:
    """A LinkAddress from what users write.

    Takes ``(host, port)`` (longer IPv6 tuples too), ``"host:port"``, ``"[::1]:port"``, ``":port"``, ``"unix:/path"``,
    ``"tcp://host:port"``, or the original's two arguments ``("tcp4", ":10000")``. Raises ConfigError naming the value.
    """
    if len(address) == 2 and isinstance(address[0], str) and isinstance(address[1], str):
        return _parse_network(address[0], address[1])
    if len(address) != 1:
        raise ConfigError(f"address {address!r} is not (host, port), 'host:port' or 'unix:/path'")
    value = address[0]
    if isinstance(value, LinkAddress):
        return value
    if isinstance(value, tuple) and len(value) in (2, 4) and isinstance(value[0], str):
        scope = f"%{value[3]}" if len(value) == 4 and value[3] else ""
        return LinkAddress("tcp", value[0] + scope, _check_tcp_port(value[1], value))
    if isinstance(value, str):
        return _parse_text(value)
    raise ConfigError(f"address {value!r} is not (host, port), 'host:port' or 'unix:/path'")


def _parse_network(network: str, text: str) -> LinkAddress:
    if network == "unix":
        return _parse_text(f"unix:{text}")
    if network not in ("tcp", "tcp4", "tcp6"):
        raise ConfigError(f"network {network!r} is not one of 'tcp', 'tcp4', 'tcp6', 'unix'")
    address = _parse_text(text)
    if not address.host:
        return address._replace(host="::" if network == "tcp6" else "0.0.0.0")
    return address


def _parse_text(text: str) -> LinkAddress:
    if text.startswith("unix:"):
        path = text[5:]
        path = path[2:] if path.startswith("//") else path
        if not path:
            raise ConfigError(f"address {text!r} has no path: write 'unix:/run/mesh.sock'")
        return LinkAddress("unix", path)
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    if not colon:
        raise ConfigError(f"address {text!r} has no port: write 'host:port'")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {text!r}: put an IPv6 host in brackets, '[::1]:port'")
    return LinkAddress("tcp", host, _check_tcp_port(port, text))


def _check_tcp_port(port: object, where: object) -> int:
    if isinstance(port, str) and port.isascii() and port.isdigit() and len(port) <= 5:
        port = int(port)
    # int() by itself would take "8_0", 80.7 and True, and refuse other things with other errors.
    if not isinstance(port, int) or isinstance(port, bool):
        raise ConfigError(f"port {port!r} of address {where!r} is not a number within 0..65535")
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} of address {where!r} is not within 0..65535")
    return int(port)


def format_address(address: LinkAddress) -> str:
    """The text form that ``parse_address`` reads back."""
    if address.kind == "unix":
        return f"unix:{address.host}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def encode_name(name: str) -> bytes:
    """A service name as its bytes on the wire; raises ConfigError over 128 bytes or when it is not encodable."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(f"service name {name!r} is not valid UTF-8") from error
    if len(raw) > MAX_NAME_BYTES:
        raise ConfigError(f"service name {name!r} has {len(raw)} bytes, more than {MAX_NAME_BYTES}: shorten it")
    return raw


def decode_name(raw: bytes) -> str:
    """A name from the wire. Bytes that are not UTF-8 survive a round trip: a router must pass on what it cannot read."""
    return raw.decode("utf-8", "surrogateescape")


def parse_service(text: str) -> ServiceAddress:
    """``"name"``, ``"name:port"`` or ``":port"``; raises ConfigError for an empty text or a port outside 1..2**32-1."""
    if not isinstance(text, str) or not text:
        raise ConfigError(f"service {text!r} is not 'name', 'name:port' or ':port'")
    return _split_service(text)


# Programs dial a few names over and over: 3 us of each dial otherwise.
@functools.lru_cache(maxsize=1024)
def _split_service(text: str) -> ServiceAddress:
    name, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        encode_name(text)
        return ServiceAddress(text, 0)
    encode_name(name)
    digits = port.lstrip("0")
    # int() refuses thousands of digits with an error of its own.
    if not 0 < len(digits) <= 10 or int(digits) > _MAX_PORT:
        raise ConfigError(f"port {port} of service {text!r} is not within 1..{_MAX_PORT}")
    return ServiceAddress(name, int(digits))


def parse_dial_target(target: object) -> tuple[int, int] | ServiceAddress:
    """``(node_id, port)`` as it is, or a ServiceAddress from text; raises ConfigError naming the value."""
    if isinstance(target, ServiceAddress):
        return target
    if isinstance(target, tuple) and len(target) == 2 and all(isinstance(part, int) for part in target):
        node_id, port = target
        if not 0 < node_id < 2**64 or not 0 < port <= _MAX_PORT:
            raise ConfigError(f"dial target {target!r}: the node id must be within 1..2**64-1, the port within 1..{_MAX_PORT}")
        return node_id, port
    if isinstance(target, str):
        service = parse_service(target)
        if not service.name:
            raise ConfigError(f"dial target {target!r} has no service name; a bare port is reached as (node_id, port)")
        return service
    raise ConfigError(f"dial target {target!r} is not 'service', 'service:port' or (node_id, port)")
