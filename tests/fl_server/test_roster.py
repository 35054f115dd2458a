# SPDX-License-Identifier: Apache-2.0
"""Who takes part, under which node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from flwr.app import RecordDict

from solar_corona.core.events import EdgeJoined, EdgeLeftOut, Warned
from solar_corona.fl_server.mail import Mail, Outgoing
from solar_corona.fl_server.roster import Roster
from solar_corona.lib.exchange import ArraySpec, Instruction, Verb
from solar_corona.lib.flower_objects import NODE_GONE
from solar_corona.strategies.model_form import describe_difference


@dataclass
class Here:
    """A roster, its mail and its network."""

    grid: Any
    mail: Mail
    roster: Roster

    def turn(self) -> tuple[list[Any], list[tuple[str, Any]]]:
        """Look who is there, and take in what they answer."""
        events, owed = self.roster.look(0.0)
        for reply in self.mail.poll():
            if reply.sent.instruction.verb is Verb.HELLO:
                more, still = self.roster.greeted(reply, 1)
                events, owed = [*events, *more], [*owed, *still]
        return events, owed

    def ask(self, name: str) -> None:
        """Send an edge work that it never answers."""
        member = next(m for m in self.roster.members() if m.edge == name)
        edge = self.grid.nodes[member.node_id]
        edge.script[9] = "silent"
        self.mail.send([Outgoing(member.node_id, RecordDict(), Instruction(verb=Verb.TRAIN, round=9))])

    def node(self, name: str) -> int:
        return next(node_id for node_id, edge in self.grid.nodes.items() if edge.name == name)


@pytest.fixture
def here(edge, network):
    def make(*edges, listed=("a", "b"), **more):
        grid = network(edges)
        mail = Mail(grid, ttl=60.0)
        return Here(grid, mail, Roster(mail, listed, algorithm="fedavg", **more))

    return make


def test_edges_are_greeted_once_and_stand_in_the_jobs_order(here, edge):
    place = here(edge("b"), edge("a"))
    events, owed = place.turn()
    assert sorted((e.edge, e.back) for e in events) == [("a", False), ("b", False)]
    assert owed == []
    assert [m.edge for m in place.roster.members()] == ["a", "b"]
    assert place.turn() == ([], [])
    assert [verb for _, verb, _ in place.grid.sent] == [Verb.HELLO, Verb.HELLO]


def test_a_node_whose_process_is_no_more_is_no_news_and_one_with_an_error_is(here, edge):
    place = here(edge("a"), edge("b", hello=NODE_GONE))
    events, _ = place.turn()
    assert [type(e) for e in events] == [EdgeJoined]
    assert place.roster.missing() == ["b"]
    events, _ = here(edge("a", hello=2)).turn()
    assert [e.message for e in events] == ["a node answered the greeting with an error and is left out: no answer"]


def test_it_is_not_looked_more_often_than_asked_for(here, edge):
    place = here(edge("a"))
    place.roster.look(60.0)
    place.grid.join(edge("b"))
    assert place.roster.look(60.0) == ([], [])
    assert len(place.grid.sent) == 1


def test_an_edge_that_owes_an_answer_is_not_idle(here, edge):
    place = here(edge("a"), edge("b"))
    place.turn()
    place.ask("a")
    assert [m.edge for m in place.roster.idle()] == ["b"]


def test_an_edge_that_is_gone_is_missing_and_owes_what_it_was_asked(here, edge):
    place = here(edge("a"), edge("b"))
    place.turn()
    place.ask("a")
    del place.grid.nodes[place.node("a")]
    events, owed = place.turn()
    assert events == []
    assert [(name, sent.instruction.verb) for name, sent in owed] == [("a", Verb.TRAIN)]
    assert place.roster.missing() == ["a"]
    assert place.mail.outstanding() == []


def test_an_edge_that_is_back_takes_its_old_nodes_place(here, edge):
    place = here(edge("a"), edge("b"))
    place.turn()
    old = place.node("a")
    place.ask("a")
    place.grid.join(edge("a"))  # the old node is not gone yet: the network finds out late
    events, owed = place.turn()
    assert [(e.edge, e.back) for e in events if isinstance(e, EdgeJoined)] == [("a", True)]
    assert [name for name, _ in owed] == ["a"]
    member = next(m for m in place.roster.members() if m.edge == "a")
    assert member.node_id != old
    assert place.roster.member_of(old) is None
    assert member in place.roster.idle()


def test_remarks_are_made_once_and_not_again_when_an_edge_is_back(here, edge):
    place = here(edge("a", samples=0))
    events, _ = place.turn()
    assert [e.message for e in events if isinstance(e, Warned)] == [
        "a has no samples to train on; it only evaluates and gets the final model"
    ]
    del place.grid.nodes[place.node("a")]
    place.turn()
    place.grid.join(edge("a", samples=0))
    events, _ = place.turn()
    assert [type(e) for e in events] == [EdgeJoined]


def test_strangers_and_impostors_are_left_out_and_told(here, edge):
    place = here(edge("z"))
    assert "'z' is left out: the job does not list it" in place.turn()[0][0].message
    grid_of = here(edge("a"), edge("b", says="a"))
    owners = {grid_of.node("a"): "a", grid_of.node("b"): "b"}
    grid_of.roster = Roster(grid_of.mail, ["a", "b"], algorithm="fedavg", owners=owners)
    events, _ = grid_of.turn()
    assert any(isinstance(e, Warned) and "its key is b's" in e.message for e in events)
    assert [m.node_id for m in grid_of.roster.members()] == [grid_of.node("a")]


def test_a_model_of_another_form_makes_an_edge_unfit_now_or_when_it_comes(here, edge):
    place = here(edge("a"), edge("b", size=9))
    place.turn()
    reference = place.roster.members()[0].about.arrays
    (event,) = place.roster.set_reference(reference, 3)
    assert isinstance(event, EdgeLeftOut)
    assert (event.edge, event.round) == ("b", 3)
    assert [m.can_train for m in place.roster.members()] == [True, False]
    assert [m.can_evaluate for m in place.roster.members()] == [True, False]
    late = here(edge("b", size=9))
    late.roster.set_reference(reference, 0)
    events, _ = late.turn()
    assert [type(e) for e in events] == [EdgeJoined, EdgeLeftOut]


def test_another_algorithm_in_the_script_is_told(here, edge):
    place = here(edge("a"))
    about = place.grid.nodes[place.node("a")].about
    place.grid.nodes[place.node("a")].about = lambda: about().model_copy(update={"algorithm": "krum"})
    events, _ = place.turn()
    (warned,) = [e for e in events if isinstance(e, Warned)]
    assert warned.message.startswith("a's script asks for 'krum', but the job aggregates with 'fedavg'")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([("w", (2,), "f4")], None),
        ([], "its model has 0 arrays, the job's has 1; every edge must build the same model"),
        (
            [("w", (3,), "f4")],
            "its model has w f4[3] where the job's has w f4[2]; every edge must build the same model",
        ),
        (
            [("v", (2,), "f4")],
            "its model has v f4[2] where the job's has w f4[2]; every edge must build the same model",
        ),
    ],
)
def test_what_differs_is_said_in_words(found, told):
    specs = [ArraySpec(name=n, shape=s, dtype=d) for n, s, d in found]
    assert describe_difference(specs, [ArraySpec(name="w", shape=(2,), dtype="f4")]) == told
