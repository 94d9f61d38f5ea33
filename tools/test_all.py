"""Run the test suite with every Python from 3.10 to 3.14 that this machine has.

Each version gets a virtual environment of its own in .venvs/, made anew when pyproject.toml
changes. Arguments are passed on to pytest. The status is 0 only if at least one version was found,
and none failed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SUITE_TIMEOUT = 1200.0  # seconds; `make test` is to take less than 300 on a slow machine
PROBE = "import sys, ensurepip, venv; print('%d.%d.%d' % sys.version_info[:3])"
PROBE_TIMEOUT = 20.0  # seconds; a shim of pyenv may take one to find out that it has nothing


class Interpreter(NamedTuple):
    path: Path
    version: str  # with its micro part, as "3.12.1"


class Result(NamedTuple):
    version: str
    outcome: str  # "passed", or what went wrong
    detail: str
    seconds: float = 0.0


def main(arguments: list[str]) -> int:
    results = []
    for version in VERSIONS:
        interpreter = find(version)
        if interpreter is None:
            print(f"Python {version}: not found", flush=True)
            results.append(Result(version, "not found", ""))
            continue
        print(f"Python {version}: {interpreter.version}, {interpreter.path}", flush=True)
        results.append(run(interpreter, version, arguments))
    print_table(results)
    tried = [result.outcome for result in results if result.outcome != "not found"]
    if not tried:
        print(f"none of Python {', '.join(VERSIONS)} found", file=sys.stderr)
    return 0 if tried and set(tried) == {"passed"} else 1


def find(version: str) -> Interpreter | None:
    """The first interpreter of this version that runs and can make virtual environments."""
    for path in candidates(version):
        try:
            probe = subprocess.run(
                [path, "-c", PROBE],
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        # Asked for its version, because a name promises nothing: pyenv's shims exist for versions
        # that are installed but not chosen, and then fail.
        if probe.returncode == 0 and probe.stdout.startswith(f"{version}."):
            return Interpreter(path, probe.stdout.strip())
    return None


def candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        yield Path(sys.executable)
    for place in os.get_exec_path():
        if found := shutil.which(name, path=place):
            yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv/python")
    for folder in (pyenv / "versions", uv):
        # The newest first: 3.12.10 before 3.12.9.
        yield from sorted(folder.glob(f"*/bin/{name}"), key=numbers, reverse=True)


def numbers(path: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", path.parent.parent.name)]


def run(interpreter: Interpreter, version: str, arguments: list[str]) -> Result:
    started = time.monotonic()
    folder = ROOT / ".venvs" / version
    if not prepare(interpreter, folder):
        return Result(version, "FAILED", "could not be set up", time.monotonic() - started)
    log = folder / "pytest.xml"
    log.unlink(missing_ok=True)
    command = [str(folder / "bin/pytest"), "-q", "-p", "no:cacheprovider", f"--junit-xml={log}"]
    try:
        status = subprocess.call([*command, *arguments], cwd=ROOT, timeout=SUITE_TIMEOUT)
    except subprocess.TimeoutExpired:
        detail = f"not done after {SUITE_TIMEOUT:.0f} s"
        return Result(version, "FAILED", detail, time.monotonic() - started)
    detail = summary(log) or f"pytest ended with status {status}"
    seconds = time.monotonic() - started
    return Result(version, "passed" if status == 0 else "FAILED", detail, seconds)


def prepare(interpreter: Interpreter, folder: Path) -> bool:
    """Make the version's environment, unless it is there and still right."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    wanted.update(f"{interpreter.path} {interpreter.version}".encode())
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text() == wanted.hexdigest():
        return True
    folder.parent.mkdir(exist_ok=True)
    command = [str(interpreter.path), "tools/make_venv.py", str(folder), "test"]
    if subprocess.call(command, cwd=ROOT):
        return False
    stamp.write_text(wanted.hexdigest())
    return True


def summary(log: Path) -> str:
    """The counts of a report in JUnit's format; nothing if there is none, as after a crash."""
    try:
        match = re.search(r"<testsuite [^>]*>", log.read_text(encoding="utf-8"))
    except OSError:
        return ""
    counts = dict(re.findall(r'(errors|failures|skipped|tests)="(\d+)"', match[0])) if match else {}
    if not counts:
        return ""
    bad = int(counts["errors"]) + int(counts["failures"])
    good = int(counts["tests"]) - bad - int(counts["skipped"])
    return f"{good} passed, {bad} failed, {counts['skipped']} skipped"


def print_table(results: list[Result]) -> None:
    print()
    for result in results:
        seconds = f"{result.seconds:5.0f} s" if result.seconds else ""
        print(f"Python {result.version:5} {result.outcome:9} {seconds:8} {result.detail}".rstrip())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
