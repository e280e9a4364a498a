"""What a trained model makes of a store's frames: written back as a feature, or as pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from kpstore._version import __version__
from kpstore.errors import ExistsError, InvalidError
from kpstore.render.raster import PAPER
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.layout import N_FACE, N_POINTS, skeleton_edges
from kpstore.store.format import state_name, status_name
from kpstore.store.provenance import check_same
from kpstore.store.store import BaseStore
from kpstore.trainers.checkpoint import read_checkpoint
from kpstore.trainers.encoder import points_there
from kpstore.trainers.keypoints import KeypointTraining
from kpstore.trainers.settings import device_named
from kpstore.trainers.skeleton import HierarchicalSkeletonTransformer
from kpstore.trainers.train import model_of
from kpstore.views.base import select_videos
from kpstore.views.face_keypoints import FaceKeypointView
from kpstore.views.frames import FrameView

ABOUT = "predict.json"
_HASH_BYTES = 2**20
Progress = Callable[[int, int], None]
"""Told how many frames are done, and how many there are."""


@dataclass(frozen=True)
class Predicted:
    """What a prediction did.

    Parameters
    ----------
    checkpoint_sha256 : of the checkpoint's file.
    feature : that was written; None for pictures.
    folder : that pictures went to; None for a feature.
    frames : that the model was run on.
    empty : frames among them in which nothing was detected that the model looks at; faces are NaN,
        and there is no PNG.
    done_before : frames left out because they were there already, made in the same way.
    not_extracted : frames left out because their video is not extracted yet.
    snapshot : version that was made; None for pictures, and if there was nothing to do.
    """

    checkpoint_sha256: str
    feature: str | None
    folder: str | None
    frames: int
    empty: int
    done_before: int
    not_extracted: int
    snapshot: str | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Predictor:
    """A model of a checkpoint, ready to run; :func:`open_predictor` makes one.

    Parameters
    ----------
    model : one of the two of kpstore, in ``eval()``, on ``device``.
    inputs : what it was fed while training, see :func:`kpstore.trainers.fit.fit`.
    provenance : what a feature made with it keeps.
    batch_size : frames at a time.
    """

    model: nn.Module
    device: torch.device
    inputs: Mapping[str, Any]
    provenance: Mapping[str, Any]
    batch_size: int

    def __repr__(self) -> str:
        return f"<Predictor with a {type(self.model).__name__} on {self.device}>"

    @property
    def makes_pictures(self) -> bool:
        """Whether the model draws skeletons; otherwise it gives face points."""
        return isinstance(self.model, HierarchicalSkeletonTransformer)

    def spec(self, store: BaseStore, feature: str, name: str | None) -> FeatureSpec:
        """Return the feature that predictions are written to.

        Pictures are (size, size) uint8, 255 for paper and 0 for ink; faces are (68, 3) float32 in
        the coordinates of the feature that they were made from, NaN where it has no face.
        """
        if isinstance(self.model, HierarchicalSkeletonTransformer):
            name, size = name or f"{feature}_drawn", self.model.config.image_size
            about = f"skeletons that a model draws of {feature}, {PAPER} is paper"
            return FeatureSpec(
                name, (size, size), (f"{name}_y", f"{name}_x"), "uint8", description=about
            )
        about = f"face points that a model gives for those of {feature}"
        edges = store.feature(feature).attrs.get("edges") or skeleton_edges()
        attrs = {"edges": [list(edge) for edge in edges if max(edge) < N_FACE]}
        labels = {"space": ("x", "y", "z")}
        name = name or f"{feature}_predicted"
        return FeatureSpec(
            name,
            (N_FACE, 3),
            ("face_point", "space"),
            description=about,
            labels=labels,
            attrs=attrs,
        )

    def view(self, store: BaseStore, feature: str, videos: list[str]) -> FrameView:
        """Return all frames of some videos as the model takes them, NaN where nothing was detected."""
        if not self.makes_pictures:
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
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return what the model gives for frames of :meth:`view`, and in which of them nothing was detected.

        Returns
        -------
        tuple
            Rows of :meth:`spec`, and (frames,) bool.
        """
        parts = np.split(indices, range(self.batch_size, len(indices), self.batch_size))
        made = [self._batch(view, part) for part in parts]
        return np.concatenate([values for values, _ in made]), np.concatenate(
            [empty for _, empty in made]
        )

    def _batch(
        self, view: FrameView, indices: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
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
    batch_size : frames at a time.

    Raises
    ------
    NotFoundError, CorruptError
        If there is no checkpoint, or a torn one.
    InvalidError
        If it is none of ``kpstore train``.
    """
    if batch_size < 1:
        raise InvalidError(f"batch_size={batch_size}: use 1 frame or more")
    where = device_named(device)
    checkpoint = read_checkpoint(Path(path))
    model = model_of(checkpoint, path)
    inputs = checkpoint.about.get("inputs") or {}
    needed = (
        {"feature"}
        if isinstance(model, HierarchicalSkeletonTransformer)
        else {"feature", "low", "high"}
    )
    if not needed <= inputs.keys():
        raise InvalidError(
            f"{path}: does not say what its model was fed "
            f"({', '.join(sorted(needed - inputs.keys()))}); use one of kpstore train, or "
            "fit(inputs=…)"
        )
    about = checkpoint.about
    provenance = {
        "extractor": "predict",
        "checkpoint_sha256": _sha256(Path(path)),
        "model": about["model"],
        "trained_on": about["store"],
        "training": {
            "task": about["task"],
            "settings": about["settings"],
            "batch_size": about["batch_size"],
        },
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
    """Run a model over the videos of a split and write what it gives back to the store, as one version or nothing.

    Videos that have this feature already, made by the same checkpoint, are left out: another split,
    or videos that came later, are added by a further call. Frames that failed in ``feature`` fail
    here too; videos that are not extracted yet stay pending. One chunk of the new feature is in
    memory at a time.

    Parameters
    ----------
    store : opened with ``mode="a"``.
    split : whose videos; all by default.
    feature : that the model looks at; the one that it was trained on by default.
    name : of the new feature; ``<feature>_predicted`` or ``<feature>_drawn`` by default.

    Raises
    ------
    NotFoundError
        If there is no such split or feature.
    InvalidError
        If the feature's rows are not what the model takes.
    MismatchError
        If a feature of that name was made otherwise.
    """
    store = store.checked()
    source = feature or predictor.inputs["feature"]
    spec = predictor.spec(store, source, name)
    if spec.name in store.features and "checkpoint_sha256" not in store.provenance(spec.name):
        raise ExistsError(
            f"feature {spec.name!r} is there already and was not predicted; choose another name "
            "(--as)"
        )
    provenance = {**predictor.provenance, "source": source}
    if spec.name in store.features:
        check_same(store.features[spec.name], spec, json.loads(json.dumps(provenance)))
    work = _plan(store, source, split, spec.name)
    view = predictor.view(store, source, _ids(store, work.positions))
    settings = {
        "predict": {
            "split": split,
            "read": store.snapshot,
            "checkpoint": provenance["checkpoint_sha256"],
        }
    }
    if not len(work.positions):
        return _report(predictor, work, feature=spec.name)
    with store.transaction(f"predict {spec.name}", metadata=settings) as tx:
        tx.add_feature(spec, provenance)
        n_empty = 0
        for first, stop in _blocks(view.rows, spec.chunk_rows):
            values, empty = predictor.run(view, np.arange(first, stop))
            rows, status = FeatureRows(values), work.status[view.rows[first:stop]]
            values[status == State.FAILED] = spec.fill
            tx.write_rows(spec.name, int(view.rows[first]), rows, status)
            n_empty += int(empty.sum())
            _tell(on_progress, stop, len(view))
        tx.set_states(spec.name, _failures(store, source, work))
    return _report(
        predictor, work, feature=spec.name, frames=len(view), empty=n_empty, snapshot=tx.snapshot
    )


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
    """Run a model over the videos of a split and write a PNG for each frame, ``folder/video/000000.png``.

    A killed run goes on: pictures that are there are left as they are. ``predict.json`` says what
    they were made with; a folder with pictures of another model, store or version is refused.

    Parameters
    ----------
    limit : only so many frames, evenly spread.

    See :func:`predict_feature` for the others.
    """
    store = store.checked()
    source, folder = feature or predictor.inputs["feature"], Path(folder)
    work = _plan(store, source, split, None)
    view = predictor.view(store, source, _ids(store, work.positions))
    chosen = np.flatnonzero(work.status[view.rows] == State.DONE)
    if limit is not None and limit < len(chosen):
        chosen = chosen[np.linspace(0, len(chosen) - 1, limit).astype(np.int64)]
    _open_folder(
        folder, {**predictor.provenance, "source": source, "read": [store.location, store.snapshot]}
    )
    n_empty = n_before = 0
    for start in range(0, len(chosen), predictor.batch_size):
        part = chosen[start : start + predictor.batch_size]
        paths = _paths(store, view.rows[part], folder)
        left = [number for number, path in enumerate(paths) if not path.exists()]
        n_before += len(part) - len(left)
        if left:
            n_empty += _write_pictures(
                predictor, view, part[left], [paths[number] for number in left]
            )
        _tell(on_progress, start + len(part), len(chosen))
    n_frames = len(chosen) - n_before
    return _report(
        predictor, work, folder=folder, frames=n_frames, empty=n_empty, done_before=n_before
    )


# -- which frames ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """Videos to do by position; of all frames the state of what is read.

    And how many frames are left out, and why.
    """

    positions: NDArray[np.int64]
    status: NDArray[np.uint8]
    done_before: int
    not_extracted: int


def _plan(store: BaseStore, source: str, split: str | None, name: str | None) -> _Work:
    spec = store.feature(source)
    if spec.axis != "frame":
        raise InvalidError(
            f"feature {source!r} belongs to videos; the model takes keypoints of frames"
        )
    chosen = select_videos(store, split=split)
    if not len(chosen):
        raise InvalidError(f"there are no videos in {store.location}; ingest or import some first")
    n_frames = store.index.n_frames[chosen]
    pending = store.states(source)[chosen] == State.PENDING
    done = np.zeros(len(chosen), dtype=bool)
    if name is not None and name in store.features:
        done = store.states(name)[chosen] != State.PENDING
    status = np.asarray(store[status_name(source)])
    left_out = int(n_frames[done].sum()), int(n_frames[pending & ~done].sum())
    return _Work(np.sort(chosen[~(pending | done)]), status, *left_out)


def _ids(store: BaseStore, positions: NDArray[np.int64]) -> list[str]:
    return [str(video_id) for video_id in store.index.ids[positions]]


def _blocks(rows: NDArray[np.int64], chunk_rows: int) -> Iterator[tuple[int, int]]:
    """Yield first and stop of runs of rows that follow each other within a chunk."""
    if not len(rows):
        return
    cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(rows // chunk_rows) != 0)) + 1
    edges = [0, *cuts.tolist(), len(rows)]
    yield from pairwise(edges)


def _failures(store: BaseStore, source: str, work: _Work) -> dict[int, Failures]:
    """Return the failures of the new feature by position of the video: what failed in its source."""
    failures, whole = {}, np.asarray(store[state_name(source)]) == State.FAILED
    for position in work.positions.tolist():
        failed = np.flatnonzero(work.status[store.index.rows(position)] == State.FAILED)
        reason = f"{source!r} failed"
        frames = dict.fromkeys(failed.tolist(), reason)
        failures[position] = Failures(reason) if whole[position] else Failures(frames=frames)
    return failures


# -- pictures --------------------------------------------------------------------------------------


def _open_folder(folder: Path, about: Mapping[str, Any]) -> None:
    text = json.dumps(about, indent=2)
    path = folder / ABOUT
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise ExistsError(
                f"{folder} holds pictures of another checkpoint, store or version; choose another "
                "folder"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExistsError(f"{folder} is there already and holds other things; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{ABOUT}.aside"
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _paths(store: BaseStore, rows: NDArray[np.int64], folder: Path) -> list[Path]:
    """Return the file of each frame; ids of videos may hold what no folder's name may."""
    index = store.index
    videos = np.asarray(index.video_of(rows))
    names = {video: _folder_name(str(index.ids[video])) for video in np.unique(videos).tolist()}
    return [
        folder / names[video] / f"{row - index.rows(video).start:06d}.png"
        for row, video in zip(rows.tolist(), videos.tolist(), strict=True)
    ]


def _folder_name(video_id: str) -> str:
    name = quote(video_id, safe=" ")
    return name if name.strip(".") else name.replace(".", "%2E")


def _write_pictures(
    predictor: Predictor, view: FrameView, indices: NDArray[np.int64], paths: list[Path]
) -> int:
    values, empty = predictor.run(view, indices)
    pictures: Sequence[NDArray[Any]] = list(values)
    if isinstance(view, FaceKeypointView):
        target = view.denormalize(view.batch(indices)["keypoints"])
        task = KeypointTraining(
            tuple((a, b) for a, b in predictor.spec(view.store, view.feature, None).attrs["edges"])
        )
        pictures = [
            task.drawing(before, after).output for before, after in zip(target, values, strict=True)
        ]
    for picture, path, nothing in zip(pictures, paths, empty, strict=True):
        if nothing:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.aside")
        Image.fromarray(picture).save(aside, format="PNG")
        aside.replace(path)
    return int(empty.sum())


def _report(predictor: Predictor, work: _Work, **found: Any) -> Predicted:
    left_out = {"done_before": work.done_before, "not_extracted": work.not_extracted}
    empty = {"feature": None, "frames": 0, "empty": 0, "snapshot": None, "folder": None}
    if "folder" in found:
        found["folder"] = str(found["folder"])
    sha256 = predictor.provenance["checkpoint_sha256"]
    return Predicted(checkpoint_sha256=sha256, **{**empty, **left_out, **found})


def _tell(on_progress: Progress | None, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(done, total)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
