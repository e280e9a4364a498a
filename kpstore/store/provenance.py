"""Comparison of how features were made, to tell whether the rows of two runs mean the same."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace

from kpstore.errors import MismatchError
from kpstore.schema.feature import MADE_BY, FeatureSpec, Provenance
from kpstore.store import format as fmt

_IGNORED = frozenset({"document", "kpstore", "libraries", MADE_BY, fmt.PROCESSORS})
"""Keys that may differ between two runs whose numbers agree to all but the last bits."""
_OF_THE_FILE = frozenset({"format", "dataset"})
"""Keys that describe the file that rows were imported from, not how they were made."""


def check_same(stored: fmt.StoredFeature, spec: FeatureSpec, provenance: Provenance) -> None:
    """Raise :class:`MismatchError` unless new rows would mean the same as the stored ones.

    The message names both.
    """
    # Compression changes how rows are stored, not what they mean.
    spec = replace(spec, compression=stored.spec.compression)
    if stored.spec != spec:
        old, new = stored.spec.to_json(), spec.to_json()
        key = next(key for key in old if old[key] != new[key])
        raise MismatchError(
            f"feature {spec.name!r} is stored with {key} {_short(old[key])}, this run would write "
            f"{_short(new[key])}; use the same settings, another feature name, or another store"
        )
    keys = (set(stored.provenance) | set(provenance)) - _IGNORED
    if stored.provenance.get("extractor") == provenance.get("extractor") == "imported":
        # Some files record more of how their numbers were made than others: only keys that both
        # have can tell them apart.
        keys = (set(stored.provenance) & set(provenance)) - _IGNORED - _OF_THE_FILE
    for key in sorted(keys):
        ours, theirs = stored.provenance.get(key), provenance.get(key)
        if ours != theirs and not (key == "weights" and _same_hashes(ours, theirs)):
            made, wanted = _differing_part(ours, theirs)
            raise MismatchError(
                f"feature {spec.name!r} was made with {key} {_short(made)}, this run has "
                f"{_short(wanted)}; use the same settings, or another store"
            )


def with_processors(provenance: Provenance, kinds: Collection[str]) -> Provenance:
    """Return a provenance that names further kinds of processors."""
    known = {*provenance.get(fmt.PROCESSORS, ()), *kinds}
    return {**provenance, fmt.PROCESSORS: sorted(known)} if known else provenance


def _same_hashes(ours: object, theirs: object) -> bool:
    """Whether two sets of files have the same contents, whatever their names."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return False
    return sorted(ours.values()) == sorted(theirs.values())


def _differing_part(ours: object, theirs: object) -> tuple[object, object]:
    """Return two values; of two dicts only the entries that differ."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return ours, theirs
    keys = [key for key in (*ours, *theirs) if ours.get(key) != theirs.get(key)]
    one, other = ({key: side[key] for key in keys if key in side} for side in (ours, theirs))
    return one, other


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 160 else text[:157] + "…"
