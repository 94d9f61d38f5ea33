"""What else a user of Python might take for many streams between two processes: for `bench.py --peers`, a file for each.

A file has `commands()`, which are those of a server and a client as `ends.end()` gives them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

from harness import Commands

#: By the name of the package, to import and to install: the file here.
PEERS = {
    "h2": "h2_streams",
    "paramiko": "paramiko_channels",
    "zerorpc": "zerorpc_calls",
    "uvloop": "uvloop_tcp",
    "libp2p": "yamux_streams",
}


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def version(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"


def commands(name: str) -> Commands:
    """Of a server or a client, whichever is asked of it."""
    module = importlib.import_module(f"peers.{PEERS[name]}")
    return module.commands()  # type: ignore[no-any-return]
