"""Write frames as another library keeps them, and read shuffled epochs with its own loader.

``python benchmarks/peer_loaders.py write NAME VALUES.npy FOLDER``

``python benchmarks/peer_loaders.py read NAME FOLDER WORKERS BATCH``

A script that stands alone, for :mod:`benchmarks.bench_loaders`: it needs NumPy, PyTorch and the one
library, so it runs in an environment of that library's own. ``VALUES.npy`` holds float32 values,
(frames, points, 3). Each library is used as its documentation shows, with its own defaults where
nothing else is said; a frame is written with its number, ``row``, as in batches of kpstore.

``read`` prints one line of JSON: what :func:`measured` returns, and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

DATA, MARKS = "data", "marks.npy"
"""In a folder: what the library has written, and a value of each frame to compare."""
_TAR_SHARDS, _TAR_BUFFER = 16, 1000
"""Workers of WebDataset share its shards; each mixes so many samples, as its README advises."""


@dataclass(frozen=True)
class Peer:
    """A library, and how its users write and read.

    Parameters
    ----------
    module : what is imported; its environment is called so, too.
    distribution : what is installed.
    how : the loader, in a few words.
    write : writes all values to a path that does not exist yet.
    open : returns what has been written, for so large batches.
    loader : makes a loader of that, for so many workers and so large batches.
    """

    module: str
    distribution: str
    how: str
    write: Callable[[Path, Path], None]
    open: Callable[[Path, int], Any]
    loader: Callable[[Any, int, int], Iterable[Any]]


def _samples(values: Path, frames: range) -> Iterator[dict[str, Any]]:
    """Yield frames one by one, as most libraries want them."""
    mapped = np.load(values, mmap_mode="r")
    for row in frames:
        yield {"keypoints": np.array(mapped[row]), "row": row}


def _n_frames(values: Path) -> int:
    return len(np.load(values, mmap_mode="r"))


def torchs_loader(data: Any, workers: int, batch: int, **more: Any) -> Iterable[Any]:
    """Return PyTorch's loader of a data set, shuffled."""
    from torch.utils.data import DataLoader

    return DataLoader(data, batch, shuffle=True, num_workers=workers, **more)


# -- tensordict ------------------------------------------------------------------------------------


def _write_tensordict(values: Path, path: Path) -> None:
    import torch
    from tensordict import TensorDict

    whole = torch.from_numpy(np.load(values))
    fields = {"keypoints": whole, "row": torch.arange(len(whole))}
    TensorDict(fields, batch_size=[len(whole)]).memmap(path)


def _open_tensordict(path: Path, batch: int) -> Any:
    from tensordict import TensorDict

    return TensorDict.load_memmap(path)


def _itself(batch: Any) -> Any:
    """Keep the batch, which a tensordict has read with one index."""
    return batch


# -- MosaicML Streaming ----------------------------------------------------------------------------


def _write_streaming(values: Path, path: Path) -> None:
    from streaming import MDSWriter

    shape = ",".join(map(str, np.load(values, mmap_mode="r").shape[1:]))
    columns = {"keypoints": f"ndarray:float32:{shape}", "row": "int"}
    with MDSWriter(out=str(path), columns=columns) as out:
        for sample in _samples(values, range(_n_frames(values))):
            out.write(sample)


def _open_streaming(path: Path, batch: int) -> Any:
    from streaming import StreamingDataset

    return StreamingDataset(local=str(path), shuffle=True, batch_size=batch)


def _streaming_loader(data: Any, workers: int, batch: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    return DataLoader(data, batch, num_workers=workers)


# -- litdata ---------------------------------------------------------------------------------------


def _write_litdata(values: Path, path: Path) -> None:
    from litdata import optimize

    optimize(
        fn=partial(_samples, values),
        inputs=[range(_n_frames(values))],
        output_dir=str(path),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def _open_litdata(path: Path, batch: int, **more: Any) -> Any:
    from litdata import StreamingDataset

    return StreamingDataset(str(path), shuffle=True, **more)


def _litdata_loader(data: Any, workers: int, batch: int) -> Iterable[Any]:
    from litdata import StreamingDataLoader

    return StreamingDataLoader(data, batch_size=batch, num_workers=workers)


# -- WebDataset ------------------------------------------------------------------------------------


def _write_webdataset(values: Path, path: Path) -> None:
    import webdataset

    path.mkdir()
    n_frames = _n_frames(values)
    most = -(-n_frames // _TAR_SHARDS)
    with webdataset.ShardWriter(str(path / "%04d.tar"), maxcount=most, verbose=0) as out:
        for sample in _samples(values, range(n_frames)):
            row = sample["row"]
            out.write({"__key__": f"{row:08d}", "npy": sample["keypoints"], "cls": row})


def _open_webdataset(path: Path, batch: int) -> Any:
    import webdataset

    shards = sorted(map(str, path.glob("*.tar")))
    data = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(_TAR_BUFFER)
    return data.decode().to_tuple("npy", "cls").batched(batch)


def _webdataset_loader(data: Any, workers: int, batch: int) -> Iterable[Any]:
    import webdataset

    # Batches are made by the workers, and become tensors there.
    made: Iterable[Any] = webdataset.WebLoader(data, batch_size=None, num_workers=workers)
    return made


# -- HF datasets -----------------------------------------------------------------------------------


def _write_datasets(values: Path, path: Path) -> None:
    from datasets import Array2D, Dataset, Features, Value

    whole = np.load(values)
    features = {"keypoints": Array2D(whole.shape[1:], "float32"), "row": Value("int64")}
    columns = {"keypoints": whole, "row": np.arange(len(whole))}
    Dataset.from_dict(columns, features=Features(features)).save_to_disk(path)


def _open_datasets(path: Path, batch: int) -> Any:
    from datasets import load_from_disk

    return load_from_disk(path).with_format("torch")


PEERS = {
    "tensordict": Peer(
        "tensordict",
        "tensordict",
        "memory-mapped TensorDict with DataLoader",
        _write_tensordict,
        _open_tensordict,
        partial(torchs_loader, collate_fn=_itself),
    ),
    "streaming": Peer(
        "streaming",
        "mosaicml-streaming",
        "MosaicML StreamingDataset with DataLoader",
        _write_streaming,
        _open_streaming,
        _streaming_loader,
    ),
    "litdata": Peer(
        "litdata",
        "litdata",
        "litdata, StreamingDataset and StreamingDataLoader",
        _write_litdata,
        _open_litdata,
        _litdata_loader,
    ),
    # By default, workers that share a chunk decode 256 frames again and again.
    "litdata-all": Peer(
        "litdata",
        "litdata",
        'litdata, StreamingDataset(batch_decode="all")',
        _write_litdata,
        partial(_open_litdata, batch_decode="all"),
        _litdata_loader,
    ),
    "webdataset": Peer(
        "webdataset",
        "webdataset",
        f"WebDataset.shuffle({_TAR_BUFFER}) with WebLoader",
        _write_webdataset,
        _open_webdataset,
        _webdataset_loader,
    ),
    "datasets": Peer(
        "datasets",
        "datasets",
        'HF Dataset.with_format("torch") with DataLoader',
        _write_datasets,
        _open_datasets,
        torchs_loader,
    ),
}


# -- measuring -------------------------------------------------------------------------------------


def _fields(batch: Any) -> tuple[Any, Any]:
    """Return copies of one value of each frame, and of the frames' numbers."""
    pair = batch if isinstance(batch, (tuple, list)) else (batch["keypoints"], batch["row"])
    return pair[0][:, 0, 0].clone().numpy(), pair[1].clone().numpy()


def measured(
    open: Callable[[], Any], loader: Callable[[Any], Iterable[Any]], marks: Any, batch: int
) -> dict[str, float]:
    """Measure the first batch of the first epoch, and the second epoch.

    Parameters
    ----------
    open : returns the data set.
    loader : makes a loader of it.
    marks : (frames,) ``values[:, 0, 0]``: what the first epoch should bring, in any order.
    batch : frames per batch, which are counted.

    Returns
    -------
    Seconds of ``open``, and from making the loader to its first batch, and frames per second in the
    second epoch, whose workers start anew as by default. What a library prepares when it is first
    imported is not in them.
    """
    began = time.perf_counter()
    data = open()
    opened = time.perf_counter()
    batches = loader(data)
    epoch = iter(batches)
    first = next(epoch)
    took = time.perf_counter() - opened
    if len(_fields(first)[1]) != min(batch, len(marks)):
        raise ValueError(f"{len(_fields(first)[1])} frames in the first batch, not {batch}")
    seen = [_fields(first), *map(_fields, epoch)]
    found, rows = (np.concatenate(each) for each in zip(*seen, strict=True))
    if not np.array_equal(np.sort(rows), np.arange(len(marks))):
        raise ValueError(f"an epoch has {len(rows)} frames, {len(set(rows))} of {len(marks)}")
    if np.array_equal(rows, np.sort(rows)) or not np.array_equal(found, marks[rows]):
        raise ValueError("frames are not shuffled, or hold other values")
    del epoch, first, seen
    again = time.perf_counter()
    for _ in batches:
        pass
    second = time.perf_counter() - again
    return {
        "open_s": opened - began,
        "first_batch_s": took,
        "frames_per_s": len(marks) / second,
    }


def bring_in(folder: Path) -> None:
    """Read all files, so that their pages are in memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def write(name: str, values: Path, folder: Path) -> None:
    """Write values in a library's format into a new folder."""
    folder.mkdir()
    PEERS[name].write(values.resolve(), folder / DATA)
    np.save(folder / MARKS, np.load(values, mmap_mode="r")[:, 0, 0])


def read(name: str, folder: Path, workers: int, batch: int) -> dict[str, Any]:
    """Measure two epochs of what has been written."""
    import torch

    peer = PEERS[name]
    __import__(peer.module)
    bring_in(folder)
    found: dict[str, Any] = measured(
        lambda: peer.open(folder / DATA, batch),
        lambda data: peer.loader(data, workers, batch),
        np.load(folder / MARKS),
        batch,
    )
    found["versions"] = {
        peer.distribution: version(peer.distribution),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return found


def main() -> None:
    """Parse, write or read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    writing, reading = commands.add_parser("write"), commands.add_parser("read")
    for command in (writing, reading):
        command.add_argument("name", choices=PEERS)
    writing.add_argument("values", type=Path)
    for command in (writing, reading):
        command.add_argument("folder", type=Path)
    reading.add_argument("workers", type=int)
    reading.add_argument("batch", type=int)
    args = parser.parse_args()
    # Nothing is asked of the network.
    os.environ.update(LITDATA_DISABLE_VERSION_CHECK="1", HF_HUB_OFFLINE="1")
    if args.command == "write":
        write(args.name, args.values, args.folder)
    else:
        found = read(args.name, args.folder, args.workers, args.batch)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
