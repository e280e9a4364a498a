"""Small files that people wrote: any usual encoding is read, everything else is one clear line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kpstore.errors import InvalidError, NotFoundError
from kpstore.user_files import (
    check_regular,
    parse_table,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
    spellings,
)
from tests.test_hostile_files import yaml_bomb


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "list.csv"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_any_byte_order_mark_is_read(file: Path, encoding: str) -> None:
    file.write_text("größe\t手话", encoding=encoding)
    assert read_text(file) == "größe\t手话"


def test_a_second_byte_order_mark_is_no_part_of_the_text(file: Path) -> None:
    file.write_text("\ufeffname", encoding="utf-8-sig")
    assert read_text(file) == "name"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"gr\xf6\xdfe", "not text in UTF-8.*; save it as UTF-8"),
        ("ab".encode("utf-16")[:-1], "not text in UTF-16"),
        ("ab".encode("utf-16-le"), "zero characters; save it as UTF-8"),
        (b"PK\x03\x04\0", r"a workbook \(.xlsx, .ods\).*; save the sheet as CSV"),
        (bytes.fromhex("d0cf11e0a1b11ae1"), r"a workbook \(.xls\).*; save the sheet as CSV"),
        (b"\x1f\x8b\x08", "compressed by gzip; unpack it"),
    ],
)
def test_what_is_no_text_is_told_what_to_be_saved_as(file: Path, content: bytes, says: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InvalidError, match=says):
        read_text(file)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, says in [
        (fifo, "a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a folder"),
        (loop, "cannot be read"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "a\0b", "cannot be read"),
    ]:
        with pytest.raises(InvalidError, match=says):
            read_bytes(path)
    with pytest.raises(NotFoundError):
        check_regular(tmp_path / "none")


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    file.write_bytes(b"x" * 11)
    assert read_bytes(file, most=11) == b"x" * 11
    with pytest.raises(InvalidError, match="larger than"):
        read_bytes(file, most=10)


def test_json(file: Path) -> None:
    file.write_text('{"a": [1, 2.5, null]}')
    assert read_json(file) == {"a": [1, 2.5, None]}
    assert read_json(file, pairs=list) == [("a", [1, 2.5, None])]


@pytest.mark.parametrize(
    ("text", "says"),
    [("[" * 100_000, "nested too deeply"), ("9" * 70_000, "not JSON"), ("{", "not JSON")],
)
def test_json_that_cannot_be_read_is_one_line(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidError, match=says) as caught:
        read_json(file)
    assert "\n" not in str(caught.value)


def test_yaml(file: Path) -> None:
    file.write_text("base: &b {x: 1}\nmore:\n  <<: *b\n  y: [2, *b]\n")
    assert read_yaml(file, "lips") == {"base": {"x": 1}, "more": {"x": 1, "y": [2, {"x": 1}]}}


@pytest.mark.parametrize(
    "text",
    [
        yaml_bomb("[", "]").decode(),
        yaml_bomb("{<<: [", "]}").decode(),
        "[" * 5_000,
        "{a: " * 5_000,
        "a: &a [*a]",
        "a: 1\n b: 2\n: [",
        "9" * 5_000,
        "? {}\n: 1",
        "!!python/object/apply:os.system [true]",
        "- a\n" * 200_000,
    ],
    ids=[
        "list bomb",
        "merge bomb",
        "lists",
        "maps",
        "circle",
        "broken",
        "int",
        "key",
        "tag",
        "long",
    ],
)
def test_yaml_is_bounded(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidError, match="not YAML that can be read") as caught:
        read_yaml(file, "lips")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "name,split\na,train\nb,dev\n",
        "name;split\r\na;train\r\nb;dev\r\n",
        "sep=;\nname;split\na;train\nb;dev",
        "\n \r\nname;split\na;train\nb;dev\n",
        '"sep=\t"\nname\tsplit\na\ttrain\nb\tdev',
        "name|split\na|train\nb|dev\n",
        "name,split,,\n,,,\na,train,,\n\n,,,\nb,dev,,\n,,,\n",
        ' name , split \n"a","train"\nb,dev\n',
        "name,split\ra,train\rb,dev\r",
        "sep=;\rname;split\ra;train\rb;dev",
        'name\tsplit\r\n"a"\t"train"\r\nb\tdev\r\n',
        '"name"|"split"\n"a"|"train"\n"b"|"dev"\n',
        "\u00a0name\u00a0,\u2003split\na\u00a0, train\t\n b ,dev\n",
    ],
)
def test_tables_as_spreadsheets_write_them(text: str) -> None:
    table = parse_table(text, "t.csv")
    assert table.columns == ["name", "split"]
    assert table.rows == [["a", "train"], ["b", "dev"]]


def test_cells_of_unicode_text_may_hold_quotation_marks_and_line_breaks(file: Path) -> None:
    text = 'name\ttext\r\na\t"he said ""so"", twice"\r\nb\t"two\nlines"\r\nc\td\r\n'
    file.write_text(text, encoding="utf-16", newline="")
    table = parse_table(read_text(file), "t")
    assert table.rows == [["a", 'he said "so", twice'], ["b", "two\nlines"], ["c", "d"]]
    assert table.lines == [2, 4, 5]


@pytest.mark.parametrize("text", ['"he said', '"so" he said', 'he "said"'])
def test_quotation_marks_of_sentences_swallow_no_rows(text: str) -> None:
    rows = [["a", text], ["b", "and"], ["c", 'more"']]
    for separator in "\t|":
        lines = (separator.join(cells) for cells in [["name", "text"], *rows])
        assert parse_table("\n".join(lines), "t").rows == rows


def test_empty_cells_at_the_end_of_a_line_may_be_left_out() -> None:
    table = parse_table("a,b,c\n1,2\n3\n4,5,6", "t")
    assert table.rows == [["1", "2", ""], ["3", "", ""], ["4", "5", "6"]]


def test_columns_are_found_in_any_letter_case() -> None:
    table = parse_table("Video_ID,SPLIT\n", "t")
    assert (table.column("id", "video_id"), table.column("split"), table.column("x")) == (
        0,
        1,
        None,
    )


@pytest.mark.parametrize("again", ["name", "NAME"])
def test_a_column_that_comes_twice_is_refused_if_it_is_needed(again: str) -> None:
    table = parse_table(f"name,start,split,Start,{again}\n", "t.csv")
    assert table.column("split") == 2
    with pytest.raises(InvalidError, match=r"t.csv: column 'name' comes twice; rename one"):
        table.column("id", "name")


def test_names_are_found_in_either_form_of_unicode() -> None:
    composed, taken_apart = "Mu\u0308ller".replace("u\u0308", "\u00fc"), "Mu\u0308ller"
    assert spellings([taken_apart])(composed) == taken_apart
    assert spellings([composed])(taken_apart) == composed
    both = spellings([composed, taken_apart])
    assert (both(composed), both(taken_apart), both("Muller")) == (composed, taken_apart, "Muller")


def test_lines_are_those_of_the_file() -> None:
    assert parse_table("sep=,\nname,split\n\na,train\n", "t").lines == [4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b,c\n1,2,3\n1,2", "line 3 has 2 cells, the header has 3; it may have been cut off"),
        ("a|b|c\n1|2\n1|2|3\n", "line 2 has 2 cells, the header has 3"),
        ('a,b\n1,"2\n3,4\n5,6\n', "line 2 is not a row of a table.*quotation mark may be missing"),
        (f'a,b\n1,"{"2" * 200_000}"\n', "line 2 is not a row of a table: field larger"),
        ("a|b|c\n1|2|3\n1|2", "line 3 has 2 cells, the header has 3"),
        ("a,b\n1,2,3\n", "line 2 has 3 cells"),
        ('a,b\n1,"2\n', "line 2 is not a row"),
        ("sep=ab\na,b\n", "use one character"),
    ],
)
def test_tables_that_cannot_be_trusted(text: str, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        parse_table(text, "t.csv")


def test_an_empty_table_has_no_columns() -> None:
    assert parse_table("", "t").columns == []


def test_a_value_of_json_keeps_what_python_can_hold(file: Path) -> None:
    file.write_text(json.dumps({"n": 10**4000}))
    assert read_json(file) == {"n": 10**4000}
