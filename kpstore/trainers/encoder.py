"""Layers of both models: points as tokens, and attention that masks missing points."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from kpstore.errors import InvalidError

_OCTAVES = 8
"""Frequencies of the sines and cosines that encode a coordinate; the finest resolves 1/256."""


def points_there(keypoints: Tensor, detected: Tensor | None = None) -> Tensor:
    """Return which points are there, (batch, points) bool.

    Parameters
    ----------
    keypoints : (batch, points, 3), NaN where missing; a point is missing if any of its coordinates
        is not finite.
    detected : (batch, points) bool, False for points to mask whatever their values.
    """
    there = torch.isfinite(keypoints).all(dim=-1)
    return there if detected is None else there & detected


def check_keypoints(keypoints: Tensor, n_points: int) -> None:
    """Raise :class:`InvalidError` unless keypoints are (batch, n_points, 3)."""
    if keypoints.shape[1:] != (n_points, 3):
        raise InvalidError(
            f"keypoints of shape (batch, {n_points}, 3) are needed, found {tuple(keypoints.shape)}"
        )


class PointEmbedding(nn.Module):
    """Each point as a token: its place, its number and its group (part, region).

    Parameters
    ----------
    groups : the points of each group, one group after another.
    width : of a token.

    Attributes
    ----------
    group_of : (points,) int64, the number of each point's group.
    """

    group_of: Tensor
    frequencies: Tensor

    def __init__(self, groups: Iterable[slice], width: int) -> None:
        super().__init__()
        sizes = [points.stop - points.start for points in groups]
        group_of = torch.tensor([group for group, size in enumerate(sizes) for _ in range(size)])
        self.register_buffer("group_of", group_of, persistent=False)
        self.register_buffer(
            "frequencies", math.pi * 2.0 ** torch.arange(_OCTAVES), persistent=False
        )
        self.place = nn.Linear(3 * (1 + 2 * _OCTAVES), width)
        self.point = nn.Parameter(torch.randn(len(group_of), width) * 0.02)
        self.group = nn.Parameter(torch.randn(len(sizes), width) * 0.02)
        self.missing = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, keypoints: Tensor, there: Tensor) -> Tensor:
        """Return tokens (batch, points, width).

        The token of a missing point tells that it is missing, and which point it is.

        Parameters
        ----------
        keypoints : (batch, points, 3).
        there : (batch, points) bool; the values of other points, such as NaN, have no effect.
        """
        known = torch.where(there[..., None], keypoints, 0)
        waves = (known[..., None] * self.frequencies).flatten(-2)
        place = self.place(torch.cat([known, waves.sin(), waves.cos()], dim=-1))
        return (
            torch.where(there[..., None], place, self.missing)
            + self.point
            + self.group[self.group_of]
        )


class Attention(nn.Module):
    """Attention with several heads, from queries to tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor, there: Tensor | None = None) -> Tensor:
        """Return (batch, queries, width).

        Parameters
        ----------
        queries, tokens : (batch, queries, width), (batch, tokens, width).
        there : (batch, tokens) bool, at least one True in each row; other tokens get no weight.
        """
        query = self._split(self.query(queries))
        key, value = (self._split(part) for part in self.key_value(tokens).chunk(2, dim=-1))
        mask = None if there is None else there[:, None, None, :]
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.out(found.transpose(1, 2).flatten(-2))
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:-1], self.heads, -1).transpose(1, 2)


class TransformerBlock(nn.Module):
    """One layer of a transformer: attention, then two dense layers, each half after a norm.

    Parameters
    ----------
    width, heads : of tokens; of attention.
    dropout : share of each half's output that is dropped while training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before_attention, self.before_dense = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, there: Tensor | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        """Return (batch, queries, width).

        Queries attend to each other, or to ``tokens``, where ``there``.
        """
        normal = self.before_attention(queries)
        found = self.attention(normal, normal if tokens is None else tokens, there)
        queries = queries + self.dropout(found)
        out: Tensor = queries + self.dropout(self.dense(self.before_dense(queries)))
        return out


class PointEncoder(nn.Module):
    """A transformer over the points of a group and a token that summarises them."""

    def __init__(self, width: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.summary = nn.Parameter(torch.randn(width) * 0.02)
        self.missing = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout) for _ in range(layers))
        self.normal = nn.LayerNorm(width)

    def forward(
        self, tokens: Tensor, there: Tensor, read: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a summary (batch, width) and tokens (batch, points, width).

        The summary is a learnt vector if all points are missing.

        Parameters
        ----------
        tokens : (batch, points, width).
        there : (batch, points) bool; no token attends to the other points.
        read : (batch, width), added to the learnt vector from which the summary starts.
        """
        first = self.summary.expand(len(tokens), 1, -1)
        first = first if read is None else first + read[:, None]
        tokens = torch.cat([first.to(tokens.dtype), tokens], dim=1)
        # The summary is never masked: attention over no token at all would be NaN.
        attended = functional.pad(there, (1, 0), value=True)
        for block in self.blocks:
            tokens = block(tokens, attended)
        tokens = self.normal(tokens)
        return torch.where(there.any(dim=1)[:, None], tokens[:, 0], self.missing), tokens[:, 1:]


def width_rule(name: str, width: int, heads: int) -> tuple[bool, str]:
    """Return whether heads divide a width, and the message if they do not."""
    divides = width >= 1 and heads >= 1 and width % heads == 0
    return divides, f"{name}={width} is not a multiple of heads={heads}"


def dropout_rule(dropout: float) -> tuple[bool, str]:
    """Return whether a share can be dropped, and the message if it cannot."""
    return 0 <= dropout < 1, f"dropout={dropout} is not in [0, 1)"
