"""Characters that a terminal obeys, or that are not shown, are written out."""

from __future__ import annotations

import unicodedata

import pytest

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
