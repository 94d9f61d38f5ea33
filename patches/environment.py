"""The patch as the environment asks for it: a node of its own, which lives as long as the process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

from gevent.lock import RLock

from astranet_gevent import AstraNet, Config
from astranet_gevent.errors import ConfigError

from .applying import Patch
from .names import Rules, parse_flag

__all__ = ["apply_from_environ", "is_wanted"]

# The one that is in force: frameworks call patch_all() in several places, and users of locust call from several greenlets.
_applied: list[Patch] = []
_applying: Final = RLock()


def apply_from_environ(
    environ: Mapping[str, str] | None = None, *, config: Mapping[str, Any] | None = None, rules: Mapping[str, Any] | None = None
) -> Patch:
    """Start a node and apply its patch as ASTRANET_JOIN, ASTRANET_LISTEN, ASTRANET_ENV, ASTRANET_BINDINGS and so on say; once.

    ``config`` and ``rules`` are fields of Config and of Rules that win over the environment. The node may dial its own services, and is
    closed at the end of the process or with ``undo()``. A second call returns the patch that is in force. Raises ConfigError naming the
    variable, LocalProtocolError when gevent has not patched ``socket``, OSError from listening.
    """
    with _applying:
        if not (_applied and _applied[0].applied):
            _applied[:] = [_start(environ, config or {}, rules or {})]
        return _applied[0]


def _start(environ: Mapping[str, str] | None, config: Mapping[str, Any], rules: Mapping[str, Any]) -> Patch:
    wanted = Config.from_environ(environ, **{"loopback": True, **config})
    names = Rules.from_environ(environ, **rules)
    if not wanted.join and not wanted.listen:
        warnings.warn("the node joins nobody and nobody can join it: set ASTRANET_JOIN (or ASTRANET_LISTEN) to HOST:PORT", stacklevel=3)
    return Patch.of_own_node(AstraNet(wanted), names)


def is_wanted(asked: Any) -> bool:
    """What ``patch_all(astranet=...)`` or ASTRANET_PATCH asks for. Raises ConfigError for what is neither yes nor no."""
    if isinstance(asked, bool):
        return asked
    try:
        return parse_flag(str(asked))
    except ConfigError as error:
        raise ConfigError(f"patch_all(astranet=...) or ASTRANET_PATCH: {error}") from error
