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
from collections.abc import Callable, Sequence
from functools import partial
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
"""A video that kills this many processes is given up as a whole."""

Send = Callable[[object], None]


def extract_isolated(job: Job, record: VideoRecord) -> VideoRows:
    """Extract one video in child processes; frames that kill one are recorded as failed."""
    skip: dict[int, str] = {}
    reason = f"{MAX_DEATHS} frames of this video killed their worker process"
    while len(skip) < MAX_DEATHS:
        messages, code = _talk(partial(_extract, job, record, skip))
        at = next((message for message in reversed(messages) if isinstance(message, int)), None)
        result = next((message for message in messages if not isinstance(message, int)), None)
        if isinstance(result, ExtractorError):
            raise result
        if isinstance(result, VideoRows):
            return result
        if takes_videos(job.extractor):
            reason = f"the worker process died on this video ({_death(code)})"
            break
        if at is None or at in skip or at >= record.n_frames:
            reason = f"the worker process died before its first frame ({_death(code)})"
            break
        skip[at] = f"the worker process died on this frame ({_death(code)})"
    return failed_video(job, record, reason)


def look_isolated(source: Source, records: Sequence[VideoRecord], *, whole: bool) -> list[Look]:
    """Return :func:`~kpstore.ingest.sight.look` for each video.

    One that kills its reader cannot be read.
    """
    looks: list[Look] = []
    deaths = 0
    while len(looks) < len(records) and deaths < MAX_DEATHS:
        rest = records[len(looks) :]
        messages, _ = _talk(partial(_look_at, source, rest, whole))
        looks += [message for message in messages if isinstance(message, Look)]
        if len(looks) < len(records):
            looks.append(unreadable(records[len(looks)]))
            deaths += 1
    return looks + [unreadable(record) for record in records[len(looks) :]]


def _talk(request: Callable[[Send], None]) -> tuple[list[object], int]:
    """Return all messages that one child sends while it serves a request, and its exit code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-m", "kpstore.ingest.isolated"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    messages: list[object] = []
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


def _send(pipe: IO[bytes], message: object) -> None:
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
    if request is not None:
        request(partial(_send, pipe))


def _look_at(source: Source, records: Sequence[VideoRecord], whole: bool, send: Send) -> None:
    for record in records:
        send(look(source, record, whole=whole))


def _extract(job: Job, record: VideoRecord, skip: dict[int, str], send: Send) -> None:
    try:
        opened_extractor(job)
    except KpstoreError as error:
        send(ExtractorError(str(error)))
        return
    try:
        if takes_videos(job.extractor):
            send(extract_alone(job, record))
        else:
            send(extract_frames(job, record, skip=skip, announce=send))
    except BrokenPipeError:
        raise
    except ExtractorError as error:
        send(error)
    except Exception as error:  # the same words as for a video that fails in a worker itself
        send(failed_video(job, record, error))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        # The worker that asked is dead; skip Python's own flush of the broken pipe and its message.
        os._exit(1)
