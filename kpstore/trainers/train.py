"""Training on a store in one call: frames, model and loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect.statistics import Statistics, statistics
from kpstore.options import Option
from kpstore.schema.feature import edges_of
from kpstore.schema.layout import N_FACE, PART_SLICES, Edge
from kpstore.store.store import BaseStore
from kpstore.trainers.checkpoint import (
    Checkpoint,
    check_weights,
    load_weights,
    read_checkpoint,
)
from kpstore.trainers.fit import fit
from kpstore.trainers.folder import check_start
from kpstore.trainers.keypoints import (
    HierarchicalKeypointTransformer,
    KeypointConfig,
    KeypointTraining,
)
from kpstore.trainers.report import TrainReport
from kpstore.trainers.settings import check_all, device_named, split_options
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

BatchSize = Annotated[int, Option("Frames per step, in each process.", "N")]
MissingParts = Literal["error", "allow"]
_DEV_NAMES = ("dev", "val")
_READ_ROWS = 4096


@dataclass(frozen=True)
class Frames:
    """Which frames of a store to train on.

    Parameters
    ----------
    split : to train on.
    dev_split : to measure after each epoch; by default ``dev``, or else ``val``, if the store has
        it. ``""`` measures nothing.
    feature : keypoints to read.
    limit : maximum number of frames of each split, evenly spread, for a trial; None takes all.
    missing_parts : ``"error"`` refuses a split in which a part is missing in all frames;
        ``"allow"`` trains without this part.
    """

    split: Annotated[str, Option("Split to train on.", "SPLIT")] = "train"
    dev_split: Annotated[
        str | None,
        Option(
            "Split to measure after each epoch; `dev` or `val` by default, '' for none.", "SPLIT"
        ),
    ] = None
    feature: Annotated[str, Option("Keypoints to read.", "NAME")] = "keypoints"
    limit: Annotated[
        int | None,
        Option("At most N frames of each split, evenly spread.", "N", flag="--limit-frames"),
    ] = None
    missing_parts: Annotated[
        MissingParts, Option("What to do if a part is missing in all frames.")
    ] = "error"

    def __post_init__(self) -> None:
        rules = [
            (
                self.limit is None or self.limit >= 1,
                f"limit={self.limit}: use 1 frame or more, or none for all",
            ),
            (
                self.missing_parts in ("error", "allow"),
                f"missing_parts={self.missing_parts!r}: use 'error' or 'allow'",
            ),
            (
                self.dev_split != self.split,
                f"dev_split={self.dev_split!r} is the split that is trained on; choose another, or "
                "'' for none",
            ),
        ]
        check_all("frames", rules)

    def dev_of(self, store: BaseStore) -> str | None:
        """Return the split to measure, or None."""
        if self.dev_split is not None:
            return self.dev_split or None
        there = {split for split in store.splits if split != self.split}
        return next((name for name in _DEV_NAMES if name in there), None)


@dataclass(frozen=True)
class TrainPlan:
    """What a training is about to do.

    Parameters
    ----------
    frames : number of frames by split.
    parameters : number of trained parameters.
    device : to train on.
    """

    frames: Mapping[str, int]
    parameters: int
    device: str


def train_skeleton(
    store: BaseStore,
    folder: Path | str | None,
    *,
    frames: Frames | None = None,
    config: SkeletonConfig | None = None,
    training: SkeletonTraining | None = None,
    batch_size: BatchSize = 16,
    plain_loss: Annotated[
        bool, Option("Plain mean squared error, without weights.", flag="--no-weighted-loss")
    ] = False,
    **options: Any,
) -> TrainReport:
    """Train a :class:`HierarchicalSkeletonTransformer` on the frames of a store.

    Parameters
    ----------
    store, folder : to read from, and for all results; see :func:`kpstore.trainers.fit.fit`.
    frames, config, training : which frames, the size of the model, and the weights of the regions
        of a picture.
    batch_size : frames per step; under ``torchrun``, per step of each process.
    plain_loss : whether all pixels have the same weight, whatever ``training`` says.
    **options : of :func:`train_views`, such as ``on_plan``, and of
        :func:`kpstore.trainers.fit.fit`, such as ``device`` and ``epochs``.

    Raises
    ------
    NotFoundError
        If the store lacks the feature or the split.
    InvalidError
        If the feature does not have 143 points, a split has no frames, or a part is missing in all
        of them; and as ``fit``.
    """
    store, chosen, training = store.checked(), frames or Frames(), training or SkeletonTraining()
    if plain_loss:
        training = replace(training, hands=1.0, face=1.0, rest=1.0)
    feature, size = chosen.feature, (config or SkeletonConfig()).image_size

    def view_of(split: str) -> View:
        view = SkeletonTrainingView(
            store,
            feature=feature,
            size=size,
            style=training.style,
            pixels="uint8",
            fill=np.nan,
            split=split,
        )
        parts = () if chosen.missing_parts == "allow" else tuple(PART_SLICES)
        _check_frames(
            view, feature, split, parts, ", or missing_parts='allow' (--missing-parts allow)"
        )
        return _limited(view, chosen.limit)

    check_start(folder, **options)
    views = _views(store, chosen, view_of)
    return train_views(
        lambda: HierarchicalSkeletonTransformer(config),
        views,
        replace(training, edges=training.edges or _edges(store, feature)),
        folder=folder,
        batch_size=batch_size,
        inputs={"feature": feature},
        **options,
    )


def train_keypoints(
    store: BaseStore,
    folder: Path | str | None,
    *,
    frames: Frames | None = None,
    config: KeypointConfig | None = None,
    batch_size: BatchSize = 32,
    **options: Any,
) -> TrainReport:
    """Train a :class:`HierarchicalKeypointTransformer` on the faces of a store.

    Points are mapped to [0, 1] by the lowest and highest values of all faces of the training split;
    frames without a face are skipped. The parameters and errors are those of
    :func:`train_skeleton`.
    """
    store, chosen = store.checked(), frames or Frames()
    feature = chosen.feature

    @cache
    def face_range() -> Range:
        # From the split's statistics, which are cached, or else from its extreme values.
        measured = statistics(store, feature, split=chosen.split)
        by: Statistics | Literal["minmax"] = measured if len(measured.columns) == 3 else "minmax"
        return FaceKeypointView(store, feature=feature, normalize=by, split=chosen.split).range

    def view_of(split: str) -> View:
        # Checked first without a range: if no frame has a face, there is none.
        FaceKeypointView(store, feature=feature, normalize=None, split=split)
        all_frames = FrameView(store, feature, split=split, missing="skip")
        _check_frames(all_frames, feature, split, ("face",))
        view = FaceKeypointView(store, feature=feature, normalize=face_range(), split=split)
        return _limited(view, chosen.limit)

    check_start(folder, **options)
    views = _views(store, chosen, view_of)
    low, high = face_range()
    return train_views(
        lambda: HierarchicalKeypointTransformer(config),
        views,
        KeypointTraining(tuple(edge for edge in _edges(store, feature) if max(edge) < N_FACE)),
        folder=folder,
        batch_size=batch_size,
        inputs={"feature": feature, "low": low.tolist(), "high": high.tolist()},
        **options,
    )


def train_views(
    make_model: Callable[[], nn.Module],
    views: Mapping[str, View],
    training: Training,
    *,
    folder: Path | str | None,
    batch_size: int,
    device: str = "cpu",
    on_plan: Callable[[TrainPlan], None] | None = None,
    **options: Any,
) -> TrainReport:
    """Train a new model on views of a store.

    Parameters
    ----------
    make_model : returns the model; the setting ``seed`` determines its weights.
    views : by split, the frames to train on, then those to measure, if any.
    training, folder, device : see :func:`kpstore.trainers.fit.fit`.
    batch_size : samples per step; under ``torchrun``, per step of each process.
    on_plan : called before the first step.
    **options : of :func:`kpstore.trainers.fit.fit`.
    """
    settings, others = split_options(options)
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        model = make_model()
    where = str(device_named(device))
    if on_plan is not None:
        n_parameters = sum(p.numel() for p in model.parameters())
        on_plan(TrainPlan({split: len(view) for split, view in views.items()}, n_parameters, where))
    train_view, *dev_views = views.values()
    train_loader = _loader(BatchSampler(train_view, batch_size, seed=settings.seed), where)
    # Without padding, each dev frame is measured once for any number of ranks.
    dev_samplers = [BatchSampler(view, batch_size, shuffle=None, pad=False) for view in dev_views]
    dev_loader = _loader(dev_samplers[0], where) if dev_samplers else None
    return fit(
        model,
        train_loader,
        dev_loader,
        training=training,
        folder=folder,
        device=device,
        settings=settings,
        **others,
    )


def _views(store: BaseStore, frames: Frames, view_of: Callable[[str], View]) -> dict[str, View]:
    dev_split = frames.dev_of(store)
    splits = [frames.split, *([dev_split] if dev_split else [])]
    for split in splits:
        if split not in store.splits:
            named = ", ".join(map(repr, store.splits))
            raise NotFoundError(
                f"split {split!r} not found in {store.location}; it has {named or 'no videos'}"
            )
    return {split: view_of(split) for split in splits}


def _loader(sampler: BatchSampler, device: str) -> Loader:
    dataset = BatchDataset(
        sampler.view, tensors=True, collate=None, pool_bytes=int(sampler.pool_mib * 2**20)
    )
    return Loader(sampler, dataset, pin_memory=device.startswith("cuda"))


def _check_frames(
    view: FrameView, feature: str, split: str, parts: tuple[str, ...], or_else: str = ""
) -> None:
    """Raise :class:`InvalidError` if a view is empty, or a part is missing in all its frames."""
    store = view.store
    if not len(view):
        raise InvalidError(
            f"split {split!r} has no frames with {feature!r} in {store.location}; extract "
            f"them, or choose another of {', '.join(map(repr, store.splits))}"
        )
    found = _parts_there(view, feature, parts)
    if missing := [part.replace("_", " ") for part in parts if part not in found]:
        raise InvalidError(
            f"{' and '.join(missing)}: missing in all {len(view)} frames of split {split!r} in "
            f"{store.location}; extract again, choose another split{or_else}"
        )


def _limited(view: View, limit: int | None) -> View:
    if limit is None or limit >= len(view):
        return view
    return view.subset(np.linspace(0, len(view) - 1, limit).astype(np.int64))


def _parts_there(view: FrameView, feature: str, parts: tuple[str, ...]) -> set[str]:
    """Return the parts that at least one frame has, by the mask or else by the values."""
    store, found = view.store, set[str]()
    if not parts:
        return found
    names = store.feature(feature).labels.get("part", ())
    mask = store.detected(feature)
    if mask is not None and set(parts) <= set(names):
        there = np.asarray(mask)[view.rows]
        return {name for number, name in enumerate(names) if there[:, number].any()}
    for start in range(0, len(view.rows), _READ_ROWS):
        points: NDArray[np.float32] = store.read(feature, view.rows[start : start + _READ_ROWS])
        found |= {part for part in parts if np.isfinite(points[:, PART_SLICES[part]]).any()}
        if found == set(parts):
            break
    return found


def _edges(store: BaseStore, feature: str) -> tuple[Edge, ...]:
    return edges_of(store.feature(feature))


_MODELS: dict[str, tuple[type[nn.Module], type[SkeletonConfig | KeypointConfig]]] = {
    "HierarchicalSkeletonTransformer": (HierarchicalSkeletonTransformer, SkeletonConfig),
    "HierarchicalKeypointTransformer": (HierarchicalKeypointTransformer, KeypointConfig),
}


def load_model(path: Path | str) -> nn.Module:
    """Return the model of a checkpoint, on the CPU and in evaluation mode.

    Parameters
    ----------
    path : ``best.safetensors`` or ``checkpoint.safetensors`` of a run's folder.

    Raises
    ------
    NotFoundError, CorruptError, InvalidError
        If it does not exist, is torn, or does not hold a model of kpstore.
    """
    return model_of(read_checkpoint(Path(path)), path)


def model_of(checkpoint: Checkpoint, path: Path | str) -> nn.Module:
    """Return the model of a checkpoint as :func:`load_model` does; ``path`` is for messages."""
    described = checkpoint.about.get("model")
    if not (
        isinstance(described, dict)
        and isinstance(described.get("name"), str)
        and isinstance(described.get("config"), dict)
    ):
        raise InvalidError(
            f"{path}: does not describe its model; use a checkpoint of kpstore train"
        )
    if described["name"] not in _MODELS:
        raise InvalidError(
            f"{path}: holds a {described['name']}; load its tensors into your own model"
        )
    model_type, config_type = _MODELS[described["name"]]
    config = _config_of(config_type, described["config"], checkpoint, path)
    # What a file says costs no memory before its own tensors turn out to be as large.
    with torch.device("meta"):
        check_weights(model_type(config), checkpoint, path)
    model = model_type(config)
    load_weights(model, checkpoint, path)
    return model.eval()


def _config_of(
    config_type: type[SkeletonConfig | KeypointConfig],
    given: Mapping[str, object],
    checkpoint: Checkpoint,
    path: Path | str,
) -> SkeletonConfig | KeypointConfig:
    """Return the size of a model that a file describes.

    Each layer has tensors of its own in the file, and no width is greater than all of them.
    """
    config: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
    }
    usual = asdict(config_type())
    if unknown := sorted(config.keys() - usual.keys()):
        raise InvalidError(
            f"{path}: its model has {', '.join(unknown)}, which this kpstore does not know; use "
            "the kpstore that wrote it"
        )
    n_tensors = len(checkpoint.tensors)
    n_values = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    for name, value in config.items():
        most = n_tensors if name.endswith("_layers") else n_values
        sizes = value if isinstance(value, tuple) else (value,)
        if not _is_like(value, usual[name]) or max(sizes, default=0) > most:
            raise InvalidError(
                f"{path}: its model has {name}={value!r}, which no model of its tensors has; use "
                "a checkpoint of kpstore train"
            )
    return config_type(**config)


def _is_like(value: object, usual: object) -> bool:
    """Return whether a value is of the kind of another: a number for a number, ints for ints."""
    if isinstance(usual, tuple) and isinstance(value, tuple):
        return all(_is_like(item, usual[0]) for item in value)
    kind = (int, float) if isinstance(usual, float) else type(usual)
    return isinstance(value, kind) and not isinstance(value, bool)
