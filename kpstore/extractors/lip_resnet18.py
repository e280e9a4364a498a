"""Lip embeddings: 512 numbers for every frame of mouth crops, by the encoder of IIANet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.extractors.base import Extracted, is_whole
from kpstore.extractors.checkpoint_files import differs
from kpstore.extractors.devices import Precision, StoredType, find_device, sent
from kpstore.extractors.libraries import library_versions
from kpstore.extractors.lip_weights import LipCheckpoint, load_network, read_lip_checkpoint
from kpstore.extractors.torch_model import TorchModel, WeightsPath
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance
from kpstore.schema.lips import CROP_SIDE, LIP_FEATURE, LIP_LENGTH, lip_spec

if TYPE_CHECKING:
    import torch
    from torch import nn

RECIPE = "lip_resnet18"
MEAN, STD = 0.421, 0.165
"""Mean and deviation of grey from 0 to 1 with which the encoder was trained."""
QUIRK_ROWS = 50
"""Rows of pixels that remain if height is cut instead of time: 2 s at 25 fps, IIANet's segment."""
REACH = 2
"""Frames before and after it that an embedding depends on: the front end's kernel has five."""
PIECE = 25
"""Maximum number of consecutive frames that are computed together: one second."""
SMALLEST_CROP = 32

Quirk = Literal["none", "height_slice"]


@dataclass(kw_only=True)
class LipResnet18Extractor(TorchModel):
    """The ResNet18 video encoder with a 3-D front end, on mouth crops of whole videos.

    ``rows = encoder((crop(frame) / 255 - 0.421) / 0.165)`` with the ``crop`` x ``crop`` pixels in
    the middle of a frame, as in IIANet and mpc001's lip reading for validation and test; batch norm
    in evaluation mode. T frames give T rows; each row depends on five frames. Each video is cut
    into pieces of equal length, of which the last is padded; a piece comes with the two frames
    before and after it, or zeros at the ends of the video. The network always takes the same number
    of pieces, on a CPU in one thread, so that the bits of a row depend on its video alone. Another
    ``batch_frames`` or kind of processor may change the last bits.

    Parameters
    ----------
    weights : a checkpoint of ``torch.save`` or ``.safetensors``; it has to be given, since no hub
        has one.
    crop : width and height in pixels; the encoder was trained with 88 and takes other sizes.
    quirk : ``"height_slice"`` keeps the upper 50 rows of pixels of each crop, as IIANet's data
        loader does by mistake when it encodes crops of one speaker on the fly (its slice is meant
        for time): for models that were trained like that. Files that were computed in advance are
        ``"none"``.
    precision : of convolutions: ``"fp32"``, ``"bf16"`` (off by 3e-3) or ``"fp16"`` (by 5e-4; both
        measured with random weights that give values up to 0.7); on GPUs also ``"tf32"``, which was
        not measured. Batch norm is float32.
    dtype : type of the stored values.
    batch_frames : number of frames at once, in pieces of 25 (rounded down), or one piece of fewer;
        recorded and kept once the feature is begun. 0 takes the recorded number, or for a new
        feature 1,600 on a GPU (fewer if its memory does not suffice) and 10 on a CPU, where 50 are
        not faster and waste more on the last piece of a video.
    """

    extractor_name: ClassVar[str] = RECIPE
    at_once_option: ClassVar[str] = "batch_frames"
    default_at_once: ClassVar[Mapping[str, int]] = {"cpu": 10, "cuda": 64 * PIECE}
    any_length: ClassVar[bool] = True

    weights: WeightsPath = None
    crop: int = 88
    quirk: Quirk = "none"
    precision: Precision = "fp32"
    dtype: StoredType = "float32"
    batch_frames: int = 0
    _hashed: tuple[str, int] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = self._option_problems(quirk=Quirk, precision=Precision, dtype=StoredType)
        if not is_whole(self.crop) or not SMALLEST_CROP <= self.crop <= CROP_SIDE:
            problems.append(f"crop={self.crop!r}: use {SMALLEST_CROP} to {CROP_SIDE} pixels")
        if problems:
            raise InvalidError(f"options of {RECIPE}: {'; '.join(problems)}")
        self._path = None if self.weights is None else Path(self.weights).expanduser().absolute()
        self._take_option()

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The feature of frames: (512,) without a unit."""
        return (lip_spec(self.dtype),)

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """SHA-256 of the weights, and everything else that changes the values.

        Raises
        ------
        NotFoundError, InvalidError
            If the weights are not given, do not exist, or are another network's.
        """
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
            **self._on_record,
        }
        made = {
            "extractor": RECIPE,
            "recipe": "ResNet18 with 3-D front end, PReLU, on mouth crops",
            "model": RECIPE,
            "weights": {self._path.name: sha256},
            "parameters": parameters,
            "libraries": library_versions(RECIPE, "torch", "torch"),
        }
        return {LIP_FEATURE: made}

    def _checkpoint(self) -> LipCheckpoint:
        if self._path is None:
            raise InvalidError(
                f"recipe {RECIPE!r} has no weights of its own; give the checkpoint that your model "
                "was trained with: --weights PATH, e.g. lrw_resnet18_mstcn_adamw_s3.pth.tar"
            )
        return read_lip_checkpoint(self._path)

    @property
    def typical_fps(self) -> float:
        """Rough frames per second of one core (60 to 260 measured).

        A GPU is hundreds of times faster.
        """
        return 75.0

    def open(self, device: str = "cpu") -> None:
        """Load the network to a device.

        Raises
        ------
        UnsupportedError
            If the device does not exist.
        NotFoundError, InvalidError
            If the weights are not given, do not exist, are another network's, or are not those that
            the run began with.
        ExtractorError
            If the memory of a GPU does not suffice, or the network's results are not finite in this
            precision.
        """
        library_versions(RECIPE, "torch", "torch")
        self._device = find_device(device, RECIPE)
        checkpoint = self._checkpoint()
        if self._hashed is not None and checkpoint.sha256 != self._hashed[0]:
            raise differs(checkpoint.path)
        self._model = _in_type(load_network(checkpoint), self._torch_type).to(self._device)
        self._opened(device)

    def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> list[Extracted]:
        """Return one answer for each video; see :class:`kpstore.extractors.base.VideoExtractor`.

        Parameters
        ----------
        videos : grey mouth crops, (T, 96, 96) uint8 each, of any lengths T of at least 1.

        Returns
        -------
        list of Extracted
            ``rows`` of (T, 512) each; a frame whose values are not finite (fp16 overflows) has
            failed.

        Raises
        ------
        InvalidError
            If a video has another shape or dtype.
        ExtractorError
            If the network fails, or the memory of a GPU does not suffice.
        """
        self._require_open()
        if not len(videos):
            return []
        for video in videos:
            _check_crops(video)
        crops = [self._middle_of(video) for video in videos]
        pieces = [
            (n, at) for n, video in enumerate(crops) for at in range(0, len(video), self._piece)
        ]
        made = [np.empty((len(video), LIP_LENGTH), dtype=np.float32) for video in crops]
        # One call after another: the frames of all pieces at once would be in memory twice.
        for start in range(0, len(pieces), self._rows_per_call):
            now = pieces[start : start + self._rows_per_call]
            windows = [_window(crops[n], at - REACH, at + self._piece + REACH) for n, at in now]
            rows = self._call(
                self._forward, *(np.stack(part) for part in zip(*windows, strict=True))
            )
            for (n, at), values in zip(now, rows, strict=True):
                made[n][at : at + self._piece] = values[: len(crops[n]) - at]
        return [self._extracted(values) for values in made]

    def _middle_of(self, video: NDArray[np.uint8]) -> NDArray[np.uint8]:
        start = (CROP_SIDE - self.crop) // 2
        rows = self.crop if self.quirk == "none" else min(self.crop, QUIRK_ROWS)
        return video[:, start : start + rows, start : start + self.crop]

    def _extracted(self, values: NDArray[np.float32]) -> Extracted:
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype)
        odd = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        return Extracted(
            {LIP_FEATURE: FeatureRows(stored)},
            dict.fromkeys(odd.tolist(), self._not_finite(self.dtype)),
        )

    # -- calls: pieces of equal length, each with the frames before and after it -------------------

    @property
    def _piece(self) -> int:
        return min(PIECE, self.batch_frames)

    @property
    def _rows_per_call(self) -> int:
        return self.batch_frames // self._piece

    def _set_at_once(self, number: int) -> None:
        super()._set_at_once(number if number < PIECE else number // PIECE * PIECE)

    @property
    def _on_record(self) -> dict[str, object]:
        known = super()._on_record
        return {**known, "piece_frames": self._piece} if known else {}

    def _trial(self) -> NDArray[np.float32]:
        video = np.random.default_rng(0).integers(
            0, 256, (self._piece, CROP_SIDE, CROP_SIDE), dtype=np.uint8
        )
        crops, there = _window(self._middle_of(video), -REACH, self._piece + REACH)
        many = self._rows_per_call
        return self._forward(np.stack([crops] * many), np.stack([there] * many))

    def _forward(self, crops: NDArray[np.uint8], there: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return (pieces, frames, 512) for crops (pieces, frames + 4, height, width)."""
        import torch

        batch, known = sent(crops, self._device), sent(there, self._device)
        with torch.inference_mode(), self._settings():
            scaled = batch.to(torch.float32).div(255).sub(MEAN).div(STD)
            # Frames outside the video are 0 after scaling, not black.
            inputs = scaled * known[:, :, None, None]
            rows = self._model(inputs.to(self._torch_type)).float()
            result: NDArray[np.float32] = rows.cpu().numpy()
        return result


def _window(
    video: NDArray[np.uint8], start: int, stop: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return frames ``start`` to ``stop``, zeros outside the video, and which are inside."""
    frames = np.zeros((stop - start, *video.shape[1:]), dtype=np.uint8)
    there = np.zeros(stop - start, dtype=np.bool_)
    first, last = max(start, 0), min(stop, len(video))
    frames[first - start : last - start] = video[first:last]
    there[first - start : last - start] = True
    return frames, there


def _check_crops(video: object) -> None:
    if not isinstance(video, np.ndarray):
        raise InvalidError(f"mouth crops are a NumPy array, found {type(video).__name__}")
    side = (CROP_SIDE, CROP_SIDE)
    if video.ndim != 3 or video.shape[1:] != side or video.dtype != np.uint8:
        raise InvalidError(
            f"mouth crops are grey, (T, {CROP_SIDE}, {CROP_SIDE}) uint8, found {video.shape} "
            f"{video.dtype}; crop them as the encoder's data set is"
        )
    if not len(video):
        raise InvalidError("mouth crops of no frames; at least one is needed")


def _in_type(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the network with its convolutions and PReLUs in a floating-point type.

    Batch norm stays float32: its variances can exceed the range of fp16, and torch computes it in
    float32 for any input.
    """
    import torch

    narrow = (torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.PReLU)
    for module in network.modules():
        if isinstance(module, narrow):
            module.to(dtype)
    return network
