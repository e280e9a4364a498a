"""Lip embeddings: a folder of npz files into a store and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.errors import ExistsError, InvalidError, NotFoundError
from kpstore.interop.embeddings import EMBEDDINGS
from kpstore.interop.embeddings.read import EmbeddingsImport
from kpstore.interop.embeddings.write import EmbeddingsExport
from kpstore.interop.transfer import ImportReport, import_document
from kpstore.schema.feature import FeatureSpec, State
from kpstore.store.store import backend_for
from tests.conftest import COSTLY, memory_location

SPEC = FeatureSpec("lip_resnet18", (512,), ("feature",))


def embedding(seed: int, n_frames: int) -> Any:
    return np.random.default_rng(seed).standard_normal((n_frames, 512)).astype(np.float32)


def write(
    root: Path, name: str, n_frames: int | None, *, crops: int | None = None, array: Any = None
) -> None:
    """Write an utterance as the scripts do: an embedding of ``n_frames``, and crops beside it."""
    path = root / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if crops is not None:
        np.savez_compressed(path, data=np.zeros((crops, 4, 4), np.uint8))
    if n_frames is not None or array is not None:
        values = embedding(len(name), n_frames).T.copy() if array is None else array
        np.savez_compressed(root / f"{name}_embedding.npz", embedding=values)


def test_arrays_that_are_not_stored_are_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a_embedding.npz", embedding=embedding(1, 3).T, scores=np.ones(3))
    _, report = import_folder(tmp_path)
    assert "1 embeddings come with further arrays, which are not stored" in report.notes


def import_folder(path: Path, **options: Any) -> tuple[kpstore.Store, ImportReport]:
    location = memory_location()
    report = import_document(
        EmbeddingsImport(**options).open(path), backend_for(location), source=str(path)
    )
    return kpstore.open(location, mode="a"), report


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.npz")
    }


letters = st.text(st.sampled_from("abü字 _.-1"), min_size=1, max_size=4).filter(
    lambda s: s.strip(". ") != "" and s[0] != "."
)
names = st.lists(letters, min_size=1, max_size=2).map("/".join)
utterances = st.dictionaries(
    names.filter(lambda n: not n.endswith("_embedding")),
    st.tuples(st.integers(0, 3), st.booleans()),
    max_size=4,
)


@COSTLY
@given(utterances, st.sampled_from(["channels_first", "time_first"]))
def test_folders_come_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, drawn: Any, layout: Any
) -> None:
    root, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    for name, (n, _) in drawn.items():
        values = embedding(len(name), n)
        write(root, name, None, array=values.T.copy() if layout == "channels_first" else values)
    if not drawn:
        return
    store, report = import_folder(root)
    assert (report.videos, report.notes) == (len(drawn), ())
    EmbeddingsExport().export(store, out)
    assert contents(out) == contents(root)


@COSTLY
@given(utterances, st.sampled_from(["channels_first", "time_first"]))
def test_stores_come_back_equal(
    tmp_path_factory: pytest.TempPathFactory, drawn: Any, layout: Any
) -> None:
    out = tmp_path_factory.mktemp("out")
    store = kpstore.create(memory_location())
    with store.transaction("fill") as tx:
        tx.add_feature(SPEC)
        for name, (n, done) in drawn.items():
            tx.add_videos(
                [kpstore.VideoRecord(name, "", tuple(f"{name}.npz#{i}" for i in range(n)))]
            )
            if done:
                tx.write("lip_resnet18", name, embedding(len(name), n))
    store = store.at()
    report = EmbeddingsExport(layout=layout).export(store, out)
    done = sorted(name for name, (_, done) in drawn.items() if done)
    assert report.files[0].left_out["pending"] == sum(n for n, done in drawn.values() if not done)
    if not done:
        return
    again, _ = import_folder(out)
    assert again.index.ids.tolist() == done
    for name in done:
        np.testing.assert_array_equal(
            again.video(name)["lip_resnet18"], store.video(name)["lip_resnet18"]
        )
        assert again.video(name).image_paths == store.video(name).image_paths


def test_missing_and_torn_embeddings_are_pending_and_failed(tmp_path: Path) -> None:
    write(tmp_path, "s/both", 4, crops=4)
    write(tmp_path, "s/crops", None, crops=3)
    write(tmp_path, "s/alone", 2)
    write(tmp_path, "s/torn", 5, crops=5)
    write(tmp_path, "s/lost", 5)
    write(
        tmp_path,
        "s/nan",
        None,
        array=np.where(np.arange(1536).reshape(512, 3) == 1, np.nan, 1).astype(np.float32),
    )
    write(tmp_path, "s/longer", 6, crops=5)
    for name in ("torn", "lost"):
        file = tmp_path / "s" / f"{name}_embedding.npz"
        file.write_bytes(file.read_bytes()[:200])
    (tmp_path / "s" / "other.npz").write_bytes(b"?")
    store, report = import_folder(tmp_path, split="train")
    assert store.index.ids.tolist() == [
        f"s/{n}" for n in ("alone", "both", "crops", "longer", "nan", "torn")
    ]
    assert store.states("lip_resnet18").tolist() == [1, 1, 0, 1, 1, 1]
    assert set(store.index.splits) == {"train"}
    failures = [(f.video_id, f.frame, f.image_path) for f in store.failures("lip_resnet18")]
    assert failures == [("s/nan", 1, "s/nan.npz#1")] + [
        ("s/torn", n, f"s/torn.npz#{n}") for n in range(5)
    ]
    assert np.isnan(store.video("s/nan")["lip_resnet18"][1]).all()
    notes = " | ".join(report.notes)
    assert "1 embeddings are not as long as their crops" in notes
    assert "1 utterances have neither embedding nor readable crops" in notes
    assert "'s/torn' failed: " in notes
    assert "'s/lost' failed: " in notes
    assert "not stored: without crops" in notes
    exported = EmbeddingsExport().export(store, tmp_path / "out").files[0]
    assert (exported.videos, exported.left_out) == (3, {"failed": 8, "pending": 3})
    lips = store.lips(missing="skip")
    np.testing.assert_array_equal(lips[0]["embedding"], embedding(len("s/alone"), 2))


def test_nothing_but_torn_files_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "a", 4, crops=4)
    (tmp_path / "a_embedding.npz").write_bytes(b"PK")
    with pytest.raises(
        InvalidError, match=r"none of the embeddings in .* can be read; 'a' failed: "
    ):
        import_folder(tmp_path)
    (tmp_path / "a_embedding.npz").unlink()
    with pytest.raises(NotFoundError, match="for any of 1 utterances"):
        import_folder(tmp_path)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5, 256), {}, r"a_embedding.npz: 'embedding' has the shape \(5, 256\), no axis is 512"),
        ((512,), {}, r"has the shape \(512,\), no axis is 512"),
        ((2, 5, 512), {}, r"has the shape \(2, 5, 512\), no axis"),
        ((512, 512), {}, "both axes of 'embedding' are 512; give --layout"),
        (
            (512, 5),
            {"layout": "time_first"},
            r"\(512, 5\), which is channels_first; --layout says time_first",
        ),
    ],
)
def test_arrays_that_are_not_512_are_refused(
    tmp_path: Path, shape: Any, options: Any, message: str
) -> None:
    write(tmp_path, "a", None, array=np.zeros(shape, np.float32))
    write(tmp_path, "b", 3)
    with pytest.raises(InvalidError, match=message):
        import_folder(tmp_path, **options)


def test_layouts_are_seen_or_said(tmp_path: Path) -> None:
    square = embedding(1, 512)
    write(tmp_path / "square", "a", None, array=square)
    for layout, wanted in (("time_first", square), ("channels_first", square.T)):
        store, _ = import_folder(tmp_path / "square", layout=layout)
        np.testing.assert_array_equal(store["lip_resnet18"][:], wanted)
    write(tmp_path / "batch", "a", None, array=embedding(2, 7)[None])
    write(tmp_path / "batch", "b", None, array=np.asfortranarray(embedding(3, 5).T))
    store, _ = import_folder(tmp_path / "batch")
    np.testing.assert_array_equal(
        store["lip_resnet18"][:], np.concatenate([embedding(2, 7), embedding(3, 5)])
    )


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((512, 2), np.int64), "is int64; floats are needed"),
        (np.full((512, 2), 0.1), "more digits than float32"),
        (np.array([{}, 1], object), "is object"),
    ],
)
def test_arrays_of_other_types_fail_alone(tmp_path: Path, array: Any, reason: str) -> None:
    write(tmp_path, "a", None, crops=2, array=array)
    write(tmp_path, "b", 2)
    store, _ = import_folder(tmp_path)
    assert reason in store.failures("lip_resnet18")[0].reason
    write(tmp_path, "a", None, array=np.full((512, 2), 0.5, np.float64))
    assert import_folder(tmp_path)[0].states("lip_resnet18").tolist() == [State.DONE, State.DONE]


def lists(tmp_path: Path, entries: dict[str, Any]) -> Path:
    """Write a configuration and its lists, as DataPreProcess does."""
    config = tmp_path / "configs" / "LRS2.yml"
    config.parent.mkdir()
    config.write_text(
        "datamodule:\n  data_config: # 训练\n    train_dir: DataPreProcess/tr\n    valid_dir: "
        "DataPreProcess/cv\n"
    )
    for name, value in entries.items():
        path = tmp_path / "DataPreProcess" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return config


def test_lists_choose_utterances_and_their_splits(tmp_path: Path) -> None:
    mouths = tmp_path / "mouths"
    for name in ("1_2", "3_4", "5_6", "unlisted"):
        write(mouths, name, 2)
    wav = "/audio/1_2_0_3_4_0.wav"
    entries = {
        "tr/s1.json": [[wav, str(mouths / "3_4.npz"), 32000], [wav, str(mouths / "1_2.npz"), 32000]]
        * 3,
        "tr/s2.json": [[wav, str(mouths / "1_2.npz"), 32000]],
        "tr/mix.json": [[wav, 32000]],
        "cv/s1.json": [[wav, "5_6.npz", 32000], [wav, "mouths/1_2.npz", 32000]],
    }
    store, report = import_folder(mouths, config=lists(tmp_path, entries))
    assert store.index.ids.tolist() == ["3_4", "1_2", "5_6"]
    assert store.index.splits.tolist() == ["train", "train", "val"]
    assert report.notes == ("1 utterances are listed in two splits; each is stored in the first",)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"tr/mix.json": []}, NotFoundError, "split 'train' has no s1.json or s2.json in"),
        ({"tr/s1.json": "[["}, InvalidError, "s1.json is not JSON"),
        (
            {"tr/s1.json": "{}"},
            InvalidError,
            r"a list of \[wav, npz, samples\] is needed, found dict",
        ),
        ({"tr/s1.json": [["a.wav", 7]]}, InvalidError, r'entry 0 is \["a.wav", 7\]'),
        (
            {"tr/s1.json": [["a.wav", "../../x.npz", 7]], "cv/s1.json": []},
            InvalidError,
            "which is not in",
        ),
        ({"tr/s1.json": [], "cv/s1.json": []}, NotFoundError, "no npz files in"),
    ],
)
def test_lists_that_are_wrong_are_named(
    tmp_path: Path, entries: Any, error: Any, message: str
) -> None:
    (tmp_path / "mouths").mkdir()
    with pytest.raises(error, match=message):
        import_folder(tmp_path / "mouths", config=lists(tmp_path, entries))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("7", "no train_dir"),
        ("datamodule: {data_config: {train_dir: 3}}", "no train_dir"),
    ],
)
def test_configurations_that_are_wrong_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yml").write_text(text)
    with pytest.raises(InvalidError, match=message):
        import_folder(tmp_path, config=tmp_path / "x.yml")
    with pytest.raises(NotFoundError, match="no configuration at"):
        import_folder(tmp_path, config=tmp_path / "y.yml")
    with pytest.raises(InvalidError, match="a configuration names the splits"):
        EmbeddingsImport(split="train", config=tmp_path / "x.yml")
    with pytest.raises(InvalidError, match="layout='rows'"):
        EmbeddingsImport(layout="rows")  # type: ignore[arg-type]


@pytest.mark.parametrize("video_id", ["../x", "/x", "a\\b", "c:x", "a\nb"])
def test_ids_never_lead_out_of_the_folder(
    tmp_path: Path, memory_store: kpstore.Store, video_id: str
) -> None:
    with memory_store.transaction("fill") as tx:
        tx.add_feature(SPEC)
        tx.add_videos([kpstore.VideoRecord(video_id, "", ("x",))])
        tx.write("lip_resnet18", video_id, embedding(1, 1))
    with pytest.raises(InvalidError, match="cannot be the name of a file"):
        EmbeddingsExport().export(memory_store.at(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_exports_replace_nothing_unasked(tmp_path: Path) -> None:
    write(tmp_path / "in", "a/b", 2)
    store, _ = import_folder(tmp_path / "in")
    EmbeddingsExport().export(store, tmp_path / "out")
    with pytest.raises(ExistsError, match=r"b_embedding.npz exists? already"):
        EmbeddingsExport().export(store, tmp_path / "out")
    EmbeddingsExport(layout="time_first").export(store, tmp_path / "out", overwrite=True)
    with np.load(tmp_path / "out" / "a" / "b_embedding.npz") as file:
        np.testing.assert_array_equal(file["embedding"], embedding(3, 2))
    with pytest.raises(NotFoundError, match="feature 'lips' not found"):
        EmbeddingsExport("lips").export(store, tmp_path / "out")
    with store.transaction("same name") as tx:
        tx.add_videos([kpstore.VideoRecord("a//b", "", ())])
        tx.write("lip_resnet18", "a//b", embedding(1, 0))
    with pytest.raises(InvalidError, match="videos 'a/b' and 'a//b' would both be written to"):
        EmbeddingsExport().export(store.at(), tmp_path / "new")


def test_it_is_recognised(tmp_path: Path) -> None:
    assert not EMBEDDINGS.recognises(tmp_path)
    write(tmp_path, "a/b", 1)
    assert EMBEDDINGS.recognises(tmp_path)
    assert not EMBEDDINGS.recognises(tmp_path / "a" / "b_embedding.npz")
    with pytest.raises(NotFoundError, match="no folder of npz files"):
        import_folder(tmp_path / "a" / "b_embedding.npz")


def test_a_folder_without_any_embedding_is_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "in", name, None, crops=3)
    with pytest.raises(NotFoundError, match=r"no \*_embedding\.npz in .* for any of 2 utterances"):
        import_folder(tmp_path / "in")


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "in", "deep/a", 3)
    store, _ = import_folder(tmp_path / "in")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidError, match="deep is a link"):
        EmbeddingsExport().export(store, tmp_path / "out", overwrite=True)
    assert list((tmp_path / "elsewhere").iterdir()) == []
