"""Mouth crops of lip-reading data sets: an npz file per utterance, listed or in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from kpstore.budget import MemoryBudget
from kpstore.errors import InvalidError, KpstoreError, NotFoundError, one_line
from kpstore.options import Option
from kpstore.schema.index import VideoRecord
from kpstore.schema.lips import CROP_SIDE, CROPS_KEY, EMBEDDING_ENDING
from kpstore.sources.base import LEFT_OUT, Frame, FrameError, Listing
from kpstore.sources.lip_lists import Utterances, list_folders, read_split, utterance_id
from kpstore.sources.npz_files import BLOCK_BYTES, NpyHeader, NpzFile
from kpstore.sources.selection import (
    MaxVideos,
    Splits,
    check_splits,
    complete_source,
    part_of,
    selected,
)
from kpstore.visible import logger

_log = logger(__name__)

Root = Annotated[
    Path | None,
    Option("The folder that holds all listed files; by default the deepest that does.", "DIR"),
]


@dataclass(frozen=True)
class LipsSource:
    """Utterances of a lip-reading data set: npz files with ``data``, (T, 96, 96) uint8 grey.

    A video's id is its file's path in ``root`` without ``.npz``; its frames are ``x.npz#0``,
    ``x.npz#1``, …: the ids and paths that an import of embeddings of the same files has. A file
    counts once, however often it is listed; one that several splits list belongs to the first of
    train, val, test, whichever splits are asked for. Videos come in the order of the lists, or
    sorted.

    Parameters
    ----------
    lists : a YAML configuration that names folders of ``s1.json`` and ``s2.json``; or a folder of
        npz files, all of which are utterances (folders in it included), but for ``*_embedding.npz``
        and those that begin with a dot.
    root : the folder that holds all listed files; by default the deepest one that does. Relative
        entries are looked for in it, in the folder above the configuration's, and beside the
        configuration.
    splits : only these; for a configuration.
    max_videos_per_split : only the first ones of each split.
    """

    lists: Path
    root: Root = None
    splits: tuple[str, ...] | None = None
    max_videos_per_split: MaxVideos = None

    def __post_init__(self) -> None:
        complete_source(self, "lists", "root")

    @property
    def name(self) -> str:
        """Name of the folder, or of the configuration without its ending."""
        return self.lists.resolve().name if self.is_folder else self.lists.stem

    @property
    def is_folder(self) -> bool:
        """Whether all npz files of a folder are meant, and no lists."""
        return self.lists.is_dir()

    @property
    def provenance(self) -> Mapping[str, object]:
        """Which lists, and which part of them.

        The folder of each split's lists as the configuration names it.
        """
        return {
            "kind": "lips",
            "configuration": None if self.is_folder else self.lists.name,
            "lists": None if self.is_folder else list_folders(self.lists),
            **part_of(self),
        }

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List the utterances, of whose files only headers are read.

        A file without such crops is a problem.
        """
        _common_root.cache_clear()  # lists may have changed
        problems: list[str] = []
        base = self._base()
        if not base.is_dir():
            raise NotFoundError(f"no folder of mouth crops at {base}: it {_what_is(base)}")
        videos: list[VideoRecord] = []
        found = self._utterances(base, problems).splits.items()
        for utterance, split in selected(self, found, lambda pair: pair[1]):
            try:
                videos.append(_video(base, utterance, split))
            except KpstoreError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{base / utterance}.npz: {one_line(error)}")
            if on_video is not None:
                on_video(len(videos))
        return Listing(tuple(videos), tuple(problems))

    def _base(self) -> Path:
        if self.is_folder:
            if self.root not in (None, self.lists):
                raise InvalidError(
                    f"{self.lists} is a folder of npz files, so root={str(self.root)!r} says "
                    "nothing"
                )
            return self.lists
        return self.root or _common_root(self.lists)

    def _utterances(self, base: Path, problems: list[str]) -> Utterances:
        if self.is_folder:
            return self._of_folder()
        found = Utterances()
        for split, files in _files(self.lists, self.root, self.splits, problems):
            for file in files:
                found.add(utterance_id(file, base, self.lists), split)
        if not found.splits:
            raise NotFoundError(f"{self.lists}: its lists name no npz files")
        if found.twice:
            first = min(found.twice)
            problems.append(
                f"{len(found.twice)} utterances are listed in several splits, such as {first!r}; "
                f"each is taken in the first ({found.splits[first]!r} for that one) and in no other"
            )
        return found

    def _of_folder(self) -> Utterances:
        if self.splits is not None:
            raise InvalidError(
                f"{self.lists} is a folder of npz files, which says no splits, but "
                f"{list(self.splits)} were asked for; give a configuration (.yml)"
            )
        names = folder_utterances(self.lists, embeddings=False)
        if not names:
            raise NotFoundError(f"no npz files of mouth crops in {self.lists}")
        return Utterances(dict.fromkeys(names, ""))

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Frame]:
        """Yield the crops of an utterance, (96, 96) uint8 grey each.

        See :class:`kpstore.sources.base.Source`.

        A file's checksum covers all of it, so it is read twice, in blocks: if it is damaged, all of
        its frames are.

        Raises
        ------
        InvalidError
            If the file holds more or fewer frames than it had when it was listed.
        """
        return read_utterance(self._base() / f"{video.id}.npz", video.n_frames, skip)


@dataclass(frozen=True)
class LipsChoice:
    """The options of ``kpstore ingest lips``, which name a :class:`LipsSource`.

    Parameters
    ----------
    conf, npz_dir : one of the two, for :attr:`LipsSource.lists`.
    splits : None, or ``"all"`` alone, for all of them.
    root, max_videos_per_split : see :class:`LipsSource`.
    """

    summary: ClassVar[str] = (
        "Extract lip embeddings from mouth crops (npz files that a configuration lists) with the "
        "ResNet18 of IIANet."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "kpstore ingest lips --config configs/LRS2-IIANet.yml --split all "
        "--weights resnet18.pth.tar lips.kps --device cuda:0",
        "kpstore ingest lips --npz-dir mouths --weights resnet18.pth.tar lips.kps",
    )
    recipe: ClassVar[str] = "lip_resnet18"

    conf: Annotated[
        Path | None,
        Option("Configuration that names the lists of utterances.", "YAML", ("--config", "--conf")),
    ] = None
    npz_dir: Annotated[Path | None, Option("A folder of npz files, instead of lists.", "DIR")] = (
        None
    )
    root: Root = None
    splits: Splits = None
    max_videos_per_split: MaxVideos = None

    def for_store(self, location: str) -> LipsSource:
        """Return the source; :class:`InvalidError` unless one place is named that can be it."""
        lists, conf, folder = self.conf or self.npz_dir, self.conf, self.npz_dir
        if lists is None or (conf and folder):
            raise InvalidError(
                "name the utterances, in one of two ways: --config CONFIG.yml, or --npz-dir DIR"
            )
        if conf and conf.is_dir():
            raise InvalidError(
                f"--config {conf} is a folder; give a configuration (.yml), or all of its npz "
                "files: --npz-dir"
            )
        if folder and not folder.is_dir():
            found = "is a file; is it meant for --config?" if folder.exists() else "does not exist"
            raise InvalidError(f"no folder of npz files at {folder}: it {found}")
        splits = None if self.splits == ("all",) else self.splits
        return LipsSource(lists, self.root, splits, self.max_videos_per_split)


def read_utterance(path: Path, n_frames: int, skip: Collection[int] = ()) -> Iterator[Frame]:
    """Yield the crops of one file; see :meth:`LipsSource.read_frames`."""
    wrong = LEFT_OUT if len(set(skip)) >= n_frames else _check_all(path, n_frames)
    crops: Iterator[Frame] = _crops(path) if wrong is None else repeat(wrong, n_frames)
    for number, crop in enumerate(crops):
        yield LEFT_OUT if number in skip else crop


def folder_utterances(root: Path, *, embeddings: bool) -> list[str]:
    """Return the ids of all utterances of a folder and those in it, sorted, each once.

    Parameters
    ----------
    embeddings : whether ``x_embedding.npz`` stands for an utterance too, even without ``x.npz``.
    """
    files = (
        path for path in root.rglob("*.npz") if not path.name.startswith(".") and path.is_file()
    )
    names = (path.relative_to(root).as_posix() for path in files if path.name != EMBEDDING_ENDING)
    wanted = (name for name in names if embeddings or not name.endswith(EMBEDDING_ENDING))
    return sorted({name.removesuffix(EMBEDDING_ENDING).removesuffix(".npz") for name in wanted})


def _what_is(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"


def _files(
    config: Path, root: Path | None, wanted: Collection[str] | None, problems: list[str]
) -> Iterator[tuple[str, list[Path]]]:
    """Yield each split with the files of its lists.

    Lists of splits that are not wanted may be missing.
    """
    folders = list_folders(config)
    check_splits(wanted, folders, config)
    for split, folder in folders.items():
        try:
            yield split, list(read_split(config, split, folder, root))
        except KpstoreError as error:
            if wanted is None or split in wanted:
                raise
            unread = (
                f"what split {split!r} lists is not known, nor what it shares with others: {error}"
            )
            if isinstance(error, NotFoundError):
                _log.warning("%s", unread)
            else:
                problems.append(unread)


@cache
def _common_root(config: Path) -> Path:
    """Return the deepest folder that holds all listed files; found once in each worker."""
    found = _files(config, None, (), [])
    folders = {os.path.dirname(os.path.abspath(file)) for _, files in found for file in files}
    if not folders:
        list(_files(config, None, None, []))  # says what is wrong with the lists
        raise NotFoundError(f"{config}: its lists name no npz files")
    return Path(os.path.commonpath(folders))


def _video(base: Path, utterance: str, split: str) -> VideoRecord:
    if not utterance.isprintable():
        raise InvalidError(f"{utterance!r}: rename it: names have to be text that can be printed")
    path = base / f"{utterance}.npz"
    with NpzFile(path) as file:
        header = file.header(CROPS_KEY)
    _check(path, header)
    budget = MemoryBudget.of(path, fixed=True)
    budget.check_frames(header.n_rows, 0, f"the names of its {header.n_rows} frames")
    frames = tuple(f"{utterance}.npz#{number}" for number in range(header.n_rows))
    return VideoRecord(utterance, split, frames, width=CROP_SIDE, height=CROP_SIDE)


def _check(path: Path, header: NpyHeader) -> None:
    if header.shape[1:] != (CROP_SIDE, CROP_SIDE) or header.dtype != np.uint8:
        raise InvalidError(
            f"{path}: {CROPS_KEY!r} is {header.shape} {header.dtype}; grey mouth crops are (T, "
            f"{CROP_SIDE}, {CROP_SIDE}) uint8"
        )
    if not header.n_rows:
        raise InvalidError(f"{path}: {CROPS_KEY!r} has no frames")


def _crops(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the crops of a file, of which only a block is in memory."""
    with NpzFile(path) as file:
        header = file.header(CROPS_KEY)
        _check(path, header)
        step = max(1, BLOCK_BYTES // header.row_bytes)
        with file.in_order(CROPS_KEY) as rows:
            for start in range(0, header.n_rows, step):
                yield from rows.take(start, min(start + step, header.n_rows)).astype(np.uint8)


def _check_all(path: Path, n_frames: int) -> FrameError | None:
    """Read a file once to its end; return why it cannot be read, without its path."""
    try:
        n_found = sum(1 for _ in _crops(path))
    except (KpstoreError, OSError) as error:
        return FrameError(one_line(str(error).replace(str(path), path.name)))
    if n_found != n_frames:
        raise InvalidError(f"{path}: holds {n_found} frames, and had {n_frames} when it was listed")
    return None
