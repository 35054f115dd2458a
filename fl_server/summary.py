# SPDX-License-Identifier: Apache-2.0
"""What a run did for each edge, and the words that end `solar-corona run`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .progress import RunView, accuracy_name

__all__ = ["EdgeOutcome", "Outcomes", "format_gain", "format_score", "is_share", "print_summary"]

# More rows than this would push the next commands out of sight.
_MOST_ROWS = 30
_ROWS_OF_MANY = 10
# Terminals of fewer columns get their columns closer together.
_WIDE = 72


@dataclass(frozen=True)
class EdgeOutcome:
    """What the run did for one edge, or for all of them; None where nothing was measured."""

    edge: str
    samples: int | None = None
    eval_samples: int | None = None
    before: float | None = None
    after: float | None = None
    alone: float | None = None
    gain: float | None = None
    over_alone: float | None = None
    one_model: float | None = None
    group: str | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcomes:
    """What the run did for every edge, in one metric.

    Parameters
    ----------
    metric
        The metric's name: the accuracy, else the loss, else None if nothing was measured.
    edges
        One outcome an edge, in the job's order.
    overall
        All edges as one: the sum of the samples, the means weighted by evaluation samples. Each gain is over the
        edges that have both of its ends, so that an edge that came late does not distort it.
    after_round
        The round whose model `after` measures, if no edge has got the final model; else None.
    """

    metric: str | None
    edges: Sequence[EdgeOutcome]
    overall: EdgeOutcome
    after_round: int | None = None

    @property
    def has_alone(self) -> bool:
        """Whether training alone was measured on any edge."""
        return self.overall.alone is not None

    @property
    def has_groups(self) -> bool:
        """Whether edges are in groups with models of their own."""
        return len({edge.group for edge in self.edges if edge.group is not None}) > 1

    @property
    def has_one_model(self) -> bool:
        """Whether one model for all was measured beside the groups'."""
        return self.overall.one_model is not None

    @property
    def has_gaps(self) -> bool:
        """Whether an edge missed an evaluation that others had, so that the means are over different edges."""
        overall = self.overall
        return any(
            (mean is not None and getattr(edge, name) is None)
            for edge in self.edges
            for name, mean in (("before", overall.before), ("after", overall.after), ("alone", overall.alone))
        )

    def weakest(self, count: int) -> list[EdgeOutcome]:
        """Return the edges with the worst final value of the metric, the worst first; unmeasured ones come last."""
        worse = -1.0 if self.metric == "loss" else 1.0
        return sorted(self.edges, key=lambda e: (e.after is None, worse * (e.after or 0.0)))[:count]

    @classmethod
    def of(cls, view: RunView) -> Outcomes:
        """Return the outcomes of a run as far as it got."""
        metric = _metric_of(view)
        start = view.rows[0].edges if 0 in view.rows else {}
        after_round = None
        final = {edge: event.metrics for edge, event in view.finished_edges.items()}
        if not final:
            after_round = max((n for n, row in view.rows.items() if n and row.edges), default=None)
            final = view.rows[after_round].edges if after_round is not None else {}
        edges = []
        for edge in _names(view, final):
            joined, finished = view.joined.get(edge), view.finished_edges.get(edge)
            before, after = start.get(edge, {}).get(metric or ""), final.get(edge, {}).get(metric or "")
            alone = finished.alone.get(metric or "") if finished is not None else None
            one = finished.one_model.get(metric or "") if finished is not None else None
            each = finished.tasks if finished is not None else {}
            edges.append(
                EdgeOutcome(
                    edge,
                    samples=joined.samples if joined is not None else None,
                    eval_samples=joined.eval_samples if joined is not None else None,
                    before=before,
                    after=after,
                    alone=alone,
                    gain=_difference(after, before),
                    over_alone=_difference(after, alone),
                    one_model=one,
                    group=view.tasks.group_of(edge),
                    tasks={name: metrics[metric] for name, metrics in each.items() if metric and metric in metrics},
                )
            )
        return cls(metric, edges, _overall(edges), after_round)


def _metric_of(view: RunView) -> str | None:
    records = [*(row.evaluation for row in view.rows.values()), *(e.metrics for e in view.finished_edges.values())]
    names = list(dict.fromkeys(name for record in records for name in record if name != "num-examples"))
    return accuracy_name(names) or ("loss" if "loss" in names else None)


def _names(view: RunView, final: Iterable[str]) -> list[str]:
    listed = view.started.edges if view.started is not None else []
    return list(dict.fromkeys([*listed, *sorted(view.joined), *sorted(final)]))


def _difference(value: float | None, base: float | None) -> float | None:
    return value - base if value is not None and base is not None else None


def _overall(edges: Sequence[EdgeOutcome]) -> EdgeOutcome:
    def mean(values: Iterable[float | None]) -> float | None:
        pairs = [(v, e.eval_samples or 0) for v, e in zip(values, edges, strict=True) if v is not None]
        weight = sum(w for _, w in pairs)
        return sum(v * w for v, w in pairs) / weight if weight else None

    def total(values: Iterable[int | None]) -> int | None:
        known = [v for v in values if v is not None]
        return sum(known) if known else None

    return EdgeOutcome(
        "all edges",
        samples=total(e.samples for e in edges),
        eval_samples=total(e.eval_samples for e in edges),
        before=mean(e.before for e in edges),
        after=mean(e.after for e in edges),
        alone=mean(e.alone for e in edges),
        gain=mean(e.gain for e in edges),
        over_alone=mean(e.over_alone for e in edges),
        one_model=mean(e.one_model for e in edges),
    )


def is_share(metric: str | None) -> bool:
    """Tell whether a metric is a share of the samples, so that percent fits and more is better."""
    return metric is not None and "acc" in metric


def format_score(value: float | None, metric: str | None) -> str:
    """Write a metric's value.

    >>> format_score(0.8689, "accuracy"), format_score(0.5, "loss"), format_score(None, "loss")
    ('86.9%', '0.5', '–')
    """
    if value is None:
        return "–"
    return f"{value:.1%}" if is_share(metric) else f"{value:.4g}"


def format_gain(value: float | None, metric: str | None) -> str:
    """Write the difference of two values of a metric: points of a percentage, or the plain number.

    >>> format_gain(0.25, "accuracy"), format_gain(-0.5, "loss")
    ('+25.0', '-0.5')
    """
    if value is None:
        return "–"
    # Rounded first, so that no difference is written as -0.0.
    return f"{round(100 * value, 1) + 0.0:+.1f}" if is_share(metric) else f"{value:+.4g}"


def print_summary(
    view: RunView, *, console: Console, model: str | None, report: Path | None, next_commands: list[str]
) -> None:
    """Print what a job that succeeded has done, where its results are, and what to try next.

    Parameters
    ----------
    view
        The run, to its end.
    console
        Where to print; without a terminal there are no colours and no rules.
    model, report
        Where the model and the HTML report are, if there are any.
    next_commands
        Commands worth trying next.
    """
    outcomes = Outcomes.of(view)
    console.print()
    if view.tasks.told:
        console.print(Text(view.tasks.headline, style="bold"))
    if outcomes.edges:
        _print_edges(outcomes, console)
    for name, place in (("model", model), ("report", report)):
        if place is not None:
            # Not wrapped, so that the path can be copied in one piece.
            console.print(Text.assemble((f"{name:<8}", "bold"), str(place)), soft_wrap=True)
    if next_commands:
        console.print(Text("\nnext", style="bold"))
        for command in next_commands:
            console.print(Text(f"  {command}"), soft_wrap=True)


def _print_edges(outcomes: Outcomes, console: Console) -> None:
    metric = outcomes.metric
    shown = outcomes.edges if len(outcomes.edges) <= _MOST_ROWS else outcomes.weakest(_ROWS_OF_MANY)
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 2 if console.width >= _WIDE else 1, 0, 0),
        show_edge=False,
        show_footer=False,
    )
    table.add_column("edge", overflow="fold")
    if outcomes.has_groups:
        table.add_column("group", justify="right", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    if metric is not None:
        names = ["before", "after", "gain" if is_share(metric) else "change"]
        names += ["one\nmodel"] if outcomes.has_one_model else []
        for name in [*names, *(["alone", "over\nalone"] if outcomes.has_alone else [])]:
            table.add_column(name, justify="right", no_wrap=True)
    for edge in shown:
        table.add_row(*_cells(edge, outcomes))
        for task, value in edge.tasks.items():
            blank = [Text()] * (2 if outcomes.has_groups else 1)
            table.add_row(Text(f"  {task}"), *blank, Text(), Text(format_score(value, metric)), style="dim")
    if len(outcomes.edges) > 1:
        table.add_section()
        table.add_row(*_cells(outcomes.overall, outcomes), style="bold")
    console.print(table)
    left = len(outcomes.edges) - len(shown)
    if left:
        console.print(Text(f"the {len(shown)} weakest edges; {left} more are in the report", style="dim"))
    if metric is not None:
        console.print(Text(_key_to(outcomes), style="dim"))
    console.print()


def _cells(edge: EdgeOutcome, outcomes: Outcomes) -> list[Text]:
    metric = outcomes.metric
    cells = [Text(edge.edge), *([Text(edge.group or "")] if outcomes.has_groups else [])]
    cells += [Text("–" if edge.samples is None else f"{edge.samples:,}")]
    if metric is None:
        return cells
    cells += [Text(format_score(value, metric)) for value in (edge.before, edge.after)]
    cells.append(_gain(edge.gain, metric))
    if outcomes.has_one_model:
        cells.append(Text(format_score(edge.one_model, metric)))
    if outcomes.has_alone:
        cells += [Text(format_score(edge.alone, metric)), _gain(edge.over_alone, metric)]
    return cells


def _gain(value: float | None, metric: str) -> Text:
    text = format_gain(value, metric)
    # Of other metrics nobody knows here whether more is better.
    judged = is_share(metric) and value is not None and text not in ("+0.0", "–")
    return Text(text, style=("green" if text.startswith("+") else "red") if judged else "")


def _key_to(outcomes: Outcomes) -> str:
    name = (outcomes.metric or "").replace("_", " ")
    unit = "; gains in points" if is_share(outcomes.metric) else ""
    alone = "; alone: the edge trained without the others" if outcomes.has_alone else ""
    whose = "each edge's own model" if outcomes.has_groups else "the global model"
    one = "; one model: trained by all edges together" if outcomes.has_one_model else ""
    return f"{name} of {whose} on each edge's evaluation data{unit}{one}{alone}"
