# SPDX-License-Identifier: Apache-2.0
"""Truth that a script learns later, and the id of the sample that it is about."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np

from ..core.errors import DatasetError
from ..lib.hard_samples.opening import job_form, open_sender
from ..lib.sample_coding import encode_sample
from ..lib.sample_records import sample_id_of

__all__ = ["report_label", "sample_id"]

_log = logging.getLogger(__name__)
_LARGEST = 1 << 16
_HEX = frozenset("0123456789abcdef")


def sample_id(sample: Any) -> str:
    """Return the id of a sample that `predict` is, or was, called with.

    It is the SHA-256 of the sample as the job writes it, and the same on every edge and in the cloud. `infer` gives it
    too, as `sample_id`, for what was kept.

    Parameters
    ----------
    sample
        One sample, without a batch axis, before `pre_fun`.

    Raises
    ------
    ModelError
        If the sample has no form without pickle.
    """
    return sample_id_of(encode_sample(sample, job_form()).content)


def report_label(sample: str, label: Any) -> None:
    """Send the truth about a sample that was kept, when the script learns it.

    It goes to the node's LocalController in the background, which keeps it until the cloud has it. A script that runs
    alone has nobody to tell, and the log says so once.

    Parameters
    ----------
    sample
        The sample's id, such as `sample_id(sample)`.
    label
        A class's number or name, boxes as the labelling page writes them, or a text.

    Raises
    ------
    DatasetError
        If the id is none, or the label is no plain value of at most 64 KiB.
    """
    if not isinstance(sample, str) or len(sample) != 64 or not set(sample) <= _HEX:
        raise DatasetError(
            f"report_label got {str(sample)[:70]!r} for a sample; expected its id of 64 hexadecimal digits, such as "
            f"sample_id(sample) returns"
        )
    value = _plain(label)
    sender = open_sender()
    if not sender.connected and "told" not in _said:
        _said.add("told")
        _log.warning("report_label: the script runs without a LocalController, so labels go nowhere")
    sender.label(sample, value)


_said: set[str] = set()


def _plain(label: Any) -> Any:
    value = label.tolist() if isinstance(label, np.ndarray | np.generic) else label
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"report_label got a label of the type {type(label).__name__} ({error}); expected a class's number or "
            f"name, a list of boxes, or a text"
        ) from error
    if value is None or len(text) > _LARGEST:
        what = "no label" if value is None else f"a label of {len(text)} characters"
        raise DatasetError(f"report_label got {what}; expected a plain value of at most {_LARGEST} characters as JSON")
    return json.loads(text)
