"""Predictions of a trained model for a store's frames, as a feature or as pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kpstore._version import __version__
from kpstore.errors import ExistsError, InvalidError
from kpstore.extractors.checkpoint_files import file_sha256
from kpstore.render.raster import PAPER
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance, State
from kpstore.schema.layout import N_FACE, N_POINTS, skeleton_edges
from kpstore.store.format import state_name, status_name
from kpstore.store.provenance import check_same
from kpstore.store.store import BaseStore, keep_out_of_stores
from kpstore.trainers.checkpoint import read_checkpoint
from kpstore.trainers.encoder import points_there
from kpstore.trainers.keypoints import KeypointTraining
from kpstore.trainers.pictures import open_pictures, picture_paths, write_picture
from kpstore.trainers.settings import device_named
from kpstore.trainers.skeleton import HierarchicalSkeletonTransformer
from kpstore.trainers.train import model_of
from kpstore.views.base import select_videos
from kpstore.views.face_keypoints import FaceKeypointView
from kpstore.views.frames import FrameView

Progress = Callable[[int, int], None]
"""Called with the number of frames done and the number of all frames."""


@dataclass(frozen=True)
class Predicted:
    """The result of a prediction.

    Parameters
    ----------
    checkpoint_sha256 : of the checkpoint's file.
    feature : that was written; None for pictures.
    folder : of the pictures; None for a feature.
    frames : number of frames on which the model was run.
    empty : number of frames among them in which no point that the model reads was detected; their
        faces are NaN, and they have no PNG.
    done_before : number of frames skipped because they were predicted before, in the same way.
    not_extracted : number of frames skipped because their video is not extracted yet.
    snapshot : of the new version; None for pictures, and if nothing was left to do.
    """

    checkpoint_sha256: str
    feature: str | None = None
    folder: str | None = None
    frames: int = 0
    empty: int = 0
    done_before: int = 0
    not_extracted: int = 0
    snapshot: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Predictor:
    """A model of a checkpoint, ready to run; :func:`open_predictor` makes one.

    Parameters
    ----------
    model : one of kpstore's, on ``device`` and in evaluation mode.
    inputs : the model's input during training, see :func:`kpstore.trainers.fit.fit`.
    provenance : of features made with the model.
    batch_size : number of frames at a time.
    """

    model: nn.Module
    device: torch.device
    inputs: Mapping[str, Any]
    provenance: Provenance
    batch_size: int

    def __repr__(self) -> str:
        return f"<Predictor with a {type(self.model).__name__} on {self.device}>"

    def spec(self, store: BaseStore, feature: str, name: str | None) -> FeatureSpec:
        """Return the feature for predictions.

        Pictures are (size, size) uint8, 255 for paper and 0 for ink. Faces are (68, 3) float32 in
        the coordinates of the feature that they were made from, NaN where it has no face.
        """
        if isinstance(self.model, HierarchicalSkeletonTransformer):
            name, size = name or f"{feature}_drawn", self.model.config.image_size
            about = f"skeletons that a model draws of {feature}, {PAPER} is paper"
            return FeatureSpec(
                name, (size, size), (f"{name}_y", f"{name}_x"), "uint8", description=about
            )
        edges = store.feature(feature).attrs.get("edges") or skeleton_edges()
        return FeatureSpec(
            name or f"{feature}_predicted",
            (N_FACE, 3),
            ("face_point", "space"),
            description=f"face points that a model gives for those of {feature}",
            labels={"space": ("x", "y", "z")},
            attrs={"edges": [list(edge) for edge in edges if max(edge) < N_FACE]},
        )

    def view(self, store: BaseStore, feature: str, videos: list[str]) -> FrameView:
        """Return all frames of videos as the model reads them, NaN where nothing was detected."""
        if not isinstance(self.model, HierarchicalSkeletonTransformer):
            spread = (self.inputs["low"], self.inputs["high"])
            return FaceKeypointView(
                store, feature=feature, normalize=spread, missing="nan", videos=videos
            )
        if store[feature].shape[1:] != (N_POINTS, 3):
            raise InvalidError(
                f"{feature!r} has rows of {store[feature].shape[1:]}; the model draws keypoints of "
                f"({N_POINTS}, 3)"
            )
        return FrameView(store, feature, missing="nan", videos=videos)

    @torch.inference_mode()
    def run(
        self, view: FrameView, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Return predictions for frames of :meth:`view`.

        Returns
        -------
        tuple
            Rows of :meth:`spec`, and (frames,) bool, True for frames in which nothing was detected.
        """
        parts = np.split(indices, range(self.batch_size, len(indices), self.batch_size))
        values, empty = zip(*(self._batch(view, part) for part in parts), strict=True)
        return np.concatenate(values), np.concatenate(empty)

    def _batch(
        self, view: FrameView, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        batch = view.batch(indices)
        name = "keypoints" if isinstance(view, FaceKeypointView) else view.features[0]
        keypoints = torch.from_numpy(batch[name]).float()
        empty: NDArray[np.bool_] = ~points_there(keypoints).any(dim=1).numpy()
        output = self.model(keypoints.to(self.device)).float().cpu().numpy()
        if isinstance(view, FaceKeypointView):
            faces = view.denormalize(output)
            faces[empty] = np.nan
            return faces, empty
        return ((output[:, 0] + 1) * (PAPER / 2)).round().clip(0, PAPER).astype(np.uint8), empty


def open_predictor(path: Path | str, *, device: str = "cpu", batch_size: int = 32) -> Predictor:
    """Return the model of a checkpoint, ready to run.

    Parameters
    ----------
    path : ``best.safetensors`` or ``checkpoint.safetensors`` that ``kpstore train`` wrote.
    device : see :func:`kpstore.trainers.settings.device_named`.
    batch_size : number of frames at a time.

    Raises
    ------
    NotFoundError, CorruptError
        If the checkpoint is missing or torn.
    InvalidError
        If ``kpstore train`` did not write it.
    """
    if batch_size < 1:
        raise InvalidError(f"batch_size={batch_size}: use 1 frame or more")
    where = device_named(device)
    checkpoint = read_checkpoint(Path(path))
    model, about = model_of(checkpoint, path), checkpoint.about
    inputs = about.get("inputs")
    inputs = inputs if isinstance(inputs, dict) else {}
    draws = isinstance(model, HierarchicalSkeletonTransformer)
    needed = {"feature"} if draws else {"feature", "low", "high"}
    missing = needed - inputs.keys()
    if not isinstance(inputs.get("feature"), str):
        missing.add("feature")
    if missing:
        raise InvalidError(
            f"{path}: does not describe its model's input ({', '.join(sorted(missing))}); use a "
            "checkpoint of kpstore train, or fit(inputs=…)"
        )
    provenance = {
        "extractor": "predict",
        "checkpoint_sha256": file_sha256(Path(path)),
        "model": about["model"],
        "trained_on": about.get("store"),
        "training": {key: about.get(key) for key in ("task", "settings", "batch_size")},
        "inputs": inputs,
        "kpstore": __version__,
        "libraries": {"torch": torch.__version__, "device": where.type},
    }
    return Predictor(model.to(where), where, inputs, provenance, batch_size)


def predict_feature(
    store: BaseStore,
    predictor: Predictor,
    *,
    split: str | None = None,
    feature: str | None = None,
    name: str | None = None,
    on_progress: Progress | None = None,
) -> Predicted:
    """Write a model's predictions for the videos of a split to the store, as one version or none.

    Videos that have this feature already, made by the same checkpoint, are skipped: a further call
    adds another split, or videos that came later. Frames that failed in ``feature`` fail here too;
    videos that are not extracted yet stay pending. One chunk of the new feature is in memory at a
    time.

    Parameters
    ----------
    store : opened with ``mode="a"``.
    split : of the videos; all by default.
    feature : that the model reads; by default the one that it was trained on.
    name : of the new feature; ``<feature>_predicted`` or ``<feature>_drawn`` by default.

    Raises
    ------
    NotFoundError
        If the split or the feature does not exist.
    InvalidError
        If the model cannot read the feature's rows.
    MismatchError
        If a feature of that name was made in another way.
    """
    store = store.checked()
    source = feature or predictor.inputs["feature"]
    spec = predictor.spec(store, source, name)
    provenance = {**predictor.provenance, "source": source}
    if spec.name in store.features:
        if "checkpoint_sha256" not in store.provenance(spec.name):
            raise ExistsError(
                f"feature {spec.name!r} exists and was not predicted; choose another name (--as)"
            )
        check_same(store.features[spec.name], spec, json.loads(json.dumps(provenance)))
    work = _plan(store, source, split, spec.name)
    view = predictor.view(store, source, work.ids(store))
    sha256 = provenance["checkpoint_sha256"]
    done = Predicted(
        sha256, spec.name, done_before=work.done_before, not_extracted=work.not_extracted
    )
    if not len(work.positions):
        return done
    settings = {"predict": {"split": split, "read": store.snapshot, "checkpoint": sha256}}
    with store.transaction(f"predict {spec.name}", metadata=settings) as tx:
        tx.add_feature(spec, provenance)
        n_empty = 0
        for first, stop in _blocks(view.rows, spec.chunk_rows):
            values, empty = predictor.run(view, np.arange(first, stop))
            states = work.states[view.rows[first:stop]]
            values[states == State.FAILED] = spec.fill
            tx.write_rows(spec.name, int(view.rows[first]), FeatureRows(values), states)
            n_empty += int(empty.sum())
            if on_progress is not None:
                on_progress(stop, len(view))
        tx.set_states(spec.name, _failures(store, source, work))
    return replace(done, frames=len(view), empty=n_empty, snapshot=tx.snapshot)


def predict_pictures(
    store: BaseStore,
    predictor: Predictor,
    folder: Path | str,
    *,
    split: str | None = None,
    feature: str | None = None,
    limit: int | None = None,
    on_progress: Progress | None = None,
) -> Predicted:
    """Write a model's predictions for the videos of a split as PNG, ``folder/video/000000.png``.

    Pictures that exist are kept, so that a run that was killed can continue. ``predict.json`` says
    how they were made; a folder with pictures of another model, store or version is refused.

    Parameters
    ----------
    limit : maximum number of frames, evenly spread.

    See :func:`predict_feature` for the others.
    """
    store = store.checked()
    source = feature or predictor.inputs["feature"]
    work = _plan(store, source, split, None)
    view = predictor.view(store, source, work.ids(store))
    chosen = np.flatnonzero(work.states[view.rows] == State.DONE)
    if limit is not None and limit < len(chosen):
        chosen = chosen[np.linspace(0, len(chosen) - 1, limit).astype(np.int64)]
    keep_out_of_stores(Path(folder), "the pictures")
    about = {"source": source, "read": [store.location, store.snapshot]}
    open_pictures(Path(folder), {**predictor.provenance, **about})
    n_frames = n_empty = 0
    for start in range(0, len(chosen), predictor.batch_size):
        part = chosen[start : start + predictor.batch_size]
        files = picture_paths(Path(folder), store.index, view.rows[part])
        paths = dict(zip(part.tolist(), files, strict=True))
        left = {index: path for index, path in paths.items() if not path.exists()}
        if left:
            n_empty += _write_pictures(predictor, view, left)
        n_frames += len(left)
        if on_progress is not None:
            on_progress(start + len(part), len(chosen))
    return Predicted(
        predictor.provenance["checkpoint_sha256"],
        folder=str(folder),
        frames=n_frames,
        empty=n_empty,
        done_before=len(chosen) - n_frames,
        not_extracted=work.not_extracted,
    )


# -- which frames ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """Videos to predict, by position, and numbers of frames that are skipped.

    ``states`` are those of all frames of the source, (frames,) uint8.
    """

    positions: NDArray[np.int64]
    states: NDArray[np.uint8]
    done_before: int
    not_extracted: int

    def ids(self, store: BaseStore) -> list[str]:
        return [str(video_id) for video_id in store.index.ids[self.positions]]


def _plan(store: BaseStore, source: str, split: str | None, name: str | None) -> _Work:
    spec = store.feature(source)
    if spec.axis != "frame":
        raise InvalidError(
            f"feature {source!r} belongs to videos; the model takes keypoints of frames"
        )
    chosen = select_videos(store, split=split)
    if not len(chosen):
        raise InvalidError(f"{store.location} has no videos; ingest or import some first")
    n_frames = store.index.n_frames[chosen]
    pending = store.states(source)[chosen] == State.PENDING
    done = np.zeros(len(chosen), dtype=bool)
    if name is not None and name in store.features:
        done = store.states(name)[chosen] != State.PENDING
    return _Work(
        positions=np.sort(chosen[~(pending | done)]),
        states=np.asarray(store[status_name(source)]),
        done_before=int(n_frames[done].sum()),
        not_extracted=int(n_frames[pending & ~done].sum()),
    )


def _blocks(rows: NDArray[np.int64], chunk_rows: int) -> Iterable[tuple[int, int]]:
    """Return first and stop of each run of consecutive rows within a chunk."""
    cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(rows // chunk_rows) != 0)) + 1
    return pairwise([0, *cuts.tolist(), len(rows)]) if len(rows) else ()


def _failures(store: BaseStore, source: str, work: _Work) -> dict[int, Failures]:
    """Return failures of the new feature, those of its source, by position of the video."""
    whole, reason = np.asarray(store[state_name(source)]) == State.FAILED, f"{source!r} failed"
    failures = {}
    for position in work.positions.tolist():
        failed = np.flatnonzero(work.states[store.index.rows(position)] == State.FAILED)
        frames = dict.fromkeys(failed.tolist(), reason)
        failures[position] = Failures(reason) if whole[position] else Failures(frames=frames)
    return failures


def _write_pictures(predictor: Predictor, view: FrameView, paths: Mapping[int, Path]) -> int:
    """Write the pictures of frames of a view; return for how many there is nothing to draw."""
    indices = np.array(list(paths), dtype=np.int64)
    values, empty = predictor.run(view, indices)
    pictures: Sequence[NDArray[np.uint8]] = list(values)
    if isinstance(view, FaceKeypointView):
        target = view.denormalize(view.batch(indices)["keypoints"])
        edges = predictor.spec(view.store, view.feature, None).attrs["edges"]
        training = KeypointTraining(tuple((a, b) for a, b in edges))
        pictures = [
            training.drawing(before, after).output
            for before, after in zip(target, values, strict=True)
        ]
    for picture, path, nothing in zip(pictures, paths.values(), empty, strict=True):
        if not nothing:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_picture(path, picture)
    return int(empty.sum())
