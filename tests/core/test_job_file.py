# SPDX-License-Identifier: Apache-2.0
"""Job files as people get them wrong, and what they are told."""

from __future__ import annotations

import copy
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solar_corona.core import yaml_documents
from solar_corona.core.errors import SpecError
from solar_corona.core.job_file import read_documents, read_job, read_job_file
from solar_corona.core.spec import API_VERSION, FederatedLearningJob

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JOB = """\
apiVersion: solar-corona.io/v1alpha1
kind: FederatedLearningJob
metadata: {name: digits}
spec:
  script: train.py
  parameters: {epochs: 1, batch_size: 32, aggregation_algorithm: fedavg}
  aggregation:
    algorithm: fedavg
    rounds: 5
    minEdges: 2
    roundDeadline: 60s
  edges:
    - name: edge-0
      trainData: data/edge-0.npz
      evalData: data/edge-0-eval.npz
    - {name: edge-1, trainData: data/edge-1.npz}
  output: {model: out/digits.keras}
"""


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[..., str]:
    """What somebody is told about a job file with this text."""

    def read(text: str | bytes, *overrides: str) -> str:
        path = tmp_path / "job.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(SpecError) as caught:
            read_job_file(path, overrides)
        message = str(caught.value)
        assert message.startswith((f"{path}:", "--set"))
        return message.replace(f"{path}:", "job.yaml:")

    return read


def accepted(tmp_path: Path, text: str, *overrides: str) -> FederatedLearningJob:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return read_job(path, overrides)


def test_the_example_of_the_reference_is_read(tmp_path):
    spec = accepted(tmp_path, JOB).spec
    assert (spec.aggregation.rounds, spec.aggregation.round_deadline, spec.min_edges) == (5, 60.0, 2)
    assert spec.parameters == {"epochs": 1, "batch_size": 32, "aggregation_algorithm": "fedavg"}
    assert [edge.eval_data for edge in spec.edges] == ["data/edge-0-eval.npz", None]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rounds: 5", "round: 5", "job.yaml:9: spec.aggregation.round is not known; did you mean rounds?"),
        ("script:", "scirpt:", "job.yaml:5: spec.scirpt is not known; did you mean script?"),
        ("minEdges", "min_edges", "job.yaml:10: spec.aggregation.min_edges is not known; did you mean minEdges?"),
        ("output: {model:", "output: {modle:", "job.yaml:17: spec.output.modle is not known; did you mean model?"),
        (
            "trainData: data/edge-0.npz",
            "trainData: {pth: a.npz}",
            (
                "job.yaml:14: spec.edges.0.trainData.path is missing; add it\n"
                "job.yaml:14: spec.edges.0.trainData.pth is not known; did you mean path?"
            ),
        ),
        (
            "{model: out/digits.keras}",
            "{zzz: 1}",
            "job.yaml:17: spec.output.zzz is not known; known here: model",
        ),
        (
            "rounds: 5",
            "rounds: 0",
            "job.yaml:9: spec.aggregation.rounds is 0, expected a number from 1; set spec.aggregation.rounds",
        ),
        (
            "rounds: 5",
            "rounds: many",
            "job.yaml:9: spec.aggregation.rounds is 'many', expected a whole number; set spec.aggregation.rounds",
        ),
        (
            "rounds: 5",
            "rounds: 1.5",
            "job.yaml:9: spec.aggregation.rounds is 1.5, expected a whole number; set spec.aggregation.rounds",
        ),
        (
            "rounds: 5",
            "rounds: 100001",
            (
                "job.yaml:9: spec.aggregation.rounds is 100001, expected a number up to 100000; "
                "set spec.aggregation.rounds"
            ),
        ),
        (
            "rounds: 5",
            "fraction: 0",
            "job.yaml:9: spec.aggregation.fraction is 0, expected a number above 0.0; set spec.aggregation.fraction",
        ),
        (
            "rounds: 5",
            "options: [1]",
            "job.yaml:9: spec.aggregation.options is a list, expected a mapping; set spec.aggregation.options",
        ),
        (
            "60s",
            "soon",
            (
                "job.yaml:11: spec.aggregation.roundDeadline is wrong: 'soon' is not a duration; "
                "write it like 30s, 5m or 1h30m"
            ),
        ),
        (
            "trainData: data/edge-0.npz",
            "trainData: 5",
            "job.yaml:14: spec.edges.0.trainData is 5, expected text or a mapping; set spec.edges.0.trainData",
        ),
        (
            "trainData: data/edge-0.npz",
            "trainData: {path: a, size: [1, -1]}",
            (
                "job.yaml:14: spec.edges.0.trainData.size.1 is -1, expected a number from 1; "
                "set spec.edges.0.trainData.size.1"
            ),
        ),
        ("      trainData: data/edge-0.npz\n", "", "job.yaml:13: spec.edges.0.trainData is missing; add it"),
        ("metadata: {name: digits}\n", "", "job.yaml:1: metadata is missing; add it"),
        (
            "{name: digits}",
            "{name: My_Digits}",
            (
                "job.yaml:3: metadata.name is 'My_Digits', expected lower-case letters, digits and '-', at most 63, "
                "with a letter or digit at both ends; set metadata.name"
            ),
        ),
        (
            "output: {model: out/digits.keras}",
            "security: yes",
            "job.yaml:17: spec.security is True, expected a mapping; set spec.security",
        ),
        (
            "output: {model: out/digits.keras}",
            "evaluation: {alone: maybe}",
            "job.yaml:17: spec.evaluation.alone is 'maybe', expected true or false; set spec.evaluation.alone",
        ),
        (
            "output: {model: out/digits.keras}",
            "command: python",
            "job.yaml:17: spec.command is 'python', expected a list; set spec.command",
        ),
        (
            "output: {model: out/digits.keras}",
            "model: {path: m.keras, sha256: ABC}",
            "job.yaml:17: spec.model.sha256 is 'ABC', expected 64 digits of 0-9 and a-f; set spec.model.sha256",
        ),
        (
            "minEdges: 2",
            "minEdges: 3",
            (
                "job.yaml:4: spec is wrong: aggregation.minEdges is 3, but the job has 2 edge(s); "
                "lower minEdges or add edges"
            ),
        ),
        (
            "edge-1,",
            "edge-0,",
            "job.yaml:12: spec.edges is wrong: edge names must be unique, and edge-0 stands more than once; rename one",
        ),
        (
            "edge-1,",
            "server,",
            "job.yaml:12: spec.edges is wrong: server is the name of a worker that each job has; rename that edge",
        ),
        (
            "FederatedLearningJob",
            "FederatedLearnigJob",
            (
                "job.yaml:2: kind is 'FederatedLearnigJob', expected one of FederatedLearningJob, "
                "JointInferenceService, IncrementalLearningJob, Dataset, Model; "
                "did you mean FederatedLearningJob?"
            ),
        ),
        (
            "kind: FederatedLearningJob\n",
            "",
            (
                "job.yaml:1: kind is None, expected one of FederatedLearningJob, JointInferenceService, "
                "IncrementalLearningJob, Dataset, Model"
            ),
        ),
        (
            "v1alpha1",
            "v1",
            "job.yaml:1: apiVersion is 'solar-corona.io/v1', expected solar-corona.io/v1alpha1",
        ),
        (
            "    algorithm: fedavg\n    rounds",
            "    rounds",
            None,
        ),
    ],
)
def test_a_wrong_field_is_told_with_line_value_and_what_to_do(refusal, tmp_path, old, new, told):
    assert old in JOB
    text = JOB.replace(old, new, 1)
    if told is None:
        accepted(tmp_path, text)
    else:
        assert refusal(text) == told


def test_an_algorithm_that_is_no_name_is_not_taken_for_the_default(refusal):
    text = JOB.replace("    algorithm: fedavg\n", "").replace(
        "aggregation_algorithm: fedavg", "aggregation_algorithm: 5"
    )
    assert "parameters.aggregation_algorithm is 5, expected the name of a strategy" in refusal(text)


def test_no_edges_and_a_bad_environment_variable_are_told(refusal):
    empty = JOB[: JOB.index("    - name: edge-0")].replace("edges:", "edges: []")
    assert "spec.edges is a list, expected at least 1 in it" in refusal(empty)
    assert "'A=B' names no environment variable" in refusal(JOB + "  env: {A=B: x}\n")


def test_wrong_fields_are_told_in_the_files_order_the_first_ten(refusal):
    text = JOB.replace("kind:", "wrong: 1\nkind:") + "".join(f"  wrong{i}: 1\n" for i in range(12))
    told = refusal(text).splitlines()
    assert told[-1] == "… and 3 more"
    lines = [int(line.split(":")[1]) for line in told[:-1]]
    assert len(lines) == 10
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty, expected a document with apiVersion, kind, metadata and spec"),
        ("# nothing yet\n---\n---\n", "is empty"),
        ("just words", ":1: is text, expected a document"),
        ("- a\n- b", ":1: is a list, expected a document"),
        ("spec: {a: [}", ":1: is no valid YAML"),
        ("a: b\n\tc: d", ":2: is no valid YAML"),
        ("a: *nobody", ":1: is no valid YAML: found undefined alias 'nobody'"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !!set {x}", "could not determine a constructor"),
        ("a: 1\x07", "has the character #x0007, which no text has"),
        ('a: "\\0"', "has the character #x0000"),
        ('a:\n  b: "\\ud800"', "job.yaml:2: is no valid YAML: has the character #xd800"),
        ("a: {b: .inf}", "has the number .inf, which JSON cannot write; put it in quotes"),
        ("a: " + "9" * 5000, "is no valid YAML"),
        (b"\xff\xfe\x00a", "is not UTF-8 text; is it a job file?"),
        (bytes(range(256)), "is not UTF-8 text"),
        ("[" * 3000, "nested too deeply"),
        ("x: " * 3, "is no valid YAML: mapping values are not allowed here"),
    ],
)
def test_what_is_no_job_file_is_told_as_such(refusal, text, told):
    assert told in refusal(text)


def test_a_field_that_stands_twice_is_an_error_with_both_lines(refusal):
    text = JOB.replace("  script: train.py\n", "  script: train.py\n  script: other.py\n")
    assert refusal(text).startswith(
        "job.yaml:6: is no valid YAML: script stands twice, in line 5 and in line 6; remove one"
    )
    assert "epochs stands twice" in refusal(JOB.replace("{epochs: 1,", "{epochs: 1, epochs: 2,"))


def test_a_key_that_is_no_text_is_told_before_json_turns_it_into_text(refusal):
    told = refusal(JOB.replace("{epochs: 1,", "{class_weight: {0: 1.0, 1: 9.0},"))
    assert told.startswith("job.yaml:6: is no valid YAML: key 0 is no text; put it in quotes")
    assert "key on is no text" in refusal(JOB + "  on: 1\n")
    assert "a key is no text" in refusal(JOB + "  ? [a]\n  : 1\n")


def test_what_looks_like_a_date_stays_text(tmp_path):
    spec = accepted(tmp_path, JOB.replace("{epochs: 1,", "{since: 2024-01-31, sign: =, nested: {at: 2024-01-31},")).spec
    assert (spec.parameters["since"], spec.parameters["sign"]) == ("2024-01-31", "=")
    assert spec.parameters["nested"] == {"at": "2024-01-31"}


def test_parameters_keep_the_types_of_the_yaml(tmp_path):
    text = JOB.replace("{epochs: 1,", "{a: 1, b: 1.0, c: '1', d: true, e: null, f: [1, {g: no}],")
    given = accepted(tmp_path, text).spec.parameters
    assert {k: given[k] for k in "abcdef"} == {"a": 1, "b": 1.0, "c": "1", "d": True, "e": None, "f": [1, {"g": False}]}
    assert [type(given[k]) for k in "abcd"] == [int, float, str, bool]


def test_aliases_and_merges_are_welcome(tmp_path):
    text = JOB.replace("- name: edge-0\n", "- &first\n      name: edge-0\n").replace(
        "- {name: edge-1, trainData: data/edge-1.npz}", "- {<<: *first, name: edge-1}"
    )
    edges = accepted(tmp_path, text).spec.edges
    assert [edge.name for edge in edges] == ["edge-0", "edge-1"]
    assert edges[0].eval_data == edges[1].eval_data == "data/edge-0-eval.npz"


def _laughs(form: str, levels: int) -> str:
    lines = ["a0: &a0 {x: 1}" if "<<" in form else "a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} " + form.format(", ".join([f"*a{i - 1}"] * 10)) for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}"])
def test_a_billion_laughs_are_stopped_before_they_grow(refusal, form):
    assert f"has more than {yaml_documents.MOST_VALUES} values" in refusal(_laughs(form, 12))


def test_an_alias_to_what_is_around_it_is_refused(refusal):
    assert "an alias refers to what it is a part of" in refusal("a: &a [*a]")


def test_a_file_of_more_than_10_mib_is_refused_unread(refusal):
    assert "is larger than 10485760 bytes, which no job file is" in refusal(b"#" * (10 * 2**20 + 1))


def test_a_device_that_never_ends_is_refused(tmp_path):
    link = tmp_path / "job.yaml"
    link.symlink_to("/dev/zero")
    with pytest.raises(SpecError, match="is larger than"):
        read_documents(link)


def test_a_pipe_is_read_as_a_file_is(tmp_path):
    pipe = tmp_path / "job.yaml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(JOB))
    writer.start()
    assert read_job(pipe).metadata.name == "digits"
    writer.join()


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    (tmp_path / "digits.yaml").write_text(JOB)
    with pytest.raises(SpecError, match=r"digit\.yaml: does not exist; did you mean .*digits\.yaml\?"):
        read_job(tmp_path / "digit.yaml")
    with pytest.raises(SpecError, match="does not exist; give the path of a job file"):
        read_job(tmp_path / "no" / "where.yaml")
    with pytest.raises(SpecError, match="is a folder; give the path of a job file"):
        read_job(tmp_path)
    with pytest.raises(SpecError, match="cannot be read: File name too long"):
        read_job(tmp_path / ("x" * 300))


def test_a_file_may_end_with_a_separator_and_hold_empty_documents(tmp_path):
    assert accepted(tmp_path, f"---\n{JOB}---\n").metadata.name == "digits"


# --- several documents

DATASET = "---\napiVersion: solar-corona.io/v1alpha1\nkind: Dataset\nmetadata: {{name: {0}}}\nspec: {{path: {0}.npz}}\n"
MODEL = "---\napiVersion: solar-corona.io/v1alpha1\nkind: Model\nmetadata: {name: start}\nspec: {path: s.keras}\n"


def test_datasets_and_models_beside_the_job_are_found_by_name(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(JOB + DATASET.format("one") + DATASET.format("two") + MODEL)
    file = read_job_file(path)
    assert {name: d.spec.path for name, d in file.datasets.items()} == {"one": "one.npz", "two": "two.npz"}
    assert file.models["start"].spec.path == "s.keras"


def test_documents_that_cannot_stand_together_are_told(refusal):
    assert "holds two Dataset documents called 'one'; rename or remove one" in refusal(
        JOB + DATASET.format("one") + DATASET.format("one")
    )
    assert "holds 2 jobs, expected exactly one" in refusal(JOB + "---\n" + JOB)
    assert "holds 0 jobs" in refusal(MODEL)


def test_a_wrong_field_in_a_later_document_is_told_with_its_line_in_the_file(refusal):
    told = refusal(JOB + DATASET.format("one").replace("path", "pth"))
    line = JOB.count("\n") + 5
    assert told.splitlines()[0] == f"job.yaml:{line}: spec.path is missing; add it"


# --- --set


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("spec.aggregation.rounds=3", lambda s: s.aggregation.rounds, 3),
        (" spec.aggregation.rounds = 3 ", lambda s: s.aggregation.rounds, 3),
        ("spec.edges.1.trainData=x=y.npz", lambda s: s.edges[1].train_data, "x=y.npz"),
        ("spec.parameters.lr=0.5", lambda s: s.parameters["lr"], 0.5),
        ("spec.parameters.on=true", lambda s: s.parameters["on"], True),
        ("spec.parameters.text='1'", lambda s: s.parameters["text"], "1"),
        ("spec.parameters.layers=[1, {a: 2}]", lambda s: s.parameters["layers"], [1, {"a": 2}]),
        ("spec.parameters.nothing=", lambda s: s.parameters["nothing"], None),
        ("spec.evaluation.alone=true", lambda s: s.evaluation.alone, True),
        ("spec.aggregation.roundDeadline=90s", lambda s: s.aggregation.round_deadline, 90.0),
        ("spec.edges=[{name: a, trainData: b}, {name: c, trainData: d}]", lambda s: s.edges[1].name, "c"),
    ],
)
def test_set_changes_one_field_and_reads_its_value_as_yaml(tmp_path, override, read, value):
    found = read(accepted(tmp_path, JOB, override).spec)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rounds", "--set rounds: expected FIELD=VALUE, such as spec.aggregation.rounds=3"),
        ("=3", "--set =3: expected FIELD=VALUE"),
        ("spec..rounds=3", "expected FIELD=VALUE"),
        ("spec.aggregation.round=3", "--set: spec.aggregation.round is not known; did you mean rounds?"),
        ("spec.agregation.rounds=3", "--set: spec.agregation is not known; did you mean aggregation?"),
        (
            "spec.aggregation.rounds=x",
            "--set: spec.aggregation.rounds is 'x', expected a whole number; set spec.aggregation.rounds",
        ),
        ("spec.aggregation.minEdges=9", "--set: spec is wrong: aggregation.minEdges is 9, but the job has 2 edge(s)"),
        ("spec.script.name=x", "--set spec.script.name=x: spec.script holds no fields"),
        ("spec.edges.7.name=x", "spec.edges is a list of 2, which has no '7'; give an index from 0"),
        ("spec.edges.-1.name=x", "which has no '-1'"),
        ("spec.edges.²=x", "which has no '²'"),
        ("spec.edges." + "1" * 5000 + "=x", "is a list of 2"),
        ("spec.edges.first.name=x", "which has no 'first'"),
        ("spec.script=[", "the value is no valid YAML"),
        ("spec.parameters.a=" + "[" * 3000, "nested too deeply"),
        ("spec.parameters.a={b: 1, b: 2}", "b stands twice"),
        ("kind=Dataset", "--set: kind is 'Dataset', expected 'FederatedLearningJob'"),
    ],
)
def test_a_wrong_set_is_told_as_such(refusal, override, told):
    assert told in refusal(JOB, override)


def test_set_changes_what_an_alias_shares_in_one_place_only(tmp_path):
    text = JOB.replace("trainData: data/edge-0.npz", "trainData: &d {path: a.npz}").replace(
        "trainData: data/edge-1.npz", "trainData: *d"
    )
    edges = accepted(tmp_path, text, "spec.edges.0.trainData.path=b.npz").spec.edges
    assert [edge.train_data.path for edge in edges] == ["b.npz", "a.npz"]


# --- properties

names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=6)
durations = st.integers(0, 10**9).map(lambda ms: ms / 1000)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    edge_names = draw(
        st.lists(names.filter(lambda n: n not in ("server", "superlink")), min_size=1, max_size=4, unique=True)
    )
    source = st.fixed_dictionaries(
        {"path": texts},
        optional={"format": st.sampled_from(["npz", "csv"]), "x": st.lists(texts, max_size=2), "size": st.just([2, 3])},
    )
    edges = [
        draw(
            st.fixed_dictionaries(
                {"name": st.just(name), "trainData": texts | source},
                optional={"evalData": texts | source, "parameters": st.dictionaries(texts, values, max_size=2)},
            )
        )
        for name in edge_names
    ]
    return {
        "apiVersion": API_VERSION,
        "kind": "FederatedLearningJob",
        "metadata": {"name": draw(names), "labels": draw(st.dictionaries(texts, texts, max_size=2))},
        "spec": {
            "script": draw(texts),
            "parameters": draw(
                st.dictionaries(texts.filter(lambda t: t != "aggregation_algorithm"), values, max_size=4)
            ),
            "aggregation": draw(
                st.fixed_dictionaries(
                    {"rounds": st.integers(1, 100_000)},
                    optional={
                        "minEdges": st.integers(1, len(edges)),
                        "fraction": st.floats(0, 1, exclude_min=True),
                        "roundDeadline": durations,
                        "options": st.dictionaries(texts, values, max_size=2),
                    },
                )
            ),
            "edges": edges,
            "security": {"tls": draw(st.booleans())},
        },
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(document=jobs())
def test_a_valid_job_survives_being_written_and_read(tmp_path, document):
    job = FederatedLearningJob.model_validate(document, by_name=False)
    path = tmp_path / "job.yaml"
    # As a run folder keeps it: this is what a resumed run reads.
    kept = job.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    again = read_job(path)
    expected = job.model_dump(exclude_none=True)
    assert again.model_dump(exclude_none=True) == expected
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    assert read_job(path) == job


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in _places(item, (*at, key)))]


anything = st.recursive(
    scalars | st.floats() | st.text() | st.dates() | st.binary(max_size=5) | st.integers(10**300, 10**400),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(scalars, v, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_no_change_of_a_valid_document_raises_anything_but_a_spec_error(tmp_path, data):
    document = copy.deepcopy(yaml.safe_load(JOB))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(_places(document)[1:]))
        parent = document
        for key in place[:-1]:
            parent = parent[key]
        change = data.draw(st.sampled_from(["replace", "remove", "rename"]))
        if change == "replace":
            parent[place[-1]] = data.draw(anything)
        elif change == "remove":
            del parent[place[-1]]
        elif isinstance(parent, dict):
            parent[data.draw(scalars)] = parent.pop(place[-1])
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8", errors="replace")
    _reads_or_refuses(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, len(JOB)), junk=st.binary(max_size=12), skip=st.integers(0, 20))
def test_no_damage_to_the_text_raises_anything_but_a_spec_error(tmp_path, cut, junk, skip):
    path = tmp_path / "job.yaml"
    path.write_bytes(JOB.encode()[:cut] + junk + JOB.encode()[cut + skip :])
    _reads_or_refuses(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    keys=st.lists(st.sampled_from(["spec", "edges", "0", "aggregation", "parameters", "name"]) | texts, max_size=5),
    value=texts | st.text(),
)
def test_no_override_raises_anything_but_a_spec_error(tmp_path, keys, value):
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    _reads_or_refuses(path, f"{'.'.join(keys)}={value}")


def _reads_or_refuses(path: Path, *overrides: str) -> None:
    try:
        job = read_job(path, overrides)
    except SpecError:
        return
    job.model_dump_json(by_alias=True)
