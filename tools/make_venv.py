"""Make a virtual environment with this project installed in it: `make_venv.py FOLDER EXTRA`.

Runs under whatever `python3` is, so it has to parse under versions that it then refuses.
"""

import os
import shutil
import subprocess
import sys
from typing import NoReturn

OLDEST = (3, 10)


def complain(problem: str, advice: str) -> NoReturn:
    sys.exit(f"make_venv: {problem}\n           {advice}")


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: make_venv.py FOLDER EXTRA")
    folder, extra = sys.argv[1:]
    if sys.version_info < OLDEST:
        complain(
            "{} is Python {}.{}, and 3.10 is the oldest that works".format(sys.executable, *sys.version_info[:2]),
            "choose another: make PYTHON=/path/to/python3.12 ...",
        )
    try:
        import ensurepip  # noqa: F401  (Debian and Ubuntu ship it apart from Python)
    except ImportError:
        complain(
            f"{sys.executable} cannot make virtual environments: ensurepip is missing",
            "on Debian and Ubuntu: apt install python3-venv",
        )
    if os.path.exists(folder) and not os.path.exists(os.path.join(folder, "pyvenv.cfg")):
        complain(
            f"{folder} exists and is not a virtual environment; it would be deleted",
            "remove it yourself, or choose another: make VENV=folder ...",
        )
    print("making {} with Python {}.{}.{}".format(folder, *sys.version_info[:3]), flush=True)
    # What is left of an older attempt, or of another interpreter, would shine through.
    shutil.rmtree(folder, ignore_errors=True)
    python = os.path.join(folder, "bin", "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", folder],
        [*install, "--editable", f".[{extra}]"],
    ):
        status = subprocess.call(command)
        if status:
            sys.exit("make_venv: `{}` ended with status {}".format(" ".join(command), status))


main()
