"""The memory in which greenlets have their Python frames: ended ones leave it to the next ones, in the compiled build.

CPython maps 16 KiB for every greenlet that it runs, and unmaps them when the greenlet ends: a quarter of the time of a server that runs
each stream in a greenlet of its own. ``_greenlet_memory.c`` keeps up to 128 of these pieces (2 MiB) for all greenlets of the process,
whoever runs them. Nothing in Python can do that, so that the pure build goes without.
"""

from __future__ import annotations

import importlib
import os

__all__ = ["keep_greenlet_memory"]


def keep_greenlet_memory() -> bool:
    """Begin to keep it, for the rest of the process; whether it is kept. Not if ``ASTRANET_GREENLET_MEMORY`` is 0."""
    if os.environ.get("ASTRANET_GREENLET_MEMORY", "") == "0":
        return False
    try:
        module = importlib.import_module("astranet_gevent._greenlet_memory")
    except ImportError:
        return False
    module.keep()
    return True
