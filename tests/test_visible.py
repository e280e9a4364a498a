"""Characters that a terminal obeys, or that are not shown, are written out."""

from __future__ import annotations

import traceback
import unicodedata
from pathlib import Path

import pytest

import kpstore
from kpstore import errors
from kpstore.errors import KpstoreError, MissingExtraError, several
from kpstore.schema.index import VideoRecord
from kpstore.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("clip\x1b[2J", "clip\\x1b[2J"),
        ("a\nb\tc\rd\0e", "a\\nb\\tc\\rd\\x00e"),
        ("user\u202egnp.exe", "user\\u202egnp.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u200bb", "a\\u200bb"),
        ("name\udcff", "name\\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_obeyed_or_hidden_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    "text", ["版本1", "Größe é", "👩\u200d👧", "می\u200cخواهم", "עברית", "a b"]
)
def test_text_of_any_language_stays(text: str) -> None:
    assert visible(text) == text


def test_no_control_or_direction_character_is_left() -> None:
    for number in range(0x110000):
        char = chr(number)
        turns = unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI")
        if turns or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            assert visible(char) != char, hex(number)


EVIL = "v\x1b[31m\u202e\nsecond line"


def test_errors_and_their_notes_show_what_strangers_wrote() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = [kind for kind in kinds if issubclass(kind, KpstoreError)]
    assert len(ours) > 8
    for kind in ours:
        made = kind(EVIL, extra=EVIL) if kind is MissingExtraError else kind(f"video {EVIL}")
        error = several(made, [EVIL])
        assert r"v\x1b[31m\u202e\nsecond line" in str(error)
        printed = "".join(traceback.format_exception(error))
        lines = printed.splitlines()
        assert len(lines) == 2
        assert lines == [visible(line) for line in lines]


@pytest.mark.parametrize("suffix", ["kps", "h5"])
def test_ids_of_a_strangers_store_are_visible_in_python(tmp_path: Path, suffix: str) -> None:
    with kpstore.create(tmp_path / f"s.{suffix}") as store:
        with store.transaction("evil") as tx:
            tx.add_videos([VideoRecord(EVIL, EVIL, (EVIL,))])
        asked = [
            lambda: store.at().video(EVIL)["points"],
            lambda: store.video(EVIL + "?"),
            lambda: store.at(EVIL),
        ]
        for ask in asked:
            with pytest.raises(KpstoreError) as raised:
                ask()
            assert str(raised.value) == visible(str(raised.value))
