"""The build backend: setuptools, with Cython besides when ASTRANET_GEVENT_COMPILE asks for the compiled variant.

Named in pyproject.toml. What a plain build requires cannot depend on the environment there, and nobody who wants pure Python should have
to fetch a compiler of it.
"""

from __future__ import annotations

import os
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# 3.1 is the first that takes all of the sources' syntax of Python 3.10.
CYTHON = "cython>=3.1"

Settings = dict[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiler()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compiler()]


def _compiler() -> list[str]:
    return [CYTHON] if os.environ.get("ASTRANET_GEVENT_COMPILE", "") not in ("", "0") else []
