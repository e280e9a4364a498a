"""How long a video file says it is, by its container: a copy that broke off ends before that."""

from __future__ import annotations

import struct
from pathlib import Path

_HEAD_BYTES = 4096
_UNKNOWN = 0xFFFFFFFF
"""Size in an AVI file that was written to a pipe."""
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")


def cut_off(path: Path) -> str:
    """Return how far a file goes of what its container announces, in words; ``""`` if all is there.

    AVI (a RIFF file) and Matroska or WebM (EBML, RFC 8794) say at their beginning how many bytes
    follow; live recordings do not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    announced = _riff_bytes(head) or _ebml_bytes(head)
    return f"{size:,} of {announced:,} bytes" if size < announced else ""


def _riff_bytes(head: bytes) -> int:
    if head[:4] != b"RIFF" or head[8:12] != b"AVI ":
        return 0
    size = int(struct.unpack_from("<I", head, 4)[0])
    return 0 if size == _UNKNOWN else 8 + size


def _ebml_bytes(head: bytes) -> int:
    """Return where the first segment ends, which holds everything but the header."""
    if head[:4] != _EBML:
        return 0
    length, at = _number(head, 4)
    segment = at + length
    if length < 0 or head[segment : segment + 4] != _SEGMENT:
        return 0
    length, at = _number(head, segment + 4)
    return 0 if length < 0 else at + length


def _number(head: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length and where it ends; -1 for one that is unknown."""
    first = head[at] if at < len(head) else 0
    width = 9 - first.bit_length()  # the leading zeros of the first byte, and one
    if not first or at + width > len(head):
        return -1, at
    value = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (-1 if value == (1 << 7 * width) - 1 else value), at + width
