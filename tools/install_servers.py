"""Have the servers that the tests of client programs talk to: `install_servers.py [STAMP]`.

As root on Debian or Ubuntu it installs what is missing, and starts nothing. Elsewhere it says what to install; the tests that
need what is missing are then skipped, or fail where CI is set. ASTRANET_TEST_SERVERS=no leaves the machine alone, and skips them
everywhere.
STAMP is a file to make when nothing is missing any more.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["PACKAGES", "find_program", "missing_packages", "turned_off"]

# Debian's package, and the program that shows that it is there: each is started by the tests themselves, in a folder of their own.
PACKAGES: Final = {
    "redis-server": "redis-server",
    "mosquitto": "mosquitto",
    "nginx-light": "nginx",
    "mariadb-server-core": "mariadbd",
    "postgresql": "postgres",
    "rabbitmq-server": "rabbitmq-server",
}

# Places that are on nobody's PATH, or on root's only.
_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin", "/usr/lib/postgresql/*/bin", "/usr/lib/rabbitmq/bin")

_SWITCH: Final = "ASTRANET_TEST_SERVERS"

_POLICY: Final = Path("/usr/sbin/policy-rc.d")
# "Forbidden by policy" in the words of invoke-rc.d: packages do not start what they bring.
_FORBID: Final = "#!/bin/sh\nexit 101\n"

# Seconds. The packages have 60 MB; downloads can be broken off at any time, an installation had better not.
_DOWNLOAD_LIMIT: Final = 180.0
_INSTALL_LIMIT: Final = 240.0

_APT: Final = ("apt-get", "-qq", "-y", "-o", "Acquire::Retries=2", "-o", "DPkg::Lock::Timeout=60", "-o", "Dpkg::Use-Pty=0")
_INSTALL: Final = ("-o", "Dpkg::Options::=--force-confold", "-o", "Dpkg::Options::=--force-unsafe-io", "--no-install-recommends", "install")


def turned_off() -> bool:
    """Whether whoever runs the tests does not want the servers."""
    return os.environ.get(_SWITCH, "").lower() in ("0", "no", "off", "false")


def find_program(name: str) -> str | None:
    """The path of a server's program; what is in Debian's own folder of the server comes before the wrapper that changes the user."""
    folders = [folder for pattern in reversed(_FOLDERS) for folder in sorted(glob.glob(pattern), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([*folders, *os.get_exec_path()]))


def missing_packages() -> list[str]:
    """The packages whose programs are not on this machine."""
    return [package for package, program in PACKAGES.items() if find_program(program) is None]


def main(arguments: list[str]) -> int:
    missing = missing_packages()
    if missing and not turned_off():
        _provide(missing)
        missing = missing_packages()
    if not missing and arguments:
        Path(arguments[0]).touch()
    return 0


def _provide(missing: list[str]) -> None:
    advice = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        say(f"without these servers their tests are skipped; to have them, as root: {advice}")
        return
    started = time.monotonic()
    say(f"installing {', '.join(missing)} ({_SWITCH}=no to do without)")
    try:
        _install(missing)
    except (OSError, subprocess.SubprocessError) as error:
        say(f"that did not work: {error}; by hand: {advice}")
    else:
        say(f"done after {time.monotonic() - started:.0f} s")


def _install(missing: list[str]) -> None:
    try:
        _run(_DOWNLOAD_LIMIT, *_APT, *_INSTALL, "--download-only", *missing)
    except subprocess.CalledProcessError:
        say("the package lists are missing or old: apt-get update")
        _run(_DOWNLOAD_LIMIT, *_APT, "update")
        _run(_DOWNLOAD_LIMIT, *_APT, *_INSTALL, "--download-only", *missing)
    say("downloaded; unpacking")
    with _nothing_started():
        _run(_INSTALL_LIMIT, *_APT, *_INSTALL, *missing)


@contextlib.contextmanager
def _nothing_started() -> Iterator[None]:
    """Forbid packages to start services, unless the machine has its own rule for that."""
    try:
        with _POLICY.open("x") as file:
            file.write(_FORBID)
    except FileExistsError:
        yield
        return
    try:
        _POLICY.chmod(0o755)
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _run(limit: float, *command: str) -> None:
    """Run a command with a time limit, in a group of its own, so that what it has started ends with it."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        if status:
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace"))
            raise subprocess.CalledProcessError(status, command)


def say(text: str) -> None:
    """One line, at once."""
    print(f"install_servers: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
