"""Stores whose arrays are not what their description says: one line, whatever is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.backends.base import ArrayMeta, WriteSession
from kpstore.errors import InvalidError, KpstoreError
from kpstore.schema.feature import FeatureSpec, edges_of, part_slices
from kpstore.store import format as fmt
from tests.store.data import fill

Change = Callable[[WriteSession], None]


def made_anew(name: str, **facts: Any) -> Change:
    """Return what makes an array of a store again, as something else."""

    def change(session: WriteSession) -> None:
        meta = session.meta(name)
        session.delete(name)
        session.create(name, replace(meta, **facts))

    return change


def all_of_frames_made_anew(n_rows: int) -> Change:
    """Return what gives all arrays of frames another length, but for the list of frames."""

    def change(session: WriteSession) -> None:
        for name in set(session.names()) - {fmt.IMAGE_PATH}:
            meta = session.meta(name)
            if meta.dims[0] == "frame":
                session.delete(name)
                session.create(name, meta.with_rows(n_rows))

    return change


def described(entry: str, value: object) -> Change:
    """Return what changes an entry of a store's description."""

    def change(session: WriteSession) -> None:
        attrs = dict(session.attrs())
        session.set_attrs({**attrs, fmt.ROOT: {**attrs[fmt.ROOT], entry: value}})

    return change


CHANGES: dict[str, tuple[Change, str]] = {
    "another row": (
        made_anew("points", shape=(34, 6, 3)),
        r"'points' has float32 \(6, 3\) for each frame, its description says float32 \(5, 3\)",
    ),
    "another axis": (
        made_anew("points", dims=("video", "point", "space")),
        "for each video, its description says .* for each frame",
    ),
    "another type": (made_anew("points_status", dtype="int64"), "'points_status' has int64"),
    "another length": (made_anew("points_status", shape=(100,)), "rows and .*, both one for each"),
    "lengths that agree with each other only": (
        all_of_frames_made_anew(100),
        "'points' has 100 rows and 'image_path' 34",
    ),
    "frames that are not counted": (made_anew("n_frames"), "have 0 frames, 'image_path' has 34"),
    "no ids": (lambda session: session.delete("video_id"), "lacks video_id; it is damaged"),
    "a feature as annotation": (described("annotations", ["points"]), "'points' has float32"),
    "an annotation elsewhere": (described("annotations", ["../x"]), "no sound annotations"),
    "an annotation twice": (described("annotations", ["gloss"] * 2), "no sound annotations"),
}
ASKED: dict[str, Callable[[kpstore.Store], object]] = {
    "repr": repr,
    "frames": lambda store: store.frames("points", missing="skip"),
    "xarray": lambda store: store.to_xarray(),
    "html": lambda store: store._repr_html_(),
    "videos": lambda store: store.videos,
    "splits": lambda store: store.check_splits(),
    "statistics": lambda store: store.statistics("points"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_store_that_contradicts_its_description_is_one_line(
    store: kpstore.Store, what: str
) -> None:
    change, says = CHANGES[what]
    fill(store)
    session = store.backend.begin()
    change(session)
    session.commit("other software")
    for asked in ASKED.values():
        with pytest.raises(KpstoreError, match=says) as caught:
            asked(store.at())
        assert "\n" not in str(caught.value)


def test_a_feature_that_contradicts_its_description_leaves_the_others_readable(
    memory_store: kpstore.Store,
) -> None:
    fill(memory_store)
    with memory_store.transaction("another") as tx:
        tx.add_feature(FeatureSpec("more", (2,), ("x",)), {"extractor": "x"})
    session = memory_store.backend.begin()
    made_anew("more", shape=(34, 3))(session)
    session.commit("other software")
    found = memory_store.at()
    assert len(found.frames("points", missing="skip")) > 0
    assert found.feature("points").shape == (5, 3)
    for asked in (lambda: found.feature("more"), lambda: found.frames("more"), lambda: repr(found)):
        with pytest.raises(KpstoreError, match=r"'more' has float32 \(3,\) for each frame"):
            asked()


def test_an_array_without_rows_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"an array of \(\) float32 has no rows"):
        ArrayMeta((), "float32", 1, ())


@pytest.mark.parametrize("given", [5, "x", [1], {"a": 3}, {"a": [0, 9]}, {"a": [-1, 2]}])
def test_parts_that_are_no_runs_of_points_are_none(given: object) -> None:
    spec = FeatureSpec("points", (5, 3), ("point", "space"), attrs={"parts": given})
    assert part_slices(spec) == {"": None}


@pytest.mark.parametrize("given", [5, "xy", [1], [[0, 9]], [[-1, 0]], [[0, 1, 2]], [["a", "b"]]])
def test_edges_that_are_no_pairs_of_points_are_one_line(given: object) -> None:
    spec = FeatureSpec("points", (5, 3), ("point", "space"), attrs={"edges": given})
    with pytest.raises(InvalidError, match="its edges are not pairs of its 5 points"):
        edges_of(spec)
    sound = FeatureSpec("points", (5, 3), ("point", "space"), attrs={"edges": [[0, 4]]})
    assert edges_of(sound) == ((0, 4),)
    assert np.asarray(edges_of(FeatureSpec("none"))).size == 0
