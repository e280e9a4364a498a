"""Stores of strangers on the command line: they move no cursor and overwrite no file."""

from __future__ import annotations

import ast
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

import kpstore
from kpstore.cli import render
from kpstore.cli.main import run
from kpstore.errors import InvalidError, KpstoreError, UnsupportedError
from kpstore.schema.feature import FeatureRows
from kpstore.schema.index import VideoRecord
from kpstore.visible import logger, visible
from tests.cli.conftest import Kpstore
from tests.fakes import fake_spec
from tests.store.data import copy_store
from tests.test_layers import modules

EVIL = "x\x1b[2J\x07\ry\nz\u202e"
CLI = Path(render.__file__).parent


@pytest.fixture(scope="module", params=[".kps", ".h5"])
def evil_built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("evil") / f"s{request.param}"
    with kpstore.create(path) as store:
        videos = [
            VideoRecord(f"{n}{EVIL}", f"{n}{EVIL}", (EVIL, EVIL), annotations={"signer": EVIL})
            for n in range(3)
        ]
        with store.transaction(EVIL) as tx:
            tx.add_videos(videos)
            tx.add_feature(fake_spec(4), {"extractor": EVIL, "more": {EVIL: [EVIL]}})
            values = FeatureRows(np.zeros((2, 5, 3), "f4"), {"detected": np.ones((2, 2), bool)})
            tx.write("points", videos[0].id, values, failed_frames={1: EVIL})
            tx.fail("points", videos[1].id, EVIL)
    return str(path)


@pytest.fixture
def evil(evil_built: str, tmp_path: Path) -> Path:
    """A store in which every text that a stranger chooses would take over a terminal."""
    folder = tmp_path / f"f{EVIL}"
    folder.mkdir()
    return Path(copy_store(evil_built, folder))


def is_shown(text: str) -> bool:
    return all(visible(line) == line for line in text.split("\n"))


@pytest.mark.parametrize(
    "words",
    [
        "info STORE",
        "branch STORE",
        "gc STORE",
        "remove STORE --feature points",
        "remove STORE --feature points --everywhere",
        "info STORE --detailed",
        "log STORE",
        "stats STORE",
        "diff STORE STORE",
        "diff STORE OTHER",
        "splits check STORE --signer signer",
        "progress STORE",
        "verify STORE",
        "verify STORE --all",
        "tag STORE",
        "cache build STORE",
        "export npz STORE OUT",
        "doctor STORE",
    ],
)
def test_what_strangers_wrote_is_visible_in_every_command(
    kpstore_: Kpstore, evil: Path, tmp_path: Path, words: str
) -> None:
    with kpstore.create(tmp_path / "other.kps") as other, other.transaction("one") as tx:
        tx.add_videos([VideoRecord(f"new{EVIL}", EVIL, (EVIL,))])
    places = {"STORE": evil, "OTHER": tmp_path / "other.kps", "OUT": tmp_path / "out"}
    result = kpstore_(*(places.get(word, word) for word in words.split()))
    assert result.out or result.err
    assert is_shown(result.out)
    assert is_shown(result.err)
    assert "internal error" not in result.err


@pytest.mark.parametrize(
    "words",
    [
        ["info", f"missing{EVIL}"],
        ["info", "STORE", "--at", EVIL],
        ["stats", "STORE", "--feature", EVIL],
        ["rollback", "STORE", "--to", EVIL],
        ["remove", "STORE", "--video", EVIL],
        ["remove", "STORE", "--video", EVIL, "--everywhere"],
        ["tag", "STORE", EVIL],
        [EVIL],
        ["info", "STORE", f"--{EVIL}"],
        ["splits", "set", "STORE", f"no{EVIL}.json"],
    ],
)
def test_errors_are_one_visible_line(kpstore_: Kpstore, evil: Path, words: list[str]) -> None:
    result = kpstore_(*(evil if word == "STORE" else word for word in words))
    assert result.code == 2
    assert len(result.lines) == 1
    assert is_shown(result.err)


def test_json_is_ascii_and_whole(kpstore_: Kpstore, evil: Path) -> None:
    result = kpstore_("info", evil, "--detailed", "--json")
    assert result.out.isascii()
    assert json.loads(result.out)["failures"]["points"][0]["reason"] == EVIL


def test_a_long_error_keeps_its_beginning_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    render.say(f"error: {'x' * 100_000}; give another file", err=True)
    shown = capsys.readouterr().err
    assert 1900 < len(shown) < 2100
    assert shown.startswith("error: xxx")
    assert shown.endswith("x; give another file\n")


def test_a_traceback_is_visible_too(
    kpstore_: Kpstore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InvalidError(EVIL)

    monkeypatch.setattr(kpstore, "open", refuse)
    result = kpstore_("info", tmp_path, "--debug")
    assert "Traceback" in result.err
    assert is_shown(result.err.replace("\n", ""))


def test_reprs_html_and_log_messages_are_visible(
    evil: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with kpstore.open(evil) as store:
        video = store.video(store.index.ids[0])
        frames = store.frames("points")
        texts = [repr(store), repr(video), repr(frames), repr(store["points"]), repr(store.at())]
        texts += [store._repr_html_() or "", video._repr_html_(), store["points"]._repr_html_()]
    assert all(map(is_shown, texts))
    assert all(text for text in texts)
    with caplog.at_level(logging.WARNING):
        logger("kpstore.test").warning("%s and %d", EVIL, 3)
    assert is_shown(caplog.messages[-1])
    assert caplog.messages[-1].endswith("and 3")


def test_nobody_in_the_command_line_prints_past_render() -> None:
    past = []
    for path in CLI.glob("*.py"):
        if path.name == "render.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
            if name in ("echo", "secho", "print", "write", "print_exc", "pprint", "input", "rule"):
                past.append(f"{path.name}:{node.lineno} {name}")
    assert past == []


def test_every_module_logs_visibly() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    assert "kpstore.cli.main" in sources
    own = {"kpstore.visible"}  # which makes the loggers
    past = {n for n, text in sources.items() if "logging.getLogger(__name__)" in text}
    assert past <= own


# -- names -----------------------------------------------------------------------------------------

NAMES = {
    "escape": "v\x1b[31m",
    "bidi": "v\u202e1",
    "up": "../../v1",
    "endless": "../" * 20 + "dev/zero",
    "absolute": "/tmp/v1",
    "long": "n" * 300,
    "long-script": "版" * 300,
    "empty": "",
    "newline": "v\n1",
    "dots": "..",
    "surrogate": "v\udcff",
}


@pytest.fixture(scope="module")
def plain_built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {}
    for suffix in (".kps", ".h5"):
        with kpstore.create(tmp_path_factory.mktemp("plain") / f"s{suffix}") as store:
            store.tag("first")
            with store.transaction("more") as tx:
                tx.add_videos([VideoRecord("a", "train", ("a.png",))])
        found[suffix] = store.location
    return found


@pytest.fixture(params=[".kps", ".h5"])
def plain(request: pytest.FixtureRequest, tmp_path: Path, plain_built: dict[str, str]) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return Path(copy_store(plain_built[request.param], folder))


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, but for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_hostile_names_of_versions_and_checkpoints_are_refused_in_one_line(
    kpstore_: Kpstore, plain: Path, tmp_path: Path, name: str
) -> None:
    before = all_bytes(tmp_path)
    # An HDF5 file takes long names; folders, which Icechunk makes of them, do not.
    makes = [["tag", plain, name], ["branch", plain, name]]
    for words in (
        *(makes if len(name) < 300 or plain.suffix == ".kps" else ()),
        ["tag", plain, name, "--delete"],
        ["branch", plain, name, "--delete"],
        ["rollback", plain, "--to", name],
        ["info", plain, "--at", name],
        ["convert", plain, tmp_path / "copy.kps", "--at", name],
        ["predict", name, plain],
    ):
        result = kpstore_(*words)
        assert (words[0], result.code, len(result.lines)) == (words[0], 2, 1)
        assert result.err.startswith("error: ")
        assert "internal error" not in result.err
        assert len(result.err) < 2200
        assert is_shown(result.err)
    assert all_bytes(tmp_path) == before


# An HDF5 file has no branches that could have names.
@pytest.mark.parametrize(
    ("plain", "kind"), [(".kps", "tag"), (".kps", "branch"), (".h5", "tag")], indirect=["plain"]
)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_hostile_names_in_a_strangers_store_move_nothing(
    kpstore_: Kpstore, plain: Path, tmp_path: Path, kind: str, name: str
) -> None:
    with kpstore.open(plain, mode="a") as store:
        if plain.suffix == ".kps":
            folder = plain / "refs" / f"{kind}.{quote(name, safe='', errors='replace')}"[:255]
            folder.mkdir()
            (folder / "ref.json").write_text(json.dumps({"snapshot": store.snapshot}))
        else:
            with suppress(KpstoreError, UnicodeError):
                store.backend.create_tag(name, store.snapshot)
    outside = {path: text for path, text in all_bytes(tmp_path).items() if "place/s" not in path}
    for words in (
        [kind, plain],
        ["info", plain],
        ["log", plain],
        ["verify", plain, "--all"],
        ["gc", plain, "--older-than", "0", "--yes"],
        [kind, plain, name, "--delete"],
        ["rollback", plain, "--to", "first"],
    ):
        result = kpstore_(*words)
        assert result.code in (0, 1, 2)
        assert "internal error" not in result.err
        assert len(result.lines) <= 1
        assert is_shown(result.out + result.err)
    assert outside == {p: text for p, text in all_bytes(tmp_path).items() if "place/s" not in p}


@pytest.mark.parametrize("suffix", [".kps", ".h5"])
def test_names_of_files_that_are_no_text_are_as_good_as_others(
    kpstore_: Kpstore, tmp_path: Path, suffix: str
) -> None:
    odd = tmp_path / os.fsdecode(b"\xff")
    values = np.zeros((2, 143, 3), np.float32)
    np.savez(tmp_path / "a.npz", keypoints=values, image_paths=["0", "1"], video_ids=["v", "w"])
    (tmp_path / "a.npz").rename(file := odd.with_suffix(".npz"))
    (table := odd.with_suffix(".csv")).write_text("video_id,split\nv,dev\nw,dev\n")
    store, copy, merged = (odd.with_name(f"{odd.name}{n}{suffix}") for n in range(3))
    made = kpstore.create(odd.with_name(f"{odd.name}x{suffix}"))
    assert made.name == rf"\udcffx{suffix}"
    for words in (
        ["import", "npz", file, store],
        ["splits", "set", store, table],
        ["convert", store, copy, "--history"],
        ["convert", store, tmp_path / "other.kps"],
        ["convert", store, tmp_path / "other.h5"],
        ["merge", store, made.location, merged],
        ["export", "hdf5", store, odd],
        ["verify", copy, "--all"],
        ["verify", merged, "--all"],
    ):
        result = kpstore_(*words)
        assert (result.code, result.err) == (0, "")
    said = [commit.message for commit in kpstore.open(copy).history()]
    assert said[0] == r"splits set from \udcff.csv: 2 of 2 videos changed"
    assert said[1:] == [r"import keypoints from \udcff.npz", r"created \udcff"]


def test_an_ingest_into_a_path_that_icechunk_cannot_send_is_one_line(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / os.fsdecode(b"\xff.kps"))
    with pytest.raises(UnsupportedError, match="text in UTF-8; rename the folder"):
        store.backend.begin().fork()


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["writer.lock", "commit.lock", "progress.json", "ledger"])
@pytest.mark.parametrize(
    "words",
    ["rollback STORE --to first", "splits set STORE FILE", "tag STORE new", "repair STORE"],
)
def test_a_link_in_a_store_changes_no_file_of_the_user(
    kpstore_: Kpstore, tmp_path: Path, name: str, words: str
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text('{"a": "train"}')
    store = tmp_path / "s.kps"
    with kpstore.create(store) as made:
        made.tag("first")
    link = store / "kpstore" / name
    link.unlink(missing_ok=True)
    link.symlink_to(mine)
    result = kpstore_(*({"STORE": store, "FILE": mine}.get(w, w) for w in words.split()))
    assert result.code == 2
    assert len(result.lines) == 1
    assert "is a symbolic link" in result.err
    assert mine.read_text() == '{"a": "train"}'


def test_a_pipe_in_a_store_does_not_make_a_command_wait(kpstore_: Kpstore, tmp_path: Path) -> None:
    store = tmp_path / "s.kps"
    kpstore.create(store).close()
    os.mkfifo(store / "kpstore" / "progress.json")
    result = kpstore_("progress", store)
    assert result.code == 2
    assert "is a pipe (FIFO)" in result.err


def test_a_wrong_progress_file_is_named(kpstore_: Kpstore, tmp_path: Path) -> None:
    store = tmp_path / "s.kps"
    kpstore.create(store).close()
    about = '{"run_id": "a", "feature": "b", '
    for content in (
        '{"run_id": 1}',
        f'{about}"frames": NaN}}',
        f'{about}"died_at": "v1"}}',
        f'{about}"died_at": [[]]}}',
        "[" * 9000,
    ):
        (store / "kpstore" / "progress.json").write_text(content)
        result = kpstore_("progress", store)
        assert result.code == 2
        assert "cannot be read" in result.err
        assert len(result.lines) == 1


def test_the_tests_above_run_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("kpstore ")
