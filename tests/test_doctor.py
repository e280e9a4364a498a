"""The check-up of a machine, and of stores, data sets, weights and configurations."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kpstore
from kpstore import doctor
from kpstore.cli.main import run
from kpstore.doctor import EXTRAS, Finding, check_up
from tests.fakes import record


def found(name: str, *paths: Path) -> Finding:
    return next(finding for finding in check_up(paths).findings if finding.name == name)


def of_path(path: Path) -> list[Finding]:
    return [finding for finding in check_up([path]).findings if finding.area == "path"]


def without(monkeypatch: pytest.MonkeyPatch, *distributions: str) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name in distributions:
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)


def test_extras_are_those_of_setup_cfg() -> None:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    extras = {name: text for name, text in setup["options.extras_require"].items()}
    collections = {"all", "demo", "test", "fuzz", "lint"}
    named = {
        extra: {
            name for line in text.splitlines() if (name := re.split(r"[>=<;\[ ]", line.strip())[0])
        }
        - {"kpstore"}
        for extra, text in extras.items()
        if extra not in collections
    }
    assert named.keys() == EXTRAS.keys()
    assert named.pop("bench") < set(EXTRAS["bench"])
    assert named == {extra: set(names) for extra, names in EXTRAS.items() if extra != "bench"}


def test_a_machine_without_paths_is_sound_whatever_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "transformers", "distributed")
    told = check_up()
    assert told.is_sound
    assert {finding.area for finding in told.findings} == {"kpstore", "extra", "machine", "model"}
    missing = found("dinov2")
    assert (missing.state, missing.advice) == ("absent", 'pip install "kpstore[dinov2]"')
    assert missing.found.endswith("transformers not installed")
    assert json.loads(json.dumps(told.to_json()))["sound"] is True


def test_models_are_looked_for_where_they_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    models = [finding for finding in check_up().findings if finding.area == "model"]
    assert [(m.name, m.state) for m in models[1:]] == [
        ("dinov2", "absent"),
        ("insightface", "absent"),
    ]
    assert str(tmp_path / "hf" / "hub") in models[1].found
    snapshot = tmp_path / "hf/hub/models--facebook--dinov2-small/snapshots/abc"
    pack = tmp_path / ".insightface/models/buffalo_l"
    for file in (snapshot / "config.json", snapshot / "model.safetensors", pack / "det_10g.onnx"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    models = [finding for finding in check_up().findings if finding.area == "model"]
    assert [m.state for m in models[1:]] == ["ok", "ok"]
    assert models[2].found == f"buffalo_l (1 files) in {pack.parent}"
    assert models[1].found.startswith("dinov2_vits14 in ")


def test_a_runtime_for_gpus_stands_in_for_the_one_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"insightface": "2.1", "onnx": "1.22.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(doctor, "_version", known.get)
    told = next(
        each for each in check_up().findings if (each.area, each.name) == ("extra", "insightface")
    )
    assert (told.state, told.found) == (
        "ok",
        "insightface 2.1, onnx 1.22.0, onnxruntime-gpu 1.31.1",
    )
    del known["onnxruntime-gpu"]
    told = next(
        each for each in check_up().findings if (each.area, each.name) == ("extra", "insightface")
    )
    assert (told.state, told.advice) == ("absent", 'pip install "kpstore[insightface]"')
    assert told.found.endswith("onnxruntime not installed")


def test_a_model_pack_is_looked_into(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from tests.extractors.tiny_insightface import write_pack

    pack = write_pack(tmp_path / "tiny")
    (told,) = of_path(pack)
    assert (told.state, told.found) == ("ok", "model pack of InsightFace, detector det_tiny.onnx")
    (pack / "det_tiny.onnx").write_bytes(b"{}")
    (told,) = of_path(pack)
    assert (told.state, told.found.count("\n")) == ("problem", 0)


def test_gpus_are_named_or_said_to_be_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Card")
    assert (found("gpus").state, found("gpus").found) == ("ok", "2 x Card")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "sees none" in found("gpus").found
    without(monkeypatch, "torch")
    assert "torch is not installed" in found("gpus").found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert found("gpus").found == "none found"


def test_stores_and_data_sets_are_counted(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "a.kps")
    with store.transaction("all of it") as tx:
        tx.add_videos([record("v", 3), record("w", 2)])
        tx.add_feature(kpstore.FeatureSpec("points", (2,), ("point",)), {"extractor": "by hand"})
        tx.write("points", "v", np.zeros((3, 2), dtype=np.float32))
    (told,) = of_path(tmp_path / "a.kps")
    assert (told.state, told.found) == (
        "ok",
        "store of 2 videos, 5 frames; points: 1 done, 1 pending",
    )
    for number in range(2):
        (tmp_path / "clips" / "train" / "x").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "clips" / "train" / "x" / f"{number}.png")
    (told,) = of_path(tmp_path / "clips")
    assert (told.state, told.found) == ("ok", "data set clips: 1 videos (train 1), 2 frames")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "no videos"),
        (lambda path: path.write_text("x"), "not a store, a folder or a .yml file"),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text("{}")),
            "needs config.json and model.safetensors",
        ),
        (lambda path: (path.mkdir(), (path / "a.mp4").write_bytes(b"no film")), "a.mp4"),
    ],
)
def test_paths_that_cannot_be_used_are_problems(tmp_path: Path, make: Any, words: str) -> None:
    path = tmp_path / "given"
    make(path)
    told = of_path(path)
    assert any(finding.state == "problem" and words in finding.found for finding in told), told
    assert not check_up([path]).is_sound
    assert all("\n" not in finding.found for finding in told)


def test_what_is_damaged_is_a_problem(tmp_path: Path) -> None:
    for name in ("a.pth", "a.yml", "a.h5"):
        (tmp_path / name).write_bytes(b"\x80nothing")
        (told,) = of_path(tmp_path / name)
        assert (told.state, told.found.count("\n")) == ("problem", 0)
    (tmp_path / "a.kps" / "repo").mkdir(parents=True)
    assert of_path(tmp_path / "a.kps")[0].state == "problem"


def test_lists_of_a_configuration_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("yaml")
    config = tmp_path / "LRS2.yml"
    config.write_text("datamodule: {data_config: {train_dir: tr, valid_dir: cv}}")
    for split, names in (("tr", ["a.npz", "b.npz"]), ("cv", ["a.npz"])):
        (tmp_path / split).mkdir()
        (tmp_path / split / "s1.json").write_text(
            json.dumps([["x.wav", name, 100] for name in names])
        )
    (tmp_path / "a.npz").write_bytes(b"")
    train, val = of_path(config)
    assert (train.state, val.state) == ("problem", "ok")
    assert "train: 1 of 2 npz files do not exist, first " in train.found
    monkeypatch.setattr(
        doctor, "find_spec", lambda name: None if name == "yaml" else SimpleNamespace()
    )
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "_models", list)
        (told,) = of_path(config)
    assert told.advice == 'pip install "kpstore[lips]"'


def test_the_command_prints_a_table_or_json(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor"]) == 0
    shown = capfd.readouterr()
    assert {"python", "mediapipe", "cores", "insightface"} <= set(shown.out.split())
    assert shown.err == ""
    assert run(["doctor", str(tmp_path / "nowhere"), "--json"]) == 1
    told = json.loads(capfd.readouterr().out)
    assert (told["sound"], told["findings"][-1]["state"]) == (False, "problem")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from kpstore.cli.main import run; assert run(['doctor']) == 0; "
        "heavy = {'torch', 'transformers', 'mediapipe', 'distributed', 'huggingface_hub'} & "
        "set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PATH": "",
            "CUDA_VISIBLE_DEVICES": "",
            "HOME": "/",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
