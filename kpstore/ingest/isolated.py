"""Extracts one video in a child process, to record and leave out frames that kill or block it.

Slow to start (a process and a model per attempt), so it is used only for tasks whose worker has
died. The driver also reads videos in such a process: a video that kills its reader must not kill
the driver.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from kpstore.errors import ExtractorError, KpstoreError
from kpstore.extractors.base import takes_videos
from kpstore.ingest.frames import extract_frames
from kpstore.ingest.job import Job, VideoRows, by_value, failed_video, opened_extractor
from kpstore.ingest.sight import Look, look, unreadable
from kpstore.ingest.watch import opening_limit, step_limit, video_limit
from kpstore.ingest.whole_videos import extract_alone
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Source

MAX_DEATHS = 16
"""A video that kills this many processes is given up as a whole."""

MAX_HANGS = 3
"""A video of which this many frames hang is given up as a whole: each took its time.

Of videos that only the driver looks at, this many may hang; the others then count as unreadable.
"""

Send = Callable[[object], None]

_OPENED = "opened"
"""Sent before the first frame: from here on, a limit counts."""


@dataclass(frozen=True)
class _Talk:
    """All that a child said, and how it ended.

    Parameters
    ----------
    messages : in their order.
    code : its exit code; None if it was killed because it said nothing for too long.
    """

    messages: Sequence[object]
    code: int | None


def extract_isolated(job: Job, record: VideoRecord) -> VideoRows:
    """Extract one video in child processes; frames that kill one, or hang, are failed ones."""
    skip: dict[int, str] = {}
    limit_s, n_hung = step_limit(job, record.n_frames), 0
    reason = f"{MAX_DEATHS} frames of this video killed their worker process"
    while len(skip) < MAX_DEATHS:
        talk = _talk(partial(_extract, job, record, skip), limit_s)
        at = next(
            (message for message in reversed(talk.messages) if isinstance(message, int)), None
        )
        result = next((m for m in talk.messages if isinstance(m, VideoRows | ExtractorError)), None)
        if isinstance(result, ExtractorError):
            raise result
        if result is not None:
            return result
        if talk.code is None and not talk.messages:
            raise ExtractorError(
                f"the extractor of {job.extractor.specs[0].name!r} did not start within "
                f"{opening_limit(limit_s):g} s"
            )
        n_hung += talk.code is None
        if takes_videos(job.extractor):
            reason = _fault(talk, limit_s, "video")
            break
        if at is None or at in skip or at >= record.n_frames:
            reason = _fault(talk, limit_s, "video", when="before its first frame")
            break
        skip[at] = _fault(talk, limit_s, "frame")
        if n_hung == MAX_HANGS:
            reason = f"{MAX_HANGS} of its frames hung: {skip[at]}"
            break
    return failed_video(job, record, reason)


def _fault(
    talk: _Talk, limit_s: float, what: str, doing: str = "reading and extracting", when: str = ""
) -> str:
    """Return the reason for a failure that ended a child."""
    if talk.code is None:
        return f"{doing} this {what} took longer than {limit_s:g} s (--frame-timeout)"
    return f"the worker process died {when or f'on this {what}'} ({_death(talk.code)})"


def look_isolated(job: Job, records: Sequence[VideoRecord], *, whole: bool) -> list[Look]:
    """Return :func:`~kpstore.ingest.sight.look` for each video.

    One that kills its reader, or takes too long, cannot be read.
    """
    limit_s = max((video_limit(job, record.n_frames) for record in records), default=0.0)
    looks: list[Look] = []
    n_died = n_hung = 0
    while len(looks) < len(records) and n_died < MAX_DEATHS and n_hung < MAX_HANGS:
        rest = records[len(looks) :]
        talk = _talk(partial(_look_at, job.source, rest, whole), limit_s)
        looks += [message for message in talk.messages if isinstance(message, Look)]
        if len(looks) < len(records):
            looks.append(unreadable(records[len(looks)], _fault(talk, limit_s, "video", "reading")))
            n_died += 1
            n_hung += talk.code is None
    return looks + [unreadable(record) for record in records[len(looks) :]]


def _talk(request: Callable[[Send], None], limit_s: float = 0.0) -> _Talk:
    """Have one child serve a request, and return what it said.

    Parameters
    ----------
    limit_s : longest time between two messages, after which the child is killed; 0 for any. The
        first, which says that the model has started, may take longer.
    """
    child = _started()
    assert child.stdin is not None
    assert child.stdout is not None
    messages: list[object] = []
    # A model may start processes that outlive it, and hold its end of the pipe open.
    reaper = threading.Thread(target=_reap, args=(child,), daemon=True)
    reaper.start()
    alarm = _Alarm(partial(_end_group, child))
    with child:
        try:
            alarm.set(opening_limit(limit_s))
            with suppress(BrokenPipeError):  # it died at once; its exit code says how
                child.stdin.write(by_value(request))
                child.stdin.flush()
            while (message := _receive(child.stdout)) is not None:
                messages.append(message)
                alarm.set(limit_s)
            reaper.join()
        finally:
            alarm.stop()
            _end_group(child)
            with suppress(BrokenPipeError):
                child.stdin.close()
    return _Talk(messages, None if alarm.has_rung else child.returncode)


def _started() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "kpstore.ingest.isolated"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def _reap(child: subprocess.Popen[bytes]) -> None:
    child.wait()
    _end_group(child)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End a child, and what it has started itself."""
    with suppress(ProcessLookupError, PermissionError):  # there is none any more
        os.killpg(child.pid, signal.SIGKILL)


class _Alarm:
    """Calls a function unless it is set again in time."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: threading.Timer | None = None
        self.has_rung = False

    def set(self, limit_s: float) -> None:
        self.stop()
        if limit_s:
            self._timer = threading.Timer(limit_s, self._end)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self.has_rung = True
        self._ring()


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
        _end_with_asker()
        request(partial(_send, pipe))


def _end_with_asker() -> None:
    """Have this process, and what it starts, killed when the other end of its input is closed.

    Otherwise a frame that hangs would outlive its worker for ever. The system does it, as the frame
    may hold Python's lock.
    """
    if sys.platform == "linux":  # where a signal can be chosen
        fcntl.fcntl(0, fcntl.F_SETOWN, -os.getpid())  # the group that it leads
        fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([0], [], [], 0)[0]:  # closed before
            os._exit(1)


def _look_at(source: Source, records: Sequence[VideoRecord], whole: bool, send: Send) -> None:
    send(_OPENED)
    for record in records:
        send(look(source, record, whole=whole))


def _extract(job: Job, record: VideoRecord, skip: dict[int, str], send: Send) -> None:
    try:
        opened_extractor(job)
    except KpstoreError as error:
        send(ExtractorError(str(error)))
        return
    send(_OPENED)
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
