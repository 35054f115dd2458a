# SPDX-License-Identifier: Apache-2.0
"""The edge's side of compressed models: decodes what comes, codes what goes, remembers what both build on.

An edge keeps the model that it decoded last, on which the next message builds, and for each record of its replies what
rounding lost, which goes along with the next reply. What was lost survives a restart in a file. The model does so only
where each message has a process of its own: a warm node that restarts is a new node and gets the whole model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from ..core.errors import SolarCoronaError, WireError
from ..lib import exchange
from ..lib.coded_records import CodedModel, Label, ReplyCoding, read_coded
from ..lib.compression import decode, digest, encode, form_of, readable, work_dtype
from ..lib.exchange import Weights
from ..lib.records import arrays_in, configs_in
from ..lib.sealed import load_sealed, write_sealed

__all__ = ["EdgeCoding"]

log = logging.getLogger(__name__)


class EdgeCoding:
    """Decodes and codes one edge's messages. Where the server does not compress, everything passes unchanged.

    Parameters
    ----------
    file
        Where the state lies between processes; None keeps it in memory.
    keeps_model
        Whether the model goes into the file too, for the process that answers the next message.
    """

    def __init__(self, file: Path | None = None, *, keeps_model: bool = False) -> None:
        self._keeps_model, self._run = keeps_model, ""
        self._begin(file)

    def settle(self, run: str, file: Path | None) -> None:
        """Begin anew for another of the job's runs, or where a process before this one was in it."""
        if run != self._run:
            self._run = run
            self._begin(file)

    def _begin(self, file: Path | None) -> None:
        self._file = file
        self._models: dict[str, tuple[str, Weights]] = {}
        self._lost: dict[str, Weights] = {}
        self._received: dict[str, tuple[str, Weights]] = {}
        self._reply: ReplyCoding | None = None
        self._changed = False
        self._load()

    def decode(self, content: RecordDict) -> RecordDict | None:
        """Return a message's content with ordinary models; None if the server has to send the whole model.

        Raises
        ------
        WireError
            If a model cannot be read.
        """
        coded = {key: model for key, value in content.items() if (model := read_coded(value)) is not None}
        self._received, self._reply = {}, None
        received: dict[str, tuple[str, Weights]] = {}
        for key, model in coded.items():
            weights = self._decode(key, model)
            if weights is None:
                return None
            received[key] = (model.label.version, weights)
            self._reply = model.label.reply
        self._received = received
        for key, model in coded.items():
            if model.label.keep:
                self._changed |= self._keeps_model
                self._models[key] = received[key]
        return RecordDict(
            {key: exchange.to_arrays(received[key][1]) if key in received else value for key, value in content.items()}
        )

    def _decode(self, key: str, model: CodedModel) -> Weights | None:
        label = model.label
        weights: Weights | None = None
        if label.base:
            version, weights = self._models.get(key, ("", None))
            if version != label.base:
                return None
        for step in model.steps:
            weights = decode(step, form_of(weights) if weights is not None else label.form, weights)
        if weights is None:
            raise WireError(f"a coded model {key!r} has neither base nor content; update both sides to one version")
        if digest(weights) == label.version:
            return weights
        if not label.base:
            raise WireError(f"the model {key!r} that came is not the one that was sent")
        log.warning("the model %r that came is not the one that was sent; the server is asked for the whole of it", key)
        return None

    def encode(self, record: RecordDict) -> RecordDict:
        """Return a reply's content with its models coded, as the message that is answered asks for."""
        reply = self._reply
        if reply is None:
            return record
        return RecordDict(
            {
                key: self._encode(key, value, reply) if key in arrays_in(record) else value
                for key, value in record.items()
            }
        )

    def _encode(self, key: str, value: Any, reply: ReplyCoding) -> Any:
        only = next(iter(self._received.values())) if len(self._received) == 1 else None
        version, base = self._received.get(key) or only or ("", None)
        weights = readable(value)
        if base is None or weights is None or form_of(weights) != form_of(base):
            return value
        lost = self._lost.get(key, {})
        if lost and _lossy_form(lost) != _lossy_form(base):
            log.warning("what was kept of %r for the next reply is of another model and is dropped", key)
            lost = {}
        data, decoded = encode(weights, base, reply.coder, residual=lost)
        self._lost[key] = {
            name: _missing(weights[name], decoded[name], lost.get(name))
            for name in weights
            if work_dtype(weights[name].dtype) is not None
        }
        self._changed = True
        return CodedModel(Label(base=version), (data,)).to_record()

    def save(self) -> None:
        """Write the state for the next process, if it changed; a full disk costs accuracy and not the job."""
        if self._file is None or not self._changed:
            return
        record = RecordDict({f"lost/{key}": exchange.to_arrays(lost) for key, lost in self._lost.items()})
        if self._keeps_model:
            for key, (version, weights) in self._models.items():
                record[f"model/{key}"] = exchange.to_arrays(weights)
                record[f"version/{key}"] = ConfigRecord({"version": version})
        try:
            write_sealed(self._file, record)
            self._changed = False
        except SolarCoronaError as error:
            log.warning("what compression has to remember is not kept for after a restart: %s", error)

    def forget(self) -> None:
        """Remove the state: the job is done."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _load(self) -> None:
        record = load_sealed(self._file, "compression")
        if record is None:
            return
        for name, arrays in arrays_in(record).items():
            kind, _, key = name.partition("/")
            weights = exchange.to_weights(arrays)
            if kind == "lost":
                self._lost[key] = weights
            elif self._keeps_model:
                self._models[key] = (str(configs_in(record)[f"version/{key}"]["version"]), weights)


def _lossy_form(weights: Mapping[str, NDArray[Any]]) -> list[Any]:
    works = {name: (value.shape, work_dtype(value.dtype)) for name, value in weights.items()}
    return [(name, shape, work) for name, (shape, work) in works.items() if work is not None]


def _missing(value: NDArray[Any], decoded: NDArray[Any], lost: NDArray[Any] | None) -> NDArray[Any]:
    """Return what the receiver still lacks: what it lacks of this model, and what it lacked before."""
    work = work_dtype(value.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        missing = np.subtract(value, decoded, dtype=work)
        if lost is not None:
            missing += lost
    return missing if np.isfinite(missing).all() else np.zeros_like(missing)
