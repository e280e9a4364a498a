"""The layout of 143 keypoints: parts, names, skeleton, and the mesh points of the face."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from kpstore.errors import InvalidError, one_line
from kpstore.schema.array import ArraySpec
from kpstore.schema.feature import FeatureSpec

Edge = tuple[int, int]
MeshPoint = int | tuple[int, ...]
"""One MediaPipe face mesh point by its index, or several whose mean is taken."""

PART_SLICES = MappingProxyType(
    {
        "face": slice(0, 68),
        "left_hand": slice(68, 89),
        "right_hand": slice(89, 110),
        "pose": slice(110, 143),
    }
)
"""Rows of each part. Left and right are the subject's own."""
PARTS: tuple[str, ...] = tuple(PART_SLICES)
N_POINTS = 143
N_FACE = 68
N_POSE = 33
N_MESH = 478
"""Points of MediaPipe's face mesh: 468, and 10 of the irises."""

FACE_REGIONS = MappingProxyType(
    {
        "jaw": slice(0, 17),
        "right_brow": slice(17, 22),
        "left_brow": slice(22, 27),
        "nose": slice(27, 36),
        "right_eye": slice(36, 42),
        "left_eye": slice(42, 48),
        "mouth_outer": slice(48, 60),
        "mouth_inner": slice(60, 68),
    }
)
"""The eight groups of face points, in iBUG's order; their points depend on the face list."""

HAND_POINT_NAMES: tuple[str, ...] = (
    "wrist",
    *(f"thumb_{joint}" for joint in ("cmc", "mcp", "ip", "tip")),
    *(
        f"{finger}_finger_{j}"
        for finger in ("index", "middle", "ring")
        for j in ("mcp", "pip", "dip", "tip")
    ),
    *(f"pinky_{joint}" for joint in ("mcp", "pip", "dip", "tip")),
)
_FACE_NAMES = tuple(f"face_{number}" for number in range(N_FACE))
_POSE_HEAD = (
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer "
    "left_ear right_ear mouth_left mouth_right"
)
_POSE_BODY = "shoulder elbow wrist pinky index thumb hip knee ankle heel foot_index"
POSE_POINT_NAMES: tuple[str, ...] = (
    *_POSE_HEAD.split(),
    *(f"{side}_{joint}" for joint in _POSE_BODY.split() for side in ("left", "right")),
)
POINT_NAMES: tuple[str, ...] = (
    *_FACE_NAMES,
    *(f"left_hand_{name}" for name in HAND_POINT_NAMES),
    *(f"right_hand_{name}" for name in HAND_POINT_NAMES),
    *(f"pose_{name}" for name in POSE_POINT_NAMES),
)
"""Names of all 143 points, each once."""


def _chain(*points: int) -> tuple[Edge, ...]:
    return tuple(pairwise(points))


def _ring(points: slice) -> tuple[Edge, ...]:
    return (*_chain(*range(points.start, points.stop)), (points.stop - 1, points.start))


# MediaPipe's own connections (hands_connections.py, pose_connections.py of 0.10.14), within a part.
_HAND_EDGES: tuple[Edge, ...] = (
    *_chain(0, 1, 2, 3, 4),
    *_chain(0, 5, 6, 7, 8),
    *_chain(9, 10, 11, 12),
    *_chain(13, 14, 15, 16),
    *_chain(0, 17, 18, 19, 20),
    *_chain(5, 9, 13, 17),
)
_POSE_EDGES: tuple[Edge, ...] = (
    *_chain(8, 6, 5, 4, 0, 1, 2, 3, 7),
    *_chain(9, 10),
    *_chain(15, 13, 11, 12, 14, 16),
    *_chain(15, 17, 19, 15, 21),
    *_chain(16, 18, 20, 16, 22),
    *_chain(11, 23, 24, 12),
    *_chain(23, 25, 27, 29, 31, 27),
    *_chain(24, 26, 28, 30, 32, 28),
)
_NOSE_CHAIN = (27, 28, 29, 30, 33)
_NOSTRIL_CHAIN = (31, 32, 33, 34, 35)
# The users' list names its nose points out of order: this is the order from the bridge down, and
# then to the wing.
_PHOENIX_NOSE_CHAIN = (32, 30, 31, 28, 27, 35, 29, 34, 33)


@dataclass(frozen=True)
class FaceList:
    """Which points of MediaPipe's face mesh make the 68 face points, in order.

    Parameters
    ----------
    name : name of the list, which its points and their :attr:`sha256` identify.
    points : 68 entries, each a mesh index in 0..477 or several indices whose mean is taken.
    source : origin of the list, for readers.

    Raises
    ------
    InvalidError
        If there are not 68 entries, or an entry is not a mesh point; the message lists the first
        such entries.
    """

    name: str
    points: tuple[MeshPoint, ...]
    source: str = ""

    def __post_init__(self) -> None:
        given: Sequence[object] = self.points  # lists, too, as JSON has them
        points = tuple(tuple(p) if isinstance(p, list) else p for p in given)
        problems = [f"entry {i} is {p!r}" for i, p in enumerate(points) if not _is_mesh_point(p)]
        if len(points) != N_FACE:
            problems.insert(0, f"it has {len(points)} entries")
        if not self.name:
            problems.insert(0, "it has no name")
        if problems:
            told = "; ".join(one_line(problem) for problem in problems[:5])
            more = f" and {len(problems) - 5} more like it" if len(problems) > 5 else ""
            raise InvalidError(
                f"face list {self.name!r}: {told}{more}; give {N_FACE} mesh indices from "
                f"0 to {N_MESH - 1}, or lists of such indices to average"
            )
        object.__setattr__(self, "points", points)

    def __repr__(self) -> str:
        return f"FaceList({self.name!r}, {len(self.points)} points, sha256 {self.sha256[:12]})"

    @property
    def indices(self) -> tuple[tuple[int, ...], ...]:
        """Mesh indices that are averaged for each of the 68 points; one index for most."""
        return tuple((p,) if isinstance(p, int) else p for p in self.points)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the points as compact JSON, which does not depend on the name."""
        return hashlib.sha256(json.dumps(self.points, separators=(",", ":")).encode()).hexdigest()


def _is_mesh_point(point: object) -> bool:
    if isinstance(point, tuple):
        return bool(point) and all(type(index) is int and 0 <= index < N_MESH for index in point)
    return type(point) is int and 0 <= point < N_MESH


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split())


_PHOENIX = FaceList(
    "phoenix",
    _numbers(
        "10 338 297 332 284 251 389 356 454 323 361 288 397 365 379 378 400 107 55 65 52 53 336 "
        "296 334 293 300 19 1 2 5 4 6 98 97 94 33 7 163 144 145 153 362 382 381 380 374 373 61 146 "
        "91 181 84 17 314 405 320 307 375 321 78 95 88 178 87 14 317 402"
    ),
    "the list that existing PHOENIX-2014-T keypoint files were made with: groups as in iBUG, other "
    "points in them (its outline runs from the forehead down the subject's left side)",
)
_IBUG = FaceList(
    "ibug",
    _numbers(
        "162 234 93 58 172 136 149 148 152 377 378 365 397 288 323 454 389 71 63 105 66 107 336 "
        "296 334 293 301 168 197 5 4 75 97 2 326 305 33 160 158 133 153 144 362 385 387 263 373 "
        "380 61 39 37 0 267 269 291 405 314 17 84 181 78 82 13 312 308 317 14 87"
    ),
    "the most copied approximation of iBUG's 68 points ('landmark_points_68'); no standard exists",
)
FACE_LISTS = MappingProxyType({face_list.name: face_list for face_list in (_PHOENIX, _IBUG)})
"""The face lists known by name."""


def skeleton_edges(face_list: FaceList = _PHOENIX) -> tuple[Edge, ...]:
    """Return the pairs of points that a drawing joins, as indices into the 143.

    Both points of a pair belong to the same part. All face lists join the regions of the face
    alike, except for the nose, whose points they order differently.
    """
    regions = FACE_REGIONS
    nose = (
        (_PHOENIX_NOSE_CHAIN,)
        if face_list.points == _PHOENIX.points
        else (_NOSE_CHAIN, _NOSTRIL_CHAIN)
    )
    open_lines = (
        *(tuple(range(143)[regions[name]]) for name in ("jaw", "right_brow", "left_brow")),
        *nose,
    )
    closed_lines = (
        regions[name] for name in ("right_eye", "left_eye", "mouth_outer", "mouth_inner")
    )
    return (
        *(edge for line in open_lines for edge in _chain(*line)),
        *(edge for line in closed_lines for edge in _ring(line)),
        *_shifted(_HAND_EDGES, PART_SLICES["left_hand"].start),
        *_shifted(_HAND_EDGES, PART_SLICES["right_hand"].start),
        *_shifted(_POSE_EDGES, PART_SLICES["pose"].start),
    )


def _shifted(edges: Sequence[Edge], offset: int) -> tuple[Edge, ...]:
    return tuple((a + offset, b + offset) for a, b in edges)


CONVENTION = (
    "x and y are fractions of the image's width and height from its top left corner and may leave "
    "[0, 1]; z is relative to the wrist (hands), the head (face) or the hips (pose), on about the "
    "same scale as x, smaller is nearer; left and right are the subject's own; a part that was not "
    "detected is NaN"
)


def keypoints_spec(face_list: FaceList = _PHOENIX) -> FeatureSpec:
    """Return the feature ``keypoints``: (143, 3) float32, NaN where a part was not detected.

    Its companions are ``detected`` (4,) bool, by part, False where missing, and ``visibility``
    (33,) float32 in 0..1, by pose point, NaN where no pose was detected. The attributes hold the
    convention, the parts, the face list and the skeleton.
    """
    detected = ArraySpec(
        "detected", (len(PARTS),), ("part",), "bool", description="whether the part was detected"
    )
    visibility = ArraySpec(
        "visibility", (N_POSE,), ("pose_point",), description="MediaPipe's visibility, 0 to 1"
    )
    return FeatureSpec(
        "keypoints",
        (N_POINTS, 3),
        ("keypoint", "space"),
        description="keypoints of face, left hand, right hand and pose",
        labels={
            "keypoint": POINT_NAMES,
            "space": ("x", "y", "z"),
            "part": PARTS,
            "pose_point": POSE_POINT_NAMES,
        },
        companions=(detected, visibility),
        attrs={
            "convention": CONVENTION,
            "parts": {name: [rows.start, rows.stop] for name, rows in PART_SLICES.items()},
            "face_regions": {name: [rows.start, rows.stop] for name, rows in FACE_REGIONS.items()},
            "face_list": {
                "name": face_list.name,
                "points": [list(p) if isinstance(p, tuple) else p for p in face_list.points],
                "source": face_list.source,
                "sha256": face_list.sha256,
            },
            "edges": [list(edge) for edge in skeleton_edges(face_list)],
        },
    )
