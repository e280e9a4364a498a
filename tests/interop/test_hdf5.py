"""Plain HDF5 files: h5py reads them, they come back as the same store; other files are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import kpstore
from kpstore.errors import ExistsError, InvalidError, NotFoundError
from kpstore.interop.hdf5 import HDF5, write
from kpstore.interop.hdf5 import read as hdf5_read
from kpstore.interop.hdf5.read import Hdf5Import
from kpstore.interop.hdf5.write import Hdf5Export
from kpstore.interop.transfer import import_document
from kpstore.schema.feature import State
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import keypoints_spec
from kpstore.store.store import backend_for
from tests.conftest import COSTLY, memory_location
from tests.fakes import record
from tests.interop.formats import PERSON
from tests.interop.test_npz import filled, keypoint_rows

h5py = pytest.importorskip("h5py")


def store_of(path: Path, location: str = "", **options: Any) -> kpstore.Store:
    location = location or memory_location()
    import_document(Hdf5Import(**options).open(path), backend_for(location), source=str(path))
    return kpstore.open(location)


def same(one: kpstore.Store, other: kpstore.Store) -> bool:
    """Whether two stores hold the same, bit for bit."""
    assert sorted(one.session.names()) == sorted(other.session.names())
    for name in one.session.names():
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name][:], other[name][:], err_msg=name)
        assert (one[name].dims, dict(one[name].attrs)) == (
            other[name].dims,
            dict(other[name].attrs),
        )
    assert dict(one.features) == dict(other.features)
    assert (one.name, one.annotation_names) == (other.name, other.annotation_names)
    return True


VIDEO = st.tuples(
    st.integers(0, 5),
    st.sampled_from(["train", "dev", "tést", ""]),
    st.sampled_from(["done", "frames", "failed", "pending"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=5),
    st.floats(1e-3, 1e5) | st.just(float("nan")),
)


@COSTLY
@given(
    videos=st.lists(VIDEO, max_size=5),
    compression=st.sampled_from(["none", "gzip", "lzf"]),
    block=st.booleans(),
)
def test_any_store_comes_back(
    tmp_path_factory: pytest.TempPathFactory, videos: list[Any], compression: Any, block: bool
) -> None:
    folder = tmp_path_factory.mktemp("hdf5")
    store = kpstore.create(memory_location(), name="ü")
    with store.transaction("fill") as tx:
        for number, (n, split, _, text, fps) in enumerate(videos):
            paths = tuple(f"é/{number}/{frame}.png" for frame in range(n))
            tx.add_videos(
                [
                    VideoRecord(
                        f"é/{number}", split, paths, fps, number, 7, {"gloss": text, "x": "y"}
                    )
                ]
            )
        tx.add_feature(keypoints_spec(), {"extractor": "fake", "document": {"a": [1]}})
        tx.add_feature(PERSON)
        for number, (n, _, state, text, _) in enumerate(videos):
            rows = keypoint_rows(n, number) if n > 1 else keypoints_spec().empty_rows(n)
            if state == "failed":
                tx.fail("keypoints", f"é/{number}", f"no {text}")
            elif state != "pending":
                torn = {frame: f"torn {text}" for frame in range(0, n, 2) if state == "frames"}
                tx.write("keypoints", f"é/{number}", rows, failed_frames=torn)
                tx.write_video_feature("person", f"é/{number}", np.full(2, number, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        if block:
            patch.setattr(write, "BLOCK_BYTES", 1)
            patch.setattr(write, "_CHUNK_BYTES", 4000)
        Hdf5Export(compression=compression).export(store.at(), folder / "s.h5")
    assert same(store_of(folder / "s.h5"), store.at())


def test_h5py_users_find_what_they_need(memory_store: kpstore.Store, tmp_path: Path) -> None:
    store = filled(memory_store)
    seen: list[int] = []
    report = Hdf5Export().export(store, tmp_path / "s.h5", on_progress=seen.append)
    assert (report.files[0].frames, report.files[0].videos, sum(seen)) == (15, 4, 15)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file.attrs["kpstore_export"] == 1
        assert "n_frames[:i].sum()" in file.attrs["README"]
        start = file["n_frames"][:2].sum()
        rows = slice(start, start + file["n_frames"][2])
        np.testing.assert_array_equal(file["keypoints"][rows], keypoint_rows(4, 3).values)
        assert file["video_id"].asstr()[2] == "c"
        assert file["image_path"].asstr()[rows][0] == "c/0000.png"
        assert [dim.label for dim in file["keypoints"].dims] == ["frame", "keypoint", "space"]
        assert file["keypoints"].dims[2][0].asstr()[:].tolist() == ["x", "y", "z"]
        assert file["fps"].dims[0][0].name == "/video_id"
        assert (file["fps"].attrs["units"], file["width"].attrs["units"]) == ("s-1", "pixel")
        assert file["keypoints"].attrs["ancillary_variables"].startswith("keypoints_detected")
        assert file["keypoints_status"].attrs["flag_meanings"] == "pending done failed"
        assert file["keypoints_detected"].dtype == bool
        assert file["keypoints"].chunks[1:] == (143, 3)


def test_parts_of_a_store(memory_store: kpstore.Store, tmp_path: Path) -> None:
    store = filled(memory_store)
    with store.transaction("more") as tx:
        tx.add_feature(PERSON)
    Hdf5Export(splits=["dev"], features=["keypoints"], compression="gzip").export(
        store.at(), tmp_path / "s.h5"
    )
    again = store_of(tmp_path / "s.h5")
    assert (again.index.ids.tolist(), list(again.features)) == (["c", "d"], ["keypoints"])
    np.testing.assert_array_equal(again.video("c")["keypoints"], keypoint_rows(4, 3).values)
    assert again.states("keypoints").tolist() == [State.DONE, State.PENDING]
    with pytest.raises(NotFoundError, match="feature 'lips' not found"):
        Hdf5Export(features=["lips"]).export(store.at(), tmp_path / "x.h5")
    with pytest.raises(InvalidError, match="compression='zip'"):
        Hdf5Export(compression="zip")  # type: ignore[arg-type]


def test_files_appear_whole_or_not_at_all(memory_store: kpstore.Store, tmp_path: Path) -> None:
    with memory_store.transaction("fill") as tx:
        tx.add_videos([record("a", 2, gloss="a\0b")])
    with pytest.raises(InvalidError, match="HDF5 ends text at a zero byte"):
        Hdf5Export().export(memory_store.at(), tmp_path / "s.h5")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s.h5").write_text("mine")
    with pytest.raises(ExistsError, match=r"s\.h5 exists? already"):
        Hdf5Export().export(memory_store.at(), tmp_path / "s.h5")


def test_features_are_added_to_videos_that_are_there(
    memory_store: kpstore.Store, tmp_path: Path
) -> None:
    store = filled(memory_store)
    with store.transaction("fail") as tx:
        tx.fail("keypoints", "d", "no codec")
    Hdf5Export().export(store.at(), tmp_path / "s.h5")
    other = kpstore.create(memory_location())
    with other.transaction("index") as tx:
        tx.add_videos([record(v, n) for v, n in (("a", 6), ("b", 3), ("c", 4), ("d", 2))])
    again = store_of(tmp_path / "s.h5", other.location)
    assert again.failures("keypoints") == store.at().failures("keypoints")
    for name in ("keypoints", "keypoints_status", "keypoints_state"):
        np.testing.assert_array_equal(again[name][:], store.at()[name][:])


# -- files of others -------------------------------------------------------------------------------


def foreign(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            text = isinstance(values, list)
            file.create_dataset(
                name.replace("__", "/"), data=values, dtype=h5py.string_dtype() if text else None
            )
    return path


def test_arrays_of_others_are_read(tmp_path: Path) -> None:
    rows = keypoint_rows(5, 1)
    zeros = np.nan_to_num(rows.values)
    ids, paths = ["a", "a", "ü", "ü", "ü"], ["x\\a\\0.png", "x\\a\\1.png", "2", "3", "4"]
    path = foreign(
        tmp_path / "f.h5", keypoints=zeros, video_ids=ids, image_paths=paths, more=np.ones(2)
    )
    document = Hdf5Import(split="dev").open(path)
    assert document.notes == [
        "backslashes in image_paths became forward slashes",
        "datasets more: import each with --dataset NAME",
    ]
    store = store_of(path, split="dev")
    assert (store.index.ids.tolist(), store.splits) == (["a", "ü"], ["dev"])
    assert store.video("a").image_paths == ["x/a/0.png", "x/a/1.png"]
    np.testing.assert_array_equal(store["keypoints"][:], rows.values)
    np.testing.assert_array_equal(store["keypoints_detected"][:], rows.companions["detected"])
    assert store_of(path, missing="nan")["keypoints_detected"][:].all()


def described(path: Path, values: Any, **attributes: Any) -> Path:
    """Write a dataset with attributes, as netCDF has them."""
    foreign(path, rows=values)
    with h5py.File(path, "a") as file:
        file["rows"].attrs.update(attributes)
    return path


@pytest.mark.parametrize("attribute", ["_FillValue", "missing_value"])
def test_numbers_that_stand_for_missing_values_are_missing(tmp_path: Path, attribute: str) -> None:
    values = np.arange(6, dtype="f4").reshape(3, 2)
    values[1] = 1e20
    gone = np.where(values == values[1, 0], np.nan, values)
    fill = np.array([1e20], "f4")
    store = store_of(described(tmp_path / "f.h5", values, **{attribute: fill}))
    np.testing.assert_array_equal(store["rows"][:], gone)
    whole = np.array([[-(2**63) + 2, 5]], "i8")
    path = described(tmp_path / "whole.h5", whole, **{attribute: whole[0, 0]})
    with pytest.raises(InvalidError, match=r"row 0 of rows is missing, .* save it as floats"):
        store_of(path)
    here = described(tmp_path / "here.h5", whole, **{attribute: whole[0, 0] - 1})
    np.testing.assert_array_equal(store_of(here)["rows"][:], whole)


@pytest.mark.parametrize(("dtype", "fill"), [("i1", -9999), ("i2", np.nan), ("u1", -1)])
def test_no_integer_is_missing_for_a_number_that_its_type_does_not_hold(
    tmp_path: Path, dtype: str, fill: float
) -> None:
    values = np.array([[-9999, 0], [-1, 2]]).astype(dtype)
    store = store_of(described(tmp_path / "f.h5", values, _FillValue=fill))
    np.testing.assert_array_equal(store["rows"][:], values)


def test_packed_numbers_are_refused(tmp_path: Path) -> None:
    values = np.arange(6, dtype="i2").reshape(3, 2)
    plain = described(tmp_path / "plain.h5", values, scale_factor=1.0, add_offset=0, units="m")
    np.testing.assert_array_equal(store_of(plain)["rows"][:], values)
    for name, number in (("scale_factor", np.float32(0.5)), ("add_offset", np.array([3]))):
        with pytest.raises(InvalidError, match=f"rows is packed, as its attribute {name} says"):
            store_of(described(tmp_path / f"{name}.h5", values, **{name: number}))


def test_other_shapes_keep_type_and_name(tmp_path: Path) -> None:
    values = np.arange(12, dtype=">i2").reshape(4, 3)
    path = foreign(
        tmp_path / "my clip.h5", group__CLS=values, group__image_paths=["a/1", "a/2", "b/1", "c"]
    )
    store = store_of(path)
    assert (store.feature("cls").dtype, store.index.ids.tolist()) == (
        "int16",
        ["a", "b", "my clip"],
    )
    np.testing.assert_array_equal(store["cls"][:], values)
    assert store_of(foreign(tmp_path / "one.h5", x=np.ones((3, 2, 2))), feature="dino").video(
        "one"
    )["dino"].shape == (
        3,
        2,
        2,
    )


@pytest.mark.parametrize(
    ("datasets", "options", "message"),
    [
        (
            {"a": np.ones((2, 2)), "b": np.ones((2, 2))},
            {},
            r"choose the dataset .*--dataset NAME.*a float64 \(2, 2\), b",
        ),
        ({}, {}, "its datasets are .*: none"),
        ({"table": np.ones(3), "index": np.ones((0, 9))}, {}, r"index float64 \(0, 9\), table"),
        ({"a": np.ones((2, 2))}, {"dataset": "z"}, "has no dataset 'z'; it has a"),
        ({"a": ["x", "y"]}, {"dataset": "a"}, "not rows of numbers"),
        ({"a": np.ones((2, 2)), "video_ids": ["x"]}, {}, "video_ids has 1 texts for 2 rows of a"),
        ({"a": np.ones((2, 2)), "video_ids": np.ones(2)}, {}, "not a text for each row"),
        ({"a": np.ones((3, 2)), "video_ids": ["x", "y", "x"]}, {}, "'x' is in the file twice"),
        (
            {"a": np.ones((3, 2)), "video_ids": ["x", "", "x"]},
            {},
            "row 1 of a has an empty video id",
        ),
        ({"1": np.ones((3, 2))}, {}, "array name '1'"),
        ({"a": np.ones((1, 2)), "video_ids": np.array([b"\xff"])}, {}, "is not text in UTF-8"),
        ({"a": h5py.Empty("f4")}, {}, r"its datasets are .*: a float32 \(\)"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, datasets: Any, options: Any, message: str
) -> None:
    path = foreign(tmp_path / "f.h5", **datasets)
    with pytest.raises(InvalidError, match=message) as error:
        store_of(path, str(tmp_path / "s.kps"), **options)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]


def test_damaged_files_are_one_line(memory_store: kpstore.Store, tmp_path: Path) -> None:
    Hdf5Export().export(filled(memory_store), tmp_path / "s.h5")
    whole = (tmp_path / "s.h5").read_bytes()
    for data in (whole[:-100], whole[: len(whole) // 2], b"", b"\x89HDF\r\n\x1a\n"):
        (tmp_path / "torn.h5").write_bytes(data)
        with pytest.raises(InvalidError, match=r"torn\.h5: it is no HDF5 file, or a damaged one"):
            store_of(tmp_path / "torn.h5")
    for name, message in (
        ("keypoints", r"has no dataset 'keypoints'"),
        ("_kpstore_export_about", "has no dataset '_kpstore_e"),
    ):
        (tmp_path / "torn.h5").write_bytes(whole)
        with h5py.File(tmp_path / "torn.h5", "a") as file:
            del file[name]
        with pytest.raises(InvalidError, match=message):
            store_of(tmp_path / "torn.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["keypoints"].resize(3, axis=0)
    with pytest.raises(
        InvalidError, match=r"keypoints is \(3, 143, 3\), but .* make it \(15, 143, 3\)"
    ):
        store_of(tmp_path / "s.h5")
    with pytest.raises(InvalidError, match="leave out options"):
        store_of(tmp_path / "s.h5", dataset="keypoints")
    with pytest.raises(NotFoundError, match="no HDF5 file at"):
        store_of(tmp_path / "nothing.h5")


def test_only_our_own_files_are_known(memory_store: kpstore.Store, tmp_path: Path) -> None:
    Hdf5Export().export(filled(memory_store), tmp_path / "any.name")
    assert HDF5.recognises(tmp_path / "any.name")
    foreign(tmp_path / "f.h5", keypoints=np.ones((1, 143, 3)))
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert not any(HDF5.recognises(tmp_path / name) for name in ("f.h5", "x.h5", "nothing.h5", "."))


# -- what a file must not do -----------------------------------------------------------------------


def test_stores_and_exports_are_told_apart(tmp_path: Path, memory_store: kpstore.Store) -> None:
    kpstore.create(str(tmp_path / "store.h5"))
    with pytest.raises(InvalidError, match=r"store\.h5 is a kpstore store itself"):
        Hdf5Import().open(tmp_path / "store.h5")
    Hdf5Export().export(filled(memory_store), tmp_path / "export.h5")
    with h5py.File(tmp_path / "export.h5") as file:
        assert "_kpstore" not in file
    assert not HDF5.recognises(tmp_path / "store.h5")
    with pytest.raises(NotFoundError):
        kpstore.open(str(tmp_path / "export.h5"))


def test_nothing_outside_the_file_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    foreign(secret, k=np.ones((4, 3)))
    (tmp_path / "raw").write_bytes(bytes(12))
    layout = h5py.VirtualLayout((4, 3), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "k", shape=(4, 3))
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file.create_dataset(
            "raw", shape=(4, 3), dtype="u1", external=[(str(tmp_path / "raw"), 0, 12)]
        )
        file.create_virtual_dataset("virtual", layout)
        file["out"], file["soft"], file["rows"] = (
            h5py.ExternalLink(str(secret), "/k"),
            h5py.SoftLink("/rows"),
            layout.shape,
        )
        file["group/link"] = h5py.ExternalLink(str(secret), "/")
    for name, message in {
        "raw": "the values of 'raw' lie in other files",
        "virtual": "the values of 'virtual' lie in other files",
        "out": "'out' is a link into another file, which is not followed",
        "soft": "'soft' is a soft link",
        "group/link/k": "'group/link/k' is a link into another file",
    }.items():
        with pytest.raises(InvalidError, match=message):
            Hdf5Import(dataset=name).open(tmp_path / "evil.h5")
    with h5py.File(foreign(tmp_path / "ids.h5", x=np.ones((4, 3))), "a") as file:
        file["video_ids"] = h5py.ExternalLink(str(secret), "/k")
    with pytest.raises(InvalidError, match="'video_ids' is a link into another file"):
        Hdf5Import().open(tmp_path / "ids.h5")


def test_an_export_with_outside_values_is_refused(
    tmp_path: Path, memory_store: kpstore.Store
) -> None:
    Hdf5Export().export(filled(memory_store), tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file.move("keypoints", "elsewhere")
        file["keypoints"] = h5py.SoftLink("/elsewhere")
    with pytest.raises(InvalidError, match="'keypoints' is a soft link"):
        Hdf5Import().open(tmp_path / "s.h5")


@pytest.mark.filterwarnings("error")
def test_numbers_that_keypoints_cannot_hold_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.full((4, 143, 3), 0.5)
    values[1:3] = 0.1
    values[3, :68] = np.nan
    path = foreign(tmp_path / "double.h5", keypoints=values)
    monkeypatch.setattr(hdf5_read, "BLOCK_BYTES", 2 * 143 * 3 * 8)
    document = Hdf5Import().open(path)
    (video,) = document.videos()
    rows = video.rows["keypoints"]
    np.testing.assert_array_equal(rows.values, values.astype(np.float32))
    assert rows.companions["detected"][:, 0].tolist() == [True, True, True, False]
    assert [note for note in document.notes if "rounded" in note] == [
        "values of keypoints were rounded to float32 in 2 rows; --feature NAME keeps them as they "
        "are, without parts"
    ]
    np.testing.assert_array_equal(store_of(path, feature="exact")["exact"][:], values)
    for odd in (np.int32(2**31 - 1), np.int64(2**62 + 1), np.uint64(2**53 + 1)):
        whole = foreign(tmp_path / "whole.h5", keypoints=np.full((2, 143, 3), odd))
        document = Hdf5Import().open(whole)
        list(document.videos())
        assert "in 2 rows" in document.notes[0]
    values[2, 0, 0] = 1e300
    with pytest.raises(
        InvalidError, match=r"row 2 of keypoints has 1e\+300, more than float32 holds"
    ):
        store_of(foreign(tmp_path / "big.h5", keypoints=values))


def test_the_face_list_of_others_can_be_said(tmp_path: Path) -> None:
    path = foreign(tmp_path / "f.h5", keypoints=np.ones((2, 143, 3), "f4"))
    assert store_of(path).feature("keypoints").attrs["face_list"]["name"] == "phoenix"
    store = store_of(path, face_list="ibug")
    assert store.feature("keypoints").attrs["face_list"]["name"] == "ibug"
    assert store.provenance("keypoints")["face_list"]["name"] == "ibug"
    with pytest.raises(NotFoundError, match="face list 'x' is neither"):
        store_of(path, face_list="x")
    with pytest.raises(InvalidError, match="leave out --face-list"):
        store_of(foreign(tmp_path / "g.h5", x=np.ones((2, 3))), face_list="ibug")


@pytest.mark.parametrize(
    ("array", "place", "value", "message"),
    [
        ("keypoints_failure", 0, "{", r"keypoints_failure\[0\] is '{'"),
        ("keypoints_failure", 0, "[]", r"keypoints_failure\[0\] is '\[\]'"),
        ("keypoints_failure", 0, "3", r"keypoints_failure\[0\] is '3'"),
        ("keypoints_failure", 0, '{"frames": 3}', r"keypoints_failure\[0\] is"),
        (
            "keypoints_failure",
            0,
            '{"frames": {"99": "x"}}',
            "says that frame 99 failed, but the video has 6 frames",
        ),
        ("keypoints_failure", 0, '{"frames": {"-1": "x"}}', "says that frame -1 failed"),
        ("keypoints_state", 1, 7, r"keypoints_state\[1\] is 7; states are 0 \(pending\), 1"),
        ("n_frames", 1, -3, r"n_frames\[1\] is -3"),
        ("keypoints_state", 0, 2, "keypoints_failure say of video .* does not agree"),
        ("keypoints_status", 0, 0, "keypoints_failure say of video .* does not agree"),
        ("keypoints_failure", 0, '{"video": "x"}', "keypoints_failure say .* does not agree"),
        (
            "_kpstore_export_about",
            (),
            "[]",
            "_kpstore_export_about does not say what the file holds",
        ),
        (
            "_kpstore_export_about",
            (),
            "{",
            "_kpstore_export_about does not say what the file holds",
        ),
        (
            "_kpstore_export_about",
            (),
            '{"name": "", "annotations": [], "features": {"a": 3}}',
            "does not say what",
        ),
    ],
)
def test_exports_that_somebody_changed_are_one_line(
    memory_store: kpstore.Store, tmp_path: Path, array: str, place: Any, value: Any, message: str
) -> None:
    Hdf5Export().export(filled(memory_store), tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file[array][place] = value
    with pytest.raises(InvalidError, match=message) as error:
        store_of(tmp_path / "s.h5")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("keypoints", 0.1, "keypoints is float64, but the file says that it is float32"),
        ("width", 1.5, "width: .*1.5.* is not a size"),
    ],
)
def test_exports_with_arrays_of_other_types_are_not_rounded(
    memory_store: kpstore.Store, tmp_path: Path, array: str, value: float, message: str
) -> None:
    Hdf5Export().export(filled(memory_store), tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        values = np.full(file[array].shape, value)
        del file[array]
        file[array] = values
    with pytest.raises(InvalidError, match=message):
        store_of(tmp_path / "s.h5")


def test_what_somebody_added_to_an_export_is_said(
    memory_store: kpstore.Store, tmp_path: Path
) -> None:
    Hdf5Export().export(filled(memory_store), tmp_path / "s.h5")
    assert not Hdf5Import().open(tmp_path / "s.h5").notes
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["more/mine"] = [1, 2]
        file["none"] = h5py.Empty("f4")
    document = Hdf5Import().open(tmp_path / "s.h5")
    assert document.notes == ["datasets more/mine, none: not stored"]


def test_a_full_disk_is_an_error_before_hdf5_meets_it(
    memory_store: kpstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk:
        f_frsize, f_bavail = 1, 2**25 + 100

    monkeypatch.setattr("kpstore.backends.asides.os.statvfs", lambda path: Disk)
    with pytest.raises(OSError, match="nothing was written: No space left on device"):
        Hdf5Export().export(filled(memory_store), tmp_path / "s.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"chunks": (2,)},
        {"chunks": (3,), "compression": "gzip"},
        {"chunks": (3,), "compression": "gzip", "shuffle": True},
        {"chunks": (2,), "compression": "lzf"},
    ],
    ids=str,
)
@pytest.mark.parametrize("user_block", [0, 512])
def test_texts_of_others_are_read_in_every_layout(
    tmp_path: Path, layout: dict[str, Any], user_block: int
) -> None:
    ids = ["a", "a", "é" * 3000, "b", "b"]
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=user_block) as file:
        file["points"] = np.ones((5, 3), np.float32)
        file.create_dataset("video_ids", data=ids, dtype=h5py.string_dtype(), **layout)
        file["image_paths"] = [f"{n}.png".encode() for n in range(5)]
    assert store_of(tmp_path / "x.h5").index.ids.tolist() == list(dict.fromkeys(ids))


def with_references(path: Path, fill: Callable[[NDArray[np.void]], None], text: str) -> Path:
    """Write 64 ids, all one text, and change the references to it in the file."""
    with h5py.File(path, "w") as file:
        file["points"] = np.ones((64, 3), np.float32)
        ids = file.create_dataset("video_ids", (64,), h5py.string_dtype())
        ids[0] = text
        at = ids.id.get_offset()
    stored = bytearray(path.read_bytes())
    kind = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
    fill(np.frombuffer(stored, kind, 64, at))
    path.write_bytes(stored)
    return path


def test_a_long_text_that_all_rows_share_is_one_line(tmp_path: Path) -> None:
    def share(references: NDArray[np.void]) -> None:
        references[:] = references[0]

    path = with_references(tmp_path / "x.h5", share, "a" * 8 * 2**20)
    with pytest.raises(InvalidError, match="texts of video_ids would take 2,048 MiB"):
        store_of(path)


@pytest.mark.parametrize("field", ["length", "address", "index"])
def test_damaged_references_to_text_are_one_line(tmp_path: Path, field: str) -> None:
    def damage(references: NDArray[np.void]) -> None:
        references[field][0] += 1

    with pytest.raises(InvalidError, match="is no HDF5 file, or a damaged one"):
        store_of(with_references(tmp_path / "x.h5", damage, "abc"))


@pytest.mark.parametrize("array", ["fps", "keypoints_state", "keypoints", "keypoints_detected"])
def test_text_in_place_of_numbers_is_never_read(
    memory_store: kpstore.Store, tmp_path: Path, array: str
) -> None:
    Hdf5Export().export(filled(memory_store), tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        shape = file[array].shape
        del file[array]
        file.create_dataset(array, shape, h5py.string_dtype())
    with pytest.raises(InvalidError, match=f"{array} is object .*, not (rows of numbers|a number)"):
        store_of(tmp_path / "s.h5")
