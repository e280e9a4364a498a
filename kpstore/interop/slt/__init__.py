"""Files of sign language translation: a pickled list of samples, compressed by gzip."""

from kpstore.interop.base import Format
from kpstore.interop.slt.read import SltImport, recognises
from kpstore.interop.slt.write import SltExport

SLT = Format(
    "slt",
    "Files of sign language translation: gzip, a pickled list of {name, signer, gloss, text, "
    "sign}.",
    importer=SltImport,
    exporter=SltExport,
    recognises=recognises,
    examples=(
        "import slt phoenix14t.pami0.train phoenix.kps",
        "export slt phoenix.kps OUT --name phoenix14t.keypoints",
        "export slt phoenix.kps OUT --feature dinov2 --split dev test",
    ),
)
