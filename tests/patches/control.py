"""What client programs can ask the stage, over the mesh as anything else."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astranet_gevent import AstraNet, Peering

# The program's own node, and what joins it to the stage; set by launch.py.
mesh: AstraNet
peering: Peering


def accepted(service: str) -> int:
    """How many streams to a service the stage has accepted, ever."""
    return _ask("accepted", service)


def cut(service: str, how: str = "end") -> int:
    """Have the stage end ("end") or break ("reset") the streams to a service that are open; how many there were."""
    return _ask("cut", service, how)


def _ask(*question: Any) -> int:
    with socket.create_connection(("control.mesh", 1), 10) as sock, sock.makefile("rw") as file:
        file.write(json.dumps(question) + "\n")
        file.flush()
        return int(file.readline())
