"""Face lists by name or from a file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kpstore.errors import InvalidError, NotFoundError, one_line
from kpstore.schema.layout import FACE_LISTS, FaceList, MeshPoint
from kpstore.user_files import parse_json, read_text


def load_face_list(face_list: str | os.PathLike[str] | FaceList) -> FaceList:
    """Return a face list by its name or from a file.

    Parameters
    ----------
    face_list : a name in :data:`~kpstore.schema.layout.FACE_LISTS`, or a file with 68 mesh indices:
        a JSON list, in which an entry may be a list of indices to average, or numbers separated by
        white space, commas or semicolons. The list is named like the file, without its suffix.

    Raises
    ------
    NotFoundError
        If it is neither a known name nor a file.
    InvalidError
        If the file does not hold such a list.
    """
    if isinstance(face_list, FaceList):
        return face_list
    if str(face_list) in FACE_LISTS:
        return FACE_LISTS[str(face_list)]
    path = Path(face_list)
    if not path.is_file():
        raise NotFoundError(
            f"face list {str(face_list)!r} is neither a known name "
            f"({', '.join(sorted(FACE_LISTS))}) nor a file"
        )
    return FaceList(path.stem, _read_points(path), f"file {path.name}")


def _read_points(path: Path) -> tuple[MeshPoint, ...]:
    text = read_text(path).strip()
    try:
        points = (
            parse_json(text, str(path))
            if text.startswith("[")
            else [int(number) for number in re.split(r"[\s,;]+", text.rstrip(",; \t\r\n"))]
        )
    except ValueError as error:
        raise InvalidError(
            f"face list {str(path)!r} could not be read ({one_line(str(error))}); "
            "give a JSON list of 68 entries, or 68 numbers separated by white space or commas"
        ) from None
    assert isinstance(points, list)
    return tuple(tuple(point) if isinstance(point, list) else point for point in points)
