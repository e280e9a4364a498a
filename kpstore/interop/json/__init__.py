"""Face features of persons as JSON."""

from kpstore.interop.base import Format
from kpstore.interop.json.read import FaceJsonImport, recognises
from kpstore.interop.json.write import FaceJsonExport

JSON = Format(
    "json",
    "Face features of persons: {person: {face_features, video_data: [{features, …}]}}, or paths "
    "only.",
    importer=FaceJsonImport,
    exporter=FaceJsonExport,
    recognises=recognises,
    examples=("import json valid_images.json faces.kps", "export json faces.kps valid_images.json"),
)
