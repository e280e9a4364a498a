from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.errors import ExistsError, InvalidError, NotFoundError
from kpstore.interop import deflate, outputs
from kpstore.interop.base import ExportedFile
from kpstore.interop.deflate import DeflateThreads
from kpstore.interop.npz import write
from kpstore.interop.npz.write import NpzExport
from kpstore.schema.feature import FeatureRows
from kpstore.schema.layout import PART_SLICES, PARTS, keypoints_spec
from tests.fakes import record

LENGTHS = {"a": ("train", 6), "b": ("train", 3), "c": ("dev", 4), "d": ("dev", 2)}


def export_npz(
    store: kpstore.Store,
    path: Path,
    *,
    overwrite: bool = False,
    on_progress: Any = None,
    **options: Any,
) -> Sequence[ExportedFile]:
    return (
        NpzExport(**options).export(store, path, overwrite=overwrite, on_progress=on_progress).files
    )


def keypoint_rows(n_frames: int, seed: int) -> FeatureRows:
    """Random keypoints in which every part is sometimes missing, and frame 1 has nothing at all."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n_frames, 143, 3)).astype(np.float32)
    detected = rng.random((n_frames, 4)) < 0.7
    detected[0], detected[1] = True, False
    for column, part in enumerate(PARTS):
        values[~detected[:, column], PART_SLICES[part]] = np.nan
    return FeatureRows(values, {"detected": detected})


def filled(store: kpstore.Store, splits: dict[str, str] | None = None) -> kpstore.Store:
    """Four videos: a is done, frame 2 of b failed, c is done, d is pending."""
    with store.transaction("fill") as tx:
        tx.add_videos(
            [record(v, n, (splits or {}).get(v, split)) for v, (split, n) in LENGTHS.items()]
        )
        tx.add_feature(keypoints_spec())
        tx.write("keypoints", "a", keypoint_rows(6, 1))
        tx.write("keypoints", "b", keypoint_rows(3, 2), failed_frames={2: "truncated"})
        tx.write("keypoints", "c", keypoint_rows(4, 3))
    return store.at()


def test_files_are_as_users_scripts_wrote_them(memory_store: kpstore.Store, tmp_path: Path) -> None:
    exported = export_npz(filled(memory_store), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dev_keypoints.npz",
        "dev_stats.json",
        "train_keypoints.npz",
        "train_stats.json",
    ]
    wanted = np.concatenate(
        [np.delete(keypoint_rows(6, 1).values, 1, 0), keypoint_rows(3, 2).values[:1]]
    )
    with np.load(tmp_path / "train_keypoints.npz") as train:
        assert sorted(train.files) == ["image_paths", "keypoints", "video_ids"]
        assert train["keypoints"].dtype == np.float32
        np.testing.assert_array_equal(train["keypoints"], np.nan_to_num(wanted))
        assert train["image_paths"].tolist() == [f"a/{n:04d}.png" for n in (0, 2, 3, 4, 5)] + [
            "b/0000.png"
        ]
        assert train["video_ids"].tolist() == ["a"] * 5 + ["b"]
    assert exported[0].left_out == {"failed": 1, "pending": 0, "empty": 2}
    assert exported[1].left_out == {"failed": 0, "pending": 2, "empty": 1}


def test_stats_count_detections(memory_store: kpstore.Store, tmp_path: Path) -> None:
    export_npz(filled(memory_store), tmp_path, splits=["dev"])
    detected = keypoint_rows(4, 3).companions["detected"].sum(axis=0).tolist()
    assert json.loads((tmp_path / "dev_stats.json").read_text()) == {
        "split": "dev",
        "num_samples": 3,
        "num_videos": 1,
        "keypoint_shape": [143, 3],
        **{f"{part}_detected": count for part, count in zip(PARTS, detected, strict=True)},
    }


def test_options_keep_frames_and_nan(memory_store: kpstore.Store, tmp_path: Path) -> None:
    export_npz(
        filled(memory_store), tmp_path, splits=["train"], missing="nan", failed="keep", empty="keep"
    )
    values = keypoint_rows(3, 2).values
    values[2] = np.nan
    with np.load(tmp_path / "train_keypoints.npz") as train:
        np.testing.assert_array_equal(
            train["keypoints"], np.concatenate([keypoint_rows(6, 1).values, values])
        )


def test_blocks_do_not_change_the_files(
    memory_store: kpstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(memory_store)
    export_npz(store, tmp_path / "whole")
    monkeypatch.setattr(outputs, "BLOCK_FRAMES", 2)
    seen: list[int] = []
    export_npz(store, tmp_path / "blocks", on_progress=seen.append)
    assert sum(seen) == 9
    for name in ("train", "dev"):
        with (
            np.load(tmp_path / "whole" / f"{name}_keypoints.npz") as whole,
            np.load(tmp_path / "blocks" / f"{name}_keypoints.npz") as blocks,
        ):
            for array in whole.files:
                np.testing.assert_array_equal(whole[array], blocks[array])


def test_a_split_without_done_frames_is_an_empty_file(
    memory_store: kpstore.Store, tmp_path: Path
) -> None:
    (exported,) = export_npz(filled(memory_store, {"d": "test"}), tmp_path, splits=["test"])
    with np.load(exported.path) as test:
        assert test["keypoints"].shape == (0, 143, 3)
        assert test["image_paths"].shape == (0,)
    assert exported.left_out["pending"] == 2


def test_files_are_not_replaced_unless_asked(memory_store: kpstore.Store, tmp_path: Path) -> None:
    store = filled(memory_store)
    (tmp_path / "dev_stats.json").write_text("mine")
    with pytest.raises(ExistsError, match=r"dev_stats.json exists? already; .* --overwrite"):
        export_npz(store, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dev_stats.json"]
    export_npz(store, tmp_path, overwrite=True)
    assert json.loads((tmp_path / "dev_stats.json").read_text())["split"] == "dev"


def test_a_failed_export_leaves_nothing(
    memory_store: kpstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    store = filled(memory_store)
    monkeypatch.setattr(write, "_write_array", full)
    with pytest.raises(OSError, match="no space left"):
        export_npz(store, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_videos_without_a_split_are_all(memory_store: kpstore.Store, tmp_path: Path) -> None:
    (exported,) = export_npz(filled(memory_store, dict.fromkeys(LENGTHS, "")), tmp_path)
    assert exported.path.name == "all_keypoints.npz"
    assert json.loads((tmp_path / "all_stats.json").read_text())["split"] == "all"


@pytest.mark.parametrize("split", ["../evil", "a\\b", "/abs", ".hidden", "..", "c:", "x\n"])
def test_splits_that_are_no_file_name_are_refused(
    memory_store: kpstore.Store, tmp_path: Path, split: str
) -> None:
    store = filled(memory_store, dict.fromkeys(LENGTHS, split))
    with pytest.raises(InvalidError, match="cannot be part of a file name"):
        export_npz(store, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_named(memory_store: kpstore.Store, tmp_path: Path) -> None:
    store = filled(memory_store)
    with pytest.raises(NotFoundError, match="feature 'lips' not found"):
        export_npz(store, tmp_path, feature="lips")
    with pytest.raises(NotFoundError, match="split 'val' not found"):
        export_npz(store, tmp_path, splits=["val"])
    with pytest.raises(InvalidError, match="missing='none'"):
        export_npz(store, tmp_path, missing="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("format_name", ["npz", "slt"])
def test_zeros_that_look_like_results_are_told(
    memory_store: kpstore.Store, tmp_path: Path, format_name: str
) -> None:
    """A part or a row of zeros is known to be missing; a zero among numbers is not."""
    part = keypoint_rows(6, 1).values
    part[0, PART_SLICES["face"].start + 3] = np.nan
    plain = np.array([[1, np.nan], [np.nan, np.nan], [3, 4], [5, 6], [np.nan, 7], [8, 9]])
    store = filled(memory_store)
    with store.transaction("more") as tx:
        tx.add_feature(kpstore.FeatureSpec("plain", (2,), ("x",)))
        tx.write("plain", "a", plain)
        tx.write("keypoints", "a", part)
    for feature, n_rows in (("plain", 2), ("keypoints", 1)):
        told = f"{n_rows} rows of {feature} lack single values, which are zeros in the file; "
        for missing in ("zeros", "nan"):
            report = kpstore.export_file(
                store.at(),
                tmp_path / f"{format_name}-{feature}-{missing}",
                format_name,
                feature=feature,
                missing=missing,
            )
            there = any(note.startswith(told) for note in report.notes)
            assert there == (missing == "zeros"), report.notes


def test_threads_compress_a_member_whose_pieces_stay_in_order(tmp_path: Path) -> None:
    pieces = [bytes([number]) * number * 1000 for number in range(100)]
    with (
        DeflateThreads() as threads,
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in ("one", "other", "empty"):
            with threads.open(archive, name) as file:
                for piece in pieces if name != "empty" else ():
                    file.write(piece)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.read("one") == archive.read("other") == b"".join(pieces)
        assert archive.read("empty") == b""
        assert archive.getinfo("one").compress_size < len(b"".join(pieces)) / 10


def test_an_interrupt_does_not_wait_for_pieces_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, left, done = threading.Event(), threading.Event(), []

    def slow(piece: bytes) -> bytes:
        begun.set()
        left.wait()
        done.append(piece)
        return piece

    monkeypatch.setattr(deflate, "usable_cores", lambda: 1)
    monkeypatch.setattr(deflate, "_compressed", slow)

    def write_and_stop(threads: DeflateThreads) -> None:
        with (
            zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive,
            threads.open(archive, "one") as file,
        ):
            file.write(b"first")
            file.write(b"second")
            begun.wait()
            raise KeyboardInterrupt

    with DeflateThreads() as threads:
        with pytest.raises(KeyboardInterrupt):
            write_and_stop(threads)
        left.set()
    assert done == [b"first"]
