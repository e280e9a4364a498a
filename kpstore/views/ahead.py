"""Asking for batches of object storage before they are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from kpstore.views.base import View
from kpstore.views.runs import Ints
from kpstore.views.sampling import Batches

_TOGETHER = 4096
"""Samples that are asked for together, as each call looks at all chunks that it may need."""


def asked_ahead(view: View, plan: Batches) -> Iterator[Ints]:
    """Yield the batches of a plan in order, and ask for those that follow if they are far away."""
    n_ahead = view.rows_ahead()
    if not n_ahead:
        yield from plan
        return
    per_sample = 1.0 if view.are_frames else float(view.lengths.mean())
    most = max(1, int(n_ahead / max(1.0, per_sample)))
    asked: deque[Ints] = deque()
    n_asked = n_next = 0
    coming: list[Ints] = []
    for part in plan:
        coming.append(part)
        n_next += len(part)
        # The first batch alone, as somebody waits for it.
        if asked and n_next < min(_TOGETHER, most):
            continue
        view.ask(np.concatenate(coming))
        asked += coming
        n_asked += n_next
        coming, n_next = [], 0
        while n_asked > most:
            n_asked -= len(asked[0])
            yield asked.popleft()
    if coming:
        view.ask(np.concatenate(coming))
    yield from asked
    yield from coming
