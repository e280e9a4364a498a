"""What a feature's document says of videos that are removed.

A document holds other contents of a file that was imported, as the file had them: lists of ids and
paths, records by video, notes. Values that JSON lacks are dicts of a key such as ``"$tuple"``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

_WHOLE = {"$array", "$bytes", "$number"}
"""Of these, nothing can be taken out: what is left would not be such a value."""


class Mentions:
    """Finds, in a document, what names one of some videos or of their frames.

    Parameters
    ----------
    videos : ids of the videos.
    paths : paths of their frames.
    known : ids of all videos; within another one's id, such as ``"a-b"`` or in ``"a-b.mp4"``, the
        id ``"a"`` names nothing.
    """

    def __init__(self, videos: Iterable[str], paths: Collection[str], known: Collection[str]):
        videos = set(videos)
        self._known = set(known) - videos
        self._paths = {_slashed(path) for path in paths if path}
        self._names, self._others = _Names(videos), _Names(self._known)

    def removed_from(self, document: Any) -> Any:
        """Return a document without entries that are, or are named by, a text that names one.

        Of a list of lists or of records, each that has such a text goes as a whole.
        """
        if isinstance(document, list):
            return [self.removed_from(one) for one in document if not self._is_about(one)]
        if not isinstance(document, dict):
            return document
        pairs = document.get("$dict")  # of keys that are no texts, and values
        if isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs):
            kept = [pair for pair in pairs if not self._drops(*pair)]
            return {"$dict": [[key, self.removed_from(value)] for key, value in kept]}
        return {
            key: self.removed_from(value)
            for key, value in document.items()
            if not self._drops(key, value)
        }

    def _drops(self, key: Any, value: Any) -> bool:
        """Whether an entry of a dict goes."""
        is_whole = isinstance(value, str) or (isinstance(value, dict) and value.keys() & _WHOLE)
        return self._is_about(key) or (bool(is_whole) and self._is_about(value))

    def _is_about(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._is_named_in(value)
        if isinstance(value, list):
            return any(map(self._is_about, value))
        if not isinstance(value, dict):
            return False
        is_tagged = any(key.startswith("$") for key in value)
        return any(
            self._is_about(one) for one in value.values() if is_tagged or isinstance(one, str)
        )

    def _is_named_in(self, text: str) -> bool:
        if text in self._known:
            return False
        text = _slashed(text)
        tails = (text[found.end() :] for found in re.finditer("^|/", text))
        if any(tail in self._paths for tail in tails):
            return True
        named = self._names.places_in(text)
        others = self._others.places_in(text) if named else []
        return any(not any(a <= first and last <= b for a, b in others) for first, last in named)


class _Names:
    """Finds names as whole words in texts, of which there may be as many as there are names."""

    def __init__(self, names: Iterable[str]) -> None:
        by_name = {name: _words(name) for name in map(_slashed, names) if name}
        counts = Counter(word for words in by_name.values() for word in words)
        self._by_word: dict[str, list[str]] = {}
        """Names by the rarest of their words, as only texts with that word can have the name."""
        for name, words in by_name.items():
            rarest = min(sorted(words), key=counts.__getitem__, default="")
            self._by_word.setdefault(rarest, []).append(name)

    def places_in(self, text: str) -> list[tuple[int, int]]:
        """Return where names are in a text: begin and end of each."""
        return [
            found.span()
            for word in {"", *_words(text)}
            for name in self._by_word.get(word, ())
            if name in text
            for found in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)
        ]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _slashed(text: str) -> str:
    return text.replace("\\", "/")
