"""``kpstore import`` and ``kpstore export``: a command per format, with the format's options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from kpstore import plugins

from . import render
from .arguments import At, Json, StoreArgument, split_names
from .commands import SPLITS, loaded, one_command, takes
from .watcher import frames_bar

if TYPE_CHECKING:
    from kpstore.interop.base import ExportReport, Format
    from kpstore.interop.transfer import ImportReport

GROUP: plugins.Group = "kpstore.formats"


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    for name, group, help_text in (
        (
            "import",
            _ImportGroup,
            "Store the contents of files of other formats: one commit, or nothing. The name of the "
            "format may be left out where a file can be recognised: `kpstore import phoenix.pkl "
            "phoenix.kps`.",
        ),
        ("export", _ExportGroup, "Write the contents of a store in other formats."),
    ):
        app = typer.Typer(cls=group, no_args_is_help=True, help=help_text)
        app.callback()(lambda: None)
        parent.add_typer(app, name=name)


class _FormatGroup(TyperGroup):
    """Commands that are made when they are used: a format's module may need numpy, or an extra."""

    way: Literal["import", "export"]

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the formats that go this way."""
        return [name for name in plugins.names(GROUP) if self._can(name)]

    def _can(self, name: str) -> bool:
        found, refusing = loaded(GROUP, name)
        return refusing is not None or self._options(found) is not None

    def _options(self, found: Format) -> Any:
        return found.importer if self.way == "import" else found.exporter

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a format."""
        if cmd_name not in plugins.names(GROUP):
            return None
        found, refusing = loaded(GROUP, cmd_name)
        if refusing is not None:
            return refusing
        options = self._options(found)
        if options is None:
            return None
        run = takes(options)((_importing if self.way == "import" else _exporting)(found.name))
        examples = [f"kpstore {line}" for line in found.examples if line.startswith(self.way)]
        return one_command(cmd_name, run, found.summary, examples)


class _ImportGroup(_FormatGroup):
    way = "import"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take a file in place of the format's name: ``kpstore import phoenix.pkl phoenix.kps``."""
        first = args[0] if args else "-"
        if first not in plugins.names(GROUP) and first[:1] != "-" and Path(first).exists():
            from kpstore.interop.transfer import find_format

            args = [find_format(Path(first)).name, *args]
        return super().resolve_command(ctx, args)


class _ExportGroup(_FormatGroup):
    way = "export"


Source = Annotated[
    Path, typer.Argument(metavar="PATH", help="File or folder to read.", show_default=False)
]
NewStore = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="The store, created if it does not exist.", show_default=False
    ),
]
Target = Annotated[
    Path, typer.Argument(metavar="OUT", help="File or folder to write.", show_default=False)
]
Name = Annotated[str, typer.Option(help="Name of the data set, for a new store.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", "--force", help="Replace existing files.")]


def _importing(format_name: str) -> Callable[..., None]:
    def run(
        path: Source, store: NewStore, name: Name = "", json: Json = False, **options: Any
    ) -> None:
        from kpstore.interop.transfer import import_file

        with frames_bar("importing") as on_progress:
            report = import_file(
                path, store, format_name, name=name, on_progress=on_progress, **_given(options)
            )
        render.print_json(report.to_json()) if json else print_imported(report)

    return run


def _exporting(format_name: str) -> Callable[..., None]:
    def run(
        store: StoreArgument,
        out: Target,
        at: At = None,
        overwrite: Overwrite = False,
        json: Json = False,
        **options: Any,
    ) -> None:
        import kpstore
        from kpstore.interop.transfer import export_file

        with frames_bar("exporting") as on_progress:
            report = export_file(
                kpstore.open(store, at),
                out,
                format_name,
                overwrite=overwrite,
                on_progress=on_progress,
                **_given(options),
            )
        render.print_json(report.to_json()) if json else print_exported(report)

    return run


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: split_names(value) if name == SPLITS else value for name, value in options.items()
    }


def print_imported(report: ImportReport) -> None:
    """Print what was stored."""
    failed = (
        f", {render.number(report.failed_frames)} of them failed" if report.failed_frames else ""
    )
    typer.echo(
        f"{report.location}: {render.listed(report.features) or 'paths'} of "
        f"{render.count(report.videos, 'video')}, {render.count(report.frames, 'frame')}{failed}"
    )
    _print_notes(report.notes)


def print_exported(report: ExportReport) -> None:
    """Print what was written, and what was not."""
    for file in report.files:
        left = ", ".join(f"{render.number(n)} {reason}" for reason, n in file.left_out.items() if n)
        typer.echo(
            f"{file.path}: {render.count(file.frames, 'frame')} of "
            f"{render.count(file.videos, 'video')}" + (f"; left out: {left}" if left else "")
        )
    _print_notes(report.notes)


def _print_notes(notes: Sequence[str]) -> None:
    if notes:
        typer.echo("notes:")
        for line in notes[: render.SHOWN_FAILURES]:
            typer.echo(f"  {line}")
        if len(notes) > render.SHOWN_FAILURES:
            typer.echo(f"  … and {len(notes) - render.SHOWN_FAILURES} more (--json lists all)")
