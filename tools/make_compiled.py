"""Install the compiled variant of this project in an environment of its own: `make_compiled.py FOLDER BASE`.

BASE is an environment of make_venv.py. All that the project needs is taken from there; the project itself, as a wheel, hides what BASE has
of it. Not as it lies there: compiled modules in the checkout would be taken by every other environment too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.exit("usage: make_compiled.py FOLDER BASE")
    folder, base = (Path(argument).resolve() for argument in arguments)
    check_compiler()
    if folder.exists() and not (folder / "pyvenv.cfg").exists():
        sys.exit(f"make_compiled: {folder} exists and is no virtual environment; remove it yourself")
    print(f"making {arguments[0]}: compiling takes about a minute", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    # What an older build left would be packed as well; the compiled files themselves are made anew where they have changed.
    for old in (ROOT / "build").glob("lib*"):
        shutil.rmtree(old)
    python = base / "bin" / "python"
    run(python, "-m", "venv", "--without-pip", folder)
    packages = {
        kind: sysconfig.get_path("purelib", "posix_prefix", {"base": str(place)}) for kind, place in (("own", folder), ("base", base))
    }
    Path(packages["own"], "base.pth").write_text(packages["base"] + "\n")
    # Optimising less makes it twice as fast to compile, and tests do not measure.
    os.environ.update(ASTRANET_GEVENT_COMPILE="1", CFLAGS="-O1")
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--ignore-installed")
    run(python, *install, "--prefix", folder, ROOT)
    return 0


def check_compiler() -> None:
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    for what, missing in ((compiler, not shutil.which(compiler.split()[0])), (headers, not headers.is_file())):
        if missing:
            sys.exit(
                f"make_compiled: {what} is missing, and the compiled variant needs it (Debian and Ubuntu: apt install gcc python3-dev)"
            )


def run(*command: object) -> None:
    status = subprocess.call([str(part) for part in command], cwd=ROOT)
    if status:
        sys.exit(f"make_compiled: `{' '.join(map(str, command))}` ended with status {status}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
