"""Fields of a frame and of a person's frontal face, and the features that store them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kpstore.schema.feature import Axis, FeatureSpec

MODEL_DIMS = {
    "dinov2_vits14": 384,
    "dinov2_vitb14": 768,
    "dinov2_vitl14": 1024,
    "dinov2_vitg14": 1536,
}
"""Length of a feature, by the model that made it."""
CLS_TOKEN = "CLS token of the whole image, L2-normalised"
"""Description of DINOv2 features, extracted with faces or alone, or imported."""
FACE_PATH = "face_image_path"
"""Path of the frontal picture: an annotation of a person, and a field of its JSON."""
LANDMARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
"""InsightFace's five points, in its order; left and right as seen in the picture."""


@dataclass(frozen=True)
class Field:
    """A field with numbers of a frame or, if named ``face_…``, of a person's frontal face.

    ``shape`` is None for features, whose length depends on the model. A field that is not
    ``needed`` may be missing.
    """

    name: str
    shape: tuple[int, ...] | None
    dims: tuple[str, ...]
    units: str = "1"
    about: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needed: bool = True

    def of_face(self) -> Field:
        """Return the same field of the frontal face."""
        return replace(self, name=f"face_{self.name}", about=f"{self.about}, of the frontal face")

    def spec(self, model: str, dim: int, dtype: str, axis: Axis) -> FeatureSpec:
        """Return the feature that stores this field; ``dim`` is the length of model features."""
        of_model = model if axis == "frame" else f"face_{model}"
        return FeatureSpec(
            of_model if self.shape is None else self.name,
            (dim,) if self.shape is None else self.shape,
            self.dims,
            dtype,
            self.units,
            self.about,
            axis=axis,
            labels=self.labels,
        )


_POINTS = {"landmark": LANDMARKS}
_IN_IMAGE = {**_POINTS, "image_axis": ("x", "y")}
_IN_SPACE = {**_POINTS, "space": ("x", "y", "z")}
_BOX_EDGES = ("x1", "y1", "x2", "y2")
_SHARED = (
    Field("features", None, ("feature",), about=CLS_TOKEN),
    Field(
        "landmarks_2d",
        (5, 2),
        ("landmark", "image_axis"),
        "pixel",
        "five points in the image",
        _IN_IMAGE,
    ),
    Field(
        "landmarks_3d",
        (5, 3),
        ("landmark", "space"),
        "1",
        "five points on the unit sphere",
        _IN_SPACE,
    ),
    Field("box", (4,), ("box_edge",), "pixel", "the face's box", {"box_edge": _BOX_EDGES}),
)
_ADDED_3D = (
    Field(
        "euler_angles",
        (3,),
        ("rotation",),
        "degree",
        "yaw, pitch, roll as the 3-D script names them",
        needed=False,
    ),
    Field(
        "rotation_matrix", (3, 3), ("matrix_row", "matrix_column"), "1", "of the head", needed=False
    ),
)
_SCORE = Field(
    "detection_score", (), (), "1", "how sure the detector is of the face, 0 to 1", needed=False
)
_ANGLES = (
    Field(
        "spherical_angles",
        (5,),
        ("landmark",),
        "degree",
        "signed angle of each from the frontal face",
        _POINTS,
    ),
    Field("avg_angle", (), (), "degree", "mean of the five angles"),
)

FRAME_FIELDS = (*_SHARED, *_ANGLES, *_ADDED_3D)
"""Fields of a frame in users' JSON."""
FACE_FIELDS = tuple(shared.of_face() for shared in (*_SHARED, *_ADDED_3D))
"""Fields of a frontal face in users' JSON."""
EXTRACTED_FRAME_FIELDS = (*_SHARED, _SCORE, *_ANGLES)
"""Fields of a frame that are extracted."""
EXTRACTED_FACE_FIELDS = tuple(shared.of_face() for shared in (*_SHARED, _SCORE))
"""Fields of a frontal face that are extracted."""
