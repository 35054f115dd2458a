# SPDX-License-Identifier: Apache-2.0
"""Signatures: the same on every machine, exact under merging, and nothing hostile gets in."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from solar_corona.core.errors import DatasetError, WireError
from solar_corona.lib.signature_distance import without_labels
from solar_corona.lib.signature_format import UNLABELLED
from solar_corona.lib.signatures import (
    InputMoments,
    Signature,
    SignatureSpec,
    distance,
    drifted,
    label_free_eta,
    merge,
    needs_moments,
    noise_for,
    sign,
)

SPEC = SignatureSpec()


def _data(seed=0, count=300, classes=10, shift=0.0, shape=(6, 6)):
    """Samples of classes that differ in their mean image."""
    centres = np.random.default_rng(99).normal(size=(classes, *shape))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    return centres[y] + rng.normal(size=(count, *shape)) + shift * centres[(y + 1) % classes], y


@st.composite
def signatures(draw):
    dimension = draw(st.integers(1, 9))
    labelled = draw(st.booleans())
    labels = st.sets(st.integers(1 - 2**31, 2**31 - 1), max_size=5)
    ids = sorted(draw(labels)) if labelled else draw(st.sampled_from([[], [UNLABELLED]]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (len(ids), dimension)
    means = rng.uniform(-1, 1, shape) * np.sqrt(2 / dimension)
    return Signature(
        identity=draw(st.integers(0, 2**32 - 1)),
        labelled=labelled,
        classes=np.array(ids, np.int64),
        counts=rng.integers(1, 2**40, len(ids)),
        means=(means.astype(np.float16) if draw(st.booleans()) else means).astype(np.float32),
        traces=rng.uniform(0, 2, len(ids)).astype(np.float32),
        squares=rng.uniform(0, 2, len(ids)).astype(np.float32),
        noise=rng.uniform(0, 1, len(ids)).astype(np.float32),
    )


@given(signatures())
def test_what_goes_onto_the_wire_comes_off_it(signature):
    back = Signature.from_bytes(signature.to_bytes())
    assert back == signature
    for name in ("classes", "counts", "means", "traces", "squares", "noise"):
        np.testing.assert_array_equal(getattr(back, name), getattr(signature, name))


@given(signatures(), st.data())
def test_damaged_bytes_raise_a_wire_error_or_give_a_signature_that_is_sound(signature, data):
    raw = bytearray(signature.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        found = Signature.from_bytes(bytes(raw))
    except WireError:
        return
    assert np.isfinite(found.means).all()
    assert (found.counts > 0).all()
    assert (found.traces >= 0).all()


@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_a_wire_error(raw):
    for read in (Signature.from_bytes, InputMoments.from_bytes):
        try:
            read(raw)
        except WireError:
            continue


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"counts": np.array([-5, 7])}, "counts fewer than 1"),
        ({"counts": np.array([2**50, 7])}, "counts fewer than 1"),
        ({"means": np.full((2, 4), np.nan, np.float32)}, "not finite"),
        ({"means": np.full((2, 4), 40.0, np.float32)}, "beyond what a cosine"),
        ({"traces": np.array([-1, 1], np.float32)}, "variance beyond"),
        ({"squares": np.array([1e9, 1], np.float32)}, "squared variance beyond"),
        ({"noise": np.array([-1, 1], np.float32)}, "absurd noise"),
        ({"classes": np.array([2, 2])}, "ascending"),
        ({"labelled": False}, "without labels"),
    ],
)
def test_a_signature_that_no_data_could_have_is_refused_with_the_reason(change, reason):
    ones = np.ones(2, np.float32)
    parts = {
        "identity": 1,
        "labelled": True,
        "classes": np.array([0, 1]),
        "counts": np.array([5, 7]),
        "means": np.zeros((2, 4), np.float32),
        "traces": ones,
        "squares": ones,
        "noise": 0 * ones,
    }
    Signature.from_bytes(Signature(**parts).to_bytes())
    with pytest.raises(WireError, match=reason):
        Signature.from_bytes(Signature(**{**parts, **change}).to_bytes())


def test_another_version_and_a_cut_signature_are_refused():
    raw = sign(*_data(), SPEC).to_bytes()
    with pytest.raises(WireError, match="update both sides"):
        Signature.from_bytes(raw[:4] + b"\x02" + raw[5:])
    with pytest.raises(WireError, match="cut"):
        Signature.from_bytes(raw[:-1])


def test_an_edge_of_ten_classes_sends_less_than_3_kb():
    assert len(sign(*_data(), SPEC).to_bytes()) <= 1_600


def test_features_are_the_same_numbers_on_every_machine():
    x = np.arange(12, dtype=np.float32).reshape(3, 4) ** 2
    found = sign(x, np.zeros(3), SignatureSpec(seed=7, dimension=4))
    np.testing.assert_allclose(found.means[0], [-0.662, 0.665, -0.103, -0.659], atol=2e-3)


def test_counts_below_the_set_size_never_leave_the_edge():
    x, _ = _data(count=20)
    y = np.array([0] * 12 + [1] * 6 + [2] * 2)
    assert sign(x, y, SPEC).classes.tolist() == [0, 1]
    assert sign(x, y, SignatureSpec(min_count=7)).classes.tolist() == [0]


def test_merging_gives_the_signature_of_the_pooled_samples():
    x, y = _data(count=400)
    whole = sign(x, y, SPEC)
    parts = [sign(x[i::4], y[i::4], SPEC) for i in range(4)]
    pooled = merge(parts)
    assert pooled.counts.tolist() == whole.counts.tolist()
    np.testing.assert_allclose(pooled.means, whole.means, atol=2e-4)
    np.testing.assert_allclose(pooled.traces, whole.traces, rtol=2e-3)
    np.testing.assert_allclose(pooled.squares, whole.squares, rtol=0.5)
    assert merge([parts[0]]) == parts[0]
    nested = merge([merge(parts[:2]), merge(parts[2:])])
    np.testing.assert_allclose(nested.means, pooled.means, atol=1e-6)
    np.testing.assert_allclose(nested.traces, pooled.traces, rtol=1e-5)


def test_signatures_of_different_specs_are_neither_merged_nor_compared():
    a, b = sign(*_data(), SPEC), sign(*_data(), SignatureSpec(seed=1))
    with pytest.raises(ValueError, match="different specs"):
        merge([a, b])
    with pytest.raises(ValueError, match="different specs"):
        distance(a, b)
    with pytest.raises(ValueError, match="no signatures"):
        merge([])


def test_taking_the_labels_off_gives_the_signature_without_labels():
    x, y = _data()
    bare, taken = sign(x, None, SPEC), without_labels(sign(x, y, SPEC))
    assert not bare.labelled
    assert taken.classes.tolist() == bare.classes.tolist() == [UNLABELLED]
    np.testing.assert_allclose(taken.means, bare.means, atol=5e-4)
    np.testing.assert_allclose(taken.traces, bare.traces, rtol=5e-3)
    assert taken.squares[0] >= bare.squares[0] * 0.9
    assert sign(x, y, SignatureSpec(use_labels=False)) == sign(x, None, SignatureSpec(use_labels=False))


def test_another_labelling_of_the_same_inputs_is_seen_only_with_labels():
    (x, y), (x2, y2) = _data(0), _data(1)
    a, b, swapped = sign(x, y, SPEC), sign(x2, y2, SPEC), sign(x2, (y2 + 1) % 10, SPEC)
    assert not distance(a, b).rejects()
    assert distance(a, swapped).rejects()
    assert label_free_eta(a, swapped) < 0.02
    assert distance(a, sign(x2, None, SPEC)).eta < 0.02


def test_signatures_that_share_no_class_are_infinitely_far_apart():
    x, _ = _data()
    a, b = sign(x, np.zeros(300), SPEC), sign(x, np.ones(300), SPEC)
    assert distance(a, b).eta == np.inf
    assert distance(a, b).rejects()
    assert not drifted(a, b)


def test_an_edge_has_drifted_when_its_data_changed_and_not_when_they_are_new_samples():
    old = sign(*_data(0), SPEC)
    assert not drifted(old, sign(*_data(1), SPEC))
    assert drifted(old, sign(*_data(1, shift=1.0), SPEC))


def test_chance_alone_seldom_makes_a_difference():
    # Two classes that vary in one direction only: a plain Z would be above 4 in one pair of a hundred.
    rng = np.random.default_rng(0)
    spec = SignatureSpec(centre=(0.0,), spread=(1.0,), dimension=8)
    made = [sign(rng.normal(size=(100, 1)) * 0.3, rng.integers(0, 2, 100), spec) for _ in range(80)]
    z = [distance(a, b).z for i, a in enumerate(made) for b in made[:i]]
    assert np.mean(np.array(z) > 3) < 0.004
    assert 0.8 < np.std(z) < 1.2


def test_a_few_samples_that_happen_to_be_alike_are_no_other_task():
    # One class of two sorts of samples: eight of one sort come in one edge of 128, and vary little among themselves.
    rng = np.random.default_rng(0)
    sorts = rng.normal(size=(2, 20))

    def made(kinds):
        return sign(sorts[kinds] + 0.1 * rng.normal(size=(len(kinds), 20)), np.zeros(len(kinds)), SPEC)

    fleet = made(rng.integers(0, 2, 400))
    assert distance(made(np.zeros(8, int)), fleet).z < 4
    assert distance(made(np.zeros(100, int)), fleet).z > 8


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (np.array([3, 1] * 10), [1, 3]),
        (np.array([3.0, 1.0] * 10), [1, 3]),
        (np.array([[3], [1]] * 10), [1, 3]),
        (np.eye(4)[[3, 1] * 10], [1, 3]),
        (np.array([True, False] * 10), [0, 1]),
    ],
)
def test_labels_are_classes_in_every_usual_form(y, classes):
    assert sign(_data(count=20)[0], y, SPEC).classes.tolist() == classes


def test_text_labels_have_the_same_ids_on_every_edge():
    x, _ = _data(count=20)
    a, b = sign(x, np.array(["cat", "dog"] * 10), SPEC), sign(x, np.array(["dog", "owl"] * 10), SPEC)
    assert len(set(a.classes) & set(b.classes)) == 1


def test_continuous_targets_count_as_y_given_x():
    rng = np.random.default_rng(0)

    def edge(sign_of_slope):
        x = rng.normal(size=(300, 5))
        return sign(x, sign_of_slope * 3 * x[:, 0], SignatureSpec(centre=(0.0,), spread=(1.0,)))

    assert edge(1).labelled
    several = sign(np.ones((9, 5)), np.random.default_rng(0).normal(size=(9, 2)), SPEC)
    assert not several.labelled
    assert not distance(edge(1), edge(1)).rejects()
    assert distance(edge(1), edge(-1)).rejects()


def test_edge_cases_give_a_signature_and_no_crash():
    x = np.ones((5, 4))
    constant = sign(x, np.zeros(5), SPEC)
    assert constant.traces[0] == pytest.approx(0, abs=1e-6)
    assert distance(constant, constant).eta == pytest.approx(0, abs=1e-6)
    assert sign(x[:1], [0], SPEC).total == 0
    assert sign(x[:0], [], SPEC).total == 0
    empty = sign(x[:0], None, SPEC)
    assert Signature.from_bytes(empty.to_bytes()) == empty
    assert sign(np.arange(9.0), np.zeros(9), SPEC).total == 9


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (np.full((5, 4), np.nan), np.zeros(5), "NaN or infinite"),
        (np.full((5, 4), np.inf), np.zeros(5), "NaN or infinite"),
        (np.ones((5, 4)), np.zeros(3), "one for each of the 5"),
        (np.ones((5, 4)), np.full(5, np.nan), "finite"),
        (np.array(["a"] * 5), np.zeros(5), "expected numbers"),
        (np.ones((5, 0)), np.zeros(5), "no values"),
    ],
)
def test_inputs_that_cannot_be_signed_are_refused_with_the_reason(x, y, reason):
    with pytest.raises(DatasetError, match=reason):
        sign(x, y, SPEC)


def test_a_model_s_features_can_stand_for_the_inputs():
    x, y = _data()
    half = sign(x, y, SPEC, embed=lambda batch: batch.reshape(len(batch), -1)[:, :18])
    assert half == sign(x.reshape(300, -1)[:, :18], y, SPEC)
    with pytest.raises(DatasetError, match="embedding gave"):
        sign(x, y, SPEC, embed=lambda batch: np.zeros(len(batch)))


def test_large_images_need_neither_a_large_matrix_nor_a_float_copy():
    x = np.zeros((40, 224, 224, 3), np.uint8)
    x[:, ::2] = 200
    tracemalloc.start()
    try:
        sign(x, np.zeros(40), SignatureSpec(dimension=128))
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 3))
def test_blocks_of_columns_give_the_same_features_as_one(width, channels):
    from solar_corona.lib import signature_features

    x = np.random.default_rng(0).normal(size=(6, width, channels))
    spec = SignatureSpec(dimension=4, centre=tuple(range(channels)), spread=(2.0,) * channels)
    whole = signature_features.features_of(x, spec)
    block, signature_features._BLOCK = signature_features._BLOCK, 1
    try:
        # Numbers of the stream come in pairs, and an odd block would waste one.
        np.testing.assert_allclose(signature_features.features_of(x, spec), whole, atol=1e-5)
    finally:
        signature_features._BLOCK = block


def test_noise_hides_a_sample_and_leaves_the_distance_without_bias():
    spec = SignatureSpec(noise=noise_for(8, 1e-5))
    made = [sign(*_data(seed, count=500), spec) for seed in range(12)]
    assert made[0].noise[0] > 0
    etas = [distance(a, b).eta for i, a in enumerate(made) for b in made[:i]]
    assert abs(np.mean(etas)) < 0.1
    assert not any(distance(a, b).rejects() for i, a in enumerate(made) for b in made[:i])
    x, y = _data(count=500)
    assert sign(x, y, spec) != sign(x, y, spec)


def test_more_privacy_needs_more_noise_and_nonsense_is_refused():
    assert noise_for(8, 1e-5) < noise_for(1.5, 1e-5) < noise_for(0.5, 1e-5)
    assert noise_for(1, 1e-5) == pytest.approx(4.845, abs=1e-3)
    for wrong in ((0, 1e-5), (1, 0), (1, 1)):
        with pytest.raises(ValueError, match="expected epsilon"):
            noise_for(*wrong)


def test_edges_agree_on_one_scale_for_tables_whatever_one_of_them_says():
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(200, 3)) * [1, 1000, 0] + [0, 5, 7] for _ in range(9)]
    told = [InputMoments.from_bytes(InputMoments.of(t).to_bytes()) for t in tables]
    spec = SPEC.standardised([*told, InputMoments(np.full(3, 1e30), np.full(3, 1e60))])
    np.testing.assert_allclose(spec.centre, [0, 5, 7], atol=100)
    np.testing.assert_allclose(spec.spread, [1, 1000, 1], rtol=0.2)
    assert spec.identity != SPEC.identity
    assert SignatureSpec.model_validate_json(spec.model_dump_json()) == spec
    assert sign(tables[0], np.zeros(200), spec).total == 200
    with pytest.raises(DatasetError, match="for 3 features, the inputs have 2"):
        sign(tables[0][:, :2], np.zeros(200), spec)
    with pytest.raises(ValueError, match="one number for all"):
        SPEC.standardised([told[0], InputMoments(np.zeros(2), np.ones(2))])
    assert needs_moments(tables[0])
    assert not needs_moments(np.ones((2, 3, 3)))


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((0, 3)), np.full((2, 2), np.nan), np.array([["a"]])])
def test_moments_of_what_is_no_table_are_refused(wrong):
    with pytest.raises(DatasetError):
        InputMoments.of(wrong)


def test_moments_that_no_data_could_have_are_refused():
    raw = InputMoments.of(np.ones((2, 2))).to_bytes()
    with pytest.raises(WireError, match="cut"):
        InputMoments.from_bytes(raw[:-1])
    with pytest.raises(WireError, match="variance below 0"):
        InputMoments.from_bytes(InputMoments(np.zeros(1), -np.ones(1)).to_bytes())


@pytest.mark.parametrize(
    "wrong",
    [{"version": 2}, {"dimension": 0}, {"centre": (1.0,)}, {"centre": (0.0,), "spread": (0.0,)}, {"noise": -1}],
)
def test_a_spec_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        SignatureSpec(**wrong)
