# SPDX-License-Identifier: Apache-2.0
"""The report's curves: SVG paths from a run's rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from .outcomes import format_score, is_share
from .plain_text import plain
from .progress import format_bytes
from .record import Record

__all__ = ["Chart", "charts", "thin"]

_LARGEST = 1e30
_MOST_LINES = 60
_MOST_POINTS = 400
_MOST_BARS = 200
_T = TypeVar("_T")

# The curves: positions across are in permille of the plot, down in pixels of its height.

_ACROSS, _DOWN = 1000.0, 200.0


@dataclass(frozen=True)
class _Tick:
    at: str
    label: str


@dataclass(frozen=True)
class _Shape:
    """A path; `kind` is its class in the style sheet, `label` what a reader who points at it is told."""

    kind: str
    path: str
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """One plot with its words: what a reader sees, and what a reader who cannot see it is told."""

    title: str
    latest: str
    description: str
    across: list[_Tick]
    down: list[_Tick]
    shapes: list[_Shape]
    hits: list[tuple[str, str, str]]
    legend: list[tuple[str, str]]
    note: str = ""


def charts(record: Record, metric: str | None) -> list[Chart]:
    """Return the curves of a run: its metric and loss, and seconds and bytes a round."""
    names = list(dict.fromkeys(n for n in (metric, "loss") if n))
    charts = [chart for name in names if (chart := _curves(record, name)) is not None]
    if record.done:
        charts += [_seconds_chart(record), _bytes_chart(record)]
    return charts


def _curves(record: Record, metric: str) -> Chart | None:
    """Draw a metric after each round: all edges together, and each edge or, of many, how they spread."""
    rows = [row for _, row in sorted(record.view.rows.items()) if _finite(row.evaluation.get(metric)) is not None]
    if not rows:
        return None
    rows = thin(rows, _MOST_POINTS)
    numbers = [row.number for row in rows]
    overall = [row.evaluation[metric] for row in rows]
    each = {
        edge: [_finite(row.edges.get(edge, {}).get(metric)) for row in rows]
        for edge in dict.fromkeys(edge for row in rows for edge in row.edges)
    }
    values = [*overall, *(v for line in each.values() for v in line if v is not None)]
    steps, label = _scale(min(values), max(values), percent=is_share(metric))
    low, high = steps[0], steps[-1]

    def y(value: float) -> float:
        return _DOWN * (high - value) / (high - low)

    span = max(1, numbers[-1] - numbers[0])
    xs = [_ACROSS * (number - numbers[0]) / span for number in numbers]
    shapes, legend = _spread(xs, each, y) if len(each) > _MOST_LINES else _each(xs, each, y)
    name, start, end = metric.replace("_", " "), format_score(overall[0], metric), format_score(overall[-1], metric)
    before = f"{start} before the first round" if not numbers[0] else f"{start} after round {numbers[0]}"
    return Chart(
        title=name[:1].upper() + name[1:],
        latest=end,
        description=f"{name} of the global model over the rounds: {before}, {end} after round {numbers[-1]}.",
        across=[_Tick(_number((n - numbers[0]) / span * 100), str(n)) for n in _whole_steps(numbers[0], numbers[-1])],
        down=[_Tick(_number(y(step)), label(step)) for step in steps],
        shapes=[*shapes, _Shape("global", _path(xs, overall, y))],
        hits=_hits(xs, [f"round {n}: {format_score(v, metric)}" for n, v in zip(numbers, overall, strict=True)]),
        legend=[("global", "all edges"), *legend],
        note="0 is the model at the start" if not numbers[0] else "",
    )


_Drawn = tuple[list[_Shape], list[tuple[str, str]]]


def _each(xs: Sequence[float], each: Mapping[str, Sequence[float | None]], y: Callable[[float], float]) -> _Drawn:
    shapes = [_Shape("edge", _path(xs, line, y), plain(edge)) for edge, line in each.items()]
    return shapes, [("edge", "each edge")] if shapes else []


def _spread(xs: Sequence[float], each: Mapping[str, Sequence[float | None]], y: Callable[[float], float]) -> _Drawn:
    """Hundreds of lines are one blot, so many edges are shown as the range they fill and the middle half of them."""
    quarters = []
    for column in zip(*each.values(), strict=True):
        found = sorted(v for v in column if v is not None)
        if found:
            cuts = statistics.quantiles(found, method="inclusive") if len(found) > 1 else [found[0]] * 3
            quarters.append((found[0], cuts[0], cuts[2], found[-1]))
        else:
            quarters.append((math.nan,) * 4)
    shapes = []
    for kind, lower, upper in (("range", 0, 3), ("middle", 1, 2)):
        points = [(x, q) for x, q in zip(xs, quarters, strict=True) if not math.isnan(q[0])]
        outline = [(x, q[upper]) for x, q in points] + [(x, q[lower]) for x, q in reversed(points)]
        shapes.append(_Shape(kind, _path([x for x, _ in outline], [v for _, v in outline], y) + "Z"))
    return shapes, [("middle", f"middle half of {len(each):,} edges"), ("range", "all of them")]


def _seconds_chart(record: Record) -> Chart:
    rounds = [record.done[n] for n in sorted(record.done)]
    training = [min(r.training_seconds, r.seconds) for r in rounds]
    overhead = [r.seconds - t for r, t in zip(rounds, training, strict=True)]
    total = sum(training) + sum(overhead)
    share = f"{sum(training) / total:.0%} of the time is training" if total else "no time was measured"
    return _bars(
        "Seconds per round",
        f"{statistics.median(r.seconds for r in rounds):.2f} s median",
        f"Seconds per round; {share}.",
        [r.round for r in rounds],
        (("lower", "training, slowest edge", training), ("upper", "waiting, wire and aggregation", overhead)),
        lambda value: f"{value:.2f} s",
        unit=1.0,
        suffix=" s",
    )


def _bytes_chart(record: Record) -> Chart:
    rounds = [record.done[n] for n in sorted(record.done)]
    up, down = [float(r.bytes_up) for r in rounds], [float(r.bytes_down) for r in rounds]
    most = max(u + d for u, d in zip(up, down, strict=True))
    power = min(3, int(math.log(most, 1024))) if most >= 1 else 0
    median = format_bytes(statistics.median(u + d for u, d in zip(up, down, strict=True)))
    return _bars(
        "Bytes per round",
        f"{median} median",
        f"Bytes on the wire per round, {median} in the median; {format_bytes(sum(up))} up and "
        f"{format_bytes(sum(down))} down in all.",
        [r.round for r in rounds],
        (("lower", "up, from the edges", up), ("upper", "down, to the edges", down)),
        format_bytes,
        unit=1024.0**power,
        suffix=f" {('B', 'KiB', 'MiB', 'GiB')[power]}",
    )


def _bars(
    title: str,
    latest: str,
    description: str,
    numbers: Sequence[int],
    parts: Sequence[tuple[str, str, Sequence[float]]],
    write: Callable[[float], str],
    *,
    unit: float,
    suffix: str,
) -> Chart:
    """Draw stacked bars, one a round or, of many rounds, one for the mean of a few neighbours."""
    size = math.ceil(len(numbers) / _MOST_BARS)
    groups = [range(i, min(i + size, len(numbers))) for i in range(0, len(numbers), size)]
    means = [[statistics.fmean(values[i] for i in group) for group in groups] for _, _, values in parts]
    totals = [sum(column) for column in zip(*means, strict=True)]
    steps, label = _scale(0.0, max(totals) / unit)
    pitch = _ACROSS / len(groups)
    # Gaps between bars of a few pixels would only wash their colour out.
    width = min(0.72 * pitch, 60.0) if len(groups) <= 60 else pitch
    xs = [(i + 0.5) * pitch for i in range(len(groups))]
    floors = [0.0] * len(groups)
    shapes = []
    for (kind, _, _), heights in zip(parts, means, strict=True):
        path = ""
        for i, height in enumerate(heights):
            scale = _DOWN / (steps[-1] * unit)
            bottom, tall = _DOWN - floors[i] * scale, height * scale
            path += (
                f"M{_number(xs[i] - width / 2)},{_number(bottom)}v{_number(-tall)}h{_number(width)}v{_number(tall)}z"
            )
            floors[i] += height
        shapes.append(_Shape(kind, path))
    firsts = [numbers[group[0]] for group in groups]
    marked = {n: x for n, x in zip(firsts, xs, strict=True) if n in set(_whole_steps(firsts[0], firsts[-1]))} or {
        firsts[0]: xs[0]
    }
    of = "" if size == 1 else f", mean of {size} rounds"
    texts = [
        f"round {first}{of}: "
        + ", ".join(f"{write(m[i])} {name.partition(',')[0]}" for (_, name, _), m in zip(parts, means, strict=True))
        for i, first in enumerate(firsts)
    ]
    return Chart(
        title=title,
        latest=latest,
        description=description,
        across=[_Tick(_number(x / _ACROSS * 100), str(n)) for n, x in marked.items()],
        down=[_Tick(_number(_DOWN * (1 - step / steps[-1])), label(step) + (suffix if step else "")) for step in steps],
        shapes=shapes,
        hits=_hits(xs, texts),
        legend=[(kind, name) for kind, name, _ in reversed(parts)],
        note=f"each bar is the mean of {size} rounds" if size > 1 else "",
    )


def _path(xs: Sequence[float], values: Sequence[float | None], y: Callable[[float], float]) -> str:
    """Write a line as an SVG path, with a gap where there is no value."""
    path, pen = "", "M"
    for i, (x, value) in enumerate(zip(xs, values, strict=True)):
        if value is None:
            pen = "M"
            continue
        path += f"{pen}{_number(x)},{_number(y(value))}"
        # A point with no neighbour is a line of no length, which a round cap makes a dot.
        if pen == "M" and (i + 1 == len(values) or values[i + 1] is None):
            path += "h0"
        pen = "L"
    return path


def _hits(xs: Sequence[float], texts: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return a column around each x: where it begins, its width, and what it says when pointed at."""
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(xs)), _ACROSS]
    return [(_number(a), _number(b - a), text) for (a, b), text in zip(pairwise(edges), texts, strict=True)]


def _scale(low: float, high: float, *, percent: bool = False) -> tuple[list[float], Callable[[float], str]]:
    """Return round numbers from below `low` to above `high`, and how to write them."""
    span = (high - low) or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= span / 4 * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    steps = [i * step for i in range(first, max(last, first + 1) + 1)]
    unit = 100 * step if percent else step
    digits = next((d for d in range(7) if math.isclose(round(unit, d), unit, rel_tol=1e-6)), 7)
    if percent:
        return steps, lambda value: f"{100 * value:.{digits}f}%"
    if max(abs(steps[0]), abs(steps[-1])) >= 1e6 or digits > 6:
        return steps, lambda value: f"{value:.1e}"
    return steps, lambda value: f"{value:.{digits}f}"


def _whole_steps(first: int, last: int) -> list[int]:
    """Return about five round numbers from `first` to `last`."""
    step = max(1, math.ceil((last - first) / 6))
    size = 10 ** (len(str(step)) - 1)
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= step)
    return list(range(math.ceil(first / step) * step, last + 1, step))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and abs(value) < _LARGEST else None


def thin(items: Sequence[_T], most: int) -> list[_T]:
    """Return at most `most` of the rows, evenly, the last one among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _number(value: float) -> str:
    # A tenth of a pixel is enough, and zero has no sign.
    return f"{round(value, 1) + 0.0:g}"
