"""Points of ``.pose`` files: their names, their features, and how they become ``keypoints``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from pose_format.pose_header import PoseHeaderComponent

from kpstore.errors import InvalidError
from kpstore.schema.array import ArraySpec
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.layout import HAND_POINT_NAMES, POSE_POINT_NAMES, FaceList

SUFFIX = ".pose"
COMPONENTS = {
    "face": "FACE_LANDMARKS",
    "left_hand": "LEFT_HAND_LANDMARKS",
    "right_hand": "RIGHT_HAND_LANDMARKS",
    "pose": "POSE_LANDMARKS",
}
"""Names of the parts in pose-format (``pose_format.utils.holistic.holistic_components``)."""
HEADER_FIELDS = ("version", "width", "height", "depth", "fps", "person", "people")
"""Fields of ``pose_points_header``; ``person`` counts from 1."""


class Component(TypedDict):
    """A component of a header as JSON: limbs are pairs of points, colours are red, green, blue."""

    name: str
    format: str
    points: list[str]
    limbs: list[list[int]]
    colors: list[list[int]]


def describe(components: Sequence[PoseHeaderComponent]) -> list[Component]:
    """Return the components of a header as JSON values."""
    return [
        {
            "name": component.name,
            "format": component.format,
            "points": list(component.points),
            "limbs": [[int(a), int(b)] for a, b in component.limbs],
            "colors": [[int(value) for value in color] for color in component.colors],
        }
        for component in components
    ]


def points_spec(name: str, components: Sequence[Component]) -> FeatureSpec:
    """Return the feature that holds all points of a pose file: (points, dims) float32, in pixels.

    Its companion ``confidence`` (points,) float32 is that of the file, 0 where a point is missing.
    The values of a missing point are NaN if the file has zeros there; others are those of the file.
    The components are in ``attrs["pose_components"]``.
    """
    labels = tuple(
        f"{component['name']}.{point}" for component in components for point in component["points"]
    )
    axes = tuple(max((component["format"] for component in components), key=len, default="")[:-1])
    point, axis = f"{name}_point", f"{name}_axis"
    if not labels or not axes:
        raise InvalidError(
            f"the header has {len(labels)} points of {len(axes)} dimensions; nothing can be stored"
        )
    return FeatureSpec(
        name,
        (len(labels), len(axes)),
        (point, axis),
        units="pixel",
        description="all points of a .pose file, as in the file",
        labels={point: labels, axis: axes},
        companions=(
            ArraySpec(
                "confidence", (len(labels),), (point,), description="confidence, 0 where missing"
            ),
        ),
        attrs={"pose_components": list(components)},
    )


def header_spec(name: str) -> FeatureSpec:
    """Return the feature of videos with the header of their files; see :data:`HEADER_FIELDS`."""
    dim = f"{name}_header_field"
    return FeatureSpec(
        f"{name}_header",
        (len(HEADER_FIELDS),),
        (dim,),
        "float64",
        description="header of the .pose file; width, height and depth in pixels",
        axis="video",
        labels={dim: HEADER_FIELDS},
    )


@dataclass(frozen=True)
class Part:
    """Where a file holds one part of the 143 points.

    Parameters
    ----------
    columns : all points of the component.
    sources : for each point of the part, the points of the file whose mean it is; empty where the
        file lacks it.
    axes : positions of x, y and z in the format; z is None if the format has none.
    """

    columns: slice
    sources: tuple[tuple[int, ...], ...]
    axes: tuple[int, int, int | None]


def find_parts(components: Sequence[Component], face_list: FaceList) -> dict[str, Part]:
    """Return the parts of which a file has any point, by the names of components and points."""
    parts, start = {}, 0
    part_of = {name: part for part, name in COMPONENTS.items()}
    for component in components:
        columns = slice(start, start + len(component["points"]))
        start = columns.stop
        part = part_of.get(component["name"])
        form = component["format"].upper()[:-1]
        if part is None or part in parts or not {"X", "Y"} <= set(form):
            continue
        places: dict[str, list[int]] = {}
        for place, name in enumerate(component["points"], start=columns.start):
            places.setdefault(name, []).append(place)
        if part == "face":
            sources = _face_sources(places, face_list)
        else:
            sources = tuple(tuple(places[n][:1]) if n in places else () for n in point_names(part))
        if any(sources):
            z = form.index("Z") if "Z" in form else None
            parts[part] = Part(columns, sources, (form.index("X"), form.index("Y"), z))
    return parts


def point_names(part: str) -> list[str]:
    """Return pose-format's names of the points of a hand or the pose, in the order of kpstore."""
    return [name.upper() for name in (POSE_POINT_NAMES if part == "pose" else HAND_POINT_NAMES)]


def face_names(face_list: FaceList) -> list[str]:
    """Return names of the 68 points: the mesh index, or for a mean the indices, as ``127+234``."""
    return ["+".join(map(str, indices)) for indices in face_list.indices]


def _face_sources(
    places: Mapping[str, list[int]], face_list: FaceList
) -> tuple[tuple[int, ...], ...]:
    # A face list may name a mesh point twice, and so may a file that was exported with it.
    used: Counter[str] = Counter()
    sources: list[tuple[int, ...]] = []
    for name, indices in zip(face_names(face_list), face_list.indices, strict=True):
        single = [str(index) for index in indices]
        if name in places:
            sources.append((places[name][min(used[name], len(places[name]) - 1)],))
            used[name] += 1
        else:
            sources.append(
                tuple(places[s][0] for s in single) if all(s in places for s in single) else ()
            )
    return tuple(sources)
