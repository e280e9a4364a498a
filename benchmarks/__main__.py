"""Run every benchmark and print the figures as JSON: ``python -m benchmarks [--quick]``."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

from benchmarks import (
    bench_checks,
    bench_extract,
    bench_first_read,
    bench_hdf5,
    bench_import,
    bench_ingest_mediapipe,
    bench_ingest_scale,
    bench_old_training,
    bench_read,
    bench_render,
    bench_shuffle,
    bench_train,
)
from kpstore.sources.demo import write_demo_dataset


def main() -> None:
    """Run all at full size, or at a size that takes a minute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small data: shows that it runs, not how fast"
    )
    quick = parser.parse_args().quick
    results = {"machine": f"{platform.machine()}, Python {platform.python_version()}"}
    results["ingest_scale"] = bench_ingest_scale.run(
        scale=0.01 if quick else 1.0, workers=2, lists=[]
    )
    with tempfile.TemporaryDirectory() as folder:
        data = write_demo_dataset(Path(folder) / "data")
        if not quick:
            bench_ingest_mediapipe.repeat_videos(data, 30)
        results["ingest_mediapipe"] = bench_ingest_mediapipe.run(data, runs=1 if quick else 3)
    results["import"] = bench_import.run(lists=[], scale=0.01 if quick else 1.0)
    results["hdf5"] = bench_hdf5.run(frames=8192 if quick else 200_192, runs=1 if quick else 5)
    results["checks"] = bench_checks.run(frames=10_000 if quick else bench_checks.FRAMES)
    results["extract"] = bench_extract.run(
        frames=16 if quick else 96, runs=1 if quick else 3, device="cpu", workers_per_gpu=1
    )
    results["render"] = bench_render.run(frames=32 if quick else 256, runs=1 if quick else 9)
    results["shuffle"] = bench_shuffle.run(lists=[], scale=0.01 if quick else 1.0)
    results["read"] = bench_read.run(scale=0.01 if quick else 1.0, runs=1 if quick else 5)
    results["first_read"] = bench_first_read.run(
        scale=0.01 if quick else 0.25, runs=1 if quick else 9
    )
    results["train"] = bench_train.run(image_size=32 if quick else 64, steps=8 if quick else 600)
    old = {"frames": 400, "image_size": 32, "steps": 4} if quick else {"runs": 3}
    results["old_training"] = bench_old_training.run(**old)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
