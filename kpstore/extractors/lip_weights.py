"""Weights of the lip-reading encoder: checkpoints of users, checked tensor by tensor."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError
from kpstore.extractors.checkpoint_files import (
    brief,
    file_sha256,
    is_table,
    load_tensors,
    some_of,
)
from kpstore.visible import logger

if TYPE_CHECKING:
    from torch import Tensor, nn

_log = logger(__name__)

WRAPPERS = ("model_state_dict", "state_dict")
"""Names under which training scripts save the tensors of a model."""
HEAD = "tcn"
"""Part of the names of the temporal head's tensors, which features do not need."""
COUNTER = "num_batches_tracked"
"""Counter of batch norm for training; checkpoints of old versions of torch do not have it."""
FIRST = "frontend3D.0.weight"


@dataclass(frozen=True)
class LipCheckpoint:
    """The contents of a checkpoint that fits the encoder.

    Parameters
    ----------
    path : the file.
    tensors : by the encoder's own names.
    head : number of tensors of a temporal head that were left out.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    head: int = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return file_sha256(self.path)

    def __str__(self) -> str:
        left_out = f", {self.head} of a temporal head left out" if self.head else ""
        return f"lip-reading ResNet18 with PReLU ({len(self.tensors)} tensors{left_out})"


def read_lip_checkpoint(path: Path) -> LipCheckpoint:
    """Return the tensors of a checkpoint if they are exactly those of the encoder.

    Code in it is never run.

    Parameters
    ----------
    path : a file of ``torch.save`` with the tensors by name, or with them under
        ``"model_state_dict"``; or ``.safetensors``. A common prefix of all names (``module.``) is
        removed.

    Raises
    ------
    NotFoundError
        If the file does not exist.
    InvalidError
        If it is not a checkpoint, or one of another network; the message names the first tensor
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
    tensors = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    _check(tensors, path)
    return LipCheckpoint(path, tensors, len(state) - len(own))


def load_network(checkpoint: LipCheckpoint) -> nn.Module:
    """Return the encoder with a checkpoint's weights: float32, evaluation mode, on the CPU."""
    from kpstore.extractors.lip_network import LipNetwork

    if checkpoint.head:
        _log.info(
            "%s: %d tensors of a temporal head are not needed", checkpoint.path, checkpoint.head
        )
    network = LipNetwork()
    # Only counters can be missing here; evaluation mode does not use them.
    tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
    network.load_state_dict(tensors, strict=False)
    return network.eval().requires_grad_(False)


def is_lip_checkpoint(path: Path) -> bool:
    """Whether a file holds the tensor of the encoder's first layer."""
    try:
        return any(name.endswith(FIRST) for name in _unwrapped(_read(path), path))
    except InvalidError:
        return False


# -- files -----------------------------------------------------------------------------------------


def _read(path: Path) -> object:
    return _read_safetensors(path) if path.suffix == ".safetensors" else load_tensors(path)


def _read_safetensors(path: Path) -> object:
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


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    """Return the table of tensors in what was loaded."""
    state = loaded
    for name in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            state = loaded[name]
            break
    if not is_table(state):
        found = some_of(state) if isinstance(state, dict) else type(state).__name__
        raise InvalidError(
            f"{path} holds no table of tensors, nor one under {WRAPPERS[0]!r}; it holds {found}"
        )
    return state


def _prefix(names: Mapping[str, Tensor]) -> str:
    """Return the prefix of the encoder's names if all names have it."""
    found = [name.removesuffix(FIRST) for name in names if name.endswith(FIRST)]
    return found[0] if len(found) == 1 and all(name.startswith(found[0]) for name in names) else ""


# -- comparison ------------------------------------------------------------------------------------


def wanted_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the encoder's 137 tensors by name, in their order."""
    import torch

    from kpstore.extractors.lip_network import LipNetwork

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in LipNetwork().state_dict().items()}


def _check(tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = wanted_shapes()
    missing = [name for name in wanted if name not in tensors and not name.endswith(COUNTER)]
    of_prelu = (".relu1.weight", ".relu2.weight", "frontend3D.2.weight")
    if missing == [name for name in wanted if name.endswith(of_prelu)]:
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
