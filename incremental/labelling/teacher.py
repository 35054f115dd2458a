# SPDX-License-Identifier: Apache-2.0
"""A deep model labels what it is sure of, as long as people find it right.

Its word counts only where no person said anything, never for the gate's samples, and only while it is right on at least
95 % of at least 100 random samples that people labelled. A teacher that does not know a class is found out there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError, SolarCoronaError, SpecError
from ...core.named import imported
from ...lib.endpoints.callable_endpoint import named_callable
from ...lib.endpoints.endpoint import Endpoint
from ...lib.endpoints.http_client import HttpOptions
from ...lib.endpoints.open_inference_client import OpenInferenceEndpoint
from ...lib.endpoints.opening import open_endpoint
from ...lib.sample_coding import decode_sample
from ...lib.scores import class_scores
from .source import Audit, Finished, Offer, Setting, SourceStatus

__all__ = ["Teacher"]

_AT_ONCE = 32
_MOST_AUDITS = 1_000


class Teacher:
    """Asks a deep model.

    Parameters
    ----------
    setting
        What it is made in.
    endpoint
        The model's URL, such as `http://host:8000/v2/models/large`, or a function, `module:function`, which is called
        with a batch and returns probabilities or logits, n x K.
    token_file
        File with the bearer token of a URL's service.
    pre
        `module:function` that makes of one sample what the model takes; by default the sample is taken as it is.
    known
        Names or numbers of the classes that the model was trained on, in the order of its outputs; by default the job's
        classes. A sample is never labelled with another.
    confidence
        What the model has to be sure of, at least.
    audited, right
        Labels of people that it is compared with first, and the share of them that it has to get right.
    deadline
        Seconds in which a batch has to be answered.
    """

    machine = True

    def __init__(
        self,
        setting: Setting,
        endpoint: str,
        *,
        token_file: str | None = None,
        pre: str | None = None,
        known: Sequence[str | int] | None = None,
        confidence: float = 0.9,
        audited: int = 100,
        right: float = 0.95,
        deadline: float = 10.0,
    ) -> None:
        if setting.labels.kind != "classes":
            raise SpecError(
                f"a teacher gives classes, and this job's labels are {setting.labels.kind}; use another source"
            )
        self._setting, self._deadline = setting, deadline
        self._endpoint = _opened(endpoint, token_file)
        self._pre = _function(pre) if pre is not None else None
        self._known = [setting.labels.checked(each) for each in known] if known is not None else None
        self._confidence, self._audited, self._right = confidence, audited, right
        self._heard: dict[str, tuple[int | None, float]] = {}  # what it says of audits
        self._finished: dict[str, Finished] = {}
        self._said = SourceStatus(True, "nothing was asked yet")
        self._input: str | None = None

    def room(self) -> int:
        """Return a batch, once enough audits say that it is right."""
        try:
            return _AT_ONCE if self._is_trusted() else 0
        except SolarCoronaError as error:
            self._said = SourceStatus(False, f"the teacher does not answer: {error}")
            return 0

    def offer(self, samples: Sequence[Offer]) -> Mapping[str, str]:
        """Label samples at once; `poll` tells how."""
        for begin in range(0, len(samples), _AT_ONCE):
            part = samples[begin : begin + _AT_ONCE]
            answers = self._ask([(each.media_type, each.content) for each in part])
            for each, (label, sure) in zip(part, answers, strict=True):
                self._finished[each.sample] = Finished(
                    sample=each.sample, by="", value=label, skipped=label is None, confidence=sure
                )
        return {each.sample: each.sample for each in samples}

    def withdraw(self, tasks: Sequence[str]) -> None:
        """Forget what was said of samples."""
        for task in tasks:
            self._finished.pop(task, None)
            self._heard.pop(task, None)

    def poll(self, tasks: Mapping[str, str]) -> Sequence[Finished]:
        """Return its labels; of a task that it does not remember it says that it cannot tell, and people are asked."""
        lost = [
            Finished(sample=sample, by="", skipped=True, confidence=0.0)
            for task, sample in tasks.items()
            if task not in self._finished
        ]
        found = [*self._finished.values(), *lost]
        self._finished = {}
        return found

    def status(self) -> SourceStatus:
        """Tell whether it is trusted, and why not."""
        return self._said

    def close(self) -> None:
        """Close its connections."""
        self._endpoint.close()

    def _is_trusted(self) -> bool:
        audits = list(self._setting.audits())[-_MOST_AUDITS:]
        new = [audit for audit in audits if audit.sample not in self._heard]
        for begin in range(0, len(new), _AT_ONCE):
            part = new[begin : begin + _AT_ONCE]
            answers = self._ask([(each.media_type, each.content) for each in part])
            self._heard |= {each.sample: answer for each, answer in zip(part, answers, strict=True)}
        return self._judged(audits)

    def _judged(self, audits: Sequence[Audit]) -> bool:
        # Where it would say nothing it can do no harm, so only what it would say is judged.
        said = [(self._heard[each.sample][0], each.label) for each in audits if self._heard[each.sample][0] is not None]
        right = sum(1 for label, truth in said if label == truth)
        if len(said) < self._audited:
            need = self._audited - len(said)
            self._said = SourceStatus(True, f"waits for {need} more labels of random samples that it is compared with")
            return False
        share = right / len(said)
        trusted = bool(share >= self._right)
        told = f"right on {share:.1%} of {len(said)} labels of people"
        self._said = SourceStatus(
            trusted, told if trusted else f"{told}, expected at least {self._right:.0%}: it labels nothing until it is"
        )
        return trusted

    def _ask(self, samples: Sequence[tuple[str, Callable[[], bytes]]]) -> list[tuple[int | None, float]]:
        """Return the label that it would give to each sample, None where it says nothing; and how sure it is."""
        inputs: list[Any] = []
        for media_type, content in samples:
            sample = decode_sample(content(), media_type)
            inputs.append(np.asarray(self._pre(sample) if self._pre is not None else sample))
        answers: list[tuple[int | None, float]] = [(None, 0.0)] * len(inputs)
        # Samples of several shapes cannot be one batch.
        for shape in {each.shape for each in inputs}:
            places = [place for place, each in enumerate(inputs) if each.shape == shape]
            for place, row in zip(places, self._outputs(np.stack([inputs[p] for p in places])), strict=True):
                answers[place] = self._answer(row)
        return answers

    def _outputs(self, batch: NDArray[Any]) -> NDArray[Any]:
        if self._input is None:
            described = self._endpoint.describe(deadline=self._deadline).inputs
            self._input = described[0].name if described else "input"
        reply = self._endpoint.infer({self._input: batch}, deadline=self._deadline, encodings={})
        outputs = np.asarray(next(iter(reply.outputs.values())))
        if outputs.ndim != 2 or len(outputs) != len(batch):
            raise ModelError(f"the teacher answered with the shape {outputs.shape}, expected {len(batch)} x classes")
        return outputs

    def _answer(self, row: NDArray[Any]) -> tuple[int | None, float]:
        values = class_scores(row).values
        best, sure = int(values.argmax()), float(values.max())
        known = self._known if self._known is not None else list(range(self._setting.labels.size or len(values)))
        if not np.isfinite(sure) or sure < self._confidence or best >= len(known):
            return None, sure if np.isfinite(sure) else 0.0
        return known[best], sure


def _opened(endpoint: str, token_file: str | None) -> Endpoint:
    if not isinstance(endpoint, str):
        raise SpecError(f"labelling.options.endpoint is {endpoint!r}, expected a model's URL or module:function")
    if "://" not in endpoint:
        return named_callable(endpoint)
    opened = open_endpoint(endpoint)
    if token_file is None:
        return opened
    try:
        token = Path(token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{token_file}: the teacher's token cannot be read ({error}); put it there") from error
    if not isinstance(opened, OpenInferenceEndpoint):
        raise SpecError("token_file works with a URL such as http://host/v2/models/NAME")
    opened.close()
    base, _, model = endpoint.rstrip("/").rpartition("/v2/models/")
    return OpenInferenceEndpoint(base, model, options=HttpOptions(token=token))


def _function(name: str) -> Callable[[Any], Any]:
    subject = f"labelling.options.pre is {name!r}, which"
    found: Callable[[Any], Any] = imported(name, subject, error=SpecError, kind="function", beside="the job file")
    return found
