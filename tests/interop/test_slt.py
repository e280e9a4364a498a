"""Files of sign language translation: they come back, and no pickle is ever run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.errors import ExistsError, InvalidError, NotFoundError
from kpstore.interop.base import rows_spec
from kpstore.interop.slt import SLT
from kpstore.interop.slt.read import SltImport
from kpstore.interop.slt.write import SltExport
from kpstore.interop.transfer import import_document
from kpstore.store.store import backend_for
from tests.conftest import COSTLY, memory_location
from tests.interop.test_npz import filled, keypoint_rows

torch = pytest.importorskip("torch")


def entry(name: str, sign: Any, **texts: str) -> dict[str, Any]:
    return {
        "name": name,
        "signer": "Signer01",
        "gloss": "JETZT WETTER",
        "text": "und nun",
        **texts,
        "sign": sign,
    }


def write(path: Path, entries: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(pickle.dumps(entries, protocol)))
    return path


def read(path: Path) -> Any:
    """Read a file as users' code does."""
    with gzip.open(path, "rb") as file:
        return pickle.load(file)


def store_of(path: Path, location: str = "", **options: Any) -> kpstore.Store:
    location = location or memory_location()
    import_document(SltImport(**options).open(path), backend_for(location), source=str(path))
    return kpstore.open(location)


def equal(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    texts = [
        [{k: v for k, v in e.items() if k != "sign"} for e in entries]
        for entries in (found, wanted)
    ]
    assert texts[0] == texts[1]
    for a, b in zip(found, wanted, strict=True):
        assert type(a["sign"]) is type(b["sign"])
        np.testing.assert_array_equal(np.asarray(a["sign"]), np.asarray(b["sign"]))
        assert np.asarray(a["sign"]).dtype == np.asarray(b["sign"]).dtype
    return True


# -- round trips -----------------------------------------------------------------------------------


@COSTLY
@given(
    lengths=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    texts=st.lists(st.text(max_size=6), min_size=4, max_size=4),
    dtype=st.sampled_from(["float32", "float16", "float64", "int64", "uint8", "bool"]),
    shape=st.sampled_from([(4,), (2, 3), (1,)]),
    tensors=st.booleans(),
    prefix=st.sampled_from(["train/", "dev/", ""]),
    ending=st.sampled_from(["train", "gz", "tést"]),
    protocol=st.integers(0, 5),
    keys=st.sampled_from(
        [["signer", "gloss", "text"], ["gloss"], [], ["gloss", "speaker", "signer"]]
    ),
)
def test_any_file_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    texts: list[str],
    dtype: str,
    shape: tuple[int, ...],
    tensors: bool,
    prefix: str,
    ending: str,
    protocol: int,
    keys: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("slt")
    rng = np.random.default_rng(len(lengths))
    entries = []
    for number, n in enumerate(lengths):
        sign = (rng.standard_normal((n, *shape)) * 9).astype(dtype)
        if n and dtype.startswith("float"):
            sign[0, 0] = np.nan
        sign = torch.from_numpy(sign) if tensors else sign
        entries.append(
            {"name": f"{prefix}ü/{number}", **dict(zip(keys, texts, strict=False)), "sign": sign}
        )
    path = write(folder / f"a.b.{ending}", entries, protocol)
    store = store_of(path)
    split = "" if ending == "gz" else ending
    assert store.splits == [split]
    assert store.index.ids[0] == ("ü/0" if prefix == f"{split}/" else f"{prefix}ü/0")
    SltExport(name="x").export(store, folder / "out")
    assert equal(read(folder / "out" / f"x.{split or 'all'}"), entries)


@COSTLY
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["train", "dev", ""])), min_size=1, max_size=5
    ),
    arrays=st.sampled_from(["torch", "numpy"]),
)
def test_any_store_comes_back(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[int, str]], arrays: Any
) -> None:
    folder = tmp_path_factory.mktemp("slt")
    said = "features of sign language translation"
    spec = rows_spec("sign", (5,), "float32", description=said)
    store = kpstore.create(memory_location())
    rng = np.random.default_rng(len(lengths))
    with store.transaction("fill") as tx:
        tx.add_feature(spec)
        for number, (n, split) in enumerate(lengths):
            paths = tuple(f"é {number}#{frame}" for frame in range(n))
            texts = {"speaker": "S", "gloss": f"Ä{number}", "text": "\N{WAVING HAND SIGN}"}
            tx.add_videos([kpstore.VideoRecord(f"é {number}", split, paths, annotations=texts)])
            tx.write(
                "sign",
                f"é {number}",
                kpstore.FeatureRows(rng.standard_normal((n, 5)).astype(np.float32)),
            )
    store = store.at()
    SltExport(name="x", arrays=arrays, feature="sign").export(store, folder)
    location = memory_location()
    for split in store.splits:
        again = store_of(folder / f"x.{split or 'all'}", location, split=split)
    assert (again.splits, again.feature("sign")) == (store.splits, spec)
    for video_id in store.index.ids:
        one, other = store.video(video_id), again.video(video_id)
        assert (one.annotations, one.split, one.image_paths) == (
            other.annotations,
            other.split,
            other.image_paths,
        )
        np.testing.assert_array_equal(one["sign"], other["sign"])


# -- what is written -------------------------------------------------------------------------------


def test_keypoints_are_rows_of_numbers_without_gaps(
    memory_store: kpstore.Store, tmp_path: Path
) -> None:
    report = SltExport(name="k", signer_column="").export(filled(memory_store), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.dev", "k.train"]
    train = read(tmp_path / "k.train")
    assert [e["name"] for e in train] == ["train/a", "train/b"]
    assert train[0]["sign"].dtype == torch.float32
    wanted = np.nan_to_num(keypoint_rows(6, 1).values).reshape(6, 429)
    np.testing.assert_array_equal(train[0]["sign"].numpy(), wanted)
    assert not train[1]["sign"][2].any()
    assert len(train[1]["sign"]) == 3
    assert report.files[1].left_out == {"pending": 2}
    assert "1 frames failed or are pending: they are written as missing" in report.notes
    assert "gloss: the store has no such text; it is empty" in report.notes


def test_what_does_not_fit_is_refused(memory_store: kpstore.Store, tmp_path: Path) -> None:
    store = filled(memory_store)
    with pytest.raises(NotFoundError, match="annotation 'orth' not found; this store has none"):
        SltExport(gloss_column="orth").export(store, tmp_path)
    with pytest.raises(InvalidError, match="cannot be a file name"):
        SltExport(name="../x").export(store, tmp_path)
    with pytest.raises(InvalidError, match="arrays='jax'"):
        SltExport(arrays="jax")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    SltExport(name="x", splits=["dev"]).export(store, tmp_path)
    with pytest.raises(ExistsError, match=r"x\.dev exists? already"):
        SltExport(name="x").export(store, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.dev"]


# -- what is read ----------------------------------------------------------------------------------


def test_a_folder_is_all_its_splits(tmp_path: Path) -> None:
    sign = torch.ones(2, 3)
    for split in ("dev", "test", "train"):
        write(tmp_path / f"p.{split}", [entry(f"{split}/a{split}", sign)])
    (tmp_path / "notes.txt").write_text("mine")
    store = store_of(tmp_path, feature="pami")
    assert store.splits == ["train", "dev", "test"]
    assert store.index.ids.tolist() == ["atrain", "adev", "atest"]
    assert store.video("adev").annotations == {
        "speaker": "Signer01",
        "gloss": "JETZT WETTER",
        "text": "und nun",
    }


def test_splits_that_share_names_keep_them_apart(tmp_path: Path) -> None:
    for split in ("dev", "train"):
        write(tmp_path / f"p.{split}", [entry(f"{split}/a", np.ones((1, 2)))])
    with pytest.raises(InvalidError, match="'a' is in the file twice"):
        store_of(tmp_path)
    store = store_of(tmp_path, names="whole")
    assert store.index.ids.tolist() == ["train/a", "dev/a"]
    SltExport(name="x").export(store, tmp_path / "out")
    assert equal(read(tmp_path / "out" / "x.dev"), read(tmp_path / "p.dev"))


def test_what_a_pickle_shares_is_shared(tmp_path: Path) -> None:
    sign, text = torch.arange(6.0).reshape(2, 3), "wort " * 9
    entries = [
        entry(f"v{n}", sign[:1] if n % 2 else sign.T.contiguous().T, gloss=text) for n in range(800)
    ]
    entries[7]["sign"] = entries[700]["sign"]
    store = store_of(write(tmp_path / "a.train", entries))
    assert len(store.index) == 800
    np.testing.assert_array_equal(store.video("v7")["sign"], sign.numpy())
    np.testing.assert_array_equal(store.video("v9")["sign"], sign[:1].numpy())


@pytest.mark.parametrize("export", [True, False])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, export: bool) -> None:
    rng = np.random.default_rng(0)
    entries = [entry(f"v{n}", rng.random((50, 1000), dtype=np.float32)) for n in range(60)]  # 12 MB
    path = write(tmp_path / "a.train", entries)
    if export:
        SltExport(name="b", arrays="numpy").export(store_of(path), tmp_path)
        path = tmp_path / "b.train"
    del entries
    document = SltImport().open(path)
    tracemalloc.start()
    assert sum(video.record.n_frames for video in document.videos()) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


class _Runs:
    def __init__(self, call: Any, *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> Any:
        return self.call, self.given


@pytest.mark.parametrize(
    "evil",
    [
        _Runs(os.system, "touch pwned"),
        _Runs(eval, "1"),
        _Runs(getattr, "x", "upper"),
        _Runs(torch.load, "x"),
        _Runs(np.load, "x"),
        _Runs(torch.storage._load_from_bytes, pickle.dumps(_Runs(os.system, "touch pwned"))),
        np.array([1, "x"], dtype=object),
        np.ones((1, 1), dtype=complex),
        torch.nn.Parameter(torch.ones(1, 1)),
    ],
)
def test_nothing_in_a_pickle_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidError, match=r"a\.train") as error:
        store_of(write(tmp_path / "a.train", [entry("x", evil)], 2))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.train"]


def test_a_tensor_that_is_yet_to_be_negated_is_refused(tmp_path: Path) -> None:
    sign = torch.complex(torch.ones(3, 2), torch.ones(3, 2)).conj().imag
    assert (sign == -1).all()
    path = tmp_path / "x.train"
    with gzip.open(path, "wb") as file:
        pickle.dump([{"name": "a", "signer": "", "gloss": "", "text": "", "sign": sign}], file)
    with pytest.raises(InvalidError, match=r"yet to be changed .*'neg'.*resolve_neg"):
        SltImport().open(path)


def test_a_tensor_cannot_reach_beyond_its_numbers(tmp_path: Path) -> None:
    saved = io.BytesIO()
    torch.save(torch.ones(4)._typed_storage(), saved, _use_new_zipfile_serialization=False)
    storage = _Runs(torch.storage._load_from_bytes, saved.getvalue())
    for offset, size, stride in (
        (2, (3,), (1,)),
        (0, (2, 2), (3, 3)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
    ):
        beyond = _Runs(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
        with pytest.raises(InvalidError, match=r"a tensor of shape .* in 4 numbers"):
            store_of(write(tmp_path / "a.train", [entry("x", beyond)], 2))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"train": []}, "holds a dict, not a list"),
        ([], "holds no entries"),
        ([1], "entry 0: a int, not a dict"),
        ([entry("", np.ones((1, 1)))], "name is ''"),
        ([entry("a", [[1.0]])], r"entry 0 \('a'\): sign is list"),
        ([entry("a", np.float32(3))], "sign is"),
        ([{**entry("a", np.ones((1, 1))), 1: "x"}], "has the key 1; keys are texts"),
        (
            [entry("a", np.ones((1, 2))), entry("b", np.ones((1, 3)))],
            r"entry 1 \('b'\): sign is float64 \(1, 3\), but",
        ),
        ([entry("a", np.ones((1, 2))), entry("b", np.ones((1, 2), "f4"))], "sign is float32"),
        ([entry("a", np.ones((1, 2)), gloss=["A"])], "gloss is a list; it needs a text"),  # type: ignore[arg-type]
        (
            [entry("a", np.ones((1, 2))), {"name": "b", "sign": np.ones((1, 2))}],
            "but the first entry has",
        ),
        ([entry("a", np.ones((1, 2)))] * 2, "'a' is in the file twice"),
    ],
)
def test_what_breaks_the_rules_is_one_line(tmp_path: Path, entries: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        store_of(write(tmp_path / "a.train", entries), str(tmp_path / "s.kps"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.train"]


def test_torn_files_are_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.train", [entry("a", torch.ones(5, 50))]).read_bytes()
    inner = gzip.decompress(whole)
    torn = [
        whole[:-20],
        whole[:5],
        b"",
        b"PK\x03\x04",
        gzip.compress(inner[:-30]),
        gzip.compress(b"\x80\x04]q"),
        whole[:-4],
        whole + b"more",
        whole + whole,
        gzip.compress(inner + inner),
    ]
    for data in torn:
        (tmp_path / "a.train").write_bytes(data)
        with pytest.raises(InvalidError, match="no gzip file of a pickled list"):
            SltImport().open(tmp_path / "a.train")


def test_a_number_that_went_bad_is_found_by_the_checksum_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.train", [entry("a", np.arange(50, dtype=np.float32)[:, None])])
    bad = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    bad[bad.index(np.float32(30).tobytes()) + 2] ^= 16
    path.write_bytes(bad)
    with pytest.raises(InvalidError, match="CRC check failed"):
        store_of(path)


def test_other_facts_are_said(tmp_path: Path) -> None:
    entries = [
        {**entry("a", np.ones((1, 2))), "frames": 1},
        {**entry("b", np.ones((1, 2))), "frames": 2, "text": None},
    ]
    document = SltImport().open(write(tmp_path / "a.train", entries))
    assert len(list(document.videos())) == 2
    assert document.notes == [
        "'frames' of every entry: int, not a text",
        "1 entries have no text (None); an export has an empty one",
    ]


def test_files_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for protocol in range(6):
        assert SLT.recognises(
            write(tmp_path / f"x.{protocol}", [entry("a", np.ones((1, 2)))], protocol)
        )
    assert SLT.recognises(tmp_path)
    (tmp_path / "y").write_bytes(gzip.compress(b"some text"))
    (tmp_path / "z").write_bytes(b"\x1f\x8b")
    assert not any(SLT.recognises(tmp_path / name) for name in ("y", "z", "nothing"))
    assert not SLT.recognises(write(tmp_path / "w", {"train": {"keypoints": []}}))
