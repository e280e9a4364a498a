"""The ledger of an Icechunk repository: what it says of versions and names, and what is no longer so."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import icechunk

from kpstore.backends.base import MAIN
from kpstore.backends.checksums import TABLE
from kpstore.backends.icechunk_names import Kind, Names, Ref, file_of, read_refs
from kpstore.backends.ledger import Ledger, LedgerRecords, LedgerText, file_sum

_log = logging.getLogger(__name__)

LEDGER = "kpstore/ledger"
_ON_PURPOSE = f"if other software did that on purpose, delete {LEDGER}"
_KINDS: tuple[Kind, Kind] = ("branch", "tag")


@dataclass(frozen=True)
class _Version:
    """What Icechunk says of a version: what it builds upon, and the files that describe it."""

    parent: str | None
    manifests: frozenset[str]
    arrays: frozenset[str]

    def files(self, version: str) -> frozenset[str]:
        """Paths of all files that describe it.

        Icechunk's own empty first version has no transaction.
        """
        transaction = [] if self.parent is None else [f"transactions/{version}"]
        return frozenset([f"snapshots/{version}", *transaction, *self.manifests])


@dataclass(frozen=True)
class Sight:
    """Names and the ledger as they were at one moment.

    Parameters
    ----------
    has_ledger, records : the ledger.
    refs : of each kind, by name.
    wrong_names : a line for each name that is damaged or gone.
    """

    has_ledger: bool
    records: LedgerRecords
    refs: Mapping[Kind, Mapping[str, Ref]]
    wrong_names: tuple[str, ...]


class VersionRecords:
    """Keeps the ledger of a repository, and compares.

    Parameters
    ----------
    root : directory of the repository.
    location : the same, as people call it.
    repository : opens it.
    """

    def __init__(
        self, root: Path, location: str, repository: Callable[[], icechunk.Repository]
    ) -> None:
        self._root, self._location, self._repository = root, location, repository
        self._ledger = Ledger(root / LEDGER)

    # -- writing, under the commit lock ------------------------------------------------------------

    def committed(self, branch: str, version: str) -> None:
        """Note a commit, and whatever it builds upon that is not in the ledger yet."""
        ledger = self._ledger.read()
        records = self._unrecorded(
            version, lambda known: ledger.sum_of(f"snapshots/{known}") is not None
        )
        *older, newest = records or [{}]
        # Other branches that are ahead of the ledger by these older ones would look like branches
        # of other versions.
        others = self._ahead(ledger, but=branch) if older else ()
        self._write([*others, *older, {"branch": branch, "is": [version], **newest}])

    def _ahead(self, ledger: LedgerText, but: str) -> Iterator[dict[str, Any]]:
        """Yield lines for branches that lead to versions of which the ledger knows nothing yet."""
        for name, ref in read_refs(self._root, "branch").items():
            recorded = ledger.named("branch", name)
            if name == but or ref.version is None or not recorded or ref.version in recorded:
                continue
            if not self._wrong_name("branch", name, ref, recorded, ledger):
                yield {"branch": name, "is": [ref.version]}

    def named(self, kind: Kind, name: str, *versions: str) -> None:
        """Note that a name leads to one of some versions, or, without any, that it was taken away."""
        self._write([{kind: name, "is": list(versions)}])

    def _write(self, records: Iterable[Mapping[str, Any]]) -> None:
        self._ledger.write([*([] if self._ledger.exists() else self._all_of_now()), *records])

    def _all_of_now(self) -> Iterator[dict[str, Any]]:
        """Yield lines for a store that has no ledger: it is taken as it is."""
        seen: set[str] = set()
        for kind in _KINDS:
            for name, ref in read_refs(self._root, kind).items():
                if ref.version is not None and not ref.is_deleted:
                    for record in self._unrecorded(ref.version, seen.__contains__):
                        seen.add(record["version"])
                        yield record
                    yield {kind: name, "is": [ref.version]}

    def _unrecorded(
        self, version: str | None, known: Callable[[str], bool]
    ) -> list[dict[str, Any]]:
        """Return lines for a version and what it builds upon, back to the first that is known, oldest first."""
        records: list[dict[str, Any]] = []
        while version is not None and not known(version):
            found = self._inspect(version)
            if found is None:
                break
            before = None if found.parent is None else self._inspect(found.parent)
            files = found.files(version) - (before.manifests if before else frozenset())
            sums = {file: file_sum(self._root / file) for file in sorted(files)}
            records.append(
                {
                    "version": version,
                    "parent": found.parent,
                    "files": {f: s for f, s in sums.items() if s is not None},
                }
            )
            version = found.parent
        return records[::-1]

    def _inspect(self, version: str) -> _Version | None:
        """Return what Icechunk says of a version.

        None if its snapshot is damaged, gone, or another one's.
        """
        try:
            found = json.loads(self._repository().inspect_snapshot(version, pretty=False))
        except (icechunk.IcechunkError, ValueError):
            return None
        if found["id"] != version:
            return None
        manifests = frozenset(f"manifests/{manifest['id']}" for manifest in found["manifests"])
        return _Version(
            found.get("parent_id"), manifests, frozenset(node["path"] for node in found["nodes"])
        )

    # -- reading -----------------------------------------------------------------------------------

    def damage_of(self, version: str) -> str:
        """Return what is wrong with the description of a version, in one line.

        Empty if it is as it was written.
        """
        file = f"snapshots/{version}"
        expected = self._ledger.read().sum_of(file)
        if expected is None or (found := file_sum(self._root / file)) == expected:
            return ""
        return _wrong_file(file, found, f"version {version} of {self._location}")

    def names(self, kind: Kind) -> Names:
        """Return all branches or tags, with what is wrong with those that cannot be read.

        While others write, what looks wrong may be a change that is half done: ask again under the
        commit lock.
        """
        versions, damaged = {}, {}
        ledger = self._ledger.read()  # before the files: a branch that is ahead of it is in order
        refs = read_refs(self._root, kind)
        if kind == "branch":
            refs.setdefault(MAIN, Ref(MAIN, file_of("branch", MAIN), None))
        for name, ref in refs.items():
            if ref.is_deleted:
                continue
            recorded = ledger.named(kind, name)
            problem = self._wrong_name(kind, name, ref, recorded, ledger)
            if (
                ref.version is None
                and not recorded
                and name != MAIN
                and not (self._root / ref.file).exists()
            ):
                continue  # being made, or its making was killed
            if problem or ref.version is None:
                damaged[name] = problem
            else:
                versions[name] = ref.version
        return Names(versions, damaged)

    def _wrong_name(
        self, kind: Kind, name: str, ref: Ref, recorded: list[str] | None, ledger: LedgerText
    ) -> str:
        what = f"{kind} {name!r} of {self._location}"
        was = f"; it named version {' or '.join(recorded)}" if recorded else ""
        if ref.version is None:
            state = "is damaged" if (self._root / ref.file).exists() else "is gone"
            mend = f': {{"snapshot":"{recorded[-1]}"}} is what belongs into it' if recorded else ""
            return f"{what} cannot be read: {ref.file} {state}{was}{mend}"
        if kind == "tag" and recorded == []:
            return (
                f"{what} is damaged: it was deleted, and {ref.file} is there again; delete the tag "
                "once more"
            )
        if not recorded or ref.version in recorded:
            return ""
        if kind == "tag":
            return f"{what} is damaged: {ref.file} names version {ref.version}{was} ({_ON_PURPOSE})"
        for version in self._ancestors(ref.version):
            if version in recorded:
                return ""
            if ledger.sum_of(f"snapshots/{version}") is not None:
                # a branch may be ahead by what a kill kept out of the ledger, not by what is in it
                break
        return (
            f"{what} is damaged: {ref.file} leads to version {ref.version}, but "
            f"{' or '.join(recorded)} is the newest that was committed to it, and can be opened by "
            f"its id ({_ON_PURPOSE})"
        )

    def _ancestors(self, version: str | None) -> Iterator[str]:
        while version is not None:
            yield version
            found = self._inspect(version)
            version = None if found is None else found.parent

    # -- all of it ---------------------------------------------------------------------------------

    def look(self) -> Sight:
        """Return names as they are, under the commit lock."""
        records = self._ledger.read().records()
        refs = {kind: read_refs(self._root, kind) for kind in _KINDS}
        return Sight(self._ledger.exists(), records, refs, tuple(self._wrong_names(records, refs)))

    def examine(self, seen: Sight) -> Iterator[str]:
        """Yield what is wrong with names, and with the files that describe versions, one line each."""
        records, versions = seen.records, self._reachable(seen)
        if not seen.has_ledger:
            if any(
                found is not None and f"/{TABLE}" in found.arrays for found in versions.values()
            ):
                _log.warning(
                    "%s has no %s: names and descriptions of versions are not compared with what "
                    "was written",
                    self._location,
                    LEDGER,
                )
        elif not records.files:
            yield f"{LEDGER} is damaged: it says nothing of any version"
        for number in records.damaged:
            yield f"{LEDGER} is damaged: line {number} is not what was written"
        yield from seen.wrong_names
        yield from self._wrong_files(records, versions)

    def _wrong_names(
        self, records: LedgerRecords, refs: Mapping[Kind, Mapping[str, Ref]]
    ) -> Iterator[str]:
        ledger = self._ledger.read()
        for kind in _KINDS:
            names, recorded = self.names(kind), records.tags if kind == "tag" else records.branches
            yield from names.damaged.values()
            gone = [
                name for name, versions in recorded.items() if versions and name not in refs[kind]
            ]
            for name in gone:
                if name not in names.damaged:
                    yield self._wrong_name(
                        kind, name, Ref(name, file_of(kind, name), None), recorded[name], ledger
                    )

    def _reachable(self, seen: Sight) -> dict[str, _Version | None]:
        """Return all versions that names lead to, or led to; None for one that cannot be read."""
        records = seen.records
        named = [
            ref.version
            for found in seen.refs.values()
            for ref in found.values()
            if not ref.is_deleted
        ]
        recorded = [
            version
            for names in (records.branches, records.tags)
            for are in names.values()
            for version in are
        ]
        versions: dict[str, _Version | None] = {}
        for start in (*named, *recorded):
            version = start
            while version is not None and version not in versions:
                found = versions[version] = self._inspect(version)
                version = records.parents.get(version) if found is None else found.parent
        return versions

    def _wrong_files(
        self, records: LedgerRecords, versions: Mapping[str, _Version | None]
    ) -> Iterator[str]:
        done: set[str] = set()
        for version, found in versions.items():
            whose = f"version {version} of {self._location}"
            if f"snapshots/{version}" not in records.files:
                _log.info(
                    "%s is not in %s: other software committed it, or a kill came in between",
                    whose,
                    LEDGER,
                )
            if found is None:
                done.add(f"snapshots/{version}")
                yield _wrong_file(
                    f"snapshots/{version}", file_sum(self._root / f"snapshots/{version}"), whose
                )
            for file in sorted((found or _NOTHING).files(version) - done):
                done.add(file)
                value = file_sum(self._root / file)
                if value is None or value != records.files.get(file, value):
                    yield _wrong_file(file, value, whose)


_NOTHING = _Version(None, frozenset(), frozenset())


def _wrong_file(file: str, found: str | None, whose: str) -> str:
    if found is None:
        return f"{whose} cannot be read: {file} is gone"
    return f"{whose} is damaged: {file} does not hold what was written ({_ON_PURPOSE})"
