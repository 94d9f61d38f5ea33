"""The patch without a line of code: the runner, the environment, gevent's plug-in; and what a program sees of it when it is off."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from astranet_gevent.patches import Rules
from gevent import subprocess
from integration.tools import script_environment

from astranet_gevent import ConfigError, __version__

RUNNER = ("-m", "astranet_gevent.patches")

# What a program says of how it was started.
REPORT = """
import os, socket, sys
print(__name__, sys.argv[1:], os.path.basename(sys.path[0]), socket.socket.__module__)
"""


def run(*arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with warnings as errors; fails if it does not end with the status."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**script_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done  # type: ignore[no-any-return]


GREET = """
import socket
print(socket.create_connection(("greeting", 80), 10).recv(100).decode())
"""
PATCHED = "from gevent import monkey\nmonkey.patch_all({})\n"


# -- the runner --------------------------------------------------------------------------------------------------------------------


def test_a_script_runs_as_python_runs_it(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(REPORT)
    done = run(*RUNNER, "--listen", "127.0.0.1:0", str(script), "--join", "x", "-m", "--help")
    assert done.stdout == f"__main__ ['--join', 'x', '-m', '--help'] {tmp_path.name} gevent._socket3\n"
    assert done.stderr == ""


def test_a_module_runs_as_python_runs_it(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(REPORT + "sys.exit(7)\n")
    done = run(*RUNNER, "--listen", "127.0.0.1:0", "-m", "program", "--join", "x", status=7, PYTHONPATH=f"{tmp_path}:{script_path()}")
    assert done.stdout.startswith("__main__ ['--join', 'x'] ")


def script_path() -> str:
    return script_environment()["PYTHONPATH"]


def test_the_program_is_on_the_mesh(tmp_path: Path, address: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(GREET)
    assert run(*RUNNER, "--join", address, str(script)).stdout == "hello\n"
    assert run(*RUNNER, "--wait", "10", str(script), ASTRANET_JOIN=address).stdout == "hello\n"
    # What is given wins.
    assert run(*RUNNER, "--join", address, str(script), ASTRANET_JOIN="127.0.0.1:1", ASTRANET_PATCH="1").stdout == "hello\n"
    script.write_text(GREET.replace("greeting", "greeting.elsewhere"))
    assert run(*RUNNER, "--join", address, "--suffix", ".elsewhere", str(script)).stdout == "hello\n"
    refused = run(*RUNNER, "--join", address, "--env", "staging", "--suffix", ".elsewhere", "--name-wait", "0.2", str(script), status=1)
    assert "nobody offered service 'greeting' within 0.2 s" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "name a script, or -m and a module"),
        (["-m"], 2, "name a script, or -m and a module"),
        (["nowhere.py"], 2, "there is no script 'nowhere.py'"),
        (["--nonsense", "x.py"], 2, "--nonsense"),
        (["--join", "nonsense", "-m", "this"], 2, "nonsense"),
        (["--join", "127.0.0.1:0", "-m", "this"], 2, "port 0 is nobody's"),
        (["--binding", "8000=x", "-m", "this"], 2, "'8000=x' is not HOST:PORT=SERVICE, as in 0.0.0.0:8000=users-api"),
        (["--suffix", "mesh", "-m", "this"], 2, "suffix 'mesh' does not begin with a dot"),
        (["--name-wait", "soon", "-m", "this"], 2, "argument --name-wait: 'soon' is not a number of seconds"),
        (["--name-wait", "nan", "-m", "this"], 2, "argument --name-wait: 'nan' is not within 0..3600 seconds"),
        (["--name-wait=-1", "-m", "this"], 2, "argument --name-wait: '-1' is not within 0..3600 seconds"),
        (["--wait", "nan", "-m", "this"], 2, "argument --wait: 'nan' is not within 0..3600 seconds"),
        (["--wait", "-1", "-m", "this"], 2, "argument --wait: '-1' is not within 0..3600 seconds"),
        (["--wait", "inf", "-m", "this"], 2, "argument --wait: 'inf' is not within 0..3600 seconds"),
        (["--listen", "192.0.2.1:0", "-m", "this"], 1, "cannot listen"),
        (
            ["--join", "127.0.0.1:1", "--wait", "0.2", "-m", "this"],
            1,
            "not joined within 0.2 s: <Peering 127.0.0.1:1 not joined: [Errno 111]",
        ),
    ],
)
def test_what_cannot_be_run_is_told(arguments: list[str], status: int, message: str) -> None:
    done = run(*RUNNER, *arguments, status=status)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_and_version() -> None:
    text = run(*RUNNER, "--help").stdout
    for word in ("--join", "--listen", "--binding", "--name-wait", "run a module", "ASTRANET_PATCH=1", "examples:"):
        assert word in text
    assert run(*RUNNER, "--version").stdout == f"astranet_gevent {__version__}\n"


# -- the environment and the plug-in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [None, "", "0", "no", "False"])
def test_off_unless_asked(setting: str | None) -> None:
    """gevent's own patches only, and neither our modules nor a hub."""
    environment = {} if setting is None else {"ASTRANET_PATCH": setting}
    source = """
import sys
from gevent._hub_local import get_hub_if_exists
from gevent.socket import socket
assert "_internal_connect" not in vars(socket)
print(get_hub_if_exists(), "astranet_gevent.node" in sys.modules)
"""
    loaded = setting in ("no", "False")
    assert run("-c", PATCHED.format("") + source, **environment).stdout == f"None {loaded}\n"


def test_on_by_environment(address: str) -> None:
    for setting in ("1", "yes", "True"):
        assert run("-c", PATCHED.format("") + GREET, ASTRANET_PATCH=setting, ASTRANET_JOIN=address).stdout == "hello\n"


def test_on_and_off_by_argument(address: str) -> None:
    assert run("-c", PATCHED.format("astranet=True") + GREET, ASTRANET_JOIN=address).stdout == "hello\n"
    off = run("-c", PATCHED.format("astranet=False") + GREET, status=1, ASTRANET_PATCH="1", ASTRANET_JOIN=address)
    assert "gaierror" in off.stderr


def test_patched_twice_there_is_one_node(address: str) -> None:
    source = """
from astranet_gevent import patches
one = patches.apply_from_environ()
monkey.patch_all(sys=True)
assert patches.apply_from_environ() is one and one.applied
assert len(one.mesh.peerings()) == 1
one.undo()
assert one.mesh.closed and not one.applied
two = patches.apply_from_environ()
assert two is not one and two.applied
"""
    source = PATCHED.format("") + "import warnings; warnings.simplefilter('ignore')\n" + source + GREET
    assert run("-c", source, ASTRANET_PATCH="1", ASTRANET_JOIN=address).stdout == "hello\n"


def test_what_is_wrong_in_the_environment_is_told() -> None:
    for variable, text, message in (
        ("ASTRANET_PATCH", "maybe", "'maybe' is neither yes"),
        ("ASTRANET_JOIN", "nonsense", "environment variable ASTRANET_JOIN"),
        ("ASTRANET_NAME_WAIT", "soon", "environment variable ASTRANET_NAME_WAIT: 'soon' is not a number of seconds"),
        ("ASTRANET_NAME_WAIT", "nan", "environment variable ASTRANET_NAME_WAIT: 'nan' is not within 0..3600 seconds"),
        ("ASTRANET_NAME_WAIT", "-1", "environment variable ASTRANET_NAME_WAIT: '-1' is not within 0..3600 seconds"),
    ):
        environment = {"ASTRANET_PATCH": "1", "ASTRANET_JOIN": "127.0.0.1:1", variable: text}
        assert message in run("-c", PATCHED.format(""), status=1, **environment).stderr
    alone = run("-c", PATCHED.format(""), status=1, ASTRANET_PATCH="1")
    assert "UserWarning: the node joins nobody and nobody can join it: set ASTRANET_JOIN" in alone.stderr
    half = run("-c", PATCHED.format("socket=False"), status=1, ASTRANET_PATCH="1", ASTRANET_JOIN="127.0.0.1:1")
    assert "gevent has not patched the socket module" in half.stderr


# -- rules of the environment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("ASTRANET_SUFFIX", ".net", "suffix", ".net"),
        ("ASTRANET_SUFFIX", "", "suffix", ""),
        ("ASTRANET_NAMES", "a, b.example,", "names", ("a", "b.example")),
        ("ASTRANET_BARE", "no", "bare", False),
        ("ASTRANET_BARE", "", "bare", True),
        ("ASTRANET_NAME_WAIT", "0.5", "name_wait", 0.5),
        ("ASTRANET_BLOCK", "239.7.0.0/16", "block", "239.7.0.0/16"),
        ("ASTRANET_PEER_BLOCK", "241.0.0.0/8", "peer_block", "241.0.0.0/8"),
        ("ASTRANET_BINDINGS", "0.0.0.0:80=a, [::1]:81=b:9", "bindings", {("0.0.0.0", 80): "a", ("::1", 81): "b:9"}),
    ],
)
def test_rules_from_the_environment(variable: str, text: str, field: str, value: Any) -> None:
    assert getattr(Rules.from_environ({variable: text, "ASTRANET_OTHER": "x"}), field) == value


def test_arguments_win_over_the_environment() -> None:
    assert Rules.from_environ({"ASTRANET_SUFFIX": ".net"}, suffix=".mine").suffix == ".mine"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("ASTRANET_BARE", "perhaps"),
        ("ASTRANET_NAME_WAIT", "soon"),
        ("ASTRANET_NAME_WAIT", "3601"),
        ("ASTRANET_BINDINGS", "8000=a"),
        ("ASTRANET_BINDINGS", "0.0.0.0:0=a"),
        ("ASTRANET_BINDINGS", "0.0.0.0:99999=a"),
        ("ASTRANET_BINDINGS", "0.0.0.0:80"),
    ],
)
def test_bad_rules_name_their_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable {variable}: '{text}' is n"):
        Rules.from_environ({variable: text})
