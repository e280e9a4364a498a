"""What both models are built from: points as tokens, and attention in which missing points take no part."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_OCTAVES = 8
"""Sines and cosines of so many frequencies stand for a coordinate; the finest tells 1/256 apart."""


def points_there(keypoints: Tensor, detected: Tensor | None = None) -> Tensor:
    """Return which points are there, (batch, points) bool.

    Parameters
    ----------
    keypoints : (batch, points, 3), NaN where missing; a point with any coordinate that is not
        finite is missing.
    detected : (batch, points) bool, False for points to leave out whatever stands in their place.
    """
    there = torch.isfinite(keypoints).all(dim=-1)
    return there if detected is None else there & detected


class PointEmbedding(nn.Module):
    """Each point as a token: where it is, which one it is, and which group (part, region) it belongs to.

    Parameters
    ----------
    group_of : for each point, the number of its group.
    width : of a token.
    """

    group_of: Tensor
    frequencies: Tensor

    def __init__(self, group_of: list[int], width: int) -> None:
        super().__init__()
        self.register_buffer("group_of", torch.tensor(group_of), persistent=False)
        self.register_buffer(
            "frequencies", math.pi * 2.0 ** torch.arange(_OCTAVES), persistent=False
        )
        self.place = nn.Linear(3 * (1 + 2 * _OCTAVES), width)
        self.point = nn.Parameter(torch.randn(len(group_of), width) * 0.02)
        self.group = nn.Parameter(torch.randn(max(group_of) + 1, width) * 0.02)
        self.missing = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, keypoints: Tensor, there: Tensor) -> Tensor:
        """Return tokens (batch, points, width).

        A missing point's says no more than that and which point it is.

        Parameters
        ----------
        keypoints : (batch, points, 3).
        there : (batch, points) bool; what stands in the other places is not looked at, NaN least of
            all.
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
    """Attention of several heads, from queries to tokens."""

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
        there : (batch, tokens) bool, at least one True in each row; the others get no weight at
            all.
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
    """One layer of a transformer, normalised before each half: attention, then two dense layers.

    Parameters
    ----------
    width, heads : of tokens; of attention.
    dropout : share of each half's output that is left out while training.
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

        They attend to each other, or to ``tokens``, where ``there``.
        """
        normal = self.before_attention(queries)
        found = self.attention(normal, normal if tokens is None else tokens, there)
        queries = queries + self.dropout(found)
        out: Tensor = queries + self.dropout(self.dense(self.before_dense(queries)))
        return out


class PointEncoder(nn.Module):
    """A transformer over the points of one group, with one token more that sums them up."""

    def __init__(self, width: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.summary = nn.Parameter(torch.randn(width) * 0.02)
        self.missing = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout) for _ in range(layers))
        self.normal = nn.LayerNorm(width)

    def forward(
        self, tokens: Tensor, there: Tensor, read: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the summary (batch, width), a learnt one where no point is there, and tokens (batch, points, width).

        Parameters
        ----------
        tokens : (batch, points, width).
        there : (batch, points) bool; points that are not are attended to by none.
        read : (batch, width), what the summary begins with beside its own learnt vector.
        """
        first = self.summary.expand(len(tokens), 1, -1)
        first = first if read is None else first + read[:, None]
        tokens = torch.cat([first.to(tokens.dtype), tokens], dim=1)
        # The summary itself is always there, so that no row of attention is empty: an empty one
        # would be NaN.
        attended = functional.pad(there, (1, 0), value=True)
        for block in self.blocks:
            tokens = block(tokens, attended)
        tokens = self.normal(tokens)
        return torch.where(there.any(dim=1)[:, None], tokens[:, 0], self.missing), tokens[:, 1:]


def check_width(problems: list[str], name: str, width: int, heads: int) -> None:
    """Add a line to ``problems`` if heads do not divide a width."""
    if width < 1 or heads < 1 or width % heads:
        problems.append(f"{name}={width} is not a multiple of heads={heads}")
