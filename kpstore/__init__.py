"""Versioned, chunked stores of keypoints and features: extract once, read thousands of times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kpstore import plugins
from kpstore._version import __version__
from kpstore.errors import KpstoreError

if TYPE_CHECKING:
    from kpstore.api import Store, create, diff, open, repair
    from kpstore.ingest.run import run_ingest
    from kpstore.interop.transfer import export_file, import_file
    from kpstore.schema.array import ArraySpec
    from kpstore.schema.feature import FeatureRows, FeatureSpec, State
    from kpstore.schema.index import VideoRecord
    from kpstore.views.loader import Loader, loader

# Imported when first used (PEP 562), so that `import kpstore` and `kpstore --help` need neither
# zarr nor pandas.
_HOMES = {
    "Loader": "kpstore.views.loader",
    "Store": "kpstore.api",
    "create": "kpstore.api",
    "diff": "kpstore.api",
    "export_file": "kpstore.interop.transfer",
    "import_file": "kpstore.interop.transfer",
    "loader": "kpstore.views.loader",
    "open": "kpstore.api",
    "repair": "kpstore.api",
    "run_ingest": "kpstore.ingest.run",
    "ArraySpec": "kpstore.schema.array",
    "FeatureRows": "kpstore.schema.feature",
    "FeatureSpec": "kpstore.schema.feature",
    "State": "kpstore.schema.feature",
    "VideoRecord": "kpstore.schema.index",
}

__all__ = [
    "ArraySpec",
    "FeatureRows",
    "FeatureSpec",
    "KpstoreError",
    "Loader",
    "State",
    "Store",
    "VideoRecord",
    "__version__",
    "create",
    "diff",
    "export_file",
    "import_file",
    "loader",
    "open",
    "plugins",
    "repair",
    "run_ingest",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kpstore' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
