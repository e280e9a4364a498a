"""No public write leaves a store that ``verify`` calls wrong: it repairs rows, or refuses them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import kpstore
from kpstore.errors import InvalidError, KpstoreError
from kpstore.inspect.coverage import coverage
from kpstore.inspect.verify import verify
from kpstore.schema.array import ArraySpec
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.layout import PART_SLICES, PARTS, keypoints_spec
from kpstore.store.transaction import Transaction
from tests.conftest import COSTLY, location_of, memory_location
from tests.fakes import record

LENGTHS = {"a": 3, "b": 0, "c": 2}
MASK = ArraySpec("detected", (2,), ("part",), "bool")
PARTED = FeatureSpec(
    "parted",
    (3, 2),
    ("spot", "coordinate"),
    labels={"piece": ("head", "hand")},
    companions=(replace(MASK, dims=("piece",)), ArraySpec("visibility", (3,), ("spot",))),
    attrs={"parts": {"head": [0, 2], "hand": [2, 3]}},
)
COUNT = FeatureSpec("count", (), (), "int16", companions=(ArraySpec("detected", (), (), "bool"),))
PERSON = FeatureSpec("person", (2,), ("number",), "float16", axis="video")


def begun(store: kpstore.Store, *specs: FeatureSpec) -> kpstore.Store:
    with store.transaction("begin") as tx:
        tx.add_videos([record(name, n) for name, n in LENGTHS.items()])
        for spec in specs or (PARTED, COUNT, PERSON, keypoints_spec()):
            tx.add_feature(spec, {"extractor": "made up"})
    return store


def test_masks_follow_from_nan(store: kpstore.Store) -> None:
    values = np.random.default_rng(0).random((3, 143, 3))
    values[1, PART_SLICES["left_hand"]] = np.nan
    values[2] = np.nan
    begun(store)
    with store.transaction("write") as tx:
        tx.write("keypoints", "a", values)
    now = store.at()
    assert now["keypoints_detected"][:3].tolist() == [
        [True] * 4,
        [part != "left_hand" for part in PARTS],
        [False] * 4,
    ]
    assert coverage(now, "keypoints").detected["face"] == 2
    assert verify(now).problems == []


@pytest.mark.parametrize(
    ("spec", "values", "mask"),
    [
        (
            FeatureSpec("f", (2,), ("x",), companions=(ArraySpec("detected", dtype="bool"),)),
            [[1, np.nan]],
            [True],
        ),
        (
            FeatureSpec(
                "f", (2, 1), ("x", "y"), companions=(ArraySpec("detected", (2,), ("x",), "bool"),)
            ),
            [[[1], [np.nan]]],
            [[True, False]],
        ),
        (
            FeatureSpec(
                "f",
                (2, 3),
                ("x", "y"),
                companions=(ArraySpec("detected", (3, 2), ("y", "x"), "bool"),),
            ),
            [[[1, np.nan, 2], [np.nan, 3, np.nan]]],
            [[[True, False], [False, True], [True, False]]],
        ),
        (FeatureSpec("f", (2,), ("x",), companions=(MASK,)), [[np.nan] * 2], [[False, False]]),
        (FeatureSpec("f", (2,), ("x",), "int8", companions=(MASK,)), [[0, 1]], [[True, True]]),
    ],
    ids=["row", "axis", "two axes", "no parts", "whole numbers"],
)
def test_masks_of_any_shape_follow_from_values(spec: FeatureSpec, values: Any, mask: Any) -> None:
    assert FeatureRows(np.array(values)).check(spec).companions["detected"].tolist() == mask


def ones(**companions: Any) -> FeatureRows:
    return FeatureRows(np.ones((3, 3, 2)), companions)


def half_a_point(**companions: Any) -> FeatureRows:
    return FeatureRows(np.where(np.arange(18).reshape(3, 3, 2) == 7, np.nan, 1.0), companions)


def filled_in(rows: FeatureRows) -> FeatureRows:
    rows.values[:] = 1
    return rows


REFUSED: dict[str, tuple[Callable[[Transaction], Any], str]] = {
    "infinite": (
        lambda tx: tx.write("parted", "a", np.full((3, 3, 2), np.inf)),
        "video 'a': .*row 0 .*is infinite",
    ),
    "too large": (
        lambda tx: tx.write_video_feature("person", "a", np.array([1, 1e6])),
        "is infinite",
    ),
    "half a point": (
        lambda tx: tx.write("parted", "a", half_a_point().values),
        "row 1 .*parted, point 0 of head: some .* the coordinates of a point are missing together",
    ),
    "half a point, and a mask": (
        lambda tx: tx.write("parted", "a", half_a_point(detected=np.ones((3, 2), "u1"))),
        r"row 1 .*point 0 of head: .* missing together \(NaN in all of them\)$",
    ),
    "values alone in empty rows": (
        lambda tx: tx.write("parted", "a", filled_in(PARTED.empty_rows(3))),
        "says head is missing, but values are there; leave 'detected' out and it follows from the "
        "values",
    ),
    "a mask of what is not there": (
        lambda tx: tx.write(
            "parted", "a", FeatureRows(np.full((3, 3, 2), np.nan), {"detected": [[1, 1]] * 3})
        ),
        "says head is there, but values are missing; leave 'detected' out",
    ),
    "a mask of other numbers": (
        lambda tx: tx.write("parted", "a", ones(detected=np.full((3, 2), 255, "u1"))),
        r"detected: 255 to 255 given, bool \(or 0 and 1\) needed",
    ),
    "mask against values": (
        lambda tx: tx.write("parted", "a", ones(detected=np.zeros((3, 2), bool))),
        "says head is missing, but values are there",
    ),
    "visibility": (
        lambda tx: tx.write("parted", "a", ones(visibility=np.full((3, 3), 1.5))),
        "outside 0 to 1",
    ),
    "whole numbers too large": (
        lambda tx: tx.write("count", "a", np.array([1, 2, 70_000])),
        "int16 holds -32768 to",
    ),
    "two rows for one": (
        lambda tx: tx.write_video_feature("person", "a", FeatureRows(np.ones((2, 2)))),
        "2 were",
    ),
    "no rows": (lambda tx: tx.write("count", "a", np.float64(3)), "an array of rows is needed"),
    "ragged": (
        lambda tx: tx.write("parted", "a", [[1], [1, 2]]),
        "cannot be made an array of numbers",
    ),
    "hidden numbers": (
        lambda tx: tx.write("count", "a", np.ma.masked_equal([1, 2, 3], 2)),
        "hides numbers; fill them in",
    ),
    "hidden numbers in a list": (
        lambda tx: tx.write("count", "a", list(np.ma.masked_equal([[1], [2], [3]], 2))),
        "hides numbers; fill them in",
    ),
    "a companion too large": (
        lambda tx: tx.write("parted", "a", ones(visibility=np.full((3, 3), -1e300))),
        r"visibility: -1e\+300 is infinite as float32, which holds",
    ),
    "rows of the next feature": (
        lambda tx: tx.write_rows("count", 4, FeatureRows(np.ones(3, "i2")), np.ones(3, "u1")),
        "3 were given for row 4",
    ),
    "a state that there is not": (
        lambda tx: tx.write_rows("count", 0, FeatureRows(np.ones(3, "i2")), np.full(3, 7)),
        "one state of",
    ),
    "rows without a ledger": (
        lambda tx: tx.write_rows("count", 0, FeatureRows(np.ones(3, "i2")), np.ones(3, "u1")),
        "do not agree with its state",
    ),
    "a ledger without rows": (
        lambda tx: tx.set_states("count", {0: Failures()}),
        "do not agree with its state",
    ),
    "a video that there is not": (
        lambda tx: tx.set_states("count", {3: Failures()}),
        "no video at position 3",
    ),
    "one from the end": (lambda tx: tx.reset_states("count", [-1]), "no video at position -1"),
    "no entry": (lambda tx: tx.set_states("count", {1: "oops"}), "'oops' given, .*Failures needed"),
    "a failed frame of another kind": (
        lambda tx: tx.write("count", "a", np.ones(3, "i2"), failed_frames={1.0: "torn"}),
        "failed frame 1.0",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_verify_would_call_a_problem_is_refused_in_one_line(kind: str) -> None:
    write, message = REFUSED[kind]
    store = begun(kpstore.create(memory_location()))
    before = store.at().snapshot
    with pytest.raises(InvalidError, match=message) as caught, store.transaction("odd") as tx:
        write(tx)
    assert "\n" not in str(caught.value)
    assert store.at().snapshot == before


def test_what_failed_is_missing_whatever_its_values(store: kpstore.Store) -> None:
    begun(store)
    garbage = FeatureRows(np.full((3, 3, 2), np.inf), {"detected": np.ones((3, 2), bool)})
    with store.transaction("odd") as tx:
        tx.write(
            "parted", "a", garbage, failed_frames={np.int64(n): "torn \ud800" for n in range(3)}
        )  # type: ignore[dict-item]
        tx.fail("parted", "b", "")
        tx.write("keypoints", "a", np.ma.masked_all((3, 143, 3)))
        tx.write_rows(
            "count", 3, FeatureRows(np.array([5, 6], "i8")), np.array([State.FAILED, State.DONE])
        )
        tx.set_states("count", {2: Failures(frames={0: "torn"})})
    now = store.at()
    assert verify(now).problems == []
    assert np.isnan(now["parted"][:3]).all()
    assert now["count"][3:].tolist() == [0, 6]
    assert {failure.reason for failure in now.failures("parted")} == {
        "torn \\ud800",
        "no reason was given",
    }
    assert not now["keypoints_detected"][:3].any()


@pytest.mark.parametrize(
    "given_as",
    [
        list,
        lambda masked: [tuple(row) for row in masked],
        lambda masked: da.from_array(masked, chunks=2),
        lambda masked: xr.DataArray(da.from_array(masked, chunks=2)),
        lambda masked: [da.from_array(row) for row in masked],
    ],
    ids=["rows", "points", "dask", "xarray of dask", "rows of dask"],
)
def test_masked_values_are_missing_however_they_are_given(given_as: Callable[[Any], Any]) -> None:
    numbers = np.arange(18.0).reshape(3, 3, 2)
    hidden = (numbers >= 6) & (numbers < 8)
    store = begun(kpstore.create(memory_location()))
    with store.transaction("write") as tx:
        tx.write("parted", "a", given_as(np.ma.array(numbers, mask=hidden)))
    np.testing.assert_array_equal(store.at()["parted"][:3], np.where(hidden, np.nan, numbers))


def test_arrays_that_name_their_axes_are_written_by_these_names() -> None:
    spec = FeatureSpec(
        "spots", (3, 2), ("spot", "space"), labels={"space": ("x", "y")}, chunk_rows=4
    )
    middle = FeatureSpec("middle", (2,), ("space",), labels=spec.labels)
    store = begun(kpstore.create(memory_location()), spec, middle)
    numbers = np.arange(18.0).reshape(3, 3, 2)
    named = xr.DataArray(numbers, dims=("frame", "spot", "space"), coords={"space": ["x", "y"]})
    with store.transaction("write") as tx:
        tx.write("spots", "a", named)
        tx.write("spots", "a", xr.DataArray(numbers))
        with pytest.raises(InvalidError, match=r"axes .*'spot', 'frame', .* needed; transpose it"):
            tx.write("spots", "a", named.transpose("spot", "frame", "space"))
        with pytest.raises(InvalidError, match=r"'space' are in another order .* reindex it"):
            tx.write("spots", "a", named.sel(space=["y", "x"]))
        with pytest.raises(InvalidError, match=r"'space' are in another order"):
            tx.write("middle", "a", pd.DataFrame(numbers[:, 0], columns=["y", "x"]))
        tx.write("middle", "a", pd.DataFrame(numbers[:, 0], columns=["x", "y"]))
        tx.write("middle", "a", pd.DataFrame(numbers[:, 0]))
    np.testing.assert_array_equal(store.at()["spots"][:3], numbers)


@pytest.mark.parametrize("coords", [None, [[0, 1]], len], ids=["none", "list", "method"])
def test_arrays_of_libraries_with_other_coordinates_are_written_as_arrays(coords: object) -> None:
    class Array:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return np.ones((3, 2))

    spec = FeatureSpec("middle", (2,), ("space",), labels={"space": ("x", "y")})
    store, given = begun(kpstore.create(memory_location()), spec), Array()
    given.coords = coords  # type: ignore[attr-defined]
    with store.transaction("write") as tx:
        tx.write("middle", "a", given)  # type: ignore[arg-type]
    np.testing.assert_array_equal(store.at()["middle"][:3], np.ones((3, 2)))


@pytest.mark.parametrize(
    "named",
    [
        pd.Series([1.0, 2.0], ["x", "y"]),
        xr.DataArray([1.0, 2.0], dims="space", coords={"space": ["x", "y"]}),
    ],
    ids=["pandas", "xarray"],
)
def test_one_row_that_names_its_labels_is_written_by_these_names(named: Any) -> None:
    spec = FeatureSpec("middle", (2,), ("space",), axis="video", labels={"space": ("x", "y")})
    store = begun(kpstore.create(memory_location()), spec)
    with store.transaction("write") as tx:
        tx.write_video_feature("middle", "a", named)
        with pytest.raises(InvalidError, match="'space' are in another order"):
            tx.write_video_feature("middle", "a", named[::-1])
    assert store.at()["middle"][0].tolist() == [1, 2]


ODD = st.sampled_from([0.0, 0.5, 1.0, -3.0, 1e9, 1e300, np.nan, np.nan, np.nan, np.inf, -np.inf])
ROWS = st.integers(0, 4)


@st.composite
def writes(draw: st.DrawFn) -> Callable[[Transaction], None]:
    """Draw one call of a public method, with odd arguments."""
    feature = draw(st.sampled_from(["parted", "count", "person", "gone"]))
    video = draw(st.sampled_from(["a", "b", "c", "new", "nowhere"]))
    n = draw(st.sampled_from([LENGTHS.get(video, 1), draw(ROWS)]))
    shape = {"parted": (3, 2), "count": (), "person": (2,), "gone": ()}[feature]
    numbers = np.array(draw(st.lists(ODD, min_size=8, max_size=8)))
    values: Any = np.resize(numbers, (n, *shape))
    if draw(st.booleans()) and feature == "count":
        values = (
            np.nan_to_num(values, posinf=9, neginf=9)
            .clip(-9, draw(st.sampled_from([9, 99_999])))
            .astype("i8")
        )
    if draw(st.booleans()):
        bits = np.array(draw(st.lists(st.booleans(), min_size=4, max_size=4)))
        masks = {
            "parted": {
                "detected": np.resize(bits, (n, 2)),
                "visibility": np.resize(numbers, (n, 3)),
            }
        }
        values = FeatureRows(values, masks.get(feature, {}))
    rows = values if isinstance(values, FeatureRows) else FeatureRows(values)
    frames = dict.fromkeys(
        draw(st.lists(ROWS, max_size=2)), draw(st.sampled_from(["torn", "", "\ud800"]))
    )
    status = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.uint8)
    failures: Any = draw(st.sampled_from([Failures(), Failures("x"), Failures(frames=frames), "{"]))
    start, place = draw(ROWS), draw(st.integers(-1, 4))
    return draw(
        st.sampled_from(
            [
                lambda tx: tx.write(feature, video, values, failed_frames=frames),
                lambda tx: tx.write_video_feature(
                    feature, video, rows.values[0] if n == 1 else values
                ),
                lambda tx: tx.fail(feature, video, str(failures)),
                lambda tx: tx.write_rows(feature, start, rows, status),
                lambda tx: tx.set_states(feature, {place: failures}),
                lambda tx: tx.reset_states(feature, [place, place]),
                lambda tx: tx.add_videos(
                    [record("new", n, **{"class": "x"}), record(video, n)][: 1 + n % 2]
                ),
                lambda tx: tx.set_splits({video: "dev"}),
                lambda tx: tx.remove_feature("gone"),
                lambda tx: tx.add_feature(FeatureSpec("gone")),
            ]
        )
    )


def check_random_writes(location: str, calls: list[list[Callable[[Transaction], None]]]) -> None:
    store = begun(kpstore.create(location), PARTED, COUNT, PERSON)
    for of_one in calls:
        with suppress(KpstoreError), store.transaction("odd") as tx:
            for call in of_one:
                with suppress(
                    KpstoreError
                ):  # a call that is refused leaves the transaction as it was
                    call(tx)
    assert verify(store.at()).problems == []


CALLS = st.lists(st.lists(writes(), min_size=1, max_size=4), min_size=1, max_size=3)


@COSTLY
@given(CALLS)
def test_random_writes_leave_a_sound_store(
    calls: list[list[Callable[[Transaction], None]]],
) -> None:
    check_random_writes(memory_location(), calls)


@settings(max_examples=3)
@given(CALLS)
def test_random_writes_leave_a_sound_store_on_icechunk(
    tmp_path_factory: pytest.TempPathFactory, calls: list[list[Callable[[Transaction], None]]]
) -> None:
    check_random_writes(location_of("icechunk", Path(tmp_path_factory.mktemp("sound"))), calls)
