"""``kpstore import`` and ``kpstore export``: a command for each format, with its options."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from kpstore import plugins
from kpstore.errors import NotFoundError

from . import render
from .arguments import At, Json, StoreArgument
from .commands import loaded, one_command, takes
from .watcher import frames_bar

if TYPE_CHECKING:
    from kpstore.interop.base import ExportReport
    from kpstore.interop.transfer import ImportReport

GROUP: plugins.Group = "kpstore.formats"


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    for name, group, help_text in (
        (
            "import",
            _ImportGroup,
            "Store the contents of files of other formats: one commit, or nothing.\n\n"
            "You can omit the name of the format if kpstore recognises the file: "
            "`kpstore import phoenix.pkl phoenix.kps`.",
        ),
        ("export", _ExportGroup, "Write the contents of a store in other formats."),
    ):
        app = typer.Typer(cls=group, no_args_is_help=True, help=help_text)
        app.callback()(lambda: None)
        parent.add_typer(app, name=name)


class _FormatGroup(TyperGroup):
    """A group that makes commands when they are used: the module of a format may need an extra."""

    way: Literal["import", "export"]

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the formats that have this command."""
        return [name for name in plugins.names(GROUP) if self.get_command(ctx, name) is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a format; None if it has none."""
        if cmd_name not in plugins.names(GROUP):
            return None
        found, refusing = loaded(GROUP, cmd_name)
        if refusing is not None:
            return refusing
        importing = self.way == "import"
        options = found.importer if importing else found.exporter
        if options is None:
            return None
        run = takes(options)((_importing if importing else _exporting)(found.name))
        examples = [f"kpstore {line}" for line in found.examples if line.startswith(self.way)]
        return one_command(cmd_name, run, found.summary, examples)


class _ImportGroup(_FormatGroup):
    way = "import"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Accept a file in place of a format's name: ``kpstore import phoenix.pkl phoenix.kps``."""
        first = args[0] if args else "-"
        known = plugins.names(GROUP)
        if first not in known and first[:1] != "-":
            from kpstore.interop.transfer import find_format

            if not os.path.exists(first):
                raise NotFoundError(
                    f"{first} is neither a file nor a format; formats are {', '.join(known)}"
                )
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
        path: Source, store: NewStore, name: Name = "", json: Json = False, **options: object
    ) -> None:
        from kpstore.interop.transfer import import_file

        with frames_bar("importing") as on_progress:
            report = import_file(
                path, store, format_name, name=name, on_progress=on_progress, **options
            )
        render.show(report, json, print_imported)

    return run


def _exporting(format_name: str) -> Callable[..., None]:
    def run(
        store: StoreArgument,
        out: Target,
        at: At = None,
        overwrite: Overwrite = False,
        json: Json = False,
        **options: object,
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
                **options,
            )
        render.show(report, json, print_exported)

    return run


def print_imported(report: ImportReport) -> None:
    """Print what was stored."""
    n_failed = report.failed_frames
    failed = f", {render.number(n_failed)} of them failed" if n_failed else ""
    render.say(
        f"{report.location}: {render.listed(report.features) or 'paths'} of "
        f"{render.count(report.videos, 'video')}, {render.count(report.frames, 'frame')}{failed}"
    )
    _print_notes("notes:", report.notes)


def print_exported(report: ExportReport) -> None:
    """Print what was written, and what was not."""
    for file in report.files:
        left = ", ".join(f"{render.number(n)} {reason}" for reason, n in file.left_out.items() if n)
        render.say(
            f"{file.path}: {render.count(file.frames, 'frame')} of "
            f"{render.count(file.videos, 'video')}" + (f"; left out: {left}" if left else "")
        )
    _print_notes("not carried over:", report.notes)


def _print_notes(heading: str, notes: Sequence[str]) -> None:
    if notes:
        render.say(heading)
        render.print_some(notes, more="--json lists all")
