"""The measurements run, and what they print and write makes sense. What they measure is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOAD = Path(__file__).resolve().parent.parent / "load"


def run(script: str, tmp_path: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    """The table, and the rows as JSON, of one short round."""
    values = tmp_path / "values.json"
    command = [sys.executable, str(LOAD / script), "--quick", "--rounds", "1", "--json", str(values), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "round 1/1" in done.stderr
    return done.stdout, json.loads(values.read_text())["rows"]


def check(rows: list[dict[str, Any]], table: str, names: set[str]) -> None:
    assert {row["name"] for row in rows} == names
    for row in rows:
        assert row["title"] in table
        assert [len(values) for values in row["values"].values()] == [1, 1], row
        assert (row["met"] is None) == (row["asked"] == ""), row


def test_ratios(tmp_path: Path) -> None:
    table, rows = run("ratios.py", tmp_path, "--streams", "10", "--only", "echoes", "--only", "memory", "--idle-streams", "300")
    check(rows, table, {"echoes", "memory client", "memory server"})
    assert all(value > 0 for value in rows[0]["ratios"])


def test_patched_requests_and_memory(tmp_path: Path) -> None:
    numbers = ("--seconds", "0.2", "--connections", "200")
    table, rows = run("patched.py", tmp_path, *numbers, "--only", "http-1", "--only", "http-32", "--only", "memory")
    http = {f"{what} {greenlets}" for what in ("http", "client", "server") for greenlets in (1, 32)}
    idle = {f"{what} {side}" for what in ("memory", "descriptors") for side in ("client", "server")}
    check(rows, table, http | idle)
    for row in rows:
        if row["name"] in http:
            assert all(value > 0 for values in row["values"].values() for value in values), row
        if row["name"].startswith("descriptors"):
            # The one figure that no machine's speed changes.
            assert row["values"] == {"plain": [0], "patched": [0]}
            assert row["met"] is True


def test_patched_others(tmp_path: Path) -> None:
    table, rows = run("patched.py", tmp_path, "--seconds", "0.2", "--only", "others")
    check(rows, table, {"connect number", "connect name", "socket", "accept"})
    assert all(value > 0 for row in rows for values in row["values"].values() for value in values)


def test_help() -> None:
    for script in ("ratios.py", "patched.py"):
        done = subprocess.run([sys.executable, str(LOAD / script), "--help"], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert "--quick" in done.stdout
