"""Results say what they were measured on, and the page shows what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import record
from benchmarks.__main__ import BENCHMARKS
from benchmarks.report import PAGE, ReportError, filled

TABLES = {"speeds of reading": [("a | b", "ms"), ("raw", 1.5), ("", "2 | 3")]}
RESULT = {
    "command": "python -m benchmarks.bench_x",
    "date": "2026-11-30",
    "machine": {"processor": "Fast One", "cores": 2},
    "load_before": 0.234,
    "tables": TABLES,
}
PLACE = """before
<!-- measured first -->
old
<!-- end -->
<!-- table speeds of reading of first -->
<!-- end -->
after
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "first.json").write_text(json.dumps(RESULT), encoding="utf-8")
    (tmp_path / "torn.json").write_text('{"command": "py', encoding="utf-8")
    (tmp_path / "other.json").write_text('["command", "machine", "tables"]', encoding="utf-8")
    return tmp_path


def test_the_page_shows_the_committed_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, record.RESULTS) == page, "run: make bench-report"


def test_committed_results_are_of_commands_that_are_there() -> None:
    for path in record.RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        module = result["command"].split()[2]
        assert (record.ROOT / f"{module.replace('.', '/')}.py").is_file(), path.name
        assert "changed" not in result["versions"]["kpstore"], path.name


def test_places_of_a_page_are_filled(results: Path) -> None:
    made = filled(PLACE, results)
    assert made == (
        "before\n"
        "<!-- measured first -->\n"
        "Measured 2026-11-30 by `python -m benchmarks.bench_x` on Fast One, 2 cores, load 0.2.\n"
        "<!-- end -->\n"
        "<!-- table speeds of reading of first -->\n"
        "| a \\| b | ms |\n"
        "|---|---|\n"
        "| raw | 1.5 |\n"
        "|  | 2 \\| 3 |\n"
        "<!-- end -->\n"
        "after\n"
    )
    assert filled(made, results) == made


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("\n<!-- measured first -->\nold", "line 2: <!-- measured first --> has no <!-- end -->"),
        (
            "<!-- measured first -->\n<!-- measured first -->\n<!-- end -->",
            "line 1: <!-- measured first --> has no <!-- end --> before line 2",
        ),
        ("text\n<!-- end -->", "line 2: <!-- end --> without a beginning"),
        (
            "<!-- table speed of first -->\n<!-- end -->",
            "line 1: first.json has no table 'speed'; it has speeds of reading",
        ),
        (
            "<!-- table speed of second -->\n<!-- end -->",
            "line 1: no result 'second'; there are: first, other, torn",
        ),
        ("<!-- measured torn -->\n<!-- end -->", "line 1: torn.json is not a result: Unterminated"),
        ("<!-- measured other -->\n<!-- end -->", "line 1: other.json is not a result; write it"),
    ],
)
def test_a_place_that_cannot_be_filled_is_named(page: str, message: str, results: Path) -> None:
    with pytest.raises(ReportError) as caught:
        filled(page, results)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def finished(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """End a benchmark that was called with arguments."""
    module = record.ROOT / "benchmarks" / "bench_x.py"
    monkeypatch.setattr("sys.argv", [str(module), *arguments])
    parser = record.parser("A benchmark.")
    for name in ("--runs", "--lengths", "--folder", "--plot"):
        parser.add_argument(name, nargs="*")
    record.finish(parser.parse_args(), {"ms": [1.5]}, TABLES)


def test_a_result_names_what_it_was_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    lists = ["--lengths", f"{tmp_path}/train.csv", f"{tmp_path}/my dev.csv"]
    places = [f"--folder={tmp_path}", "--plot", "a.png", "--out", str(out)]
    finished(["--runs=3", *places, *lists], monkeypatch)
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert (
        result["command"]
        == "python -m benchmarks.bench_x --runs 3 --lengths train.csv 'my dev.csv'"
    )
    assert result["figures"] == {"ms": [1.5]}
    assert result["tables"] == {
        "speeds of reading": [["a | b", "ms"], ["raw", "1.5"], ["", "2 | 3"]]
    }
    assert result["versions"].keys() >= {"kpstore", "numpy", "zarr", "icechunk"}
    assert result["machine"].keys() == {"processor", "cores", "memory_gib", "system", "python"}
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["", "speeds of reading", "", "a | b     ms", "raw      1.5", "       2 | 3"]


def test_a_result_that_cannot_be_written_is_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (tmp_path, tmp_path / "missing" / "x.json"):
        with pytest.raises(SystemExit):
            finished(["--out", str(out)], monkeypatch)
        assert "cannot be written" in capsys.readouterr().err


def test_make_bench_runs_all_benchmarks() -> None:
    there = (record.ROOT / "benchmarks").glob("bench_*.py")
    assert sorted(path.stem.removeprefix("bench_") for path in there) == sorted(BENCHMARKS)
