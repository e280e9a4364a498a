"""Faces: InsightFace's landmarks, DINOv2 of the frame, and angles to a frontal face."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, InvalidError, one_line
from kpstore.extractors.base import Extracted, check_image, is_number, is_whole, not_one_of
from kpstore.extractors.checkpoint_files import differs
from kpstore.extractors.devices import Precision, StoredType
from kpstore.extractors.dinov2 import Dinov2Extractor, Positions
from kpstore.extractors.face_geometry import (
    FacePoints,
    Formula,
    landmarks_to_3d,
    mean_angle,
    spherical_angles,
)
from kpstore.extractors.insightface_models import LIBRARIES, Pack, find_pack, open_detector
from kpstore.extractors.libraries import library_versions
from kpstore.extractors.torch_model import WeightsPath
from kpstore.options import WHAT, Option
from kpstore.schema.face_features import EXTRACTED_FACE_FIELDS, EXTRACTED_FRAME_FIELDS, Field
from kpstore.schema.feature import Axis, FeatureRows, FeatureSpec, Provenance

FaceChoice = Literal["largest", "best", "first"]

DETECTOR_FPS = 5.0
"""Rough number of pictures per second that buffalo_l's detector takes at 640 pixels on a core."""
STRIDE = 32
"""Step of the detectors' coarsest grid in pixels; ``det_size`` is a multiple of it."""


@dataclass(frozen=True)
class Face:
    """One face that the detector found in a picture.

    Parameters
    ----------
    points : landmarks (5, 2) and box (4,) in pixels, float32.
    score : confidence of the detector, 0 to 1.
    """

    points: FacePoints
    score: float

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        x1, y1, x2, y2 = np.asarray(self.points.box, dtype=np.float64).tolist()
        return float((x2 - x1) * (y2 - y1))


class NoFaceError(InvalidError):
    """There is no usable face in a picture."""


def choose_face(faces: Sequence[Face], choice: FaceChoice) -> Face:
    """Return one of the faces whose box and landmarks are usable.

    Parameters
    ----------
    faces : in the order in which InsightFace returns them: by score, the highest first (since 2.0).
    choice : ``"largest"`` by the area of the box, ``"best"`` by score, the first of equals; or
        ``"first"`` of those that InsightFace returned.

    Raises
    ------
    NoFaceError
        If no face is usable.
    """
    usable = [face for face in faces if not face.points.problem()]
    if not usable:
        raise NoFaceError(
            f"no usable face found: {faces[0].points.problem()}" if faces else "no face found"
        )
    if choice == "first":
        return usable[0]
    return max(usable, key=lambda face: face.area if choice == "largest" else face.score)


@dataclass(kw_only=True)
class FacesExtractor:
    """One face of each frame, with DINOv2 of the whole frame.

    For each video, the same of its frontal reference picture.

    Features of frames: ``<model>``, ``landmarks_2d``, ``landmarks_3d``, ``box``,
    ``detection_score``, ``spherical_angles``, ``avg_angle``; of videos: ``face_<model>``,
    ``face_landmarks_2d``, ``face_landmarks_3d``, ``face_box``, ``face_detection_score``.
    ``docs/faces.md`` describes them. A frame without a usable face fails with the reason, and
    DINOv2 is not run on it; if the reference picture has none, the whole video fails.

    Parameters
    ----------
    model_pack : a pack of InsightFace by name, downloaded from its releases if it is not in
        ``~/.insightface/models``; or a folder of ONNX files. Only its detector is used.
    face : which face of several: ``"largest"``, ``"best"`` (highest score), or ``"first"`` (as
        InsightFace returns them). By default the largest, with ``formula="json"`` the first.
    det_size : width and height in pixels to which the detector resizes a picture, a multiple of 32.
    det_thresh : minimum score of a face, 0 to 1.
    formula : of the points on the sphere and the angles, see
        :mod:`kpstore.extractors.face_geometry`. ``"json"`` gives the same values as the scripts
        that wrote users' existing JSON files.
    model, weights, precision, dtype, positions, batch_size : of DINOv2, see
        :class:`~kpstore.extractors.dinov2.Dinov2Extractor`. All other features are float32,
        computed in float64; the detector takes one picture at a time, on a CPU in one thread.
    """

    needs_reference: ClassVar[bool] = True

    model_pack: Annotated[
        str | os.PathLike[str],
        Option("Detector: a pack of InsightFace, or a folder.", "NAME|DIR", kind=str, panel=WHAT),
    ] = "buffalo_l"
    face: Annotated[
        FaceChoice | None,
        Option(
            "Which of several faces; largest by default, first with --formula json.", panel=WHAT
        ),
    ] = None
    det_size: int = 640
    det_thresh: float = 0.5
    formula: Annotated[
        Formula, Option("Formula of angles; json is that of earlier scripts.", panel=WHAT)
    ] = "corrected"
    model: Annotated[
        str,
        Option(
            "dinov2_vits14, _vitb14, _vitl14 or _vitg14, with or without _reg.",
            flag=("--dinov2-model", "--model"),
            panel=WHAT,
        ),
    ] = "dinov2_vitb14"
    weights: WeightsPath = None
    precision: Precision = "fp32"
    dtype: StoredType = "float32"
    positions: Positions = "hub"
    batch_size: int = 0
    _app: Any = field(default=None, init=False, repr=False, compare=False)
    _pack: Pack | None = field(default=None, init=False, repr=False, compare=False)
    _sha256: dict[str, str] | None = field(default=None, init=False, repr=False, compare=False)
    _reference: FacePoints | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise InvalidError(f"options of faces: {'; '.join(problems)}")
        self.model_pack = os.fspath(self.model_pack)
        self.det_thresh = float(self.det_thresh)
        if self.face is None:
            self.face = "first" if self.formula == "json" else "largest"
        self._dinov2 = Dinov2Extractor(
            model=self.model,
            weights=self.weights,
            precision=self.precision,
            dtype=self.dtype,
            positions=self.positions,
            batch_size=self.batch_size,
        )
        self.batch_size = self.at_once
        self._frame_specs = {
            known.name: self._spec(known, "frame") for known in EXTRACTED_FRAME_FIELDS
        }
        self._face_specs = {
            known.name: self._spec(known, "video") for known in EXTRACTED_FACE_FIELDS
        }

    def _spec(self, known: Field, axis: Axis) -> FeatureSpec:
        features = self._dinov2.specs[0]
        return known.spec(
            self.model,
            features.shape[0],
            features.dtype if known.shape is None else "float32",
            axis,
        )

    def _problems(self) -> list[str]:
        found = [] if self.face is None else not_one_of(self, face=FaceChoice)
        found += not_one_of(self, formula=Formula)
        given: object = self.model_pack  # whatever came from the command line
        if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
            found.append(f"model_pack={given!r} is neither a name nor a path")
        size, threshold = self.det_size, self.det_thresh
        if not is_whole(size) or size < STRIDE or size % STRIDE:
            found.append(f"det_size={size!r} is not a multiple of {STRIDE} pixels; 640 is usual")
        if not is_number(threshold) or not 0 <= threshold <= 1:
            found.append(f"det_thresh={threshold!r} is not between 0 and 1")
        return found

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_app": None, "_reference": None}

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """All features, those of frames first."""
        return (*self._frame_specs.values(), *self._face_specs.values())

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """By feature, everything that changes the values.

        For DINOv2's features, it is the provenance of that extractor.

        Raises
        ------
        NotFoundError, InvalidError, ExtractorError, MissingExtraError
            If the pack or the weights do not exist, are incomplete or cannot be loaded, or a
            library is missing.
        """
        found = self._detection()
        features = self._dinov2.provenance[self.model]
        return {spec.name: features if spec.dims == ("feature",) else found for spec in self.specs}

    def _detection(self) -> Provenance:
        versions = library_versions(*LIBRARIES)
        if self._sha256 is None:
            self._sha256 = self._found_pack().sha256()
        pack = os.path.basename(os.path.normpath(self.model_pack))
        return {
            "extractor": "insightface",
            "recipe": f"{pack}, {self.face} face, angles: {self.formula}",
            "model": pack,
            "weights": self._sha256,
            "parameters": {
                "face": self.face,
                "det_size": [self.det_size, self.det_size],
                "det_thresh": self.det_thresh,
                "formula": self.formula,
            },
            "libraries": versions,
        }

    def _found_pack(self) -> Pack:
        if self._pack is None or not self._pack.detector.is_file():
            self._pack = find_pack(os.fspath(self.model_pack))
        return self._pack

    @property
    def at_once(self) -> int:
        """Number of frames that DINOv2 takes at once."""
        return self._dinov2.at_once

    @property
    def settled(self) -> bool:
        """Whether this number is given or on record."""
        return self._dinov2.settled

    def settle(self, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
        """Take the number with which DINOv2's features were begun; see :class:`Settling`."""
        notes = self._dinov2.settle(made, device)
        self.batch_size = self.at_once
        return notes

    def keep(self, number: int) -> None:
        """Fix the number of frames at once."""
        self._dinov2.keep(number)
        self.batch_size = self.at_once

    @property
    def processor(self) -> str:
        """The kind of processor that computes; empty unless open."""
        return self._dinov2.processor

    @property
    def typical_fps(self) -> float:
        """Rough frames per second of one core for both models."""
        return 1 / (1 / DETECTOR_FPS + 1 / self._dinov2.typical_fps)

    def open(self, device: str = "cpu") -> None:
        """Load both models to a device.

        Raises
        ------
        UnsupportedError
            If the device does not exist for one of them.
        InvalidError
            If a model is incomplete, or not the one that the run began with.
        """
        library_versions(*LIBRARIES)
        pack = self._found_pack()
        if self._sha256 is not None and pack.sha256() != self._sha256:
            raise differs(pack.detector)
        self._app = open_detector(pack, device, self.det_size, self.det_thresh)
        try:
            self._dinov2.open(device)
        except BaseException:
            self.close()
            raise
        self.batch_size = self.at_once

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Take the frontal picture of a person, from which angles are measured until the next call.

        Returns
        -------
        mapping
            One row of each feature of videos.

        Raises
        ------
        InvalidError
            If the video has no reference, the reference has no usable face, or DINOv2's values of
            it are not finite.
        """
        self._reference = None
        if reference is None:
            raise InvalidError(
                "no frontal reference picture: angles are measured from it; give one picture per "
                "person"
            )
        picture = check_image(reference)
        try:
            face = self._find(picture)
        except NoFaceError as error:
            raise InvalidError(
                f"the reference picture has no usable face ({error}; {picture.shape[1]} x "
                f"{picture.shape[0]} pixels, det_size {self.det_size}, det_thresh "
                f"{self.det_thresh:g}); give another frontal picture"
            ) from None
        features = self._dinov2.rows([picture]).values
        values = {f"face_{name}": rows for name, rows in self._values([face], features).items()}
        self._reference = face.points
        return {
            spec.name: FeatureRows(values[name].astype(spec.dtype))
            for name, spec in self._face_specs.items()
        }

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        """Return one row per image; see :meth:`kpstore.extractors.base.Extractor.extract`.

        Returns
        -------
        Extracted
            Rows of all features of frames. Images have failed if they have no usable face, and then
            their rows are missing, or if DINOv2's values are not finite.

        Raises
        ------
        InvalidError
            If an image has another shape or dtype.
        ExtractorError
            If a model fails.
        """
        if self._reference is None:
            raise InvalidError(
                "call open() and start_video(reference) before frames are given to 'faces'"
            )
        faces: dict[int, Face] = {}
        failed: dict[int, str] = {}
        for number, image in enumerate(images):
            try:
                faces[number] = self._find(check_image(image))
            except NoFaceError as error:
                failed[number] = one_line(str(error))
        rows = {spec.name: spec.empty_rows(len(images)) for spec in self._frame_specs.values()}
        if faces:
            numbers, seen = list(faces), list(faces.values())
            found = self._dinov2.extract([images[number] for number in numbers])
            failed |= {numbers[place]: reason for place, reason in found.failed.items()}
            values = self._values(seen, found.rows[self.model].values)
            angles = spherical_angles(self._reference, _together(seen), self.formula)
            values |= {"spherical_angles": angles, "avg_angle": mean_angle(angles)}
            for name, spec in self._frame_specs.items():
                rows[spec.name].values[numbers] = values[name]
        return Extracted(rows, failed)

    def close(self) -> None:
        """Free both models; the extractor can be opened again."""
        self._app = self._reference = None
        self._dinov2.close()

    def _find(self, image: NDArray[np.uint8]) -> Face:
        if self._app is None:
            raise InvalidError(
                f"{type(self).__name__} is not open; call open() before it gets pictures"
            )
        height, width = image.shape[:2]
        if min(width, height) * self.det_size <= max(width, height):
            raise NoFaceError(
                f"no face found: {width} x {height} pixels are too narrow to look for one"
            )
        blue_green_red = np.ascontiguousarray(image[..., ::-1])
        try:
            found = self._app.get(blue_green_red)
        except Exception as error:  # onnxruntime has error classes of its own
            # The image is valid: what fails now would fail for all images after it.
            raise ExtractorError(f"InsightFace's detector fails: {one_line(error)}") from error
        faces = [Face(FacePoints(f.kps, f.bbox), float(f.det_score)) for f in found]
        assert self.face is not None  # settled when constructed
        return choose_face(faces, self.face)

    def _values(
        self, faces: Sequence[Face], features: NDArray[np.generic]
    ) -> dict[str, NDArray[np.generic]]:
        """Return by field the rows that frames and references have in common."""
        points = _together(faces)
        return {
            "features": features,
            "landmarks_2d": points.landmarks,
            "landmarks_3d": landmarks_to_3d(points, self.formula),
            "box": points.box,
            "detection_score": np.array([face.score for face in faces]),
        }


def _together(faces: Sequence[Face]) -> FacePoints:
    return FacePoints(
        np.stack([face.points.landmarks for face in faces]),
        np.stack([face.points.box for face in faces]),
    )
