"""The base of torch extractors: each call of the model has the same number of rows.

For another number of rows libraries compute in another way, and the last bits of a row then depend
on what is beside it: on how videos were cut into tasks, on how many workers there are. With one
number, and zeros where rows are lacking, every call runs the same instructions for a row, whatever
the others hold.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, InvalidError
from kpstore.extractors.devices import Precision, is_out_of_memory
from kpstore.extractors.processors import device_name
from kpstore.schema.feature import FeatureSpec, Provenance

_log = logging.getLogger(__name__)


class TorchModel(ABC):
    """Base of an extractor that runs a model of torch.

    An option, ``at_once_option``, says how many frames the model takes at once. The number stands
    among the parameters of the feature's provenance. It comes from the option; or from the features
    that the extractor goes on with (:meth:`settle`); or is the device's default, which a lack of
    memory halves until something is committed (:meth:`keep`). After that it stays.

    A subclass calls :meth:`_take_option` when it is constructed and :meth:`_opened` at the end of
    ``open``, puts :attr:`_on_record` among its parameters and computes by :meth:`_call` alone. See
    :class:`kpstore.extractors.base.Settling` for what the ingest asks.
    """

    at_once_option: ClassVar[str] = "batch_size"
    default_at_once: ClassVar[Mapping[str, int]]
    """By kind of device, ``"cpu"`` and ``"cuda"``."""
    extractor_name: ClassVar[str]
    """As it stands in the provenance."""
    precision: Precision
    _device: Any
    """Of torch; None unless open, as the model."""
    _model: Any

    @property
    @abstractmethod
    def specs(self) -> tuple[FeatureSpec, ...]:
        """All features; messages call the extractor by the first."""

    def close(self) -> None:
        """Free the model; the extractor can be opened again."""
        self._model = self._device = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_device": None}

    def _require_open(self) -> None:
        if self._model is None:
            raise InvalidError(f"{type(self).__name__} is not open; call open() first")

    @abstractmethod
    def _trial(self) -> NDArray[np.float32]:
        """Return what the model makes of one whole call of made-up input."""

    @property
    @abstractmethod
    def _rows_per_call(self) -> int:
        """Rows (first axis) of the inputs of one call; follows from :attr:`at_once`."""

    # -- the number --------------------------------------------------------------------------------

    @property
    def at_once(self) -> int:
        """Frames that the model takes at once."""
        return int(getattr(self, self.at_once_option))

    @property
    def settled(self) -> bool:
        """Whether the number is given or on record, so that a lack of memory does not change it."""
        return self._settled

    def settle(self, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
        """Take the number with which features were begun.

        See :class:`kpstore.extractors.base.Settling`.
        """
        begun = {
            name: one for name, one in made.items() if one.get("extractor") == self.extractor_name
        }
        numbers = [one.get("parameters", {}).get(self.at_once_option) for one in begun.values()]
        known = [number for number in numbers if isinstance(number, int) and number > 0]
        self._has_record = bool(known) or not begun
        self._settled = bool(self._asked or begun)
        self._set_at_once(self._asked or next(iter(known), self._default(device)))
        if self._has_record:
            return ()
        return (
            f"{' and '.join(begun)}: begun before kpstore kept on record how many frames a model "
            "takes at once, so new rows may differ from those that are there in the last bits; "
            "--overwrite makes all of them alike",
        )

    def keep(self, number: int) -> None:
        """Fix the number; from now on it stays."""
        self._set_at_once(number)
        self._settled = True

    @property
    def _on_record(self) -> dict[str, Any]:
        """Parameters of the provenance that say how the model is called.

        None of a feature that was begun without.
        """
        return {self.at_once_option: self.at_once} if self._has_record else {}

    def _take_option(self) -> None:
        self._asked = self.at_once
        self._settled, self._has_record = self._asked > 0, True
        self._set_at_once(self._asked or self._default("cpu"))

    def _default(self, device: str) -> int:
        return self.default_at_once["cuda" if device.startswith("cuda") else "cpu"]

    def _set_at_once(self, number: int) -> None:
        setattr(self, self.at_once_option, number)

    # -- calls -------------------------------------------------------------------------------------

    @property
    def processor(self) -> str:
        """The kind of processor that computes; empty unless open."""
        return "" if self._device is None else device_name(self._device)

    def _opened(self, device: str) -> None:
        """Take the device's default if no number is settled, and try one call where it may fail.

        Raises
        ------
        ExtractorError
            If the memory does not suffice, or the model gives no finite numbers in this precision
            here.
        """
        if not self._settled:
            self._set_at_once(self._default(device))
        if not device.startswith("cuda") and self.precision == "fp32":
            return
        try:
            while (made := self._tried()) is None:
                _log.info(
                    "out of GPU memory; %s goes on with %d frames at once", self._name, self.at_once
                )
            if not np.isfinite(made).all():
                raise ExtractorError(self._not_finite())
        except BaseException:
            self.close()
            raise

    def _tried(self) -> NDArray[np.float32] | None:
        """Return a trial's numbers.

        Or None, with half as many frames at once, if the memory does not suffice.
        """
        import torch

        try:
            return self._trial()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise self._failed(error) from error
            if self._settled or self.at_once == 1:
                raise self._no_memory(error) from None
        # Out here, where the error no longer holds on to what it was computed from.
        torch.cuda.empty_cache()
        self._set_at_once(self.at_once // 2)
        return None

    def _call(
        self, compute: Callable[..., NDArray[np.float32]], *inputs: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Return what a model makes of some rows, (rows, …) float32.

        Parameters
        ----------
        compute : takes as many arrays as there are ``inputs``, always of :attr:`_rows_per_call`
            rows; returns as many rows.
        inputs : arrays of equally many rows, any number of at least one; the last call is filled up
            with zeros.

        Raises
        ------
        ExtractorError
            If the model fails, or a GPU's memory does not suffice.
        """
        made, count = [], self._rows_per_call
        for start in range(0, len(inputs[0]), count):
            parts = [_filled_up(rows[start : start + count], count) for rows in inputs]
            try:
                made.append(compute(*parts)[: len(inputs[0]) - start])
            except RuntimeError as error:
                # The frames have been read and brought to size: what fails now would fail for all
                # that come after.
                raise (
                    self._no_memory(error) if is_out_of_memory(error) else self._failed(error)
                ) from error
        return np.concatenate(made)

    @property
    def _name(self) -> str:
        return self.specs[0].name

    def _failed(self, error: RuntimeError) -> ExtractorError:
        return ExtractorError(
            f"{self._name} fails on {self._device}: {' '.join(str(error).split())[:300]}"
        )

    def _no_memory(self, error: RuntimeError) -> ExtractorError:
        number, option = self.at_once, self.at_once_option
        what, remedy = "a single frame", "precision=bf16, or a smaller model"
        if number > 1:
            what = f"{option}={number}, which its feature was given and keeps"
            remedy = (
                f"or make the feature again with fewer: --overwrite --set {option}={number // 2}"
            )
        return ExtractorError(
            f"{self._name} needs more GPU memory than is free for {what}; use fewer "
            f"--workers-per-gpu, a GPU with more memory, {remedy} "
            f"({' '.join(str(error).split())[:160]})"
        )

    def _not_finite(self, stored: str = "float32") -> str:
        """Return why a frame has no finite numbers in this precision and storage type."""
        advice = "are the weights whole, and those of this model?"
        if self.precision != "fp32":
            advice = "use --set precision=fp32"
        elif stored != "float32":
            advice = "use --set dtype=float32"
        where = f"{self.precision} on {self.processor}"
        return f"{self._name} gives no finite numbers in {where}, stored as {stored}; {advice}"


def _filled_up(rows: NDArray[Any], count: int) -> NDArray[Any]:
    if len(rows) == count:
        return rows
    filled = np.zeros((count, *rows.shape[1:]), dtype=rows.dtype)
    filled[: len(rows)] = rows
    return filled
