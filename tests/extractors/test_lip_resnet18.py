"""The lip-reading encoder with random weights that the tests make themselves."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore import plugins
from kpstore.doctor import check_up
from kpstore.errors import (
    ExtractorError,
    InvalidError,
    KpstoreError,
    NotFoundError,
    UnsupportedError,
)
from kpstore.extractors.lip_resnet18 import LipResnet18Extractor
from kpstore.extractors.lip_weights import load_network, read_lip_checkpoint
from kpstore.extractors.registry import make_extractor
from kpstore.interop.embeddings.read import SPEC, EmbeddingsImport
from kpstore.interop.embeddings.write import EmbeddingsExport
from kpstore.interop.transfer import import_document
from kpstore.sources.base import FrameError
from kpstore.sources.lips import LipsSource
from kpstore.store.store import backend_for
from tests.conftest import memory_location

torch = pytest.importorskip("torch")
functional = torch.nn.functional

if "lip_resnet18" not in plugins.names(
    "kpstore.extractors"
):  # a checkout that is newer than what is installed
    plugins.register("kpstore.extractors", "lip_resnet18", LipResnet18Extractor)


def norm(name: str, width: int, state: dict[str, Any]) -> None:
    state[f"{name}.weight"] = torch.rand(width) + 0.5
    state[f"{name}.bias"] = torch.randn(width) * 0.1
    state[f"{name}.running_mean"] = torch.randn(width) * 0.1
    state[f"{name}.running_var"] = torch.rand(width) + 0.5
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def conv(*shape: int) -> Any:
    """Random, and so small that eight blocks give numbers of about 1."""
    return torch.randn(shape) * (0.2 / np.prod(shape[1:])) ** 0.5


def make_state() -> dict[str, Any]:
    """137 tensors by the names that facts about the reference give, written down here anew."""
    torch.manual_seed(0)
    state = {"frontend3D.0.weight": conv(64, 1, 5, 7, 7)}
    norm("frontend3D.1", 64, state)
    state["frontend3D.2.weight"] = torch.rand(64) * 0.5
    width = 64
    for layer, wide in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"trunk.layer{layer}.{block}"
            state[f"{name}.conv1.weight"] = conv(wide, width, 3, 3)
            norm(f"{name}.bn1", wide, state)
            state[f"{name}.relu1.weight"] = torch.rand(wide) * 0.5
            state[f"{name}.relu2.weight"] = torch.rand(wide) * 0.5
            state[f"{name}.conv2.weight"] = conv(wide, wide, 3, 3)
            norm(f"{name}.bn2", wide, state)
            if width != wide:
                state[f"{name}.downsample.0.weight"] = conv(wide, width, 1, 1)
                norm(f"{name}.downsample.1", wide, state)
            width = wide
    return state


def plainly(state: dict[str, Any], crops: np.ndarray) -> np.ndarray:
    """The network in double precision, one frame at a time, of the tensors themselves.

    (T, h, w) uint8 to (T, 512).
    """
    s = {name: tensor.double() for name, tensor in state.items()}

    def batch_norm(x: Any, name: str) -> Any:
        scale = s[f"{name}.weight"] / (s[f"{name}.running_var"] + 1e-5).sqrt()
        shift = s[f"{name}.bias"] - s[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def prelu(x: Any, name: str) -> Any:
        return torch.where(x > 0, x, x * s[f"{name}.weight"][:, None, None])

    x = (torch.from_numpy(crops.astype(np.float64)) / 255 - 0.421) / 0.165
    empty = torch.zeros(2, *x.shape[1:], dtype=torch.float64)
    padded = torch.cat([empty, x, empty])
    rows = []
    for t in range(len(x)):
        # Five neighbours in time are five channels of one frame.
        y = functional.conv2d(
            padded[None, t : t + 5], s["frontend3D.0.weight"][:, 0], stride=2, padding=3
        )[0]
        y = prelu(batch_norm(y, "frontend3D.1"), "frontend3D.2")
        y = functional.max_pool2d(y[None], 3, stride=2, padding=1)[0]
        for layer in range(1, 5):
            for block in range(2):
                name, stride = f"trunk.layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
                z = functional.conv2d(y[None], s[f"{name}.conv1.weight"], stride=stride, padding=1)[
                    0
                ]
                z = prelu(batch_norm(z, f"{name}.bn1"), f"{name}.relu1")
                z = functional.conv2d(z[None], s[f"{name}.conv2.weight"], padding=1)[0]
                z = batch_norm(z, f"{name}.bn2")
                if f"{name}.downsample.0.weight" in s:
                    y = functional.conv2d(y[None], s[f"{name}.downsample.0.weight"], stride=stride)[
                        0
                    ]
                    y = batch_norm(y, f"{name}.downsample.1")
                y = prelu(z + y, f"{name}.relu2")
        rows.append(y.mean(dim=(1, 2)).numpy())
    return np.stack(rows)


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return make_state()


@pytest.fixture(scope="module")
def weights(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lrw_resnet18_mstcn.pth.tar"
    torch.save({"epoch_idx": 3, "best_prec": 0.5, "model_state_dict": state}, path)
    return path


def tiny(state: dict[str, Any]) -> dict[str, Any]:
    """Tensors of the same names and shapes, a number each, that take no space in a file."""
    return {n: t[(0,) * t.ndim].clone().expand(t.shape) for n, t in state.items()}


def crops(seed: int, n_frames: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n_frames, 96, 96), dtype=np.uint8)


def opened(weights: Path, **options: Any) -> LipResnet18Extractor:
    """Return an extractor of small crops by default: they take an eighth of the time."""
    extractor = LipResnet18Extractor(weights=weights, **{"crop": 32, **options})
    extractor.open()
    return extractor


@pytest.fixture(scope="module")
def shared(weights: Path) -> LipResnet18Extractor:
    """One that is open and that no test changes."""
    return opened(weights)


def rows_of(extractor: LipResnet18Extractor, *videos: np.ndarray) -> list[np.ndarray]:
    return [
        e.rows["lip_resnet18"].check(extractor.specs[0]).values
        for e in extractor.extract_videos(videos)
    ]


# -- numbers ---------------------------------------------------------------------------------------


def test_numbers_are_those_of_a_plain_implementation(state: dict[str, Any], weights: Path) -> None:
    video = crops(0, 4)
    (rows,) = rows_of(opened(weights, crop=88), video)
    wanted = plainly(state, video[:, 4:92, 4:92])
    assert (rows.shape, rows.dtype) == ((4, 512), np.float32)
    assert 0.5 < np.abs(wanted).max() < 10
    np.testing.assert_allclose(rows, wanted, atol=1e-5, rtol=0)


def test_the_middle_is_cut_out_and_height_only_if_asked(
    state: dict[str, Any], weights: Path
) -> None:
    assert LipResnet18Extractor().crop == 88
    video = crops(1, 1)
    (smaller,) = rows_of(opened(weights, crop=63), video)
    np.testing.assert_allclose(smaller, plainly(state, video[:, 16:79, 16:79]), atol=1e-5, rtol=0)
    (cut,) = rows_of(opened(weights, crop=88, quirk="height_slice"), video)
    np.testing.assert_allclose(cut, plainly(state, video[:, 4:54, 4:92]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("at_once", "piece", "pieces", "calls"),
    [(1, 1, 1, 11), (3, 3, 1, 5), (4, 2, 2, 4), (11, 2, 5, 2), (10, 10, 1, 3)],
)
def test_a_row_has_the_same_bits_in_any_company(
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    piece: int,
    pieces: int,
    calls: int,
) -> None:
    """Of videos that are longer than a piece, and shorter; 25 frames are many for a test."""
    monkeypatch.setattr("kpstore.extractors.lip_resnet18.PIECE", 2 if pieces > 1 else 25)
    videos, sizes = [crops(5, 7), crops(6, 3), crops(7, 1)], []
    extractor = opened(weights, batch_frames=at_once)
    forward = extractor._model.forward
    extractor._model.forward = lambda x: (sizes.append(tuple(x.shape[:2])), forward(x))[1]
    together = rows_of(extractor, *videos)
    assert sizes == [(pieces, piece + 4)] * calls
    alone = [rows_of(extractor, video)[0] for video in videos]
    turned = rows_of(extractor, *videos[::-1])[::-1]
    for rows, one, other in zip(together, alone, turned, strict=True):
        np.testing.assert_array_equal(rows, one)
        np.testing.assert_array_equal(rows, other)
    assert set(sizes) == {(pieces, piece + 4)}


def test_pieces_change_the_last_bits_at_most(weights: Path, shared: LipResnet18Extractor) -> None:
    video = crops(5, 7)
    (whole,), (cut,) = rows_of(shared, video), rows_of(opened(weights, batch_frames=2), video)
    np.testing.assert_allclose(cut, whole, atol=1e-6, rtol=0)
    assert shared.extract_videos([]) == []


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"precision": "fp16"}, {"dtype": "float16"}]
)
def test_lower_precision_is_near_and_in_the_provenance(
    weights: Path, shared: LipResnet18Extractor, options: dict[str, Any]
) -> None:
    try:
        video, extractor = crops(8, 1), opened(weights, **options)
    except ExtractorError as error:  # bf16 on some processors
        assert re.search("no finite numbers in bf16 on .*precision=fp32", str(error))  # noqa: PT017
        return
    (rows,), (exact,) = rows_of(extractor, video), rows_of(shared, video)
    assert rows.dtype == extractor.specs[0].dtype == options.get("dtype", "float32")
    np.testing.assert_allclose(rows, exact, atol=0.02)
    assert (rows != exact).any()
    assert extractor.provenance["lip_resnet18"]["parameters"]["precision"] == options.get(
        "precision", "fp32"
    )


def test_a_lack_of_memory_takes_fewer_pieces_then_shorter_ones(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    def little_memory(self: Any, frames: np.ndarray, there: np.ndarray) -> np.ndarray:
        sizes.append(frames.shape[:2])
        if there[:, 2:-2].sum() > 7:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return np.zeros((len(frames), frames.shape[1] - 4, 512), np.float32)

    monkeypatch.setattr(
        "kpstore.extractors.lip_resnet18.find_device", lambda *_: torch.device("cpu")
    )
    monkeypatch.setattr(LipResnet18Extractor, "_forward", little_memory)
    monkeypatch.setattr(LipResnet18Extractor, "default_at_once", {"cpu": 10, "cuda": 125})
    extractor = LipResnet18Extractor(weights=weights, crop=32)
    extractor.open("cuda:0")
    assert sizes == [(5, 29), (2, 29), (1, 29), (1, 16), (1, 10)]
    assert extractor.batch_frames == 6
    with pytest.raises(
        ExtractorError,
        match=r"memory than is free for batch_frames=50, .* --set batch_frames=25 \(CUDA",
    ):
        LipResnet18Extractor(weights=weights, crop=32, batch_frames=60).open("cuda")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory"),
            "lip_resnet18 needs more GPU memory .* batch_frames=5",
        ),
        (RuntimeError("CUDA error"), "lip_resnet18 fails on cpu: CUDA error"),
    ],
)
def test_a_network_that_fails_is_no_fault_of_the_video(
    weights: Path, error: Exception, words: str
) -> None:
    extractor = opened(weights, batch_frames=5)

    def fail(x: Any) -> Any:
        raise error

    extractor._model.forward = fail
    with pytest.raises(ExtractorError, match=words):
        extractor.extract_videos([crops(0, 3)])


def test_numbers_that_are_not_finite_fail_their_frame(weights: Path) -> None:
    extractor = opened(weights, dtype="float16")
    forward, odd = extractor._model.forward, [0.0]

    def large(x: Any) -> Any:
        rows = forward(x).clone()
        rows[:, 1] = odd[0]
        return rows

    extractor._model.forward = large
    for odd[0], dtype, words in (
        (1e6, "float16", "use --set dtype=float32"),
        (np.nan, "float32", "are the weights wh"),
    ):
        extractor.dtype = dtype
        (got,) = extractor.extract_videos([crops(0, 3)])
        assert list(got.failed) == [1]
        assert re.match(
            rf"lip_resnet18 gives no finite numbers in fp32 on .*, stored as {dtype}; {words}",
            got.failed[1],
        )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_does_not_work_here_is_told_before_any_frame(
    weights: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(
        LipResnet18Extractor, "_trial", lambda self: np.full((1, 10, 512), np.nan, np.float32)
    )
    with pytest.raises(
        ExtractorError, match=f"no finite numbers in {precision} on .*; use --set precision=fp32"
    ):
        opened(weights, precision=precision)


def test_nothing_of_a_video_stays_behind(shared: LipResnet18Extractor) -> None:
    video = crops(2, 2)
    before = rows_of(shared, video)[0]
    shared.extract_videos([crops(3, 2)] * 2)
    np.testing.assert_array_equal(rows_of(shared, video)[0], before)


@pytest.mark.parametrize(
    ("video", "found"),
    [
        (np.zeros((3, 88, 88), np.uint8), r"found \(3, 88, 88\) uint8"),
        (np.zeros((3, 96, 96, 3), np.uint8), r"found \(3, 96, 96, 3\) uint8"),
        (np.zeros((3, 96, 96), np.float32), r"found \(3, 96, 96\) float32"),
        (np.zeros((0, 96, 96), np.uint8), "of no frames"),
        ([[1]], "found list"),
    ],
)
def test_videos_that_are_no_crops_are_refused(
    shared: LipResnet18Extractor, video: Any, found: str
) -> None:
    with pytest.raises(InvalidError, match=found):
        shared.extract_videos([crops(0, 3), video])


# -- weights ---------------------------------------------------------------------------------------


def old_torch(s: dict[str, Any]) -> Any:
    return {name: tensor for name, tensor in s.items() if not name.endswith("num_batches_tracked")}


def with_head(s: dict[str, Any]) -> Any:
    head = {
        "module.tcn.mb_ms_tcn.network.0.weight": torch.zeros(3),
        "module.tcn.tcn_output.bias": torch.zeros(500),
    }
    return {
        "model_state_dict": {**{f"module.{name}": tensor for name, tensor in s.items()}, **head}
    }


GOOD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda s: s,
    "wrapped": lambda s: {
        "model_state_dict": s,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    },
    "with a head, parallel": with_head,
    "of an old torch": old_torch,
    "half": lambda s: {name: t.half() if t.is_floating_point() else t for name, t in s.items()},
}


@pytest.mark.parametrize("kind", GOOD)
def test_checkpoints_load_whatever_is_around_them(
    state: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    path, wanted = tmp_path / "a.pth.tar", tiny(state)
    torch.save(GOOD[kind](wanted), path, _use_new_zipfile_serialization=kind != "of an old torch")
    loaded = load_network(read_lip_checkpoint(path)).state_dict()
    assert loaded.keys() == state.keys()
    assert len(loaded) == 137
    for name, tensor in wanted.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(
                loaded[name], tensor, rtol=0, atol=2e-3 if kind == "half" else 0
            )


def test_safetensors_load_too(
    state: dict[str, Any], shared: LipResnet18Extractor, tmp_path: Path
) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    video = crops(0, 2)
    np.testing.assert_array_equal(rows_of(opened(path), video), rows_of(shared, video))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidError, match=r"a\.safetensors is not a safetensors file"):
        LipResnet18Extractor(weights=path).open()


def test_a_head_left_out_is_said(
    state: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.pth"
    torch.save(with_head(tiny(state)), path)
    with caplog.at_level("INFO"):
        extractor = opened(path)
    assert "2 tensors of a temporal head are not needed" in caplog.text
    assert (
        extractor.provenance["lip_resnet18"]["parameters"]["tensors_of_temporal_head_left_out"] == 2
    )


def swish(s: dict[str, Any]) -> Any:
    return {
        name: tensor
        for name, tensor in s.items()
        if "relu" not in name and name != "frontend3D.2.weight"
    }


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda s: {"model_state_dict": {key: tensor for key, tensor in s.items() if key != name}}


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (
        without("trunk.layer3.1.bn2.running_var"),
        r"lacks 1 of 137 tensors, first 'trunk.layer3.1.bn2.runn",
    ),
    "first missing": (
        without("frontend3D.0.weight"),
        r"lacks 1 of 137 tensors, first 'frontend3D.0.weight'",
    ),
    "swish": (swish, r"no weights of PReLU \(17 tensors, first 'frontend3D.2.weight'\).* 'swish'"),
    "too many": (
        lambda s: {**s, "trunk.layer5.weight": torch.zeros(1)},
        "1 tensors too many, first 'trunk.layer5.w",
    ),
    "shape": (
        lambda s: {**s, "trunk.layer1.0.relu1.weight": torch.zeros(1)},
        r"1 tensors of other shapes, first 'trunk.layer1.0.relu1.weight': \(1,\) instead of "
        r"\(64,\)",
    ),
    "part of more": (
        lambda s: {**{f"v.{n}": t for n, t in s.items()}, "a.x": torch.zeros(1)},
        "lacks 117 of 137",
    ),
    "other": (
        lambda s: {"conv.weight": torch.zeros(1)},
        "lacks 117 of 137 tensors, .*it has 'conv.weight'",
    ),
    "a list": (lambda s: [1, 2], "holds no table of tensors.*it holds list"),
    "no tensors": (lambda s: {"model_state_dict": {"a": 1}}, "holds no table of tensors"),
    "code": (
        lambda s: {"model_state_dict": s, "args": Path("x")},
        "more than tensors and numbers, which is not run",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_checkpoints_of_other_networks_are_refused(
    state: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    make, words = BAD[kind]
    path = tmp_path / "a.pth.tar"
    torch.save(make(tiny(state)), path)
    for ask in (lambda e: e.open(), lambda e: e.provenance):
        with pytest.raises(InvalidError, match=words) as caught:
            ask(LipResnet18Extractor(weights=path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_doctor_knows_a_checkpoint(state: dict[str, Any], tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.pth.tar", tmp_path / "part.pth"
    torch.save(with_head(tiny(state)), whole)
    torch.save(swish(tiny(state)), part)
    sound, fault = (f for f in check_up([whole, part]).findings if f.area == "path")
    wanted = (
        "weights of lip-reading ResNet18 with PReLU (137 tensors, 2 of a temporal head left out)"
    )
    assert (sound.state, sound.found) == ("ok", wanted)
    assert fault.state == "problem"
    assert "no weights of PReLU" in fault.found


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04"])
def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(
        InvalidError, match=r"a\.pth is not a checkpoint that torch can read|more than tensors"
    ) as caught:
        LipResnet18Extractor(weights=path).open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [True, False])
def test_checkpoints_that_are_damaged_are_refused_in_one_line(
    state: dict[str, Any], tmp_path: Path, new: bool
) -> None:
    path, rng = tmp_path / "a.pth", np.random.default_rng(0)
    torch.save(tiny(state), path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    for cut in [len(whole) - 1000, *rng.integers(0, len(whole) - 1000, 60)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(InvalidError, match=r"a\.pth (is not a checkpoint|holds)") as caught:
            read_lip_checkpoint(path)
        assert "\n" not in str(caught.value)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(0, 3000)] ^= 0x55
        path.write_bytes(damaged)
        with contextlib.suppress(InvalidError):  # or a name's letter that nobody needs
            read_lip_checkpoint(path)


def test_weights_have_to_be_given_and_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"no weights of its own; .* --weights PATH"):
        LipResnet18Extractor().open()
    with pytest.raises(InvalidError, match=r"--weights PATH"):
        _ = LipResnet18Extractor().provenance
    with pytest.raises(NotFoundError, match=r"no lip-reading weights at .* does not exist"):
        LipResnet18Extractor(weights=tmp_path / "x.pth").open()
    with pytest.raises(NotFoundError, match="is a folder"):
        LipResnet18Extractor(weights=tmp_path).open()


def test_provenance_is_json_and_names_weights_by_hash(weights: Path) -> None:
    made = LipResnet18Extractor(weights=weights, crop=80).provenance
    assert json.loads(json.dumps(made)) == made
    assert set(made) == {"lip_resnet18"}
    assert set(made["lip_resnet18"]["weights"]) == {weights.name}
    assert len(made["lip_resnet18"]["weights"][weights.name]) == 64
    assert made["lip_resnet18"]["parameters"]["crop"] == [80, 80]
    for given, recorded in ((0, (10, 10)), (3, (3, 3)), (60, (50, 25)), (1600, (1600, 25))):
        told = LipResnet18Extractor(weights=weights, batch_frames=given).provenance["lip_resnet18"][
            "parameters"
        ]
        assert (told["batch_frames"], told["piece_frames"]) == recorded


def test_it_is_pickled_unopened_and_opens_only_the_same_weights(
    state: dict[str, Any], tmp_path: Path
) -> None:
    path, video, state = tmp_path / "a.pth", crops(0, 2), tiny(state)
    torch.save(state, path)
    extractor = opened(path)
    assert extractor.provenance
    copy = pickle.loads(pickle.dumps(extractor))
    with pytest.raises(InvalidError, match="is not open"):
        copy.extract_videos([video])
    copy.open()
    np.testing.assert_array_equal(rows_of(copy, video), rows_of(extractor, video))
    torch.save({**state, "frontend3D.0.weight": state["frontend3D.0.weight"] + 1}, path)
    with pytest.raises(InvalidError, match="is not the same here as where the run began"):
        pickle.loads(pickle.dumps(extractor)).open()
    copy.close()
    with pytest.raises(InvalidError, match="is not open"):
        copy.extract_videos([video])


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": 97}, "crop=97: use 32 to 96 pixels"),
        ({"crop": 3.5}, "crop=3.5"),
        (
            {"precision": "fp8", "dtype": "int8"},
            "precision='fp8' is not one of fp32, tf32, bf16, fp16; dtype='int8'",
        ),
        ({"quirk": "flip"}, "quirk='flip' is not one of none, height_slice"),
        ({"batch_frames": -1}, "batch_frames=-1"),
        ({"weights": 3}, "weights=3 is not a path"),
        ({"model": "x"}, "has no option 'model'"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(KpstoreError, match=words):
        make_extractor("lip_resnet18", **options)


def test_a_gpu_that_is_not_there_is_one_line(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        UnsupportedError, match=r"device 'cuda:0' was asked for, but torch .* finds no GPU"
    ):
        LipResnet18Extractor(weights=weights).open("cuda:0")


def test_the_feature_is_the_one_of_imported_files() -> None:
    assert LipResnet18Extractor().specs == (SPEC,)


def test_what_is_extracted_is_exported_as_existing_files_are(
    shared: LipResnet18Extractor, tmp_path: Path
) -> None:
    """From crops to a file (512, T) beside them, named as an import of such files expects."""
    np.savez_compressed(tmp_path / "1_2.npz", data=crops(0, 3))
    source = LipsSource(tmp_path)
    (video,) = source.scan().videos
    frames = np.stack(
        [frame for frame in source.read_frames(video) if not isinstance(frame, FrameError)]
    )
    (made,) = shared.extract_videos([frames])
    store = kpstore.create(memory_location())
    with store.transaction("extracted") as tx:
        tx.add_videos([video])
        tx.add_feature(shared.specs[0], shared.provenance["lip_resnet18"])
        tx.write("lip_resnet18", video.id, made.rows["lip_resnet18"])
    EmbeddingsExport().export(store.at(), tmp_path)
    with np.load(tmp_path / "1_2_embedding.npz") as file:
        np.testing.assert_array_equal(file["embedding"], made.rows["lip_resnet18"].values.T)
    again = memory_location()
    import_document(EmbeddingsImport().open(tmp_path), backend_for(again), source="x")
    read = kpstore.open(again)
    assert read.feature("lip_resnet18") == store.at().feature("lip_resnet18")
    assert read.video("1_2").image_paths == store.at().video("1_2").image_paths
