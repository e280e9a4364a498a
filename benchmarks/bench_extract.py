"""Extraction by models of torch, compared with single images and the model alone.

``python -m benchmarks.bench_extract [--frames 96] [--runs 3] [--device cpu] [--workers-per-gpu 4]``

DINOv2 and the lip encoder have their real shape and random weights: how fast they are does not
depend on these. Holistic in torch has MediaPipe's own, and photographs of people. *Model alone*
computes on inputs that lie in memory, prepared and in batches, and is the most that anything can
reach; *plain loop* is what a script does that opens, prepares and computes one image (one
utterance) after another. The ingests read the same files and store what comes out; ``steady``
counts from the first finished frames to the last, as hours of extraction do. On the CPU everything
runs with one thread a process.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from benchmarks import record
from benchmarks.cases import answer, in_own_process, summary
from kpstore.sources.demo import write_demo_dataset

CROPS = 50
"""Frames of an utterance: two seconds."""
_MODULE = "benchmarks.bench_extract"
_PICTURES = {"dinov2": "clips", "holistic": "people"}
"""Folders of the pictures that a model takes."""
_KINDS = {
    "dinov2": "DINOv2 ViT-S/14",
    "lips": "lip encoder, ResNet18",
    "holistic": "Holistic in torch",
}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run(*, frames: int, runs: int, device: str, workers_per_gpu: int) -> dict[str, Any]:
    """Measure all cases in turn, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), frames)
        rates: dict[str, dict[str, list[float]]] = {}
        for _ in range(runs):
            for kind in _KINDS:
                for name in (
                    "model alone",
                    "plain loop",
                    "ingest, in this process",
                    "ingest, worker processes",
                ):
                    args = (kind, name, folder, device, str(workers_per_gpu))
                    env = {} if device.startswith("cuda") else _ONE_THREAD
                    rate = in_own_process(_MODULE, "--case", *args, env=env).found["frames_per_s"]
                    rates.setdefault(kind, {}).setdefault(name, []).append(rate)
    return {
        "frames": frames,
        "device": device,
        "frames_per_s": {
            kind: {n: summary(v) for n, v in found.items()} for kind, found in rates.items()
        },
        "of_model_alone": {
            kind: {
                n: summary([a / b for a, b in zip(v, found["model alone"], strict=True)])
                for n, v in found.items()
            }
            for kind, found in rates.items()
        },
    }


# -- data ------------------------------------------------------------------------------------------


def make_data(folder: Path, frames: int) -> None:
    """Write videos of PHOENIX's size, of noise and of people, utterances of 50 crops, and weights.

    Those of noise have 32 pictures, those of people 16.
    """
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from kpstore.extractors.lip_network import LipNetwork

    rng = np.random.default_rng(0)
    for number in range(frames):
        path = folder / "clips" / f"{number // 32:03}" / f"{number % 32:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough = rng.integers(0, 255, (26, 21, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((210, 260), Image.Resampling.BICUBIC).save(path)
    write_demo_dataset(folder / "demo", videos=1, frames=16)
    people = sorted(next((folder / "demo").glob("features/*/train/*")).glob("*.png"))[:16]
    for number in range(max(2, frames // 16)):
        clip = folder / "people" / f"{number:03}"
        clip.mkdir(parents=True)
        for path in people:
            shutil.copy(path, clip)
    (folder / "mouths").mkdir()
    for number in range(max(2, frames // 8)):
        crops = rng.integers(0, 255, (CROPS, 96, 96), dtype=np.uint8)
        np.savez_compressed(folder / "mouths" / f"{number:04}.npz", data=crops)
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder / "vits14")
    torch.save({"model_state_dict": LipNetwork().state_dict()}, folder / "lips.pth.tar")


# -- cases, each in a process of its own -----------------------------------------------------------


def measure(kind: str, name: str, folder: Path, device: str, workers_per_gpu: int) -> float:
    """Return frames per second of one case."""
    if name.startswith("ingest"):
        return _ingest(kind, folder, device, workers_per_gpu if name.endswith("processes") else 0)
    return {"model alone": _model_alone, "plain loop": _plain_loop}[name](kind, folder, device)


def _extractor(kind: str, folder: Path) -> Any:
    from kpstore.extractors.dinov2 import Dinov2Extractor
    from kpstore.extractors.holistic import HolisticExtractor
    from kpstore.extractors.lip_resnet18 import LipResnet18Extractor

    if kind == "dinov2":
        return Dinov2Extractor(model="dinov2_vits14", weights=folder / "vits14")
    if kind == "holistic":
        return HolisticExtractor(engine="torch")
    return LipResnet18Extractor(weights=folder / "lips.pth.tar")


def _ingest(kind: str, folder: Path, device: str, workers: int) -> float:
    from kpstore.ingest.observer import SilentObserver
    from kpstore.ingest.options import Options
    from kpstore.ingest.run import run_ingest
    from kpstore.sources.lips import LipsSource
    from kpstore.sources.videos import VideosSource

    class Watch(SilentObserver):
        first: tuple[float, int] | None = None
        last = 0.0

        def on_progress(self, progress: Any) -> None:
            self.last = time.perf_counter()
            if progress.frames_done and self.first is None:
                self.first = self.last, progress.frames_done

    watch = Watch()
    source: Any = (
        LipsSource(folder / "mouths") if kind == "lips" else VideosSource(folder / _PICTURES[kind])
    )
    n_workers = (workers if device.startswith("cuda") else 1) if workers else 0
    options = Options(
        workers=n_workers, device=device, task_frames=0 if device.startswith("cuda") else 200
    )
    with tempfile.TemporaryDirectory() as out:
        found = run_ingest(
            source, Path(out) / "s.kps", _extractor(kind, folder), options, observer=watch
        )
    if found.frames_failed or watch.first is None:
        raise RuntimeError(f"{found.frames_failed} frames failed")
    return (found.frames - watch.first[1]) / (watch.last - watch.first[0])


def _model_alone(kind: str, folder: Path, device: str) -> float:
    from kpstore.extractors.dinov2 import whole_image

    extractor = _extractor(kind, folder)
    extractor.open(device)
    if kind == "holistic":
        paths = sorted((folder / "people").rglob("*.png"))
        return holistic_alone([np.asarray(Image.open(path)) for path in paths], device)
    if kind == "dinov2":
        images = [
            np.asarray(Image.open(path)) for path in sorted((folder / "clips").rglob("*.png"))
        ]
        prepared = np.stack([whole_image(image) for image in images])
        batches = [
            prepared[at : at + extractor.batch_size]
            for at in range(0, len(prepared), extractor.batch_size)
        ]
        return _rate(batches, extractor._forward, len)
    crops = [np.load(path)["data"] for path in sorted((folder / "mouths").glob("*.npz"))]
    at_once = max(1, extractor.batch_frames // CROPS)
    batches = [crops[at : at + at_once] for at in range(0, len(crops), at_once)]
    return _rate(batches, extractor.extract_videos, lambda batch: CROPS * len(batch))


def holistic_alone(images: list[Any], device: str, rows: int = 0) -> float:
    """Return frames per second of models and crops, with the frames in the device's memory.

    Parameters
    ----------
    rows : of each call and of the batch; 0 for the device's default.
    """
    import torch

    from kpstore.extractors.holistic import HolisticExtractor
    from kpstore.extractors.mediapipe_crops import Frames
    from kpstore.extractors.torch_engine import TorchEngine

    extractor = HolisticExtractor(engine="torch", rows_per_call=rows)
    extractor.settle({}, device)
    extractor.open(device)
    count = extractor.videos_at_once
    engine: Any = cast("TorchEngine", extractor._engine)._model
    parts = [images[at : at + count] for at in range(0, len(images) - count + 1, count)]
    parts = parts or [(images * count)[:count]]
    everyone = torch.ones(count, dtype=torch.bool, device=engine._device)
    with torch.inference_mode(), engine._settings():
        batches = [Frames.of(part).to(engine._device) for part in parts] * (2 if count > 1 else 1)

        def step(frames: Frames) -> None:
            engine._memory = engine._stepped(frames, everyone, engine._memory)[1]

        step(batches[0])
        _finished(device)
        began = time.perf_counter()
        for batch in batches:
            step(batch)
        _finished(device)
        return count * len(batches) / (time.perf_counter() - began)


def _finished(device: str) -> None:
    """Wait for a GPU."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _plain_loop(kind: str, folder: Path, device: str) -> float:
    extractor = _extractor(kind, folder)
    extractor.open(device)
    if kind in _PICTURES:
        return _rate(
            sorted((folder / _PICTURES[kind]).rglob("*.png")),
            lambda path: extractor.rows([np.asarray(Image.open(path).convert("RGB"))]),
            lambda path: 1,
        )
    return _rate(
        sorted((folder / "mouths").glob("*.npz")),
        lambda path: extractor.extract_videos([np.load(path)["data"]]),
        lambda path: CROPS,
    )


def _rate(items: list[Any], work: Callable[[Any], Any], frames: Callable[[Any], int]) -> float:
    """Return frames per second after the first item, which also warms up."""
    work(items[0])
    began = time.perf_counter()
    for item in items[1:]:
        work(item)
    return sum(map(frames, items[1:])) / (time.perf_counter() - began)


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of speeds."""
    rows: list[tuple[object, ...]] = [("", "frames/s", "lowest–highest", "of the model alone")]
    for kind, rates in found["frames_per_s"].items():
        for name, rate in rates.items():
            share = found["of_model_alone"][kind][name]["median"]
            spread = f"{rate['min']:.1f}–{rate['max']:.1f}"
            rows.append(
                (f"{_KINDS[kind]}: {name}", f"{rate['median']:.1f}", spread, f"{share:.2f}")
            )
    return {"speed": rows}


def main() -> None:
    """Parse, run, print."""
    if sys.argv[1:2] == ["--case"]:
        kind, name, folder, device, workers = sys.argv[2:]
        answer({"frames_per_s": measure(kind, name, Path(folder), device, int(workers))})
        return
    parser = record.parser(__doc__)
    parser.add_argument(
        "--frames", type=int, default=96, help="pictures; an eighth as many utterances"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers-per-gpu", type=int, default=min(4, os.cpu_count() or 1))
    args = parser.parse_args()
    found = run(
        frames=args.frames, runs=args.runs, device=args.device, workers_per_gpu=args.workers_per_gpu
    )
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
