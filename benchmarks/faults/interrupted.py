"""Stop commands at random steps: a store is as before or as after, and the command goes on.

``python -m benchmarks.faults.interrupted --backend icechunk --attempts 200 --seed 0 --folder DIR``

Each attempt copies a store and runs one command on it in a process of its own. When this process is
about to open a file for writing, to rename, link or remove one, for a time that is chosen at
random, or a few milliseconds later, it is killed, or interrupted as by Ctrl-C; or no file may grow
beyond some bytes, as on a full disk. After that the store has to be sound, with the
contents of before or of after (an ingest: or some of both), a new file has to be whole or absent,
an error has to be one line, and the same command, once more, has to give what it gives undisturbed.
What was tried is in a journal in the folder: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import kpstore
from benchmarks.faults.corruption import (
    LENGTHS,
    SUFFIXES,
    Numbers,
    Sums,
    counts,
    digest,
    entries_of,
    make_again,
    make_store,
)
from kpstore.errors import KpstoreError
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.inspect.verify import verify_all
from kpstore.interop.transfer import export_file

FAULTS = ("kill", "interrupt", "full disk")
_LIMIT_S = 120.0
_MODULE = "benchmarks.faults.interrupted"
_STEPS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
"""Audit events of Python that change a folder; files opened for writing count as well."""
_OTHER = {".kps": ".h5", ".h5": ".kps"}


def _ingest(location: str) -> None:
    """Ingest what is not there yet."""
    make_again(location)


def _overwrite(location: str) -> None:
    """Make a feature anew."""
    options = Options(workers=0, checkpoint_frames=60, overwrite=True)
    run_ingest(Numbers(LENGTHS), location, Sums("raw"), options)


FUNCTIONS: Mapping[str, Callable[[str], None]] = {"ingest": _ingest, "ingest again": _overwrite}
"""Commands that change the store and whose sources are made here."""
CHANGES: Mapping[str, tuple[str, ...]] = {
    "tag": ("tag", "STORE", "new"),
    "rollback": ("rollback", "STORE", "--to", "first"),
    "splits set": ("splits", "set", "STORE", "splits.csv", "--keep-others"),
    "gc": ("gc", "STORE", "--older-than", "0", "--yes"),
    "remove": ("remove", "STORE", "--video", "c"),
    "remove everywhere": ("remove", "STORE", "--video", "c", "--everywhere", "--yes"),
}
"""Commands that change the store."""
MAKES: Mapping[str, tuple[str, ...]] = {
    "convert": ("convert", "STORE", "NEW"),
    "merge": ("merge", "STORE", "other.kps", "NEW", "--mixed"),
    "import": ("import", "hdf5", "export.h5", "NEW"),
    "export": ("export", "hdf5", "STORE", "new-export.h5"),
}
"""Commands that make a new store or file."""
COMMANDS = (*FUNCTIONS, *CHANGES, *MAKES)


# -- the process that is stopped -------------------------------------------------------------------


def _child(command: str, step: int, fault: str, delay_s: float, most_bytes: int) -> None:
    """Run a command in this process; do the fault when it comes to a step."""
    seen = 0

    def strike() -> None:
        if fault == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        else:
            os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGINT)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(given[2], int) and given[2] & os.O_ACCMODE
        if not writes and event not in _STEPS:
            return
        seen += 1
        if seen == step:
            threading.Timer(delay_s, strike).start() if delay_s else strike()

    location = str(next(Path.cwd().glob("store.*")))
    new = "new" + _OTHER[Path(location).suffix]
    sys.argv = ["kpstore"]
    for word in CHANGES.get(command) or MAKES.get(command) or ():
        sys.argv.append({"STORE": Path(location).name, "NEW": new}.get(word, word))
    from kpstore.cli.main import run_process
    from kpstore.cli.start import interrupt_again

    sys.unraisablehook = interrupt_again

    sys.addaudithook(hook)
    try:
        code = _called(FUNCTIONS[command], location) if command in FUNCTIONS else run_process()
    except KeyboardInterrupt:
        code = 130
    with contextlib.suppress(OSError):
        Path("steps").write_text(str(seen))
    sys.stderr.flush()
    os._exit(code)


def _called(function: Callable[[str], None], location: str) -> int:
    try:
        function(location)
    except (KpstoreError, OSError) as error:  # as the command line does
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(
    folder: Path, command: str, *, step: int = 0, fault: str = "", delay_s: float = 0, most: int = 0
) -> tuple[int, str]:
    """Run a command in a process of its own; return its exit code and what it said."""
    argv = [sys.executable, "-m", _MODULE, "--child", command, str(step), fault or "none"]
    argv += [str(delay_s), str(most)]
    home = str(Path(__file__).parents[2])
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": home},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    return done.returncode, done.stderr


# -- what a folder holds ---------------------------------------------------------------------------


def _contents(location: Path) -> str:
    """Return a hash of a store's newest version and its tags' names; ``""`` if there is no store.

    A store that is damaged is an error of kpstore.
    """
    if not location.exists():
        return ""
    problems = verify_all(str(location)).problems
    if problems:
        raise KpstoreError(f"verify --all: {problems[0].array} {problems[0].what}")
    store = kpstore.open(location, cache="off")
    arrays = {name: store[name][:] for name in sorted(store.features)}
    videos = store.videos.to_csv()
    tags = sorted(tag for tag in store.tags if not tag.startswith("before-rollback-"))
    return digest([tags, videos, digest(arrays)])


def _state(folder: Path, command: str) -> dict[str, str]:
    """Return hashes of what a command may change."""
    location = next(folder.glob("store.*"))
    found = {"store": _contents(location)}
    if command == "export":
        found["new"] = _hash_export(folder / "new-export.h5")
    elif command in MAKES:
        found["new"] = _contents(folder / f"new{_OTHER[location.suffix]}")
    return found


def _hash_export(path: Path) -> str:
    import h5py

    if not path.exists():
        return ""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and not name.startswith("_"):
                values = item[()]
                found[name] = [str(values.dtype), values.shape, digest(str(values.tolist()))]

        file.visititems(visit)
    return digest(found)


def _judge(
    folder: Path, command: str, code: int, said: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Say what came of an attempt: the folder after the fault, and after the same command again."""
    if "Traceback" in said or (code > 0 and code != 130 and "error: " not in said):
        return {"outcome": "unclear", "detail": f"ended with {code}: {said[-300:]}"}
    before, after = about["before"], about["after"]
    try:
        found = _state(folder, command)
        # An ingest commits as it goes, and what it has committed stays.
        known = command in FUNCTIONS or all(found[k] in (before[k], after[k]) for k in found)
        if not known:
            return {"outcome": "wrong", "detail": f"ended with {code}, but holds {found}"}
        if found != after or command in FUNCTIONS:
            again, words = _run(folder, command)
            if again:
                return {"outcome": "wrong", "detail": f"again: ended with {again}: {words[-300:]}"}
        found = _state(folder, command)
    except Exception as error:  # of kpstore or not: what is there cannot be read
        return {"outcome": "wrong", "detail": f"{type(error).__name__}: {error}"}
    if found != after:
        return {"outcome": "wrong", "detail": f"holds {found} in the end"}
    return {"outcome": "equal"}


# -- many attempts ---------------------------------------------------------------------------------


def _base(folder: Path, backend: str) -> Path:
    """Return a folder with what commands need, made once."""
    base = folder / f"stopped-{backend}"
    if not (base / "splits.csv").exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        location = str(base / f"store{SUFFIXES[backend]}")
        make_store(location)
        run_ingest(Numbers({"f": 12}), str(base / "other.kps"), Sums("raw"), Options(workers=0))
        export_file(kpstore.open(location), base / "export.h5", "hdf5")
        (base / "splits.csv").write_text("id,split\na,train\nb,train\nc,dev\n")
    return base


def _undisturbed(base: Path, command: str) -> dict[str, Any]:
    """Return what a folder holds before and after a command, and its steps; found out once."""
    path = base.with_name(f"{base.name} {command}.json")
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix="kpstore-faults-") as name:
            here = Path(name)
            _copy(base, here, command)
            before = _state(here, command)
            code, said = _run(here, command)
            if code:
                raise SystemExit(f"{command} undisturbed ended with {code}: {said}")
            steps = int((here / "steps").read_text())
            about = {"before": before, "after": _state(here, command), "steps": steps}
        path.write_text(json.dumps(about))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _copy(base: Path, folder: Path, command: str) -> None:
    """Copy what commands need; an ingest begins with the first videos alone."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    if command == "ingest":
        location = next(folder.glob("store.*"))
        shutil.rmtree(location) if location.is_dir() else location.unlink()
        few = {video_id: LENGTHS[video_id] for video_id in ("a", "b", "none")}
        run_ingest(Numbers(few), str(location), Sums("raw"), Options(workers=0))


def attempt(base: Path, number: int, seed: int, command: str) -> dict[str, Any]:
    """Stop one command and return what came of it, as JSON values."""
    rng = random.Random(f"{seed}-{number}")
    fault, about = rng.choice(FAULTS), _undisturbed(base, command)
    step = 1 if fault == "full disk" else rng.randint(1, about["steps"])
    delay_s = 0.0 if fault == "full disk" else rng.choice((0.0, rng.uniform(0, 0.05)))
    most = rng.choice((0, rng.randint(1, 10_000), rng.randint(1, 10_000_000)))
    what = {"attempt": number, "what": f"{command}: {fault} at step {step}"}
    with tempfile.TemporaryDirectory(prefix="kpstore-faults-") as name:
        folder = Path(name)
        _copy(base, folder, command)
        try:
            code, said = _run(folder, command, step=step, fault=fault, delay_s=delay_s, most=most)
            return what | _judge(folder, command, code, said, about)
        except subprocess.TimeoutExpired:
            return what | {"outcome": "unclear", "detail": "no end"}


def run(
    backend: str, attempts: int, seed: int, folder: Path, commands: Sequence[str] = COMMANDS
) -> dict[str, int]:
    """Make attempts, counting those in the folder's journal, and return their outcomes.

    Returns
    -------
    dict
        As :func:`benchmarks.faults.corruption.run` returns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / f"stopped-{backend}-{seed}.jsonl"
    base = _base(folder, backend)
    known = {entry["attempt"] for entry in entries_of(journal)}
    with journal.open("a", encoding="utf-8") as file:
        for number in range(attempts):
            if number not in known:
                entry = attempt(base, number, seed, commands[number % len(commands)])
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
    return counts(entries_of(journal))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=sorted(SUFFIXES), default="icechunk")
    parser.add_argument("--attempts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        command, step, fault, delay_s, most = given.child
        _child(command, int(step), fault, float(delay_s), int(most))
    if given.folder is None:
        parser.error("give --folder")
    began = time.perf_counter()
    found = run(given.backend, given.attempts, given.seed, given.folder)
    print(json.dumps({**found, "seconds": round(time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
