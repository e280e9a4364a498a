"""What each rank of ``torchrun`` reads of an epoch, and of the rest of one that was interrupted.

``torchrun … -m tests.views.nodes_driver STORE FOLDER N_BATCHES``: after so many batches (0 for all)
each rank writes its rows, and the state of its loader, to the folder. A state that is there is
continued.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import islice
from pathlib import Path

import torch.distributed as distributed

import kpstore
from kpstore.store.cache import DecodedCache

if __name__ == "__main__":
    location, folder, n_batches = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) or None
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    view = kpstore.open(location).frames("points")
    assert view.cache()  # all ranks ask for it at once
    loader = kpstore.loader(view, 4, pad=False, pool_mib=0.01)
    state = folder / "state.json"
    if state.exists():
        loader.load_state_dict(json.loads(state.read_text()))
    rows = [batch["row"].tolist() for batch in islice(loader, n_batches)]
    name = f"{os.environ['WORLD_SIZE']}-{rank}"
    found = {"rows": rows, "copies": len(DecodedCache().entries())}
    (folder / f"rows-{name}.json").write_text(json.dumps(found))
    distributed.barrier()
    if rank == 0:
        state.write_text(json.dumps(loader.state_dict()))
    distributed.destroy_process_group()
