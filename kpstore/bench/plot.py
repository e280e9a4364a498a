"""Plot of a benchmark."""

from __future__ import annotations

from pathlib import Path

from kpstore.bench.comparison import BenchReport
from kpstore.errors import MissingExtraError


def plot(report: BenchReport, path: Path) -> None:
    """Draw a panel of bars for each workload, a bar for each subject with its spread, and save it.

    Parameters
    ----------
    path : ``.png``, ``.svg`` or ``.pdf``.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError:
        raise MissingExtraError("a plot", extra="bench") from None
    names = list(dict.fromkeys(figure.workload for figure in report.figures))
    subjects = list(dict.fromkeys(figure.subject for figure in report.figures))
    n_columns = 2
    n_rows = -(-len(names) // n_columns)
    canvas = Canvas(figsize=(12, n_rows * (1.0 + 0.28 * len(subjects))), layout="constrained")
    panels = canvas.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        found = [figure for figure in report.figures if figure.workload == name]
        medians = [figure.median for figure in found]
        spread = [
            [figure.median - figure.lowest for figure in found],
            [figure.highest - figure.median for figure in found],
        ]
        names_of = [figure.subject for figure in found]
        colours = ["tab:orange" if name.startswith("kpstore") else "0.6" for name in names_of]
        panel.barh(names_of, medians, xerr=spread, color=colours, ecolor="0.3")
        panel.invert_yaxis()
        # Subjects differ by factors of hundreds.
        panel.set_xscale("log")
        better = "more is better" if found[0].higher_is_better else "less is better"
        panel.set_title(f"{name}, {found[0].unit} ({better})", fontsize=10)
    for panel in panels[len(names) :]:
        panel.remove()
    canvas.suptitle(
        f"{report.feature} of {report.location}: {report.n_rows:,} frames, on {report.filesystem}"
    )
    canvas.savefig(path, dpi=120)
