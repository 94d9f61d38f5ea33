"""Build the source distribution and the wheel, and check that they hold what the repository holds.

The packages are listed by name in pyproject.toml, so a new folder of modules is easily forgotten,
and works from the checkout all the same. The build runs in a copy of the files that git knows or
would add: neither stale build folders nor ignored files can take part.
"""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "astranet_gevent"
# Written by the build, so the tree has none of them.
GENERATED = {"PKG-INFO", "setup.cfg"}
BUILD_TIMEOUT = 300.0  # seconds
# What is published is pure Python, whatever is asked for in this shell.
PLAIN = {name: value for name, value in os.environ.items() if name != "ASTRANET_GEVENT_COMPILE"}

IMPORT_ALL = f"""
import importlib, pathlib, pkgutil, sys
root = pathlib.Path(sys.argv[1]).resolve()
sys.path.insert(0, str(root))
import {PACKAGE}
names = [m.name for m in pkgutil.walk_packages({PACKAGE}.__path__, {PACKAGE!r} + ".")]
for name in names:
    module = importlib.import_module(name)
    assert root in pathlib.Path(module.__file__).parents, f"{{name}} came from {{module.__file__}}"
print(len(names) + 1)
"""


class CheckFailed(Exception):
    """What was built differs from the tree, or could not be built; the text says how."""


def main() -> int:
    try:
        with tempfile.TemporaryDirectory(prefix="check-package-") as scratch:
            check(Path(scratch))
    except CheckFailed as error:
        print(f"check_package: {error}", file=sys.stderr)
        return 1
    return 0


def check(scratch: Path) -> None:
    tracked = repository_files()
    source = scratch / "source"
    copy_files(tracked, source)
    sdist, wheel = build(source, scratch / "dist")

    with tarfile.open(sdist) as archive:
        names = [member.name for member in archive.getmembers() if member.isfile()]
    in_sdist = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in names}
    in_sdist = {name for name in in_sdist - GENERATED if ".egg-info/" not in name}
    compare("source distribution", in_sdist, tracked)
    print(f"{sdist.name}: the {len(tracked)} files of the repository, no other")

    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
        version = wheel_version(archive)
        archive.extractall(scratch / "wheel")
    # What only building takes is no part of what is installed.
    wanted = {name for name in tracked if name.startswith(f"{PACKAGE}/") and not name.endswith((".pxd", ".c"))}
    # The folder patches/ of the repository is a package inside the other one.
    wanted |= {f"{PACKAGE}/{name}" for name in tracked if name.startswith("patches/")}
    # What gevent loads stands beside it.
    wanted.add(f"{PACKAGE}_plugin.py")
    compare("wheel", in_wheel, wanted)
    if f"{PACKAGE}/py.typed" not in in_wheel:
        raise CheckFailed("py.typed is missing: type checkers would ignore the hints")
    modules = import_all(scratch / "wheel")
    print(f"{wheel.name}: the {len(wanted)} files of {PACKAGE}, no other; {modules} modules import")
    if f"-{version}-" not in wheel.name:
        raise CheckFailed(f"{wheel.name} says in its metadata that it is {version}")


def repository_files() -> set[str]:
    """What git has or would take in, relative to the root, so that new files count too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise CheckFailed(f"needs a git clone to compare with: {result.stderr.strip()}")
    names = result.stdout.split("\0")
    return {name for name in names if name and (ROOT / name).is_file()}


def copy_files(names: set[str], target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def build(source: Path, output: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel built from that."""
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(output),
        str(source),
    ]
    try:
        result = subprocess.run(command, env=PLAIN, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"the build took longer than {BUILD_TIMEOUT:.0f} s") from error
    if result.returncode:
        raise CheckFailed(f"the build failed:\n{result.stdout}{result.stderr}")
    (sdist,) = output.glob("*.tar.gz")
    (wheel,) = output.glob("*.whl")
    return sdist, wheel


def wheel_version(archive: zipfile.ZipFile) -> str:
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return str(email.message_from_bytes(archive.read(name))["Version"])


def import_all(folder: Path) -> int:
    """Import every module of the unpacked wheel; return how many there are."""
    command = [sys.executable, "-c", IMPORT_ALL, str(folder)]
    # Not from the root: there the checkout would be imported instead.
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise CheckFailed(f"a module of the wheel cannot be imported:\n{result.stderr}")
    return int(result.stdout)


def compare(what: str, found: set[str], wanted: set[str]) -> None:
    problems = [f"  not in the {what}: {name}" for name in sorted(wanted - found)]
    problems += [f"  only in the {what}: {name}" for name in sorted(found - wanted)]
    if problems:
        raise CheckFailed("\n".join([f"the {what} differs from the tree", *problems]))


if __name__ == "__main__":
    sys.exit(main())
