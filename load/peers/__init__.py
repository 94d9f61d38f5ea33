"""What else a user of Python might take for many streams between two processes: for `bench.py --peers`, a file for each.

A file has `commands()`, which are those of a server and a client as `ends.end()` gives them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass

from harness import Commands


@dataclass(frozen=True)
class Peer:
    #: The file here.
    module: str
    #: What a stream is.
    title: str


#: By the name of the package, to import and to install.
PEERS = {
    "h2": Peer("h2_streams", "HTTP/2 streams"),
    "paramiko": Peer("paramiko_channels", "SSH channels, with AES"),
    "zerorpc": Peer("zerorpc_calls", "calls"),
    "uvloop": Peer("uvloop_tcp", "TCP connections"),
    "libp2p": Peer("yamux_streams", "yamux streams"),
}


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def version(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"


def commands(name: str) -> Commands:
    """Of a server or a client, whichever is asked of it."""
    module = importlib.import_module(f"peers.{PEERS[name].module}")
    return module.commands()  # type: ignore[no-any-return]
