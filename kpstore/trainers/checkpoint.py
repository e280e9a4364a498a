"""Checkpoints: safetensors files with the tensors of a run, and its plain values as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kpstore.errors import CorruptError, InvalidError, MismatchError, NotFoundError
from kpstore.user_files import parse_json

_KEY = "kpstore"
_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Plain values and tensors named ``model.…``, ``optimizer.…``, ``sums.…`` and ``rng.…``."""

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<Checkpoint of {len(self.tensors)} tensors: epoch {self.about.get('epoch')}>"

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, see :func:`under`."""
        return under(prefix, self.tensors)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with their names after a prefix and a dot."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix and a dot, without both."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and replace the file there was in one step.

    Raises
    ------
    OSError
        If it cannot be written, for example on a full disk; the file there was is kept.
    """
    aside = path.with_name(f".{path.name}.aside")
    tensors = {
        name: tensor.detach().to("cpu").contiguous() for name, tensor in checkpoint.tensors.items()
    }
    about = json.dumps({"format": _FORMAT, **checkpoint.about})
    try:
        save_file(tensors, aside, metadata={_KEY: about})
    except SafetensorError as error:
        # Safetensors has an error of its own for a full disk.
        aside.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written ({error}); the previous file is kept") from None
    # Safetensors creates files that only their owner may read; this one may be read by whoever may
    # read the folder.
    aside.chmod(path.parent.stat().st_mode & 0o666)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file.

    Raises
    ------
    NotFoundError
        If it does not exist.
    CorruptError
        If it is torn, or not a safetensors file.
    InvalidError
        If it is not a checkpoint of ``kpstore train``.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no checkpoint found; use a file that kpstore train wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CorruptError(
            f"{path}: cannot be read as a checkpoint ({error}); use an older checkpoint"
        ) from None
    about = parse_json(metadata[_KEY], f"{path}: its description") if _KEY in metadata else None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise InvalidError(
            f"{path}: not a checkpoint of kpstore train, or one of another version; use the "
            "kpstore that wrote it"
        )
    return Checkpoint(tensors, about)


def load_weights(model: nn.Module, checkpoint: Checkpoint, path: Path | str) -> None:
    """Load a checkpoint's weights into a model; :class:`InvalidError` if they do not fit."""
    check_weights(model, checkpoint, path)
    model.load_state_dict(checkpoint.under("model"))


def check_weights(model: nn.Module, checkpoint: Checkpoint, path: Path | str) -> None:
    """Raise :class:`InvalidError` unless a checkpoint's weights fit a model."""
    theirs, ours = (
        {name: tensor.shape for name, tensor in tensors.items()}
        for tensors in (checkpoint.under("model"), model.state_dict())
    )
    if theirs != ours:
        raise InvalidError(
            f"{path}: its tensors are not those of this {type(model).__name__}; use a checkpoint "
            "of the same model, or the kpstore that wrote it"
        )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state by parameter name, ``name.exp_avg`` and so on."""
    return {
        f"{name}.{key}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what :func:`optimizer_tensors` returned; settings of parameter groups are kept."""
    numbers = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        state.setdefault(numbers[name], {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


def fits_optimizer(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are those of :func:`optimizer_tensors`, by names and shapes.

    A parameter that had no gradient yet has none.
    """
    wanted = {
        f"{name}.{key}": shape
        for name, parameter in model.named_parameters()
        for key, shape in zip(
            _MOMENTS, (torch.Size(), parameter.shape, parameter.shape), strict=True
        )
    }
    stems = {name.rpartition(".")[0] for name in tensors}
    whole = all(f"{stem}.{key}" in tensors for stem in stems for key in _MOMENTS)
    return whole and all(tensor.shape == wanted.get(name) for name, tensor in tensors.items())


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the random number generators of this process, and of a GPU."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def fits_rng(states: Mapping[str, Tensor], device: torch.device) -> bool:
    """Return whether tensors can be what :func:`rng_tensors` returned."""
    kinds = {name: (s.shape, s.dtype) for name, s in rng_tensors(device).items()}
    return "cpu" in states and all(
        (states[name].shape, states[name].dtype) == kind and _can_be_set(name, states[name])
        for name, kind in kinds.items()
        if name in states
    )


def _can_be_set(name: str, state: Tensor) -> bool:
    try:
        torch.Generator(name).set_state(state)
    except RuntimeError:  # numbers of the right type that no generator has
        return False
    return True


def restore_rng(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Restore what :func:`rng_tensors` returned; a GPU's only if there is, and was, a GPU."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


_FREE = ("kpstore", "torch", "threads")
"""May differ when a run resumes; its numbers may then differ in the last bits."""


def check_same(path: Path, found: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise :class:`MismatchError` unless a checkpoint is of the same run.

    The message names all differences. :class:`InvalidError` if the checkpoint names no store.
    """
    theirs, ours = found.get("store"), here["store"]
    if (
        not isinstance(theirs, dict)
        or not {"snapshot", "location"} <= theirs.keys()
        or not isinstance(found.get("frames", {}), dict)
    ):
        raise InvalidError(
            f"{path}: does not say what it was trained on, as kpstore train does; start again in "
            "another folder"
        )
    if theirs["snapshot"] != ours["snapshot"]:
        raise MismatchError(
            f"{path} was trained on version {theirs['snapshot']} of {theirs['location']}, this is "
            f"version {ours['snapshot']} of {ours['location']}; open that version (at=, --at "
            f"{theirs['snapshot']}), or start again in another folder"
        )
    keys = [key for key in here if key not in (*_FREE, "store", "frames")]
    changed = [line for key in keys for line in _differences(key, found.get(key), here[key])]
    # Different frames may be equally many; checkpoints of older versions have no digests.
    before = {**here["frames"], **found.get("frames", {})}
    others = [name for name, digest in here["frames"].items() if before[name] != digest]
    changed += [f"{name} frames are others (split, limit or selection)" for name in others]
    grows = here["settings"]["schedule"] == "constant" and here["settings"]["warmup"] == 0
    changed = [line for line in changed if not (grows and line.startswith("settings.epochs "))]
    if changed:
        raise MismatchError(
            f"{path} was trained with other settings: {'; '.join(changed)}; resume with the same, "
            "or start again in another folder"
        )


def _differences(name: str, theirs: object, ours: object) -> list[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        keys = dict.fromkeys([*theirs, *ours])
        return [
            line
            for key in keys
            for line in _differences(f"{name}.{key}", theirs.get(key), ours.get(key))
        ]
    return [] if theirs == ours else [f"{name} {theirs!r} then, {ours!r} now"]
