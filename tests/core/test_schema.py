# SPDX-License-Identifier: Apache-2.0
"""The job file's JSON schema."""

from __future__ import annotations

import json

import pytest

from solar_corona.core.documents import KINDS
from solar_corona.core.errors import SpecError
from solar_corona.core.schema import job_file_schema


def _fields(schema, *path):
    found = schema
    for name in path:
        found = found["properties"][name]
        while "$ref" in found:
            found = schema["$defs"][found["$ref"].rpartition("/")[2]]
    return found


def test_the_schema_of_a_kind_speaks_camel_case_and_forbids_what_is_unknown():
    schema = job_file_schema("FederatedLearningJob")
    aggregation = _fields(schema, "spec", "aggregation")
    assert {"minEdges", "roundDeadline", "startDeadline"} <= set(aggregation["properties"])
    assert aggregation["additionalProperties"] is False
    assert set(schema["required"]) == {"apiVersion", "kind", "metadata", "spec"}
    assert aggregation["properties"]["roundDeadline"]["type"] == "string"


def test_the_schema_of_all_holds_each_kind_and_is_json():
    text = json.dumps(job_file_schema())
    assert all(kind in text for kind in KINDS)
    assert json.loads(text)["$schema"].startswith("https://json-schema.org/")


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_is_described(kind):
    schema = job_file_schema(kind)
    parts = [schema, *schema.get("$defs", {}).values()]
    bare = [
        f"{part['title']}.{name}"
        for part in parts
        for name, field in part.get("properties", {}).items()
        if "description" not in field and name not in ("kind", "spec")
    ]
    assert bare == []


def test_no_schema_says_what_a_clusters_schema_cannot():
    text = json.dumps(job_file_schema())
    assert "patternProperties" not in text
    assert "propertyNames" not in text


def test_an_unknown_kind_is_told_with_the_nearest():
    with pytest.raises(SpecError, match=r"there is no kind 'Datset'; did you mean Dataset\?"):
        job_file_schema("Datset")
    with pytest.raises(
        SpecError, match="known: FederatedLearningJob, JointInferenceService, IncrementalLearningJob, Dataset, Model"
    ):
        job_file_schema("X")
