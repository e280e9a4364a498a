"""Face features of persons as JSON."""

from kpstore.interop.base import Format
from kpstore.interop.json.layout import FORMAT
from kpstore.interop.json.read import FaceJsonImport, looks_like_faces
from kpstore.interop.json.write import FaceJsonExport

JSON = Format(
    FORMAT,
    "Face features of persons: {person: {face_features, video_data: [{features, …}]}}, or paths "
    "only.",
    importer=FaceJsonImport,
    exporter=FaceJsonExport,
    recognises=looks_like_faces,
    examples=("import json valid_images.json faces.kps", "export json faces.kps valid_images.json"),
)
