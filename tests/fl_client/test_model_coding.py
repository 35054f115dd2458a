# SPDX-License-Identifier: Apache-2.0
"""The edge's side of compressed models, over restarts and damaged files."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, RecordDict

from solar_corona.core.errors import WireError
from solar_corona.fl_client.model_coding import EdgeCoding
from solar_corona.lib import exchange
from solar_corona.lib.coded_records import CodedModel, Label, ReplyCoding, read_coded
from solar_corona.lib.compression import Coder, decode, digest, encode, form_of

TOPK = ReplyCoding(method="topk", fraction=0.1)
RNG = np.random.default_rng(0)
START = {"w": RNG.standard_normal(1000).astype(np.float32), "n": np.asarray(3, np.int64)}
TRAINED = {"w": (START["w"] + 0.1 * RNG.standard_normal(1000)).astype(np.float32), "n": np.asarray(4, np.int64)}


def whole(weights, **more):
    label = Label(version=digest(weights), form=form_of(weights), reply=TOPK, **more)
    return CodedModel(label, (encode(weights, None, Coder("exact"))[0],)).to_record()


def step(target, base):
    data, decoded = encode(target, base, Coder("int8"))
    label = Label(base=digest(base), version=digest(decoded), reply=TOPK)
    return CodedModel(label, (data,)).to_record(), decoded


def reply(edge, weights=TRAINED, key="arrays"):
    """Return a reply as the server decodes it against `START`, or None where it went uncoded."""
    record = edge.encode(RecordDict({key: exchange.to_arrays(weights), "metrics": exchange.to_metrics(1, {})}))
    assert list(record) == [key, "metrics"]
    coded = read_coded(record[key])
    return None if coded is None else decode(coded.steps[0], form_of(START), START)


def test_a_restarted_edge_sends_what_its_last_reply_lacked(tmp_path):
    edge = EdgeCoding(tmp_path / "state.bin")
    edge.decode(RecordDict({"arrays": whole(START)}))
    first = reply(edge)
    edge.save()
    restarted = EdgeCoding(tmp_path / "state.bin")
    restarted.decode(RecordDict({"arrays": whole(START)}))
    second = reply(restarted, START)
    lacked = TRAINED["w"] - first["w"]
    sent = np.flatnonzero(second["w"] != START["w"])
    assert 0 < len(sent) <= 100
    assert np.abs(lacked[sent]).min() >= np.sort(np.abs(lacked))[-100]
    fresh = EdgeCoding(tmp_path / "other.bin")
    fresh.decode(RecordDict({"arrays": whole(START)}))
    assert np.array_equal(reply(fresh, START)["w"], START["w"])


def test_each_record_of_a_reply_keeps_its_own_remainder():
    edge = EdgeCoding()
    edge.decode(RecordDict({"arrays": whole(START), "arrays/1": whole(START)}))
    reply(edge, TRAINED, "arrays/1")
    edge.decode(RecordDict({"arrays": whole(START), "arrays/1": whole(START)}))
    assert np.array_equal(reply(edge, START, "arrays")["w"], START["w"])
    assert not np.array_equal(reply(edge, START, "arrays/1")["w"], START["w"])


def test_a_damaged_state_is_dropped_with_a_warning(tmp_path, caplog):
    edge = EdgeCoding(tmp_path / "state.bin", keeps_model=True)
    edge.decode(RecordDict({"arrays": whole(START)}))
    reply(edge)
    edge.save()
    data = (tmp_path / "state.bin").read_bytes()
    for bad in (b"", data[:50], data[:-1], data[:100] + b"x" + data[101:]):
        (tmp_path / "state.bin").write_bytes(bad)
        caplog.clear()
        damaged = EdgeCoding(tmp_path / "state.bin", keeps_model=True)
        assert "is damaged" in caplog.text
        damaged.decode(RecordDict({"arrays": whole(START)}))
        assert np.array_equal(reply(damaged, START)["w"], START["w"])


def test_a_remainder_of_another_model_is_dropped_with_a_warning(tmp_path, caplog):
    other = {"w": START["w"][:600], "n": START["n"]}
    edge = EdgeCoding(tmp_path / "state.bin")
    edge.decode(RecordDict({"arrays": whole(other)}))
    edge.encode(RecordDict({"arrays": exchange.to_arrays({"w": other["w"] + 1, "n": other["n"]})}))
    edge.save()
    restarted = EdgeCoding(tmp_path / "state.bin")
    restarted.decode(RecordDict({"arrays": whole(START)}))
    reply(restarted, START)
    assert "of another model and is dropped" in caplog.text


def test_an_edge_without_the_base_asks_for_the_whole_and_one_that_kept_it_on_disk_does_not(tmp_path):
    coded, decoded = step(TRAINED, START)
    assert EdgeCoding().decode(RecordDict({"arrays": coded})) is None
    for keeps in (True, False):
        edge = EdgeCoding(tmp_path / f"{keeps}.bin", keeps_model=keeps)
        edge.decode(RecordDict({"arrays": whole(START)}))
        edge.save()
        found = EdgeCoding(tmp_path / f"{keeps}.bin", keeps_model=keeps).decode(RecordDict({"arrays": coded}))
        assert (found is not None) is keeps
        if found is not None:
            assert np.array_equal(found["arrays"]["w"].numpy(), decoded["w"])


def test_a_model_that_is_not_to_be_kept_leaves_the_base_as_it_is():
    edge = EdgeCoding()
    edge.decode(RecordDict({"arrays": whole(START)}))
    aside = edge.decode(RecordDict({"arrays": whole(TRAINED, keep=False)}))
    assert np.array_equal(aside["arrays"]["w"].numpy(), TRAINED["w"])
    assert edge.decode(RecordDict({"arrays": step(TRAINED, START)[0]})) is not None


def test_a_step_whose_result_is_not_what_was_sent_is_never_used():
    edge = EdgeCoding()
    edge.decode(RecordDict({"arrays": whole(START)}))
    coded = read_coded(step(TRAINED, START)[0])
    lie = CodedModel(coded.label.model_copy(update={"version": "0" * 32}), coded.steps)
    assert edge.decode(RecordDict({"arrays": lie.to_record()})) is None
    with pytest.raises(WireError, match="has neither base nor content"):
        edge.decode(RecordDict({"arrays": CodedModel(Label(form=form_of(START)), ()).to_record()}))
    full = read_coded(whole(START))
    lie = CodedModel(full.label.model_copy(update={"version": "0" * 32}), full.steps)
    with pytest.raises(WireError, match="is not the one that was sent"):
        edge.decode(RecordDict({"arrays": lie.to_record()}))
    # What it had before is still there.
    assert edge.decode(RecordDict({"arrays": step(TRAINED, START)[0]})) is not None


def test_without_compression_everything_passes_as_it_is(tmp_path):
    edge = EdgeCoding(tmp_path / "state.bin", keeps_model=True)
    record = RecordDict({"arrays": exchange.to_arrays(START), "metrics": exchange.to_metrics(1, {})})
    decoded = edge.decode(record)
    assert list(decoded) == list(record)
    assert all(decoded[key] is record[key] for key in record)
    assert edge.encode(record) is record
    edge.save()
    edge.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_nan_or_another_form_goes_as_it_is():
    edge = EdgeCoding()
    edge.decode(RecordDict({"arrays": whole(START)}))
    broken = {"w": np.full(1000, np.nan, np.float32), "n": START["n"]}
    for weights in (broken, {"w": START["w"]}, {"w": START["w"].astype(np.float64), "n": START["n"]}):
        assert reply(edge, weights) is None
    assert isinstance(edge.encode(RecordDict({"a": exchange.to_arrays(broken)}))["a"], ArrayRecord)


def test_the_state_is_gone_when_the_job_is_done(tmp_path):
    edge = EdgeCoding(tmp_path / "edges" / "state.bin")
    edge.decode(RecordDict({"arrays": whole(START)}))
    reply(edge)
    edge.save()
    assert (tmp_path / "edges" / "state.bin").exists()
    edge.forget()
    assert not (tmp_path / "edges" / "state.bin").exists()
