# SPDX-License-Identifier: Apache-2.0
"""The server's side of compressed models: one chain of decoded models that all edges walk along.

The server keeps, for each record of a message (`arrays`, …), the model that edges decoded last. A new model is coded
once, as a step from there, for all edges. Because a step leads from what edges have and not from what they should
have, what one step loses is in the next one's difference: errors do not add up.

An edge that holds an earlier model of the chain gets the steps that it missed; one that holds none gets the model as
edges have it, whole, so that it walks along from there. Versions are digests, which edges check: an edge either has
exactly the model that the server counts on, or says that it needs the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from ..core.errors import WireError
from ..lib import exchange
from ..lib.coded_records import CodedModel, Label, ReplyCoding, read_coded
from ..lib.compression import Coder, decode, digest, encode, form_of, readable
from ..lib.exchange import Verb, Weights
from ..strategies.fedavg import view

if TYPE_CHECKING:
    from .mail import Outgoing

__all__ = ["Dispatch", "SentModel", "ServerCoding"]

_MOST_STEPS = 16
_CODED_VERBS = (Verb.TRAIN, Verb.EVALUATE)


@dataclass(frozen=True)
class _Step:
    """A way from one model of the chain to the next; from nothing (an empty base) at its beginning."""

    base: str
    version: str
    data: bytes


class _Contents:
    """What a record holds now; a strategy may change the record itself later, and bytes cannot change."""

    def __init__(self, arrays: ArrayRecord) -> None:
        self.labels = [(name, array.dtype, tuple(array.shape)) for name, array in arrays.items()]
        self.data = [array.data for array in arrays.values()]

    def are(self, other: _Contents | None) -> bool:
        """Tell whether both are the same model; where they share their bytes, as mostly, none is read."""
        return other is not None and self.labels == other.labels and self.data == other.data


@dataclass
class _Chain:
    """The models that edges decoded of one record, the last of them whole."""

    target: _Contents | None = None
    meant: Weights = field(default_factory=dict)
    version: str = ""
    weights: Weights = field(default_factory=dict)
    steps: list[_Step] = field(default_factory=list)
    records: dict[str, ConfigRecord] = field(default_factory=dict)

    def lead_to(self, target: ArrayRecord, root: Coder, coder: Coder) -> bool:
        """Make `target` the chain's last model, as near as one step comes; False if it cannot be coded."""
        contents = _Contents(target)
        if contents.are(self.target):
            return True
        weights = readable(target)
        if weights is None:
            return False
        if self.version and form_of(weights) != form_of(self.weights):
            self.version, self.weights, self.steps = "", {}, []
        data, decoded = encode(weights, self.weights if self.version else None, coder if self.version else root)
        version = digest(decoded)
        if version != self.version:
            if any(step.base == version for step in self.steps):
                self.steps.clear()  # back at an earlier model: a way along old steps would be a detour
            self.steps = [*self.steps, _Step(self.version, version, data)][-_MOST_STEPS:]
        self.target, self.meant = contents, {name: view(array) for name, array in target.items()}
        self.version, self.weights, self.records = version, decoded, {}
        return True

    def record_for(self, held: str, reply: ReplyCoding) -> ConfigRecord:
        """Return the coded model for an edge that holds version `held`; the same object for the same version."""
        if held not in self.records:
            self.records[held] = self._record_for(held, reply)
        return self.records[held]

    def _record_for(self, held: str, reply: ReplyCoding) -> ConfigRecord:
        label = Label(version=self.version, reply=reply)
        if held and held == self.version:
            return CodedModel(label.model_copy(update={"base": held}), ()).to_record()
        size = sum(value.nbytes for value in self.weights.values())
        for base in (held, ""):
            way = self._way_from(base)
            if way and sum(map(len, way)) < size:
                form = form_of(self.weights) if not base else []
                return CodedModel(label.model_copy(update={"base": base, "form": form}), tuple(way)).to_record()
        return _whole(self.version, self.weights, reply, keep=True)

    def _way_from(self, base: str) -> list[bytes]:
        for i, step in enumerate(self.steps):
            if step.base == base:
                return [s.data for s in self.steps[i:]]
        return []


def _whole(version: str, weights: Weights, reply: ReplyCoding, *, keep: bool) -> ConfigRecord:
    data, _ = encode(weights, None, Coder("exact"))
    label = Label(version=version, keep=keep, form=form_of(weights), reply=reply)
    return CodedModel(label, (data,)).to_record()


@dataclass(frozen=True)
class SentModel:
    """A coded model on its way: what the edge decodes, what was meant, and whether the edge keeps it."""

    version: str
    weights: Weights
    meant: Weights
    keep: bool


@dataclass(frozen=True)
class Dispatch:
    """A message's content as it goes out, and the models that are coded in it."""

    content: RecordDict
    models: dict[str, SentModel] = field(default_factory=dict)
    whole: bool = False


class ServerCoding:
    """Codes what goes to edges and decodes what they reply.

    Parameters
    ----------
    method, fraction
        The job's compression.
    """

    def __init__(self, method: Literal["fp16", "int8", "topk"], fraction: float) -> None:
        self._reply = ReplyCoding(method=method, fraction=fraction if method == "topk" else 1.0)
        self._root = Coder("fp16")
        # The mean of edges' sparse changes is less sparse than each: to send its largest entries alone costs accuracy,
        # and the zeros in it take next to nothing anyway.
        self._down = Coder("int8" if method == "topk" else method)
        self._chains: dict[str, _Chain] = {}
        self._held: dict[tuple[int, str], str] = {}

    def dispatch(self, messages: Sequence[Outgoing], busy: Collection[int]) -> list[Dispatch]:
        """Return messages as they go out.

        Parameters
        ----------
        messages
            Sent at the same time.
        busy
            Nodes that owe an answer: what they will hold by then is not known.
        """
        led: dict[str, _Contents] = {}
        unsure = set(busy)
        found: list[Dispatch] = []
        shared: dict[tuple[int, ...], RecordDict] = {}
        aside: dict[tuple[int, str], tuple[SentModel, ConfigRecord]] = {}
        for message in messages:
            if message.instruction.verb not in _CODED_VERBS:
                found.append(Dispatch(message.content))
                continue
            records: dict[str, Any] = dict(message.content.items())
            models: dict[str, SentModel] = {}
            for key, arrays in message.content.items():
                if not isinstance(arrays, ArrayRecord):
                    continue
                chain = self._chains.setdefault(key, _Chain())
                contents = _Contents(arrays)
                on_chain = led.setdefault(key, contents).are(contents) and message.node_id not in unsure
                if on_chain and chain.lead_to(arrays, self._root, self._down):
                    models[key] = SentModel(chain.version, chain.weights, chain.meant, keep=True)
                    records[key] = chain.record_for(self._held.get((message.node_id, key), ""), self._reply)
                elif (other := self._aside(arrays, key, aside)) is not None:
                    models[key], records[key] = other
            if models:
                unsure.add(message.node_id)
            # One object for all messages that are alike: they are packed once.
            like = (id(message.content), *(id(value) for value in records.values()))
            found.append(Dispatch(shared.setdefault(like, RecordDict(records)), models))
        return found

    def _aside(
        self, arrays: ArrayRecord, key: str, known: dict[tuple[int, str], tuple[SentModel, ConfigRecord]]
    ) -> tuple[SentModel, ConfigRecord] | None:
        """Return a model that is not the chain's, whole, so that it leads no other edge astray."""
        at = (id(arrays), key)
        if at not in known:
            weights = readable(arrays)
            if weights is None:
                return None
            model = SentModel(digest(weights), weights, weights, keep=False)
            known[at] = (model, _whole(model.version, weights, self._reply, keep=False))
        return known[at]

    def again(self, dispatch: Dispatch) -> Dispatch:
        """Return the same message for an edge that does not have what it builds on: with whole models."""
        records: dict[str, Any] = dict(dispatch.content.items())
        for key, model in dispatch.models.items():
            records[key] = _whole(model.version, model.weights, self._reply, keep=model.keep)
        return Dispatch(RecordDict(records), dispatch.models, whole=True)

    def arrived(self, node_id: int, dispatch: Dispatch, content: RecordDict) -> RecordDict:
        """Return a reply's content with ordinary models, and note what the node holds now.

        Raises
        ------
        WireError
            If a model in it cannot be read.
        """
        records: dict[str, Any] = {}
        for key, value in content.items():
            model = read_coded(value)
            records[key] = value if model is None else exchange.to_arrays(_decoded(key, model, dispatch))
        for key, sent in dispatch.models.items():
            if sent.keep:
                self._held[node_id, key] = sent.version
        return RecordDict(records)

    def forget(self, node_id: int) -> None:
        """Count on nothing that a node may have."""
        for at in [at for at in self._held if at[0] == node_id]:
            del self._held[at]


def _decoded(key: str, model: CodedModel, dispatch: Dispatch) -> Weights:
    sent = next((sent for sent in dispatch.models.values() if sent.version == model.label.base), None)
    if sent is None or len(model.steps) != 1:
        raise WireError(f"the reply's {key!r} builds on a model that the edge was not sent")
    # Added to what the edge had, its change would make what that lacked final.
    return decode(model.steps[0], form_of(sent.meant), sent.meant)
