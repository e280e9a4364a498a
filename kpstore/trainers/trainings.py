"""The trainings of ``kpstore train``; torch is imported when one of them runs.

They are found by name in the group ``kpstore.trainings`` (entry points, or
:func:`kpstore.plugins.register`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NamedTraining:
    """A training as the command line offers it.

    Parameters
    ----------
    name : under which the training is registered.
    summary : one line of help.
    home : ``"module:function"``. The function is called with a store, the run's folder, and
        keywords of :func:`kpstore.trainers.train.train_views`, which it passes on. Its own keywords
        become options of the command: those that are annotated with
        :class:`kpstore.options.Option`, and the fields of dataclasses that are.
    details : further text of the command's help.
    examples : commands that the help shows.
    without : fields that are not options of this command.
    """

    name: str
    summary: str
    home: str
    details: str = ""
    examples: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


SKELETON = NamedTraining(
    "skeleton",
    "Train a transformer that draws skeletons: keypoints (143, 3) to a picture of 256 x 256.",
    "kpstore.trainers.train:train_skeleton",
    "The pictures are drawn from the keypoints during training. FOLDER gets "
    "checkpoint.safetensors, best.safetensors, metrics.csv, steps.csv and a picture of samples "
    "after each epoch. A run that was killed at any moment continues with --resume.",
    (
        "kpstore train skeleton phoenix.kps --out runs/skeleton",
        "kpstore train skeleton phoenix.kps --out runs/skeleton --resume",
        "torchrun --nproc-per-node 4 -m kpstore.cli.start train skeleton phoenix.kps --out "
        "runs/skeleton",
        "kpstore train skeleton phoenix.kps --limit-frames 64 --epochs 5 --image-size 64 "
        "--dev-split ''",
    ),
)
KEYPOINTS = NamedTraining(
    "keypoints",
    "Train a transformer that encodes faces region by region and reconstructs their 68 points.",
    "kpstore.trainers.train:train_keypoints",
    "Points are mapped to [0, 1] by the range of the training split's faces. FOLDER gets the same "
    "files as with `train skeleton`.",
    (
        "kpstore train keypoints phoenix.kps --at v1.0 --out runs/faces --device cuda",
        "kpstore train keypoints phoenix.kps --precision bf16 --patience 10 --json",
    ),
    without=("missing_parts",),
)
