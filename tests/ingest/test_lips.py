"""``kpstore ingest lips`` from mouth crops to views and files, with a random encoder."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.cli.main import run
from kpstore.extractors.lip_resnet18 import LipResnet18Extractor
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.inspect.verify import verify
from kpstore.schema.feature import State
from kpstore.sources.lips import LipsSource
from tests.cli.conftest import Kpstore
from tests.ingest.mouths import LENGTHS, crops, write_mouths

pytest.importorskip("yaml")
torch = pytest.importorskip("torch")
make_state = pytest.importorskip("tests.extractors.test_lip_resnet18").make_state

SMALL = ("--set", "batch_frames=2")
"""Calls of two frames, which the utterances fill; of ten, they would compute zeros above all."""
SPLITS = {"a": "train", "b": "train", "c": "val", "a2": "val", "d": "test"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth.tar"
    torch.save({"model_state_dict": make_state()}, path)
    return path


@pytest.fixture(scope="module")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a data set, with the store ``lips.kps`` that an undisturbed run makes.

    Nobody changes either.
    """
    root = write_mouths(tmp_path_factory.mktemp("data"))
    assert run([str(word) for word in command(root, weights, root / "lips.kps")]) == 0
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of a test's own."""
    return write_mouths(tmp_path / "data")


def command(root: Path, weights: Path, store: Path, *more: object) -> list[object]:
    conf = ("--conf", root / "configs" / "LRS2.yml")
    return ["ingest", "lips", *conf, "--weights", weights, store, "--workers", 0, *SMALL, *more]


# -- what comes out --------------------------------------------------------------------------------


def test_every_utterance_is_there_once_in_its_split(finished: Path) -> None:
    store = kpstore.open(finished / "lips.kps")
    assert dict(zip(store.index.ids.tolist(), store.index.splits.tolist(), strict=True)) == SPLITS
    assert {name: store.video(name)["lip_resnet18"].shape for name in LENGTHS} == {
        name: (length, 512) for name, length in LENGTHS.items()
    }
    assert store["image_path"][:].tolist()[:3] == ["a.npz#0", "a.npz#1", "b.npz#0"]
    assert np.isfinite(store["lip_resnet18"][:]).all()
    assert verify(store).problems == []
    sample = store.lips(split="test")[0]
    np.testing.assert_array_equal(sample["embedding"], store.video("d")["lip_resnet18"])
    assert (sample["video_id"], sample["n_frames"]) == ("d", 2)


def test_splits_may_come_one_by_one(
    kpstore_: Kpstore, finished: Path, weights: Path, tmp_path: Path
) -> None:
    store = tmp_path / "lips.kps"
    for split, expected in (("test", ["d"]), ("all", ["d", "a", "b", "c", "a2"])):
        assert kpstore_(*command(finished, weights, store, "--split", split)).code == 0
        assert kpstore.open(store).index.ids.tolist() == expected
    assert not kpstore.diff(kpstore.open(finished / "lips.kps"), kpstore.open(store))


def test_files_go_out_and_come_back_the_same(
    kpstore_: Kpstore, finished: Path, tmp_path: Path
) -> None:
    out, back = tmp_path / "out", tmp_path / "back.kps"
    shutil.copytree(finished / "mouths", out)
    for name in ("configs", "lists"):
        shutil.copytree(finished / name, tmp_path / name)
    assert kpstore_("export", "embeddings", finished / "lips.kps", out).code == 0
    with np.load(out / "b_embedding.npz") as file:
        assert file["embedding"].shape == (512, 3)
    (tmp_path / "mouths").symlink_to(out)
    assert (
        kpstore_(
            "import", "embeddings", out, back, "--config", tmp_path / "configs" / "LRS2.yml"
        ).code
        == 0
    )
    ours, theirs = kpstore.open(finished / "lips.kps"), kpstore.open(back)
    assert theirs.index.splits.tolist() == ours.index.splits.tolist()
    np.testing.assert_array_equal(theirs["lip_resnet18"][:], ours["lip_resnet18"][:])
    assert theirs["image_path"][:].tolist() == ours["image_path"][:].tolist()
    compared = kpstore_("diff", finished / "lips.kps", back)
    assert compared.code == 0, compared.out


def test_a_store_is_verified_beside_its_lists(kpstore_: Kpstore, finished: Path) -> None:
    store = finished / "lips.kps"
    found = kpstore_("verify", store, "--source", finished / "configs" / "LRS2.yml")
    assert (found.code, found.out.splitlines()[-1]) == (0, "the store holds all of it")
    assert "no videos" not in kpstore_("verify", store, "--source", finished / "mouths").err


def test_a_folder_of_crops_needs_no_lists(
    kpstore_: Kpstore, data: Path, finished: Path, weights: Path
) -> None:
    folder = ("--npz-dir", data / "mouths", "--weights", weights, "--workers", 0, *SMALL)
    assert (
        kpstore_("ingest", "lips", data / "a.kps", *folder, "--max-videos-per-split", 2).code == 0
    )
    store, other = kpstore.open(data / "a.kps"), kpstore.open(finished / "lips.kps")
    assert store.index.ids.tolist() == ["a", "a2"]
    np.testing.assert_array_equal(
        store.video("a")["lip_resnet18"], other.video("a")["lip_resnet18"]
    )


def test_embeddings_are_added_to_a_store_of_crops(
    kpstore_: Kpstore, data: Path, finished: Path, weights: Path
) -> None:
    """Of a store that has other numbers of the same crops."""
    store = data / "mouths" / "lips.kps"
    assert kpstore_(*command(data, weights, store, "--set", "quirk=height_slice")).code == 0
    lips = ("--extractor", "lip_resnet18", "--weights", weights, "--workers", 0, *SMALL)
    refused = kpstore_("ingest", "features", store, *lips)
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert "'lip_resnet18' was made with parameters" in refused.err
    assert kpstore_("ingest", "features", store, *lips, "--overwrite").code == 0
    assert not kpstore.diff(kpstore.open(finished / "lips.kps"), kpstore.open(store))


# -- interruptions ---------------------------------------------------------------------------------


def test_what_is_not_encoded_yet_is_computed_as_the_store_has_it_on_record(
    data: Path, weights: Path, finished: Path
) -> None:
    assert run([str(word) for word in command(data, weights, data / "mouths.kps")]) == 0
    store = kpstore.open(data / "mouths.kps", mode="a")
    with store.transaction("one forgotten") as tx:
        tx.reset_states("lip_resnet18", [store.index.position("c")])
    how = {"weights": weights, "root": data / "mouths"}
    view = kpstore.open(store.location).lips(missing="compute", compute=how, videos=["c"])
    np.testing.assert_array_equal(
        view[0]["embedding"], kpstore.open(finished / "lips.kps").video("c")["lip_resnet18"]
    )


def test_killed_and_gone_on_with_it_is_the_same_store(
    kpstore_: Kpstore, finished: Path, weights: Path, tmp_path: Path
) -> None:
    store = tmp_path / "killed.kps"
    script = [sys.executable, "-m", "tests.ingest.mouths", str(finished), str(weights), str(store)]
    killed = subprocess.run(script, cwd=Path(__file__).parents[2], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    n_done = int((kpstore.open(store).states("lip_resnet18") == State.DONE).sum())
    assert 0 < n_done < len(LENGTHS)
    result = kpstore_(*command(finished, weights, store))
    assert result.code == 0
    assert f"{n_done} were there already" in result.out
    assert not kpstore.diff(kpstore.open(finished / "lips.kps"), kpstore.open(store))


def test_a_worker_gives_the_same_bits(
    kpstore_: Kpstore, finished: Path, weights: Path, tmp_path: Path
) -> None:
    """One, as each imports torch; ``test_run`` tries several."""
    store = tmp_path / "worker.kps"
    assert kpstore_(*command(finished, weights, store, "--workers", 1)).code == 0
    assert not kpstore.diff(kpstore.open(finished / "lips.kps"), kpstore.open(store))
    assert kpstore.open(store).provenance("lip_resnet18")["parameters"]["batch_frames"] == 2


def test_however_it_is_cut_it_gives_the_same_bits(
    finished: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tasks of any size, one utterance at a time and many, and pieces of several in one call."""
    monkeypatch.setattr("kpstore.extractors.lip_resnet18.PIECE", 2)
    source = LipsSource(finished / "configs" / "LRS2.yml")
    stores = []
    for number, (task_frames, first) in enumerate([(1, 5), (3, 5), (100, 5), (100, 1)]):
        for videos in (first, 5):
            extractor = LipResnet18Extractor(weights=weights, crop=32, batch_frames=4)
            some = (
                LipsSource(finished / "configs" / "LRS2.yml", max_videos_per_split=1)
                if videos == 1
                else source
            )
            run_ingest(
                some,
                tmp_path / f"{number}.kps",
                extractor,
                Options(workers=0, task_frames=task_frames),
            )
        stores.append(kpstore.open(tmp_path / f"{number}.kps"))
    for name in LENGTHS:
        for store in stores[1:]:
            np.testing.assert_array_equal(
                store.video(name)["lip_resnet18"], stores[0].video(name)["lip_resnet18"]
            )


def test_a_file_that_is_torn_after_the_scan_fails_alone_and_is_tried_again(
    kpstore_: Kpstore, data: Path, finished: Path, weights: Path
) -> None:
    """The scan reads headers alone: damage behind them shows when the crops are read."""
    store, path = data / "a.kps", data / "mouths" / "b.npz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    result = kpstore_(*command(data, weights, store))
    assert result.code == 1
    (failure,) = kpstore.open(store).failures("lip_resnet18")
    assert failure.video_id == "b"
    assert "b.npz is not an npz file, or is cut short or damaged" in failure.reason
    path.write_bytes(whole)
    told = json.loads(kpstore_(*command(data, weights, store, "--retry-failed", "--json")).out)
    assert (told["videos_done"], told["videos_before"], told["failures"]) == (1, 4, [])
    assert not kpstore.diff(kpstore.open(finished / "lips.kps"), kpstore.open(store))


def test_other_settings_need_overwrite(
    kpstore_: Kpstore, data: Path, finished: Path, weights: Path
) -> None:
    store = Path(shutil.copytree(finished / "lips.kps", data / "a.kps"))
    assert kpstore_(*command(data, weights, store)).out.startswith(
        "lip_resnet18: nothing to do, all 5 videos"
    )
    other = command(data, weights, store, "--set", "quirk=height_slice")
    refused = kpstore_(*other)
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert kpstore_(*other, "--overwrite").code == 0
    assert kpstore.open(store).provenance("lip_resnet18")["parameters"]["quirk"] == "height_slice"
    assert (
        kpstore.open(store)["lip_resnet18"][:]
        != kpstore.open(finished / "lips.kps")["lip_resnet18"][:]
    ).any()


# -- one line each ---------------------------------------------------------------------------------


def yaml_without_lists(root: Path) -> None:
    (root / "configs" / "LRS2.yml").write_text("datamodule:\n  data_config:\n    n_src: 2\n")


def broken_yaml(root: Path) -> None:
    (root / "configs" / "LRS2.yml").write_text("datamodule: [\n")


def list_gone(root: Path) -> None:
    shutil.rmtree(root / "lists" / "cv")


def other_list(root: Path) -> None:
    (root / "lists" / "tr" / "s1.json").write_text('[["x.wav", 32000]]')


def nothing(root: Path) -> None:
    pass


MISTAKES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "no lists": (
        yaml_without_lists,
        (),
        r"LRS2\.yml: no train_dir, valid_dir, test_dir in datamodule\.data_config",
    ),
    "no YAML": (broken_yaml, (), r"LRS2\.yml is not YAML that can be read: "),
    "list gone": (list_gone, (), r"split 'val' has no s1\.json or s2\.json in .*lists/cv"),
    "other list": (
        other_list,
        (),
        r"entry 0 is \[\"x\.wav\", 32000\]; \[wav, npz, samples\] is needed",
    ),
    "no configuration": (
        nothing,
        ("--conf", "nowhere.yml"),
        r"no configuration at .*nowhere\.yml: it does not exist",
    ),
    "a folder": (
        nothing,
        ("--conf", "mouths"),
        r"--config mouths is a folder; give a configuration .*--npz-dir",
    ),
    "both": (
        nothing,
        ("--npz-dir", "mouths"),
        r"in one of two ways: --config CONFIG\.yml, or --npz-dir DIR",
    ),
    "no such split": (
        nothing,
        ("--split", "dev"),
        r"split 'dev' not found .* \['train', 'val', 'test'\]",
    ),
    "no such weights": (
        nothing,
        ("--weights", "nowhere"),
        r"no lip-reading weights at .*nowhere: it does not exist",
    ),
    "no checkpoint": (
        nothing,
        ("--weights", "configs/LRS2.yml"),
        r"LRS2\.yml (is not a checkpoint|holds more than)",
    ),
    "no device": (
        nothing,
        ("--device", "cuda:0"),
        r"'cuda:0' asked for, none found .*; leave out --device",
    ),
    "no GPU": (
        nothing,
        ("--gpus", "2"),
        r"2 GPUs asked for, none found on this machine; leave out --gpus",
    ),
    "crop": (nothing, ("--set", "crop=200"), r"crop=200: use 32 to 96 pixels"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    kpstore_: Kpstore, data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    spoil, options, words = MISTAKES[mistake]
    spoil(data)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(data)
    result = kpstore_(*command(data, weights, data / "new.kps", *options))
    assert (result.code, len(result.lines), result.out) == (2, 1, "")
    assert re.search(words, result.err), result.err
    assert not (data / "new.kps").exists()


def test_lips_have_no_weights_of_their_own_and_need_utterances(
    kpstore_: Kpstore, data: Path, weights: Path
) -> None:
    conf = ("--conf", data / "configs" / "LRS2.yml")
    for options, words in (
        (conf, "'lip_resnet18' has no weights of its own; give the checkpoint"),
        (("--weights", weights), "name the utterances"),
        (("--weights", weights, "--npz-dir", data / "nowhere"), "no folder of npz files at"),
        (("--weights", weights, "--npz-dir", conf[1]), "is a file; is it meant for --config?"),
    ):
        result = kpstore_("ingest", "lips", data / "new.kps", "--workers", 0, *options)
        assert (result.code, len(result.lines)) == (2, 1)
        assert words in result.err
    assert not (data / "new.kps").exists()


def test_files_that_are_no_crops_are_listed_a_line_each(
    kpstore_: Kpstore, data: Path, weights: Path
) -> None:
    mouths, store = data / "mouths", data / "new.kps"
    np.savez(mouths / "a.npz", other=crops("a"))
    np.savez(mouths / "b.npz", data=crops("b")[:, :88, :88])
    (mouths / "c.npz").write_bytes((mouths / "c.npz").read_bytes()[:500])
    (mouths / "d.npz").unlink()
    refused = kpstore_(*command(data, weights, store))
    assert (refused.code, len(refused.lines)) == (2, 5)
    assert "LRS2: 4 problems with the data set" in refused.lines[0]
    for line, words in zip(
        sorted(refused.lines[1:]),
        (
            "a.npz: no array 'data' in it; it has other",
            "b.npz: 'data' is (3, 88, 88) uint8; grey mouth crops are (T, 96, 96) uint8",
            "c.npz is not an npz file, or is cut short or damaged",
            "d.npz",
        ),
        strict=True,
    ):
        assert words in line
    assert not store.exists()
    result = kpstore_(*command(data, weights, store, "--ignore-problems"))
    assert result.code == 0
    assert "\n4 notes:" in result.out
    assert kpstore.open(store).index.ids.tolist() == ["a2"]
