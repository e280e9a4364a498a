"""The feature for lip reading, which imported files and extracted stores share."""

from __future__ import annotations

from kpstore.schema.feature import FeatureSpec

LIP_FEATURE = "lip_resnet18"
LIP_LENGTH = 512
"""Values per frame."""
CROP_SIDE = 96
"""Width and height of a mouth crop in data sets, in pixels."""
CROPS_KEY = "data"
"""Name of mouth crops in their npz files."""
EMBEDDING_ENDING = "_embedding.npz"
"""Ending of files with embeddings: ``x_embedding.npz`` is beside the crops ``x.npz``."""


def lip_spec(dtype: str = "float32") -> FeatureSpec:
    """Return the feature: (512,) a frame, without a unit, NaN where a frame failed."""
    description = "ResNet18 video encoder's output for mouth crops"
    return FeatureSpec(LIP_FEATURE, (LIP_LENGTH,), ("feature",), dtype, description=description)
