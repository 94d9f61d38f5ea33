"""Programs that know nothing of the mesh use it: by name, through gevent's own sockets.

    from gevent import monkey; monkey.patch_all()
    from astranet_gevent import AstraNet, patches

    with AstraNet(join=[("router", 10000)]) as mesh, patches.apply(mesh):
        requests.get("http://users-api.mesh/")

Without a line of code: ``python -m astranet_gevent.patches --join router:10000 script.py``, or ASTRANET_PATCH=1 in the environment of a
program that gevent patches. What it does, and to what, is in docs/patches.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ != "astranet_gevent.patches":
    raise ImportError("this folder is the package astranet_gevent.patches: install astranet_gevent, and import it by that name")

if TYPE_CHECKING:
    from .applying import Patch, apply
    from .environment import apply_from_environ
    from .names import Rules

__all__ = ["Patch", "Rules", "apply", "apply_from_environ"]

_HOMES = {"Patch": "applying", "apply": "applying", "apply_from_environ": "environment", "Rules": "names"}


def __getattr__(name: str) -> Any:
    # On demand, because ``python -m astranet_gevent.patches`` imports this before gevent has patched anything, and the modules behind it
    # import ssl, which gevent wants to patch first.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
