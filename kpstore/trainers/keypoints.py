"""The hierarchical keypoint transformer, which encodes faces, and its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kpstore.options import Option
from kpstore.render.skeleton import draw_keypoints
from kpstore.schema.layout import FACE_REGIONS, N_FACE, N_POINTS, Edge, skeleton_edges
from kpstore.trainers.encoder import (
    PointEmbedding,
    PointEncoder,
    TransformerBlock,
    check_keypoints,
    dropout_rule,
    points_there,
    width_rule,
)
from kpstore.trainers.settings import check_all
from kpstore.trainers.training import BatchLoss, Drawing, TensorBatch

_DRAWN = 160
_SMALLEST = 1e-3
"""Minimum size of a face."""
_WIDE = 4
"""Deviations from the centre in one unit of a point's embedding; few points lie further out."""


@dataclass(frozen=True)
class KeypointConfig:
    """The size of a :class:`HierarchicalKeypointTransformer`.

    Parameters
    ----------
    d_global, d_region : width of tokens of the whole face, and of points and regions.
    region_layers, global_layers : numbers of layers of each region's encoder, and of the
        interaction between regions.
    heads : of attention.
    dropout : share of values that are dropped during training.
    """

    d_global: Annotated[int, Option("Width of tokens of the whole face.", "N")] = 256
    d_region: Annotated[int, Option("Width of tokens of points and regions.", "N")] = 128
    region_layers: int = 2
    global_layers: int = 2
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        rules = [
            width_rule("d_global", self.d_global, self.heads),
            width_rule("d_region", self.d_region, self.heads),
            dropout_rule(self.dropout),
            (
                min(self.region_layers, self.global_layers) >= 1,
                "region_layers and global_layers are 1 or more",
            ),
        ]
        check_all("keypoint model", rules)


class HierarchicalKeypointTransformer(nn.Module):
    """Encodes 68 face points by region, relates the regions, and decodes all 68 points.

    The eight regions are those of :data:`kpstore.schema.layout.FACE_REGIONS`: jaw 0:17, right brow
    17:22, left brow 22:27, nose 27:36, right eye 36:42, left eye 42:48, outer mouth 48:60, inner
    mouth 60:68. Each has its own encoder. The summaries of the regions and a token of the whole
    face meet in the interaction layers; from both, each region's decoder gives its points. Missing
    points are masked, and predicted like all others.

    Points are encoded and decoded in the face's own frame, see :func:`face_frame`: its place and
    size go into the token of the face and are applied again at the end, so that the layers learn
    shapes. A region's summary starts from a linear map of its points: attention alone starts as
    their mean, which does not tell where the points are.
    """

    def __init__(self, config: KeypointConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or KeypointConfig()
        regions = list(FACE_REGIONS.values())
        self.embedding = PointEmbedding(regions, config.d_region)
        self.encoders = nn.ModuleList(
            PointEncoder(
                config.d_region,
                layers=config.region_layers,
                heads=config.heads,
                dropout=config.dropout,
            )
            for _ in regions
        )
        self.read = nn.ModuleList(
            nn.Linear(4 * (rows.stop - rows.start), config.d_region) for rows in regions
        )
        self.widen = nn.Linear(config.d_region, config.d_global)
        self.place = nn.Linear(6, config.d_global)
        self.region = nn.Parameter(torch.randn(len(regions), config.d_global) * 0.02)
        self.face = nn.Parameter(torch.randn(config.d_global) * 0.02)
        self.interaction = nn.ModuleList(
            TransformerBlock(config.d_global, config.heads, config.dropout)
            for _ in range(config.global_layers)
        )
        self.normal = nn.LayerNorm(config.d_global)
        self.decoders = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2 * config.d_global, config.d_global),
                nn.GELU(),
                nn.Linear(config.d_global, 3 * (rows.stop - rows.start)),
            )
            for rows in regions
        )

    def encode(self, keypoints: Tensor, detected: Tensor | None = None) -> Tensor:
        """Return tokens (batch, 9, d_global): the face, then its eight regions.

        The parameters are those of :meth:`forward`.
        """
        there = points_there(keypoints, detected)
        return self._encode(keypoints, there, *face_frame(keypoints, there))

    def _encode(self, keypoints: Tensor, there: Tensor, centre: Tensor, size: Tensor) -> Tensor:
        # NaN must not reach the division: the gradient of the size, and with it that of every
        # point, would be NaN.
        known = torch.where(there[..., None], keypoints, centre)
        shape = (known - centre) / size
        points = self.embedding(shape / _WIDE, there)
        read_in = torch.cat([shape, there[..., None]], dim=-1)
        summaries = [
            encoder(points[:, rows], there[:, rows], read(read_in[:, rows].flatten(1)))[0]
            for encoder, read, rows in zip(
                self.encoders, self.read, FACE_REGIONS.values(), strict=True
            )
        ]
        regions = self.widen(torch.stack(summaries, dim=1)) + self.region
        face = self.face + self.place(torch.cat([centre, size], dim=-1))
        tokens = torch.cat([face.to(regions.dtype), regions], dim=1)
        for block in self.interaction:
            tokens = block(tokens)
        normal: Tensor = self.normal(tokens)
        return normal

    def forward(self, keypoints: Tensor, detected: Tensor | None = None) -> Tensor:
        """Return points (batch, 68, 3), all of them finite.

        Parameters
        ----------
        keypoints : (batch, 68, 3), normalised as by ``store.face_keypoints()``; NaN where missing.
        detected : (batch, 68) bool, False for points to mask as well.
        """
        check_keypoints(keypoints, N_FACE)
        there = points_there(keypoints, detected)
        centre, size = face_frame(keypoints, there)
        tokens = self._encode(keypoints, there, centre, size)
        face, regions = tokens[:, 0], tokens[:, 1:]
        decoded = [
            decoder(torch.cat([face, regions[:, number]], dim=-1)).reshape(len(face), -1, 3)
            for number, decoder in enumerate(self.decoders)
        ]
        return torch.cat(decoded, dim=1).float() * size + centre


def face_frame(keypoints: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return centre and size of faces, (batch, 1, 3) each: mean and deviation of their points.

    Faces without points have the middle of [0, 1]. A size is at least 0.001, since it divides.

    Parameters
    ----------
    keypoints, there : (batch, points, 3); (batch, points) bool.
    """
    count = there.sum(dim=1).clamp(min=1)[:, None, None]
    centre = torch.where(there[..., None], keypoints, 0).sum(dim=1, keepdim=True) / count
    apart = torch.where(there[..., None], keypoints - centre, 0)
    spread = apart.square().sum(dim=1, keepdim=True) / count
    size = spread.clamp(min=_SMALLEST**2).sqrt()
    nobody = ~there.any(dim=1)[:, None, None]
    return torch.where(nobody, 0.5, centre), torch.where(nobody, 0.25, size)


@dataclass(frozen=True)
class KeypointTraining:
    """Reconstruct the points of the input: mean squared error over the points that are there.

    Batches hold ``"keypoints"`` (batch, 68, 3), as ``store.face_keypoints()`` gives them. The
    figure ``point_error`` is the mean distance in x and y between points and their targets, over
    the diagonal of the face's box.

    Parameters
    ----------
    edges : pairs of points that drawings join; if empty, those of the default face list.
    """

    on_record: ClassVar[str] = "KeypointTask"
    """Name in checkpoints, an earlier one of this class."""

    edges: tuple[Edge, ...] = ()
    figures: ClassVar[Sequence[str]] = ("point_error",)

    def measure(self, model: nn.Module, batch: TensorBatch) -> BatchLoss:
        """Run the model on a batch, whose weight is the number of points that are there."""
        target = batch["keypoints"]
        there = points_there(target)
        output = model(target).float()
        count = there.sum()
        error = torch.where(there[..., None], output - torch.where(there[..., None], target, 0), 0)
        loss = error.square().sum() / (3 * count.clamp(min=1))
        return BatchLoss(loss, count, {"point_error": _point_error(error.detach(), target, there)})

    def draw(self, model: nn.Module, batch: TensorBatch) -> list[Drawing]:
        """Return the points of each sample, target and output, in the box of the target."""
        target = batch["keypoints"].float()
        output = model(batch["keypoints"]).float()
        pairs = zip(target.cpu().numpy(), output.cpu().numpy(), strict=True)
        return [self.drawing(*pair) for pair in pairs]

    def drawing(self, target: NDArray[np.float32], output: NDArray[np.float32]) -> Drawing:
        """Return pictures of a face's points, (68, 3) each."""
        edges = self.edges or tuple(edge for edge in skeleton_edges() if edge[0] < N_FACE)
        low, size = _box(target)
        before, after = (_draw_face((points - low) / size, edges) for points in (target, output))
        return Drawing(before, before, after)


def _point_error(error: Tensor, target: Tensor, there: Tensor) -> Tensor:
    xy = target[..., :2]
    low = torch.where(there[..., None], xy, torch.inf).amin(dim=1)
    high = torch.where(there[..., None], xy, -torch.inf).amax(dim=1)
    size = torch.where(there.any(dim=1), (high - low).norm(dim=-1), 1).clamp(min=1e-6)
    mean: Tensor = (error[..., :2].norm(dim=-1) / size[:, None]).sum() / there.sum().clamp(min=1)
    return mean


def _box(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Return the offset (3,) and the divisor that make a face fill most of a picture."""
    if not np.isfinite(points).any():
        return np.zeros(3, dtype=np.float32), 1.0
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    size = max(float((high - low)[:2].max()) * 1.2, 1e-6)
    return (low + high) / 2 - size / 2, size


def _draw_face(points: NDArray[np.float32], edges: Sequence[Edge]) -> NDArray[np.uint8]:
    all_points = np.full((N_POINTS, 3), np.nan, dtype=np.float32)
    all_points[:N_FACE] = points
    return draw_keypoints(np.full((_DRAWN, _DRAWN, 3), 40, dtype=np.uint8), all_points, edges=edges)
