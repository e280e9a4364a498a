"""Names that reading and writing embeddings share."""

from typing import Literal

FORMAT = "embeddings"
KEY = "embedding"
Layout = Literal["channels_first", "time_first"]
