"""Arrays per split in npz files, as keypoint trainers read them."""

from kpstore.interop.base import Format
from kpstore.interop.npz.read import NpzImport, recognises
from kpstore.interop.npz.write import NpzExport

NPZ = Format(
    "npz",
    "Arrays per split: {split}_keypoints.npz and {split}_stats.json, as keypoint trainers read "
    "them.",
    importer=NpzImport,
    exporter=NpzExport,
    recognises=recognises,
    examples=(
        "import npz OUT phoenix.kps",
        "export npz phoenix.kps OUT",
        "export npz phoenix.kps OUT --split train dev",
    ),
)
