"""How fast skeletons are drawn, beside OpenCV.

``python -m benchmarks.bench_render [--store signs.kps] [--frames 256] [--size 256] [--runs 9]``

Skeletons of a store's first frames are drawn in both styles. Without ``--store`` the points of each
part are random, and the lines between them far longer than those of people.

- *kpstore*: :func:`kpstore.render.raster.draw_skeletons`, all frames in one call.
- *OpenCV, a call each*: ``cv2.line`` and ``cv2.circle``, as scripts call them.
- *OpenCV, polylines*: one ``cv2.polylines`` for all lines of a width, and ``cv2.circle``.

All run in one process, in turn; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import kpstore
from benchmarks import record
from kpstore.render.raster import INK, PAPER, SkeletonStyle, as_style, draw_skeletons
from kpstore.schema.layout import N_POINTS, PART_SLICES

STYLES = ("kpstore", "phoenix")


def random_keypoints(n_frames: int) -> NDArray[np.float32]:
    """Return keypoints, (frames, 143, 3), of which each part is spread about its usual place."""
    rng = np.random.default_rng(0)
    keypoints = np.zeros((n_frames, N_POINTS, 3), dtype=np.float32)
    for part, centre, spread in (
        ("face", (0.5, 0.3), 0.04),
        ("pose", (0.5, 0.5), 0.1),
        ("left_hand", (0.65, 0.6), 0.03),
        ("right_hand", (0.35, 0.6), 0.03),
    ):
        points = keypoints[:, PART_SLICES[part], :2]
        points[...] = centre + spread * rng.standard_normal(points.shape, dtype=np.float32)
    return keypoints


def stored_keypoints(location: str, n_frames: int) -> NDArray[np.float32]:
    """Return the first frames of a store in which all parts were detected, (frames, 143, 3)."""
    keypoints = np.asarray(kpstore.open(location)["keypoints"][:])
    return keypoints[np.isfinite(keypoints).all(axis=(1, 2))][:n_frames]


def _pixels(keypoints: NDArray[np.float32], size: int) -> NDArray[np.int32]:
    return (keypoints[..., :2] * size).astype(np.int32)


def by_calls(keypoints: NDArray[np.float32], size: int, style: SkeletonStyle) -> None:
    """Draw as scripts do."""
    for points in _pixels(keypoints, size).tolist():
        picture = np.full((size, size), PAPER, dtype=np.uint8)
        for (a, b), width in zip(style.edges, style.widths, strict=True):
            cv2.line(picture, points[a], points[b], INK, width)
        for point, radius in zip(points, style.radii, strict=True):
            cv2.circle(picture, point, radius, INK, -1)


def by_polylines(keypoints: NDArray[np.float32], size: int, style: SkeletonStyle) -> None:
    """Draw with as few calls of OpenCV as there are."""
    edges, widths = np.array(style.edges), np.array(style.widths)
    by_width = [(width, edges[widths == width]) for width in sorted(set(style.widths))]
    for points in _pixels(keypoints, size):
        picture = np.full((size, size), PAPER, dtype=np.uint8)
        for width, pairs in by_width:
            cv2.polylines(picture, list(points[pairs]), False, INK, width)
        for point, radius in zip(points.tolist(), style.radii, strict=True):
            cv2.circle(picture, point, radius, INK, -1)


def run(
    *, store: str | None = None, frames: int = 256, size: int = 256, runs: int = 9
) -> dict[str, Any]:
    """Measure both styles."""
    cv2.setNumThreads(1)
    keypoints = random_keypoints(frames) if store is None else stored_keypoints(store, frames)
    found: dict[str, Any] = {}
    for name in STYLES:
        style = as_style(name, size)
        ways: dict[str, Callable[[], object]] = {
            "kpstore": lambda style=style: draw_skeletons(keypoints, size, style=style),
            "OpenCV, a call each": lambda style=style: by_calls(keypoints, size, style),
            "OpenCV, polylines": lambda style=style: by_polylines(keypoints, size, style),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(runs):
            for way, draw in ways.items():
                start = time.perf_counter()
                draw()
                seconds[way].append(time.perf_counter() - start)
        ours = seconds["kpstore"]
        found[name] = {
            way: {
                "us_per_frame": round(1e6 * statistics.median(times) / len(keypoints), 1),
                "times_kpstore": round(
                    statistics.median(a / b for a, b in zip(times, ours, strict=True)), 2
                ),
            }
            for way, times in seconds.items()
        }
    return found


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table for each style."""
    heads = ("", "µs a frame", "times kpstore's")
    return {
        f"style {style}": [heads, *((way, *figures.values()) for way, figures in ways.items())]
        for style, ways in found.items()
    }


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument("--store", help="with keypoints in which frames show whole people")
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    found = run(store=args.store, frames=args.frames, size=args.size, runs=args.runs)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
