"""JSON of another shape: mutated bytes are rarely JSON, and more rarely other values in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

_OTHERS = (None, 3, -1, 10**30, 1e308, "x", "", "\ud800", [], {}, [1], {"a": 1}, [[]], True)


def reshaped(data: bytes, random: Random) -> bytes | None:
    """Return JSON with one value replaced or removed; None if the bytes hold no JSON.

    Bytes may come before it, it may be one of several lines, and its last brace may be missing, as
    in records without their checksums.
    """
    lines = data.split(b"\n")
    chosen = random.randrange(len(lines))
    start = lines[chosen].find(b"{")
    prefix, body = lines[chosen][: max(start, 0)], lines[chosen][max(start, 0) :]
    for ending in (b"", b"}"):
        try:
            value = json.loads(body + ending)
        except (ValueError, RecursionError):
            continue
        changed = json.dumps(_changed(value, random)).encode()
        lines[chosen] = prefix + changed.removesuffix(ending)
        return b"\n".join(lines)
    return None


def _changed(value: Any, random: Random) -> Any:
    holder, key = random.choice([(None, None), *_places(value)])
    other = random.choice(_OTHERS)
    if holder is None:
        return other
    if random.randrange(8):
        holder[key] = other
    else:
        del holder[key]
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a value, as a container and a key or number in it."""
    left = [value]
    while left:
        holder = left.pop()
        if isinstance(holder, dict | list):
            for key in holder if isinstance(holder, dict) else range(len(holder)):
                yield holder, key
                left.append(holder[key])
