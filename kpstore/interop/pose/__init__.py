"""The ``.pose`` files of pose-format."""

from kpstore.interop.base import Format
from kpstore.interop.pose.read import PoseImport, recognises
from kpstore.interop.pose.write import PoseExport

POSE = Format(
    "pose",
    "pose-format's .pose files: MediaPipe holistic, OpenPose or any other named points, with "
    "confidence.",
    importer=PoseImport,
    exporter=PoseExport,
    recognises=recognises,
    examples=(
        "import pose signs/ signs.kps",
        "import pose clip.pose clip.kps --keep keypoints",
        "export pose signs.kps OUT",
        "export pose clip.kps clip.pose",
    ),
)
