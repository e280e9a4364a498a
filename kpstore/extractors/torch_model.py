"""The base of torch extractors: each call of the model has the same number of rows.

Libraries compute differently for different numbers of rows, so the last bits of a row would depend
on the rows beside it: on how videos are cut into tasks and on the number of workers. With one
number, and zeros in place of missing rows, every call runs the same instructions for a row,
whatever the other rows hold.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, InvalidError, UnsupportedError
from kpstore.extractors.base import is_whole, not_one_of
from kpstore.extractors.devices import (
    TORCH_TYPES,
    Precision,
    device_name,
    is_out_of_memory,
    reproducible,
)
from kpstore.options import WHAT, Option
from kpstore.schema.feature import FeatureSpec, Provenance
from kpstore.visible import logger

if TYPE_CHECKING:
    import torch

_log = logger(__name__)

_MOST_AT_ONCE = 2**16
"""Frames at once that a provenance may ask for: a store may come from anyone."""

WeightsPath = Annotated[
    str | os.PathLike[str] | None,
    Option("File or folder of the model's weights.", "PATH", kind=Path, panel=WHAT),
]


class TorchModel(ABC):
    """Base of an extractor that runs a model of torch.

    An option, ``at_once_option``, sets how many frames the model takes at once. The number is one
    of the parameters in the feature's provenance. It comes from the option, or from the features
    that the extractor continues (:meth:`settle`), or is the device's default, which is halved if
    memory does not suffice, until something is committed (:meth:`keep`). After that it is fixed.

    A subclass calls :meth:`_take_option` in its constructor and :meth:`_opened` at the end of
    ``open``, adds :attr:`_on_record` to its parameters and computes by :meth:`_call` alone. See
    :class:`kpstore.extractors.base.Settling` for what the ingest uses.
    """

    at_once_option: ClassVar[str] = "batch_size"
    default_at_once: ClassVar[Mapping[str, int]]
    """By kind of device, ``"cpu"`` and ``"cuda"``."""
    extractor_name: ClassVar[str]
    """The extractor's name in the provenance."""
    precision: Precision
    _device: Any = None
    """Device of torch; None unless open, like the model."""
    _model: Any = None

    @property
    @abstractmethod
    def specs(self) -> tuple[FeatureSpec, ...]:
        """All features; messages name the extractor by the first."""

    def close(self) -> None:
        """Free the model; the extractor can be opened again."""
        self._model = self._device = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_model": None, "_device": None}

    def _require_open(self) -> None:
        if self._model is None:
            raise InvalidError(f"{self.extractor_name} is not open; call open() first")

    @property
    def _torch_type(self) -> torch.dtype:
        import torch

        found: torch.dtype = getattr(torch, TORCH_TYPES[self.precision])
        return found

    def _settings(self) -> AbstractContextManager[None]:
        """Return the settings in which the model computes."""
        return reproducible(self._device, tf32=self.precision == "tf32")

    @abstractmethod
    def _trial(self) -> NDArray[np.float32]:
        """Return the result of one full call with made-up input."""

    @property
    @abstractmethod
    def _rows_per_call(self) -> int:
        """Number of rows (first axis) of the inputs of one call; follows from :attr:`at_once`."""

    # -- the number of frames at once --------------------------------------------------------------

    @property
    def at_once(self) -> int:
        """Number of frames that the model takes at once."""
        return int(getattr(self, self.at_once_option))

    @property
    def settled(self) -> bool:
        """Whether the number is given or on record, so that a lack of memory does not lower it."""
        return self._settled

    def settle(self, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
        """Take the number with which features were begun.

        See :class:`kpstore.extractors.base.Settling`.
        """
        begun = {
            name: one for name, one in made.items() if one.get("extractor") == self.extractor_name
        }
        numbers = [one.get("parameters", {}).get(self.at_once_option) for one in begun.values()]
        known = [one for one in numbers if is_whole(one) and 0 < one <= _MOST_AT_ONCE]
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
        """Fix the number."""
        self._set_at_once(number)
        self._settled = True

    @property
    def _on_record(self) -> dict[str, object]:
        """Parameters of the provenance that say how the model is called.

        Empty for a feature that was begun before they were recorded.
        """
        return {self.at_once_option: self.at_once} if self._has_record else {}

    def _option_problems(self, **words: object) -> list[str]:
        """Return what is wrong with the options that extractors with weights have in common.

        Parameters
        ----------
        **words : by name of each option that is a word, its ``Literal`` type.
        """
        problems = not_one_of(self, **words)
        number: object = getattr(self, self.at_once_option)
        if not is_whole(number) or number < 0:
            option = f"{self.at_once_option}={number!r}"
            problems.append(f"{option} is not a number of frames; 0 is automatic")
        weights: object = getattr(self, "weights", None)  # whatever came from the command line
        if weights is not None and not isinstance(weights, (str, os.PathLike)):
            problems.append(f"weights={weights!r} is not a path")
        return problems

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
        """Take the device's default if the number is not settled; try one call if it may fail.

        Raises
        ------
        ExtractorError
            If the memory does not suffice, or the model's results are not finite in this precision.
        """
        if self.precision == "tf32" and not device.startswith("cuda"):
            self.close()
            raise UnsupportedError(
                f"{self._name}: precision=tf32 is of GPUs, and this is {device!r}; use fp32"
            )
        if not self._settled:
            self._set_at_once(self._default(device))
        if not device.startswith("cuda") and self.precision == "fp32":
            return
        try:
            while (made := self._tried()) is None:
                _log.info(
                    "out of GPU memory; %s continues with %d frames at once",
                    self._name,
                    self.at_once,
                )
            if not np.isfinite(made).all():
                raise ExtractorError(self._not_finite())
        except BaseException:
            self.close()
            raise

    def _tried(self) -> NDArray[np.float32] | None:
        """Return the result of a trial.

        If the memory does not suffice, halve the number of frames at once and return None.
        """
        import torch

        try:
            return self._trial()
        except ExtractorError:  # which is a RuntimeError, and has been told
            raise
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise self._failed(error) from error
            if self._settled or self.at_once == 1:
                raise self._no_memory(error) from None
        # Outside the handler, where the error no longer keeps tensors alive.
        torch.cuda.empty_cache()
        self._set_at_once(self.at_once // 2)
        return None

    def _call(
        self, compute: Callable[..., NDArray[np.float32]], *inputs: NDArray[np.generic]
    ) -> NDArray[np.float32]:
        """Return the model's results for some rows, (rows, …) float32.

        Parameters
        ----------
        compute : takes as many arrays as there are ``inputs``, always of :attr:`_rows_per_call`
            rows; returns as many rows.
        inputs : arrays with the same number of rows, at least one; the last call is padded with
            zeros.

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
                # The frames were read and resized: what fails now would fail for all frames after
                # them.
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
        """Return the message for results that are not finite in this precision and storage type."""
        advice = "are the weights whole, and those of this model?"
        if self.precision != "fp32":
            advice = "use --set precision=fp32"
        elif stored != "float32":
            advice = "use --set dtype=float32"
        where = f"{self.precision} on {self.processor}"
        return f"{self._name} gives no finite numbers in {where}, stored as {stored}; {advice}"


def _filled_up(rows: NDArray[np.generic], count: int) -> NDArray[np.generic]:
    filled = np.zeros((count, *rows.shape[1:]), dtype=rows.dtype)
    filled[: len(rows)] = rows
    return filled
