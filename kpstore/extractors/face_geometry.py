"""The five landmarks of a face on a unit sphere, and their angles to those of a frontal face.

``docs/faces.md`` has a picture, and says what is wrong with the formula of users' existing files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError

Formula = Literal["corrected", "json"]
Floats = NDArray[np.float64]

DEAD_ZONE = 0.01
"""``corrected``: heights that differ by no more, in halves of the box's height, are equal."""
JSON_DEAD_ZONE = 0.1
"""``json``: at equal heights, angles up to this number of degrees are 0."""
_JSON_TINY = 1e-8
"""``json``: added to the length of a vector before the division by it."""


@dataclass(frozen=True)
class FacePoints:
    """What a detector found of one face or of many.

    The leading axes of both arrays are equal or broadcast.

    Parameters
    ----------
    landmarks : (..., 5, 2) x and y in pixels, y downwards.
    box : (..., 4) x1, y1, x2, y2 in pixels.
    """

    landmarks: NDArray[np.floating]
    box: NDArray[np.floating]

    def scaled(self) -> Floats:
        """Return coordinates from the middle of the box in halves of its size, (..., 5, 2) float64.

        The middle of the box is 0, its edges are -1 and 1; y downwards. If a box has no width or
        height, the coordinate is not divided and stays in pixels, as in the scripts that made
        users' existing files.
        """
        box = np.asarray(self.box, dtype=np.float64)
        corners = box.reshape(*box.shape[:-1], 2, 2)
        with np.errstate(invalid="ignore", over="ignore"):  # infinite values stay infinite
            middle, half = corners.mean(axis=-2), (corners[..., 1, :] - corners[..., 0, :]) / 2
            offset = np.asarray(self.landmarks, dtype=np.float64) - middle[..., None, :]
            scaled: Floats = offset / np.where(half == 0, 1.0, half)[..., None, :]
        return scaled

    def problem(self) -> str:
        """Return why one of these faces is not usable for angles; empty if all are."""
        box = np.asarray(self.box, dtype=np.float64)
        if not (np.isfinite(box).all() and np.isfinite(self.landmarks).all()):
            return "its box or landmarks are not finite numbers"
        size = box[..., 2:] - box[..., :2]
        if not (size > 0).all():
            width, height = size[~(size > 0).all(axis=-1)].reshape(-1, 2)[0]
            return f"its box is {width:g} x {height:g} pixels"
        return ""


def check_formula(formula: object) -> None:
    """Raise :class:`InvalidError` for an unknown formula."""
    if formula not in get_args(Formula):
        raise InvalidError(f"formula={formula!r} is not one of {', '.join(get_args(Formula))}")


def landmarks_to_3d(face: FacePoints, formula: Formula = "corrected") -> Floats:
    """Return each landmark as a point of a unit sphere in front of the picture.

    With ``x, y`` of :meth:`FacePoints.scaled`: ``r = min(1, hypot(x, y))``, ``theta = acos(1 - r)``
    away from the sphere's foremost point, ``phi = atan2(y, x)`` around it, and then ``(sin theta
    cos phi, sin theta sin phi, cos theta)``. The middle of the box is (0, 0, 1); its edges and all
    points outside are on the rim, where z is 0.

    Parameters
    ----------
    face : one face or many.
    formula : ``"json"`` has ``phi = 0`` where x is exactly 0, which moves points straight above and
        below the middle to its right. It accepts boxes without a size, too; what is not a number
        becomes NaN.

    Returns
    -------
    array
        (..., 5, 3) float64: x to the right, y downwards, z towards the viewer; of length 1.

    Raises
    ------
    InvalidError
        ``"corrected"``: if a number is not finite or a box has no size.
    """
    check_formula(formula)
    if formula == "corrected" and (problem := face.problem()):
        raise InvalidError(f"no usable face: {problem}")
    x, y = np.moveaxis(face.scaled(), -1, 0)
    phi = np.arctan2(y, x)
    if formula == "json":
        phi = np.where(x == 0, 0.0, phi)
    theta = np.arccos(1 - np.minimum(1.0, np.hypot(x, y)))
    return np.stack(
        [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1
    )


def spherical_angles(
    reference: FacePoints, current: FacePoints, formula: Formula = "corrected"
) -> Floats:
    """Return the signed angle of each landmark from that of the reference.

    Its size is the angle between the two points as seen from the centre of the sphere, 0 to 180. It
    is positive if the landmark is higher than the reference's (the head looks up), and negative if
    it is lower. Turns that are only sideways are positive.

    Parameters
    ----------
    reference, current : leading axes broadcast, for one frontal face and many frames.
    formula : ``"corrected"`` compares heights from the middle of the box in halves of its height
        (:meth:`FacePoints.scaled`), so that neither the size of a picture nor the place of the face
        in it matters; within ``DEAD_ZONE`` they are equal, and the angle is positive. ``"json"``
        compares heights in pixels of pictures of any sizes; only identical heights are equal, and
        the angle is then 0 up to ``JSON_DEAD_ZONE`` degrees. As it adds 1e-8 to lengths, no angle
        is less than 0.0115 degrees.

    Returns
    -------
    array
        (..., 5) float64, degrees from -180 to 180; 0 for the reference itself.

    Raises
    ------
    InvalidError
        ``"corrected"``: if a number is not finite or a box has no size.
    """
    before, after = landmarks_to_3d(reference, formula), landmarks_to_3d(current, formula)
    if formula == "json":
        angles = _angles_as_json(before, after)
        lower = (
            np.asarray(current.landmarks)[..., 1]
            - np.asarray(reference.landmarks, dtype=np.float64)[..., 1]
        )
        equal = np.where(angles <= JSON_DEAD_ZONE, 0.0, angles)
        return np.where(lower < 0, angles, np.where(lower > 0, -angles, equal))
    # atan2 of sine and cosine, since the arc cosine alone loses half of the digits near 0.
    sine = np.linalg.norm(np.cross(before, after), axis=-1)
    angles = np.degrees(np.arctan2(sine, (before * after).sum(axis=-1)))
    lower = current.scaled()[..., 1] - reference.scaled()[..., 1]
    signed: Floats = np.where(lower > DEAD_ZONE, -angles, angles)
    return signed


def _angles_as_json(before: Floats, after: Floats) -> Floats:
    """Return the angles of users' existing files, (..., 5) in degrees without a sign."""
    units = [
        points / (np.linalg.norm(points, axis=-1, keepdims=True) + _JSON_TINY)
        for points in (before, after)
    ]
    angles: Floats = np.degrees(np.arccos(np.clip((units[0] * units[1]).sum(axis=-1), -1.0, 1.0)))
    return angles


def mean_angle(angles: Floats) -> Floats:
    """Return the mean of the five angles, (...) float64 in degrees; opposite signs cancel out."""
    mean: Floats = np.mean(angles, axis=-1)
    return mean
