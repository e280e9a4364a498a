"""Extracts one video in a child process, to record and leave out frames that kill the process.

Slow to start (a process and a model per attempt), so it is used only for tasks whose worker has
died. The driver also reads videos in such a process: a video that kills its reader must not kill
the driver.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

from kpstore.errors import ExtractorError, KpstoreError
from kpstore.extractors.base import takes_videos
from kpstore.ingest.frames import extract_frames
from kpstore.ingest.job import Job, VideoRows, by_value, failed_video, opened_extractor
from kpstore.ingest.sight import Look, look, unreadable
from kpstore.ingest.whole_videos import extract_alone
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Source

MAX_DEATHS = 16
"""A video that kills more processes than this is given up as a whole."""


def extract_isolated(job: Job, record: VideoRecord) -> VideoRows:
    """Extract one video in child processes; frames that kill one are recorded as failed."""
    skip: dict[int, str] = {}
    while len(skip) < MAX_DEATHS:
        result, at, code = _attempt(job, record, skip)
        if isinstance(result, ExtractorError):
            raise result
        if result is not None:
            return result
        if takes_videos(job.extractor):
            return failed_video(
                job, record, f"the worker process died on this video ({_death(code)})"
            )
        if at is None or at in skip or at >= record.n_frames:
            return failed_video(
                job, record, f"the worker process died before its first frame ({_death(code)})"
            )
        skip[at] = f"the worker process died on this frame ({_death(code)})"
    return failed_video(
        job, record, f"{len(skip)} frames of this video killed their worker process"
    )


def look_isolated(source: Source, records: Sequence[VideoRecord], *, whole: bool) -> list[Look]:
    """Return :func:`~kpstore.ingest.sight.look` for each video.

    One that kills its reader cannot be read.
    """
    looks: list[Look] = []
    deaths = 0
    while len(looks) < len(records) and deaths < MAX_DEATHS:
        rest = records[len(looks) :]
        messages, _ = _talk(("look", source, rest, whole))
        looks += [message for message in messages if isinstance(message, Look)]
        if len(looks) < len(records):
            looks.append(unreadable(records[len(looks)]))
            deaths += 1
    return looks + [unreadable(record) for record in records[len(looks) :]]


def _attempt(
    job: Job, record: VideoRecord, skip: dict[int, str]
) -> tuple[VideoRows | ExtractorError | None, int | None, int]:
    """Return (result or None, last frame announced, exit code) of one child."""
    messages, code = _talk(("extract", job, record, skip))
    announced = [message for message in messages if isinstance(message, int)]
    results = [message for message in messages if not isinstance(message, int)]
    return results[-1] if results else None, announced[-1] if announced else None, code


def _talk(request: tuple[Any, ...]) -> tuple[list[Any], int]:
    """Return all messages that one child answers to a request, and its exit code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-m", "kpstore.ingest.isolated"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    messages: list[Any] = []
    with child:
        try:
            child.stdin.write(by_value(request))
            child.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; its exit code says how
        while (message := _receive(child.stdout)) is not None:
            messages.append(message)
    return messages, child.returncode


def _death(code: int) -> str:
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def _send(pipe: IO[bytes], message: Any) -> None:
    pipe.write(pickle.dumps(message))
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """Return the next message of our own child or parent, or None if it ended."""
    try:
        return pickle.load(pipe)
    except (EOFError, pickle.UnpicklingError):  # it ended between two messages, or within one
        return None


def main() -> None:
    """Serve one request; run as ``python -m kpstore.ingest.isolated`` with a pipe at either end."""
    pipe = os.fdopen(os.dup(1), "wb")
    # Models write to standard output; the pipe must carry nothing but messages.
    os.dup2(2, 1)
    request = _receive(sys.stdin.buffer)
    if request is None:
        return
    kind, *given = request
    if kind == "look":
        source, records, whole = given
        for record in records:
            _send(pipe, look(source, record, whole=whole))
    else:
        _extract(pipe, *given)


def _extract(pipe: IO[bytes], job: Job, record: VideoRecord, skip: dict[int, str]) -> None:
    try:
        opened_extractor(job)
    except KpstoreError as error:
        _send(pipe, ExtractorError(str(error)))
        return
    try:
        if takes_videos(job.extractor):
            result = extract_alone(job, record)
        else:
            result = extract_frames(job, record, skip=skip, announce=lambda n: _send(pipe, n))
    except BrokenPipeError:
        raise
    except ExtractorError as error:
        _send(pipe, error)
        return
    except Exception as error:  # the same words as for a video that fails in a worker itself
        result = failed_video(job, record, error)
    _send(pipe, result)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        # The worker that asked is dead; skip Python's own flush of the broken pipe and its message.
        os._exit(1)
