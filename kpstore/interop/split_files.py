"""Reading splits from a table or JSON, and setting them in one commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kpstore.errors import InvalidError, several
from kpstore.store.store import BaseStore
from kpstore.user_files import parse_json, parse_table, read_text, spellings
from kpstore.visible import visible

_ID_COLUMNS = ("video_id", "name", "id", "video")
"""Columns that may hold the ids of videos; the first one that a table has is used.

Tables of PHOENIX have both ``name`` and ``video``, which is a path.
"""
_SPLIT_COLUMNS = ("split", "subset")
_SHOWN = 20


@dataclass(frozen=True)
class SplitChange:
    """Result of setting splits, or in a dry run what it would be.

    Parameters
    ----------
    snapshot : id of the new version, or of the newest one if nothing was written.
    videos : number of videos that the file names.
    changed : number of these videos that get another split.
    kept : number of videos that the file does not name, which keep their splits.
    before, after : number of videos by split, of the whole store.
    """

    snapshot: str
    videos: int
    changed: int
    kept: int
    before: dict[str, int]
    after: dict[str, int]

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
        return asdict(self)


def set_splits(
    store: BaseStore, path: Path, *, keep_others: bool = False, dry_run: bool = False
) -> SplitChange:
    """Set the splits of the newest version's videos from a file, in one commit.

    Frames are not touched.

    Parameters
    ----------
    store : opened with ``mode="a"``, except for a dry run.
    path : see :func:`read_splits`.
    keep_others : whether videos that the file does not name keep their splits; otherwise, they are
        an error.
    dry_run : whether to write nothing.

    Raises
    ------
    InvalidError
        If the file cannot be read, names unknown videos, or omits videos; one line for each.
    BusyError
        If another process is writing the store.
    """
    named = read_splits(path)
    if dry_run:
        newest = store.at()
        return _planned(newest, _as_stored(newest, named, path), path, keep_others)
    with store.backend.exclusive("setting splits"):
        newest = store.at()
        splits = _as_stored(newest, named, path)
        change = _planned(newest, splits, path, keep_others)
        if not change.changed:
            return change
        changed, file = (
            f"{change.changed} of {sum(change.after.values())} videos",
            visible(path.name),
        )
        metadata = {"splits": {"file": file, "before": change.before, "after": change.after}}
        message = f"splits set from {file}: {changed} changed"
        with store.transaction(message, metadata=metadata) as tx:
            tx.set_splits(splits)
    return replace(change, snapshot=str(tx.snapshot))


def _as_stored(store: BaseStore, splits: dict[str, str], path: Path) -> dict[str, str]:
    """Return splits by videos as the store spells them."""
    spelled = spellings(store.index.ids.tolist())
    _refuse_twice(path, Counter(map(spelled, splits)))
    return {spelled(video): split for video, split in splits.items()}


def _refuse_twice(path: Path, counts: Counter[str]) -> None:
    _refuse(path, _lines("is named twice", [video for video, count in counts.items() if count > 1]))


def _planned(
    store: BaseStore, splits: dict[str, str], path: Path, keep_others: bool
) -> SplitChange:
    index = store.index
    unknown = [video for video in splits if video not in index]
    missing = [video for video in index.ids.tolist() if video not in splits]
    problems = _lines("is not in the store", unknown)
    if not keep_others:
        problems += _lines(
            "is in the store and not in the file (--keep-others leaves such videos as they are)",
            missing,
        )
    _refuse(path, problems)
    old = dict(zip(index.ids.tolist(), index.splits.tolist(), strict=True))
    return SplitChange(
        store.snapshot,
        len(splits),
        sum(old[video] != split for video, split in splits.items()),
        len(missing),
        dict(Counter(old.values())),
        dict(Counter({**old, **splits}.values())),
    )


def _lines(what: str, videos: Sequence[str]) -> list[str]:
    more = [f"… and {len(videos) - _SHOWN} more like it"] if len(videos) > _SHOWN else []
    return [*(f"video {video!r} {what}" for video in videos[:_SHOWN]), *more]


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise InvalidError(f"{path}: {problems[0]}; no split was changed")
    if problems:
        raise several(InvalidError(f"{path}: no split was changed:"), problems)


def read_splits(path: Path) -> dict[str, str]:
    """Return splits by video.

    Parameters
    ----------
    path : JSON ``{video: split}`` or ``{split: [videos]}``; or a table with a header, separated by
        commas, semicolons, tabs or ``|``, with a column ``video_id``, ``name``, ``id`` or ``video``
        and a column ``split`` or ``subset``. Other columns are ignored.
        See :func:`kpstore.user_files.parse_table` for what spreadsheets write, and
        :func:`kpstore.user_files.read_text` for encodings.

    Raises
    ------
    InvalidError
        If it is neither, or names a video twice; one line for each video.
    """
    text = read_text(path)
    pairs = list(
        _json_pairs(path, text) if text.lstrip()[:1] in ("{", "[") else _table_pairs(path, text)
    )
    _refuse_twice(path, Counter(video for video, _ in pairs))
    bad = [
        video
        for video, split in pairs
        if not video or split != split.strip() or not split.isprintable()
    ]
    _refuse(
        path,
        _lines("has no id, or a split that is not printable text without spaces around it", bad),
    )
    if not pairs:
        raise InvalidError(f"{path} names no videos")
    return dict(pairs)


def _json_pairs(path: Path, text: str) -> Iterable[tuple[str, str]]:
    # As pairs: of a key that comes twice, a dict would silently drop the first.
    entries: Any = parse_json(text, str(path), pairs=list)
    if text.lstrip().startswith("{"):
        if all(isinstance(value, str) for _, value in entries):
            return [(video, split) for video, split in entries]
        if all(
            isinstance(v, list) and all(isinstance(video, str) for video in v) for _, v in entries
        ):
            return [(video, split) for split, videos in entries for video in videos]
    raise InvalidError(f"{path}: JSON of splits is {{video: split}} or {{split: [video, …]}}")


def _table_pairs(path: Path, text: str) -> Iterable[tuple[str, str]]:
    table = parse_table(text, str(path), needed=_SPLIT_COLUMNS)
    video, split = table.column(*_ID_COLUMNS), table.column(*_SPLIT_COLUMNS)
    if video is None or split is None:
        raise InvalidError(
            f"{path}: a table needs a header with video_id and split, found "
            f"{', '.join(table.columns)[:80]!r}"
        )
    return [(row[video], row[split]) for row in table.rows]
