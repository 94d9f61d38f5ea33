"""Charts of what `bench.py` has measured against the number of streams, from the same content as its --json file."""

from __future__ import annotations

import importlib.util
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: File, title, and for each panel its curves and the label of its axis.
CHARTS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "throughput.png": ("64-byte echoes, all streams at once", {"echoes per second": ("rate",)}),
    "latency.png": ("64-byte echo under full load", {"round trip (ms)": ("p50", "p90", "p99")}),
    "memory.png": (
        "idle streams",
        {"bytes per stream": ("idle client", "idle server"), "memory of a process (MB)": ("whole client", "whole server")},
    ),
}
NAMES = {"gevent": "gevent, a TCP connection each", "astranet": "astranet_gevent, one link"}
COLOURS = ("tab:orange", "tab:blue")
STYLES = ("-", "--", ":")
INCHES = (6.4, 4.6)  # of a panel
DOTS_PER_INCH = 90
LINE = 80  # characters above a panel

#: Number of streams; median, least and greatest of the rounds.
Point = tuple[int, float, float, float]


def missing() -> str:
    """What to say when charts cannot be drawn, or nothing."""
    if importlib.util.find_spec("matplotlib") is None:
        return "--plot needs matplotlib: pip install matplotlib, or this project with its extra: pip install -e '.[load]'"
    return ""


def series(content: Mapping[str, Any], of: str) -> dict[str, list[Point]]:
    """The points of a curve for each kind, by number of streams; none that was not measured."""
    found: dict[str, list[Point]] = {}
    for row in content["rows"]:
        if not row["curve"] or row["curve"]["of"] != of:
            continue
        for kind, values in row["values"].items():
            if values:
                point = (row["curve"]["streams"][kind], statistics.median(values), min(values), max(values))
                found.setdefault(kind, []).append(point)
    return {kind: sorted(points) for kind, points in found.items()}


def draw(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every chart of which something was measured; the files."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (title, panels) in CHARTS.items():
        if not any(series(content, of) for curves in panels.values() for of in curves):
            continue
        figure = Figure((INCHES[0] * len(panels), INCHES[1]), layout="constrained")
        for axes, (label, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            draw_panel(axes, label, {of: series(content, of) for of in curves})
        lines = f"{title}\n{subtitle(content)}".splitlines()
        figure.suptitle("\n".join(textwrap.fill(line, LINE * len(panels)) for line in lines), fontsize=9)
        figure.savefig(folder / name, dpi=DOTS_PER_INCH, metadata={"Software": None})
        written.append(folder / name)
    return written


def draw_panel(axes: Axes, label: str, curves: Mapping[str, Mapping[str, Sequence[Point]]]) -> None:
    for style, (of, kinds) in zip(STYLES, curves.items(), strict=False):
        for kind, points in kinds.items():
            streams, middle, low, high = (list(column) for column in zip(*points, strict=True))
            # From the median to the least and the greatest of the rounds.
            bars = [[a - b for a, b in zip(middle, low, strict=True)], [a - b for a, b in zip(high, middle, strict=True)]]
            shown = NAMES.get(kind, kind) + (f", {of.removeprefix('idle ').removeprefix('whole ')}" if len(curves) > 1 else "")
            axes.errorbar(
                streams,
                middle,
                yerr=bars,
                label=shown,
                linestyle=style,
                color=COLOURS[list(NAMES).index(kind)],
                marker="o",
                markersize=3,
                capsize=3,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(plain)
    # A chart of echoes or bytes that does not begin at zero makes a difference look larger than it is; times span four decades.
    if "ms" in label or "MB" in label:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("streams")
    axes.set_ylabel(label)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)


def plain(number: float, _position: float) -> str:
    """Of a tick: not as a power of ten."""
    return f"{number:,.0f}" if number >= 1 else f"{number:g}"


def subtitle(content: Mapping[str, Any]) -> str:
    """Of what, where and when; medians, bars from the least to the greatest."""
    what = f"astranet_gevent {content['astranet_gevent']} ({content['build']}), gevent {content['gevent']}, {content['python']}"
    rounds = content["plan"]["rounds"]
    return f"{what}\n{content['cpu']}\n{content['date']}, median and range of {rounds} round{'s' if rounds > 1 else ''}"
