"""Pictures as files: each file is complete or does not exist."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kpstore.errors import ExistsError
from kpstore.schema.index import VideoIndex

ABOUT = "predict.json"


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture, (height, width) or (height, width, 3), as PNG."""
    aside = path.with_name(f".{path.name}.aside")
    Image.fromarray(picture).save(aside, format="PNG")
    aside.replace(path)


def open_pictures(folder: Path, about: Mapping[str, object]) -> None:
    """Create a folder for pictures of frames, or continue one that was made in the same way.

    Raises
    ------
    ExistsError
        If the folder holds anything else.
    """
    text, said = json.dumps(about, indent=2), folder / ABOUT
    if said.is_file():
        if said.read_text(encoding="utf-8") != text:
            raise ExistsError(
                f"{folder} holds pictures of another checkpoint, store or version; choose another "
                "folder"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExistsError(f"{folder} exists and holds other files; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{ABOUT}.aside"
    aside.write_text(text, encoding="utf-8")
    aside.replace(said)


def picture_paths(folder: Path, index: VideoIndex, rows: NDArray[np.int64]) -> list[Path]:
    """Return the file of each row of a store, ``folder/video/000000.png``."""
    videos = np.asarray(index.video_of(rows))
    names = {video: _file_name(str(index.ids[video])) for video in np.unique(videos).tolist()}
    return [
        folder / names[video] / f"{row - index.rows(video).start:06d}.png"
        for row, video in zip(rows.tolist(), videos.tolist(), strict=True)
    ]


def _file_name(video_id: str) -> str:
    """Return a folder name for the id of a video, which may hold any characters."""
    name = quote(video_id, safe=" ")
    return name if name.strip(".") else name.replace(".", "%2E")
