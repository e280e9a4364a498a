"""Names of the npz files and of the arrays in them."""

from __future__ import annotations

from kpstore.interop.splits import UNSPLIT

KEYPOINTS = "keypoints"
PATHS, IDS = "image_paths", "video_ids"


def npz_name(split: str, feature: str) -> str:
    """Return the name of the file with a split's rows."""
    return f"{split or UNSPLIT}_{feature}.npz"


def stats_name(split: str, feature: str) -> str:
    """Return the name of the file with a split's statistics."""
    name = split or UNSPLIT
    return f"{name}_stats.json" if feature == KEYPOINTS else f"{name}_{feature}_stats.json"
