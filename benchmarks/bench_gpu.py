"""What a GPU makes of the models: by batch, alone, and in an ingest.

``python -m benchmarks.bench_gpu [--device cuda:0] [--frames 4096] [--workers 1 2 4]``

Takes under eight minutes on a GPU. On a machine without one, ``--device cpu --frames 16`` shows
that it runs, and nothing about GPUs.

- *Holistic by batch*: models and crops alone, on frames that lie in the device's memory, for
  several sizes of a batch.
- *Estimate*: what the operations and the bytes of a frame would take, one after the other, at usual
  shares of a GPU's peak. It is computed, not measured.
- *Ingests*: of pictures (PNG) and of video, with one process and with several, beside the models
  alone in the same run; with the number of cores that decode. What an ingest lacks of the models
  alone is the share of time in which the GPU waits.
- *DINOv2 and lips*: as :mod:`benchmarks.bench_extract` measures them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import bench_extract, record
from benchmarks.cases import answer, in_own_process
from kpstore.machine import usable_cores

MACS, BYTES = 1.529e9, 272e6
"""Of one frame: multiplications of the six models, and bytes that fused kernels would move."""
SHARE_OF_PEAK, SHARE_OF_BANDWIDTH = 0.35, 0.6
"""What such networks usually reach of both."""
GPUS = {"RTX 3090": (35.6e12, 936e9), "A100": (19.5e12, 1555e9), "H200": (67e12, 4800e9)}
"""Peak of float32 without TF32, in operations a second, and bytes of memory a second."""
BATCHES = {"cuda": (1, 16, 32, 64, 128, 256), "cpu": (1, 4)}
_MODULE = "benchmarks.bench_gpu"


def estimate(operations: float, bandwidth: float) -> float:
    """Return the frames per second that a GPU with this peak might reach."""
    computing = 2 * MACS / (SHARE_OF_PEAK * operations)
    return 1 / (computing + BYTES / (SHARE_OF_BANDWIDTH * bandwidth))


def _child(folder: Path, device: str, rows: int) -> float:
    images = [np.asarray(Image.open(path)) for path in sorted((folder / "people").rglob("*.png"))]
    return bench_extract.holistic_alone(images, device, rows)


def run(*, device: str, frames: int, runs: int, workers: list[int]) -> dict[str, Any]:
    """Measure everything; each case is a process of its own."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    with tempfile.TemporaryDirectory() as made:
        bench_extract.make_data(Path(made), frames)
        by_batch = {
            str(rows): in_own_process(_MODULE, "--child", made, device, str(rows)).found["rate"]
            for rows in BATCHES[kind]
        }
    ingests = {
        str(count): bench_extract.run(
            frames=frames, runs=runs, device=device, workers_per_gpu=count
        )
        for count in workers
    }
    return {"device": device, "cores": usable_cores(), "by_batch": by_batch, "ingests": ingests}


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table by batch, and one of ingests for each number of processes."""
    rates = ((rows, f"{rate:,.0f}") for rows, rate in found["by_batch"].items())
    made: dict[str, record.Table] = {
        "holistic by batch": [("rows", "frames/s"), *rates],
        "estimate, not measured": [
            ("GPU", "frames/s"),
            *((name, f"{estimate(*peak):,.0f}") for name, peak in GPUS.items()),
        ],
    }
    for count, one in found["ingests"].items():
        made[f"{count} processes"] = bench_extract.tables(one)["speed"]
    return made


def main() -> None:
    """Parse, run, print."""
    if sys.argv[1:2] == ["--child"]:
        folder, device, rows = sys.argv[2:]
        answer({"rate": _child(Path(folder), device, int(rows))})
        return
    parser = record.parser(__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--frames", type=int, default=4096, help="pictures of each kind")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="processes")
    args = parser.parse_args()
    if args.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            parser.error("torch finds no GPU; --device cpu --frames 16 only shows that this runs")
    found = run(device=args.device, frames=args.frames, runs=args.runs, workers=args.workers)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
