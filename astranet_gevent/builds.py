"""Two builds of the hot path: compiled, or the pure Python that it was compiled from. This is the only place that tells them apart."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from importlib.machinery import BYTECODE_SUFFIXES, SOURCE_SUFFIXES, FileFinder, SourceFileLoader, SourcelessFileLoader
from typing import Final

__all__ = ["choose_build", "describe_build"]

# A module that is compiled whenever any is.
_SAMPLE: Final = "astranet_gevent.transport.stream"


def choose_build(path: Iterable[str]) -> None:
    """Have the sources of a package imported although compiled modules lie beside them, if ASTRANET_GEVENT_PURE is set to other than 0.

    Called by the package, with its ``__path__``, when none of its modules has been imported yet.
    """
    if os.environ.get("ASTRANET_GEVENT_PURE", "") in ("", "0"):
        return
    for folder in path:
        # What the import system would put there itself, but for the suffixes of compiled modules.
        finder = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES))
        sys.path_importer_cache[folder] = finder


def describe_build() -> str:
    """``pure Python`` or ``compiled``, as the modules that are loaded say it."""
    module = sys.modules[_SAMPLE]
    if os.path.splitext(module.__file__ or "")[1] in (".py", ".pyc"):
        return "pure Python"
    # Compiled functions are of a type in a module that Cython names after itself, as _cython_3_1_2.
    version = re.search(r"\d+(_\d+)+", type(module.check_timeout).__module__)
    return f"compiled with Cython {version[0].replace('_', '.')}" if version else "compiled"
