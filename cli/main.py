"""The command ``kpstore``: its subcommands, and how errors are reported."""

from __future__ import annotations

import errno
import functools
import logging
import sys
import traceback
from collections import UserDict
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.models import CommandInfo

from kpstore._version import __version__
from kpstore.errors import (
    ExistsError,
    InvalidError,
    KpstoreError,
    MissingExtraError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)

from . import (
    INTERRUPTED,
    bench,
    cache,
    demo,
    doctor,
    formats,
    ingest,
    look,
    predict,
    remove,
    render,
    splits,
    stats,
    stores,
    train,
    versions,
)

WRONG_USE = (
    ExistsError,
    InvalidError,
    MissingExtraError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
"""Errors that end with exit code 2; all others end with 1."""

WRONG_PATH = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Errors of the system about paths that a user gave."""

WRONG_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EROFS)
"""Numbers (errno) of further errors about a path that a user gave."""

app = typer.Typer(
    name="kpstore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Versioned stores of keypoints and features: extract once in parallel, read thousands of "
    "times.",
    epilog="Exit codes: 0 done, 1 something failed or differs, 2 wrong use, 130 interrupted.",
)
for module in (
    ingest,
    look,
    stats,
    splits,
    versions,
    remove,
    stores,
    formats,
    train,
    predict,
    bench,
    cache,
    demo,
    doctor,
):
    module.add_to(app)


def _show_version(value: bool) -> None:
    if value:
        render.say(f"kpstore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and log messages.")
    ] = False,
) -> None:
    """Declare options that come before a command; :func:`run` handles ``--debug``."""


def run_process() -> int:
    """Run the command line of this process and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A file name that is not valid text must not end a run.
            stream.reconfigure(errors="backslashreplace")
    return run(sys.argv[1:])


class _Subcommands(UserDict[str, Any]):
    """Subcommands by name, each built when it is asked for: all of them take as long as Typer."""

    def __getitem__(self, name: str) -> Any:
        found = self.data[name]
        if isinstance(found, CommandInfo):
            alone = typer.Typer(add_completion=False)
            alone.registered_commands.append(found)
            found = self.data[name] = typer.main.get_command(alone)
        return found


@functools.cache
def _command() -> Any:
    """Return the command with all subcommands."""
    to_build, app.registered_commands = app.registered_commands, []
    command: Any = typer.main.get_command(app)
    named = {info.name or str(getattr(info.callback, "__name__", "")): info for info in to_build}
    command.commands = _Subcommands({**named, **command.commands})
    return command


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are one line on standard error."""
    debug = "--debug" in arguments
    # Reports list all failures; without --debug the log would repeat them.
    logging.basicConfig(
        level=logging.INFO if debug else logging.CRITICAL, format="%(name)s: %(message)s"
    )
    try:
        code = _command()(
            [word for word in arguments if word != "--debug"],
            prog_name="kpstore",
            standalone_mode=False,
        )
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # any error becomes one line and an exit code
        if debug:
            render.say_lines(traceback.format_exc(), err=True)
        return _explain(error)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    if isinstance(error, KpstoreError):
        for line in (f"error: {error}", *getattr(error, "__notes__", ())):
            render.say(line, err=True)
        return 2 if isinstance(error, WRONG_USE) else 1
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        render.say(f"error: {error.strerror or error}{where}", err=True)
        return 2 if isinstance(error, WRONG_PATH) or error.errno in WRONG_NAME else 1
    # A usage error; Typer has had its own copy of click since 0.2x.
    if hasattr(error, "format_message"):
        message = error.format_message().strip().replace("Value error, ", "")
        if type(error).__name__ == "NoArgsIsHelpError":
            render.say_lines(message)
        else:
            render.say(f"error: {message[:1].lower()}{message[1:].replace(chr(10), ' ')}", err=True)
        return 2
    what = " ".join(str(error).split()) or "no message"
    render.say(
        f"error: internal error: {type(error).__name__}: {what}; run again with --debug", err=True
    )
    return 1
