"""DINOv2's models by name: their sizes, and where their weights are published."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kpstore.errors import ExistsError, NotFoundError

PATCH = 14
"""Side of a patch in pixels, of all models."""


@dataclass(frozen=True)
class Architecture:
    """The architecture of a model.

    Parameters
    ----------
    width : length of a token, and of the feature.
    depth : number of layers.
    heads : number of attention heads per layer; 0 if unknown.
    registers : number of register tokens; 0 for models without them.
    swiglu : whether the second half of a layer is gated, as in the giant models.
    repository : on the Hugging Face hub; empty if there is none.
    cpu_fps : rough number of images per second on one core.
    """

    width: int
    depth: int
    heads: int
    registers: int = 0
    swiglu: bool = False
    repository: str = ""
    cpu_fps: float = 1.0

    def __str__(self) -> str:
        heads = f", {self.heads} heads" if self.heads else ""
        registers = f", {self.registers} registers" if self.registers else ""
        gated = ", gated" if self.swiglu else ""
        return f"width {self.width}, {self.depth} layers{heads}{registers}{gated}"

    def same_model(self, other: Architecture) -> bool:
        """Whether both can be the same model; unknown heads fit any number of them."""
        ours, theirs = ((one.width, one.depth, one.registers, one.swiglu) for one in (self, other))
        return ours == theirs and (self.heads == other.heads or 0 in (self.heads, other.heads))


def _family(registers: int, suffix: str, repository: str) -> dict[str, Architecture]:
    # Widths, depths and heads: facebookresearch/dinov2, models/vision_transformer.py. Speeds of S
    # and B: measured.
    sizes = {
        "s": Architecture(384, 12, 6, cpu_fps=5.0, repository="small"),
        "b": Architecture(768, 12, 12, cpu_fps=1.7, repository="base"),
        "l": Architecture(1024, 24, 16, cpu_fps=0.5, repository="large"),
        "g": Architecture(1536, 40, 24, swiglu=True, cpu_fps=0.15, repository="giant"),
    }
    return {
        f"dinov2_vit{letter}14{suffix}": replace(
            size, registers=registers, repository=repository + size.repository
        )
        for letter, size in sizes.items()
    }


MODELS: dict[str, Architecture] = {
    **_family(0, "", "facebook/dinov2-"),
    **_family(4, "_reg", "facebook/dinov2-with-registers-"),
}
"""All models by their names in torch.hub; :func:`register_model` adds one."""


def register_model(name: str, architecture: Architecture) -> None:
    """Register a model in this process, such as a fine-tuned one, or a tiny one for a test.

    The ingest sends the architecture to workers: only the process that starts a run needs to call
    this function.

    Raises
    ------
    ExistsError
        If the name already stands for something else.
    """
    if MODELS.setdefault(name, architecture) != architecture:
        raise ExistsError(
            f"DINOv2 model {name!r} is already known as {MODELS[name]}; choose another name"
        )


def find_model(name: object) -> Architecture:
    """Return a model's architecture; :class:`NotFoundError` lists the known names."""
    if not isinstance(name, str) or name not in MODELS:
        raise NotFoundError(f"DINOv2 model {name!r} not found; there are: {', '.join(MODELS)}")
    return MODELS[name]
