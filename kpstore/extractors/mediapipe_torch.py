"""What MediaPipe's graphs in torch have in common: frames, crops of them, and calls of models.

Every call of a model has the same number of rows, so that results do not depend on which frames are
computed together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kpstore.errors import InvalidError
from kpstore.extractors import mediapipe_regions as regions
from kpstore.extractors.base import check_image
from kpstore.extractors.devices import TORCH_TYPES, Precision, reproducible
from kpstore.extractors.mediapipe_crops import (
    Frames,
    crop_matrices,
    pixel_regions,
    take_crops,
)
from kpstore.extractors.mediapipe_models import MediapipeModel, MediapipeModels
from kpstore.extractors.mediapipe_points import projected, without_padding

WHOLE = (0.5, 0.5, 1.0, 1.0, 0.0)
"""The rect of a whole frame."""
NO_FRAME = np.zeros((1, 1, 3), dtype=np.uint8)
"""Stands where a row has no frame."""

Computed = Literal["present", "all"]
Models = TypeVar("Models", bound=MediapipeModels)


@dataclass(frozen=True)
class FoundRows:
    """Points of some frames, x and y as fractions of the frame, z on the scale of x.

    Parameters
    ----------
    face : (rows, 468, 3) float32, or 478 with irises; NaN where no face was found, as in the
        others.
    left_hand, right_hand : (rows, 21, 3) float32, the subject's own left and right.
    pose : (rows, 33, 3) float32.
    visibility : (rows, 33) float32 from 0 to 1, of the pose's points.
    present : (rows, 4) bool: face, left hand, right hand, pose.
    finite : (rows,) bool, whether all numbers that the models gave are finite; where not, nothing
        of the frame is to be believed.
    """

    face: NDArray[np.float32]
    left_hand: NDArray[np.float32]
    right_hand: NDArray[np.float32]
    pose: NDArray[np.float32]
    visibility: NDArray[np.float32]
    present: NDArray[np.bool_]
    finite: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.present)

    def first(self, count: int) -> FoundRows:
        """Return the first rows."""
        return FoundRows(*(getattr(self, field.name)[:count] for field in fields(self)))

    @staticmethod
    def joined(some: Sequence[FoundRows]) -> FoundRows:
        """Return all rows of one or more."""
        arrays = ([getattr(one, field.name) for one in some] for field in fields(FoundRows))
        return FoundRows(*map(np.concatenate, arrays))

    @staticmethod
    def of(face: Part, left: Part, right: Part, pose: Part, odd: Tensor) -> FoundRows:
        """Return parts as arrays.

        Parameters
        ----------
        odd : (rows,), not zero where a number was not finite.
        """
        parts = (face, left, right, pose)
        face_points, left_points, right_points, pose_points = (
            torch.where(one.found[:, None, None], one.points, torch.nan).cpu().numpy()
            for one in parts
        )
        return FoundRows(
            face_points,
            left_points,
            right_points,
            np.ascontiguousarray(pose_points[..., :3]),
            np.ascontiguousarray(pose_points[..., 3]),
            np.stack([one.found.cpu().numpy() for one in parts], 1),
            odd.cpu().numpy() == 0,
        )


@dataclass(frozen=True)
class Part:
    """Points (rows, points, numbers) in fractions of frames, and whether they were found."""

    points: Tensor
    found: Tensor

    @classmethod
    def none(cls, rows: int, shape: tuple[int, int], device: torch.device) -> Part:
        """Return rows in which nothing was found."""
        return cls(
            torch.zeros(rows, *shape, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )

    def where(self, mask: Tensor, other: Part) -> Part:
        """Return these rows where a mask (rows,) is true, and others elsewhere."""
        return Part(
            torch.where(mask[:, None, None], self.points, other.points),
            torch.where(mask, self.found, other.found),
        )


@dataclass(frozen=True)
class Scene:
    """The frames that rows look at; hands have two rows for each frame.

    Parameters
    ----------
    numbers : (rows,) int64, the frame of each row.
    sizes : (rows, 2) float32, its width and height.
    """

    frames: Frames
    numbers: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, frames: Frames) -> Scene:
        """Return a row for each frame."""
        numbers = torch.arange(len(frames), device=frames.starts.device)
        return cls(frames, numbers, frames.sizes.float())

    def twice(self) -> Scene:
        """Return all rows, and all rows again."""
        return Scene(self.frames, torch.cat([self.numbers] * 2), torch.cat([self.sizes] * 2))


@dataclass(frozen=True)
class Answer:
    """What a model found in the crops of some rows; undefined where none was wanted."""

    points: Tensor
    scores: Tensor
    regions: Tensor
    padding: Tensor


class TorchGraph(ABC, Generic[Models]):
    """Base: looks at regions of frames with models.

    Parameters
    ----------
    models : they are moved to the device.
    rows : frames at once.
    rows_per_call : rows that a model gets in one call, always. On a CPU results are the same bits
        for any ``rows`` with one number here; by default 1 on a CPU, where more are not faster, and
        ``rows`` on a GPU.
    device : of torch.
    computed : ``"present"`` leaves out rows in which there is nothing to look for, which needs to
        know them: a GPU would wait for that. ``"all"`` computes all rows. By default the first on a
        CPU, the second on a GPU.
    min_tracking_confidence : score above which there is a pose, and what else the graph compares
        with it.
    precision : ``"tf32"`` lets a GPU reduce float32 to ten bits within the models; in ``"bf16"``
        and ``"fp16"`` they compute in half of the bits. Regions and crops stay as they are.
    """

    _odd: Tensor
    """(rows,) int32, not zero where a number of the frames just looked at is not finite."""

    def __init__(
        self,
        models: Models,
        *,
        rows: int,
        rows_per_call: int | None = None,
        device: torch.device | None = None,
        computed: Computed | None = None,
        min_tracking_confidence: float = 0.5,
        precision: Precision = "fp32",
    ) -> None:
        self._device = device or torch.device("cpu")
        on_cpu = self._device.type == "cpu"
        self.rows, self.rows_per_call = rows, rows_per_call or (1 if on_cpu else rows)
        if rows < 1 or self.rows_per_call < 1:
            raise InvalidError(
                f"rows={rows} and rows_per_call={self.rows_per_call}: both must be at least 1"
            )
        self._computed = computed or ("present" if on_cpu else "all")
        self._least = min_tracking_confidence
        self._models: Models = models.to(self._device).eval()
        self._settings = partial(reproducible, self._device, tf32=precision == "tf32")
        if precision in ("bf16", "fp16"):
            self._models.compute_in(getattr(torch, TORCH_TYPES[precision]))
        elif on_cpu:
            # The order of weights depends on the number of threads, as the calls do.
            with self._settings():
                self._models.pack(self.rows_per_call)
        with torch.inference_mode():
            self._whole = torch.tensor(WHOLE, device=self._device)

    @abstractmethod
    def _looked_anew(self, frames: Frames, has_frame: Tensor) -> FoundRows:
        """Return what is in frames, of which each is the first of a video."""

    def independent(self, images: Sequence[NDArray[np.uint8]]) -> FoundRows:
        """Return what is in frames, each as if it were the first of a video.

        Memory of videos in lockstep is neither used nor changed.

        Parameters
        ----------
        images : any number, at least one, (height, width, 3) uint8 RGB of any sizes.
        """
        made = []
        for start in range(0, len(images), self.rows):
            some = [check_image(image) for image in images[start : start + self.rows]]
            count = len(some)
            frames = Frames.of(some + [NO_FRAME] * (self.rows - count))
            with torch.inference_mode(), self._settings():
                has_frame = torch.arange(self.rows, device=self._device) < count
                made.append(self._looked_anew(frames.to(self._device), has_frame).first(count))
        return FoundRows.joined(made)

    def _none_odd(self) -> Tensor:
        return torch.zeros(self.rows, dtype=torch.int32, device=self._device)

    def _pose(self, scene: Scene, has_frame: Tensor) -> Part:
        whole = self._whole.expand(self.rows, 5)
        found = self._looked(self._models.pose_detector, scene, whole, has_frame)
        keypoints = without_padding(found.points[:, 0, 2:], found.padding)
        rects = regions.pose_region(keypoints, scene.sizes)
        wanted = has_frame & (found.scores[:, 0] > 0)
        answer = self._looked(self._models.pose, scene, rects, wanted)
        points = projected(without_padding(answer.points, answer.padding), rects)
        return Part(points, wanted & (answer.scores > self._least))

    def _looked(self, model: MediapipeModel, scene: Scene, rects: Tensor, wanted: Tensor) -> Answer:
        """Return what a model finds in a region of each row's frame."""
        # A region of a row that is not wanted may be anything, even not finite.
        rects = torch.where(wanted[:, None], rects, self._whole)
        pixels, padding = pixel_regions(rects, scene.sizes, model.kind)
        points = rects.new_zeros(len(rects), *model.shape)
        scores = rects.new_zeros(len(rects), *model.n_scores)
        chosen = self._chosen(wanted)
        if len(chosen):
            matrices = crop_matrices(pixels[chosen], rects[chosen, 4], model.kind.side)
            numbers = scene.numbers[chosen]
            made = [
                model(take_crops(scene.frames, *part, model.kind))
                for part in zip(
                    torch.split(numbers, self.rows_per_call),
                    torch.split(matrices, self.rows_per_call),
                    strict=True,
                )
            ]
            # Rows that fill up a call repeat the first row: they write what it wrote.
            points[chosen] = torch.cat([one for one, _ in made])
            scores[chosen] = torch.cat([one for _, one in made])
        numbers_of_row = torch.cat([points.flatten(1), scores.reshape(len(scores), -1)], 1)
        is_odd = wanted & ~numbers_of_row.isfinite().all(1)
        self._odd.index_add_(0, scene.numbers, is_odd.int())
        return Answer(points, scores, pixels, padding)

    def _chosen(self, wanted: Tensor) -> Tensor:
        """Return the rows to compute, as many as fill calls of a fixed number of rows."""
        if self._computed == "present":
            chosen = wanted.nonzero()[:, 0]
        else:
            chosen = torch.arange(len(wanted), device=self._device)
        return torch.cat([chosen, chosen[:1].expand(-len(chosen) % self.rows_per_call)])
