"""The package as a whole: the direction of its imports, no side effects of them, its metadata."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import astranet_gevent

ROOT = Path(__file__).resolve().parent.parent
CHECK_IMPORTS = ROOT / "tools" / "check_imports.py"
DISTRIBUTION = "astranet-gevent"
TIMEOUT = 60.0

# Imports every module of the package, each as if it were the first, and says what that changed.
IMPORT_ALL = """
import os, pkgutil, signal, socket, sys, threading
import gevent.monkey
from gevent._hub_local import get_hub_if_exists

def state():
    yield "hub", get_hub_if_exists()
    yield "threads", threading.enumerate()
    yield "monkey patches", dict(gevent.monkey.saved)
    yield "socket class", socket.socket
    yield "signal handlers", [signal.getsignal(number) for number in signal.valid_signals()]
    yield "environment", dict(os.environ)
    yield "sys.path", list(sys.path)
    if os.path.isdir("/proc/self/fd"):
        yield "descriptors", sorted(os.listdir("/proc/self/fd"))

import importlib
import gevent.pywsgi, gevent.server, logging, ssl  # what they do on import is not ours
before = dict(state())
package = importlib.util.find_spec("astranet_gevent")
names = ["astranet_gevent"] + [
    module.name
    for module in pkgutil.walk_packages(package.submodule_search_locations, "astranet_gevent.")
]
# What locust does on import (gevent's patches) is not ours either, and it cannot be done before: they go with the first look.
names.remove("astranet_gevent.locust")
for name in names:
    for loaded in [loaded for loaded in sys.modules if loaded.startswith("astranet_gevent")]:
        del sys.modules[loaded]
    importlib.import_module(name)
after = dict(state())
assert len(names) > 10, names
changed = [what for what in before if before[what] != after[what]]
assert not changed, {what: (before[what], after[what]) for what in changed}
"""


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def check_imports(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(str(CHECK_IMPORTS), *arguments)


def test_imports_point_one_way() -> None:
    result = check_imports()
    assert result.returncode == 0, result.stderr


UPWARD = "imports astranet_gevent.mesh, which lies above it"
WRONG = {
    "upward": ("config.py", "from . import mesh", UPWARD),
    "upward in a function": ("config.py", "def f():\n    from .mesh import x", UPWARD),
    "upward for a type": ("errors.py", "if TYPE_CHECKING:\n    from . import mesh", UPWARD),
    "upward from a package": ("protocol/link.py", "from ..mesh import x", UPWARD),
    "sideways": ("joining.py", "import astranet_gevent.announcing", "lies beside it"),
    "out of the package": ("mesh.py", "from tests import conftest", "no part of the package"),
    "clock in the protocol": ("protocol/link.py", "import time", "reads no clock"),
    "gevent in the protocol": ("protocol/link.py", "from gevent import spawn", "does no IO"),
    "circle": ("protocol/stream.py", "from .link import x", "imports in a circle"),
    "unknown module": ("status/page.py", "", "no layer"),
}


@pytest.mark.parametrize(("path", "text", "complaint"), WRONG.values(), ids=WRONG)
def test_wrong_imports_are_found(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    package = tmp_path / "astranet_gevent"
    right = {
        "__init__.py": "from .mesh import x",
        "mesh.py": "from .transport import link",
        "announcing.py": "",
        "transport/__init__.py": "",
        "transport/link.py": "from ..protocol.link import y",
        "protocol/__init__.py": "",
        "protocol/link.py": "import struct\nfrom . import stream",
        "protocol/stream.py": "from ..errors import E",
        "errors.py": "",
    }
    write_files(package, right)
    result = check_imports(str(tmp_path))
    assert result.returncode == 0, result.stderr
    write_files(package, {path: right.get(path, "") + "\n" + text})
    result = check_imports(str(tmp_path))
    assert result.returncode == 1
    assert complaint in result.stderr


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_importing_does_nothing(tmp_path: Path) -> None:
    result = run("-c", IMPORT_ALL, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_version_is_said_in_one_place() -> None:
    assert importlib.metadata.version(DISTRIBUTION) == astranet_gevent.__version__


def test_requires_gevent_and_greenlet_only() -> None:
    requirements = importlib.metadata.requires(DISTRIBUTION) or []
    required = {re.split(r"[^\w.-]", text)[0] for text in requirements if "extra ==" not in text}
    assert required == {"gevent", "greenlet"}


def test_type_hints_are_shipped() -> None:
    assert (Path(astranet_gevent.__file__).parent / "py.typed").is_file()
