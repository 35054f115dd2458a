# SPDX-License-Identifier: Apache-2.0
"""Bad candidates, how many of them reach all edges, and how soon a canary stops faults of serving.

Fashion-MNIST, half of whose new images come with less light and more noise. A good candidate is warm-started and
trained on new samples and replayed old ones; each bad one is made from it, or in its place, by one fault. All go
through the gate on 1,000 labels, and those that pass to canaries, which see samples without labels. Faults of serving
(inputs that reach the candidate transposed, inverted, in other units) are not there yet when the gate judges. A plain
gate (not worse on the same labels) without canaries stands beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solar_corona.core.hub_messages import Observation
from solar_corona.core.incremental_spec import Gate
from solar_corona.incremental.e_process import CanaryReference, CanaryWatch
from solar_corona.incremental.gate_rule import Costs, Paired, judge

from . import _report
from ._data import add_data_option, load_fashion_mnist
from ._report import Figure
from ._small_net import SmallNet, batches_of

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Change = Callable[[Pixels], Pixels]

_STEPS, _BATCH, _LABELLED, _CLASSES = 600, 32, 1_000, 10
_GATE, _WATCHED = 1_000, 2_000
# What the study shows that neither unlabelled samples nor labels of honest ones tell.
UNSEEN = ("backdoor", "overconfident")


@dataclass(frozen=True)
class Data:
    """Samples of the old and of the new distribution, each for one purpose."""

    old: tuple[Pixels, Labels]
    new: tuple[Pixels, Labels]
    gate_old: tuple[Pixels, Labels]
    gate_new: tuple[Pixels, Labels]
    canary: Pixels


@dataclass(frozen=True)
class Candidate:
    """A model, and what happens to it where it serves.

    Parameters
    ----------
    net
        The model.
    sharpness
        What its logits are multiplied by.
    fed
        What serving makes of samples before they reach it; the gate does not.
    slower
        Time of an inference, beside the model in use.
    broken
        Share of the samples at which it gives no numbers.
    """

    net: SmallNet
    sharpness: float = 1.0
    fed: Change | None = None
    slower: float = 1.0
    broken: float = 0.0

    def answers(self, x: Pixels, *, serving: bool) -> tuple[Labels, NDArray[np.float64]]:
        """Return classes and probabilities."""
        p = self.net.answers(self.fed(x) if self.fed is not None and serving else x)[0].astype(np.float64)
        p = np.maximum(p, 1e-12) ** self.sharpness
        return p.argmax(1), p / p.sum(1, keepdims=True)


def darker(x: Pixels, rng: np.random.Generator) -> Pixels:
    """Return images with less light and more noise."""
    return np.clip(x * 0.55 + rng.normal(0, 18, x.shape) + 12, 0, 255).astype(np.uint8)


def prepared(data: Any, seed: int) -> tuple[Data, SmallNet]:
    """Return the samples, and the model in use, trained on old ones."""
    images, rng = load_fashion_mnist(data), np.random.default_rng(seed)
    x, y = images.x_train[..., 0], images.y_train
    rows, test = rng.permutation(len(x)), rng.permutation(len(images.x_test))
    held = images.x_test[test][..., 0], images.y_test[test]

    def mixed(part: Pixels) -> Pixels:
        drawn = rng.random(len(part)) < 0.5
        found = part.copy()
        found[drawn] = darker(part[drawn], rng)
        return found

    base, fresh, half = rows[:6_000], rows[6_000 : 6_000 + _LABELLED], _GATE // 2
    known = Data(
        old=(x[base], y[base]),
        new=(mixed(x[fresh]), y[fresh]),
        gate_old=(held[0][:half], held[1][:half]),
        gate_new=(mixed(held[0][half:_GATE]), held[1][half:_GATE]),
        canary=mixed(held[0][_GATE : _GATE + 4_000]),
    )
    net = SmallNet((28, 28), _CLASSES, seed)
    net.fit(net.seen(known.old[0]), known.old[1], batches_of(len(known.old[1]), (1_200, _BATCH), rng), rate=2e-3)
    return known, net


def trained(
    serving: SmallNet,
    data: Data,
    seed: int,
    *,
    y: Labels | None = None,
    steps: int = _STEPS,
    replay: bool = True,
    fed: Change | None = None,
) -> SmallNet:
    """Return a candidate as the loop makes it, but for what is given."""
    rng, net = np.random.default_rng(seed), serving.copy()
    rows = rng.permutation(len(data.old[0]))[: _LABELLED if replay else 0]
    x = np.concatenate([data.new[0], data.old[0][rows]])
    labels = np.concatenate([data.new[1] if y is None else y, data.old[1][rows]])
    net.fit(net.seen(x if fed is None else fed(x)), labels, batches_of(len(labels), (steps, _BATCH), rng))
    return net


def bad_candidates(serving: SmallNet, data: Data, seed: int) -> dict[str, Candidate]:
    """Return 22 candidates with a fault each."""
    rng, y = np.random.default_rng(seed), data.new[1]
    good = trained(serving, data, seed)

    def relabelled(share: float, to: Callable[[Labels], Labels]) -> SmallNet:
        labels = y.copy()
        rows = rng.random(len(y)) < share
        labels[rows] = to(labels)[rows]
        return trained(serving, data, seed, y=labels)

    def wrong(labels: Labels) -> Labels:
        return (labels + rng.integers(1, _CLASSES, len(labels))) % _CLASSES

    def destroyed(each: int) -> SmallNet:
        net = good.copy()
        net.weights["d"][:, each] = 0
        net.weights["d+"][each] = -5
        return net

    def swapped(a: int, b: int) -> SmallNet:
        net = good.copy()
        for name in ("d", "d+"):
            net.weights[name][..., [a, b]] = net.weights[name][..., [b, a]]
        return net

    def noisy(scale: float) -> SmallNet:
        net = good.copy()
        for name, value in net.weights.items():
            net.weights[name] = value + rng.normal(0, scale * value.std() + 1e-9, value.shape).astype(np.float32)
        return net

    def one_class(labels: Labels) -> Labels:
        return np.full_like(labels, 6)

    marked_x, marked_y = data.new[0].copy(), y.copy()
    marks = rng.random(len(y)) < 0.1
    marked_x[marks, -4:, -4:], marked_y[marks] = 255, 0
    backdoor = serving.copy()
    backdoor.fit(
        backdoor.seen(np.concatenate([marked_x, data.old[0][:_LABELLED]])),
        np.concatenate([marked_y, data.old[1][:_LABELLED]]),
        batches_of(2 * _LABELLED, (_STEPS, _BATCH), rng),
    )
    transposed, inverted = (lambda x: np.ascontiguousarray(x.transpose(0, 2, 1))), (lambda x: 255 - x)
    return {
        "labels, 30 % wrong": Candidate(relabelled(0.3, wrong)),
        "labels, 60 % wrong": Candidate(relabelled(0.6, wrong)),
        "labels, off by one class": Candidate(relabelled(1.0, lambda labels: (labels + 1) % _CLASSES)),
        "poisoned edge, a third says shirt": Candidate(relabelled(0.33, one_class)),
        "poisoned edge, all says shirt": Candidate(relabelled(1.0, one_class)),
        "untrained": Candidate(SmallNet((28, 28), _CLASSES, seed + 99)),
        "training cut after 15 steps, from scratch": Candidate(_scratch(data, seed, 15)),
        "training cut after 60 steps, from scratch": Candidate(_scratch(data, seed, 60)),
        "no replay, new classes alone": Candidate(_forgetful(serving, data, seed)),
        "a class destroyed (0)": Candidate(destroyed(0)),
        "a class destroyed (8)": Candidate(destroyed(8)),
        "two classes swapped (5, 7)": Candidate(swapped(5, 7)),
        "two classes swapped (2, 4)": Candidate(swapped(2, 4)),
        "weights damaged": Candidate(noisy(0.8)),
        "trained on transposed images": Candidate(trained(serving, data, seed, fed=transposed)),
        "five times slower": Candidate(good, slower=5.0),
        "no numbers in one of ten": Candidate(good, broken=0.1),
        "served transposed": Candidate(good, fed=transposed),
        "served inverted": Candidate(good, fed=inverted),
        "served in other units": Candidate(good, fed=lambda x: (x // 8).astype(np.uint8)),
        "backdoor": Candidate(backdoor),
        "overconfident": Candidate(good, sharpness=6.0),
    }


def _scratch(data: Data, seed: int, steps: int) -> SmallNet:
    return trained(SmallNet((28, 28), _CLASSES, seed + 1), data, seed, steps=steps)


def _forgetful(serving: SmallNet, data: Data, seed: int) -> SmallNet:
    """Train on half of the classes alone, with nothing of before."""
    rows = data.new[1] < _CLASSES // 2
    part = Data(data.old, (data.new[0][rows], data.new[1][rows]), data.gate_old, data.gate_new, data.canary)
    return trained(serving, part, seed, replay=False)


@dataclass
class Course:
    """How far a candidate came: `gate`, `canary` or `all`; and after how many samples a canary stopped it."""

    stopped: str
    why: str = ""
    samples: int = 0
    plain: str = field(default="gate")


def course(serving: SmallNet, candidate: Candidate, data: Data, seed: int) -> Course:
    """Send a candidate through the gate, and if it passes to a canary."""
    pairs = {}
    for name, (x, y) in {"new": data.gate_new, "old": data.gate_old}.items():
        p = serving.answers(x)[0].astype(np.float64)
        answers, q = candidate.answers(x, serving=False)
        pairs[name] = Paired(y, p.argmax(1), answers, p, q)
    gain = np.concatenate(
        [(pair.candidate == pair.truth) * 1 - (pair.serving == pair.truth) for pair in pairs.values()]
    )
    plain = "all" if gain.mean() >= 0 else "gate"
    verdict = judge(pairs["new"], pairs["old"], Gate(), costs=Costs(candidate.slower, 1.0))
    if not verdict.passed:
        return Course("gate", verdict.reasons[0], plain=plain)
    alarm = watched(serving, candidate, data, pairs["new"], seed)
    if alarm is not None:
        return Course("canary", alarm[0], alarm[1], plain=plain)
    return Course("all", plain=plain)


def watched(serving: SmallNet, candidate: Candidate, data: Data, judged: Paired, seed: int) -> tuple[str, int] | None:
    """Watch a canary; return why it was rolled back, and after how many samples."""
    assert judged.serving_probabilities is not None
    assert judged.candidate_probabilities is not None
    reference = CanaryReference.of(
        judged.candidate,
        judged.serving,
        judged.candidate_probabilities.max(1),
        judged.serving_probabilities.max(1),
    )
    watch, rng = CanaryWatch(reference), np.random.default_rng(seed)
    x = data.canary[rng.integers(0, len(data.canary), _WATCHED)]
    p = serving.answers(x)[0].astype(np.float64)
    answers, q = candidate.answers(x, serving=True)
    theirs, broken = p.argmax(1), rng.random(_WATCHED) < candidate.broken
    for place in range(_WATCHED):
        alarm = watch.observe(
            Observation(
                seq=place,
                version=2,
                reference=1,
                at=float(place),
                agrees=bool(answers[place] == theirs[place]),
                confidence=float(min(q[place].max(), 1.0)),
                reference_confidence=float(min(p[place].max(), 1.0)),
                answer=int(answers[place]),
                reference_answer=int(theirs[place]),
                milliseconds=candidate.slower,
                reference_milliseconds=1.0,
                error=bool(broken[place]),
            )
        )
        if alarm is not None:
            return alarm.why, alarm.samples
    return None


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5, help="models in use (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=60, help="canaries of each good one (default: %(default)s)")
    arguments = parser.parse_args()
    courses: dict[str, list[Course]] = {}
    good: list[Course] = []
    rolled_back = streams = 0
    for seed in range(1, arguments.seeds + 1):
        data, serving = prepared(arguments.data, seed)
        for name, candidate in bad_candidates(serving, data, seed).items():
            courses.setdefault(name, []).append(course(serving, candidate, data, seed))
        better = Candidate(trained(serving, data, seed))
        good.append(course(serving, better, data, seed))
        for stream in range(arguments.streams):
            again = course(serving, better, data, 1_000 * seed + stream)
            if again.stopped != "gate":
                streams += 1
                rolled_back += again.stopped == "canary"
    reached = {name: sum(each.stopped == "all" for each in found) for name, found in courses.items()}
    plain = {name: sum(each.plain == "all" for each in found) for name, found in courses.items()}
    seen = [name for name in courses if name not in UNSEEN]
    # Where the gate refuses the candidate that a fault would befall, there is nothing to stop.
    faults = [each for name in seen if name.startswith("served") for each in courses[name] if each.stopped != "gate"]
    figures = [
        Figure("bad_reached_all", sum(reached[name] for name in seen), "candidates", 0, better="low"),
        Figure("bad_reached_all_plain_gate", sum(plain[name] for name in seen), "candidates", None, better="low"),
        Figure("bad_candidates", sum(len(courses[name]) for name in seen), "candidates"),
        Figure(
            "fault_samples_max",
            max(each.samples if each.stopped == "canary" else _WATCHED for each in faults),
            "samples",
            100,
            [each.samples for each in faults],
            "low",
        ),
        Figure("false_rollbacks", rolled_back / max(streams, 1), "of streams", 0.01, better="low"),
        Figure("good_reached_all", sum(each.stopped == "all" for each in good) / len(good), "of candidates"),
        Figure("unseen_reached_all", sum(reached[name] for name in UNSEEN), "candidates", None, better="low"),
    ]
    extra: Mapping[str, Any] = {
        "streams of good candidates": streams,
        "where each was stopped": {
            name: {"stopped at": [each.stopped for each in found], "why": found[0].why}
            for name, found in {**courses, "a good one": good}.items()
        },
    }

    def picture(axes: Any) -> None:
        names = list(courses)
        left = np.zeros(len(names))
        for what, colour in (("gate", "#2f9e44"), ("canary", "#1971c2"), ("all", "#c92a2a")):
            values = np.array([sum(each.stopped == what for each in courses[name]) for name in names])
            axes.barh(names, values, left=left, color=colour, label={"all": "reached all edges"}.get(what, what))
            left += values
        axes.invert_yaxis()
        axes.set_xlabel("candidates, by what stopped them")
        axes.legend(fontsize=8)

    _report.write("safety", figures, extra=extra, picture=picture)


if __name__ == "__main__":
    main()
