"""Lip embeddings: 512 numbers for every frame of mouth crops, by the encoder of IIANet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, MissingExtraError
from kpstore.extractors.base import Extracted
from kpstore.extractors.devices import TORCH_TYPES, Precision, StoredType, find_device, full_float32, in_halves
from kpstore.extractors.lip_weights import LipCheckpoint, load_network, read_lip_checkpoint
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance
from kpstore.schema.lips import CROP_SIDE, LIP_FEATURE, LIP_LENGTH, lip_spec

RECIPE = "lip_resnet18"
MEAN, STD = 0.421, 0.165
"""Of grey from 0 to 1, as the encoder was trained."""
QUIRK_ROWS = 50
"""Rows of pixels that are left where height was cut for time: 2 s at 25 fps, IIANet's segment."""
REACH = 2
"""Frames on either side that an embedding depends on."""
SMALLEST_CROP = 32
CPU_FRAMES, CUDA_FRAMES = 50, 1600

Quirk = Literal["none", "height_slice"]


@dataclass(kw_only=True)
class LipResnet18Extractor:
    """The ResNet18 video encoder with a 3-D front end, on mouth crops of whole videos.

    ``rows = encoder((crop(frame) / 255 - 0.421) / 0.165)`` with the ``crop`` x ``crop`` pixels in a frame's middle, as
    IIANet and mpc001's lip reading do for validation and test; batch norm in evaluation mode. T frames give T rows; one
    row depends on five frames. Videos of one length run together and are never padded. A video longer than
    ``batch_frames`` runs in pieces that overlap by what a row depends on. Neither changes more than the last bits
    (measured: on the CPU, the same bits).

    Parameters
    ----------
    weights : a checkpoint of ``torch.save`` or ``.safetensors``; there are none on a hub, so it has to be given.
    crop : pixels of a side; the encoder was trained with 88, and takes others.
    quirk : ``"height_slice"`` keeps the upper 50 rows of pixels of each crop, as IIANet's data loader does by mistake
        when it encodes crops of one speaker on the fly (its slice is meant for time): for models that were trained so.
        Files that were computed ahead are of ``"none"``.
    precision : of convolutions: ``"fp32"``, ``"bf16"`` (off by 3e-3) or ``"fp16"`` (by 5e-4; both measured with random
        weights that give numbers up to 0.7); batch norm is float32.
    dtype : as which values are stored.
    batch_frames : frames of all videos at once; 0 starts with 1,600 on a GPU and 50 on the CPU. Halved when a GPU's
        memory runs out.
    """

    weights: str | os.PathLike[str] | None = None
    crop: int = 88
    quirk: Quirk = "none"
    precision: Precision = "fp32"
    dtype: StoredType = "float32"
    batch_frames: int = 0
    _network: Any = field(default=None, init=False, repr=False, compare=False)
    _device: Any = field(default=None, init=False, repr=False, compare=False)
    _hashed: tuple[str, int] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = [*self._unknown_words(), *self._odd_numbers()]
        given: object = self.weights  # whatever came from the command line
        if given is not None and not isinstance(given, (str, os.PathLike)):
            problems.append(f"weights={self.weights!r} is no path")
        if problems:
            raise InvalidError(f"options of {RECIPE}: {'; '.join(problems)}")
        self._path = None if self.weights is None else Path(self.weights).expanduser().absolute()
        self._automatic = self.batch_frames == 0
        self.batch_frames = self.batch_frames or CPU_FRAMES

    def _unknown_words(self) -> Iterator[str]:
        for name, kind in (("quirk", Quirk), ("precision", Precision), ("dtype", StoredType)):
            if getattr(self, name) not in get_args(kind):
                yield f"{name}={getattr(self, name)!r} is none of {', '.join(get_args(kind))}"

    def _odd_numbers(self) -> Iterator[str]:
        if not _is_whole(self.crop) or not SMALLEST_CROP <= self.crop <= CROP_SIDE:
            yield f"crop={self.crop!r}: use {SMALLEST_CROP} to {CROP_SIDE} pixels"
        if not _is_whole(self.batch_frames) or self.batch_frames < 0:
            yield f"batch_frames={self.batch_frames!r} is no number of frames; 0 is automatic"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_network": None, "_device": None}

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The one feature, of frames: (512,) without a unit."""
        return (lip_spec(self.dtype),)

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """SHA-256 of the weights, and everything else that changes the numbers.

        Raises
        ------
        NotFoundError, InvalidError
            If the weights are not given, not there, or not this network's.
        """
        libraries = _library_versions()
        if self._hashed is None:
            checkpoint = self._checkpoint()
            self._hashed = checkpoint.sha256, checkpoint.head
        assert self._path is not None
        sha256, head = self._hashed
        parameters = {
            "crop": [self.crop, self.crop],
            "mean": MEAN,
            "std": STD,
            "quirk": self.quirk,
            "precision": self.precision,
            "tensors_of_temporal_head_left_out": head,
        }
        made = {
            "extractor": RECIPE,
            "recipe": "ResNet18 with 3-D front end, PReLU, on mouth crops",
            "model": RECIPE,
            "weights": {self._path.name: sha256},
            "parameters": parameters,
            "libraries": libraries,
        }
        return {LIP_FEATURE: made}

    def _checkpoint(self) -> LipCheckpoint:
        if self._path is None:
            raise InvalidError(
                f"recipe {RECIPE!r} has no weights of its own; give the checkpoint that your model was trained with: "
                "--weights PATH, e.g. lrw_resnet18_mstcn_adamw_s3.pth.tar"
            )
        return read_lip_checkpoint(self._path)

    @property
    def typical_fps(self) -> float:
        """Rough frames per second of one core (60 to 260 measured); a GPU does hundreds of times as many."""
        return 75.0

    def open(self, device: str = "cpu") -> None:
        """Load the network to a device.

        Raises
        ------
        UnsupportedError
            If the device is not there.
        NotFoundError, InvalidError
            If the weights are not given, not there, not this network's, or not those that the run began with.
        """
        _library_versions()
        self._device = find_device(device, RECIPE)
        checkpoint = self._checkpoint()
        if self._hashed is not None and checkpoint.sha256 != self._hashed[0]:
            raise InvalidError(
                f"{checkpoint.path} is not the same here as where the run began; give all workers one copy"
            )
        self._network = _in_precision(load_network(checkpoint), self.precision).to(self._device)
        if self._automatic:
            self.batch_frames = CUDA_FRAMES if self._device.type == "cuda" else CPU_FRAMES

    def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> list[Extracted]:
        """Return one answer for each video; see :class:`kpstore.extractors.base.VideoExtractor`.

        Parameters
        ----------
        videos : grey mouth crops, (T, 96, 96) uint8 each, all of one length T of at least 1.

        Returns
        -------
        list of Extracted
            ``rows`` of (T, 512) each; a frame whose answer is not finite (fp16 overflows) has failed.

        Raises
        ------
        InvalidError
            If a video is anything else, or their lengths differ.
        ExtractorError
            If the network fails, or a single frame is too much for the GPU's memory.
        """
        if self._network is None:
            raise InvalidError(f"{type(self).__name__} is not open; call open() before it gets videos")
        if not len(videos):
            return []
        for video in videos:
            _check_crops(video)
        lengths = sorted({len(video) for video in videos})
        if len(lengths) > 1:
            raise InvalidError(f"videos of {lengths} frames in one call; they must be of one length, none is padded")
        crops = np.stack([self._middle_of(video) for video in videos])
        rows = np.concatenate([self._embed(crops, start, stop) for start, stop in self._pieces(*crops.shape[:2])])
        return [self._extracted(values) for values in rows.reshape(len(videos), -1, LIP_LENGTH)]

    def close(self) -> None:
        """Free the network; the extractor can be opened again."""
        self._network = self._device = None

    def _middle_of(self, video: NDArray[np.uint8]) -> NDArray[np.uint8]:
        start = (CROP_SIDE - self.crop) // 2
        rows = self.crop if self.quirk == "none" else min(self.crop, QUIRK_ROWS)
        return video[:, start : start + rows, start : start + self.crop]

    def _extracted(self, values: NDArray[np.float32]) -> Extracted:
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype)
        reason = f"no finite numbers in {self.precision}, stored as {self.dtype}; use precision=bf16, dtype=float32"
        odd = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        return Extracted({LIP_FEATURE: FeatureRows(stored)}, dict.fromkeys(odd.tolist(), reason))

    # -- pieces: rows are counted through all videos, row i is frame i % T of video i // T -----------------------

    def _pieces(self, n_videos: int, n_frames: int) -> Iterator[tuple[int, int]]:
        """Yield the rows to compute at once: of whole videos, or of a part of one."""
        per_piece = max(1, self.batch_frames // n_frames) * n_frames
        step = per_piece if n_frames <= self.batch_frames else self.batch_frames
        for first in range(0, n_videos * n_frames, per_piece):
            end = min(first + per_piece, n_videos * n_frames)
            for start in range(first, end, step):
                yield start, min(start + step, end)

    def _embed(self, crops: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.float32]:
        n_frames = crops.shape[1]

        def middle(first: int, last: int) -> int:
            half = (last - first + 1) // 2
            whole = -(-half // n_frames) * n_frames
            return first + (whole if whole < last - first else half)

        return in_halves(
            lambda first, last: self._rows(crops, first, last),
            start,
            stop,
            model=RECIPE,
            device=self._device,
            remedy="use fewer --workers-per-gpu, or precision=bf16",
            on_halved=self._shrink,
            middle=middle,
        )

    def _shrink(self, frames: int) -> None:
        self.batch_frames = min(self.batch_frames, frames)

    def _rows(self, crops: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.float32]:
        """Return rows of whole videos, or of a part of one video, (stop - start, 512)."""
        n_frames = crops.shape[1]
        video, first = divmod(start, n_frames)
        if first == 0 and stop % n_frames == 0:
            return self._forward(crops[video : stop // n_frames]).reshape(-1, LIP_LENGTH)
        last = first + stop - start
        # A part takes along the frames that its outer rows depend on; at a video's own ends, the network's zeros do.
        begin = max(0, first - REACH)
        part = self._forward(crops[video : video + 1, begin : last + REACH])
        return part[0, first - begin : last - begin]

    def _forward(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (videos, frames, 512) for crops (videos, frames, height, width)."""
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(crops))
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        with torch.inference_mode(), full_float32(self._device):
            inputs = batch.to(torch.float32).div(255).sub(MEAN).div(STD)
            rows = self._network(inputs.to(getattr(torch, TORCH_TYPES[self.precision]))).float()
            result: NDArray[np.float32] = rows.cpu().numpy()
        return result


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _library_versions() -> dict[str, str]:
    try:
        return {"torch": version("torch").partition("+")[0]}
    except PackageNotFoundError:
        raise MissingExtraError(f"the recipe {RECIPE!r} (torch is not installed)", extra="torch") from None


def _check_crops(video: object) -> None:
    if not isinstance(video, np.ndarray):
        raise InvalidError(f"mouth crops are a NumPy array, found {type(video).__name__}")
    side = (CROP_SIDE, CROP_SIDE)
    if video.ndim != 3 or video.shape[1:] != side or video.dtype != np.uint8:
        raise InvalidError(
            f"mouth crops are grey, (T, {CROP_SIDE}, {CROP_SIDE}) uint8, found {video.shape} {video.dtype}; crop them "
            "as the encoder's data set is"
        )
    if not len(video):
        raise InvalidError("mouth crops of no frames; at least one is needed")


def _in_precision(network: Any, precision: Precision) -> Any:
    """Return the network with convolutions and what follows them in a precision; batch norm keeps float32.

    Its variances can lie beyond what fp16 holds; torch computes it in float32 whatever comes in.
    """
    import torch

    narrow = (torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.PReLU)
    for module in network.modules():
        if isinstance(module, narrow):
            module.to(getattr(torch, TORCH_TYPES[precision]))
    return network
