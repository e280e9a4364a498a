"""Random damage to a store's files: flipped bits; files cut, zeroed, removed or exchanged."""

from __future__ import annotations

import random
from pathlib import Path

KINDS = ("flip", "truncate", "zero", "delete", "swap")
_MOST_BYTES = 4096
"""Of a run of a file that is zeroed or exchanged."""


def damage(folder: Path, rng: random.Random) -> str:
    """Damage something below a folder and return what, in one line.

    Parameters
    ----------
    folder : holds one store and nothing else; every file in it may be hit, those beside the store's
        own included.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    full = [path for path in files if path.stat().st_size]
    kind, path = rng.choice(KINDS), rng.choice(full)
    where = path.relative_to(folder)
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
        return f"delete {where}"
    if kind == "swap" and len(full) > 2:
        others = [other for other in full if other.parent == path.parent and other != path] or [
            path
        ]
        other = rng.choice(others)
        if other != path:
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
            return f"swap {where} and {other.relative_to(folder)}"
    if kind == "flip":
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        told = f"flip a bit of byte {at}"
    elif kind == "truncate":
        kept = rng.randrange(len(content))
        del content[kept:]
        told = f"truncate to {kept} bytes"
    else:
        told = _zero_or_exchange(content, kind, rng)
    path.write_bytes(content)
    return f"{told}: {where}"


def _zero_or_exchange(content: bytearray, kind: str, rng: random.Random) -> str:
    length = rng.randint(1, min(_MOST_BYTES, max(1, len(content) // 2)))
    at = rng.randrange(len(content) - length + 1)
    if kind == "zero":
        content[at : at + length] = bytes(length)
        return f"zero bytes {at} to {at + length - 1}"
    free = [
        b
        for b in (rng.randrange(len(content) - length + 1) for _ in range(20))
        if abs(b - at) >= length
    ]
    other = free[0] if free else at
    one, two = bytes(content[at : at + length]), bytes(content[other : other + length])
    content[at : at + length], content[other : other + length] = two, one
    return f"exchange {length} bytes at {at} and at {other}"
