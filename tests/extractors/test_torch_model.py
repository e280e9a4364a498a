"""One number of rows for every call, shown with small models of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import kpstore
from kpstore.errors import ExtractorError
from kpstore.extractors.base import OneFeature
from kpstore.extractors.devices import cpu_name, device_name, kind_of, reproducible
from kpstore.extractors.dinov2 import Dinov2Extractor
from kpstore.extractors.lip_resnet18 import LipResnet18Extractor
from kpstore.extractors.torch_model import TorchModel
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.schema.feature import FeatureRows, FeatureSpec
from tests.fakes import FakeSource

torch = pytest.importorskip("torch")
nn = torch.nn
CPU = torch.device("cpu")


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        parts = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.inner = nn.Sequential(
            *parts, nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        )

    def forward(self, x: Any) -> Any:
        return torch.relu(x + self.inner(x))


def small_resnet() -> Any:
    stem = (nn.Conv2d(3, 24, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(
        *stem, Residual(24), Residual(24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 20)
    )


class SmallVit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 8, stride=8)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Any) -> Any:
        return self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1)


MODELS: dict[str, Callable[[], Any]] = {"resnet": small_resnet, "vit": SmallVit}


@dataclass(kw_only=True)
class Embedding(OneFeature, TorchModel):
    """Another package's extractor, with a memory of its own size on a "GPU" on the CPU."""

    kind: str = "resnet"
    batch_size: int = 0
    memory: int = 1000
    precision: Any = "fp32"
    typical_fps: float = 100.0
    side: int = 40
    _model: Any = field(default=None, init=False, repr=False, compare=False)
    _device: Any = field(default=None, init=False, repr=False, compare=False)

    default_at_once: ClassVar[Mapping[str, int]] = {"cpu": 2, "cuda": 16}
    extractor_name: ClassVar[str] = "embedding"

    def __post_init__(self) -> None:
        self._take_option()

    @property
    def spec(self) -> FeatureSpec:
        return FeatureSpec(
            "embedding", (48 if self.kind == "vit" else 20,), ("feature",), chunk_rows=4
        )

    @property
    def recipe(self) -> Mapping[str, Any]:
        return {"extractor": "embedding", "parameters": {"kind": self.kind, **self._on_record}}

    def open(self, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self._device, self._model = CPU, MODELS[self.kind]().eval()
        self._opened(device)

    def close(self) -> None:
        self._device = self._model = None

    @property
    def _rows_per_call(self) -> int:
        return self.batch_size

    def _trial(self) -> np.ndarray:
        return self._forward(np.zeros((self.batch_size, self.side, self.side, 3), np.uint8))

    def _forward(self, images: np.ndarray) -> np.ndarray:
        if len(images) > self.memory:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        with torch.inference_mode(), reproducible(self._device):
            rows = self._model(torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255))
        return np.asarray(rows.numpy())

    def rows(self, images: Any) -> FeatureRows:
        big = [np.resize(image, (self.side, self.side, 3)) for image in images]
        return FeatureRows(self._call(self._forward, np.stack(big)))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_bits_do_not_depend_on_what_is_beside_a_row_nor_on_its_place(
    kind: str, at_once: int
) -> None:
    extractor, rng = Embedding(kind=kind, batch_size=at_once), np.random.default_rng(0)
    extractor.open()
    images = rng.integers(0, 256, (9, 40, 40, 3), dtype=np.uint8)
    whole = extractor.rows(images).values
    for order in (
        np.arange(9)[::-1],
        rng.permutation(9)[:5],
        np.array([8]),
        np.array([0, 0, 7, 0]),
    ):
        np.testing.assert_array_equal(extractor.rows(images[order]).values, whole[order])
    for threads in (1, 2):  # whatever a process is set to
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            np.testing.assert_array_equal(extractor.rows(images[:4]).values, whole[:4])
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)


def test_settings_of_a_process_do_not_change_numbers_and_come_back() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with reproducible(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_num_threads() == 1
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    with reproducible(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("kind", [Dinov2Extractor, LipResnet18Extractor])
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_tf32_is_an_option_and_off_without_it(kind: Any, precision: str) -> None:
    extractor = kind(precision=precision)
    extractor._device = torch.device("cuda")
    with extractor._settings():
        assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")


LENGTHS = {"a": 5, "b": 9, "c": 1}


def test_all_workers_try_and_keep_what_the_least_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number for workers in other processes, with a GPU that is not one of this machine's."""
    pytest.importorskip("distributed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    store = tmp_path / "a.kps"
    run_ingest(
        FakeSource(LENGTHS),
        store,
        Embedding(memory=5),
        Options(workers=1, device="cuda", task_frames=4),
    )
    begun = kpstore.open(store)
    assert begun.provenance("embedding")["parameters"]["batch_size"] == 4
    assert begun.provenance("embedding")["processors"] == [cpu_name()]
    run_ingest(FakeSource(LENGTHS), tmp_path / "b.kps", Embedding(batch_size=4), Options(workers=0))
    assert not kpstore.diff(begun, kpstore.open(tmp_path / "b.kps"))
    more = {**LENGTHS, "d": 2}
    with pytest.raises(
        ExtractorError, match="embedding needs more GPU memory than is free for batch_size=4, which"
    ):
        run_ingest(FakeSource(more), store, Embedding(memory=3), Options(workers=0, device="cuda"))
    assert run_ingest(FakeSource(more), store, Embedding(), Options(workers=0)).videos_done == 1


# -- processors ------------------------------------------------------------------------------------

XEON = """processor : 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu sse4_1 avx avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile

processor : 1
flags\t\t: none
"""
GRAVITON = "processor\t: 0\nCPU implementer\t: 0x41\nFeatures\t: fp asimd sve bf16\n"


@pytest.mark.parametrize(
    ("machine", "system", "cpuinfo", "wanted"),
    [
        ("x86_64", "Linux", XEON, "x86_64 Intel, avx512 vnni bf16 amx"),
        (
            "x86_64",
            "Linux",
            "vendor_id : AuthenticAMD\nflags : sse4_1 avx avx2",
            "x86_64 AMD, avx2",
        ),
        ("aarch64", "Linux", GRAVITON, "aarch64 0x41, sve bf16"),
        ("arm64", "Darwin", "", "arm64 Darwin"),
    ],
)
def test_a_processor_is_named_by_what_decides_numbers(
    machine: str, system: str, cpuinfo: str, wanted: str
) -> None:
    assert kind_of(machine, system, cpuinfo) == wanted


def test_what_the_environment_forbids_is_part_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cpu_name()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert cpu_name().startswith(plain.split(" (")[0])
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in cpu_name()
    assert device_name(CPU) == cpu_name()
