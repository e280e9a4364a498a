"""Copies of stores with damaged chunks: copies, as HDF5's library caches what it has read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import kpstore


def damaged_copy(store: kpstore.Store, chunks: Iterable[tuple[str, int]], target: Path) -> str:
    """Copy a store and change one byte of each of some chunks, given as (array, number)."""
    places = [store.session.place(name, chunk) for name, chunk in chunks]
    source = Path(store.location)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    for place in places:
        byte = re.match(r"byte (\d+)", place)
        file = target if byte else target / place.split()[0]
        at = int(byte[1]) + 5 if byte else file.stat().st_size // 2
        content = bytearray(file.read_bytes())
        content[at] ^= 0x10
        file.write_bytes(content)
    return str(target)
