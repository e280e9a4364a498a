"""Lip embeddings, one npz file per utterance."""

from kpstore.interop.base import Format
from kpstore.interop.embeddings.read import EmbeddingsImport, recognises
from kpstore.interop.embeddings.write import EmbeddingsExport

EMBEDDINGS = Format(
    "embeddings",
    "Lip embeddings: xxx_embedding.npz beside xxx.npz, one utterance each.",
    importer=EmbeddingsImport,
    exporter=EmbeddingsExport,
    recognises=recognises,
    examples=(
        "import embeddings MOUTHS lips.kps",
        "import embeddings MOUTHS lips.kps --config configs/LRS2-IIANet.yml",
        "export embeddings lips.kps OUT",
    ),
)
