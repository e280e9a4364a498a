"""A batch as a list of samples: taken whole by PyTorch's collation, a plain list to all others."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, default_collate
from torch.utils.data import Subset as TorchSubset
from torch.utils.data._utils.collate import collate, default_collate_fn_map

import kpstore
from kpstore.views import samples as module
from kpstore.views.samples import Sample, Samples
from tests.store.data import fill

BATCH = {
    "values": np.arange(24, dtype=np.float32).reshape(4, 3, 2),
    "row": np.array([7, 3, 5, 3]),
    "half": np.array([0.5, np.nan, 2, 3], dtype=np.float16),
    "seen": np.array([True, False, True, True]),
    "text": np.array(["a", "b", "ü", ""], dtype=object),
    "short text": np.array(["a", "b", "ü", ""]),
    "paths": np.array([["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]], dtype=object),
    "turned": np.arange(24, dtype=np.int16).reshape(3, 2, 4).transpose(2, 0, 1),
}


def make() -> Samples:
    return Samples({name: array.copy() for name, array in BATCH.items()})


def plain() -> list[dict[str, Any]]:
    return [
        {n: a[i].tolist() if n == "paths" else a[i] for n, a in BATCH.items()} for i in range(4)
    ]


def same(found: Any, expected: Any) -> bool:
    """Whether two collated batches, or samples, have the same types, values, layout and NaN."""
    if type(found) is not type(expected) and not (
        isinstance(found, Sample) and type(expected) is dict
    ):
        return False
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[k], expected[k]) for k in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, torch.Tensor):
        return (
            found.dtype == expected.dtype
            and found.stride() == expected.stride()
            and torch.equal(found.nan_to_num(), expected.nan_to_num())
        )
    if isinstance(expected, np.ndarray | np.generic):
        return found.dtype == expected.dtype and np.array_equal(
            found, expected, equal_nan=expected.dtype.kind == "f"
        )
    return bool(found == expected)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples are made together, each time during a test."""
    numbers: list[int] = []
    make_all = module._samples

    def counted(batch: Any) -> list[dict[str, Any]]:
        numbers.append(len(batch["values" if "values" in batch else "points"]))
        return make_all(batch)

    monkeypatch.setattr(module, "_samples", counted)
    return numbers


def test_pytorch_takes_the_batch_without_making_its_samples(made: list[int]) -> None:
    assert same(default_collate(make()), default_collate(plain()))
    assert made == [1]


def test_what_pytorch_gets_is_writable_and_its_own() -> None:
    values = BATCH["values"].copy()
    values.flags.writeable = False
    found = default_collate(Samples({"values": values}))
    found["values"] += 1
    np.testing.assert_array_equal(values, BATCH["values"])


def test_samples_of_a_view_are_plain_dicts(memory_store: kpstore.Store) -> None:
    view = fill(memory_store).frames("points")
    assert {type(sample) for sample in (view[3], *view, *view.samples([1, 2]))} == {dict}


USES: dict[str, Callable[[Any], Any]] = {
    "in a loop": lambda batch: list(batch),
    "by number": lambda batch: [batch[i] for i in (0, 2, -1)],
    "by a numpy number": lambda batch: batch[np.int64(1)],
    "slice": lambda batch: batch[1:3],
    "length": len,
    "zip": lambda batch: list(zip(batch, range(4), strict=True)),
    "unpacked": lambda batch: [*batch],
    "reversed": lambda batch: list(reversed(batch)),
    "sorted": lambda batch: sorted(batch, key=lambda sample: sample["row"]),
    "sort": lambda batch: batch.sort(key=lambda sample: sample["row"]) or batch,
    "reverse": lambda batch: batch.reverse() or batch,
    "and a list": lambda batch: batch + [1],  # noqa: RUF005
    "after a list": lambda batch: [1] + batch,  # noqa: RUF005
    "twice": lambda batch: batch * 2,
    "popped": lambda batch: [batch.pop(), len(batch)],
    "inserted": lambda batch: batch.insert(1, 5) or batch,
    "replaced": lambda batch: batch.__setitem__(slice(0, 2), []) or batch,
    "deleted": lambda batch: batch.__delitem__(0) or batch,
    "appended": lambda batch: batch.append(3) or batch,
    "extends": lambda batch: [0, *batch][1:],
    "cleared": lambda batch: batch.clear() or batch,
    "copied": copy.copy,
    "copied deeply": copy.deepcopy,
    "pickled": lambda batch: pickle.loads(pickle.dumps(batch)),
    "in numpy": lambda batch: [dict(sample) for sample in np.array(batch, dtype=object)],
    "collated by hand": lambda batch: torch.stack([torch.from_numpy(s["values"]) for s in batch]),
    "collated with a map of one's own": lambda batch: collate(
        [{"values": sample["values"]} for sample in batch],
        collate_fn_map={np.ndarray: lambda arrays, collate_fn_map: len(arrays)},
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
@pytest.mark.parametrize("looked", [False, True])
def test_it_is_a_list_like_any_other(use: Callable[[Any], Any], looked: bool) -> None:
    batch = make()
    if looked:
        assert same(batch[0], plain()[0])
    found, expected = use(batch), use(plain())
    if isinstance(found, Samples):
        found = list(found)
    assert same(found, expected)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a new value": lambda batch: batch[0].update(values=np.full((3, 2), 9, np.float32)),
    "a new name": lambda batch: [sample.update(more=i) for i, sample in enumerate(batch)],
    "a name less": lambda batch: [sample.pop("text") for sample in batch],
    "written into": lambda batch: batch[0]["values"].__setitem__(..., 5),
    "the last": lambda batch: batch[-1].update(row=np.int64(1)),
    "a sample less": lambda batch: batch.pop(),
    "another order": lambda batch: batch.reverse(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_changed_samples_are_what_is_collated(change: Callable[[Any], Any]) -> None:
    batch, expected = make(), copy.deepcopy(plain())
    change(batch)
    change(expected)
    assert same(default_collate(batch), default_collate(expected))


def test_collation_that_a_user_has_changed_is_used(
    made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    default_collate(make())
    monkeypatch.setitem(
        default_collate_fn_map, np.ndarray, lambda arrays, collate_fn_map: len(arrays)
    )
    assert default_collate(make())["values"] == 4


def test_a_pytorch_that_collates_in_another_way_gets_plain_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_COLLATE", "torch.of_another_kind")
    monkeypatch.delitem(default_collate_fn_map, Sample, raising=False)
    assert same(default_collate(make()), default_collate(plain()))
    assert Sample not in default_collate_fn_map


class OneByOne(Dataset[Any]):
    """A view as a data set without ``__getitems__``."""

    def __init__(self, view: Any) -> None:
        self.view = view

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> Any:
        return self.view[index]


VIEWS: dict[str, Callable[[kpstore.Store], Any]] = {
    "frames": lambda store: store.frames(["points", "points_detected", "image_path"]),
    "clips": lambda store: store.clips(["points", "image_path"], length=3),
    "subset": lambda store: store.frames("points").subset([3, 3, 9, 0, 30]),
    "subset of PyTorch": lambda store: TorchSubset(store.frames("points"), [3, 3, 9, 0, 30]),
    "concatenated": lambda store: ConcatDataset([store.frames("points"), store.frames("points")]),
    "transform": lambda store: store.frames("points", transform=lambda s: {**s, "new": 1}),
    "transform in place": lambda store: store.frames(
        "points", transform=lambda s: s.update(new=1) or s
    ),
    "transform to an array": lambda store: store.frames("points", transform=lambda s: s["points"]),
}


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_data_loader_gives_what_it_gives_of_single_samples(
    memory_store: kpstore.Store, kind: str, batch_size: int
) -> None:
    dataset = VIEWS[kind](fill(memory_store))
    loaders = [
        DataLoader(d, batch_size, shuffle=True, generator=torch.Generator().manual_seed(3))
        for d in (dataset, OneByOne(dataset))
    ]
    for found, expected in zip(*loaders, strict=True):
        assert same(found, expected)


def test_an_epoch_makes_one_sample_a_batch(memory_store: kpstore.Store, made: list[int]) -> None:
    view = fill(memory_store).frames("points")
    assert len(list(DataLoader(view, 5))) == 7
    assert made == [1] * 7
