"""The folder that the demo serves: its files, their sizes and their SHA-256."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Caches change while Python runs, and installed packages are no part of the Python installation.
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages"})
BLOCK = 1 << 16  # bytes


class Entry(NamedTuple):
    """One file: its path below the folder, its size in bytes, its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


def default_root() -> Path:
    """The library folder of this Python: thousands of files, tens of MB, on every machine."""
    return Path(sysconfig.get_path("stdlib"))


def read_folder(root: Path, limit: int | None = None) -> list[Entry]:
    """The first `limit` files below root in the order of their names, read from the disk now.

    Symbolic links are left out, because they may lead out of the folder, and so is what may not be
    read.
    """
    entries: list[Entry] = []
    for path in walk(root):
        if limit is not None and len(entries) >= limit:
            break
        try:
            entries.append(read_entry(root, path))
        except PermissionError:
            continue
    return entries


def walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as listing:
        items = sorted(listing, key=lambda item: item.name)
    for item in items:
        if item.is_dir(follow_symlinks=False):
            if item.name not in SKIPPED_FOLDERS:
                yield from walk(Path(item.path))
        elif item.is_file(follow_symlinks=False):
            yield Path(item.path)


def read_entry(root: Path, path: Path) -> Entry:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return Entry(path.relative_to(root).as_posix(), size, digest.hexdigest())
