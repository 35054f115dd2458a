# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of docs/explanation/similar-tasks.md: `python scripts/draw_similar_tasks.py [--check]`.

What they show was measured by `make bench NAME=similar_task_pictures` and lies in docs/images/similar-tasks.json. The
same numbers give the same pictures. With `--check` nothing is written, and the exit status is 1 if one is stale.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
SOURCE = "similar-tasks.json"
WIDTH = 440  # as wide as a phone shows at full size
APART = 0.1

# Okabe and Ito's colours, which people with any colour vision tell apart; each reads on a light and a dark ground.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
STYLE = """
  .ground { fill: #ffffff; stroke: #8c959f; }
  .ink { fill: #1f2328; }
  .faint { fill: #59636e; }
  .rule { stroke: #8c959f; fill: none; }
  .limit { stroke: #cf222e; stroke-dasharray: 5 4; fill: none; }
  .warn { fill: #cf222e; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; stroke: #6e7681; }
    .ink { fill: #e6edf3; }
    .faint { fill: #9198a1; }
    .rule { stroke: #6e7681; }
    .limit { stroke: #ff7b72; }
    .warn { fill: #ff7b72; }
  }
"""


def main(arguments: list[str]) -> int:
    """Write or check the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a picture differs")
    check = parser.parse_args(arguments).check
    stale = []
    for name, text in pictures(json.loads((FOLDER / SOURCE).read_text(encoding="utf-8"))).items():
        path = FOLDER / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/images/{name}")  # noqa: T201
    if check and stale:
        sys.stderr.write(f"{', '.join(stale)} show other numbers than {SOURCE}; run scripts/draw_similar_tasks.py\n")
    return 1 if check and stale else 0


def pictures(measured: Mapping[str, Any]) -> dict[str, str]:
    """Return each picture's text by its file name."""
    fleet = measured["fleet"]
    return {
        "similar-tasks-map.svg": distances(fleet),
        "similar-tasks-tree.svg": tree(fleet),
        "similar-tasks-rounds.svg": rounds(fleet),
        "similar-tasks-gain.svg": gains(measured["changes"]),
    }


def picture(height: int, title: str, description: str, parts: Iterable[str]) -> str:
    """Return an SVG with its own ground, so that it reads on any page."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="t d" font-family="system-ui, -apple-system, \'Segoe UI\', Roboto, sans-serif" '
        'font-size="13">'
    )
    return "\n".join(
        [
            head,
            f'<title id="t">{escape(title)}</title>',
            f'<desc id="d">{escape(description)}</desc>',
            f"<style>{STYLE}</style>",
            f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
            f'<text class="ink" x="16" y="26" font-size="15" font-weight="600">{escape(title)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, *, kind: str = "ink", anchor: str = "start", size: int = 13) -> str:
    """Return a line of text."""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, *, kind: str = "rule") -> str:
    """Return a straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def colours_of(fleet: Mapping[str, Any]) -> dict[str, str]:
    """Return each group's colour."""
    names = sorted({task["group"] for task in fleet["tasks"]})
    return dict(zip(names, COLOURS, strict=True))


def distances(fleet: Mapping[str, Any]) -> str:
    """Draw the distances between all tasks, and their map."""
    tasks, eta, colours = fleet["tasks"], fleet["eta"], colours_of(fleet)
    order = sorted(range(len(tasks)), key=lambda i: (tasks[i]["group"], i))
    left, top, cell = 84, 66, 20
    most = max(max(row) for row in eta)
    parts = [text(16, 48, "η between the data of each two edges", kind="faint")]
    for row, i in enumerate(order):
        colour = colours[tasks[i]["group"]]
        parts.append(text(left - 8, top + row * cell + 14, tasks[i]["name"], anchor="end", size=12))
        for column, j in enumerate(order):
            share = max(eta[i][j], 0) / most
            parts.append(
                f'<rect x="{left + column * cell}" y="{top + row * cell}" width="{cell - 1}" height="{cell - 1}" '
                f'fill="{colour}" fill-opacity="{1 - 0.93 * share:.2f}"/>'
            )
    bottom = top + len(order) * cell
    inside = [eta[i][j] for i in order for j in order if i != j and tasks[i]["group"] == tasks[j]["group"]]
    across = [eta[i][j] for i in order for j in order if tasks[i]["group"] != tasks[j]["group"]]
    told = (
        f"within a group {min(inside):.2f} to {max(inside):.2f} (full colour), across {min(across):.2f} to {most:.2f}"
    )
    parts += [text(16, bottom + 22, told, kind="faint"), text(16, bottom + 56, "the same as a map", kind="faint")]
    middle, centre, scale = WIDTH / 2, bottom + 190, 118
    for task in tasks:
        x, y = middle + 1.5 * scale * task["map"][0], centre - scale * task["map"][1]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{colours[task["group"]]}" fill-opacity="0.75"/>')
    for name, colour in colours.items():
        mine = [task["map"] for task in tasks if task["group"] == name]
        x = middle + 1.5 * scale * sum(p[0] for p in mine) / len(mine)
        y = centre - scale * sum(p[1] for p in mine) / len(mine)
        inwards = 24 if y < centre else -16
        parts.append(f'<text x="{x:.1f}" y="{y + inwards:.1f}" text-anchor="middle" fill="{colour}">{name}</text>')
    description = (
        f"A matrix of the distances between {len(tasks)} edges: {len(colours)} blocks of edges are near each other "
        f"and far from the rest. Below, the edges as points on a map, in {len(colours)} clusters."
    )
    return picture(bottom + 330, "Sixteen edges, four rotations", description, parts)


def tree(fleet: Mapping[str, Any]) -> str:
    """Draw how groups came about."""
    tasks, colours = fleet["tasks"], colours_of(fleet)
    steps = [(int(a), int(b), float(height)) for a, b, height in fleet["tree"]]
    children = {len(tasks) + i: (a, b) for i, (a, b, _) in enumerate(steps)}
    heights = {len(tasks) + i: height for i, (_, _, height) in enumerate(steps)}
    roots = set(children) - {c for pair in children.values() for c in pair}
    leaves: list[int] = []
    for root in sorted(roots):
        leaves += _leaves(root, children)
    left, right, top, row = 84.0, WIDTH - 24.0, 84.0, 19.0
    most = max(heights.values())
    y = {leaf: top + i * row for i, leaf in enumerate(leaves)}
    x = dict.fromkeys(leaves, left)
    parts = [text(left - 8, y[i] + 4, tasks[i]["name"], anchor="end", size=12) for i in leaves]
    for node, (a, b) in children.items():
        x[node], y[node] = left + heights[node] / most * (right - left), (y[a] + y[b]) / 2
        groups = {tasks[i]["group"] for i in _leaves(node, children)}
        colour = f'stroke="{colours[groups.pop()]}"' if len(groups) == 1 else 'class="rule"'
        way = f"M{x[a]:.1f} {y[a]:.1f} H{x[node]:.1f} V{y[b]:.1f} H{x[b]:.1f}"
        parts.append(f'<path d="{way}" fill="none" stroke-width="2" {colour}/>')
    limit, bottom = left + APART / most * (right - left), top + len(leaves) * row
    parts += [
        text(16, 48, "merged at η; left of the line tasks count as alike", kind="faint"),
        line(limit, top - 16, limit, bottom, kind="limit"),
        text(limit + 4, top - 10, f"{APART}", kind="warn", size=12),
        line(left, bottom, right, bottom),
    ]
    for tick in range(int(most * 5) + 1):
        place = left + tick / 5 / most * (right - left)
        parts.append(text(place, bottom + 18, f"{tick / 5:.1f}", anchor="middle", kind="faint", size=12))
    description = "A tree: the edges of one rotation merge at distances near 0, the four rotations far beyond 0.1."
    return picture(int(bottom) + 34, "How the groups came about", description, parts)


def _leaves(node: int, children: Mapping[int, tuple[int, int]]) -> list[int]:
    if node not in children:
        return [node]
    return [leaf for child in children[node] for leaf in _leaves(child, children)]


def rounds(fleet: Mapping[str, Any]) -> str:
    """Draw accuracy by round."""
    curves: dict[str, Sequence[tuple[int, float]]] = {
        "groups": fleet["groups"],
        "a late edge, in its group": fleet["late"],
        "one model for all": fleet["one"],
        "each edge alone": list(enumerate(fleet["alone"])),
    }
    last = max(number for number, _ in fleet["groups"])
    left, right, top, bottom = 52.0, WIDTH - 20.0, 66.0, 290.0

    def place(number: float, accuracy: float) -> tuple[float, float]:
        return left + number / last * (right - left), bottom - accuracy * (bottom - top)

    parts = [text(16, 48, "accuracy on held-out digits, by round", kind="faint")]
    for tick in range(0, 11, 2):
        y = place(0, tick / 10)[1]
        parts += [line(left, y, right, y), text(left - 8, y + 4, f"{10 * tick} %", kind="faint", anchor="end", size=12)]
    for number in range(0, last + 1, 5):
        parts.append(text(place(number, 0)[0], bottom + 18, str(number), kind="faint", anchor="middle", size=12))
    for number, words in ((fleet["guard"], "compared"), (fleet["joins"] - 1, "late edge comes")):
        x = place(number, 0)[0]
        parts += [line(x, top - 4, x, bottom, kind="limit"), text(x + 3, bottom - 6, words, kind="warn", size=12)]
    for i, ((name, points), colour) in enumerate(zip(curves.items(), COLOURS, strict=True)):
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        dashes = ' stroke-dasharray="7 4"' if name.startswith("a late") else ""
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2.5"{dashes}/>')
        x, y = place(*points[0])
        if name.startswith("a late"):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        y = bottom + 44 + 20 * i
        parts.append(
            f'<line x1="{left}" y1="{y - 4}" x2="{left + 26}" y2="{y - 4}" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(text(left + 34, y, f"{name}: {points[-1][1]:.1%} in the end"))
    description = (
        "Lines of accuracy by round. Groups end highest, each edge alone below them, one model for all lowest. "
        "An edge that comes late begins where its group is."
    )
    return picture(int(bottom) + 122, "What groups gain here", description, parts)


def gains(changes: Sequence[Mapping[str, Any]]) -> str:
    """Draw how far a change moves the data, and what two models then gain over one."""
    found = sorted(changes, key=lambda change: change["eta"])
    left, middle, right, top, row = 146.0, 262.0, WIDTH - 20.0, 92.0, 26.0
    most_eta = max(change["eta"] for change in found)
    most_gain = max(change["groups"] - change["one"] for change in found)
    parts = [
        text(16, 48, "four of eight edges changed like this; gains in points", kind="faint"),
        text(left, 76, "η", size=13),
        text(middle + 18, 76, "gain of two models", size=13),
    ]
    for i, change in enumerate(found):
        y = top + i * row
        gain = change["groups"] - change["one"]
        wide = max(change["eta"], 0) / most_eta * (middle - left - 40)
        parts.append(text(left - 8, y + 14, change["change"], anchor="end", size=12))
        parts.append(f'<rect x="{left}" y="{y + 2}" width="{wide + 1:.1f}" height="16" fill="{COLOURS[0]}"/>')
        parts.append(text(left + wide + 5, y + 14, f"{max(change['eta'], 0):.2f}", kind="faint", size=12))
        wide = max(gain, 0) / most_gain * (right - middle - 64)
        parts.append(f'<rect x="{middle + 18}" y="{y + 2}" width="{wide + 1:.1f}" height="16" fill="{COLOURS[1]}"/>')
        parts.append(text(middle + 18 + wide + 5, y + 14, f"{100 * gain:+.1f}", kind="faint", size=12))
    bottom = top + len(found) * row
    limit = left + APART / most_eta * (middle - left - 40)
    parts += [
        line(limit, top - 4, limit, bottom, kind="limit"),
        text(limit, bottom + 14, f"{APART}", kind="warn", anchor="middle", size=12),
    ]
    description = "Bars: " + "; ".join(
        f"{c['change']}: eta {max(c['eta'], 0):.2f}, gain {100 * (c['groups'] - c['one']):+.1f} points" for c in found
    )
    return picture(int(bottom) + 28, "Different is not the same as worth parting", description, parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
