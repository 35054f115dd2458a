# SPDX-License-Identifier: Apache-2.0
"""What is tried beside the groups' own models, and what held-out samples say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from ..core.errors import StrategySpecError
from ..core.events import TransferChosen
from .fedavg import view
from .task_groups import TaskGroups
from .tracks import Couple, Track
from .transfer import LIKE_INPUTS, Gain, borrow, gain, is_clear, share_early_layers

__all__ = ["ONE", "Trials", "mean_model"]

ONE = "one"
_OWN = "groups"
_TRANSFERS = ("shared-layers", "borrow")
# A small group gains by what others know; among groups of one size nothing is tried.
_SMALL = 0.5
# Being apart has to be worth this part of the metric; signatures have shown that the tasks differ.
_WORTH = 0.02

Scores = dict[str, tuple[float, int]]


class Trials:
    """Trains other ways beside the groups' own models for some rounds, then lets each group keep what is best.

    One model for all is always tried. A group joins it only if held-out samples show that being apart is worth next
    to nothing: their signatures differ for certain, and with few such samples (20 edges with 60 each and skewed
    labels: ±5 points) a gain of several points is not to be seen for certain. Merging every group whose gain was not
    clear lost four points on windows of sensors that were turned by task, with skewed labels. Transfers are tried
    where they can help.

    Parameters
    ----------
    make_base
        Makes a base strategy.
    transfer
        `auto`, `none`, or one of the transfers, which then is used without a trial.
    rounds
        How long to try; 0 tries nothing.
    keep_one
        Go on with one model for all, to compare with at the end.
    """

    def __init__(self, make_base: Callable[[], Strategy], *, transfer: str, rounds: int, keep_one: bool) -> None:
        if transfer not in ("auto", "none", *_TRANSFERS):
            raise StrategySpecError(f"transfer is {transfer!r}; expected auto, none, shared-layers or borrow")
        self._make_base, self._transfer, self._keep_one = make_base, transfer, keep_one
        self._fixed = transfer if transfer in _TRANSFERS else "none"
        self._left, self._begun, self._decided = rounds, False, rounds == 0
        self._patience, self._said = rounds + 2, False
        self.tracks: list[Track] = []
        self.merged: dict[str, str] = {}
        self._choices: dict[str, str] = {}
        self._scores: dict[tuple[str, str], Scores] = {}

    def begin(self, own: Track, groups: TaskGroups, arrays: ArrayRecord) -> list[Track]:
        """Return what is tried in this round; the first time that there are several groups, begin."""
        if own.couple is None and self._fixed != "none":
            own.couple = self._coupled(groups)
        if not self._begun and len(own.groups) > 1 and (not self._decided or self._keep_one):
            self._begun = True
            first = mean_model(own)
            one = Track(ONE, self._make_base)
            one.ensure(ONE, first if first is not None else arrays)
            self.tracks = [one]
            if self._transfer == "auto" and not self._decided:
                self.tracks += [Track(name, self._make_base, self._couple(name, groups)) for name in _worth(groups)]
        for track in self.tracks:
            if track.name != ONE:
                for name, group in own.groups.items():
                    track.ensure(name, group.arrays)
        return self.tracks

    def told(self, server_round: int, own: Track) -> list[TransferChosen]:
        """Return what is chosen before any comparison: by the job, or because no edge has samples to compare on."""
        reason = ""
        if not self._said and self._fixed != "none" and len(own.groups) > 1:
            self._said, reason = True, "aggregation.options.transfer asks for it"
        if self._begun and not self._decided and not self._is_measured:
            self._patience -= 1
            if self._patience == 0:
                self._decided, reason = True, "no edge has samples to compare on"
                self.tracks = [track for track in self.tracks if track.name == ONE and self._keep_one]
        if not reason:
            return []
        return [
            TransferChosen(round=server_round, group=name, choice=self._fixed, reason=reason)
            for name in sorted(own.groups)
        ]

    @property
    def _is_measured(self) -> bool:
        return any(track == ONE for track, _ in self._scores)

    def _couple(self, name: str, groups: TaskGroups) -> Couple:
        if name == "borrow":
            return lambda models: borrow(models, groups.distances())
        return lambda models: share_early_layers(models, groups.alike(LIKE_INPUTS))

    def _coupled(self, groups: TaskGroups) -> Couple:
        """Return what applies each group's own choice to its model, or the one that the job asks for."""

        def couple(models: Mapping[str, tuple[ArrayRecord, float]]) -> dict[str, ArrayRecord]:
            found = {name: arrays for name, (arrays, _) in models.items()}
            for name in {*self._choices.values(), self._fixed} & set(_TRANSFERS):
                made = self._couple(name, groups)(models)
                found.update({group: made[group] for group in made if self._chosen(group) == name})
            return found

        return couple

    def _chosen(self, group: str) -> str:
        return self._choices.get(group, self._fixed)

    def measured(self, edge: str, track: str, group: str, metrics: MetricRecord) -> None:
        """Note what an edge measured of one track's model on its held-out samples of one group's tasks."""
        value = _better_when_larger(metrics)
        samples = metrics.get("num-examples")
        if value is not None and isinstance(samples, int | float):
            self._scores.setdefault((track, group), {})[edge] = value, int(samples)

    def decide(self, server_round: int, own: Track, groups: TaskGroups) -> list[TransferChosen]:
        """After enough rounds, let each group keep what is best for it; return what was chosen and why."""
        if self._decided or not self._begun or not self._is_measured:
            return []
        self._left -= 1
        if self._left > 0:
            return []
        self._decided = True
        one = next(track for track in self.tracks if track.name == ONE)
        chosen = [self._choose(server_round, name, own) for name in sorted(own.groups)]
        together = [found.group for found in chosen if found.choice == ONE]
        if together:
            self._merge(together, own, one)
        if own.couple is None and set(self._choices.values()) & set(_TRANSFERS):
            own.couple = self._coupled(groups)
        self.tracks = [one] if self._keep_one else []
        return chosen

    def _choose(self, server_round: int, name: str, own: Track) -> TransferChosen:
        base = self._scores.get((_OWN, name), {})
        gains: dict[str, Gain] = {}
        best, best_track = self._fixed, _OWN
        for track in self.tracks:
            if track.name == ONE:
                continue
            found = gain(self._scores.get((track.name, name), {}), base)
            if found is not None:
                gains[track.name] = found
                if is_clear(found) and (best == "none" or found.mean > gains[best].mean):
                    best, best_track = track.name, track.name
        if best_track != _OWN:
            own.groups[name].arrays = next(t for t in self.tracks if t.name == best).groups[name].arrays
            self._choices[name] = best
        of_one = self._scores.get((ONE, name), {})
        over_one = gain(self._scores.get((best_track, name), {}), of_one)
        told = {key: round(found.mean, 6) for key, found in gains.items()}
        words = [f"{key} {_in_words(found)} over none" for key, found in gains.items()]
        if over_one is None:
            words.append("no edge has samples to compare on")
        else:
            told["over one model"] = round(over_one.mean, 6)
            words.append(f"{_in_words(over_one)} over one model for all, on {over_one.edges} edges")
        apart = over_one is None or over_one.mean + over_one.error > _WORTH * abs(_mean(of_one))
        return TransferChosen(
            round=server_round, group=name, choice=best if apart else ONE, gains=told, reason="; ".join(words)
        )

    def _merge(self, together: list[str], own: Track, one: Track) -> None:
        """Let groups that gain nothing by being apart train as one, from one model for all."""
        target = together[0]
        for name in together:
            self.merged[name] = target
            self._choices.pop(name, None)
        worse = _mean(self._scores.get((_OWN, target), {})) < _mean(self._scores.get((ONE, target), {}))
        if len(together) > 1 or worse:
            own.groups[target].arrays = one.groups[ONE].arrays
            own.groups[target].base = self._make_base()
        own.drop([name for name in own.groups if name not in together or name == target])

    def state(self) -> dict[str, Any]:
        """Return what is being tried and what was chosen."""
        found: dict[str, Any] = {
            "trials": {
                "left": self._left,
                "patience": self._patience,
                "begun": self._begun,
                "decided": self._decided,
                "tracks": [track.name for track in self.tracks],
                "merged": self.merged,
                "choices": self._choices,
                "said": self._said,
            }
        }
        for track in self.tracks:
            found.update(track.state())
        return found

    def restore(self, state: Mapping[str, Any], groups: TaskGroups, own: Track) -> None:
        """Take back what `state` gave."""
        said = state["trials"]
        self._left, self._begun, self._decided = int(said["left"]), bool(said["begun"]), bool(said["decided"])
        self._patience = int(said["patience"])
        self.merged, self._choices, self._said = dict(said["merged"]), dict(said["choices"]), bool(said["said"])
        self.tracks = [
            Track(name, self._make_base, None if name == ONE else self._couple(name, groups)) for name in said["tracks"]
        ]
        for track in self.tracks:
            track.restore(state)
        if self._choices:  # what the job itself asks for, `begin` sees to
            own.couple = self._coupled(groups)


def _worth(groups: TaskGroups) -> list[str]:
    """Return the transfers that are worth a trial: small groups may gain, and share layers only with like inputs."""
    sizes = list(groups.samples().values())
    if len(sizes) < 2 or min(sizes) > _SMALL * max(sizes):
        return []
    return ["shared-layers", "borrow"] if groups.alike(LIKE_INPUTS) else ["borrow"]


def _in_words(found: Gain) -> str:
    return f"{found.mean:+.4f} ± {found.error:.4f}"


def _better_when_larger(metrics: MetricRecord) -> float | None:
    names = [name for name in metrics if name != "num-examples"]
    accuracy = next((n for n in names if "acc" in n), None)
    name = accuracy or next((n for n in names if "loss" in n), None)
    value = metrics.get(name) if name is not None else None
    if not isinstance(value, int | float):
        return None
    return float(value) if accuracy else -float(value)


def _mean(scores: Scores) -> float:
    total = sum(n for _, n in scores.values())
    return sum(value * n for value, n in scores.values()) / total if total else float("-inf")


def mean_model(track: Track) -> ArrayRecord | None:
    """Return the mean of the groups' models, weighted by their samples; of one group its own."""
    groups = list(track.groups.values())
    if len(groups) <= 1:
        return groups[0].arrays if groups else None
    weights = np.array([max(group.samples, 0.0) for group in groups])
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(groups), 1 / len(groups))
    mean = {}
    for name, first in groups[0].arrays.items():
        values = [view(group.arrays[name]) for group in groups]
        total = sum(w * v.astype(np.float64) for w, v in zip(weights, values, strict=True))
        dtype = values[0].dtype
        mean[name] = Array(np.asarray(np.rint(total) if dtype.kind in "iu" else total).astype(dtype))
        del first
    return ArrayRecord(mean)
