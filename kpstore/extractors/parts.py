"""MediaPipe's FaceMesh, Hands and Pose on single images, as in users' existing files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.extractors.mediapipe import FoundParts, MediapipeExtractor, check_options, pose_model
from kpstore.options import WHAT, Option

Handedness = Literal["subject", "legacy"]


@dataclass(frozen=True)
class Hand:
    """One hand that MediaPipe found.

    Parameters
    ----------
    label : ``"Left"`` or ``"Right"``, which MediaPipe means for a mirrored picture.
    score : MediaPipe's confidence in the label, 0.5 to 1.
    landmarks : list of 21 landmarks.
    """

    label: str
    score: float
    landmarks: Any


def assign_hands(hands: Sequence[Hand], handedness: Handedness) -> tuple[Any, Any]:
    """Return the landmarks of the left and the right hand; None if a hand was not found.

    Parameters
    ----------
    hands : at most two, in the order in which MediaPipe returns them.
    handedness : ``"subject"`` swaps MediaPipe's labels, which are for a mirrored picture: its
        'Right' is the subject's left hand in a photograph. Of two hands with the same label, the
        one with the higher score (the first of equals) keeps the side, and the other gets the free
        side. ``"legacy"`` is the rule of users' existing files: the first hand is the right one,
        the second the left one, whatever the labels.
    """
    if handedness == "legacy":
        landmarks = [hand.landmarks for hand in hands] + [None, None]
        return landmarks[1], landmarks[0]
    sides: dict[str, Any] = {}
    for hand in sorted(hands, key=lambda hand: -hand.score):
        side, other = ("left", "right") if hand.label == "Right" else ("right", "left")
        sides.setdefault(side if side not in sides else other, hand.landmarks)
    return sides.get("left"), sides.get("right")


@dataclass(kw_only=True)
class PartsExtractor(MediapipeExtractor):
    """Keypoints by FaceMesh, Hands and Pose on single images, independent of other frames.

    It misses faces that are small in the frame, which Holistic finds; and if a frame shows several
    people, the face, the hands and the pose can belong to different ones.

    Parameters
    ----------
    handedness : how to tell the left from the right hand, see :func:`assign_hands`; ``"legacy"`` as
        in users' existing files.
    face_list, min_detection_confidence, model_complexity : see :class:`MediapipeExtractor`. Users'
        existing files were made with ``model_complexity=2``, whose model is not in MediaPipe's
        wheel.
    """

    handedness: Annotated[Handedness, Option("How to tell left from right hands.", panel=WHAT)] = (
        "subject"
    )

    def _check(self) -> None:
        check_options(
            model_complexity=self.model_complexity,
            min_detection_confidence=self.min_detection_confidence,
        )
        if self.handedness not in ("subject", "legacy"):
            raise InvalidError(f"handedness is 'subject' or 'legacy', found {self.handedness!r}")

    def _recipe(self) -> tuple[str, str, dict[str, object], tuple[str, ...]]:
        parameters: dict[str, object] = {
            "handedness": self.handedness,
            "static_image_mode": True,
            "refine_landmarks": True,
            "max_num_faces": 1,
            "max_num_hands": 2,
            "hand_model_complexity": 1,
            "model_complexity": self.model_complexity,
            **self._confidences(),
        }
        models = (
            "face_detection/face_detection_short_range.tflite",
            "face_landmark/face_landmark_with_attention.tflite",
            "hand_landmark/hand_landmark_full.tflite",
            "palm_detection/palm_detection_full.tflite",
            "pose_detection/pose_detection.tflite",
            pose_model(self.model_complexity),
        )
        return "parts", "face mesh + hands + pose, single images", parameters, models

    def _confidences(self) -> dict[str, float]:
        # The tracking threshold also drops uncertain landmarks of single images; users' files were
        # made with MediaPipe's 0.5.
        return {
            "min_detection_confidence": float(self.min_detection_confidence),
            "min_tracking_confidence": 0.5,
        }

    def _build(self, solutions: ModuleType) -> tuple[Any, ...]:
        shared = {"static_image_mode": True, **self._confidences()}
        return (
            solutions.face_mesh.FaceMesh(refine_landmarks=True, max_num_faces=1, **shared),
            solutions.hands.Hands(max_num_hands=2, model_complexity=1, **shared),
            solutions.pose.Pose(model_complexity=self.model_complexity, **shared),
        )

    def _find(self, image: NDArray[np.uint8]) -> FoundParts:
        faces, hands, pose = self._process(image)
        left, right = assign_hands(_hands(hands), self.handedness)
        face = faces.multi_face_landmarks[0] if faces.multi_face_landmarks else None
        return FoundParts(face, left, right, pose.pose_landmarks)


def _hands(found: Any) -> list[Hand]:
    if not found.multi_hand_landmarks:
        return []
    best = [hand.classification[0] for hand in found.multi_handedness]
    pairs = zip(best, found.multi_hand_landmarks, strict=True)
    return [Hand(side.label, side.score, landmarks) for side, landmarks in pairs]
