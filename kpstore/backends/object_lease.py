"""A reservation in object storage, where no kernel releases what a killed process held.

Who holds it writes an object on the condition that there is none, and renews it every few seconds.
One that was not renewed for long is taken over, on the condition that it has not changed since.
Times are those of the storage alone, so clocks of machines may differ. A process that was killed on
this machine is seen at once.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from kpstore.backends import refusals
from kpstore.backends.object_files import ObjectFiles, Stored
from kpstore.errors import DAMAGE, BusyError, KpstoreError, UnreachableError
from kpstore.visible import logger

_log = logger(__name__)

RENEW_S, STALE_S = 5.0, 30.0
"""How often a holder renews, and after what time without it others take over."""
_LOOK_AGAIN_S = 0.2
FREE = b"{}"
"""Content of the object while nobody holds it."""
_CLOCK = "kpstore/clock"
"""Written to learn the time of the storage."""


class Lease:
    """One reservation of a store.

    Parameters
    ----------
    files : of the store.
    name : of the object that stands for it.
    """

    def __init__(self, files: ObjectFiles, name: str) -> None:
        self._files, self.name = files, name

    @contextmanager
    def held(self, purpose: str, *, wait: bool) -> Iterator[Held]:
        """Hold it while the block runs; see :meth:`take`."""
        mine = self.take(purpose, wait=wait)
        try:
            yield mine
        finally:
            mine.release()

    def take(self, purpose: str, *, wait: bool) -> Held:
        """Take it, and renew it in a thread of its own until it is given back.

        Parameters
        ----------
        wait : for whoever holds it now; otherwise a :class:`BusyError` names them.
        """
        mine = Held(self._files, self.name, purpose)
        while not mine.begin():
            found = self._holder()
            if found is None:
                time.sleep(_LOOK_AGAIN_S)  # its store was removed just now
                continue
            holder, stored = found
            if _is_gone(holder) or self._age(stored) > STALE_S:
                if mine.take_over(stored):
                    break
                continue
            if not wait:
                raise refusals.held(str(self._files.address), _told(holder))
            time.sleep(_LOOK_AGAIN_S)
        mine.keep()
        return mine

    def is_held(self) -> bool:
        """Return whether somebody holds it who may still run."""
        found = self._holder()
        return found is not None and not _is_gone(found[0]) and self._age(found[1]) <= STALE_S

    def _holder(self) -> tuple[dict[str, Any], Stored] | None:
        try:
            content, stored = self._files.read_tagged(self.name)
        except FileNotFoundError:
            return None
        return _parsed(content), stored

    def _age(self, stored: Stored) -> float:
        """Return for how long it was not renewed, in seconds, by the storage's own clock."""
        try:
            self._files.write(_CLOCK, b"")
        except UnreachableError:  # no right to write: whoever only reads takes nothing over
            return 0.0
        now = self._files.about(_CLOCK)
        return 0.0 if now is None else (now.time - stored.time).total_seconds()


class Held:
    """A reservation that this process has, or is about to take."""

    def __init__(self, files: ObjectFiles, name: str, purpose: str) -> None:
        self._files, self._name = files, name
        self._content = {
            "purpose": purpose,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "holder": uuid.uuid4().hex,
        }
        self._tag: str | None = None
        self._n_renewed = 0
        self._lock = threading.Lock()
        self._end = threading.Event()

    @property
    def is_lost(self) -> bool:
        """Whether another process was seen to have it."""
        return self._tag is None

    def _encoded(self) -> bytes:
        # Another content each time, so that the tag changes.
        self._n_renewed += 1
        return json.dumps({**self._content, "renewed": self._n_renewed}).encode()

    def _own_tag(self) -> str | None:
        """Return the tag of the object if it is this holder's: an answer may have been lost."""
        try:
            content, stored = self._files.read_tagged(self._name)
        except FileNotFoundError:
            return None
        return stored.tag if _parsed(content).get("holder") == self._content["holder"] else None

    def begin(self) -> bool:
        """Take it if nobody ever had it."""
        self._tag = self._files.write_new(self._name, self._encoded()) or self._own_tag()
        return self._tag is not None

    def take_over(self, stored: Stored) -> bool:
        """Take it from a holder that has ended; False if another process was first."""
        found = self._files.replace(self._name, self._encoded(), stored.tag)
        self._tag = found or self._own_tag()
        return self._tag is not None

    def keep(self) -> None:
        """Begin to renew it."""
        threading.Thread(target=self._renew_often, name="kpstore-lease", daemon=True).start()

    def _renew_often(self) -> None:
        while not self._end.wait(RENEW_S):
            try:
                self._renew()
            except KpstoreError as error:
                _log.warning("the reservation was not renewed: %s", error)
            if self.is_lost:
                return

    def _renew(self) -> None:
        with self._lock:
            if self._tag is not None:
                found = self._files.replace(self._name, self._encoded(), self._tag)
                self._tag = found or self._own_tag()

    def check(self) -> None:
        """Renew it now; :class:`BusyError` if another process has taken it over."""
        self._renew()
        if self.is_lost:
            raise self.lost()

    def lost(self) -> BusyError:
        """Return the error for a reservation that another process has taken over."""
        return BusyError(
            f"{self._files.address} was reserved by this process, which did not renew that for "
            f"{STALE_S:.0f} s (it was stopped, or the storage did not answer), so that another one "
            "has taken it; nothing more was written, repeat it"
        )

    def give_back(self) -> None:
        """Give it back; :class:`BusyError` if another process has taken it over."""
        self._end.set()
        with self._lock:
            tag, self._tag = self._tag, None
            # Emptied, not deleted: deletes have no conditions, and it may be another one's by now.
            if tag is None or (
                self._files.replace(self._name, FREE, tag) is None
                and self._files.read(self._name) != FREE
            ):
                raise self.lost()

    def release(self) -> None:
        """Give it back, unless another process has it."""
        if self.is_lost:
            self._end.set()
            return
        try:
            self.give_back()
        except (KpstoreError, FileNotFoundError) as error:
            _log.warning("the reservation stays until it is taken over: %s", error)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except DAMAGE:
        return {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this machine that no longer runs, or has released it."""
    if not holder:
        return True
    if not holder.get("machine") or holder["machine"] != _machine():
        return False
    pid, started = holder.get("pid"), holder.get("started")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's, of which the system may say nothing
    return _started(pid) not in ("", started)  # its number may be another one's by now


@cache
def _machine() -> str:
    """Return a name for this start of this system and its processes; ``""`` where it has none.

    Containers of one machine may have the same host name and the same numbers of processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the system did; ``""`` if it does not run."""
    try:
        # The name of the program, in parentheses, may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _told(holder: dict[str, Any]) -> str:
    try:
        return (
            f"{holder['purpose']}, process {holder['pid']} on {holder['host']} since "
            f"{holder['since']}; if it was killed there, its reservation ends {STALE_S:.0f} s later"
        )
    except KeyError:
        return "its reservation does not say which"
