"""Transactions: all or nothing, and the three kinds of missing stay apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore import plugins
from kpstore.errors import ConflictError, ExistsError, InvalidError, MismatchError, NotFoundError
from kpstore.inspect.verify import verify
from kpstore.schema.failures import NOTHING_FAILED
from kpstore.schema.feature import ArraySpec, FeatureRows, FeatureSpec, State
from kpstore.schema.layout import keypoints_spec
from tests.fakes import fake_spec, record
from tests.store.data import LENGTHS, PROVENANCE, fill, rows_of

ELBOWS = FeatureSpec("elbow_angles", (2,), ("side",), units="degree")


def test_written_rows_come_back_with_masks_and_states(store: kpstore.Store) -> None:
    filled = fill(store)
    for video_id in ("a", "b"):
        wanted = rows_of(video_id, LENGTHS[video_id])
        np.testing.assert_array_equal(filled.video(video_id)["points"], wanted.values)
        np.testing.assert_array_equal(
            filled.video(video_id)["points_detected"], wanted.companions["detected"]
        )
        assert (filled.video(video_id)["points_status"] == State.DONE).all()
    assert [filled.video(v).state("points").name for v in LENGTHS] == [
        "DONE",
        "DONE",
        "PENDING",
        "PENDING",
    ]


def test_the_old_version_does_not_see_the_new(store: kpstore.Store) -> None:
    filled = fill(store)
    assert (len(store.index), list(store.features)) == (0, [])
    assert (len(filled.index), list(filled.features)) == (4, ["points"])


def test_an_exception_rolls_everything_back(store: kpstore.Store) -> None:
    filled = fill(store)
    with pytest.raises(RuntimeError, match="boom"), filled.transaction("bad") as tx:  # noqa: PT012
        tx.add_videos([record("e", 3)])
        tx.write("points", "a", np.zeros((5, 5, 3)))
        raise RuntimeError("boom")
    assert tx.snapshot is None
    assert store.at().snapshot == filled.snapshot
    assert not kpstore.diff(filled, store.at())


def test_an_interrupt_rolls_back_too(store: kpstore.Store) -> None:
    filled = fill(store)
    with pytest.raises(KeyboardInterrupt), filled.transaction("bad") as tx:  # noqa: PT012
        tx.add_videos([record("e", 3)])
        raise KeyboardInterrupt
    assert store.at().snapshot == filled.snapshot


def test_a_transaction_without_changes_makes_no_version(store: kpstore.Store) -> None:
    filled = fill(store)
    with filled.transaction("nothing") as tx:
        tx.add_feature(fake_spec(4), PROVENANCE)
    assert tx.snapshot == filled.snapshot == store.at().snapshot


def test_not_detected_failed_and_pending_are_told_apart(store: kpstore.Store) -> None:
    filled = fill(store, done=("b",))
    with filled.transaction("a") as tx:
        nothing_found = fake_spec().empty_rows(5)
        tx.write("points", "a", nothing_found, failed_frames={3: "blurred", 1: "truncated"})
    now = store.at()
    assert np.isnan(now.video("a")["points"]).all()
    assert now.video("a")["points_status"].tolist() == [
        State.DONE,
        State.FAILED,
        State.DONE,
        State.FAILED,
        State.DONE,
    ]
    assert (now.video("d")["points_status"] == State.PENDING).all()
    assert np.isnan(now.video("d")["points"]).all()
    assert not now.video("d")["points_detected"].any()
    assert now.video("a").state("points") is State.DONE
    assert [(f.video_id, f.frame, f.image_path, f.reason) for f in now.failures("points")] == [
        ("a", 1, "a/0001.png", "truncated"),
        ("a", 3, "a/0003.png", "blurred"),
    ]


def test_a_failed_frame_reads_as_missing_whatever_was_given_for_it(store: kpstore.Store) -> None:
    filled, rows = fill(store, done=()), rows_of("a", 5)
    before = rows.values.copy()
    with filled.transaction("a") as tx:
        tx.write("points", "a", rows, failed_frames={2: "blurred"})
    assert np.isnan(store.at().video("a")["points"][2]).all()
    assert not store.at().video("a")["points_detected"][2].any()
    np.testing.assert_array_equal(
        store.at().video("a")["points"][[0, 1, 3, 4]], before[[0, 1, 3, 4]]
    )
    np.testing.assert_array_equal(rows.values, before)


def test_a_failed_video_reads_as_missing_with_its_reason(store: kpstore.Store) -> None:
    filled = fill(store)
    with filled.transaction("fail") as tx:
        tx.fail("points", "a", "the disk said no")
    video = store.at().video("a")
    assert video.state("points") is State.FAILED
    assert np.isnan(video["points"]).all()
    assert [(f.video_id, f.frame, f.reason) for f in store.at().failures("points")] == [
        ("a", None, "the disk said no")
    ]


def test_writing_again_clears_the_failure(store: kpstore.Store) -> None:
    filled = fill(store)
    with filled.transaction("fail") as tx:
        tx.fail("points", "a", "no")
    with filled.transaction("mend") as tx:
        tx.write("points", "a", rows_of("a", 5))
    assert store.at().failures("points") == []
    assert not kpstore.diff(filled, store.at())


def test_reset_states_makes_videos_pending_again(store: kpstore.Store) -> None:
    filled = fill(store)
    with filled.transaction("reset") as tx:
        tx.reset_states("points", [1])
    assert np.isnan(store.at().video("b")["points"]).all()
    assert (store.at().video("b")["points_status"] == State.PENDING).all()
    assert [store.at().video(v).state("points").name for v in ("a", "b")] == ["DONE", "PENDING"]


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_reset_states_keeps_the_videos_between(store: kpstore.Store, dtype: str) -> None:
    n_videos = 70  # more rows than are written at once, and runs that cross the ends of chunks
    seen = (ArraySpec("seen", (), (), "bool"),)
    of_frames = FeatureSpec("of_frames", (2,), ("x",), dtype, chunk_rows=2, companions=seen)
    specs = [of_frames, replace(of_frames, name="of_videos", axis="video")]
    with store.transaction("fill") as tx:
        tx.add_videos([record(f"v{n}", n % 3) for n in range(n_videos)])
        for spec in specs:
            tx.add_feature(spec, PROVENANCE)
            values = np.repeat(
                np.arange(n_videos) + 1, np.arange(n_videos) % 3 if spec.axis == "frame" else 1
            )
            seen_all = {"seen": np.ones(len(values), "u1")}
            rows = FeatureRows(np.stack([values, values], axis=1), seen_all)
            tx.write_rows(spec.name, 0, rows, np.full(len(values), State.DONE))
            tx.set_states(spec.name, dict.fromkeys(range(n_videos), NOTHING_FAILED))
    again = [*range(5, 50), 52, 54, 69]
    with store.transaction("reset") as tx:
        for spec in specs:
            tx.reset_states(spec.name, reversed(again))
    now = store.at()
    assert verify(now).problems == []
    for spec, n_rows in zip(specs, (np.arange(n_videos) % 3, np.ones(n_videos, int)), strict=True):
        kept = ~np.isin(np.arange(n_videos), again)
        assert now.states(spec.name).tolist() == np.where(kept, State.DONE, State.PENDING).tolist()
        fill_value = np.nan if dtype == "float32" else 0
        wanted = np.repeat(np.where(kept, np.arange(n_videos) + 1, fill_value), n_rows)
        np.testing.assert_array_equal(now[spec.name][:, 1], wanted)
        assert now[f"{spec.name}_seen"][:].tolist() == np.repeat(kept, n_rows).tolist()


@pytest.mark.parametrize("odd", ["values", "companion"])
def test_one_row_that_its_ledger_does_not_know_is_named(store: kpstore.Store, odd: str) -> None:
    spec = FeatureSpec(
        "person",
        (),
        (),
        axis="video",
        chunk_rows=1,
        companions=(ArraySpec("seen", (), (), "bool"),),
    )
    with store.transaction("begin") as tx:
        tx.add_videos([record(f"v{n}", 1) for n in range(40)])
        tx.add_feature(spec, PROVENANCE)
        tx.write_video_feature("person", "v3", FeatureRows(np.ones(1), {"seen": np.ones(1, bool)}))
    rows = spec.empty_rows(20)
    (rows.values if odd == "values" else rows.companions["seen"])[17] = 1
    done = np.where(np.arange(20) == 17, State.DONE, State.PENDING)
    with (
        pytest.raises(InvalidError, match="the rows of video 'v37' do not agree"),
        store.transaction("odd") as tx,
    ):
        tx.write_rows("person", 20, rows, done)


def test_appended_videos_start_pending_for_every_feature(store: kpstore.Store) -> None:
    filled = fill(store)
    with filled.transaction("more") as tx:
        tx.add_videos([record("e", 7, "test", speaker="Ü")])
    now = store.at()
    assert now.index.ids.tolist() == [*LENGTHS, "e"]
    assert now["points"].shape == (sum(LENGTHS.values()) + 7, 5, 3)
    assert now.video("e").state("points") is State.PENDING
    np.testing.assert_array_equal(now.video("b")["points"], filled.video("b")["points"])
    assert now.video("e").annotations == {"gloss": "", "speaker": "Ü"}
    assert now.video("a").annotations == {"gloss": "A", "speaker": ""}


def test_a_video_id_is_given_once(store: kpstore.Store) -> None:
    filled = fill(store)
    with (
        pytest.raises(ExistsError, match=r"video 'b' \(1 in all\) is already in"),
        filled.transaction("again") as tx,
    ):
        tx.add_videos([record("e", 3), record("b", 3)])
    with pytest.raises(ExistsError, match="video 'e'"), filled.transaction("twice") as tx:
        tx.add_videos([record("e", 3), record("e", 3)])
    assert store.at().snapshot == filled.snapshot


@pytest.mark.parametrize(
    ("spec", "provenance", "message"),
    [
        (
            fake_spec(4),
            {"extractor": "fake", "parameters": {"scale": 2.0}},
            r'1.0.*this run has .*"scale": 2.0',
        ),
        (fake_spec(4), {"extractor": "fake"}, r"made with parameters .*1.0.*this run has null"),
        (fake_spec(8), PROVENANCE, "chunk_rows 4, this run would write 8"),
        (
            FeatureSpec("points", (4, 3), ("point", "space"), chunk_rows=4),
            PROVENANCE,
            r"shape \[5, 3\].*\[4, 3\]",
        ),
    ],
    ids=["setting", "left-out", "chunks", "shape"],
)
def test_other_settings_are_refused_and_both_are_named(
    memory_store: kpstore.Store, spec: FeatureSpec, provenance: dict[str, Any], message: str
) -> None:
    filled = fill(memory_store)
    with pytest.raises(MismatchError, match=message), filled.transaction("other") as tx:
        tx.add_feature(spec, provenance)
    assert memory_store.at().snapshot == filled.snapshot


def test_the_version_of_kpstore_alone_is_no_mismatch(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    with filled.transaction("same") as tx:
        tx.add_feature(fake_spec(4), {**PROVENANCE, "kpstore": "99"})
    assert memory_store.at().provenance("points") == PROVENANCE


def test_tuples_in_attributes_and_provenance_are_no_mismatch_the_second_time(
    store: kpstore.Store,
) -> None:
    spec = FeatureSpec("f", attrs={"edges": ((0, 1),)})
    for _ in range(2):
        with store.transaction("add") as tx:
            tx.add_feature(spec, {"sizes": (1, 2)})
    assert len(store.at().history()) == 2


@pytest.mark.parametrize(
    "name", ["split", "n_frames", "video_id", "image_path", "frame", "video", "fps"]
)
def test_names_of_the_index_are_no_features(memory_store: kpstore.Store, name: str) -> None:
    with (
        pytest.raises(ExistsError, match=f"needs the array name {name!r}, which is taken"),
        memory_store.transaction("add") as tx,
    ):
        tx.add_feature(FeatureSpec(name))


def test_a_feature_may_not_take_another_ones_companion(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    with (
        pytest.raises(ExistsError, match="'points_detected', which is taken"),
        filled.transaction("add") as tx,
    ):
        tx.add_feature(FeatureSpec("points_detected"))


def test_labels_of_one_dimension_must_agree(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    other = FeatureSpec("boxes", (2, 3), ("corner", "space"), labels={"space": ("h", "w", "z")})
    with (
        pytest.raises(MismatchError, match="other labels for 'space'"),
        filled.transaction("add") as tx,
    ):
        tx.add_feature(other)


def test_annotations_may_not_take_names_of_the_index(memory_store: kpstore.Store) -> None:
    with (
        memory_store.transaction("x") as tx,
        pytest.raises(InvalidError, match="annotation 'frame'"),
    ):
        tx.add_videos([record("a", 1, **{"frame": "x"})])


def test_labels_go_with_the_last_feature_that_uses_them(store: kpstore.Store) -> None:
    other = replace(fake_spec(4), name="others")
    with fill(store).transaction("another") as tx:
        tx.add_feature(other, PROVENANCE)
    for name, left in (("points", True), ("others", False)):
        with store.at().transaction("remove") as tx:
            tx.remove_feature(name)
        assert ("space" in store.at().session.names()) == left


def test_a_removed_feature_stays_in_earlier_versions(store: kpstore.Store) -> None:
    filled = fill(store)
    with filled.transaction("remove") as tx:
        tx.remove_feature("points")
    assert list(store.at().features) == []
    assert "points_status" not in store.at().session.names()
    assert filled.video("a")["points"].shape == (5, 5, 3)
    with store.transaction("anew") as tx:
        tx.add_feature(fake_spec(8), {"extractor": "other"})
    assert store.at().feature("points").chunk_rows == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda tx: tx.write("points", "a", np.zeros((4, 5, 3))),
            "video 'a' has 5 frames, 4 rows were given",
        ),
        (lambda tx: tx.write("points", "a", np.zeros((5, 3, 5))), r"shape \(5, 3, 5\) given"),
        (lambda tx: tx.write("points", "zz", np.zeros((5, 5, 3))), "video 'zz' not found"),
        (
            lambda tx: tx.write("pose", "a", np.zeros((5, 5, 3))),
            r"'pose' not found; this store has \['points'\]",
        ),
        (
            lambda tx: tx.write_video_feature("points", "a", np.zeros(3)),
            r"belongs to frames; use write\(\)",
        ),
        (
            lambda tx: tx.write("points", "a", np.zeros((5, 5, 3)), failed_frames={5: "no"}),
            "it has frames 0 to 4",
        ),
        (
            lambda tx: tx.write("points", "a", np.zeros((5, 5, 3)), failed_frames={-1: "no"}),
            "failed frame -1 of",
        ),
        (
            lambda tx: tx.add_videos([record("e", 1, **{"a-b": "x"})]),
            "annotation 'a-b': use a name of letters",
        ),
        (lambda tx: tx.add_videos([record("e", 1, points="x")]), "annotation 'points'"),
    ],
)
def test_writes_that_do_not_fit_are_refused(
    memory_store: kpstore.Store, call: Any, message: str
) -> None:
    filled = fill(memory_store)
    with (
        pytest.raises((InvalidError, NotFoundError), match=message),
        filled.transaction("bad") as tx,
    ):
        call(tx)
    assert memory_store.at().snapshot == filled.snapshot


def test_two_transactions_on_different_videos_conflict_in_the_ledger_and_lose_nothing(
    store: kpstore.Store,
) -> None:
    filled = fill(store, done=())
    one, two = filled.transaction("one"), filled.transaction("two")
    one.write("points", "a", rows_of("a", 5))
    two.write("points", "d", rows_of("d", 20))
    one.commit()
    with pytest.raises(ConflictError, match="'two' was not committed"):
        two.commit()
    assert store.at().video("a").state("points") is State.DONE
    assert store.at().video("d").state("points") is State.PENDING


def test_a_feature_of_videos_has_one_row_each(store: kpstore.Store) -> None:
    spec = FeatureSpec(
        "embedding", (3,), ("dim",), axis="video", companions=(ArraySpec("norm"),), chunk_rows=2
    )
    with fill(store).transaction("embed") as tx:
        tx.add_feature(spec, {"model": "m"})
        tx.write_video_feature("embedding", "b", np.array([1, 2, 3]))
        tx.write_video_feature("embedding", "d", FeatureRows(np.ones((1, 3)), {"norm": np.ones(1)}))
    now = store.at()
    assert now.video("b")["embedding"].tolist() == [1, 2, 3]
    assert np.isnan(now.video("a")["embedding"]).all()
    assert now.video("d")["embedding_norm"] == 1
    assert now.states("embedding").tolist() == [0, 1, 0, 1]
    with pytest.raises(InvalidError, match="belongs to videos"), now.transaction("bad") as tx:
        tx.write("embedding", "a", np.zeros((5, 3)))


def test_metadata_added_until_the_end_is_in_the_commit(store: kpstore.Store) -> None:
    with store.transaction("add", metadata={"run": 1}) as tx:
        tx.add_videos([record("a", 1)])
        tx.metadata["tuple"] = (1, 2)
    assert dict(store.at().history()[0].metadata) == {"run": 1, "tuple": [1, 2]}


def test_a_registered_feature_is_added_by_its_name(store: kpstore.Store) -> None:
    plugins.register("kpstore.features", "elbow-angles", ELBOWS)
    with store.transaction("by name") as tx:
        tx.add_feature("elbow-angles")
        tx.add_feature("keypoints")
    assert store.at().feature("elbow_angles") == ELBOWS
    assert store.at().feature("keypoints") == keypoints_spec()
    with pytest.raises(
        NotFoundError, match="'nothing' not found; there are: elbow-angles, keypoints"
    ):
        store.at().transaction("unknown").add_feature("nothing")


def test_weights_are_known_by_their_hash_whatever_the_file_is_called(
    memory_store: kpstore.Store,
) -> None:
    def add(weights: dict[str, str]) -> None:
        with memory_store.transaction("add") as tx:
            tx.add_feature(fake_spec(4), {"extractor": "fake", "weights": weights})

    add({"a.pth": "12ab"})
    add({"renamed.pth": "12ab"})
    with pytest.raises(MismatchError, match="was made with weights"):
        add({"a.pth": "34cd"})
