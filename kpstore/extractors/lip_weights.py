"""Weights of the lip-reading encoder: a user's checkpoint, checked tensor by tensor."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError
from kpstore.extractors.checkpoint_files import brief, file_sha256, load_tensors, some_of

_log = logging.getLogger(__name__)

WRAPPERS = ("model_state_dict", "state_dict")
"""Names under which training scripts keep a model's tensors."""
HEAD = "tcn"
"""Part of the names of the temporal head, which features do not need."""
COUNTER = "num_batches_tracked"
"""Of batch norm, while it is trained; checkpoints of old versions of torch are without."""
FIRST = "frontend3D.0.weight"


@dataclass(frozen=True)
class LipCheckpoint:
    """The contents of a checkpoint, compared with the encoder.

    Parameters
    ----------
    path : the file.
    tensors : by the encoder's own names.
    prefix : prefix of each name in the file, e.g. ``"module."``.
    head : how many tensors of a temporal head were left out.
    """

    path: Path
    tensors: Mapping[str, Any]
    prefix: str = ""
    head: int = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return file_sha256(self.path)

    def __str__(self) -> str:
        left_out = f", {self.head} of a temporal head left out" if self.head else ""
        return f"lip-reading ResNet18 with PReLU ({len(self.tensors)} tensors{left_out})"


def read_lip_checkpoint(path: Path) -> LipCheckpoint:
    """Return a checkpoint's tensors if they are the encoder's, all of them and no others.

    Code in it is never run.

    Parameters
    ----------
    path : a file of ``torch.save`` with the tensors by name, or with them under
        ``"model_state_dict"``; or ``.safetensors``. What all names begin with alike (``module.``)
        is taken off.

    Raises
    ------
    NotFoundError
        If the file does not exist.
    InvalidError
        If it is not a checkpoint, or is another network's; the message names the first tensor
        that does not fit.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise NotFoundError(
            f"no lip-reading weights at {path}: it {what}; give the checkpoint's own file"
        )
    state = _unwrapped(_read(path), path)
    own = {name: tensor for name, tensor in state.items() if HEAD not in name}
    prefix = _prefix(own)
    checkpoint = LipCheckpoint(
        path,
        {name.removeprefix(prefix): tensor for name, tensor in own.items()},
        prefix,
        len(state) - len(own),
    )
    _check(checkpoint.tensors, path)
    return checkpoint


def load_network(checkpoint: LipCheckpoint) -> Any:
    """Return the encoder with a checkpoint's weights: float32, evaluation mode, on the CPU."""
    from kpstore.extractors.lip_network import LipNetwork

    if checkpoint.head:
        _log.info(
            "%s: %d tensors of a temporal head are not needed", checkpoint.path, checkpoint.head
        )
    network = LipNetwork()
    # Only counters may be missing by now; they mean nothing in evaluation mode.
    network.load_state_dict(
        {name: tensor.float() for name, tensor in checkpoint.tensors.items()}, strict=False
    )
    return network.eval().requires_grad_(False)


def is_lip_checkpoint(path: Path) -> bool:
    """Whether a file has the tensor that the encoder begins with, whatever else is in it."""
    try:
        return any(name.endswith(FIRST) for name in _unwrapped(_read(path), path))
    except InvalidError:
        return False


# -- files -----------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    return _read_safetensors(path) if path.suffix == ".safetensors" else load_tensors(path)


def _read_safetensors(path: Path) -> Any:
    try:
        files = importlib.import_module("safetensors")
        reader = importlib.import_module("safetensors.torch")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"weights in {path.name} ({error.name} is not installed)", extra="train"
        ) from None
    try:
        return reader.load_file(path)
    except files.SafetensorError as error:
        raise InvalidError(f"{path} is not a safetensors file: {brief(error)}") from None


def _unwrapped(loaded: Any, path: Path) -> dict[str, Any]:
    """Return the table of tensors in what was loaded."""
    import torch

    state = loaded
    for name in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            state = loaded[name]
            break
    names = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not names or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        found = some_of(state) if isinstance(state, dict) else type(state).__name__
        raise InvalidError(
            f"{path} holds no table of tensors, nor one under {WRAPPERS[0]!r}; it holds {found}"
        )
    return dict(state)


def _prefix(names: Mapping[str, Any]) -> str:
    """Return what stands before the encoder's names, if it does so before all of them."""
    found = [name.removesuffix(FIRST) for name in names if name.endswith(FIRST)]
    return found[0] if len(found) == 1 and all(name.startswith(found[0]) for name in names) else ""


# -- comparison ------------------------------------------------------------------------------------


def wanted_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of all of the encoder's 137 tensors by name, in their order."""
    import torch

    from kpstore.extractors.lip_network import LipNetwork

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in LipNetwork().state_dict().items()}


def _check(tensors: Mapping[str, Any], path: Path) -> None:
    wanted = wanted_shapes()
    missing = [name for name in wanted if name not in tensors and not name.endswith(COUNTER)]
    rectifiers = [
        name
        for name in wanted
        if name.endswith((".relu1.weight", ".relu2.weight", "frontend3D.2.weight"))
    ]
    if missing == rectifiers:
        raise InvalidError(
            f"{path} has no weights of PReLU ({len(missing)} tensors, first {missing[0]!r}), as "
            "encoders trained with relu_type 'swish' or 'relu' have none; this recipe is the one "
            "of relu_type 'prelu': give its checkpoint"
        )
    odd = [name for name in tensors if name not in wanted]
    shapes = [
        name for name in tensors if name in wanted and tuple(tensors[name].shape) != wanted[name]
    ]
    if missing:
        fault = (
            f"lacks {len(missing)} of {len(wanted)} tensors, first {missing[0]!r}; it has "
            f"{some_of(tensors)}"
        )
    elif odd:
        fault = f"has {len(odd)} tensors too many, first {odd[0]!r}"
    elif shapes:
        first = shapes[0]
        fault = (
            f"has {len(shapes)} tensors of other shapes, first {first!r}: "
            f"{tuple(tensors[first].shape)} instead of {wanted[first]}"
        )
    else:
        return
    raise InvalidError(f"{path} does not hold the lip-reading ResNet18: it {fault}")
