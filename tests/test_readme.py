"""The README's code runs, each example in a process of its own, and prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL))
PRINTS = {"hello": "hello, world\n", "servers": "hello from site\n", "patches": "hello from users-api.mesh\n"}


def test_every_example_is_known() -> None:
    assert set(EXAMPLES) == set(PRINTS)
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").count("```python")
    assert blocks == len(EXAMPLES), "a code block without an <!-- example: NAME --> line is not run"


@pytest.mark.parametrize("name", PRINTS)
def test_example(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLES[name]], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (PRINTS[name], "", 0)


def test_the_ten_lines_are_ten() -> None:
    code = [line for line in EXAMPLES["hello"].splitlines() if line and not line.startswith(("import", "from"))]
    assert len(code) <= 10
