"""The number of the thread that runs, also in programs whose ``_thread`` module gevent has patched: there each greenlet has its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gevent.monkey import get_original

__all__ = ["get_ident"]

get_ident: Final[Callable[[], int]] = get_original("_thread", "get_ident")
