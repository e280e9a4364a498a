"""Draws ``faces.png`` of ``faces.md``: ``python docs/faces_picture.py``, with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from kpstore.extractors.face_geometry import FacePoints, landmarks_to_3d, spherical_angles
from kpstore.schema.face_features import LANDMARKS

mpl.use("Agg")
from matplotlib import pyplot as plt

BOX = np.array([-1.0, -1.0, 1.0, 1.0])
FRONTAL = FacePoints(
    np.array([(-0.4, -0.3), (0.4, -0.3), (0.0, 0.1), (-0.3, 0.5), (0.3, 0.5)]), BOX
)
FRAME = FacePoints(
    np.array([(-0.2, -0.6), (0.55, -0.55), (0.2, -0.15), (-0.2, 0.7), (0.45, 0.75)]), BOX
)
GREY, UP, DOWN = "#777777", "#0a6ebd", "#c0392b"
VIEW = np.radians((-28.0, 18.0))
"""How the sphere is turned for the picture: around the upright axis, then around the level one."""


def seen(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3) to (..., 3) as the turned sphere shows them: right, down, towards the viewer."""
    (a, b), (x, y, z) = VIEW, np.moveaxis(points, -1, 0)
    x, z = np.cos(a) * x + np.sin(a) * z, -np.sin(a) * x + np.cos(a) * z
    return np.stack([x, np.cos(b) * y + np.sin(b) * z, -np.sin(b) * y + np.cos(b) * z], axis=-1)


def arc(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """(40, 3): the shortest way on the sphere."""
    line = before + np.linspace(0, 1, 40)[:, None] * (after - before)
    points: NDArray[np.float64] = line / np.linalg.norm(line, axis=1, keepdims=True)
    return points


def draw_picture(axes: Any, colours: list[str]) -> None:
    """Draw the picture: box, the frontal face's landmarks as circles, the frame's as dots."""
    axes.add_patch(plt.Rectangle((-1, -1), 2, 2, fill=False, color="black"))
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY, linestyle=":"))
    axes.plot(*FRONTAL.landmarks.T, "o", markerfacecolor="none", color=GREY)
    for name, before, after, colour in zip(
        LANDMARKS, FRONTAL.landmarks, FRAME.landmarks, colours, strict=True
    ):
        axes.plot(*after, "o", color=colour)
        axes.annotate("", after, before, arrowprops={"arrowstyle": "->", "color": colour})
        below = after[1] > before[1]  # on the far side of the arrow
        axes.text(
            after[0],
            after[1] + (0.14 if below else -0.08),
            name,
            ha="center",
            fontsize=7,
            color=colour,
        )
    axes.set_title(
        "in the picture: x, y from the box's middle,\n"
        "in halves of its width and height; y downwards",
        fontsize=8,
    )


def draw_sphere(axes: Any, colours: list[str], angles: NDArray[np.float64]) -> None:
    """Draw the sphere, seen from its left and from above, with each landmark's arc and angle."""
    turn = np.linspace(0, 2 * np.pi, 200)
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="black"))
    around, zero = np.stack([np.cos(turn), np.sin(turn)]), np.zeros_like(turn)
    for ring in ((*around, zero), (around[0], zero, around[1]), (zero, around[0], around[1])):
        points = seen(np.stack(ring, axis=-1))
        axes.plot(
            *np.where(points[:, 2:] > 0, points, np.nan)[:, :2].T,
            color=GREY,
            linewidth=0.7,
            linestyle=":",
        )
    before, after = landmarks_to_3d(FRONTAL), landmarks_to_3d(FRAME)
    for start, end, colour, angle in zip(before, after, colours, angles, strict=True):
        axes.plot(*seen(arc(start, end))[:, :2].T, color=colour)
        axes.plot(*seen(start)[:2], "o", markerfacecolor="white", color=GREY)
        axes.plot(*seen(end)[:2], "o", color=colour)
        axes.text(
            seen(end)[0] + 0.06,
            seen(end)[1],
            f"{angle:+.0f}°",
            fontsize=9,
            color=colour,
            va="center",
        )
    front = seen(np.array([0.0, 0.0, 1.0]))
    axes.plot(*front[:2], "+", color="black")
    axes.set_title(
        "on the unit sphere: angle of each arc;\n"
        "+ higher up than in the frontal face, − lower down",
        fontsize=8,
    )


def main() -> None:
    """Write the picture beside this file."""
    angles = spherical_angles(FRONTAL, FRAME)
    colours = [UP if angle > 0 else DOWN for angle in angles]
    figure, both = plt.subplots(1, 2, figsize=(7.2, 3.9), dpi=110, layout="constrained")
    draw_picture(both[0], colours)
    draw_sphere(both[1], colours, angles)
    for axes in both:
        axes.set(xlim=(-1.15, 1.15), ylim=(1.15, -1.15), aspect="equal")
        axes.axis("off")
    figure.savefig(Path(__file__).with_name("faces.png"), bbox_inches="tight")


if __name__ == "__main__":
    main()
