"""Frames for a DataLoader: one read per batch, in any kind of worker process."""

from __future__ import annotations

import json
import pickle
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.schema.feature import FeatureSpec
from tests.fakes import record
from tests.processes import finish
from tests.store.data import fill, rows_of


def values_of(samples: list[dict[str, Any]], name: str = "points") -> np.ndarray:
    return np.stack([sample[name] for sample in samples])


def test_samples_are_the_rows_of_the_store(store: kpstore.Store) -> None:
    filled = fill(store)
    view = filled.frames(["points", "points_detected"])
    assert len(view) == 34
    assert set(view[0]) == {"points", "points_detected", "row"}
    np.testing.assert_array_equal(values_of([view[i] for i in range(34)]), filled["points"][:])
    np.testing.assert_array_equal(view[-1]["points"], filled["points"][33])
    np.testing.assert_array_equal(
        view[6]["points_detected"], rows_of("b", 9).companions["detected"][1]
    )
    for index in (34, -35):
        with pytest.raises(IndexError, match=f"sample {index} asked for; the view has 34"):
            view[index]


def test_a_batch_is_one_planned_read(
    memory_store: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = fill(memory_store)
    view, reads, read = filled.frames("points"), list[list[int]](), filled.reader.read

    def counted(name: str, rows: np.ndarray, out: Any = None) -> Any:
        reads.append(rows.tolist())
        return read(name, rows, out)

    monkeypatch.setattr(filled.reader, "read", counted)
    samples = view.__getitems__([13, 2, 9, 2, 6, 33])
    assert reads == [[13, 2, 9, 2, 6, 33]]
    assert [sample["row"] for sample in samples] == [13, 2, 9, 2, 6, 33]
    monkeypatch.undo()
    np.testing.assert_array_equal(values_of(samples), filled["points"][[13, 2, 9, 2, 6, 33]])


def test_subsets_by_split_and_videos(store: kpstore.Store) -> None:
    filled = fill(store)
    assert filled.frames("points", split="dev").rows.tolist() == list(range(5, 14))
    assert filled.frames("points", videos=["b", "a"]).rows.tolist() == [*range(5, 14), *range(5)]
    assert filled.frames("points", split="train", videos=["b", "a"]).rows.tolist() == list(range(5))
    assert filled.frames("points", split=["train", "dev"]).rows.tolist() == list(range(34))
    with pytest.raises(NotFoundError, match="split 'test' not found"):
        filled.frames("points", split="test")


@pytest.mark.parametrize(
    "features", ["points", "points_detected", ["points_detected", "image_path"]]
)
def test_skip_leaves_out_failed_and_pending_frames(
    memory_store: kpstore.Store, features: Any
) -> None:
    with fill(memory_store).transaction("fail") as tx:
        tx.write("points", "a", rows_of("a", 5), failed_frames={1: "no"})
    view = memory_store.at().frames(features, missing="skip")
    assert view.rows.tolist() == [0, 2, 3, 4, *range(5, 14)]
    assert len(memory_store.at().frames(features)) == 34


def test_missing_frames_are_nan_when_kept(memory_store: kpstore.Store) -> None:
    view = fill(memory_store).frames("points")
    assert np.isnan(view[20]["points"]).all()
    assert not np.isnan(view[3]["points"]).any()


def test_missing_frames_never_pass_for_zeros(memory_store: kpstore.Store) -> None:
    """A type without NaN cannot tell them, unless its status is read beside it."""
    store = fill(memory_store, done=("a", "b", "d"))
    with store.transaction("count") as tx:
        tx.add_feature(FeatureSpec("count", dtype="int16"))
        tx.write("count", "a", np.arange(5), failed_frames={1: "torn"})
        tx.write("count", "b", np.arange(9))
    store = store.at()
    for view in (store.frames, partial(store.clips, length=2), store.whole_videos):
        with pytest.raises(InvalidError, match=r"of 'count' failed .* int16 has no NaN"):
            view("count")
        assert len(view("count", videos=["b"])) > 0
        assert len(view(["count", "count_status"])) > 0
        assert len(view("count", missing="skip")) > 0
    samples = store.frames(["count", "count_status"], videos=["a"]).batch(range(5))
    assert samples["count_status"].tolist() == [1, 2, 1, 1, 1]


def test_a_transform_makes_the_sample(memory_store: kpstore.Store) -> None:
    view = fill(memory_store).frames(
        "points", transform=lambda sample: float(sample["points"].sum())
    )
    assert view[3] == pytest.approx(float(rows_of("a", 5).values[3].sum()))


def test_only_arrays_of_frames_and_known_words_are_taken(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    with pytest.raises(
        InvalidError, match="'n_frames' lies on the axis 'video', this view needs 'frame'"
    ):
        filled.frames("n_frames")
    with pytest.raises(InvalidError, match="missing='drop': use 'nan' or 'skip'"):
        filled.frames("points", missing="drop")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="feature 'pose' not found"):
        filled.frames(["points", "pose"])


def test_a_view_pickles_with_its_selection_and_version(store: kpstore.Store) -> None:
    view = fill(store).frames("points", split="dev")
    view[0]
    again = pickle.loads(pickle.dumps(view))
    with store.transaction("later") as tx:
        tx.remove_feature("points")
        tx.add_feature(FeatureSpec("other"))
    np.testing.assert_array_equal(values_of(again.__getitems__(range(9))), rows_of("b", 9).values)


LOADER = """
import json, sys, kpstore, numpy as np
from torch.utils.data import DataLoader

def load(location, workers, method, feature):
    store = kpstore.open(location)
    # the parent has read before it starts workers
    store["points"][:], store.video("a")["points"], store.videos
    view = store.frames(["points", feature], missing="skip")
    view[0], view.batch(range(14))
    loader = DataLoader(
        view,
        batch_size=4,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=method == "spawn",
    )
    for epoch in range(2):
        values = np.concatenate([batch["points"].numpy() for batch in loader])
        assert np.array_equal(values, store["points"][:14]), values.shape
    return "equal"

def main():
    raw, lz4 = sys.argv[1:]
    for name, case in {
        "in this process": (raw, 0, None, "points"),
        "spawned": (raw, 1, "spawn", "points"),
        "from a fork server": (raw, 1, "forkserver", "points"),
        "forked": (raw, 2, "fork", "points"),
        "forked, compressed": (lz4, 2, "fork", "points"),
        "forked, in need of icechunk": (raw, 2, "fork", "image_path"),
    }.items():
        try:
            said = load(*case)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps([name, said]), flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each way to load batches.

    One process tries them all, for most of its work is importing torch.
    """
    folder = tmp_path_factory.mktemp("loaded")
    stores = [
        fill(kpstore.create(folder / f"{codec}.kps"), compression=codec) for codec in ("raw", "lz4")
    ]
    script = folder / "loader.py"
    script.write_text(LOADER)
    done = finish([sys.executable, "-W", "ignore", script, *(store.location for store in stores)])
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    "worker", ["in this process", "spawned", "from a fork server", "forked", "forked, compressed"]
)
def test_a_data_loader_reads_in_any_worker(loaded: dict[str, str], worker: str) -> None:
    assert loaded[worker] == "equal"


@pytest.mark.slow
def test_a_forked_worker_that_needs_icechunk_is_told_what_to_do(loaded: dict[str, str]) -> None:
    # Text is decoded by Zarr, out of Icechunk: it hangs in a forked process, so it is refused
    # there.
    assert "multiprocessing_context='forkserver'" in loaded["forked, in need of icechunk"]


def test_selections_are_what_they_say_or_an_error(memory_store: kpstore.Store) -> None:
    store = fill(memory_store, done=("a", "b", "c", "d"))
    rows = [
        len(store.frames("points", where={"gloss": given}))
        for given in ({"A", "B"}, ["A", "B"], np.array(["A", "B"]))
    ]
    assert rows == [14, 14, 14]
    assert len(store.frames("points", where={"video_id": "a"})) == 5
    assert len(store.frames("points", videos="a")) == 5
    with pytest.raises(NotFoundError, match="'ab'"):
        store.frames("points", videos="ab")
    with pytest.raises(InvalidError, match="names 'b' twice; name each video once"):
        store.frames("points", videos=["b", "a", "b"])
    with pytest.raises(InvalidError, match="'gloss' holds text, 1 was asked for"):
        store.frames("points", where={"gloss": ["A", 1]})
    with pytest.raises(InvalidError, match="'n_frames' holds numbers, '5' was asked for"):
        store.frames("points", where={"n_frames": "5"})
    assert len(store.frames("points", where={"n_frames": 5})) == 5
    with pytest.raises(InvalidError, match="use a query, or annotations by name"):
        store.frames("points", where=lambda row: True)  # type: ignore[arg-type]


@pytest.mark.parametrize("indices", [[1.9], [[1]], ["a"], [-35], [34]])
def test_samples_are_asked_for_by_whole_numbers(memory_store: kpstore.Store, indices: Any) -> None:
    view = fill(memory_store, done=("a", "b", "c", "d")).frames("points")
    for some in (view, view.subset(np.arange(34)), view.store.clips("points", 1)):
        with pytest.raises(InvalidError, match=r"asked for by ints|sample -?3\d asked for"):
            some.batch(indices)


def test_a_mask_and_numbers_from_the_end_are_what_numpy_means(memory_store: kpstore.Store) -> None:
    view = fill(memory_store, done=("a", "b", "c", "d")).frames("points")
    mask = np.arange(34) % 3 == 0
    assert view.batch(mask)["row"].tolist() == np.arange(34)[mask].tolist()
    assert view.batch([-1, 0])["row"].tolist() == [33, 0]
    for wrong in (slice(0, 3), [1, 2], 1.5, True):
        with pytest.raises(InvalidError, match=r"use a whole number; view.batch"):
            view[wrong]  # type: ignore[index]
    with pytest.raises(InvalidError, match="asked for by whole numbers, found bool"):
        view.store.read("points", mask)


def test_a_feature_may_not_hide_what_samples_have_of_their_own(memory_store: kpstore.Store) -> None:
    with memory_store.transaction("x") as tx:
        tx.add_videos([record("a", 3)])
        tx.add_feature(FeatureSpec("row", (2,), ("x",)))
    with pytest.raises(InvalidError, match="views use the key 'row' for their own data"):
        memory_store.at().frames("row")
