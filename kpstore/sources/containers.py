"""Whether a video file ends before its container does: a copy that broke off does.

Some containers announce a size at their beginning, others consist of parts whose length is known,
or end with a mark. A file that was cut between two parts of the latter kind looks whole, and about
recordings that were never finished, and bytes behind the end, nothing is said.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_HEAD_BYTES = 4096
_TAIL_BYTES = 128 * 1024
"""More than the largest page of Ogg, and than a pack of an MPEG program stream takes."""
_UNKNOWN = 0xFFFFFFFF
"""Size in an AVI file that was written to a pipe."""
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""What MP4 and QuickTime files begin with."""
_LATER_BOXES = (b"moof", b"mfra", b"styp", b"sidx", b"ssix", b"uuid", b"meta", b"udta", b"emsg")
_MOST_BOXES = 100_000
_FLV_TAGS = (8, 9, 18)
"""Sound, pictures, and what is told of them."""
_TS_PACKETS = ((188, 0), (192, 4), (204, 0))
"""Lengths of packets in MPEG transport streams, and where in them the sync byte is."""
_SYNC = 0x47
_PACK = b"\0\0\1\xba"


def cut_off(path: Path) -> str:
    """Return where a file ends that its container says is longer; ``""`` if nothing is missing.

    Such as ``"after 1,000 of 2,000 bytes"`` or ``"in the middle of a packet"``.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        announced = (
            _riff_bytes(head)
            or _ebml_bytes(head)
            or _asf_bytes(head)
            or _flv_bytes(head)
            or _box_bytes(file, head, size)
        )
        if size < announced:
            return f"after {size:,} of {announced:,} bytes"
        tail_at = max(0, size - _TAIL_BYTES)
        file.seek(tail_at)
        tail = file.read(_TAIL_BYTES)
        if head[:3] == b"FLV":
            return _flv_end(file, size)
        if head[:4] == b"OggS":
            return _ogg_end(tail)
        if head[:4] == _PACK:
            return _program_end(tail)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            return _gif_end(file)
    return _transport_end(head, tail, size)


def _riff_bytes(head: bytes) -> int:
    """Return the size that an AVI file announces; 0 if unknown, or if this is no AVI file."""
    if head[:4] != b"RIFF" or head[8:12] != b"AVI ":
        return 0
    size = int(struct.unpack_from("<I", head, 4)[0])
    return 0 if size == _UNKNOWN else 8 + size


def _ebml_bytes(head: bytes) -> int:
    """Return where the first segment of Matroska or WebM (RFC 8794) ends, which holds everything.

    Live recordings do not say it.
    """
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


def _asf_bytes(head: bytes) -> int:
    """Return the size in the file properties of WMV (ASF); broadcasts do not know it."""
    at = head.find(_ASF_PROPERTIES) if head[:16] == _ASF else -1
    if at < 0 or at + 92 > len(head):
        return 0
    is_broadcast = struct.unpack_from("<I", head, at + 88)[0] & 1
    return 0 if is_broadcast else int(struct.unpack_from("<Q", head, at + 40)[0])


def _flv_bytes(head: bytes) -> int:
    """Return ``filesize`` of an FLV file's ``onMetaData``, a number; 0 if it has none."""
    key = b"\0\x08filesize\0"
    at = head.find(key) + len(key) if head[:3] == b"FLV" and key in head else len(head)
    if at + 8 > len(head):
        return 0
    value = float(struct.unpack_from(">d", head, at)[0])
    return int(value) if 0 < value < 2**63 else 0


def _box_bytes(file: BinaryIO, head: bytes, size: int) -> int:
    """Return where the last box of MP4 or QuickTime ends; 0 where that is not known."""
    if head[4:8] not in _BOXES:
        return 0
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > size:
            return at
        file.seek(at)
        begin = file.read(16)
        length, kind = struct.unpack_from(">I4s", begin)
        if length == 1 and len(begin) == 16:
            length = struct.unpack_from(">Q", begin, 8)[0]
        # A box of length 0 goes to the end of the file. What has an unknown name may be no box:
        # cameras and tools leave text and tables behind the last one.
        if length < 8 or kind not in (*_BOXES, *_LATER_BOXES):
            return 0
        at += length
    return 0


def _flv_end(file: BinaryIO, size: int) -> str:
    """Tell of an FLV file whose last tag is not whole."""
    file.seek(5)
    at = int.from_bytes(file.read(4), "big") + 4
    while at < size:
        file.seek(at)
        tag = file.read(11)
        if tag[0] & 0x1F not in _FLV_TAGS:
            return ""
        at += 15 + int.from_bytes(tag[1:4], "big")  # its header, what it holds, its length again
    return "in the middle of a tag" if at > size else ""


def _ogg_end(tail: bytes) -> str:
    """Tell of an Ogg file whose last page is not whole, or not its stream's last (RFC 3533)."""
    page = tail[tail.rfind(b"OggS") :]
    n_bytes = 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) > 26 else 27
    if len(page) < n_bytes:
        return "in the middle of a page"
    is_last = page[5] & 4
    return "" if is_last or len(page) > n_bytes else "before the last page of its stream"


def _program_end(tail: bytes) -> str:
    """Tell of an MPEG program stream whose last packet is not whole.

    Few of them have an end code, so that they can be joined.
    """
    at = tail.rfind(_PACK)
    while 0 <= at <= len(tail) - 4:
        begin = tail[at : at + 14].ljust(14, b"\0")
        kind = begin[3]
        if begin[:3] != _PACK[:3] or kind < 0xB9:
            return ""
        if kind == 0xB9:
            at += 4
        elif kind == 0xBA:
            is_mpeg2 = begin[4] >> 6 == 1
            at += 14 + (begin[13] & 7) if is_mpeg2 else 12
        else:
            at += 6 + int.from_bytes(begin[4:6], "big")
    return "in the middle of a packet" if at > len(tail) else ""


def _transport_end(head: bytes, tail: bytes, size: int) -> str:
    """Tell of an MPEG transport stream whose last packet is not whole."""
    for length, sync in _TS_PACKETS:
        over = size % length
        begins = head[sync : 5 * length : length]
        if len(begins) < 5 or set(begins) != {_SYNC}:
            continue
        ends = (tail[sync - over - length], *tail[len(tail) - over :][sync : sync + 1])
        # Other bytes behind the last packet are no part of one.
        return "in the middle of a packet" if over and set(ends) == {_SYNC} else ""
    return ""


def _gif_end(file: BinaryIO) -> str:
    """Tell of a GIF without the trailer behind its last picture."""
    file.seek(10)
    _skip_colours(file, file.read(1))
    file.seek(2, 1)
    while block := file.read(1):
        if block == b"!":
            file.seek(1, 1)
        elif block == b",":
            file.seek(8, 1)
            _skip_colours(file, file.read(1))
            file.seek(1, 1)
        else:
            return ""  # the trailer, or what no GIF holds
        while (length := file.read(1)) and length != b"\0":
            file.seek(length[0], 1)
    return "before its trailer"


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << ((flags[0] & 7) + 1), 1)
