"""A part of a core for each of several processes, by Linux's control groups: what they do where each has as much as the others."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from harness import ChildFailed

MOUNTS = Path("/proc/mounts")
# Microseconds in which a process may use its part. Linux takes 1,000 at least; the shorter, the more often one stops in the middle.
PERIOD = 10_000


def missing() -> str:
    """What keeps groups from being made; nothing if they can be."""
    try:
        with Shares(0.5) as shares:
            shares.make_group()
    except (OSError, ChildFailed) as error:
        return f"it needs control groups of Linux for processor time, and leave to make them (root has it): {error}"
    return ""


def find_hierarchy(mounts: str) -> tuple[Path, bool]:
    """Where groups that limit processor time can be made, and whether they are those of version 2. Raises FileNotFoundError."""
    for line in mounts.splitlines():
        _, place, kind, options, *_ = line.split(" ")
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(place), False
        if kind == "cgroup2":
            with contextlib.suppress(OSError):
                if "cpu" in Path(place, "cgroup.subtree_control").read_text().split():
                    return Path(place), True
    raise FileNotFoundError("none are mounted")


class Shares:
    """Groups of one process each, all with the same part of a core: a ``with`` around the lives of these processes."""

    def __init__(self, part: float) -> None:
        self._quota = round(part * PERIOD)
        self._groups: list[Path] = []

    def __enter__(self) -> Shares:
        return self

    def __exit__(self, *_: object) -> None:
        left = []
        for group in self._groups:
            try:
                group.rmdir()
            except OSError as error:
                left.append(str(error))
        if left:
            raise ChildFailed(f"groups that could not be removed: {', '.join(left)}")

    def make_group(self) -> Path:
        """A group that nobody is in yet. Raises OSError."""
        root, unified = find_hierarchy(MOUNTS.read_text())
        group = Path(tempfile.mkdtemp(prefix=f"bench-{os.getpid()}-", dir=root))
        self._groups.append(group)
        if unified:
            (group / "cpu.max").write_text(f"{self._quota} {PERIOD}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(self._quota))
        return group

    def limit(self, pid: int) -> None:
        """Give a process its part, and no more. Raises ChildFailed."""
        try:
            (self.make_group() / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise ChildFailed(f"process {pid} could not be limited to a part of a core: {error}") from error
