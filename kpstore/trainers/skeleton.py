"""The hierarchical skeleton transformer, which draws keypoints, and its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kpstore.errors import InvalidError
from kpstore.options import Option
from kpstore.render.raster import INK, PAPER, SkeletonStyle, StyleName, draw_skeletons
from kpstore.render.skeleton import draw_keypoints
from kpstore.schema.layout import N_POINTS, PART_SLICES, PARTS, Edge
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
from kpstore.views.base import Batch, Subset, View
from kpstore.views.skeletons import SkeletonView

_SHRINK = 16
"""By how much the decoder's first picture is smaller than the last."""
_N_REST, _N_FACE, _N_HANDS = 0, 1, 2
"""Regions of a picture in :func:`draw_regions`; where two overlap, the higher number counts."""


@dataclass(frozen=True)
class SkeletonConfig:
    """The size of a :class:`HierarchicalSkeletonTransformer`.

    Parameters
    ----------
    image_size : of the pictures, in pixels; a multiple of 16.
    width : of tokens.
    part_layers, global_layers : numbers of layers of each part's encoder, and of the encoder over
        all parts.
    decoder_layers : number of layers in which places of the picture attend to tokens.
    channels : numbers of channels of the decoder's pictures at 1/8, 1/4 and 1/2 of the full size.
    heads : of attention.
    dropout : share of values in transformers that are dropped during training.
    """

    image_size: Annotated[int, Option("Size of the pictures, a multiple of 16.", "PIXELS")] = 256
    width: int = 128
    part_layers: int = 2
    global_layers: int = 2
    decoder_layers: int = 2
    channels: tuple[int, int, int] = (96, 64, 32)
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        size, channels = self.image_size, self.channels
        rules = [
            width_rule("width", self.width, self.heads),
            (
                size >= 2 * _SHRINK and size % _SHRINK == 0,
                f"image_size={size} is not a multiple of {_SHRINK} from {2 * _SHRINK}",
            ),
            (
                min(self.part_layers, self.global_layers, self.decoder_layers) >= 1,
                "part_layers, global_layers and decoder_layers are 1 or more",
            ),
            (
                len(channels) == 3 and all(n >= 8 and n % 8 == 0 for n in channels),
                f"channels={channels} are not three multiples of 8",
            ),
            dropout_rule(self.dropout),
        ]
        check_all("skeleton model", rules)


class HierarchicalSkeletonTransformer(nn.Module):
    """Draws the skeleton of 143 keypoints.

    A transformer for each part (face 0:68, left hand 68:89, right hand 89:110, pose 110:143) and
    one over all parts encode the points. In the decoder each place of a small picture attends to
    the encoded points; convolutions enlarge it to full size. At a quarter and at half of the size,
    every encoded point is added to the picture at its place, so that the decoder need not learn
    what coordinates mean. A missing part is one learnt token; its points are masked and added
    nowhere.
    """

    def __init__(self, config: SkeletonConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SkeletonConfig()
        self.embedding = PointEmbedding(PART_SLICES.values(), config.width)
        self.encoders = nn.ModuleList(
            PointEncoder(
                config.width, layers=config.part_layers, heads=config.heads, dropout=config.dropout
            )
            for _ in PARTS
        )
        self.part = nn.Parameter(torch.randn(len(PARTS), config.width) * 0.02)
        self.encoder = PointEncoder(
            config.width, layers=config.global_layers, heads=config.heads, dropout=config.dropout
        )
        self.decoder = _Decoder(config)

    def forward(self, keypoints: Tensor, detected: Tensor | None = None) -> Tensor:
        """Return pictures (batch, 1, size, size) in [-1, 1]: 1 is paper, -1 is ink.

        Parameters
        ----------
        keypoints : (batch, 143, 3), x and y as fractions of width and height; NaN where missing.
        detected : (batch, 4) bool, by part, False for parts to mask whatever their values; by
            default no point that is finite is masked.
        """
        check_keypoints(keypoints, N_POINTS)
        of_points = None if detected is None else detected[:, self.embedding.group_of]
        there = points_there(keypoints, of_points)
        points = self.embedding(keypoints, there)
        encoded = [
            encoder(points[:, rows], there[:, rows])
            for encoder, rows in zip(self.encoders, PART_SLICES.values(), strict=True)
        ]
        parts = torch.stack([summary for summary, _ in encoded], dim=1) + self.part
        tokens = torch.cat([parts, *(part for _, part in encoded)], dim=1)
        # Tokens attend to a part even if it is missing, but not to its points.
        attended = functional.pad(there, (len(PARTS), 0), value=True)
        summary, tokens = self.encoder(tokens, attended)
        tokens = torch.cat([summary[:, None], tokens], dim=1)
        picture: Tensor = self.decoder(
            tokens, functional.pad(attended, (1, 0), value=True), keypoints, there
        )
        return picture


class _Decoder(nn.Module):
    """Turns tokens into a picture."""

    def __init__(self, config: SkeletonConfig) -> None:
        super().__init__()
        self.side = config.image_size // _SHRINK
        wide, middle, narrow = config.channels
        self.places = nn.Parameter(torch.randn(self.side**2, config.width) * 0.02)
        self.look = nn.ModuleList(
            TransformerBlock(config.width, config.heads, config.dropout)
            for _ in range(config.decoder_layers)
        )
        self.lay, self.lay_finely = nn.Linear(config.width, middle), nn.Linear(config.width, narrow)
        self.enlarge = nn.Sequential(_twice(config.width, wide), _twice(wide, middle))
        self.join = nn.Sequential(
            _conv(2 * middle, middle), _conv(middle, middle), _twice(middle, narrow)
        )
        self.draw = nn.Sequential(
            _conv(2 * narrow, narrow),
            nn.Conv2d(narrow, 4, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Tanh(),
        )

    def forward(self, tokens: Tensor, attended: Tensor, keypoints: Tensor, there: Tensor) -> Tensor:
        """Return (batch, 1, size, size); the last 143 tokens are the points."""
        places = self.places.expand(len(tokens), -1, -1).to(tokens.dtype)
        for block in self.look:
            places = block(places, attended, tokens)
        small = places.transpose(1, 2).reshape(len(tokens), -1, self.side, self.side)
        points = tokens[:, -N_POINTS:]
        laid = lay_down(self.lay(points), keypoints, there, 4 * self.side)
        half = self.join(torch.cat([self.enlarge(small), laid], dim=1))
        finely = lay_down(self.lay_finely(points), keypoints, there, 8 * self.side)
        picture: Tensor = self.draw(torch.cat([half, finely], dim=1))
        return picture


def lay_down(features: Tensor, keypoints: Tensor, there: Tensor, side: int) -> Tensor:
    """Return pictures in which the features of points lie at their places.

    Each point is spread over its four nearest pixels; points that overlap add up.

    Parameters
    ----------
    features, keypoints, there : (batch, points, channels), (batch, points, 3) as fractions, (batch,
        points) bool.
    side : of the picture.

    Returns
    -------
    Tensor
        (batch, channels, side, side); missing points and those outside add nothing.
    """
    centres = torch.arange(side, device=features.device) + 0.5
    known = torch.where(there[..., None], keypoints[..., :2], -1).clamp(-1, 2) * side
    near = (1 - (known[..., None] - centres).abs()).clamp(min=0)  # (batch, points, 2, side)
    near = torch.where(there[..., None, None], near, 0).to(features.dtype)
    columns = features.transpose(1, 2)[:, :, None] * near[:, :, 0].transpose(1, 2)[:, None]
    rows = near[:, :, 1].transpose(1, 2)[:, None]
    return rows @ columns.transpose(-1, -2)


def _conv(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.GroupNorm(8, n_out), nn.GELU())


def _twice(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, 4 * n_out, 3, padding=1),
        nn.PixelShuffle(2),
        nn.GroupNorm(8, n_out),
        nn.GELU(),
    )


def draw_regions(
    keypoints: NDArray[np.floating], size: int, style: StyleName | SkeletonStyle = "kpstore"
) -> NDArray[np.uint8]:
    """Return the regions of skeleton pictures, (frames, size, size) uint8.

    2 for hands, 1 for the face, 0 for the rest.

    Parameters
    ----------
    keypoints : (frames, 143, 3), NaN where missing.
    size, style : of the pictures; see :func:`kpstore.render.raster.draw_skeletons`.
    """
    regions = np.full((len(keypoints), size, size), _N_REST, dtype=np.uint8)
    for number, parts in ((_N_FACE, ("face",)), (_N_HANDS, ("left_hand", "right_hand"))):
        alone = np.full_like(keypoints, np.nan)
        for part in parts:
            alone[:, PART_SLICES[part]] = keypoints[:, PART_SLICES[part]]
        regions[draw_skeletons(alone, size, style=style) == INK] = number
    return regions


class SkeletonTrainingView(SkeletonView):
    """Skeletons with the regions of their pictures, which the loader's threads draw as well.

    A sample is that of :class:`kpstore.views.skeletons.SkeletonView` with NaN where a point is
    missing, pictures of bytes, and ``"region"`` (1, size, size) uint8; see :func:`draw_regions`.
    The parameters are the same, except that keypoints stay fractions of the picture: the model puts
    them in their places.
    """

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked."""
        if self.normalize is not None:
            raise InvalidError(
                f"normalize={self.normalize!r}: this view does not normalise keypoints; use None"
            )
        found = super().batch(indices)
        return {**found, "region": draw_regions(found["keypoints"], self.size, self.style)[:, None]}


@dataclass(frozen=True)
class SkeletonTraining:
    """Draw the skeleton: mean squared error, in which hands and face count more than the rest.

    Batches hold ``"keypoints"`` (batch, 143, 3) and ``"image"`` (batch, 1, size, size) of either
    kind of pixels, as ``store.skeletons(fill=nan)`` gives them; ``"region"`` is drawn if it is not
    there. The figures are ``mse``, without weights, and ``ink``: intersection over union of the
    pixels that are, and should be, darker than grey.

    Parameters
    ----------
    hands, face, rest : weights of pixels in the regions of drawn hands, of the drawn face, and of
        all others. The loss is the weighted mean; with three equal weights it is the plain mean.
    reach : how many pixels around a line belong to its region; a 64th of the picture by default.
    style : of the pictures; used if there is no ``"region"``.
    edges : pairs of points that drawings join; if empty, those of the default face list.
    """

    on_record: ClassVar[str] = "SkeletonTask"
    """Name in checkpoints, an earlier one of this class."""

    hands: Annotated[
        float, Option("Weight of pixels around drawn hands.", "X", flag="--hands-weight")
    ] = 2.0
    face: Annotated[
        float, Option("Weight of pixels around the drawn face.", "X", flag="--face-weight")
    ] = 1.5
    rest: Annotated[float, Option("Weight of all other pixels.", "X", flag="--rest-weight")] = 1.0
    reach: int | None = None
    style: Annotated[
        StyleName | SkeletonStyle, Option("Style of the pictures.", kind=StyleName)
    ] = "kpstore"
    edges: tuple[Edge, ...] = ()
    figures: ClassVar[Sequence[str]] = ("mse", "ink")

    def __post_init__(self) -> None:
        weights = (self.hands, self.face, self.rest)
        if not all(0 <= weight < math.inf for weight in weights) or self.rest == 0:
            raise InvalidError(
                f"weights hands={self.hands}, face={self.face}, rest={self.rest}: use finite "
                "numbers from 0, rest more than 0"
            )

    def check_view(self, view: View) -> None:
        """Raise :class:`InvalidError` if missing points look like points in the picture's corner.

        In a view that normalises, zeros are what users' scripts make, and are accepted.
        """
        while isinstance(view, Subset):
            view = view.view
        if isinstance(view, SkeletonView) and view.normalize is None and not np.isnan(view.fill):
            raise InvalidError(
                f"missing points are {view.fill:g} in this view, which a model takes for "
                "coordinates; make it with fill=float('nan')"
            )

    def measure(self, model: nn.Module, batch: TensorBatch) -> BatchLoss:
        """Run the model on a batch, whose weight is the number of its samples."""
        target = as_pixels(batch["image"])
        output = model(batch["keypoints"]).float()
        if output.shape != target.shape:
            raise InvalidError(
                f"the batch has pictures of {tuple(target.shape[1:])} and the model draws "
                f"{tuple(output.shape[1:])}; use the same value for size= of the view and "
                "image_size= of the model"
            )
        errors = (output - target).square()
        mse = errors.mean()
        loss = mse
        if not self.hands == self.face == self.rest:
            weights = self.weights(batch)
            loss = (errors * weights).sum() / weights.sum()
        drawn, wanted = output.detach() < 0, target < 0
        ink = (drawn & wanted).sum() / (drawn | wanted).sum().clamp(min=1)
        return BatchLoss(loss, len(target), {"mse": mse.detach(), "ink": ink})

    def weights(self, batch: TensorBatch) -> Tensor:
        """Return the weights of pixels, (batch, 1, size, size) float32."""
        image, region = batch["image"], batch.get("region")
        size = image.shape[-1]
        if region is None:
            drawn = draw_regions(batch["keypoints"].float().cpu().numpy(), size, self.style)
            region = torch.from_numpy(drawn[:, None]).to(image.device)
        reach = round(size / 64) if self.reach is None else self.reach
        wide = functional.max_pool2d(region.float(), 2 * reach + 1, stride=1, padding=reach)
        table = torch.tensor([self.rest, self.face, self.hands], device=image.device)
        return table[wide.long()]

    def draw(self, model: nn.Module, batch: TensorBatch) -> list[Drawing]:
        """Return for each sample its keypoints in colours, its picture, and the model's picture."""
        target, output = as_pixels(batch["image"]), model(batch["keypoints"]).float()
        keypoints = batch["keypoints"].float().cpu().numpy()
        blank = np.full((*target.shape[-2:], 3), 40, dtype=np.uint8)
        edges = self.edges or None
        return [
            Drawing(
                draw_keypoints(blank, points, edges=edges), _as_picture(wanted), _as_picture(found)
            )
            for points, wanted, found in zip(keypoints, target[:, 0], output[:, 0], strict=True)
        ]


def as_pixels(image: Tensor) -> Tensor:
    """Return pictures scaled as the model's, float32 in [-1, 1].

    Bytes are 255 for paper and 0 for ink.
    """
    return image.float() * (2 / PAPER) - 1 if image.dtype == torch.uint8 else image.float()


def _as_picture(image: Tensor) -> NDArray[np.uint8]:
    grey = ((image + 1) * 127.5).clamp(0, 255).byte().cpu().numpy()
    return np.repeat(grey[..., None], 3, axis=2)
