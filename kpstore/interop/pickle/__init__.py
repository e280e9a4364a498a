"""Pickles of keypoints, in all forms that are in use."""

from kpstore.interop.base import Format
from kpstore.interop.pickle.forms import recognises
from kpstore.interop.pickle.read import PickleImport
from kpstore.interop.pickle.write import PickleExport

PICKLE = Format(
    "pickle",
    "Pickles of keypoints: raw, per split, per worker, flat, faces, model input, sequences.",
    importer=PickleImport,
    exporter=PickleExport,
    recognises=recognises,
    examples=(
        "import pickle phoenix_keypoints_full.pkl phoenix.kps",
        "import pickle TEMP_DIR train.kps --split train",
        "export pickle phoenix.kps phoenix_keypoints_full.pkl",
        "export pickle phoenix.kps OUT_DIR --form split",
    ),
)
