"""MediaPipe's Holistic in torch: frame t of many videos at once, with the memory of each video.

It computes what ``Holistic(static_image_mode=True, model_complexity=1)`` of MediaPipe 0.10.14 does:
a person is looked for in every frame; regions of the face and of the hands follow those of the
frame before, if they moved little. Every call of a model has the same number of rows, so that
results do not depend on which videos are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kpstore.errors import InvalidError
from kpstore.extractors import holistic_regions as regions
from kpstore.extractors.base import check_image
from kpstore.extractors.devices import TORCH_TYPES, WithTf32, reproducible
from kpstore.extractors.holistic_crops import (
    Frames,
    crop_matrices,
    pixel_regions,
    take_crops,
)
from kpstore.extractors.holistic_models import (
    FACE_POINTS,
    HAND_POINTS,
    POSE_POINTS,
    HolisticModel,
    HolisticModels,
)
from kpstore.extractors.holistic_points import projected, projected_keypoints, without_padding

WHOLE = (0.5, 0.5, 1.0, 1.0, 0.0)
"""The rect of a whole frame."""
_NO_FRAME = np.zeros((1, 1, 3), dtype=np.uint8)
_LEAST_SCORE = 0.5
"""Above which a face or a hand is there; MediaPipe has no option for it."""
_LEAST_VISIBILITY = 0.1
"""Of a wrist, above which its hand is looked for."""
_LEFT, _RIGHT = slice(15, 20, 2), slice(16, 21, 2)
"""Wrist, little finger and index finger of the pose."""

Rows = Literal["present", "all"]


@dataclass(frozen=True)
class HolisticRows:
    """Points of some frames, x and y as fractions of the frame, z on the scale of x.

    Parameters
    ----------
    face : (rows, 468, 3) float32; NaN where no face was found, as in the others.
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

    def first(self, count: int) -> HolisticRows:
        """Return the first rows."""
        return HolisticRows(*(getattr(self, field.name)[:count] for field in fields(self)))

    @staticmethod
    def joined(some: Sequence[HolisticRows]) -> HolisticRows:
        """Return all rows of one or more."""
        arrays = ([getattr(one, field.name) for one in some] for field in fields(HolisticRows))
        return HolisticRows(*map(np.concatenate, arrays))


@dataclass(frozen=True)
class _Part:
    """Points (rows, points, numbers) in fractions of frames, and whether they were found."""

    points: Tensor
    found: Tensor

    @classmethod
    def none(cls, rows: int, n_points: int, device: torch.device) -> _Part:
        return cls(
            torch.zeros(rows, n_points, 3, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )

    def where(self, mask: Tensor, other: _Part) -> _Part:
        return _Part(
            torch.where(mask[:, None, None], self.points, other.points),
            torch.where(mask, self.found, other.found),
        )


@dataclass(frozen=True)
class _Memory:
    """Face and hands of the last frame; all left hands, then all right hands."""

    face: _Part
    hands: _Part

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> _Memory:
        return cls(_Part.none(rows, FACE_POINTS, device), _Part.none(2 * rows, HAND_POINTS, device))


@dataclass(frozen=True)
class _Scene:
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
    def of(cls, frames: Frames) -> _Scene:
        numbers = torch.arange(len(frames), device=frames.starts.device)
        return cls(frames, numbers, frames.sizes.float())

    def twice(self) -> _Scene:
        return _Scene(self.frames, torch.cat([self.numbers] * 2), torch.cat([self.sizes] * 2))


@dataclass(frozen=True)
class _Answer:
    """What a model found in the crops of some rows; undefined where none was wanted."""

    points: Tensor
    scores: Tensor
    regions: Tensor
    padding: Tensor


class HolisticTorch:
    """Videos in lockstep: each row takes one video after another, and remembers its last frame.

    Parameters
    ----------
    models : of :func:`~kpstore.extractors.holistic_models.load_models`; they are moved to the
        device.
    rows : videos at once.
    rows_per_call : rows that a model gets in one call, always. On a CPU results are the same bits
        for any ``rows`` with one number here; by default 1 on a CPU, where more are not faster, and
        ``rows`` on a GPU.
    device : of torch.
    computed : ``"present"`` leaves out rows in which there is nothing to look for, which needs to
        know them: a GPU would wait for that. ``"all"`` computes all rows. By default the first on a
        CPU, the second on a GPU.
    min_tracking_confidence : score above which there is a pose.
    precision : ``"tf32"`` lets a GPU reduce float32 to ten bits within the models; in ``"bf16"``
        and ``"fp16"`` they compute in half of the bits. Regions and crops stay as they are.
    """

    def __init__(
        self,
        models: HolisticModels,
        *,
        rows: int,
        rows_per_call: int | None = None,
        device: torch.device | None = None,
        computed: Rows | None = None,
        min_tracking_confidence: float = 0.5,
        precision: WithTf32 = "fp32",
    ) -> None:
        self._device = device or torch.device("cpu")
        on_cpu = self._device.type == "cpu"
        self.rows, self.rows_per_call = rows, rows_per_call or (1 if on_cpu else rows)
        if rows < 1 or self.rows_per_call < 1:
            raise InvalidError(
                f"rows={rows} and rows_per_call={self.rows_per_call}: both must be at least 1"
            )
        self._computed = computed or ("present" if on_cpu else "all")
        self._least_pose = min_tracking_confidence
        self._models = models.to(self._device).eval()
        self._settings = partial(reproducible, self._device, tf32=precision == "tf32")
        if precision in ("bf16", "fp16"):
            self._models.compute_in(getattr(torch, TORCH_TYPES[precision]))
        elif on_cpu:
            # The order of weights depends on the number of threads, as the calls do.
            with self._settings():
                self._models.pack(self.rows_per_call)
        with torch.inference_mode():
            self._whole = torch.tensor(WHOLE, device=self._device)
            self._memory = _Memory.empty(rows, self._device)

    def start_video(self, row: int) -> None:
        """Forget the last frame of a row, whose next frame is the first of another video."""
        if not 0 <= row < self.rows:
            raise InvalidError(f"row {row} was started, there are {self.rows}, from 0 on")
        with torch.inference_mode():
            self._memory.face.found[row] = False
            self._memory.hands.found[[row, row + self.rows]] = False

    def step(self, images: Sequence[NDArray[np.uint8] | None]) -> HolisticRows:
        """Return what is in the next frame of each video.

        Parameters
        ----------
        images : one for each row, (height, width, 3) uint8 RGB of any size; None for a row that has
            none this time, whose results are missing and whose memory stays.
        """
        if len(images) != self.rows:
            raise InvalidError(
                f"{len(images)} images were given for {self.rows} rows; give one for each row, or "
                "None"
            )
        given = np.array([image is not None for image in images])
        if not given.any():
            return _on_cpu(self._nothing(), self._no_odd())
        frames = Frames.of([_NO_FRAME if one is None else check_image(one) for one in images])
        with torch.inference_mode(), self._settings():
            has_frame = torch.from_numpy(given).to(self._device)
            parts, memory = self._stepped(frames.to(self._device), has_frame, self._memory)
            twice = torch.cat([has_frame, has_frame])
            self._memory = _Memory(
                memory.face.where(has_frame, self._memory.face),
                memory.hands.where(twice, self._memory.hands),
            )
            return _on_cpu(parts, self._odd)

    def independent(self, images: Sequence[NDArray[np.uint8]]) -> HolisticRows:
        """Return what is in frames, each as if it were the first of a video.

        Memory of videos in lockstep is neither used nor changed.

        Parameters
        ----------
        images : any number, (height, width, 3) uint8 RGB of any sizes.
        """
        made = []
        for start in range(0, len(images), self.rows):
            some = [check_image(image) for image in images[start : start + self.rows]]
            count = len(some)
            frames = Frames.of(some + [_NO_FRAME] * (self.rows - count))
            with torch.inference_mode(), self._settings():
                has_frame = torch.arange(self.rows, device=self._device) < count
                memory = _Memory.empty(self.rows, self._device)
                parts, _ = self._stepped(frames.to(self._device), has_frame, memory)
                made.append(_on_cpu(parts, self._odd).first(count))
        nothing = _on_cpu(self._nothing(), self._no_odd()).first(0)
        return HolisticRows.joined([nothing, *made])

    def _no_odd(self) -> Tensor:
        return torch.zeros(self.rows, dtype=torch.int32, device=self._device)

    def _nothing(self) -> tuple[_Part, _Part, _Part]:
        face, hands = (_Part.none(self.rows, n, self._device) for n in (FACE_POINTS, HAND_POINTS))
        pose = torch.zeros(self.rows, POSE_POINTS, 4, device=self._device)
        twice = _Part(torch.cat([hands.points] * 2), torch.cat([hands.found] * 2))
        return _Part(pose, face.found), twice, face

    # -- one step ----------------------------------------------------------------------------------

    def _stepped(
        self, frames: Frames, has_frame: Tensor, memory: _Memory
    ) -> tuple[tuple[_Part, _Part, _Part], _Memory]:
        """Return pose, hands and face of each row, and the memory for the next frame."""
        scene = _Scene.of(frames)
        self._odd = self._no_odd()
        pose = self._pose(scene, has_frame)
        hands = self._hands(scene.twice(), pose, memory.hands)
        face = self._face(scene, pose, memory.face)
        return (pose, hands, face), _Memory(face, hands)

    def _pose(self, scene: _Scene, has_frame: Tensor) -> _Part:
        whole = self._whole.expand(self.rows, 5)
        found = self._looked(self._models.pose_detector, scene, whole, has_frame)
        keypoints = without_padding(found.points, found.padding)
        rects = regions.pose_region(keypoints, scene.sizes)
        wanted = has_frame & (found.scores > 0)
        answer = self._looked(self._models.pose, scene, rects, wanted)
        points = projected(without_padding(answer.points, answer.padding), rects)
        return _Part(points, wanted & (answer.scores > self._least_pose))

    def _hands(self, scene: _Scene, pose: _Part, last: _Part) -> _Part:
        fingers = torch.cat([pose.points[:, _LEFT], pose.points[:, _RIGHT]])
        wanted = torch.cat([pose.found, pose.found]) & (fingers[:, 0, 3] > _LEAST_VISIBILITY)
        rects = regions.hand_region_of_pose(fingers, scene.sizes)
        found = self._looked(self._models.hand_recrop, scene, rects, wanted)
        points = projected(without_padding(found.points, found.padding), rects)
        fresh = regions.hand_region_of_recrop(points, scene.sizes)
        tracked = regions.hand_region_of_landmarks(last.points, scene.sizes)
        rects = _followed(last, tracked, fresh, scene, regions.HAND_LIMITS)
        answer = self._looked(self._models.hand, scene, rects, wanted)
        points = projected(without_padding(answer.points, answer.padding), rects)
        return _Part(points, wanted & (answer.scores > _LEAST_SCORE))

    def _face(self, scene: _Scene, pose: _Part, last: _Part) -> _Part:
        rects = regions.face_region_of_pose(pose.points, scene.sizes)
        found = self._looked(self._models.face_detector, scene, rects, pose.found)
        keypoints = projected_keypoints(found.points, found.regions, rects[:, 4], scene.sizes)
        wanted = pose.found & (found.scores > 0)
        fresh = regions.face_region_of_detection(keypoints, scene.sizes)
        tracked = regions.face_region_of_landmarks(last.points, scene.sizes)
        rects = _followed(last, tracked, fresh, scene, regions.FACE_LIMITS)
        answer = self._looked(self._models.face, scene, rects, wanted)
        return _Part(projected(answer.points, rects), wanted & (answer.scores > _LEAST_SCORE))

    def _looked(
        self, model: HolisticModel, scene: _Scene, rects: Tensor, wanted: Tensor
    ) -> _Answer:
        """Return what a model finds in a region of each row's frame."""
        # A region of a row that is not wanted may be anything, even not finite.
        rects = torch.where(wanted[:, None], rects, self._whole)
        pixels, padding = pixel_regions(rects, scene.sizes, model.kind)
        points = rects.new_zeros(len(rects), *model.shape)
        scores = rects.new_zeros(len(rects))
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
        is_odd = wanted & ~(points.flatten(1).isfinite().all(1) & scores.isfinite())
        self._odd.index_add_(0, scene.numbers, is_odd.int())
        return _Answer(points, scores, pixels, padding)

    def _chosen(self, wanted: Tensor) -> Tensor:
        """Return the rows to compute, as many as fill calls of a fixed number of rows."""
        if self._computed == "present":
            chosen = wanted.nonzero()[:, 0]
        else:
            chosen = torch.arange(len(wanted), device=self._device)
        return torch.cat([chosen, chosen[:1].expand(-len(chosen) % self.rows_per_call)])


def _followed(
    last: _Part, tracked: Tensor, fresh: Tensor, scene: _Scene, limits: regions.TrackingLimits
) -> Tensor:
    """Return regions of the last frame's points where they moved little, else those found anew."""
    keep = last.found & regions.may_track(last.points, tracked, fresh, scene.sizes, limits)
    return torch.where(keep[:, None], tracked, fresh)


def _on_cpu(parts: tuple[_Part, _Part, _Part], odd: Tensor) -> HolisticRows:
    pose, hands, face = ((part.points.cpu(), part.found.cpu()) for part in parts)
    rows = len(pose[1])
    left, right = (
        (hands[0][start : start + rows], hands[1][start : start + rows]) for start in (0, rows)
    )
    found = np.stack([one.numpy() for one in (face[1], left[1], right[1], pose[1])], 1)
    face_points, left_points, right_points, pose_points = (
        torch.where(there[:, None, None], points, torch.nan).numpy()
        for points, there in (face, left, right, pose)
    )
    return HolisticRows(
        face_points,
        left_points,
        right_points,
        np.ascontiguousarray(pose_points[..., :3]),
        np.ascontiguousarray(pose_points[..., 3]),
        found,
        odd.cpu().numpy() == 0,
    )
