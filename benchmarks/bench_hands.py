"""How many hands that eyes see Holistic misses, and whether something else finds them.

``python -m benchmarks.bench_hands --data FOLDER [--keep FOLDER]``

The folder holds the clips of ``benchmarks/hands/labels.csv``; ``benchmarks/hands/README.md`` says
how these labels were made. Each clip is processed in its own size and in at most 210 x 260 with its
aspect kept. Without a folder, pictures of the demo in which nobody shows hands are processed: only
false hands can be counted then.

Candidates look at the labelled frames alone:

- ``holistic`` and ``parts`` are the recipes; ``backwards`` is Holistic on the frames in reverse.
- ``whole x 3`` is MediaPipe's Hands on the whole frame, enlarged; ``crops k`` on squares around
  the hands of the pose, k widths of the shoulders wide.
- ``followed`` goes on from Holistic's hands into frames before and after that lack them;
  ``regions`` tries regions of several sizes that the pose suggests.

``both directions`` and rows with + keep all hands of Holistic and add hands where it has none. The
least score of an added hand, the most that its wrist may be away from the pose's, in widths of the
shoulders, and the least visibility of that wrist are chosen on the tuning half: as few missed hands
as possible, with no more than 1 % false ones among the added.

``missed`` are hands that eyes see, at least in part; ``false`` are hands that eyes do not see.
``strict`` leaves out hands that eyes see in part.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.bench_holistic import Frames, clips_in, made_up, smaller
from benchmarks.hands.candidates import Candidates, Found
from benchmarks.hands.labels import NOT, Count, Labels, half_of, read_labels
from benchmarks.hands.looking import Points
from benchmarks.hands.recovering import ADDED, ALONE, EACH, Rule, choose, count, recovered, total
from benchmarks.record import Table

SIZES = {"native": "native size", "small": "at most 210 x 260"}
HALVES = ("tuning", "verdict")
_ALL_FRAMES = 1 << 30

Clips = dict[tuple[str, str], Found]
"""What was found, by clip and size."""


def _labelled(data: Path | None, folder: Path, frames: int) -> Iterator[tuple[str, Frames, Labels]]:
    """Yield each clip with its labels; pictures of the demo, none of which shows a hand."""
    if data is None:
        for name, images in made_up(folder, frames):
            none = np.full((len(images), 2), NOT)
            yield name, images, Labels(np.arange(len(images)), none)
        return
    for clip, labels in read_labels().items():
        found = [images for _, images in clips_in(data, frames=_ALL_FRAMES, match=clip)]
        if len(found) != 1:
            raise SystemExit(f"{data} holds {len(found)} files {clip!r}, one is needed")
        yield clip, found[0], labels


def look(data: Path | None, *, keep: Path | None, frames: int) -> tuple[Clips, dict[str, Labels]]:
    """Run all candidates on all clips, or read what they found before."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    candidates: Candidates | None = None
    clips: Clips = {}
    all_labels: dict[str, Labels] = {}
    with tempfile.TemporaryDirectory() as folder:
        for clip, images, labels in _labelled(data, Path(folder) / "demo", frames):
            all_labels[clip] = labels
            for size, pictures in (("native", images), ("small", smaller(images))):
                path = None if keep is None else keep / f"{clip}.{size}.npz"
                if pictures is None:
                    continue
                if path is not None and path.exists():
                    clips[clip, size] = Found.load(path)
                    continue
                candidates = candidates or Candidates()
                clips[clip, size] = found = candidates.look(pictures, labels.frames)
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    found.save(path)
            print(f"{clip}: {len(labels.frames)} of {len(images)} frames")
    return clips, all_labels


def _hands(found: Found, name: str, rules: Mapping[str, list[Rule]]) -> Points:
    return recovered(found, rules[name]) if name in rules else found.hands[name]


def _counts(
    clips: Clips, labels: Mapping[str, Labels], rules: Mapping[str, list[Rule]], *, strict: bool
) -> dict[str, dict[tuple[str, str], Count]]:
    """Return what each candidate has found in each clip and size."""
    return {
        name: {
            (clip, size): count(_hands(found, name, rules), labels[clip], strict=strict)
            for (clip, size), found in clips.items()
        }
        for name in (*ALONE, *rules)
    }


Counts = dict[str, dict[tuple[str, str], Count]]


def _summary(loose: Counts, strict: Counts, keys: list[tuple[str, str]]) -> Table:
    heads = ("candidate", "seen", "missed", "recall", "unseen", "false", "precision")
    rows: list[list[object]] = [[*heads, "added", "strict: missed", "recall", "precision"]]
    before = total([loose["holistic"][key] for key in keys])
    for name in loose:
        one, other = (total([counts[name][key] for key in keys]) for counts in (loose, strict))
        added = one.found + one.false - before.found - before.false
        rows.append(
            [
                *(name, one.seen, one.missed, _percent(one.recall), one.unseen, one.false),
                _percent(one.precision),
                added if name in (*ADDED, EACH) else "–",
                *(other.missed, _percent(other.recall), _percent(other.precision)),
            ]
        )
    return rows


def _percent(share: float) -> str:
    return f"{share:.1%}" if np.isfinite(share) else "–"


def _by_clip(loose: Counts, keys: list[tuple[str, str]]) -> Table:
    """Return missed hands of each candidate and, after a +, false ones, a column per clip."""
    rows: list[list[object]] = [["missed of seen + false", *(Path(clip).stem for clip, _ in keys)]]
    for name, counts in loose.items():
        cells = (counts[key] for key in keys)
        rows.append([name, *(f"{one.missed} of {one.seen} + {one.false}" for one in cells)])
    return rows


def _figures(counts: Counts) -> dict[str, Any]:
    return {
        name: {
            f"{clip}, {size}": {
                "seen": one.seen,
                "missed": one.missed,
                "unseen": one.unseen,
                "false": one.false,
            }
            for (clip, size), one in by_clip.items()
        }
        for name, by_clip in counts.items()
    }


def run(
    data: Path | None, *, keep: Path | None = None, frames: int = 40
) -> tuple[dict[str, Any], dict[str, Table]]:
    """Compare all candidates with the labels; return figures and tables."""
    clips, labels = look(data, keep=keep, frames=frames)
    halves = half_of(list(labels))
    tuning = {key: found for key, found in clips.items() if halves[key[0]] == "tuning"}
    rules = {name: [choose(sources, tuning, labels)] for name, sources in ADDED.items()}
    singly = [rule for (rule,) in rules.values() if len(rule.sources) == 1]
    chosen = [[name, rule.score, rule.distance, rule.visibility] for name, (rule,) in rules.items()]
    rules[EACH] = singly
    loose, strict = (_counts(clips, labels, rules, strict=strict) for strict in (False, True))
    tables: dict[str, Table] = {}
    for half in HALVES:
        for size, title in SIZES.items():
            keys = [key for key in clips if halves[key[0]] == half and key[1] == size]
            if keys:
                tables[f"{half}, {title}"] = _summary(loose, strict, keys)
                tables[f"{half}, {title}, by clip"] = _by_clip(loose, keys)
    heads = ["candidate", "least score", "most distance", "least visibility of the wrist"]
    tables["thresholds, chosen on the tuning half"] = [heads, *chosen]
    figures = {"counts": _figures(loose), "strict": _figures(strict)}
    return {**figures, "halves": halves}, tables


def main() -> None:
    """Run from the command line."""
    parser = record.parser(__doc__)
    parser.add_argument("--data", type=Path, help="the folder of the clips")
    parser.add_argument(
        "--keep", type=Path, help="a folder for what was found; read if it is there"
    )
    parser.add_argument("--frames", type=int, default=40, help="pictures of the demo")
    args: argparse.Namespace = parser.parse_args()
    found, tables = run(args.data, keep=args.keep, frames=args.frames)
    record.finish(args, found, tables)


if __name__ == "__main__":
    main()
