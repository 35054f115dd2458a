# SPDX-License-Identifier: Apache-2.0
"""Opens what a script's job says about hard samples."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from .. import context
from ..sample_coding import SampleForm
from .budget import Budget
from .budget_file import BudgetFile
from .collector import Collector
from .controller_client import ControllerClient
from .detector import HardSampleDetector
from .registry import choose
from .sender import Sender

if TYPE_CHECKING:
    from ...core.context_document import ContextDocument

__all__ = ["job_form", "open_collector", "open_sender"]

_PER_HOUR = 500
_BUDGET = "hard-samples.json"
_lock = threading.Lock()
_senders: dict[tuple[str | None, str], Sender] = {}


def job_form() -> SampleForm:
    """Return how the job writes samples."""
    document = context.current()
    if document is None or document.hard_samples is None:
        return SampleForm()
    encode = document.hard_samples.encode
    return SampleForm(encode.format, encode.quality, encode.rate)


def open_sender() -> Sender:
    """Return the way to this node's LocalController, one in a process; one that keeps nothing where there is none."""
    document = context.current()
    address = document.controller if document is not None else None
    edge = document.worker if document is not None else "here"
    with _lock:
        found = _senders.get((address, edge))
        if found is None or found.closed:
            found = Sender(ControllerClient(address) if address is not None else None, edge)
            _senders[address, edge] = found
        return found


def open_collector(asked: HardSampleDetector | str | None) -> Collector | None:
    """Return what keeps hard samples, as a script asks for it, else as the job says; None if neither does.

    Without a LocalController, as in a script that runs alone, samples are looked at and counted, and none is kept.

    Raises
    ------
    ModelError
        If there is no such detector, or it does not take its options.
    """
    document = context.current()
    of_job = document.hard_samples if document is not None else None
    if asked is None and of_job is None:
        return None
    detector = choose(asked, of_job.detection, of_job.options) if of_job is not None else choose(asked)
    sender = open_sender()
    return Collector(
        detector,
        sender,
        budget=_budget(of_job.max_per_hour if of_job is not None else _PER_HOUR, document, sender),
        form=job_form(),
        edge=document.worker if document is not None else "here",
    )


def _budget(per_hour: int, document: ContextDocument | None, sender: Sender) -> Budget:
    folder = document.state_folder if document is not None else None
    if folder is None:
        return Budget(per_hour)
    file = BudgetFile(Path(folder, _BUDGET))
    file.budget = Budget(per_hour, spent=file.read())
    sender.reporters.append(file.report)
    return file.budget
