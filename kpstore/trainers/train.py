"""Training from a store in one call: which frames, which model, and the loop over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect.statistics import Statistics, statistics
from kpstore.options import Option
from kpstore.schema.layout import N_FACE, PART_SLICES, Edge
from kpstore.store.store import BaseStore
from kpstore.trainers.board import check_board
from kpstore.trainers.checkpoint import Checkpoint, load_weights, read_checkpoint
from kpstore.trainers.fit import check_free, fit
from kpstore.trainers.keypoints import (
    HierarchicalKeypointTransformer,
    KeypointConfig,
    KeypointTraining,
)
from kpstore.trainers.report import OnEpoch, OnStep, TrainReport
from kpstore.trainers.settings import TrainOptions, device_named
from kpstore.trainers.skeleton import (
    HierarchicalSkeletonTransformer,
    SkeletonConfig,
    SkeletonTraining,
    SkeletonTrainingView,
)
from kpstore.trainers.training import Training
from kpstore.views.base import View
from kpstore.views.batch_sampler import BatchSampler
from kpstore.views.face_keypoints import FaceKeypointView
from kpstore.views.frames import FrameView
from kpstore.views.loader import BatchDataset, Loader
from kpstore.views.ranges import Range

MissingParts = Literal["error", "allow"]
_DEV_NAMES = ("dev", "val")
_READ_ROWS = 4096


@dataclass(frozen=True)
class Frames:
    """Which frames of a store to train on.

    Parameters
    ----------
    split : to train on.
    dev_split : to measure after each epoch; None is ``dev`` or else ``val``, if the store has one,
        ``""`` is none.
    feature : of keypoints.
    limit : only so many frames of each split, evenly spread, to try something; None is all.
    missing_parts : ``"error"`` refuses frames of which none has a certain part; ``"allow"`` trains
        without it.
    """

    split: Annotated[str, Option("Frames to train on.", "SPLIT")] = "train"
    dev_split: Annotated[
        str | None,
        Option(
            "Frames to measure after each epoch; `dev` or `val` by default, '' for none.", "SPLIT"
        ),
    ] = None
    feature: Annotated[str, Option("Keypoints to read.", "NAME")] = "keypoints"
    limit: Annotated[
        int | None,
        Option(
            "Only so many frames of each split, evenly spread, to try something.",
            "N",
            flag="--limit-frames",
        ),
    ] = None
    missing_parts: Annotated[MissingParts, Option("When no frame at all has a certain part.")] = (
        "error"
    )

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InvalidError(f"limit={self.limit}: use 1 frame or more, or none for all")
        if self.missing_parts not in ("error", "allow"):
            raise InvalidError(f"missing_parts={self.missing_parts!r}: use 'error' or 'allow'")
        if self.dev_split == self.split:
            raise InvalidError(
                f"dev_split={self.dev_split!r} is the split that is trained on; choose another, or "
                "'' for none"
            )

    def dev_of(self, store: BaseStore) -> str | None:
        """Return the split to measure on."""
        if self.dev_split is not None:
            return self.dev_split or None
        there = {split for split in store.splits if split != self.split}
        return next((name for name in _DEV_NAMES if name in there), None)


@dataclass(frozen=True)
class TrainPlan:
    """What a training will do.

    Parameters
    ----------
    frames : by split, how many frames of it.
    parameters : numbers to train.
    device : where.
    """

    frames: Mapping[str, int]
    parameters: int
    device: str


class RunOptions(TrainOptions, total=False):
    """The keywords of :func:`kpstore.trainers.fit.fit` that both trainings pass on."""

    device: str
    resume: bool
    log_steps: int
    checkpoint_steps: int | None
    samples: int
    tensorboard: bool
    on_step: OnStep | None
    on_epoch: OnEpoch | None


def train_skeleton(
    store: BaseStore,
    folder: Path | str | None,
    *,
    frames: Frames | None = None,
    config: SkeletonConfig | None = None,
    task: SkeletonTraining | None = None,
    batch_size: int = 16,
    on_plan: Callable[[TrainPlan], None] | None = None,
    **options: Unpack[RunOptions],
) -> TrainReport:
    """Train a :class:`HierarchicalSkeletonTransformer` on the frames of a store.

    Parameters
    ----------
    store, folder : what to read; where everything goes, see :func:`kpstore.trainers.fit.fit`.
    frames, config, task : which frames, how large a model, and how the regions of a picture count.
    batch_size : frames of a step; under ``torchrun``, of each process.
    on_plan : told before the first step.
    **options : of :func:`kpstore.trainers.fit.fit`, and the fields of
        :class:`kpstore.trainers.settings.TrainSettings`.

    Raises
    ------
    NotFoundError
        If the store lacks the feature or the split.
    InvalidError
        If the feature has no 143 points, a split has no frames, or none of them a certain part; and
        as ``fit``.
    """
    store = store.checked()
    chosen, task, size = (
        frames or Frames(),
        task or SkeletonTraining(),
        (config or SkeletonConfig()).image_size,
    )
    style, feature = task.style, chosen.feature

    def view_of(split: str) -> View:
        whole = SkeletonTrainingView(
            store, feature=feature, size=size, style=style, pixels="uint8", fill=np.nan, split=split
        )
        return _checked(whole, chosen, split, tuple(PART_SLICES))

    _check_first(folder, options)
    views = _views(store, chosen, view_of)
    model = _seeded(lambda: HierarchicalSkeletonTransformer(config), options.get("seed", 0))
    inputs = {"feature": feature}
    return _fit(
        model,
        views,
        _with_edges(task, store, feature),
        inputs,
        folder,
        batch_size,
        on_plan,
        options,
    )


def train_keypoints(
    store: BaseStore,
    folder: Path | str | None,
    *,
    frames: Frames | None = None,
    config: KeypointConfig | None = None,
    batch_size: int = 32,
    on_plan: Callable[[TrainPlan], None] | None = None,
    **options: Unpack[RunOptions],
) -> TrainReport:
    """Train a :class:`HierarchicalKeypointTransformer` on the faces of a store.

    Points are mapped to [0, 1] by the lowest and highest values of all faces of the training split;
    frames without a face are left out. The parameters and errors are those of
    :func:`train_skeleton`.
    """
    store = store.checked()
    chosen = frames or Frames()
    feature = chosen.feature

    @cache
    def face_range() -> Range:
        return _face_range(store, feature, chosen.split)

    def view_of(split: str) -> View:
        # First without a range: where no frame has a face, there is none to be had.
        FaceKeypointView(store, feature=feature, normalize=None, split=split)
        _checked(
            FrameView(store, feature, split=split, missing="skip"),
            chosen,
            split,
            ("face",),
            allow=False,
        )
        view = FaceKeypointView(store, feature=feature, normalize=face_range(), split=split)
        return _limited(view, chosen.limit)

    _check_first(folder, options)
    views = _views(store, chosen, view_of)
    task = KeypointTraining(tuple(edge for edge in _edges(store, feature) if max(edge) < N_FACE))
    model = _seeded(lambda: HierarchicalKeypointTransformer(config), options.get("seed", 0))
    low, high = face_range()
    inputs = {"feature": feature, "low": low.tolist(), "high": high.tolist()}
    return _fit(model, views, task, inputs, folder, batch_size, on_plan, options)


def _check_first(folder: Path | str | None, options: RunOptions) -> None:
    """Raise what needs no look at the frames."""
    device_named(options.get("device", "cpu"))
    if options.get("tensorboard"):
        check_board()
    if folder is not None:
        check_free(Path(folder), resume=options.get("resume", False))


def _face_range(store: BaseStore, feature: str, split: str) -> Range:
    """Return what maps a split's faces to [0, 1]: by its statistics, which are kept, or else its extremes."""
    measured = statistics(store, feature, split=split)
    normalize: Statistics | Literal["minmax"] = measured if len(measured.columns) == 3 else "minmax"
    return FaceKeypointView(store, feature=feature, normalize=normalize, split=split).range


def _views(store: BaseStore, frames: Frames, view_of: Callable[[str], View]) -> dict[str, View]:
    splits = [frames.split, *([dev] if (dev := frames.dev_of(store)) else [])]
    for split in splits:
        if split not in store.splits:
            named = ", ".join(repr(name) for name in store.splits)
            raise NotFoundError(
                f"split {split!r} not found in {store.location}; it has {named or 'no videos'}"
            )
    return {split: view_of(split) for split in splits}


def _fit(
    model: nn.Module,
    views: Mapping[str, View],
    task: Training,
    inputs: Mapping[str, Any],
    folder: Path | str | None,
    batch_size: int,
    on_plan: Callable[[TrainPlan], None] | None,
    options: RunOptions,
) -> TrainReport:
    train_view, *dev_views = views.values()
    device = str(device_named(options.get("device", "cpu")))
    if on_plan is not None:
        n_parameters = sum(p.numel() for p in model.parameters())
        on_plan(
            TrainPlan({split: len(view) for split, view in views.items()}, n_parameters, device)
        )
    train_loader = _loader(
        BatchSampler(train_view, batch_size, seed=options.get("seed", 0)), device
    )
    # Each dev frame is measured once, however many ranks there are.
    dev_samplers = [BatchSampler(view, batch_size, shuffle=None, pad=False) for view in dev_views]
    dev_loader = _loader(dev_samplers[0], device) if dev_samplers else None
    return fit(model, train_loader, dev_loader, task=task, folder=folder, inputs=inputs, **options)


def _loader(sampler: BatchSampler, device: str) -> Loader:
    dataset = BatchDataset(
        sampler.view, tensors=True, collate=None, pool_bytes=int(sampler.pool_mib * 2**20)
    )
    return Loader(sampler, dataset, pin_memory=device.startswith("cuda"))


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


def _checked(
    view: FrameView, frames: Frames, split: str, parts: tuple[str, ...], *, allow: bool = True
) -> View:
    """Return a view, limited; an error says that it is empty, or which part no frame has."""
    store = view.store
    if not len(view):
        raise InvalidError(
            f"split {split!r} has no frames with {frames.feature!r} in {store.location}; extract "
            f"them, or choose another of {', '.join(map(repr, store.splits))}"
        )
    limited = _limited(view, frames.limit)
    if allow and frames.missing_parts == "allow":
        return limited
    missing = [part for part in parts if part not in _parts_there(view, frames.feature, parts)]
    if missing:
        hint = ", or allow it (--missing-parts allow)" if allow else ""
        raise InvalidError(
            f"{' and '.join(part.replace('_', ' ') for part in missing)}: missing in all "
            f"{len(view)} frames of split {split!r} in {store.location}; extract again, choose "
            f"another split{hint}"
        )
    return limited


def _limited(view: View, limit: int | None) -> View:
    if limit is None or limit >= len(view):
        return view
    return view.subset(np.linspace(0, len(view) - 1, limit).astype(np.int64))


def _parts_there(view: FrameView, feature: str, parts: tuple[str, ...]) -> set[str]:
    """Return which parts at least one frame has, by their mask or else by their values."""
    store, found = view.store, set[str]()
    names = store.feature(feature).labels.get("part", ())
    mask = store.detected(feature)
    if mask is not None and set(parts) <= set(names):
        there = np.asarray(mask)[view.rows]
        return {name for number, name in enumerate(names) if there[:, number].any()}
    for start in range(0, len(view.rows), _READ_ROWS):
        points: NDArray[Any] = store.read(feature, view.rows[start : start + _READ_ROWS])
        found |= {part for part in parts if np.isfinite(points[:, PART_SLICES[part]]).any()}
        if found == set(parts):
            break
    return found


def _edges(store: BaseStore, feature: str) -> tuple[Edge, ...]:
    return tuple((int(a), int(b)) for a, b in store.feature(feature).attrs.get("edges", ()))


def _with_edges(task: SkeletonTraining, store: BaseStore, feature: str) -> SkeletonTraining:
    if task.edges:
        return task
    given = {field.name: getattr(task, field.name) for field in fields(task)}
    return SkeletonTraining(**{**given, "edges": _edges(store, feature)})


_MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "HierarchicalSkeletonTransformer": (HierarchicalSkeletonTransformer, SkeletonConfig),
    "HierarchicalKeypointTransformer": (HierarchicalKeypointTransformer, KeypointConfig),
}


def load_model(path: Path | str) -> nn.Module:
    """Return the model of a checkpoint, on the CPU, ready to use (``eval()``).

    Parameters
    ----------
    path : ``best.safetensors`` or ``checkpoint.safetensors`` of a run's folder.

    Raises
    ------
    NotFoundError, CorruptError, InvalidError
        If there is none, it is torn, or it holds another model than the two of kpstore.
    """
    return model_of(read_checkpoint(Path(path)), path)


def model_of(checkpoint: Checkpoint, path: Path | str) -> nn.Module:
    """Return the model of a checkpoint that was read, as :func:`load_model` does.

    ``path`` is for messages.
    """
    described = checkpoint.about["model"]
    if described["name"] not in _MODELS:
        raise InvalidError(
            f"{path}: holds a {described['name']}; load its tensors into your own model"
        )
    model_type, config_type = _MODELS[described["name"]]
    config = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in described["config"].items()
    }
    known = {field.name for field in fields(config_type)}
    if unknown := sorted(config.keys() - known):
        raise InvalidError(
            f"{path}: its model has {', '.join(unknown)}, unknown here; use the kpstore that wrote "
            "it"
        )
    model: nn.Module = model_type(config_type(**config))
    load_weights(model, checkpoint, path)
    return model.eval()
