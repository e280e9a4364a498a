"""Time and memory of loading and of importing users' files, each in a separate process.

``python -m benchmarks.bench_import [--scale 1.0] [--lengths LIST.csv …] [--folder DIR]``

947,756 frames of keypoints in videos as long as those of PHOENIX-2014-T, as a raw pickle (protocol
4) and as one npz file per split. A hand is missing in a tenth of the frames.

- *load*: ``pickle.load``, and ``np.load`` with all arrays read.
- *import*: kpstore's import into a new store on the same disk; left out for formats without an
  importer.
- *peak*: highest resident memory (``VmHWM``, so this needs Linux). *nothing* has only imported
  modules, *empty store* has also made a store without anything in it: what is above those is due to
  the data.
- *phases*: CPU seconds of ``pickle.load`` and of an import of the pickle, in one process: its
  opcodes are checked, then its values are made, then rows, hashes and files. The first two are
  measured alone, and the third is what the whole import takes beside them.

At full size the two files take some 4 GB, the stores 2 GB each, and the pickle about 6 GB of
memory.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import kpstore
from benchmarks import record
from benchmarks.cases import SyntheticExtractor, SyntheticSource, phoenix_lengths, timed
from kpstore import plugins
from kpstore.budget import MemoryBudget
from kpstore.interop.base import Format
from kpstore.interop.pickle import PICKLE
from kpstore.interop.pickle.opcodes import PickleWriter, array_opcodes, plain
from kpstore.interop.unpickling import check_opcodes, load_pickle
from kpstore.schema.feature import FeatureRows
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import PART_SLICES

JOBS = ("nothing", "empty store", "pickle.load", "np.load", "import pickle", "import npz")
PHASES = "phases"


def frames_of(videos: list[VideoRecord]) -> Iterator[FeatureRows]:
    """Yield made-up keypoints, a video at a time: the same ones whenever they are asked for."""
    extractor = SyntheticExtractor()
    extractor.open()
    for video in videos:
        extractor.start_video()
        yield extractor.rows([np.empty(0, dtype=np.uint8)] * video.n_frames)


def write_files(folder: Path, lengths: dict[str, list[int]]) -> Path:
    """Write ``raw.pkl`` and, per split, an npz file.

    Neither takes memory that grows with it but for one split's.
    """
    records = SyntheticSource(lengths).scan().videos
    by_split = {split: [record for record in records if record.split == split] for split in lengths}
    raw = folder / "raw.pkl"
    with raw.open("wb") as file:
        writer = PickleWriter(file, (*PART_SLICES, "image_shape"))
        with writer.mapping():
            for split, videos in by_split.items():
                writer.value(split)
                with writer.mapping():
                    _write_lists(writer, videos)
        writer.close()
    for split, videos in by_split.items():
        np.savez_compressed(
            folder / f"{split}_keypoints.npz",
            keypoints=np.concatenate([np.nan_to_num(rows.values) for rows in frames_of(videos)]),
            image_paths=np.array([path for video in videos for path in video.frame_paths]),
            video_ids=np.array([video.id for video in videos for _ in video.frame_paths]),
        )
    return raw


def _write_lists(writer: PickleWriter, videos: list[VideoRecord]) -> None:
    shape = writer.texts["image_shape"] + plain((260, 210))
    ends = {part: array_opcodes((rows.stop - rows.start, 3)) for part, rows in PART_SLICES.items()}

    def frame(values: Any, detected: Any) -> bytes:
        parts = []
        for (part, where), there in zip(PART_SLICES.items(), detected, strict=True):
            head, tail = ends[part]
            parts += [
                writer.texts[part],
                head + values[where].tobytes() + tail if there else plain(None),
            ]
        return b"".join((b"}(", *parts, shape, b"u"))

    writer.value("keypoints")
    writer.sequence(
        [frame(*both) for both in zip(rows.values, rows.companions["detected"], strict=True)]
        for rows in frames_of(videos)
    )
    writer.value("image_paths")
    writer.sequence([plain(path) for path in video.frame_paths] for video in videos)
    writer.value("video_ids")
    writer.sequence([plain(video.id)] * video.n_frames for video in videos)


def work(job: str, folder: Path) -> None:
    """Do one job; what it loads is kept until its end, as users keep it."""
    known = set(plugins.names("kpstore.formats"))
    if "pickle" not in known:
        plugins.register("kpstore.formats", "pickle", PICKLE)
    from kpstore.interop.transfer import import_file

    if job == "pickle.load":
        with (folder / "raw.pkl").open("rb") as file:
            pickle.load(file)
    elif job == "np.load":
        loaded = [np.load(path) for path in sorted(folder.glob("*_keypoints.npz"))]
        _ = [file[name] for file in loaded for name in file.files]
    elif job == "empty store":
        kpstore.create(folder / "empty.kps")
    elif job == "import pickle":
        import_file(folder / "raw.pkl", folder / "pickle.kps", "pickle")
    elif job == "import npz":
        import_file(folder, folder / "npz.kps", "npz")


def phases(raw: Path, store: Path) -> dict[str, float]:
    """Return CPU seconds of an import of a pickle, and of its layers alone."""
    from kpstore.interop.transfer import import_file

    def load() -> None:
        with raw.open("rb") as file:
            pickle.load(file)

    def check() -> None:
        with raw.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            check_opcodes(mapped, str(raw), MemoryBudget.of(raw))

    _, loading = timed(load)
    _, checking = timed(check)
    _, making = timed(lambda: load_pickle(raw))
    _, everything = timed(lambda: import_file(raw, store, "pickle"))
    return {
        "pickle.load": loading,
        "opcodes, checked": checking,
        "values, made": making - checking,
        "rows, hashes, writing": everything - making,
        "the whole import": everything,
    }


def _child(job: str, folder: str) -> None:
    if job == PHASES:
        print(json.dumps(phases(Path(folder, "raw.pkl"), Path(folder, "phases.kps"))))
        return
    began = time.perf_counter()
    work(job, Path(folder))
    print(
        json.dumps(
            {
                "seconds": round(time.perf_counter() - began, 2),
                "peak_mib": round(_peak_kib() / 1024),
            }
        )
    )


def _peak_kib() -> int:
    """Return this program's highest resident memory.

    ``ru_maxrss`` would count its parent's, before the exec.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def measure(job: str, folder: Path) -> dict[str, float]:
    """Do one job in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_import",
        "--child",
        job,
        "--folder",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"{job}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _can_import(name: str) -> bool:
    if name not in plugins.names("kpstore.formats"):
        return False
    found: Format = plugins.load("kpstore.formats", name)
    return found.importer is not None


def run(*, scale: float = 1.0, lists: list[Path], folder: Path | None = None) -> dict[str, Any]:
    """Write the files into a temporary folder and measure every job."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        place = Path(made)
        lengths = phoenix_lengths(lists, scale=scale)
        raw = write_files(place, lengths)
        jobs = [job for job in JOBS if job != "import npz" or _can_import("npz")]
        found: dict[str, Any] = {job: measure(job, place) for job in jobs}
        for job in jobs[2:]:
            base = found["empty store" if job.startswith("import") else "nothing"]["peak_mib"]
            found[job]["due_to_data_mib"] = found[job]["peak_mib"] - base
        return {
            "frames": sum(map(sum, lengths.values())),
            "pickle_mib": round(raw.stat().st_size / 2**20),
            "npz_mib": round(sum(path.stat().st_size for path in place.glob("*.npz")) / 2**20),
            "jobs": found,
            "phases": measure(PHASES, place),
        }


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of the jobs, and one of where an import of the pickle goes."""
    rows = [
        (job, one["seconds"], f"{one['peak_mib']:,}", f"{one['due_to_data_mib']:,}")
        for job, one in found["jobs"].items()
        if "due_to_data_mib" in one
    ]
    whole = found["phases"]["the whole import"]
    phases = [(what, f"{s:.2f}", f"{s / whole:.2f}") for what, s in found["phases"].items()]
    return {
        "jobs": [("", "s", "peak, MiB", "due to data, MiB"), *rows],
        "phases": [("", "CPU s", "of the import"), *phases],
    }


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the videos")
    parser.add_argument(
        "--lengths", type=Path, nargs="*", default=[], help="CSV lists with split and num_frames"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to put the files; a temporary folder by default"
    )
    parser.add_argument("--child", choices=(*JOBS, PHASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(args.child, str(args.folder))
        return
    found = run(scale=args.scale, lists=args.lengths, folder=args.folder)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
