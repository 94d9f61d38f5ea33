"""The README's code runs, each example in a process of its own, and prints what it says; its programs are started by its commands."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from integration.tools import free_port, script_environment

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", TEXT, re.DOTALL))
PROGRAMS = dict(re.findall(r"<!-- program: ([\w.]+) -->\n```python\n(.*?)```", TEXT, re.DOTALL))
PRINTS = {"hello": "hello, world\n", "servers": "hello from site\n", "patches": "hello from users-api.mesh\n"}


def test_every_example_is_known() -> None:
    assert set(EXAMPLES) == set(PRINTS)
    assert set(PROGRAMS) == {"app.py", "client.py"}
    assert TEXT.count("```python") == len(EXAMPLES) + len(PROGRAMS), "a code block without an <!-- example: NAME --> line is not run"


@pytest.mark.parametrize("name", PRINTS)
def test_example(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLES[name]], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (PRINTS[name], "", 0)


def test_the_ten_lines_are_ten() -> None:
    code = [line for line in EXAMPLES["hello"].splitlines() if line and not line.startswith(("import", "from"))]
    assert len(code) <= 10


def test_programs_are_started_as_they_are(tmp_path: Path) -> None:
    for name, source in PROGRAMS.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
        assert len([line for line in source.splitlines() if line]) <= 10
        assert "astranet" not in source
    block = re.search(r"<!-- commands -->\n((?:    .*\n)+)", TEXT)
    assert block is not None
    port = free_port()
    serve, call = (line.strip().replace("10000", str(port)).split() for line in block[1].splitlines())
    assert (serve[0], call[0]) == ("python", "python")
    with subprocess.Popen(
        [sys.executable, *serve[1:]], cwd=tmp_path, env=script_environment(), stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            # Flask says that it runs; until then nobody offers the name.
            deadline = time.monotonic() + 20
            said = ""
            while "Running on" not in said:
                said = server.stderr.readline() if server.stderr else ""
                assert said, "the app has ended"
                assert time.monotonic() < deadline, "the app does not start"
            client = subprocess.run(
                [sys.executable, *call[1:]], cwd=tmp_path, env=script_environment(), capture_output=True, text=True, timeout=30, check=False
            )
        finally:
            server.terminate()
    assert client.stdout == "200 hello, ada\n200 hello, grace\n", client.stderr
    assert client.returncode == 0
