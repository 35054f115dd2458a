# SPDX-License-Identifier: Apache-2.0
"""A loop on a real database, with tiny linear models, and tasks that end when a test says so."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sqlalchemy import select

from solar_corona.core.hub_messages import Observation
from solar_corona.core.incremental_spec import IncrementalLearningJob
from solar_corona.core.job_file import JobFile
from solar_corona.core.security import make_signing_key
from solar_corona.core.tasks import TaskState
from solar_corona.incremental import drift
from solar_corona.incremental.hub.hub import Hub, HubSettings, LabelSpace
from solar_corona.incremental.hub.ingest import Ingest
from solar_corona.incremental.hub.labels import GivenLabel, LabelBook
from solar_corona.incremental.loop import evaluate
from solar_corona.incremental.loop.machine import Loop, LoopParts
from solar_corona.incremental.loop.registry import Registry
from solar_corona.incremental.loop.trainings import Workplace
from solar_corona.incremental.loop.triggers import Triggers
from solar_corona.incremental.tables import Decision, Edge, LoopState, ModelVersion, ObservationEntry
from solar_corona.lib.sample_coding import encode_sample
from solar_corona.lib.sample_records import SampleRecord, pack, sample_id_of

CLASSES = 4
_SEEDS = itertools.count()
GOOD = 9 * np.eye(CLASSES)
BAD = 9 * np.eye(CLASSES)[:, [1, 0, 2, 3]]


def linear(path, weights):
    """Write softmax(x W) as ONNX."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["p"])]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(weights)])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", weights.shape[1]])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


class Tasks:
    """Tasks that a test ends; like processes, they outlive the loop. An evaluation is carried out here and now."""

    def __init__(self):
        self.workers, self.states, self.started, self.stopped = {}, {}, [], []
        self.candidate = GOOD
        self.by_itself = True

    def start(self, worker):
        if worker.name in self.workers:
            return
        self.workers[worker.name] = worker
        self.started.append(worker.name)
        self.states[worker.name] = TaskState("running")
        if self.by_itself:
            self.end(worker.name)

    def end(self, name, *, error="", killed=False):
        worker = self.workers[name]
        if error:
            self.states[name] = TaskState("failed", error, killed=killed)
            return
        if name.startswith("training"):
            if self.candidate is not None:
                linear(worker.context.output_model, self.candidate)
        else:
            assert evaluate.main([worker.command[-1]]) == 0
        self.states[name] = TaskState("succeeded")

    def state(self, name):
        return self.states.get(name, TaskState("unknown"))

    def stop(self, name):
        self.stopped += [name] if name in self.workers else []
        self.workers.pop(name, None)
        self.states.pop(name, None)


class World:
    """A job's hub and loop."""

    def __init__(self, folder, clock, spec):
        self.folder, self.clock, self.tasks = folder, clock, Tasks()
        if not (folder / "keys").exists():
            make_signing_key(folder / "keys" / "hub.sign.key", folder / "keys" / "hub.sign.pub")
            linear(folder / "first.onnx", BAD)
            (folder / "train.py").write_text("print('training')\n")
        fields = {
            "model": {"name": "digits", "path": "first.onnx"},
            "inference": {"script": "infer.py", "edges": [{"name": "e1"}, {"name": "e2"}]},
            "trigger": {"any": [{"labelled": 40}], "cooldown": 60},
            "training": {"script": "train.py", "replay": {"buffer": 10}},
            "gate": {"minLabels": 50, "maxLatency": 1000},
            "rollout": {"canary": 1, "watch": 10, "minSamples": 20},
            **spec,
        }
        document = {
            "apiVersion": "solar-corona.io/v1alpha1",
            "kind": "IncrementalLearningJob",
            "metadata": {"name": "j"},
            "spec": fields,
        }
        self.file = JobFile(folder / "job.yaml", IncrementalLearningJob.model_validate(document))
        self.hub = Hub(
            HubSettings(
                job="j",
                database=f"sqlite:///{folder}/hub.db",
                storage=str(folder / "storage"),
                labels=LabelSpace(count=CLASSES),
            ),
            clock=clock,
            patience=2.0,
        )
        self.rng = np.random.default_rng(next(_SEEDS))
        self.seq, self.python = 0, "python"
        self.loop = self.fresh()

    def fresh(self):
        """Return the loop as a process has it that has just been started."""
        registry = Registry(
            self.hub, model="digits", key=self.folder / "keys" / "hub.sign.key", folder=self.folder / "models"
        )
        spec = self.file.job.spec
        return Loop(
            LoopParts(
                hub=self.hub,
                file=self.file,
                registry=registry,
                tasks=self.tasks,
                place=Workplace(folder=self.folder / "work", base=str(self.folder), python=self.python),
                triggers=Triggers(spec.trigger, drift.create),
            )
        )

    def add(self, count, *, reason="random", edge="e1", model=1, labelled=True, confidence=0.9, right=True):
        """Put samples in, one class after another, and label them; return their ids."""
        frame, labels = [], []
        for number in range(count):
            truth = number % CLASSES
            x = np.eye(CLASSES, dtype=np.float32)[truth] + self.rng.normal(0, 0.01, CLASSES).astype(np.float32)
            coded = encode_sample(x)
            record = SampleRecord(
                sample_id_of(coded.content),
                coded.media_type,
                len(coded.content),
                edge,
                model,
                self.clock.now,
                reason,
                confidence=confidence,
                prediction=truth if right else (truth + 1) % CLASSES,
            )
            frame.append((record, coded.content))
            labels.append((record.id, truth))
        receipts = Ingest(self.hub).take(edge, pack(frame)).receipts
        assert {receipt.outcome for receipt in receipts} == {"stored"}
        if labelled:
            self.label(*zip(*labels, strict=True))
        return [record.id for record, _ in frame]

    def label(self, ids, values):
        """Let truth come."""
        given = zip(ids, values, strict=True)
        LabelBook(self.hub).put([GivenLabel(i, source="api", by="ann", value=v, at=self.clock.now) for i, v in given])

    def edge(self, name, *, active=1, error=None, seen_at=None):
        """Let an edge's heartbeat come."""
        heartbeat = {"edge": name, "sent_at": self.clock.now, "models": {"active": active, "error": error}}

        def work(session):
            row = session.get(Edge, name)
            if row is None:
                row = Edge(name=name, clock_ahead=0.0, seen_at=0, heartbeat={})
                session.add(row)
            row.seen_at, row.heartbeat = self.clock.now if seen_at is None else seen_at, heartbeat

        self.hub.database.write(work)

    def follow(self):
        """Let all edges follow their orders."""
        from solar_corona.incremental.hub.edge_routes import orders_for

        for name in ("e1", "e2"):
            self.edge(name)
            orders = self.hub.database.read(lambda s, name=name: orders_for(s, self.hub, s.get(Edge, name)))
            self.edge(name, active=orders.model.version if orders.model is not None else 0)

    def observe(self, count, *, version=2, reference=1, edge="e1", sample=None, **values):
        """Let a canary's observations come; half of the answers differ, as the tiny models' do."""
        rows = []
        for number in range(count):
            self.seq += 1
            own = number % CLASSES
            other = [1, 0, 2, 3][own]
            fields = {
                "agrees": own == other,
                "confidence": 0.99,
                "reference_confidence": 0.99,
                "answer": own,
                "reference_answer": other,
                "milliseconds": 1.0,
                "reference_milliseconds": 1.0,
                "sample": sample[number] if sample is not None else None,
                **values,
            }
            one = Observation(seq=self.seq, version=version, reference=reference, at=self.clock.now, **fields)
            rows.append(
                ObservationEntry(
                    edge=edge, seq=self.seq, version=version, reference=reference, value=one.model_dump(mode="json")
                )
            )
        self.hub.database.write(lambda session: session.add_all(rows))

    @property
    def row(self):
        return self.hub.database.read(lambda session: session.get(LoopState, 1))

    @property
    def phase(self):
        return self.row.phase if self.row is not None else None

    def decisions(self):
        query = select(Decision).order_by(Decision.id)
        return self.hub.database.read(lambda session: [(row.what, row.why) for row in session.scalars(query)])

    def version(self, number):
        return self.hub.database.read(lambda session: session.get(ModelVersion, number))

    def until(self, phase, *, steps=12):
        """Step until the loop is in a phase."""
        for _ in range(steps):
            if self.loop.step() == phase:
                return self.row
        raise AssertionError(f"the loop is {self.phase}, and never was {phase}; {json.dumps(self.decisions())}")


@pytest.fixture
def write_linear():
    """Return what writes softmax(x W) as ONNX."""
    return linear


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_world(tmp_path, clock):
    made = []

    def make(folder=None, **spec):
        made.append(World(folder or tmp_path, clock, spec))
        return made[-1]

    yield make
    for world in made:
        world.hub.close()


@pytest.fixture
def world(make_world):
    return make_world()


@pytest.fixture(scope="session")
def at_canary(tmp_path_factory):
    """Return the folder of a loop whose candidate has just passed the gate, and the time then."""
    clock, folder = Clock(), tmp_path_factory.mktemp("at-canary")
    world = World(folder, clock, {})
    world.follow()
    world.add(160)
    world.until("canary")
    world.hub.close()
    return folder, clock.now


@pytest.fixture
def canary(at_canary, make_world, tmp_path, clock):
    """Return a loop whose candidate has just passed the gate; jobs may differ in what comes after."""

    def make(**spec):
        folder, clock.now = at_canary
        shutil.copytree(folder, tmp_path / "copy")
        return make_world(tmp_path / "copy", **spec)

    return make
