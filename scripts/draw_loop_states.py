# SPDX-License-Identifier: Apache-2.0
"""Draws the states of the incremental learning loop for docs/explanation/incremental-learning.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PLACE = Path(__file__).resolve().parent.parent / "docs" / "images" / "loop-states.svg"
INK, MUTED, GOOD, BAD = "#212529", "#868e96", "#2b8a3e", "#c92a2a"
# Middle of each state: x, y.
STATES = {
    "collecting": (1.3, 2.0),
    "training": (4.1, 2.0),
    "evaluating": (6.9, 2.0),
    "canary": (9.7, 2.0),
    "promoting": (9.7, 3.6),
    "rolling-back": (9.7, 0.4),
    "paused": (6.9, 0.4),
}
SAYS = {
    "collecting": "samples, labels",
    "training": "a process or Job",
    "evaluating": "the gate",
    "canary": "some edges",
    "promoting": "all edges",
    "rolling-back": "the version before",
    "paused": "asks an operator",
}
# From, to, what leads there, colour, bend, place of the words.
ARROWS = (
    ("collecting", "training", "a trigger", INK, 0.0, (2.7, 2.2)),
    ("training", "evaluating", "a candidate", INK, 0.0, (5.5, 2.2)),
    ("evaluating", "canary", "passes", GOOD, 0.0, (8.3, 2.2)),
    ("canary", "promoting", "watched, no alarm", GOOD, 0.0, (10.6, 2.75)),
    ("canary", "rolling-back", "an alarm", BAD, 0.0, (10.15, 1.15)),
    ("canary", "paused", "an alarm, and onFailure: pause", BAD, 0.0, (7.35, 1.3)),
    ("training", "collecting", "fails after its retries", BAD, -0.35, (3.3, 1.16)),
    ("evaluating", "collecting", "is refused, or cannot be judged yet", BAD, -0.42, (5.6, 0.95)),
    ("promoting", "collecting", "all edges have it", GOOD, 0.3, (3.2, 3.9)),
    ("rolling-back", "collecting", "all edges have the old one", BAD, -0.42, (2.5, -0.3)),
)


def draw(axes: Any) -> None:
    """Draw states and arrows."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    boxes = {}
    for name, (x, y) in STATES.items():
        boxes[name] = FancyBboxPatch(
            (x - 0.85, y - 0.32), 1.7, 0.64, boxstyle="round,pad=0.02,rounding_size=0.12", fc="#fff4e6", ec="#e8590c"
        )
        axes.add_patch(boxes[name])
        axes.text(x, y + 0.08, name, ha="center", va="center", fontsize=11, weight="bold", color=INK)
        axes.text(x, y - 0.17, SAYS[name], ha="center", va="center", fontsize=8, color=MUTED)
    for begin, end, words, colour, bend, (x, y) in ARROWS:
        axes.add_patch(
            FancyArrowPatch(
                STATES[begin],
                STATES[end],
                patchA=boxes[begin],
                patchB=boxes[end],
                arrowstyle="-|>",
                mutation_scale=13,
                connectionstyle=f"arc3,rad={bend}",
                color=colour,
                shrinkA=2,
                shrinkB=2,
            )
        )
        axes.text(x, y, words, ha="center", fontsize=8, color=colour)
    axes.set_xlim(0.2, 11.6)
    axes.set_ylim(-0.8, 4.4)
    axes.axis("off")


def main() -> None:
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "loop-states"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 4.8))
    draw(axes)
    figure.savefig(PLACE, bbox_inches="tight", metadata={"Date": None})
    text = PLACE.read_text(encoding="utf-8")
    ways = "; ".join(f"{begin} to {end}: {words}" for begin, end, words, *_ in ARROWS)
    told = f"<title>The states of the incremental learning loop</title>\n <desc>{ways}.</desc>\n <metadata>"
    PLACE.write_text(text.replace("<metadata>", told, 1), encoding="utf-8")


if __name__ == "__main__":
    main()
