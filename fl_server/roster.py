# SPDX-License-Identifier: Apache-2.0
"""Who takes part: which node is which edge, what each holds, who is busy, who is gone."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flwr.app import RecordDict

from ..core.events import EdgeJoined, EdgeLeftOut, Event, Warned
from ..lib.exchange import Answer, ArraySpec, Instruction, Verb
from ..lib.flower_objects import NODE_GONE
from ..strategies.model_form import describe_difference
from .mail import Mail, Outgoing, Reply, Sent

__all__ = ["Member", "Roster"]


@dataclass
class Member:
    """An edge that answered, under the node it is now."""

    node_id: int
    edge: str
    about: Answer
    unfit: str | None = None

    @property
    def can_train(self) -> bool:
        """Whether it has samples and a model of the job's form."""
        return self.unfit is None and self.about.samples > 0

    @property
    def can_evaluate(self) -> bool:
        """Whether it has samples to evaluate on and a model of the job's form."""
        return self.unfit is None and self.about.eval_samples > 0


class Roster:
    """Keeps track of the nodes of a run.

    Parameters
    ----------
    mail
        Greets new nodes.
    edges
        Names that the job lists.
    algorithm
        The job's aggregation algorithm, to be compared with what scripts ask for.
    owners
        Edge of each node id, where keys prove it; without keys an edge's own word is taken.
    """

    def __init__(
        self, mail: Mail, edges: Collection[str], *, algorithm: str, owners: Mapping[int, str] | None = None
    ) -> None:
        self._mail, self._edges, self._algorithm = mail, list(edges), algorithm
        self._owners = owners or {}
        self._greeted: set[int] = set()
        self._members: dict[str, Member] = {}
        self._known: set[str] = set()
        self._reference: list[ArraySpec] | None = None
        self._looked = 0.0

    def set_reference(self, specs: list[ArraySpec], round_number: int) -> list[Event]:
        """Fix the form that every edge's model must have; say whose is another."""
        self._reference = specs
        found: list[Event] = []
        for member in self.members():
            member.unfit = self._misfit(member.about)
            if member.unfit:
                found.append(EdgeLeftOut(edge=member.edge, round=round_number, reason=member.unfit))
        return found

    def members(self) -> list[Member]:
        """Return all edges that are here, in the job's order."""
        return [self._members[name] for name in self._edges if name in self._members]

    def idle(self) -> list[Member]:
        """Return the edges that are here and owe no answer."""
        busy = {sent.node_id for sent in self._mail.outstanding()}
        return [member for member in self.members() if member.node_id not in busy]

    def member_of(self, node_id: int) -> Member | None:
        """Return the edge that a node is, or None."""
        return next((m for m in self._members.values() if m.node_id == node_id), None)

    def missing(self) -> list[str]:
        """Return the job's edges that are not here."""
        return [name for name in self._edges if name not in self._members]

    def online(self, every: float) -> set[int] | None:
        """Return the nodes that are there; None if that was asked less than so many seconds ago."""
        now = time.monotonic()
        if now - self._looked < every:
            return None
        self._looked = now
        return set(self._mail.grid.get_node_ids())

    def look(self, every: float) -> tuple[list[Event], list[tuple[str, Sent]]]:
        """Look who is online, at most every so many seconds; greet the new, and drop the gone.

        Returns events, and what the gone still owed.
        """
        return self.update(self.online(every))

    def update(self, online: set[int] | None) -> tuple[list[Event], list[tuple[str, Sent]]]:
        """Greet who is new among those that `online` gave, and drop the gone, as `look` does.

        Take in replies between the two: then all that the gone have sent is there, and nothing of it is lost.
        """
        if online is None:
            return [], []
        new = online - self._greeted
        hello = Instruction(verb=Verb.HELLO)
        content = RecordDict()
        taken = self._mail.send([Outgoing(node_id, content, hello) for node_id in sorted(new)])
        self._greeted |= {node_id for node_id, ok in taken.items() if ok}
        owed = []
        for node_id in self._greeted - online:
            self._greeted.discard(node_id)
            owed += self._drop(node_id)
        return [], owed

    def _drop(self, node_id: int) -> list[tuple[str, Sent]]:
        gone = self._mail.forget(node_id)
        member = self.member_of(node_id)
        if member is None:
            return []
        del self._members[member.edge]
        return [(member.edge, sent) for sent in gone]

    def greeted(self, reply: Reply, round_number: int) -> tuple[list[Event], list[tuple[str, Sent]]]:
        """Take in a node's answer to the greeting.

        Returns events, and what the edge still owed under an earlier node.
        """
        node_id, answer = reply.sent.node_id, reply.answer
        if answer is None and reply.message.has_error() and reply.message.error.code == NODE_GONE:
            return [], []  # a node of a process that is no more; its edge is missed under its name
        if answer is None:
            return [Warned(message=f"a node answered the greeting with an error and is left out: {reply.error}")], []
        edge = answer.edge
        owner = self._owners.get(node_id)
        if edge not in self._edges or (self._owners and owner != edge):
            why = "the job does not list it" if edge not in self._edges else f"its key is {owner or 'nobody'}'s"
            return [Warned(message=f"a node that calls itself {edge!r} is left out: {why}")], []
        owed = self._drop(self._members[edge].node_id) if edge in self._members else []
        member = Member(node_id, edge, answer, self._misfit(answer))
        self._members[edge] = member
        events: list[Event] = [
            EdgeJoined(
                edge=edge,
                samples=answer.samples,
                eval_samples=answer.eval_samples,
                warm=answer.warm,
                back=edge in self._known,
            )
        ]
        if edge not in self._known:
            events += self._remarks(member)
        self._known.add(edge)
        if member.unfit:
            events.append(EdgeLeftOut(edge=edge, round=round_number, reason=member.unfit))
        return events, owed

    def _remarks(self, member: Member) -> list[Event]:
        found: list[Event] = []
        asked = member.about.algorithm
        if asked is not None and asked != self._algorithm:
            found.append(
                Warned(
                    message=f"{member.edge}'s script asks for {asked!r}, but the job aggregates with "
                    f"{self._algorithm!r}, which is what happens; set aggregation.algorithm to change it"
                )
            )
        if not member.about.samples:
            found.append(
                Warned(message=f"{member.edge} has no samples to train on; it only evaluates and gets the final model")
            )
        return found

    def _misfit(self, about: Answer) -> str | None:
        return describe_difference(about.arrays, self._reference) if self._reference is not None else None
