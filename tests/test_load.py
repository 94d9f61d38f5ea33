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


def test_bench_on_loopback(tmp_path: Path) -> None:
    names = ("round-trip", "echoes", "churn", "bulk", "one-way")
    numbers = ("--streams", "5", "--streams", "100", "--seconds", "0.2")
    table, rows = run("bench.py", tmp_path, *numbers, *(part for name in names for part in ("--only", name)))
    wanted = {"rtt", "rtt p99", "rtt cpu", "echoes 5", "echoes 100", "echo cpu 5", "echo cpu 100", "churn 1", "churn 100"}
    wanted |= {f"{way} {what}{streams}" for way in ("upload", "download") for what in ("", "cpu ") for streams in (1, 100)}
    wanted |= {f"one way {size}" for size in (64, 1024, 16384)}
    check(rows, table, wanted)
    assert all(value > 0 for row in rows for value in row["ratios"])


def test_bench_over_relays_and_paths(tmp_path: Path) -> None:
    names = ("pings", "relay", "far", "idle")
    numbers = ("--seconds", "0.2", "--idle-streams", "300")
    table, rows = run("bench.py", tmp_path, *numbers, *(part for name in names for part in ("--only", name)))
    wanted = {f"ping {what} {path}" for what in ("p50", "p99", "bulk") for path in ("loopback", "100 MB/s")}
    wanted |= {"relay echoes", "relay upload", "relay upload many", "far open", "far upload"}
    check(rows, table, wanted | {"idle client", "idle server", "idle opening", "idle echo"})
    assert all(value > 0 for row in rows if not row["name"].startswith("idle ") for value in row["ratios"])
    # What a path of 10 ms costs does not depend on the machine: two round trips, and not one less.
    opening = next(row for row in rows if row["name"] == "far open")
    assert opening["values"]["astranet"][0] > 1.9


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
    for script in ("bench.py", "patched.py"):
        done = subprocess.run([sys.executable, str(LOAD / script), "--help"], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert "--quick" in done.stdout
