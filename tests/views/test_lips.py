"""Lip embeddings: whole utterances."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.schema.feature import FeatureSpec
from tests.fakes import record

LENGTHS = {"u1": 4, "u2": 7, "u3": 2}


def embedding_of(utterance: str, extra: int = 0) -> np.ndarray:
    rng = np.random.default_rng(ord(utterance[1]))
    return rng.standard_normal((LENGTHS[utterance] + extra, 512)).astype(np.float32)


def fill_lips(store: kpstore.Store, done: tuple[str, ...] = ("u1", "u3")) -> kpstore.Store:
    with store.transaction("fill") as tx:
        tx.add_videos([record(utterance, n) for utterance, n in LENGTHS.items()])
        tx.add_feature(FeatureSpec("lip_resnet18", (512,), ("feature",)), {})
        for utterance in done:
            tx.write("lip_resnet18", utterance, embedding_of(utterance))
    return store.at()


def test_a_sample_is_a_whole_utterance(store: kpstore.Store) -> None:
    view = fill_lips(store).lips(missing="skip")
    assert [sample["video_id"] for sample in view] == ["u1", "u3"]
    for sample in view:
        assert set(sample) == {"embedding", "video_id", "n_frames"}
        np.testing.assert_array_equal(sample["embedding"], embedding_of(sample["video_id"]))
    batch = view.batch([1, 0])
    assert batch["embedding"].shape == (2, 4, 512)
    assert batch["valid"].sum(axis=1).tolist() == [2, 4]
    assert np.isnan(batch["embedding"][0, 2:]).all()


def test_missing_utterances_are_refused_unless_said_otherwise(memory_store: kpstore.Store) -> None:
    filled = fill_lips(memory_store)
    with pytest.raises(
        NotFoundError,
        match="7 of 13 frames failed or are not extracted yet, the first in video 'u2'",
    ):
        filled.lips()
    assert np.isnan(filled.lips(missing="nan")[1]["embedding"]).all()
    assert len(filled.lips(videos=["u3"])) == 1


def test_options_that_do_not_fit_are_refused(memory_store: kpstore.Store) -> None:
    filled = fill_lips(memory_store)
    with pytest.raises(
        InvalidError, match="compute= is for missing='compute', found missing='skip'"
    ):
        filled.lips(missing="skip", compute={"root": "."})
    with pytest.raises(InvalidError, match="missing='drop': use 'nan' or 'skip' or 'error'"):
        filled.lips(missing="drop")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="embeddings need a vector per frame"):
        filled.lips(feature="lip_resnet18_status", missing="nan")
    with pytest.raises(NotFoundError, match="feature 'lips' not found"):
        filled.lips(feature="lips")


def test_it_pickles_and_has_subsets(store: kpstore.Store) -> None:
    view = fill_lips(store).lips(missing="nan")
    again = pickle.loads(pickle.dumps(view)).subset([2])
    np.testing.assert_array_equal(again[0]["embedding"], embedding_of("u3"))
    assert again.lengths.tolist() == [2]
    assert again.first_rows.tolist() == [11]
    assert "LipView" in repr(again)
