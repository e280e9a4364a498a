"""Lip embeddings, an npz file for each utterance."""

from kpstore.interop.base import Format
from kpstore.interop.embeddings.layout import FORMAT
from kpstore.interop.embeddings.read import EmbeddingsImport, looks_like_embeddings
from kpstore.interop.embeddings.write import EmbeddingsExport

EMBEDDINGS = Format(
    FORMAT,
    "Lip embeddings: xxx_embedding.npz beside xxx.npz, an utterance each.",
    importer=EmbeddingsImport,
    exporter=EmbeddingsExport,
    recognises=looks_like_embeddings,
    target="folder",
    examples=(
        "import embeddings MOUTHS lips.kps",
        "import embeddings MOUTHS lips.kps --config configs/LRS2-IIANet.yml",
        "export embeddings lips.kps OUT",
    ),
)
