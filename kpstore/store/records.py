"""The videos of a store as records, as a source would list them."""

from __future__ import annotations

from kpstore.schema.index import VideoRecord
from kpstore.schema.video_fields import known_fps
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore


class Records:
    """Records of a store's videos; columns are read once, paths when they are used."""

    def __init__(self, store: BaseStore) -> None:
        self._store = store
        names = ("fps", "width", "height", *store.annotation_names)
        self._columns = {name: store[name][:] for name in names} if len(store.index) else {}

    def __getitem__(self, position: int) -> VideoRecord:
        index, columns = self._store.index, self._columns
        return VideoRecord(
            index.ids[position],
            index.splits[position],
            tuple(self._store[fmt.IMAGE_PATH][index.rows(position)].tolist()),
            known_fps(columns["fps"][position]),
            int(columns["width"][position]),
            int(columns["height"][position]),
            {name: str(columns[name][position]) for name in self._store.annotation_names},
        )

    def all(self) -> tuple[VideoRecord, ...]:
        """Return all records, in storage order."""
        return tuple(self[position] for position in range(len(self._store.index)))
