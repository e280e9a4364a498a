"""DINOv2's weights: finding, hashing, comparing with the name of the model, loading."""

from __future__ import annotations

import importlib
import math
import os
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kpstore.errors import ExtractorError, InvalidError, NotFoundError
from kpstore.extractors.checkpoint_files import (
    brief,
    file_sha256,
    is_table,
    load_tensors,
    some_of,
)
from kpstore.extractors.dinov2_models import MODELS, PATCH, Architecture
from kpstore.user_files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """Weights on the local disk.

    Parameters
    ----------
    place : a folder as ``save_pretrained`` writes it, or one checkpoint file.
    files : those that change the values.
    """

    place: Path
    files: tuple[Path, ...]

    @property
    def is_folder(self) -> bool:
        """Whether this is a folder of ``save_pretrained`` instead of a checkpoint."""
        return self.files != (self.place,)

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of every file by name."""
        return {file.name: file_sha256(file) for file in self.files}


def find_weights(name: str, architecture: Architecture, given: Path | None) -> Weights:
    """Return the weights of a model, checked against the architecture of its name.

    Only their headers are read.

    Parameters
    ----------
    given : a folder or a checkpoint; None takes those of the Hugging Face hub, from its cache if
        they were downloaded before.

    Raises
    ------
    NotFoundError
        If ``given`` does not exist.
    ExtractorError
        If nothing is given and the hub cannot be reached.
    InvalidError
        If these are not weights, or those of another model.
    """
    if given is None:
        weights = _from_hub(name, architecture)
    elif given.is_dir():
        weights = _in_folder(given)
    elif given.is_file():
        weights = Weights(given, (given,))
    else:
        raise NotFoundError(
            f"no weights at {given}: give a folder of save_pretrained, or one of "
            "facebookresearch's .pth files"
        )
    found = _architecture(weights.place)
    if not found.same_model(architecture):
        fitting = _names_of(found)
        choose = f"choose model={fitting[0]}" if fitting else "choose the model that they are of"
        raise InvalidError(
            f"{weights.place} holds a DINOv2 of {found}; {name!r} has {architecture}: {choose}, or "
            "give other weights"
        )
    return weights


def _names_of(architecture: Architecture) -> list[str]:
    return [name for name, known in MODELS.items() if known.same_model(architecture)]


def describe_weights(place: Path) -> str:
    """Return in words whose weights a folder of ``save_pretrained`` or a checkpoint holds.

    Raises
    ------
    InvalidError
        If it is neither.
    """
    if place.is_dir():
        _in_folder(place)
    found = _architecture(place)
    names = _names_of(found)
    about = MODELS[names[0]] if names else found
    return f"{' or '.join(names) or 'a DINOv2 of no known name'} ({about})"


def _in_folder(folder: Path) -> Weights:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file() or not (whole.is_file() or index.is_file()):
        raise InvalidError(
            f"{folder} needs config.json and model.safetensors, as save_pretrained writes them"
        )
    names = {whole.name} if whole.is_file() else set(_weight_map(index).values())
    shards = [folder / name for name in sorted(names)]
    missing = [shard.name for shard in shards if shard.parent != folder or not shard.is_file()]
    if missing:
        raise InvalidError(f"{folder}: {missing[0]!r}, which {index.name} names, is not in it")
    return Weights(folder, (folder / "config.json", *shards))


def _weight_map(index: Path) -> dict[str, str]:
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise InvalidError(f"{index} has no 'weight_map' of names and files")
    return named


def _read_json(path: Path) -> dict[str, Any]:
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _architecture(place: Path) -> Architecture:
    return _of_config(place) if place.is_dir() else _of_checkpoint(place)


def _of_config(folder: Path) -> Architecture:
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("dinov2", "dinov2_with_registers"):
        raise InvalidError(
            f"{folder}/config.json is of a {kind!r}, not of a 'dinov2' or 'dinov2_with_registers'"
        )
    if config.get("patch_size", PATCH) != PATCH:
        raise InvalidError(
            f"{folder}/config.json has patches of {config['patch_size']!r} pixels; DINOv2's have 14"
        )
    # What a configuration omits is as in ViT-B (transformers, Dinov2Config).
    return Architecture(
        config.get("hidden_size", 768),
        config.get("num_hidden_layers", 12),
        config.get("num_attention_heads", 12),
        config.get("num_register_tokens", 4) if kind == "dinov2_with_registers" else 0,
        config.get("use_swiglu_ffn", False),
    )


def _of_checkpoint(path: Path) -> Architecture:
    """Return the architecture in a checkpoint, which does not tell the number of heads."""
    state = read_checkpoint(path)
    for name, shape in {
        "cls_token": (1, 1, None),
        "pos_embed": (1, None, None),
        "blocks.0.norm1.weight": (None,),
    }.items():
        if name not in state or not _fits(state[name].shape, shape):
            raise InvalidError(
                f"{path} has no {name!r} as facebookresearch's DINOv2 checkpoints have it; it has "
                f"{some_of(state)}"
            )
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    swiglu = any(".mlp.w12." in name for name in state)
    return Architecture(state["cls_token"].shape[-1], depth, 0, registers, swiglu)


def _fits(shape: Sequence[int], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        w in (None, length) for length, w in zip(shape, wanted, strict=True)
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, mapped into memory; code in it is never run."""
    state = load_tensors(path)
    if not is_table(state):
        raise InvalidError(
            f"{path} holds no plain table of tensors; give facebookresearch's ..._pretrain.pth, or "
            "a folder of save_pretrained"
        )
    return state


def hub_cache() -> Path:
    """Return the cache of the Hugging Face hub by its own rules, without importing it."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def cached_snapshot(repository: str) -> Path | None:
    """Return the folder of a repository's newest downloaded version that holds weights."""
    snapshots = hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    for folder in sorted(snapshots.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            _in_folder(folder)
        except InvalidError:
            continue
        return folder
    return None


def _from_hub(name: str, architecture: Architecture) -> Weights:
    if not architecture.repository:
        raise InvalidError(
            f"model {name!r} is not on the Hugging Face hub; give its weights: --weights PATH"
        )
    found = cached_snapshot(architecture.repository)
    if found is not None:
        return _in_folder(found)
    try:
        return _in_folder(_download(architecture.repository))
    except OSError as error:
        raise ExtractorError(
            f"the weights of {name!r} are not in {hub_cache()}, and {architecture.repository} "
            f"cannot be loaded from the Hugging Face hub ({brief(error)}); run this where the "
            "network is, or say where they are: --weights PATH, a folder of save_pretrained or "
            "facebookresearch's .pth file"
        ) from None


def _download(repository: str) -> Path:
    """Download weights into the hub's cache; any failure is an :class:`OSError`."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError("HF_HUB_OFFLINE is set")
    hub = importlib.import_module("huggingface_hub")
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if not urllib.request.getproxies():
        # Fails at once without a network; the hub itself tries for half a minute.
        socket.getaddrinfo(host, 443)
    patterns = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
    return Path(hub.snapshot_download(repository, allow_patterns=patterns))


def load_model(weights: Weights, architecture: Architecture) -> nn.Module:
    """Return the model in float32, in evaluation mode, on the CPU.

    Raises
    ------
    InvalidError
        If a tensor is missing, unexpected or of another shape: transformers itself would continue
        with random values.
    """
    import torch

    transformers = importlib.import_module("transformers")
    kind = (
        transformers.Dinov2WithRegistersModel
        if architecture.registers
        else transformers.Dinov2Model
    )
    if weights.is_folder:
        source: dict[str, object] = {"local_files_only": True}
    else:
        state = read_checkpoint(weights.place)
        config = _config(transformers, architecture, positions=state["pos_embed"].shape[1] - 1)
        tensors = published_names(state, weights.place)
        source = {
            "config": config,
            "state_dict": {name: tensor.float() for name, tensor in tensors.items()},
        }
    place = weights.place if weights.is_folder else None
    with _quiet():
        try:
            model: nn.Module
            model, found = kind.from_pretrained(
                place, **source, dtype=torch.float32, output_loading_info=True
            )
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            raise InvalidError(
                f"{weights.place} does not load as a DINOv2 of {architecture}: {brief(error)}"
            ) from None
        except Exception as error:  # safetensors has its own error class
            raise InvalidError(f"{weights.place}: {brief(error)}; load the file again") from None
    for problem, what in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has too many:"),
        ("mismatched_keys", "has others:"),
    ):
        if found.get(problem):
            raise InvalidError(
                f"{weights.place} does not hold a whole DINOv2: it {what} {some_of(found[problem])}"
            )
    return model.eval().requires_grad_(False)


def _config(transformers: ModuleType, architecture: Architecture, *, positions: int) -> object:
    side = math.isqrt(positions)
    values = {
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.heads,
        "image_size": side * PATCH,
        "patch_size": PATCH,
        "use_swiglu_ffn": architecture.swiglu,
    }
    if architecture.registers:
        return transformers.Dinov2WithRegistersConfig(
            **values, num_register_tokens=architecture.registers
        )
    return transformers.Dinov2Config(**values)


_RENAMED = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_RENAMED_IN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def published_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a facebookresearch checkpoint by the hub's names.

    Raises
    ------
    InvalidError
        If there is a name that such checkpoints do not have.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        new = dict(_published(name, value))
        renamed.update(new)
        unknown += [] if new else [name]
    if unknown:
        raise InvalidError(
            f"{path} is not a DINOv2 checkpoint of facebookresearch: it has {some_of(unknown)}"
        )
    return renamed


def _published(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the published names and tensors of one entry.

    There are three if queries, keys and values are one tensor.
    """
    block = _BLOCK.fullmatch(name)
    stem, ending = _split_ending(block[2] if block else name)
    if block is None:
        if stem in _RENAMED:
            yield _RENAMED[stem] + ending, value
    elif stem == "attn.qkv" and value.ndim > 0 and len(value) % 3 == 0:
        for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
            yield f"encoder.layer.{block[1]}.attention.attention.{part}{ending}", tensor
    elif stem in _RENAMED_IN_BLOCK:
        yield f"encoder.layer.{block[1]}.{_RENAMED_IN_BLOCK[stem]}{ending}", value


def _split_ending(name: str) -> tuple[str, str]:
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if ending in ("weight", "bias") else (name, "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress transformers' progress bar and its table of missing tensors."""
    log = importlib.import_module("transformers.utils.logging")
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()
