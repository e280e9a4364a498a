"""DINOv2 with small models of the real architecture, which the tests make themselves."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kpstore
from kpstore import plugins
from kpstore.cli.main import run
from kpstore.errors import (
    ExistsError,
    ExtractorError,
    InvalidError,
    KpstoreError,
    MismatchError,
    NotFoundError,
    UnsupportedError,
)
from kpstore.extractors.dinov2 import Dinov2Extractor, whole_image
from kpstore.extractors.dinov2_models import MODELS, Architecture, register_model
from kpstore.extractors.dinov2_weights import hub_cache
from kpstore.extractors.registry import make_extractor
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.sources.videos import VideosSource

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = {
    "dinov2_tiny": Architecture(32, 2, 2),
    "dinov2_tiny_reg": Architecture(32, 2, 2, registers=4),
    "dinov2_tiny_giant": Architecture(48, 2, 2, swiglu=True),
}
for _name, _architecture in TINY.items():
    register_model(_name, _architecture)
if "dinov2" not in plugins.names(
    "kpstore.extractors"
):  # a checkout that is newer than what is installed
    plugins.register("kpstore.extractors", "dinov2", Dinov2Extractor)


def make_model(name: str, image_size: int = 518) -> Any:
    """A model whose random weights are large enough for positions and scales to matter."""
    architecture = TINY[name]
    values = {
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.heads,
        "use_swiglu_ffn": architecture.swiglu,
        "image_size": image_size,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    if architecture.registers:
        model = transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**values)
        )
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def facebook_state(model: Any) -> dict[str, Any]:
    """The model's tensors by the names and in the form of facebookresearch's checkpoints."""
    own = {name: value.detach().clone() for name, value in model.state_dict().items()}
    state = {
        "cls_token": own["embeddings.cls_token"],
        "pos_embed": own["embeddings.position_embeddings"],
        "mask_token": own["embeddings.mask_token"],
    }
    if "embeddings.register_tokens" in own:
        state["register_tokens"] = own["embeddings.register_tokens"]
    for ending in ("weight", "bias"):
        state[f"patch_embed.proj.{ending}"] = own[
            f"embeddings.patch_embeddings.projection.{ending}"
        ]
        state[f"norm.{ending}"] = own[f"layernorm.{ending}"]
        for number in range(model.config.num_hidden_layers):
            old, new = f"encoder.layer.{number}", f"blocks.{number}"
            attention = [own[f"{old}.attention.{part}_proj.{ending}"] for part in "qkv"]
            state[f"{new}.attn.qkv.{ending}"] = torch.cat(attention)
            state[f"{new}.attn.proj.{ending}"] = own[f"{old}.attention.o_proj.{ending}"]
            for same in ("norm1", "norm2"):
                state[f"{new}.{same}.{ending}"] = own[f"{old}.{same}.{ending}"]
            if model.config.use_swiglu_ffn:
                gated = [own[f"{old}.mlp.{part}_proj.{ending}"] for part in ("gate", "up")]
                state[f"{new}.mlp.w12.{ending}"] = torch.cat(gated)
                state[f"{new}.mlp.w3.{ending}"] = own[f"{old}.mlp.down_proj.{ending}"]
            else:
                for same in ("fc1", "fc2"):
                    state[f"{new}.mlp.{same}.{ending}"] = own[f"{old}.mlp.{same}.{ending}"]
            for scale in ("1", "2"):
                state[f"{new}.ls{scale}.gamma"] = own[f"{old}.layer_scale{scale}.lambda1"]
    return state


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every tiny model, and beside it under its name a folder and a checkpoint."""
    home = tmp_path_factory.mktemp("weights")
    transformers.utils.logging.disable_progress_bar()
    made: dict[str, Any] = {"home": home}
    for name in TINY:
        made[name] = make_model(name)
        made[name].save_pretrained(home / name)
        torch.save(facebook_state(made[name]), home / f"{name}.pth")
    made["native"] = make_model("dinov2_tiny", 224)
    made["native"].save_pretrained(home / "native")
    transformers.utils.logging.enable_progress_bar()
    return made


@pytest.fixture(scope="module")
def folder(models: dict[str, Any]) -> Path:
    return Path(models["home"] / "dinov2_tiny")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Frames of different sizes, one of them 224 x 224 and one smaller than that."""
    rng = np.random.default_rng(0)
    sizes = [(260, 210), (224, 224), (40, 61)]
    small = [rng.integers(0, 256, (8, 6, 3), dtype=np.uint8) for _ in sizes]
    return [
        np.asarray(Image.fromarray(s).resize((w, h)))
        for s, (h, w) in zip(small, sizes, strict=True)
    ]


def opened(model: str = "dinov2_tiny", **options: Any) -> Dinov2Extractor:
    extractor = Dinov2Extractor(model=model, **options)
    extractor.open()
    extractor.start_video()
    return extractor


def directly(model: Any, images: list[np.ndarray]) -> np.ndarray:
    """What a script gets that calls transformers itself."""
    rows = []
    for image in images:
        pixels = np.asarray(Image.fromarray(image).resize((224, 224), Image.BILINEAR))
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous().float().div(255)
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        with torch.no_grad():
            token = model(pixel_values=x[None]).pooler_output[0]
        rows.append((token / token.norm()).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("source", ["folder", "pth"])
@pytest.mark.parametrize("name", TINY)
def test_numbers_are_those_of_transformers(
    models: dict[str, Any], images: list[np.ndarray], name: str, source: str
) -> None:
    weights = models["home"] / (name if source == "folder" else f"{name}.pth")
    extractor = opened(name, weights=weights, positions="transformers")
    rows = extractor.rows(images).check(extractor.spec)
    assert rows.values.shape == (3, TINY[name].width)
    np.testing.assert_allclose(rows.values, directly(models[name], images), atol=1e-6, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(rows.values, axis=1), 1, atol=1e-6)


def test_models_of_224_pixels_and_those_with_registers_have_one_kind_of_positions(
    models: dict[str, Any], images: list[np.ndarray]
) -> None:
    for name, weights in (("dinov2_tiny", "native"), ("dinov2_tiny_reg", "dinov2_tiny_reg")):
        got = opened(name, weights=models["home"] / weights).rows(images).values
        np.testing.assert_allclose(got, directly(models[weights], images), atol=1e-6, rtol=0)


def test_positions_are_those_of_torch_hub_by_default(
    models: dict[str, Any], images: list[np.ndarray]
) -> None:
    """Bicubic samples (a = -0.75, edges repeated) at a scale of 16.1 / 37, written out."""
    at = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    taps = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    d = np.abs(at[:, None] - taps)
    near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3
    weights = np.zeros((16, 37))
    np.add.at(weights, (np.arange(16)[:, None], taps.clip(0, 36)), np.where(d <= 1, near, far))
    model = make_model("dinov2_tiny")
    table = model.embeddings.position_embeddings.detach().numpy()[0].astype(np.float64)
    grid = np.einsum("yv,xw,vwd->yxd", weights, weights, table[1:].reshape(37, 37, -1))
    positions = np.concatenate([table[:1], grid.reshape(256, -1)])[None].astype(np.float32)
    model.embeddings.position_embeddings = torch.nn.Parameter(torch.from_numpy(positions))
    hub = opened(weights=models["home"] / "dinov2_tiny").rows(images).values
    np.testing.assert_allclose(hub, directly(model, images), atol=2e-6, rtol=0)
    other = (
        opened(weights=models["home"] / "dinov2_tiny", positions="transformers").rows(images).values
    )
    assert np.abs(hub - other).max() > 1e-4


def test_a_frame_is_squeezed_as_a_whole() -> None:
    left_half = np.zeros((260, 210, 3), dtype=np.uint8)
    left_half[:, :105] = 255
    squeezed = whole_image(left_half)
    assert squeezed.shape == (224, 224, 3)
    assert squeezed[:, :111].min() == 255
    assert squeezed[:, 113:].max() == 0


@pytest.mark.parametrize("at_once", [0, 2, 5])
def test_a_frame_has_the_same_bits_in_any_company(
    folder: Path, images: list[np.ndarray], at_once: int
) -> None:
    extractor, sizes = opened(weights=folder, batch_size=at_once), []
    forward = extractor._model.forward
    extractor._model.forward = lambda pixel_values: (
        sizes.append(len(pixel_values)),
        forward(pixel_values=pixel_values),
    )[1]
    whole = extractor.rows(images).values
    alone = np.concatenate([extractor.rows([image]).values for image in images])
    np.testing.assert_array_equal(alone, whole)
    np.testing.assert_array_equal(extractor.rows(images[::-1]).values[::-1], whole)
    assert set(sizes) == {at_once or 1}
    assert len(extractor.rows([])) == 0
    np.testing.assert_allclose(
        whole, opened(weights=folder, batch_size=3).rows(images).values, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"precision": "fp16"}, {"dtype": "float16"}]
)
def test_lower_precision_is_near_and_in_the_provenance(
    folder: Path, images: list[np.ndarray], options: dict[str, Any]
) -> None:
    try:
        extractor = opened(weights=folder, **options)
    except ExtractorError as error:  # bf16 on some processors
        assert re.search("no finite numbers in bf16 on .*precision=fp32", str(error))  # noqa: PT017
        return
    rows = extractor.rows(images).check(extractor.spec)
    assert rows.values.dtype == options.get("dtype", "float32")
    np.testing.assert_allclose(rows.values, opened(weights=folder).rows(images).values, atol=0.01)
    assert extractor.recipe["parameters"]["precision"] == options.get("precision", "fp32")


def test_provenance_is_json_and_names_weights_by_hash(folder: Path) -> None:
    made = Dinov2Extractor(model="dinov2_tiny", weights=folder).recipe
    assert json.loads(json.dumps(made)) == made
    assert set(made["weights"]) == {"config.json", "model.safetensors"}
    assert all(len(digest) == 64 for digest in made["weights"].values())
    assert (made["model"], made["extractor"]) == ("dinov2_tiny", "dinov2")


@dataclasses.dataclass
class Card:
    """A GPU that is none: models run on the CPU, and memory suffices for so many images at once."""

    fits: int
    sizes: list[int] = dataclasses.field(default_factory=list)

    def forward(self, computes: Callable[..., Any], extractor: Any, pixels: np.ndarray) -> Any:
        self.sizes.append(len(pixels))
        if len(pixels) > self.fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return computes(extractor, pixels)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made, forward = Card(5), Dinov2Extractor._forward
    monkeypatch.setattr("kpstore.extractors.dinov2.find_device", lambda *_: torch.device("cpu"))
    monkeypatch.setattr(
        Dinov2Extractor, "_forward", lambda self, pixels: made.forward(forward, self, pixels)
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return made


def test_a_lack_of_memory_lowers_what_is_not_settled(
    folder: Path, images: list[np.ndarray], card: Card
) -> None:
    extractor = Dinov2Extractor(model="dinov2_tiny", weights=folder)
    extractor.open("cuda")
    assert card.sizes == [32, 16, 8, 4]
    assert (extractor.batch_size, extractor.recipe["parameters"]["batch_size"]) == (4, 4)
    assert len(extractor.rows(images)) == 3
    assert card.sizes[4:] == [4]


@pytest.mark.parametrize(
    ("fits", "options", "words"),
    [
        (
            0,
            {},
            "'?dinov2_tiny'? needs more GPU memory than is free for a single frame; use fewer "
            "--workers-per-gpu",
        ),
        (
            5,
            {"batch_size": 8},
            "memory than is free for batch_size=8, .* keeps; .*--overwrite --set batch_size=4",
        ),
    ],
)
def test_too_little_memory_is_one_line(
    folder: Path, card: Card, fits: int, options: dict[str, Any], words: str
) -> None:
    card.fits = fits
    extractor = Dinov2Extractor(model="dinov2_tiny", weights=folder, **options)
    with pytest.raises(ExtractorError, match=words) as caught:
        extractor.open("cuda")
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidError, match="is not open"):
        extractor.rows([])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "for a single frame"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "for a single frame"),
        (RuntimeError("CUDA error"), "fails on"),
    ],
)
def test_a_model_that_fails_is_no_fault_of_the_frame(
    folder: Path,
    images: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: str,
) -> None:
    extractor = opened(weights=folder)

    def fail(pixel_values: Any) -> Any:
        raise error

    monkeypatch.setattr(extractor._model, "forward", fail)
    with pytest.raises(ExtractorError, match=words):
        extractor.rows(images[:1])


def test_numbers_that_are_not_finite_fail_their_frame(
    folder: Path, images: list[np.ndarray]
) -> None:
    extractor = opened(weights=folder, batch_size=2)
    forward, wanted = extractor._forward, extractor.rows(images).values

    def odd(pixels: np.ndarray) -> np.ndarray:
        values = forward(pixels)
        values[(pixels == whole_image(images[1])).all(axis=(1, 2, 3)), 3] = np.nan
        return values

    extractor._forward = odd
    found = extractor.extract(images)
    assert list(found.failed) == [1]
    assert re.fullmatch(
        "dinov2_tiny gives no finite numbers in fp32 on .*; are the weights whole.*",
        found.failed[1],
    )
    np.testing.assert_array_equal(found.rows["dinov2_tiny"].values[[0, 2]], wanted[[0, 2]])
    with pytest.raises(InvalidError, match="no finite numbers in fp32"):
        extractor.rows(images)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_does_not_work_here_is_told_before_any_frame(
    folder: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    monkeypatch.setattr(
        Dinov2Extractor, "_forward", lambda self, x: np.full((len(x), 32), np.nan, np.float32)
    )
    extractor = Dinov2Extractor(model="dinov2_tiny", weights=folder, precision=precision)
    with pytest.raises(
        ExtractorError, match=f"no finite numbers in {precision} on .*; use --set precision=fp32"
    ):
        extractor.open()


def test_it_is_pickled_unopened_and_opens_only_the_same_weights(
    folder: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    extractor = opened(weights=mine)
    assert extractor.recipe
    copy = pickle.loads(pickle.dumps(extractor))
    with pytest.raises(InvalidError, match="is not open"):
        copy.rows(images)
    copy.open()
    np.testing.assert_array_equal(copy.rows(images).values, extractor.rows(images).values)
    (mine / "config.json").write_text((mine / "config.json").read_text() + "\n")
    with pytest.raises(InvalidError, match="is not the same here as where the run began"):
        pickle.loads(pickle.dumps(extractor)).open()


# -- what is refused -------------------------------------------------------------------------------


def test_names_stand_for_the_published_models() -> None:
    widths = {"s": 384, "b": 768, "l": 1024, "g": 1536}
    for letter, width in widths.items():
        for suffix in ("", "_reg"):
            assert Dinov2Extractor(model=f"dinov2_vit{letter}14{suffix}").spec.shape == (width,)
    assert MODELS["dinov2_vitb14_reg"].repository == "facebook/dinov2-with-registers-base"
    with pytest.raises(ExistsError, match="already known as width 768"):
        register_model("dinov2_vitb14", TINY["dinov2_tiny"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "dinov3"}, "'dinov3' not found; there are: dinov2_vits14"),
        ({"model": 14}, "14 not found"),
        ({"precision": "fp8"}, "precision='fp8' is not one of fp32, tf32, bf16, fp16"),
        ({"dtype": "int8", "positions": "x"}, "dtype='int8' .*positions='x'"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"weights": 3}, "weights=3 is not a path"),
        ({"mode": "image"}, "has no option 'mode'"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(KpstoreError, match=words):
        make_extractor("dinov2", **options)


def test_weights_of_another_model_are_refused_by_both_names(models: dict[str, Any]) -> None:
    home = models["home"]
    for weights in (home / "dinov2_tiny", home / "dinov2_tiny.pth"):
        with pytest.raises(
            InvalidError, match=r"holds a DINOv2 of width 32, .*'dinov2_vitb14' has width 768"
        ):
            _ = Dinov2Extractor(weights=weights).recipe
        for wanted in ("dinov2_tiny_reg", "dinov2_tiny_giant"):
            with pytest.raises(
                InvalidError, match=f"'{wanted}' has .*choose model=dinov2_tiny, or"
            ):
                Dinov2Extractor(model=wanted, weights=weights).open()


def damaged(state: dict[str, Any], change: str) -> dict[str, Any]:
    if change == "missing":
        del state["blocks.1.mlp.fc2.bias"]
    elif change == "too many":
        state["blocks.0.attn.extra.weight"] = torch.zeros(1)
    elif change == "known too many":
        state["blocks.0.mlp.w12.weight"] = torch.zeros(1)
    elif change == "other shape":
        state["norm.weight"] = torch.zeros(31)
    elif change == "timm":
        return {f"module.{name}": value for name, value in state.items()}
    elif change == "wrapped":
        return {"model": state}
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "lacks .*fc2.bias"),
        ("too many", "it has 'blocks.0.attn.extra.weight'"),
        ("known too many", "holds a DINOv2 of .*gated"),
        ("other shape", "does not load as a DINOv2|has others: .*layernorm"),
        ("timm", "no 'cls_token' as facebookresearch's"),
        ("wrapped", "no plain table of tensors"),
    ],
)
def test_checkpoints_that_are_not_whole_are_refused(
    models: dict[str, Any],
    tmp_path: Path,
    change: str,
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.pth"
    torch.save(damaged(facebook_state(models["dinov2_tiny"]), change), path)
    with pytest.raises(InvalidError, match=words) as caught:
        Dinov2Extractor(model="dinov2_tiny", weights=path).open()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "needs config.json and model.safetensors"),
        (lambda f: _truncate(f / "model.safetensors"), "load the file again"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: _rewrite(f / "config.json", model_type="vit"), "is of a 'vit'"),
        (lambda f: _rewrite(f / "config.json", patch_size=16), "patches of 16 pixels"),
        (
            lambda f: _rewrite(f / "config.json", num_attention_heads=8),
            "8 heads; 'dinov2_tiny' has .* 2 heads",
        ),
        (lambda f: _rewrite(f / "config.json", mlp_ratio=2), "does not load|has others"),
        (
            lambda f: (
                (f / "model.safetensors").unlink(),
                (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
            ),
            "'x', which model.safetensors.index.json names",
        ),
    ],
)
def test_folders_that_are_not_whole_are_refused(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    damage(mine)
    with pytest.raises(InvalidError, match=words) as caught:
        Dinov2Extractor(model="dinov2_tiny", weights=mine).open()
    assert "\n" not in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(InvalidError, match="holds more than tensors and numbers, which is not run"):
        Dinov2Extractor(weights=tmp_path / "a.pth").open()


def test_no_weights_is_one_line_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ExtractorError, match=r"facebook/dinov2-base .*HF_HUB_OFFLINE.* --weights PATH"
    ):
        _ = Dinov2Extractor().recipe
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("urllib.request.getproxies", dict)

    def no_network(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(ExtractorError, match="Name or service not known"):
        Dinov2Extractor().open()
    with pytest.raises(InvalidError, match="'dinov2_tiny' is not on the Hugging Face hub"):
        Dinov2Extractor(model="dinov2_tiny").open()
    with pytest.raises(NotFoundError, match=r"no weights at .*nowhere"):
        Dinov2Extractor(weights=tmp_path / "nowhere").open()


def test_the_hubs_cache_is_used_without_the_network(
    folder: Path, images: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "dinov2_on_hub", Architecture(32, 2, 2, repository="me/tiny"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(folder, tmp_path / "models--me--tiny" / "snapshots" / "abc")
    assert hub_cache() == tmp_path
    got = opened("dinov2_on_hub").rows(images).values
    np.testing.assert_array_equal(got, opened(weights=folder).rows(images).values)


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda:0", "'cuda:0' was asked for"), ("tpu?", "unknown to torch"), ("meta", "cpu")],
)
def test_devices_that_are_not_there_are_refused(
    folder: Path, device: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UnsupportedError, match=words):
        Dinov2Extractor(model="dinov2_tiny", weights=folder).open(device)


@pytest.mark.parametrize(
    "image", [np.zeros((3, 4), np.uint8), np.zeros((3, 4, 3)), np.zeros((0, 4, 3), np.uint8), "a"]
)
def test_what_is_no_frame_is_refused(folder: Path, image: Any) -> None:
    with pytest.raises(InvalidError, match="a frame"):
        opened(weights=folder).rows([image])


# -- in an ingest ----------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path: Path, images: list[np.ndarray]) -> Path:
    """Three videos of 5, 9 and 1 pictures."""
    for video, n_frames in {"a": 5, "b": 9, "ç": 1}.items():
        folder = tmp_path / "clips" / video
        folder.mkdir(parents=True)
        for number in range(n_frames):
            Image.fromarray(np.roll(images[0], 9 * number, axis=1)).save(folder / f"{number}.png")
    return tmp_path / "clips"


def test_an_ingest_fills_goes_on_and_refuses_another_model(
    clips: Path, folder: Path, models: dict[str, Any], tmp_path: Path
) -> None:
    store, source = tmp_path / "a.kps", VideosSource(clips)
    (clips / "b" / "3.png").write_bytes(b"no picture")
    extractor = Dinov2Extractor(model="dinov2_tiny", weights=folder)
    first = run_ingest(
        VideosSource(clips, max_videos_per_split=1), store, extractor, Options(workers=0)
    )
    second = run_ingest(source, store, extractor, Options(workers=0))
    assert (first.videos_done, second.videos_done, second.videos_before, second.frames_failed) == (
        1,
        2,
        1,
        1,
    )
    values = kpstore.open(store)["dinov2_tiny"][:]
    again = kpstore.open(store).computed(weights=folder, root=clips)
    assert again.provenance("dinov2_tiny") == kpstore.open(store).provenance("dinov2_tiny")
    whole = [np.asarray(Image.open(clips / "a" / f"{n}.png")) for n in range(5)]
    np.testing.assert_array_equal(values[:5], extractor.rows(whole).values)
    assert np.flatnonzero(np.isnan(values).all(axis=1)).tolist() == [5 + 3]
    other = Dinov2Extractor(model="dinov2_tiny", weights=models["home"] / "native")
    with pytest.raises(MismatchError, match="'dinov2_tiny' was made with weights"):
        run_ingest(source, store, other, Options(workers=0))
    giant = Dinov2Extractor(
        model="dinov2_tiny_giant", weights=models["home"] / "dinov2_tiny_giant.pth"
    )
    run_ingest(source, store, giant, Options(workers=0))
    assert list(kpstore.open(store).features) == ["dinov2_tiny", "dinov2_tiny_giant"]


def test_the_command_line_takes_model_and_weights(
    clips: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [
        "ingest",
        "videos",
        str(clips),
        str(tmp_path / "a.kps"),
        "--recipe",
        "dinov2",
        "--workers",
        "0",
    ]
    chosen = ["--set", "model=dinov2_tiny", "--set", f"weights={folder}", "--set", "dtype=float16"]
    assert run([*command, *chosen]) == 0
    stored = kpstore.open(tmp_path / "a.kps")
    assert (stored["dinov2_tiny"].shape, stored["dinov2_tiny"].dtype) == ((15, 32), np.float16)
    capfd.readouterr()
    assert run([*command, *chosen[:4]]) == 2
    assert (
        capfd.readouterr()
        .err.splitlines()[-1]
        .startswith("error: feature 'dinov2_tiny' is stored with dtype")
    )


def test_weights_that_do_not_fit_leave_no_store(clips: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="holds a DINOv2 of width 32"):
        run_ingest(
            VideosSource(clips),
            tmp_path / "a.kps",
            Dinov2Extractor(weights=folder),
            Options(workers=0),
        )
    assert not (tmp_path / "a.kps").exists()


def test_a_model_that_fails_ends_the_run(
    clips: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Dinov2Extractor, "_forward", fail)
    with pytest.raises(ExtractorError, match="illegal memory access"):
        run_ingest(
            VideosSource(clips),
            tmp_path / "a.kps",
            Dinov2Extractor(model="dinov2_tiny", weights=folder),
            Options(workers=0),
        )
    assert kpstore.open(tmp_path / "a.kps").states("dinov2_tiny").tolist() == [0, 0, 0]


def test_however_it_is_cut_it_gives_the_same_bytes(
    clips: Path, folder: Path, tmp_path: Path
) -> None:
    """Tasks of one video and of all, in this process and another, one video before the others."""
    pytest.importorskip("distributed")
    for number, (workers, task_frames, first) in enumerate([(0, 100, 3), (0, 7, 1), (1, 1, 3)]):
        store = tmp_path / f"{number}.kps"
        for videos in sorted({first, 3}):
            extractor = Dinov2Extractor(model="dinov2_tiny", weights=folder, batch_size=4)
            source = VideosSource(clips, max_videos_per_split=videos)
            run_ingest(
                source,
                store,
                extractor,
                Options(workers=workers if videos == 3 else 0, task_frames=task_frames),
            )
        assert not kpstore.diff(kpstore.open(tmp_path / "0.kps"), kpstore.open(store)), (
            workers,
            task_frames,
            first,
        )
    live = kpstore.create(tmp_path / "live.kps")
    with live.transaction("paths") as tx:
        tx.add_videos(VideosSource(clips).scan().videos)
    computed = live.at().computed(
        "dinov2", model="dinov2_tiny", weights=folder, batch_size=4, root=clips
    )
    np.testing.assert_array_equal(computed["dinov2_tiny"][:], kpstore.open(store)["dinov2_tiny"][:])


# -- how many at once belongs to a feature ---------------------------------------------------------


def tiny(folder: Path, **options: Any) -> Dinov2Extractor:
    return Dinov2Extractor(model="dinov2_tiny", weights=folder, **options)


def ingested(
    clips: Path, store: Path, extractor: Dinov2Extractor, videos: int = 3, **options: Any
) -> kpstore.Store:
    run_ingest(
        VideosSource(clips, max_videos_per_split=videos),
        store,
        extractor,
        Options(**{"workers": 0, **options}),
    )
    return kpstore.open(store)


def number_of(store: kpstore.Store) -> Any:
    return store.provenance("dinov2_tiny")["parameters"].get("batch_size")


def test_the_number_is_on_record_and_kept(clips: Path, folder: Path, tmp_path: Path) -> None:
    assert number_of(ingested(clips, tmp_path / "new.kps", tiny(folder))) == 1
    store, one = tmp_path / "a.kps", tiny(folder, batch_size=6)
    assert number_of(ingested(clips, store, one, videos=1)) == 6
    later = tiny(folder)
    assert number_of(ingested(clips, store, later)) == later.batch_size == 6
    kept = kpstore.open(store).computed(weights=folder, root=clips)
    assert kept.provenance("dinov2_tiny") == kpstore.open(store).provenance("dinov2_tiny")
    for ask in (
        lambda: ingested(clips, store, tiny(folder, batch_size=5)),
        lambda: kpstore.open(store).computed(weights=folder, root=clips, batch_size=5),
    ):
        with pytest.raises(
            MismatchError, match=r'with parameters \{"batch_size": 6\}, this run has .*5'
        ):
            ask()
    ingested(clips, tmp_path / "b.kps", later)  # the same extractor for another store
    assert number_of(kpstore.open(tmp_path / "b.kps")) == 1
    assert number_of(ingested(clips, store, tiny(folder, batch_size=5), overwrite=True)) == 5


def test_memory_lowers_the_number_before_anything_is_committed_and_never_after(
    clips: Path, folder: Path, tmp_path: Path, card: Card
) -> None:
    store = tmp_path / "a.kps"
    assert number_of(ingested(clips, store, tiny(folder), videos=1, device="cuda")) == 4
    card.fits, card.sizes = 3, []
    with pytest.raises(
        ExtractorError, match=r"batch_size=4, which its feature was given and keeps; use fewer"
    ):
        ingested(clips, store, tiny(folder), device="cuda")
    assert card.sizes == [4]
    card.fits = 64
    whole = ingested(clips, store, tiny(folder), device="cuda")
    assert (number_of(whole), set(card.sizes)) == (4, {4})
    assert not kpstore.diff(whole, ingested(clips, tmp_path / "b.kps", tiny(folder, batch_size=4)))


def test_too_little_memory_for_one_frame_begins_no_feature(
    clips: Path, folder: Path, tmp_path: Path, card: Card
) -> None:
    card.fits = 0
    with pytest.raises(ExtractorError, match="for a single frame"):
        ingested(clips, tmp_path / "a.kps", tiny(folder), device="cuda")
    assert dict(kpstore.open(tmp_path / "a.kps").features) == {}


def forget(location: Path, key: str) -> None:
    """Make a store one of before numbers were on record."""
    with kpstore.open(location, mode="a").transaction("as before") as tx:
        stored = tx.features["dinov2_tiny"]
        parameters = {
            name: value for name, value in stored.provenance["parameters"].items() if name != key
        }
        tx._set_feature(stored.spec, {**stored.provenance, "parameters": parameters})


def test_a_feature_without_a_number_goes_on_and_says_so(
    clips: Path, folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a.kps"
    ingested(clips, store, tiny(folder, batch_size=6), videos=1)
    forget(store, "batch_size")
    report = run_ingest(VideosSource(clips), store, tiny(folder), Options(workers=0))
    assert report.videos_done == 2
    (note,) = report.notes
    assert "dinov2_tiny: begun before kpstore kept on record how many frames" in note
    assert number_of(kpstore.open(store)) is None
    kpstore.open(store).computed(weights=folder, root=clips)
    assert number_of(ingested(clips, store, tiny(folder), overwrite=True)) == 1


def test_the_processors_that_computed_are_on_record(
    clips: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "a.kps"
    here = ingested(clips, store, tiny(folder), videos=1).provenance("dinov2_tiny")["processors"]
    assert len(here) == 1
    monkeypatch.setattr(Dinov2Extractor, "processor", "vax F")
    report = run_ingest(VideosSource(clips), store, tiny(folder), Options(workers=0))
    assert report.notes == (
        f"rows so far were computed on {here[0]}, these on vax F: last bits may differ",
    )
    assert kpstore.open(store).provenance("dinov2_tiny")["processors"] == sorted([*here, "vax F"])
