"""Models trained from a store, and the loop that trains them; they need torch and safetensors."""

from __future__ import annotations

from importlib.util import find_spec

from kpstore.errors import MissingExtraError

if find_spec("torch") is None or find_spec("safetensors") is None:
    raise MissingExtraError("training", extra="train")
