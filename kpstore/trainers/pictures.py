"""Pictures as files: each is whole, or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
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


@dataclass(frozen=True)
class PictureFolder:
    """A folder with a PNG for each frame, ``video/000000.png``; :func:`open_pictures` makes one."""

    path: Path
    index: VideoIndex

    def paths(self, rows: NDArray[np.int64]) -> list[Path]:
        """Return the file of each frame, by the frame's row in the store."""
        videos = np.asarray(self.index.video_of(rows))
        ids = {video: str(self.index.ids[video]) for video in np.unique(videos).tolist()}
        return [
            self.path / _folder_name(ids[video]) / f"{row - self.index.rows(video).start:06d}.png"
            for row, video in zip(rows.tolist(), videos.tolist(), strict=True)
        ]


def open_pictures(path: Path, index: VideoIndex, about: Mapping[str, Any]) -> PictureFolder:
    """Create a folder, or go on with one whose pictures were made in the same way.

    Raises
    ------
    ExistsError
        If the folder holds anything else.
    """
    text, said = json.dumps(about, indent=2), path / ABOUT
    if said.is_file():
        if said.read_text(encoding="utf-8") != text:
            raise ExistsError(
                f"{path} holds pictures of another checkpoint, store or version; choose another "
                "folder"
            )
        return PictureFolder(path, index)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExistsError(f"{path} exists and holds other things; choose a new folder")
    path.mkdir(parents=True, exist_ok=True)
    aside = path / f".{ABOUT}.aside"
    aside.write_text(text, encoding="utf-8")
    aside.replace(said)
    return PictureFolder(path, index)


def _folder_name(video_id: str) -> str:
    """Return an id of a video as a name that no folder is denied."""
    name = quote(video_id, safe=" ")
    return name if name.strip(".") else name.replace(".", "%2E")
