"""Faces: InsightFace's landmarks, DINOv2 of the frame, angles to a frontal face."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, InvalidError, one_line
from kpstore.extractors.base import Extracted, check_image
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
from kpstore.options import WHAT, Option
from kpstore.schema.face_features import EXTRACTED_FACE_FIELDS, EXTRACTED_FRAME_FIELDS, Field
from kpstore.schema.feature import Axis, FeatureRows, FeatureSpec, Provenance

FaceChoice = Literal["largest", "best", "first"]

DETECTOR_FPS = 5.0
"""Rough pictures per second of one core, of buffalo_l's detector at 640 pixels."""
STRIDE = 32
"""``det_size`` is a multiple of it: the coarsest grid of the detectors."""


@dataclass(frozen=True)
class Face:
    """One face of a picture: what the detector found.

    Parameters
    ----------
    points : landmarks (5, 2) and box (4,) in pixels, float32.
    score : how sure the detector is, 0 to 1.
    """

    points: FacePoints
    score: float

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        x1, y1, x2, y2 = np.asarray(self.points.box, dtype=np.float64).tolist()
        return float((x2 - x1) * (y2 - y1))


class NoFaceError(InvalidError):
    """A picture without a usable face."""


def choose_face(faces: Sequence[Face], choice: FaceChoice) -> Face:
    """Return one of the faces that have usable numbers.

    Parameters
    ----------
    faces : in the order in which InsightFace returns them: by score, the highest first (since 2.0).
    choice : ``"largest"`` by the box's area, ``"best"`` by score; the first of those that are
        equal. ``"first"`` returned.

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
    """Of each frame one face, with DINOv2 of the whole frame.

    Of each video the same of its frontal reference picture.

    Features of frames: ``<model>``, ``landmarks_2d``, ``landmarks_3d``, ``box``,
    ``detection_score``, ``spherical_angles``, ``avg_angle``; of videos: ``face_<model>``,
    ``face_landmarks_2d``, ``face_landmarks_3d``, ``face_box``, ``face_detection_score``.
    ``docs/faces.md`` says what they are. A frame without a usable face fails with the reason, and
    DINOv2 is not run on it; a reference without one fails the whole video.

    Parameters
    ----------
    model_pack : a pack of InsightFace by name, loaded from its releases if it is not in
        ``~/.insightface/models``; or a folder of ONNX files. Only its detector is used.
    face : which face of several: ``"largest"``, ``"best"`` (highest score), or ``"first"`` (as
        InsightFace returns them). By default the largest; the first with ``formula="json"``.
    det_size : width and height in pixels to which a picture is brought for the detector, a multiple
        of 32.
    det_thresh : faces of a lower score do not count, 0 to 1.
    formula : of the points on the sphere and the angles, see
        :mod:`kpstore.extractors.face_geometry`. ``"json"`` makes everything as the scripts that
        wrote users' present JSON did.
    model, weights, precision, dtype, positions, batch_size : of DINOv2, see
        :class:`~kpstore.extractors.dinov2.Dinov2Extractor`. What else is stored is float32,
        computed in float64; the detector takes one picture at a time, on a CPU in one thread.
    """

    needs_reference: ClassVar[bool] = True

    model_pack: Annotated[
        str | os.PathLike[str],
        Option("Detector: a pack of InsightFace, or a folder.", "NAME|DIR", kind=str, panel=WHAT),
    ] = "buffalo_l"
    face: Annotated[
        FaceChoice | None,
        Option("Which face of several; by default the largest.", panel=WHAT),
    ] = None
    det_size: int = 640
    det_thresh: float = 0.5
    formula: Annotated[
        Formula, Option("Of angles; json makes what users' JSON files hold.", panel=WHAT)
    ] = "corrected"
    model: Annotated[
        str,
        Option(
            "dinov2_vits14, _vitb14, _vitl14 or _vitg14, with or without _reg.",
            flag=("--dinov2-model", "--model"),
            panel=WHAT,
        ),
    ] = "dinov2_vitb14"
    weights: Annotated[
        str | os.PathLike[str] | None,
        Option("The model's weights, a file or folder.", "PATH", kind=Path, panel=WHAT),
    ] = None
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
        kinds = {"face": FaceChoice, "formula": Formula}
        found = [
            f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(kind))}"
            for name, kind in kinds.items()
            if getattr(self, name) not in (*get_args(kind), *([None] if name == "face" else []))
        ]
        given: Any = self.model_pack  # whatever came from the command line
        if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
            found.append(f"model_pack={given!r} is neither a name nor a path")
        size, threshold = self.det_size, self.det_thresh
        if isinstance(size, bool) or not isinstance(size, int) or size < STRIDE or size % STRIDE:
            found.append(f"det_size={size!r} is not a multiple of {STRIDE} pixels; 640 is usual")
        if (
            isinstance(threshold, bool)
            or not isinstance(threshold, (int, float))
            or not 0 <= threshold <= 1
        ):
            found.append(f"det_thresh={threshold!r} is not between 0 and 1")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_app": None, "_reference": None}

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """All features, those of frames before those of videos."""
        return (*self._frame_specs.values(), *self._face_specs.values())

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """By feature, everything that changes the numbers.

        Of DINOv2's features, what that extractor says.

        Raises
        ------
        NotFoundError, InvalidError, ExtractorError, MissingExtraError
            If the pack or the weights are not there, not whole or not to be loaded, or a library is
            missing.
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
        """Frames that DINOv2 takes at once."""
        return self._dinov2.at_once

    @property
    def settled(self) -> bool:
        """Whether their number is given or on record."""
        return self._dinov2.settled

    def settle(self, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
        """Take the number with which DINOv2's features were begun.

        See :class:`kpstore.extractors.base.Settling`.
        """
        notes = self._dinov2.settle(made, device)
        self.batch_size = self.at_once
        return notes

    def keep(self, number: int) -> None:
        """Settle for a number of frames at once; from now on it stays."""
        self._dinov2.keep(number)
        self.batch_size = self.at_once

    @property
    def processor(self) -> str:
        """The kind of processor that computes; empty unless open."""
        return self._dinov2.processor

    @property
    def typical_fps(self) -> float:
        """Rough frames per second of one core, both models one after the other."""
        return 1 / (1 / DETECTOR_FPS + 1 / self._dinov2.typical_fps)

    def open(self, device: str = "cpu") -> None:
        """Load both models to a device.

        Raises
        ------
        UnsupportedError
            If the device is not there, for one of them.
        InvalidError
            If a model is not whole, or not the one that the run began with.
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
        """Take the person's frontal picture, from which angles are measured until the next call.

        Returns
        -------
        mapping
            One row of each feature of videos.

        Raises
        ------
        InvalidError
            If the video has no reference, no usable face in it, or DINOv2's numbers of it are not
            finite.
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
            Rows of all features of frames; images without a usable face have failed, and their rows
            are missing, and so have images of which DINOv2 makes no finite numbers.

        Raises
        ------
        InvalidError
            If an image is not one.
        ExtractorError
            If a model fails.
        """
        if self._app is None or self._reference is None:
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
            found = self._dinov2.extract([images[number] for number in faces])
            failed |= {list(faces)[number]: reason for number, reason in found.failed.items()}
            features = found.rows[self.model].values
            values = self._values(list(faces.values()), features) | self._angles(
                list(faces.values())
            )
            for name, spec in self._frame_specs.items():
                rows[spec.name].values[list(faces)] = values[name]
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
        try:
            found = self._app.get(
                np.ascontiguousarray(image[..., ::-1])
            )  # InsightFace takes blue, green, red
        except Exception as error:  # onnxruntime has error classes of its own
            # The image was read and is one: what fails now would fail for every image after it.
            raise ExtractorError(f"InsightFace's detector fails: {one_line(error)}") from error
        faces = [Face(FacePoints(f.kps, f.bbox), float(f.det_score)) for f in found]
        assert self.face is not None  # settled when constructed
        return choose_face(faces, self.face)

    def _values(self, faces: Sequence[Face], features: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the rows of what frames and references have in common, by field."""
        points = _together(faces)
        return {
            "features": features,
            "landmarks_2d": points.landmarks,
            "landmarks_3d": landmarks_to_3d(points, self.formula),
            "box": points.box,
            "detection_score": np.array([face.score for face in faces]),
        }

    def _angles(self, faces: Sequence[Face]) -> dict[str, NDArray[Any]]:
        assert self._reference is not None  # extract() asked
        angles = spherical_angles(self._reference, _together(faces), self.formula)
        return {"spherical_angles": angles, "avg_angle": mean_angle(angles)}


def _together(faces: Sequence[Face]) -> FacePoints:
    return FacePoints(
        np.stack([face.points.landmarks for face in faces]),
        np.stack([face.points.box for face in faces]),
    )
