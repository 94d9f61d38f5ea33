"""Streams by service name: any number of them over one TCP connection, for gevent. See README.md."""

# ruff: noqa: E402 - the build is chosen before any module that there may be two of.
from .builds import choose_build

choose_build(__path__)

from .address import format_node_id, parse_node_id
from .config import Config, Role
from .errors import (
    AstraNetError,
    ConcurrentUseError,
    ConfigError,
    DialRefusedError,
    DialTimeout,
    ForkedError,
    LimitError,
    LinkLostError,
    LocalProtocolError,
    NameInUseError,
    NoRouteError,
    PeeringTimeout,
    RemoteProtocolError,
    SelfJoinError,
    ServiceNotFoundError,
    StreamBrokenPipeError,
    StreamClosedError,
    StreamNotConnectedError,
    StreamResetError,
    StreamTimeout,
    StreamWouldBlockError,
    WrongThreadError,
)
from .joining import LinkListener, Peering
from .mesh import AstraNet
from .protocol.registry import Service
from .protocol.routing import Route
from .protocol.selectors import HashRing, RoundRobin
from .transport.link import Link
from .transport.listener import Listener
from .transport.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "AstraNet",
    "AstraNetError",
    "ConcurrentUseError",
    "Config",
    "ConfigError",
    "DialRefusedError",
    "DialTimeout",
    "ForkedError",
    "HashRing",
    "LimitError",
    "Link",
    "LinkListener",
    "LinkLostError",
    "Listener",
    "LocalProtocolError",
    "NameInUseError",
    "NoRouteError",
    "Peering",
    "PeeringTimeout",
    "RemoteProtocolError",
    "Role",
    "RoundRobin",
    "Route",
    "SelfJoinError",
    "Service",
    "ServiceNotFoundError",
    "Stream",
    "StreamBrokenPipeError",
    "StreamClosedError",
    "StreamNotConnectedError",
    "StreamResetError",
    "StreamTimeout",
    "StreamWouldBlockError",
    "WrongThreadError",
    "format_node_id",
    "parse_node_id",
]
