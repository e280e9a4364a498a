from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

import kpstore
from kpstore import plugins
from tests.cli.conftest import Kpstore
from tests.processes import start, until

FAST = ("--recipe", "fake", "--workers", "0")


def test_an_ingest_reports_and_goes_on(kpstore_: Kpstore, dataset: Path, tmp_path: Path) -> None:
    store = tmp_path / "a.kps"
    first = kpstore_(
        "ingest", "phoenix", dataset, store, *FAST, "--splits", "train", "--name", "noise"
    )
    assert first.code == 0
    assert "2 videos done; 25 frames, 0 of them failed" in first.out
    assert "2 videos to extract, 25 frames; a frame that hangs is waited for" in first.lines[0]
    second = kpstore_(
        "ingest", "phoenix", dataset, store, *FAST, "--splits", "train", "dev", "--json"
    )
    report = json.loads(second.out)
    assert (report["videos_done"], report["videos_before"], report["frames"]) == (1, 2, 7)
    third = kpstore_("ingest", "phoenix", dataset, store, *FAST)
    assert (third.code, third.out.splitlines()[0]) == (
        0,
        "points: nothing to do, all 3 videos were done before",
    )
    assert kpstore.open(store).name == "noise"
    assert kpstore.open(store).splits == ["train", "dev"]


def test_videos_are_ingested_by_the_same_options(
    kpstore_: Kpstore, dataset: Path, tmp_path: Path
) -> None:
    frames = dataset / "features" / "fullFrame-210x260px"
    result = kpstore_(
        "ingest", "videos", frames, tmp_path / "b.kps", *FAST, "--splits", "dev,train"
    )
    assert result.code == 0
    assert kpstore.open(tmp_path / "b.kps").index.total_frames == 32


def test_a_dry_run_tells_and_writes_nothing(
    kpstore_: Kpstore, dataset: Path, tmp_path: Path
) -> None:
    shown = kpstore_("ingest", "phoenix", dataset, tmp_path / "a.kps", *FAST, "--dry-run")
    assert shown.code == 0
    assert "points: 32 frames in" in shown.out
    assert "nothing was done" in shown.out
    told = json.loads(
        kpstore_("ingest", "phoenix", dataset, tmp_path / "a.kps", *FAST, "--dry-run", "--json").out
    )
    assert told["splits"]["train"] == {"videos": 2, "new": 2, "done": 0, "to_do": 2, "frames": 25}
    assert not (tmp_path / "a.kps").exists()


def test_a_dry_run_knows_what_is_there(kpstore_: Kpstore, dataset: Path, ingested: Path) -> None:
    told = json.loads(
        kpstore_("ingest", "phoenix", dataset, ingested, *FAST, "--dry-run", "--json").out
    )
    assert told["splits"]["train"] == {"videos": 2, "new": 0, "done": 2, "to_do": 0, "frames": 0}
    again = json.loads(
        kpstore_(
            "ingest", "phoenix", dataset, ingested, *FAST, "--dry-run", "--json", "--overwrite"
        ).out
    )
    assert (again["overwritten"], again["frames"]) == (3, 32)


def test_failures_are_listed_and_end_with_1(
    kpstore_: Kpstore, dataset: Path, tmp_path: Path
) -> None:
    for number in range(1, 4):
        broken = dataset / f"features/fullFrame-210x260px/train/t2/images000{number}.png"
        broken.write_bytes(broken.read_bytes()[:40])
    store = tmp_path / "a.kps"
    result = kpstore_("ingest", "phoenix", dataset, store, *FAST)
    assert result.code == 1
    assert "3 failures" in result.out
    assert "train/t2/images0001.png: " in result.out
    assert "Traceback" not in result.err
    detailed = kpstore_("info", store, "--detailed")
    assert "failures of points: 3" in detailed.out
    assert (
        len(json.loads(kpstore_("info", store, "--detailed", "--json").out)["failures"]["points"])
        == 3
    )


def test_many_failures_are_cut_short(kpstore_: Kpstore, dataset: Path, tmp_path: Path) -> None:
    for path in (dataset / "features/fullFrame-210x260px").rglob("*.png"):
        path.write_bytes(b"no picture")
    result = kpstore_("ingest", "phoenix", dataset, tmp_path / "a.kps", *FAST)
    assert f"  … and 12 more: kpstore info {tmp_path / 'a.kps'} --detailed" in result.out


def test_bad_data_sets_are_named_and_nothing_is_made(
    kpstore_: Kpstore, dataset: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a.kps"
    lists = dataset / "annotations" / "manual" / "PHOENIX-2014-T.dev.corpus.csv"
    cases = [
        ((tmp_path / "nowhere",), 1, "does not exist"),
        ((dataset, "--splits", "val"), 1, "split 'val' not found"),
    ]
    for (root, *more), n_lines, words in cases:
        result = kpstore_("ingest", "phoenix", root, store, *FAST, *more)
        assert (result.code, len(result.lines)) == (2, n_lines)
        assert words in result.err
    lists.write_text("name|video|start|end|speaker|orth|translation\nother|v|-1|-1|S|G|t\n")
    result = kpstore_("ingest", "phoenix", dataset, store, *FAST)
    assert result.code == 2
    assert "'other' is in the list" in result.err
    assert "'d1' is on disk" in result.err
    lists.write_text("name|video\n")
    assert "column 'speaker' is missing" in kpstore_("ingest", "phoenix", dataset, store, *FAST).err
    assert not store.exists()


def test_an_empty_folder_is_no_data_set(kpstore_: Kpstore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for kind in ("phoenix", "videos"):
        result = kpstore_("ingest", kind, tmp_path / "empty", tmp_path / "a.kps", *FAST)
        assert (result.code, len(result.lines)) == (2, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recipe", "unheard"), "extractor 'unheard' not found; there are: "),
        (
            ("--recipe", "fake", "--handedness", "legacy"),
            "recipe 'fake' has no option 'handedness'",
        ),
        (
            ("--recipe", "holistic", "--handedness", "legacy"),
            "recipe 'holistic' has no option 'handedness'",
        ),
        (
            ("--recipe", "parts", "--independent-frames"),
            "recipe 'parts' has no option 'independent_frames'",
        ),
        (("--face-list", "nonsense"), "'nonsense'"),
        (("--gpus", "4"), "4 GPUs asked for, none found"),
        (
            ("--recipe", "fake", "--scheduler", "nonsense://x"),
            "no Dask scheduler answers at 'nonsense://x'",
        ),
    ],
)
def test_bad_options_are_one_line(
    kpstore_: Kpstore,
    dataset: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = kpstore_("ingest", "phoenix", dataset, tmp_path / "a.kps", *options)
    assert result.code == 2
    assert words in result.lines[-1]


def test_options_of_other_recipes_are_set_by_name(
    kpstore_: Kpstore, dataset: Path, tmp_path: Path
) -> None:
    assert (
        kpstore_("ingest", "phoenix", dataset, tmp_path / "a.kps", *FAST, "--set", "scale=2.5").code
        == 0
    )
    assert kpstore.open(tmp_path / "a.kps").provenance("points")["parameters"] == {"scale": 2.5}
    result = kpstore_("ingest", "phoenix", dataset, tmp_path / "a.kps", *FAST)
    assert result.code == 2
    assert result.lines[-1].startswith(
        "error: feature 'points' was made with parameters {\"scale\": 2.5}, this run has"
    )


@pytest.mark.parametrize("folders", [("lips", "--npz-dir"), ("faces", "--face-dir", "--video-dir")])
@pytest.mark.parametrize("option", ["weights=nowhere.pth", "recipe=parts"])
def test_what_is_set_twice_is_no_internal_error(
    kpstore_: Kpstore, tmp_path: Path, folders: tuple[str, ...], option: str
) -> None:
    given = [word for name in folders[1:] for word in (name, tmp_path)]
    result = kpstore_("ingest", folders[0], *given, tmp_path / "a.kps", "--set", option)
    assert (result.code, len(result.lines)) == (2, 1)
    assert "internal error" not in result.lines[0]
    assert not option.startswith("recipe") or "has no option 'recipe'" in result.lines[0]


@pytest.mark.parametrize("command", [["info"], ["ingest", "phoenix", "."]])
def test_stores_elsewhere_are_refused_by_name(kpstore_: Kpstore, command: list[str]) -> None:
    result = kpstore_(*command, "ftp://server/a.kps")
    assert result.code == 2
    assert "ftp://server/a.kps" in result.lines[-1]


def test_a_place_where_nothing_can_be_made_is_one_line(
    kpstore_: Kpstore, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    result = kpstore_("ingest", "phoenix", dataset, tmp_path / "file" / "a.kps", *FAST)
    assert result.code == 2
    assert result.lines[-1].startswith("error: ")
    assert str(tmp_path / "file") in result.lines[-1]


def test_the_place_of_a_store_is_respected(
    kpstore_: Kpstore, dataset: Path, ingested: Path
) -> None:
    result = kpstore_("ingest", "phoenix", dataset, dataset, *FAST)
    assert (result.code, len(result.lines)) == (2, 1)
    with kpstore.open(ingested).backend.exclusive("a test"):
        busy = kpstore_("ingest", "phoenix", dataset, ingested, *FAST)
        assert (busy.code, len(busy.lines)) == (1, 1)
        assert "is being written by another process (a test, process" in busy.err
        assert kpstore_("rollback", ingested, "--to", "main").code == 1
        assert kpstore_("info", ingested).code == 0


def test_ctrl_c_says_what_is_safe_and_how_to_go_on(dataset: Path, tmp_path: Path) -> None:
    code = (
        "import signal, sys; from kpstore import plugins; from tests.fakes import FakeExtractor; "
        # a shell's background jobs ignore it
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "plugins.register('kpstore.extractors', 'fake', FakeExtractor); "
        "from kpstore.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    store, stopped = tmp_path / "a.kps", tmp_path / "stopped"
    in_the_second_video = (
        "--set",
        "stop_at=9",
        "--set",
        f"stop_file={stopped}",
        "--set",
        "typical_fps=0.1",
    )
    arguments = [
        "ingest",
        "phoenix",
        dataset,
        store,
        "--recipe",
        "fake",
        *in_the_second_video,
        "--workers",
        0,
    ]
    process = start([sys.executable, "-c", code, *arguments], cwd=Path(__file__).parents[2])
    until(stopped.exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "of 3 videos are committed; run the same command again to go on" in err
    assert "Traceback" not in err
    assert kpstore.open(store).states("points").tolist()[0] == 1


def test_the_recipes_are_those_of_the_registry(kpstore_: Kpstore) -> None:
    shown = kpstore_("ingest", "phoenix", "--help").out
    assert {"holistic", "parts"} <= set(plugins.names("kpstore.extractors"))
    assert "holistic" in shown
