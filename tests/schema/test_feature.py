"""Features describe themselves, refuse nonsense, and survive the way through JSON."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.errors import InvalidError
from kpstore.schema.array import ArraySpec, maybe_not_finite, squares
from kpstore.schema.feature import (
    CHUNK_BYTES,
    MASK,
    MAX_CHUNK_ROWS,
    FeatureRows,
    FeatureSpec,
    State,
    faults,
)
from kpstore.schema.layout import PART_SLICES, keypoints_spec
from tests.fakes import fake_spec

NUMBERS = ["float16", "float32", "float64", "bool", "uint8", "int64"]


@pytest.mark.parametrize("name", ["", "Pose", "1pose", "a-b", "a b", "a/b", "pose\n", "pöse"])
def test_names_are_lower_case_identifiers(name: str) -> None:
    with pytest.raises(InvalidError, match="use lower-case letters, digits and underscores"):
        ArraySpec(name)


@pytest.mark.parametrize("dtype", ["object", "str", "datetime64[s]", "complex64", "nonsense"])
def test_dtypes_are_numbers(dtype: str) -> None:
    with pytest.raises(InvalidError, match=rf"'a', dtype: '{re.escape(dtype)}' is not a number"):
        ArraySpec("a", dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (3,)}, "needs 1 dims, found"),
        ({"shape": (3, 0), "dims": ("a", "b")}, "every axis of a row needs a length of at least 1"),
        ({"axis": "clip"}, "axis is 'frame' or 'video', found 'clip'"),
        ({"labels": {"x": ("a",)}}, "1 labels for 'x' of length None"),
        ({"shape": (2,), "dims": ("x",), "labels": {"x": ("a",)}}, "1 labels for 'x' of length 2"),
        ({"shape": (2, 3), "dims": ("x", "x")}, "dimension 'x' has two lengths, 2 and 3"),
        (
            {"companions": (ArraySpec("status"),)},
            "companion name 'status' is reserved for the store itself",
        ),
        (
            {"companions": (ArraySpec("values"),)},
            "companion name 'values' is reserved for the store itself",
        ),
        (
            {"companions": (ArraySpec("a"), ArraySpec("a", (2,), ("b",)))},
            "two companions have one name",
        ),
        ({"chunk_rows": -4}, "chunk_rows is -4"),
        ({"attrs": {"array": np.zeros(2)}}, "attrs: give JSON values only"),
        ({"attrs": {"mean": math.nan}}, "attrs: give JSON values only"),
        ({"attrs": "parts"}, "attrs: 'parts' is not a mapping"),
        ({"shape": 3}, "'pose', shape: 3 is not a sequence; give whole numbers"),
        ({"shape": (3.0,), "dims": ("a",)}, "shape: 3.0 is not a whole number"),
        ({"shape": (True,), "dims": ("a",)}, "shape: True is not a whole number"),
        ({"shape": (3,), "dims": "a"}, "dims: 'a' is not a sequence; give names"),
        ({"shape": (3,), "dims": {"a"}}, "dims: {'a'} is not a sequence; give names"),
        ({"shape": (3,), "dims": (None,)}, "dims: None is not text"),
        ({"dtype": None}, "dtype: None is not a number or bool"),
        ({"dtype": "longdouble"}, "dtype: 'longdouble' has more than 64 bits, which differ"),
        ({"dtype": "clongdouble"}, "dtype: 'clongdouble' is not a number or bool"),
        ({"units": ["m"]}, r"units: \['m'\] is not text"),
        ({"description": "\ud800"}, "description: .* is not valid text"),
        ({"axis": None}, "feature 'pose', axis: None is not text"),
        ({"labels": ["x"]}, r"labels: \['x'\] is not a mapping; give names by dimension"),
        ({"shape": (2,), "dims": ("x",), "labels": {"x": "ab"}}, "labels: 'x': 'ab' is not a seq"),
        ({"companions": ("detected",)}, "companions: 'detected' is not an ArraySpec"),
        ({"companions": None}, "companions: None is not a sequence; give ArraySpecs"),
        ({"chunk_rows": "64"}, "chunk_rows: '64' is not a whole number"),
        ({"compression": ["lz4"]}, "compression: .* is not text"),
    ],
)
def test_specs_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        FeatureSpec("pose", **changes)


def test_names_are_text() -> None:
    with pytest.raises(InvalidError, match="name: None is not text"):
        ArraySpec(None)  # type: ignore[arg-type]


def test_specs_take_what_numpy_gives() -> None:
    array = np.zeros((7, 5, 3), dtype=np.float16)
    spec = FeatureSpec(
        "pose",
        np.array(array.shape[1:]),  # type: ignore[arg-type]
        ["point", "space"],  # type: ignore[arg-type]
        array.dtype,  # type: ignore[arg-type]
        labels={"space": list("xyz")},  # type: ignore[dict-item]
        companions=[ArraySpec("seen", [5], ["point"], np.bool_)],  # type: ignore
        chunk_rows=np.int64(8),  # type: ignore[arg-type]
    )
    seen = ArraySpec("seen", (5,), ("point",), "bool")
    labels = {"space": ("x", "y", "z")}
    plain = FeatureSpec(
        "pose", (5, 3), ("point", "space"), "float16",
        labels=labels, companions=(seen,), chunk_rows=8,
    )  # fmt: skip
    assert spec == plain
    assert json.dumps(spec.to_json()) == json.dumps(plain.to_json())


def test_companions_are_one_or_any_sequence() -> None:
    seen = ArraySpec("seen")
    for several in (seen, [seen], deque([seen]), (each for each in (seen,))):
        assert FeatureSpec("pose", companions=several).companions == (seen,)  # type: ignore[arg-type]


def test_what_earlier_stores_hold_is_read() -> None:
    stored = FeatureSpec("pose", attrs={"scale": 1}).to_json()
    odd = {"units": 1, "description": None, "attrs": {"scale": [math.nan, -math.inf]}}
    spec = FeatureSpec.from_json({**stored, **odd})
    assert (spec.units, spec.description, spec.attrs) == ("1", "", {"scale": [None, None]})
    assert spec == FeatureSpec.from_json({**stored, **odd})


@pytest.mark.parametrize("dtype", NUMBERS)
def test_missing_is_nan_zero_or_false(dtype: str) -> None:
    rows = ArraySpec("a", (2,), ("x",), dtype).empty(3)
    assert (rows.shape, rows.dtype) == ((3, 2), np.dtype(dtype))
    assert np.isnan(rows).all() if dtype.startswith("float") else not rows.any()


@given(st.lists(st.integers(1, 400), max_size=3), st.sampled_from(NUMBERS))
def test_default_chunks_are_the_largest_power_of_two_within_the_bound(
    shape: list[int], dtype: str
) -> None:
    spec = FeatureSpec(
        "a", tuple(shape), tuple("xyz"[: len(shape)]) if len(set(shape)) else (), dtype
    )
    rows = spec.chunk_rows
    assert rows & (rows - 1) == 0
    assert rows * spec.row_bytes <= CHUNK_BYTES or rows == 1
    assert 2 * rows * spec.row_bytes > CHUNK_BYTES or rows == MAX_CHUNK_ROWS
    assert spec.row_bytes == math.prod(shape) * np.dtype(dtype).itemsize


def test_a_spec_survives_json() -> None:
    spec = FeatureSpec(
        "pose",
        (2, 3),
        ("point", "space"),
        labels={"space": ("x", "y", "z")},
        companions=(ArraySpec("seen", (2,), ("point",), "bool", "1", "whether seen"),),
        attrs={"edges": ((0, 1),), "mean": 0.5, "n": None},
    )
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_arrays_are_values_then_companions_by_stored_name() -> None:
    arrays = fake_spec().arrays
    assert list(arrays) == ["points", "points_detected"]
    assert [(a.shape, a.dtype) for a in arrays.values()] == [((5, 3), "float32"), ((2,), "bool")]


def test_pending_is_what_unwritten_storage_reads_as() -> None:
    assert [(s.name, s.value) for s in State] == [("PENDING", 0), ("DONE", 1), ("FAILED", 2)]


def test_check_gives_the_dtypes_of_the_spec_and_fills_companions() -> None:
    rows = FeatureRows(np.ones((4, 5, 3), dtype=np.float64)).check(fake_spec())
    assert rows.values.dtype == np.float32
    assert rows.companions["detected"].shape == (4, 2)
    assert rows.companions["detected"].all()  # no value is NaN


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_masks_may_be_zeros_and_ones(dtype: str) -> None:
    spec = FeatureSpec(
        "a", (2,), ("x",), companions=(ArraySpec("detected", (2,), ("side",), "bool"),)
    )
    mask = np.array([[0, 1], [1, 1], [9, 9]]).astype(dtype)
    rows = FeatureRows(np.ones((3, 2)), {"detected": mask}).check(
        spec, np.array([True, True, False])
    )
    assert rows.companions["detected"].dtype == np.bool_
    assert rows.companions["detected"].tolist() == [[False, True], [True, True], [False, False]]


@pytest.mark.parametrize(
    ("values", "companions", "message"),
    [
        (np.ones((4, 5, 2)), {}, r"values: shape \(4, 5, 2\) given"),
        (np.ones((4, 5, 3), dtype=complex), {}, "values: dtype complex128 given, float32 needed"),
        (np.ones((4, 5, 3)), {"seen": np.ones((4, 2), bool)}, "has no companion 'seen'"),
        (
            np.ones((4, 5, 3)),
            {"detected": np.ones((3, 2), bool)},
            r"detected: shape \(3, 2\) given",
        ),
        (
            np.ones((4, 5, 3)),
            {"detected": np.ones((4, 2))},
            "detected: dtype float64 given, bool needed",
        ),
        (
            np.ones((4, 5, 3)),
            {"detected": np.full((4, 2), -1)},
            r"detected: -1 to -1 given, bool \(or 0 and 1\) needed",
        ),
    ],
)
def test_check_names_what_does_not_fit(
    values: Any, companions: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        FeatureRows(values, companions).check(fake_spec())


def test_rows_slice_join_and_show_shapes_not_numbers() -> None:
    spec = fake_spec()
    values = np.arange(60, dtype=np.float32).reshape(4, 5, 3)
    rows = FeatureRows(values, {"detected": np.ones((4, 2), bool)}).check(spec)
    joined = FeatureRows.concatenate([rows[:1], rows[1:4]])
    np.testing.assert_array_equal(joined.values, rows.values)
    np.testing.assert_array_equal(joined.companions["detected"], rows.companions["detected"])
    assert repr(rows) == "FeatureRows((4, 5, 3) float32, detected: (4, 2))"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8"])
@pytest.mark.parametrize("n_odd", [3, 60], ids=["few", "many"])
def test_no_row_that_is_not_finite_is_missed(dtype: str, n_odd: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 5, 3)).astype(dtype)
    rows[::50] *= np.finfo(dtype).max / 4
    odd = rng.choice(200, n_odd, replace=False)
    for row, value in zip(odd, [np.nan, np.inf, -np.inf] * 20, strict=False):
        rows[row, rng.integers(5), rng.integers(3)] = value
    rows[odd[0]] = np.inf
    rows[odd[0], 0] = -np.inf  # they add up to NaN
    found = np.zeros(200, dtype=bool)
    found[maybe_not_finite(squares(rows))] = True
    wanted = ~np.isfinite(rows).all(axis=(1, 2))
    assert found[wanted].all()
    if n_odd == 60:
        assert found.all()
    else:
        assert set(np.flatnonzero(found & ~wanted).tolist()) <= {0, 50, 100, 150}
    assert len(rows[:0][maybe_not_finite(squares(rows[:0]))]) == 0


def test_faults_of_rows_do_not_depend_on_the_others() -> None:
    spec, rng = keypoints_spec(), np.random.default_rng(1)
    values = rng.random((60, *spec.shape), dtype=np.float32)
    detected = rng.random((60, 4)) < 0.8
    for row, part in zip(range(0, 60, 2), [*PART_SLICES.values()] * 8, strict=False):
        values[row, part] = np.nan
    values[5, 80] = np.inf
    values[7, 70, 1] = np.nan
    values[8, 70:72] = np.nan
    values[9] = np.nan
    together = list(faults(spec, values, {MASK: detected}))
    for row in range(60):
        one = slice(row, row + 1)
        alone = list(faults(spec, values[one], {MASK: detected[one]}))
        assert [bool(bad[row]) for *_, bad in together] == [bool(bad[0]) for *_, bad in alone]
    bad_rows = {what: set(np.flatnonzero(bad).tolist()) for _, what, bad in together}
    assert bad_rows["is infinite (missing values are NaN)"] == {5}
    for column, (part, points) in enumerate(PART_SLICES.items()):
        there, here = detected[:, column], ~np.isnan(values[:, points])
        some = here.any(axis=(1, 2))
        torn = np.isnan(values[:, points]).any(axis=2) & here.any(axis=2)
        wanted = np.flatnonzero(there & (~some | torn.any(axis=1)))
        assert bad_rows[f"says {part} is there, but values are missing"] == set(wanted.tolist())
        wanted = np.flatnonzero(~there & some)
        assert bad_rows[f"says {part} is missing, but values are there"] == set(wanted.tolist())
