# SPDX-License-Identifier: Apache-2.0
"""What a run did for each edge, in one metric, and how such a metric is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .progress import RunView, accuracy_name

__all__ = ["EdgeOutcome", "Outcomes", "TaskOutcome", "format_gain", "format_score", "is_share"]


@dataclass(frozen=True)
class TaskOutcome:
    """What the run did for one task of an edge that has several: its score under its group's model."""

    task: str
    group: str | None = None
    samples: int | None = None
    after: float | None = None


@dataclass(frozen=True)
class EdgeOutcome:
    """What the run did for one edge, or for all of them; None where nothing was measured.

    `after` is the score of the model that the edge has in the end, `group_model` that of its group's before it went
    on alone.
    """

    edge: str
    samples: int | None = None
    eval_samples: int | None = None
    before: float | None = None
    after: float | None = None
    alone: float | None = None
    gain: float | None = None
    over_alone: float | None = None
    one_model: float | None = None
    group_model: float | None = None
    group: str | None = None
    tasks: Sequence[TaskOutcome] = ()


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
    has_groups
        Whether edges are in groups with models of their own.
    """

    metric: str | None
    edges: Sequence[EdgeOutcome]
    overall: EdgeOutcome
    after_round: int | None = None
    has_groups: bool = False

    @property
    def has_alone(self) -> bool:
        """Whether training alone was measured on any edge."""
        return self.overall.alone is not None

    @property
    def finetuned(self) -> int:
        """How many edges have another score than their group's model, as they went on alone at the end."""
        return sum(1 for edge in self.edges if edge.group_model is not None and edge.group_model != edge.after)

    @property
    def went_on(self) -> str:
        """Say how many edges went on alone at the end, and what all reached before; nothing if none did."""
        count = self.finetuned
        if not count:
            return ""
        model = "the groups' models" if self.has_groups else "the one model"
        return (
            f"{count:,} edge{'s' * (count != 1)} went on alone at the end; with {model} as "
            f"{'they were' if self.has_groups else 'it was'}, all edges have "
            f"{format_score(self.overall.group_model, self.metric)}"
        )

    @property
    def whose(self) -> str:
        """Whose model `after` is of."""
        return "each edge's own model" if self.has_groups or self.finetuned else "the global model"

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
            before_finetune = finished.before_finetune.get(metric or "") if finished is not None else None
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
                    group_model=before_finetune if before_finetune is not None else after,
                    group=view.tasks.group_of(edge),
                    tasks=_tasks(view, edge, metric),
                )
            )
        return cls(metric, edges, _overall(edges), after_round, len({p.group for p in view.tasks.places}) > 1)


def _tasks(view: RunView, edge: str, metric: str | None) -> list[TaskOutcome]:
    """Return the tasks of an edge, if it has several."""
    finished = view.finished_edges.get(edge)
    scores = {name: values.get(metric or "") for name, values in finished.tasks.items()} if finished is not None else {}
    places = {place.task: place for place in view.tasks.of_edge(edge)}
    names = list(dict.fromkeys([*places, *scores])) if len(places) > 1 or scores else []
    return [
        TaskOutcome(
            name,
            group=places[name].group if name in places else None,
            samples=places[name].samples if name in places else None,
            after=scores.get(name),
        )
        for name in names
    ]


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
        group_model=mean(e.group_model for e in edges),
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
