# SPDX-License-Identifier: Apache-2.0
"""The seam between the hub and whatever or whoever labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..hub.hub import LabelSpace

__all__ = ["Audit", "Finished", "LabellingSource", "Offer", "Setting", "SourceStatus"]


@dataclass(frozen=True)
class Offer:
    """A sample to be labelled.

    Parameters
    ----------
    sample
        Its id.
    media_type
        Form of its content; see `lib/sample_coding.py`.
    content
        Returns the content.
    guess
        What the model says, as a label is kept; None where that is none.
    confidence
        How sure the model is, 0 to 1.
    model
        The model's version.
    """

    sample: str
    media_type: str
    content: Callable[[], bytes]
    guess: Any = None
    confidence: float | None = None
    model: int = 0


@dataclass(frozen=True)
class Finished:
    """What was said of a sample there.

    Parameters
    ----------
    sample
        Its id.
    by
        Who says so; empty for a model.
    value
        The label, in any form that `LabelSpace.checked` takes.
    skipped
        Whether they cannot tell; a model's sample goes to people then.
    at
        Seconds since 1970; 0 for now.
    confidence
        A model's; None of people.
    """

    sample: str
    by: str
    value: Any = None
    skipped: bool = False
    at: float = 0.0
    confidence: float | None = None


@dataclass(frozen=True)
class Audit:
    """A random sample that a person labelled."""

    sample: str
    media_type: str
    label: Any
    content: Callable[[], bytes]


@dataclass(frozen=True)
class SourceStatus:
    """How a source stands, for the status page."""

    well: bool
    message: str
    link: str = ""


@dataclass(frozen=True)
class Setting:
    """What a source is made in.

    Parameters
    ----------
    job
        The job's name.
    labels
        What a label may be.
    agreement
        People who have to agree.
    audits
        Returns the latest random samples that people labelled.
    callback, callback_secret
        URL of the hub that a source may call when something was labelled, and what it has to send as the header
        `X-Webhook-Secret`; empty where the hub cannot be called.
    """

    job: str
    labels: LabelSpace = field(default_factory=LabelSpace)
    agreement: int = 1
    audits: Callable[[], Sequence[Audit]] = tuple
    callback: str = ""
    callback_secret: str = ""


@runtime_checkable
class LabellingSource(Protocol):
    """Whatever labels samples. One thread calls it.

    What it was given is written down by its caller; a source is made anew after a restart, and may find tasks that it
    does not remember.

    Attributes
    ----------
    machine
        Whether a model labels. Samples that were drawn at random stay with people then: they judge models.
    """

    machine: bool

    def room(self) -> int:
        """Return how many more samples it would take now."""

    def offer(self, samples: Sequence[Offer]) -> Mapping[str, str]:
        """Take samples to be labelled.

        Safe to repeat: a sample that it has already keeps its task.

        Returns
        -------
        mapping
            The task there of each sample that it took, at most 200 characters; one that it cannot show is left out.

        Raises
        ------
        TemporaryError
            If it does not answer.
        """

    def withdraw(self, tasks: Sequence[str]) -> None:
        """Forget tasks, and what it keeps of their samples; one that is not there is passed over."""

    def poll(self, tasks: Mapping[str, str]) -> Sequence[Finished]:
        """Return what was said since, or all that was; the same may come again.

        Parameters
        ----------
        tasks
            The tasks that it has, each with its sample.
        """

    def status(self) -> SourceStatus:
        """Tell how it stands; does not wait and does not raise."""

    def close(self) -> None:
        """Let go of connections."""
