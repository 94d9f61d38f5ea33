"""The package as a whole: the direction of its imports, no side effects of them, its metadata, its two builds."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import gevent
import greenlet
import pytest

import astranet_gevent
from astranet_gevent.builds import describe_build

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


def run(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
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


# -- two builds ----------------------------------------------------------------------------------------------------------------

# Says of each module of the package that is loaded where it came from.
LOADED = """
import sys, astranet_gevent
for name, module in sys.modules.items():
    if name.startswith("astranet_gevent."):
        print(name, module.__file__)
"""

# Asks for a module whose source lies beside something that is named like its compiled form.
FIND = """
import importlib.util, sys
sys.path.insert(0, sys.argv[1])
print(importlib.util.find_spec("package.module").origin)
"""


def compiled_modules() -> tuple[str, ...]:
    """What setup.py compiles."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES":
            names: tuple[str, ...] = ast.literal_eval(node.value)
            return names
    raise AssertionError("setup.py names no MODULES")


def loaded_modules(cwd: Path, **environment: str) -> dict[str, str]:
    result = run("-c", LOADED, cwd=cwd, **environment)
    assert result.returncode == 0, result.stderr
    return dict(line.split(" ", 1) for line in result.stdout.splitlines())


def test_what_has_types_is_compiled() -> None:
    typed = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "astranet_gevent").rglob("*.pxd")}
    assert len(typed) > 5
    assert typed <= set(compiled_modules())
    assert all((ROOT / name.replace(".", "/")).with_suffix(".py").is_file() for name in compiled_modules())


def test_all_of_a_build_or_none(tmp_path: Path) -> None:
    loaded = loaded_modules(tmp_path, ASTRANET_GEVENT_PURE="0")
    compiled = {name for name, file in loaded.items() if not file.endswith(".py")}
    assert compiled == (set() if describe_build() == "pure Python" else set(compiled_modules()))


def test_pure_python_on_request(tmp_path: Path) -> None:
    loaded = loaded_modules(tmp_path, ASTRANET_GEVENT_PURE="1")
    assert set(compiled_modules()) <= set(loaded)
    assert all(file.endswith(".py") for file in loaded.values())


@pytest.mark.parametrize(("value", "suffix"), [("", EXTENSION_SUFFIXES[0]), ("0", EXTENSION_SUFFIXES[0]), ("1", ".py")])
def test_compiled_modules_hide_their_sources_unless_asked(tmp_path: Path, value: str, suffix: str) -> None:
    files = {"__init__.py": "from astranet_gevent.builds import choose_build\nchoose_build(__path__)", "module.py": ""}
    write_files(tmp_path / "package", {**files, f"module{EXTENSION_SUFFIXES[0]}": ""})
    result = run("-c", FIND, str(tmp_path), cwd=tmp_path, ASTRANET_GEVENT_PURE=value)
    assert result.stdout.strip() == str(tmp_path / "package" / f"module{suffix}"), result.stderr


def test_version_says_what_is_in_use(tmp_path: Path) -> None:
    result = run("-m", "astranet_gevent", "--version", cwd=tmp_path, ASTRANET_GEVENT_PURE="0")
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == f"astranet_gevent {astranet_gevent.__version__} ({describe_build()})"
    for part in (f"gevent {gevent.__version__}", f"greenlet {greenlet.__version__}", "{}.{}.{}".format(*sys.version_info[:3])):
        assert part in second
    pure = run("-m", "astranet_gevent", "--version", cwd=tmp_path, ASTRANET_GEVENT_PURE="1")
    assert pure.stdout.splitlines()[0].endswith("(pure Python)")


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run("-m", "astranet_gevent", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--version" in result.stdout
    assert "ASTRANET_GEVENT_PURE" in result.stdout


@pytest.mark.parametrize("kind", ["wheel", "editable"])
@pytest.mark.parametrize(("value", "wanted"), [("", False), ("0", False), ("1", True)])
def test_cython_is_required_only_to_compile(kind: str, value: str, wanted: bool) -> None:
    pytest.importorskip("setuptools", minversion="77")
    command = f"import sys; sys.path.insert(0, 'tools'); import build_backend; print(build_backend.get_requires_for_build_{kind}())"
    result = run("-c", command, cwd=ROOT, ASTRANET_GEVENT_COMPILE=value)
    assert result.returncode == 0, result.stderr
    assert ("cython" in result.stdout.splitlines()[-1]) is wanted
