"""DINOv2: one vector for a whole frame, as in users' existing files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kpstore.errors import InvalidError
from kpstore.extractors.base import Extracted, OneFeature, check_image
from kpstore.extractors.checkpoint_files import differs
from kpstore.extractors.devices import Precision, StoredType, find_device, sent
from kpstore.extractors.dinov2_models import PATCH, find_model
from kpstore.extractors.dinov2_models import register_model as register_model
from kpstore.extractors.dinov2_weights import Weights, find_weights, load_model
from kpstore.extractors.libraries import library_versions
from kpstore.extractors.torch_model import TorchModel, WeightsPath
from kpstore.options import WHAT, Option
from kpstore.schema.face_features import CLS_TOKEN
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance

SIDE = 224
"""Width and height of a frame after resizing, in pixels."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's red, green and blue from 0 to 1."""
HUB_OFFSET = 0.1
"""What facebookresearch's models add to the side of the grid (``interpolate_offset``)."""

LIBRARIES = ("dinov2", "dinov2", "torch", "transformers", "pillow")
"""Recipe, extra, and the libraries that compute."""

Positions = Literal["hub", "transformers"]


def whole_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the whole frame resized to (224, 224, 3) uint8; its aspect ratio is lost.

    Like ``torchvision.transforms.Resize((224, 224))`` for a PIL image: bilinear, and antialiased
    where it shrinks.
    """
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@dataclass(kw_only=True)
class Dinov2Extractor(OneFeature, TorchModel):
    """The CLS token of a whole frame after the final layer norm, scaled to length 1.

    ``v = normalise(model((resize(frame, 224 x 224) / 255 - mean) / std).last_hidden_state[0])``,
    with ImageNet's mean and standard deviation and ``normalise(v) = v / max(|v|, 1e-12)``, in
    float32. Frames do not depend on each other. The model always takes ``batch_size`` frames, the
    last of a video padded with black ones, and on a CPU one thread: the bits of a frame do not
    depend on the others. Another ``batch_size`` or kind of processor may change the last bits (1e-6
    of a value).

    Parameters
    ----------
    model : ``dinov2_vits14``, ``vitb14``, ``vitl14``, ``vitg14`` (384, 768, 1024, 1536 values), or
        one of them with ``_reg`` (registers); also the name of the feature. :func:`register_model`
        adds others.
    weights : a folder of ``save_pretrained``, or facebookresearch's ``.pth`` file; by default
        those of the Hugging Face hub (``facebook/dinov2-base``, …), from its cache or the network.
    precision : of the model: ``"fp32"``, ``"bf16"`` (off by 2e-3 of a value) or ``"fp16"`` (by
        3e-4; both measured with a ViT-S of random weights); on GPUs also ``"tf32"``, which was not
        measured. Later steps are float32.
    dtype : type of the stored values: ``"float16"`` halves the space at an error of at most 2e-4 of
        a value.
    positions : how the positions of 518-pixel models are resized for 224 pixels: ``"hub"`` as in
        torch.hub's models, which made users' existing files; ``"transformers"`` as in
        ``Dinov2Model``. Models with registers, and those of 224 pixels, do not differ.
    batch_size : number of frames at once, recorded and kept once the feature is begun; 0 takes the
        recorded number, or for a new feature 32 on a GPU (fewer if its memory does not suffice) and
        1 on a CPU, where 8 are not faster.
    """

    extractor_name: ClassVar[str] = "dinov2"
    default_at_once: ClassVar[Mapping[str, int]] = {"cpu": 1, "cuda": 32}

    model: Annotated[
        str, Option("dinov2_vits14, _vitb14, _vitl14 or _vitg14, with or without _reg.", panel=WHAT)
    ] = "dinov2_vitb14"
    weights: WeightsPath = None
    precision: Precision = "fp32"
    dtype: StoredType = "float32"
    positions: Positions = "hub"
    batch_size: int = 0
    _sha256: dict[str, str] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._architecture = find_model(self.model)
        words = {"precision": Precision, "dtype": StoredType, "positions": Positions}
        if problems := self._option_problems(**words):
            raise InvalidError(f"DINOv2 options: {'; '.join(problems)}")
        self._path = None if self.weights is None else Path(self.weights).expanduser().absolute()
        self._take_option()
        self._spec = FeatureSpec(
            self.model,
            (self._architecture.width,),
            ("feature",),
            self.dtype,
            description=CLS_TOKEN,
        )

    @property
    def spec(self) -> FeatureSpec:
        """The feature, named like the model: (width,) without a unit, each row of length 1."""
        return self._spec

    @property
    def recipe(self) -> Provenance:
        """Model, SHA-256 of its weights, and everything else that changes the values.

        Raises
        ------
        NotFoundError, InvalidError, ExtractorError
            If the weights do not exist, are another model's, or cannot be loaded from the hub.
        """
        if self._sha256 is None:
            self._sha256 = self._weights().sha256()
        return {
            "extractor": self.extractor_name,
            "recipe": f"{self.model}, whole frame, CLS token",
            "model": self.model,
            "weights": self._sha256,
            "parameters": {
                "resize": [SIDE, SIDE],
                "interpolation": "bilinear, antialias",
                "mean": list(MEAN),
                "std": list(STD),
                "token": "CLS after the final layer norm",
                "normalise": "L2",
                "positions": self.positions,
                "precision": self.precision,
                **self._on_record,
            },
            "libraries": library_versions(*LIBRARIES),
        }

    def _weights(self) -> Weights:
        return find_weights(self.model, self._architecture, self._path)

    @property
    def typical_fps(self) -> float:
        """Rough frames per second of one core; a GPU is hundreds of times faster."""
        return self._architecture.cpu_fps

    def open(self, device: str = "cpu") -> None:
        """Load the model to a device.

        Raises
        ------
        UnsupportedError
            If the device does not exist.
        InvalidError
            If the weights are incomplete, or not those that the run began with.
        ExtractorError
            If the memory of a GPU does not suffice, or the model's results are not finite in this
            precision.
        """
        library_versions(*LIBRARIES)
        self._device = find_device(device, "dinov2")
        weights = self._weights()
        if self._sha256 is not None and weights.sha256() != self._sha256:
            raise differs(weights.place)
        model = load_model(weights, self._architecture)
        if self.positions == "hub":
            _set_positions(model)
        self._model = model.to(self._device, self._torch_type)
        self._opened(device)

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        """Return one row per image; see :meth:`kpstore.extractors.base.Extractor.extract`.

        Returns
        -------
        Extracted
            ``values`` (images, width) of ``dtype``, each row of length 1. An image whose values are
            not finite (fp16 overflows) has failed.

        Raises
        ------
        InvalidError
            If an image has another shape or dtype.
        ExtractorError
            If the model fails, or the memory of a GPU does not suffice.
        """
        self._require_open()
        if not len(images):
            return Extracted({self.model: self._spec.empty_rows(0)})
        pixels = np.stack([whole_image(check_image(image)) for image in images])
        values = self._call(self._forward, pixels)
        odd = np.flatnonzero(~np.isfinite(values).all(axis=1))
        return Extracted(
            {self.model: FeatureRows(values.astype(self.dtype))},
            dict.fromkeys(odd.tolist(), self._not_finite()),
        )

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        """Return one row per image; :class:`InvalidError` if one has failed in :meth:`extract`."""
        found = self.extract(images)
        for reason in found.failed.values():
            raise InvalidError(reason)
        return found.rows[self.model]

    @property
    def _rows_per_call(self) -> int:
        return self.batch_size

    def _trial(self) -> NDArray[np.float32]:
        shape = (self.batch_size, SIDE, SIDE, 3)
        return self._forward(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))

    def _forward(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        batch = sent(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), self._device)
        mean, std = (
            torch.tensor(values, device=self._device).view(3, 1, 1) for values in (MEAN, STD)
        )
        with torch.inference_mode(), self._settings():
            inputs = batch.to(torch.float32).div(255).sub(mean).div(std)
            tokens = self._model(pixel_values=inputs.to(self._torch_type)).last_hidden_state
            values = torch.nn.functional.normalize(tokens[:, 0].float(), dim=-1, eps=1e-12)
            result: NDArray[np.float32] = values.cpu().numpy()
        return result


def _set_positions(model: Any) -> None:
    """Resize the positions to a frame's 16 x 16 patches as facebookresearch's models do.

    They scale by (16 + 0.1) / 37 where transformers scales to a size of 16, so that samples differ
    by up to 0.2 patches (facebookresearch/dinov2, ``interpolate_pos_encoding``; models with
    registers have an offset of 0 and antialias, which is what transformers does for them).
    """
    import torch

    embeddings, side = model.embeddings, SIDE // PATCH
    known = embeddings.position_embeddings
    before = round((known.shape[1] - 1) ** 0.5)
    if before == side or getattr(model.config, "num_register_tokens", 0):
        return
    grid = known[:, 1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
    scale = (side + HUB_OFFSET) / before
    scaled = torch.nn.functional.interpolate(
        grid, scale_factor=(scale, scale), mode="bicubic", antialias=False
    )
    patches = scaled.permute(0, 2, 3, 1).reshape(1, side * side, -1)
    embeddings.position_embeddings = torch.nn.Parameter(
        torch.cat((known[:, :1], patches), dim=1), requires_grad=False
    )
