"""``kpstore ingest faces`` and ``features`` from pictures to views, with tiny models."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.cli.main import run
from kpstore.extractors.dinov2_models import Architecture, register_model
from kpstore.extractors.insightface import FacesExtractor
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.inspect.verify import verify
from kpstore.schema.feature import State
from tests.cli.conftest import Kpstore
from tests.ingest.people import FRONTAL, MODEL, SIZE, models, picture, save, source, write_people

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("insightface.app")
write_pack = pytest.importorskip("tests.extractors.tiny_insightface").write_pack

OTHER = "dinov2_other"
register_model(OTHER, Architecture(32, 2, 2))

SMALL_AND_SURE, LARGE_AND_UNSURE = (0, 0, 10, 250), (2, 3, 200, 160)
FRAMES = {
    "anna": [picture(FRONTAL), picture(SMALL_AND_SURE, LARGE_AND_UNSURE), picture((1, 1, 90, 200))],
    "bert": [picture((1, 2, 60, 220)), picture(), picture((2, 1, 0, 250))],
    "carl": [picture((2, 2, 20, 230))],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pack, ``tiny``, and weights of a small DINOv2, ``dinov2``."""
    folder = tmp_path_factory.mktemp("models")
    write_pack(folder / "tiny")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.Dinov2Model(config).save_pretrained(folder / "dinov2")
    transformers.utils.logging.enable_progress_bar()
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three persons, and two fronts whose video or face is at fault: a torn frame, and no face."""
    root = write_people(tmp_path_factory.mktemp("data"), FRAMES | {"dora": [picture(FRONTAL)]})
    torn = root / "persons" / "carl" / "f1.png"
    save(torn, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    torn.write_bytes(torn.read_bytes()[:3000])
    save(root / "fronts" / "dora.png", picture())
    return root


@pytest.fixture(scope="module")
def finished(home: Path, data: Path) -> Path:
    """The store that an undisturbed run makes; nobody writes to it."""
    store = data / "faces.kps"
    assert run([str(word) for word in command(home, data, store)]) == 1  # there are failures
    return store


@pytest.fixture(scope="module")
def sound_once(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two persons of whom nothing fails, and their store ``a.kps``."""
    root = tmp_path_factory.mktemp("sound")
    write_people(root, {"Åsa": FRAMES["anna"], "bert": [FRAMES["bert"][0], FRAMES["bert"][2]]})
    assert run([str(word) for word in command(home, root, root / "a.kps")]) == 0
    return root


@pytest.fixture
def sound(sound_once: Path, tmp_path: Path) -> Path:
    """The same, for one test to change."""
    return Path(shutil.copytree(sound_once, tmp_path / "sound"))


def command(home: Path, data: Path, store: Path, *more: object) -> list[object]:
    folders = ("--video-dir", data / "persons", "--face-dir", data / "fronts")
    detector = ("--model-pack", home / "tiny", "--set", f"det_size={SIZE}", "--workers", 0)
    dinov2 = ("--dinov2-model", MODEL, "--weights", home / "dinov2")
    return ["ingest", "faces", *folders, store, *detector, *dinov2, *more]


def copy_of(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "copy.kps"))


# -- what comes out --------------------------------------------------------------------------------


def test_every_frame_is_there_with_its_numbers_or_its_reason(finished: Path) -> None:
    store = kpstore.open(finished)
    assert set(store.features) == {
        *(
            MODEL,
            "landmarks_2d",
            "landmarks_3d",
            "box",
            "detection_score",
            "spherical_angles",
            "avg_angle",
        ),
        *(
            f"face_{MODEL}",
            "face_landmarks_2d",
            "face_landmarks_3d",
            "face_box",
            "face_detection_score",
        ),
    }
    reasons = {f.image_path or f.video_id: f.reason for f in store.failures(MODEL)}
    assert set(reasons) == {"persons/bert/f1.png", "persons/carl/f1.png", "dora"}
    assert reasons["persons/bert/f1.png"] == "no face found"
    assert (
        "the reference picture has no usable face (no face found; 128 x 128 pixels"
        in reasons["dora"]
    )
    assert all(store.failures(name) == store.failures(MODEL) for name in ("box", "avg_angle"))
    anna = store.video("anna")
    np.testing.assert_array_equal(anna["box"][0], store["face_box"][store.index.position("anna")])
    np.testing.assert_allclose(anna["spherical_angles"][0], 0, atol=1e-3)
    assert anna["detection_score"][1] == pytest.approx(
        160 / 255, abs=1e-3
    )  # the largest face, not the surest
    np.testing.assert_allclose(np.linalg.norm(anna[MODEL], axis=1), 1, atol=1e-6)
    assert np.isnan(store.video("bert")[MODEL][1]).all()
    assert store.video("anna").annotations["face_image_path"] == "fronts/anna.png"
    assert store.provenance("box")["parameters"]["det_size"] == [SIZE, SIZE]
    assert verify(store).problems == []


def test_views_have_usable_frames_alone(finished: Path) -> None:
    faces = kpstore.open(finished).faces(expect_model=MODEL, target=f"face_{MODEL}")
    assert len(faces) == 6
    assert all(
        np.isfinite(np.asarray(value)).all()
        for n in range(6)
        for value in faces[n].values()
        if _is_array(value)
    )
    with pytest.raises(
        kpstore.KpstoreError, match=rf"'dinov2_vitb14' expected, but .* holds '{MODEL}'"
    ):
        kpstore.open(finished).faces(expect_model="dinov2_vitb14")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def test_reports_say_things_once(kpstore_: Kpstore, home: Path, data: Path, finished: Path) -> None:
    again = kpstore_(*command(home, data, finished))
    assert again.code == 1
    assert (
        f"{MODEL} and 11 more: nothing to do, all 4 videos were done before, some with failures"
        in again.out
    )
    assert "3 failures in" in again.out
    detailed = kpstore_("info", finished, "--detailed").out
    assert detailed.count("persons/bert/f1.png: no face found") == 1
    assert detailed.count('"extractor": "insightface"') == 1
    assert f"how {MODEL} and face_{MODEL} were made" in detailed
    assert (
        detailed.count(f"made by {MODEL}, whole frame") == 2
    )  # of frames, and of frontal pictures
    beside = kpstore_("verify", finished, "--source", data / "persons")
    assert (beside.code, beside.out.count("frames failed")) == (1, 1)


@pytest.mark.parametrize("formula", ["corrected", "json"])
def test_users_json_goes_out_and_comes_back_the_same(
    kpstore_: Kpstore, home: Path, sound: Path, formula: str
) -> None:
    store, first, back, second = (sound / name for name in ("a.kps", "a.json", "b.kps", "b.json"))
    if formula == "json":
        recipe = command(home, sound, store, "--formula", "json")
        refused = kpstore_(*recipe)
        assert (refused.code, len(refused.lines)) == (2, 1)
        assert "'landmarks_2d' was made with" in refused.err
        assert kpstore_(*recipe, "--overwrite").code == 0
    assert kpstore_("export", "json", store, first).code == 0
    written = json.loads(first.read_text(encoding="utf-8"))
    person = written["Åsa"]
    assert list(written) == ["bert", "Åsa"]
    assert {
        "face_image_path",
        "face_features",
        "face_landmarks_2d",
        "face_landmarks_3d",
        "face_box",
    } <= set(person)
    assert (person["feature_dim"], person["dinov2_model"], len(person["video_data"])) == (
        32,
        MODEL,
        3,
    )
    frame_keys = {
        "image_path",
        "features",
        "landmarks_2d",
        "landmarks_3d",
        "box",
        "spherical_angles",
        "avg_angle",
    }
    assert set(person["video_data"][1]) == frame_keys
    assert (sound / person["video_data"][1]["image_path"]).is_file()
    assert kpstore_("import", "json", first, back, "--base-dir", sound).code == 0
    assert kpstore_("export", "json", back, second).code == 0
    assert first.read_bytes() == second.read_bytes()
    ours, theirs = kpstore.open(store), kpstore.open(back)
    assert set(ours.features) - set(theirs.features) == {"detection_score", "face_detection_score"}
    told = kpstore.diff(ours, theirs).features_changed
    assert {name: change.videos for name, change in told.items() if change.videos} == {}
    assert theirs["image_path"][:].tolist() == ours["image_path"][:].tolist()
    # Users' scripts took InsightFace's first face, which is its surest.
    face, score = ("largest", 160) if formula == "corrected" else ("first", 250)
    assert ours.provenance("box")["parameters"]["face"] == face
    assert ours.video("Åsa")["detection_score"][1] == pytest.approx(score / 255, abs=1e-3)


# -- further features of a store -------------------------------------------------------------------


def test_dinov2_is_added_to_videos_that_are_there(
    kpstore_: Kpstore, home: Path, sound: Path
) -> None:
    store, faces = sound / "videos.kps", sound / "a.kps"
    assert (
        kpstore_(
            "ingest", "videos", sound / "persons", store, "--recipe", "fake", "--workers", 0
        ).code
        == 0
    )
    dinov2 = (
        "--extractor",
        "dinov2",
        "--model",
        MODEL,
        "--weights",
        home / "dinov2",
        "--workers",
        0,
    )
    lost = kpstore_("ingest", "features", store, *dinov2)
    assert (lost.code, len(lost.lines)) == (2, 1)
    assert (
        f"none of the 2 videos is in {sound}: no {sound}/bert/f0.png; say with --root" in lost.err
    )
    assert kpstore_("ingest", "features", store, *dinov2, "--root", sound / "persons").code == 0
    assert list(kpstore.open(store).features) == ["points", MODEL]
    np.testing.assert_array_equal(kpstore.open(store)[MODEL][:], kpstore.open(faces)[MODEL][:])
    refused = kpstore_(*command(home, sound, store))
    assert refused.code == 2
    assert "holds video 'bert', but no frontal pictures" in refused.lines[-1]
    assert list(kpstore.open(store).features) == ["points", MODEL]


def test_videos_without_frontal_pictures_are_refused_before_anything(
    kpstore_: Kpstore, home: Path, sound: Path
) -> None:
    given = (
        "--model",
        MODEL,
        "--weights",
        home / "dinov2",
        "--set",
        f"model_pack={home / 'tiny'}",
        "--workers",
        0,
    )
    result = kpstore_(
        "ingest", "videos", sound / "persons", sound / "new.kps", "--recipe", "faces", *given
    )
    assert (result.code, len(result.lines)) == (2, 1)
    assert "need a frontal picture of each video" in result.err
    assert "none of these 2 videos has one; 'kpstore ingest faces'" in result.err
    assert not (sound / "new.kps").exists()


def test_another_model_is_added_to_imported_json(
    kpstore_: Kpstore, home: Path, sound: Path
) -> None:
    assert kpstore_("export", "json", sound / "a.kps", sound / "a.json").code == 0
    assert kpstore_("import", "json", sound / "a.json", sound / "b.kps").code == 0
    dinov2 = ("--extractor", "dinov2", "--weights", home / "dinov2", "--workers", 0)
    assert kpstore_("ingest", "features", sound / "b.kps", *dinov2, "--model", OTHER).code == 0
    store = kpstore.open(sound / "b.kps")
    np.testing.assert_array_equal(store[OTHER][:], store[MODEL][:])
    same = kpstore_("ingest", "features", sound / "a.kps", *dinov2, "--model", MODEL)
    assert (same.code, same.out.splitlines()[0]) == (
        0,
        f"{MODEL}: nothing to do, all 2 videos were done before",
    )
    choose = kpstore_("export", "json", sound / "b.kps", sound / "c.json")
    assert choose.code == 2
    assert "say --model which one" in choose.err


# -- interruptions ---------------------------------------------------------------------------------


def test_killed_and_gone_on_with_it_is_the_same_store(
    kpstore_: Kpstore, home: Path, data: Path, finished: Path, tmp_path: Path
) -> None:
    store = tmp_path / "killed.kps"
    script = [sys.executable, "-m", "tests.ingest.people", str(data), str(home), str(store)]
    assert (
        subprocess.run(
            script, cwd=Path(__file__).parents[2], check=False, stderr=subprocess.DEVNULL
        ).returncode
        == -9
    )
    states = kpstore.open(store).states(MODEL)
    assert 0 < (states != State.PENDING).sum() < 4
    result = kpstore_(*command(home, data, store, "--base-dir", data))
    assert result.code == 1
    assert f"{(states != State.PENDING).sum()} were there already" in result.out
    assert not kpstore.diff(kpstore.open(finished), kpstore.open(store))
    assert kpstore.open(store).failures(MODEL) == kpstore.open(finished).failures(MODEL)


def test_a_worker_gives_the_same_bits(
    home: Path, data: Path, finished: Path, tmp_path: Path
) -> None:
    """One, as each takes seconds to import the models; ``test_run`` tries several."""
    options, model = Options(workers=1, task_frames=3), FacesExtractor(**models(home))
    report = run_ingest(source(data), tmp_path / "worker.kps", model, options)
    assert (report.workers, report.videos_failed, report.frames_failed) == (1, 1, 3)
    here, there = kpstore.open(finished), kpstore.open(tmp_path / "worker.kps")
    assert not kpstore.diff(here, there)
    assert there.failures(MODEL) == here.failures(MODEL)


def test_failures_are_tried_again_and_what_is_there_is_overwritten(
    kpstore_: Kpstore, home: Path, data: Path, finished: Path, tmp_path: Path
) -> None:
    store = copy_of(finished, tmp_path)
    root = tmp_path / "mended"
    for folder in ("persons", "fronts"):
        shutil.copytree(data / folder, root / folder)
    save(root / "fronts" / "dora.png", picture(FRONTAL))
    save(root / "persons" / "carl" / "f1.png", picture((2, 2, 20, 230)))
    before = kpstore.open(store)["box"][:][:3]
    retried = json.loads(kpstore_(*command(home, root, store, "--retry-failed", "--json")).out)
    assert (retried["videos_done"], retried["videos_before"], retried["frames_failed"]) == (3, 1, 1)
    np.testing.assert_array_equal(kpstore.open(store)["box"][:][:3], before)
    other = command(home, root, store, "--face", "best")
    assert "'landmarks_2d' was made with" in kpstore_(*other).err
    assert kpstore_(*other, "--overwrite").code == 1  # bert's second picture still has no face
    again = kpstore.open(store)
    assert again.provenance("box")["parameters"]["face"] == "best"
    assert again.video("anna")["detection_score"][1] == pytest.approx(250 / 255, abs=1e-3)


# -- one line each ---------------------------------------------------------------------------------


def no_network(*args: Any, **options: Any) -> Any:
    raise socket.gaierror(-3, "Temporary failure in name resolution")


MISTAKES = {
    "no such model": (
        ("--dinov2-model", "dinov2_vitx14"),
        "DINOv2 model 'dinov2_vitx14' not found; there are: ",
    ),
    "other weights": (
        ("--dinov2-model", "dinov2_vits14"),
        "holds a DINOv2 of width 32, .*has width 384",
    ),
    "no such weights": (("--weights", "nowhere"), "no weights at .*nowhere: give a folder"),
    "weights of none": (("--weights", __file__), "is not a checkpoint"),
    "no such pack": (
        ("--model-pack", "buffalo_l"),
        "model pack 'buffalo_l' is not in .*model_pack=PATH",
    ),
    "no such folder": (("--model-pack", "no/where"), "no model pack at .*no/where: give a folder"),
    "no detector": (("--model-pack", str(Path(__file__).parent)), "needs a face detector"),
    "base directory": (
        ("--base-dir", "persons"),
        "fronts does not lie in the base directory .*persons; give one",
    ),
    "no such folder of videos": (
        ("--video-dir", "nowhere"),
        "no folder of videos at .*nowhere: it does not exist",
    ),
    "no such folder of faces": (
        ("--face-dir", "nowhere"),
        "no folder of frontal pictures at .*nowhere",
    ),
    "no such device": (
        ("--device", "cuda:0"),
        "device 'cuda:0' asked for, none found on this machine; leave out",
    ),
    "no such GPU": (
        ("--gpus", "1"),
        "1 GPU asked for, none found on this machine; leave out --gpus",
    ),
    "no device at all": (("--device", "tpu"), "device 'tpu' is unknown; use cpu, cuda or cuda:0"),
    "size": (("--set", "det_size=100"), "det_size=100 is not a multiple of 32"),
    "option": (("--set", "colour=red"), "recipe 'faces' has no option 'colour'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    kpstore_: Kpstore,
    home: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:
    options, words = MISTAKES[mistake]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.chdir(data)
    result = kpstore_(*command(home, data, tmp_path / "new.kps"), *options)
    assert (result.code, len(result.lines), result.out) == (2, 1, "")
    assert result.err.startswith("error: ")
    assert re.search(words, result.err)
    assert not (tmp_path / "new.kps").exists()


def test_weights_of_the_hub_without_a_network_are_one_line(
    kpstore_: Kpstore, home: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    given = [
        word
        for word in command(home, data, tmp_path / "new.kps")
        if word not in ("--weights", home / "dinov2")
    ]
    result = kpstore_(*given, "--dinov2-model", "dinov2_vitb14")
    assert (result.code, len(result.lines)) == (1, 1)
    assert "facebook/dinov2-base cannot be loaded" in result.err
    assert "--weights PATH" in result.err
    assert not (tmp_path / "new.kps").exists()


def test_a_person_without_a_picture_is_named_and_may_be_passed_over(
    kpstore_: Kpstore, home: Path, sound: Path
) -> None:
    (sound / "fronts" / "bert.png").unlink()
    store = sound / "b.kps"
    refused = kpstore_(*command(home, sound, store))
    assert refused.code == 2
    assert (
        "persons: 1 problem with the data set; repair it, or ingest the rest with "
        "ignore_problems=True (--ignore-p" in refused.err
    )
    assert "person 'bert' has no frontal picture" in refused.lines[-1]
    assert not store.exists()
    result = kpstore_(*command(home, sound, store, "--ignore-problems"))
    assert result.code == 0
    assert "person 'bert' has no frontal picture" in result.out
    assert kpstore.open(store).index.ids.tolist() == ["Åsa"]


def test_a_dry_run_says_what_would_be_done(kpstore_: Kpstore, home: Path, sound: Path) -> None:
    result = kpstore_(*command(home, sound, sound / "b.kps", "--dry-run"))
    assert result.code == 0
    assert f"{MODEL} and 11 more: 5 frames in" in result.out
    assert not (sound / "b.kps").exists()
