"""The ledger of an Icechunk repository: how it is written, and compared with the repository."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import icechunk

from kpstore.backends.base import MAIN
from kpstore.backends.checksums import TABLE
from kpstore.backends.icechunk_manifests import nodes_of
from kpstore.backends.icechunk_names import Kind, Names, Ref, file_of, read_refs
from kpstore.backends.ledger import Ledger, LedgerRecords, LedgerText, file_sum
from kpstore.errors import CorruptError
from kpstore.visible import logger

_log = logger(__name__)

LEDGER = "kpstore/ledger"
_ON_PURPOSE = f"if other software did this on purpose, delete {LEDGER}"
_KINDS: tuple[Kind, Kind] = ("branch", "tag")


class _Version(NamedTuple):
    """A version as Icechunk describes it: its parent and its manifests."""

    parent: str | None
    manifests: frozenset[str]

    def files(self, version: str) -> frozenset[str]:
        """Return the paths of all files that describe it; a first version has no transaction."""
        transaction = [] if self.parent is None else [f"transactions/{version}"]
        return frozenset([f"snapshots/{version}", *transaction, *self.manifests])


class VersionRecords:
    """Writes the ledger of a repository, and compares the repository with it.

    Parameters
    ----------
    root : directory of the repository.
    location : the directory as the user gave it, for messages.
    repository : opens the repository.
    """

    def __init__(
        self, root: Path, location: str, repository: Callable[[], icechunk.Repository]
    ) -> None:
        self._root, self._location, self._repository = root, location, repository
        self._ledger = Ledger(root / LEDGER)

    # -- writing, under the commit lock ------------------------------------------------------------

    def committed(self, branch: str, version: str) -> None:
        """Record a commit, and its ancestors that are not in the ledger yet."""
        ledger = self._ledger.read()
        records = self._unrecorded(
            version, lambda known: ledger.sum_of(f"snapshots/{known}") is not None
        )
        *older, newest = records or [{}]
        # Another branch may be ahead of the ledger by the same ancestors. Once they are recorded,
        # it would look as if it led to other versions.
        others = self._ahead(ledger, but=branch) if older else ()
        self._write([*others, *older, {"branch": branch, "is": [version], **newest}])

    def _ahead(self, ledger: LedgerText, but: str) -> Iterator[dict[str, object]]:
        """Yield lines for branches that are ahead of the ledger."""
        for name, ref in read_refs(self._root, "branch").items():
            recorded = ledger.named("branch", name)
            if name == but or ref.version is None or not recorded or ref.version in recorded:
                continue
            if not self._wrong_name("branch", name, ref, recorded, ledger):
                yield {"branch": name, "is": [ref.version]}

    def named(self, kind: Kind, name: str, *versions: str, ahead: bool = False) -> None:
        """Record the versions that a name may lead to; without versions, that it was deleted.

        ``ahead`` is as for :meth:`kpstore.backends.ledger.Ledger.write`.
        """
        self._write([{kind: name, "is": list(versions)}], ahead=ahead)

    def keep_only(self, versions: Sequence[str], unsure: Collection[str] = ()) -> None:
        """Replace the ledger by one of these versions and the present names.

        Known checksums of files stay; others are of what the files hold now.

        Parameters
        ----------
        versions : oldest first.
        unsure : versions whose snapshot files may change before the next call, so that nothing is
            to be compared with them.
        """
        known, told = self._ledger.read().records().files, set[str]()
        records: list[dict[str, object]] = []
        for version in versions:
            found = self._described(version)
            files = found.files(version) - told
            told |= files
            if version in unsure:
                files -= {f"snapshots/{version}"}
            sums = {file: known.get(file) or file_sum(self._root / file) for file in sorted(files)}
            records.append(
                {
                    "version": version,
                    "parent": found.parent,
                    "files": {f: s for f, s in sums.items() if s is not None},
                }
            )
        for kind in _KINDS:
            for name, ref in read_refs(self._root, kind).items():
                if ref.version is not None:
                    records.append({kind: name, "is": [] if ref.is_deleted else [ref.version]})
        self._ledger.replace(records)

    def files_of(self, version: str) -> frozenset[str]:
        """Return the paths of the files that describe a version; :class:`CorruptError` if none."""
        return self._described(version).files(version)

    def _described(self, version: str) -> _Version:
        found = self._inspect(version)
        if found is None:
            raise CorruptError(f"version {version} of {self._location} cannot be read")
        return found

    def _write(self, records: Iterable[Mapping[str, object]], *, ahead: bool = False) -> None:
        before = [] if self._ledger.exists() else self._all_of_now()
        self._ledger.write([*before, *records], ahead=ahead)

    def _all_of_now(self) -> Iterator[dict[str, object]]:
        """Yield lines for a store that has no ledger, whose present state is trusted."""
        seen: set[object] = set()
        for kind in _KINDS:
            for name, ref in read_refs(self._root, kind).items():
                if ref.version is not None and not ref.is_deleted:
                    for record in self._unrecorded(ref.version, seen.__contains__):
                        seen.add(record["version"])
                        yield record
                    yield {kind: name, "is": [ref.version]}

    def _unrecorded(
        self, version: str | None, known: Callable[[str], bool]
    ) -> list[dict[str, object]]:
        """Return lines for a version and its ancestors up to the first known one, oldest first."""
        records: list[dict[str, object]] = []
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
        """Return a version; None if its snapshot is damaged, missing, or of another version."""
        try:
            found = next(self._repository().ancestry(snapshot_id=version))
        except (icechunk.IcechunkError, ValueError):
            return None
        if found.id != version:
            return None
        manifests = frozenset(f"manifests/{manifest.id}" for manifest in found.manifests)
        return _Version(found.parent_id, manifests)

    # -- reading -----------------------------------------------------------------------------------

    def check_snapshot(self, version: str) -> None:
        """Raise :class:`CorruptError` if the snapshot of a version is not what was written."""
        file = f"snapshots/{version}"
        for _ in range(2):  # garbage collection may have changed one of the two meanwhile
            expected, found = self._ledger.read().sum_of(file), file_sum(self._root / file)
            if expected is None or found == expected:
                return
        raise CorruptError(_wrong_file(file, found, f"version {version} of {self._location}"))

    def was_removed(self, version: str) -> bool:
        """Return whether garbage collection has removed a version; lost files are damage."""
        file = f"snapshots/{version}"
        there = (self._root / file).exists()
        return not there and self._ledger.exists() and self._ledger.read().sum_of(file) is None

    def names(self, kind: Kind) -> Names:
        """Return all branches or tags, and the problems of those that are damaged.

        While another process writes, a problem may be a change that is not complete yet: call this
        again under the commit lock.
        """
        versions, damaged = {}, {}
        ledger = self._ledger.read()  # before the files: a branch may be ahead of the ledger
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
                continue  # it is being created, or its creator was killed
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
            mend = f'; it should hold {{"snapshot":"{recorded[-1]}"}}' if recorded else ""
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
                # A branch that is ahead of the ledger leads there by versions that are not in it.
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

    def examine(self, quiet: AbstractContextManager[None]) -> Iterator[str]:
        """Yield what is wrong with names and with the files that describe versions.

        ``quiet`` excludes commits while names and the ledger are read.
        """
        with quiet:
            has_ledger, records = self._ledger.exists(), self._ledger.read().records()
            refs = {kind: read_refs(self._root, kind) for kind in _KINDS}
            wrong_names = list(self._wrong_names(records, refs))
        versions = self._reachable(records, refs)
        if not has_ledger:
            sound = (version for version, found in versions.items() if found is not None)
            if any(TABLE in (nodes_of(self._repository(), version) or ()) for version in sound):
                _log.warning(
                    "%s has no %s: names and descriptions of versions cannot be checked",
                    self._location,
                    LEDGER,
                )
        elif not records.files:
            yield f"{LEDGER} is damaged: it describes no version"
        for number in records.damaged:
            yield f"{LEDGER} is damaged: line {number} is not what was written"
        yield from wrong_names
        yield from self._wrong_files(records, versions)

    def _wrong_names(
        self, records: LedgerRecords, refs: Mapping[Kind, Mapping[str, Ref]]
    ) -> Iterator[str]:
        ledger = self._ledger.read()
        for kind in _KINDS:
            names = self.names(kind)
            yield from names.damaged.values()
            for name, versions in records.names[kind].items():
                if versions and name not in refs[kind] and name not in names.damaged:
                    gone = Ref(name, file_of(kind, name), None)
                    yield self._wrong_name(kind, name, gone, versions, ledger)

    def _reachable(
        self, records: LedgerRecords, refs: Mapping[Kind, Mapping[str, Ref]]
    ) -> dict[str, _Version | None]:
        """Return all versions that names lead to, or led to; None for one that cannot be read."""
        all_refs = [ref for found in refs.values() for ref in found.values()]
        named = [[ref.version] for ref in all_refs if not ref.is_deleted]
        recorded = [versions for names in records.names.values() for versions in names.values()]
        reached: dict[str, _Version | None] = {}
        for start in itertools.chain(*named, *recorded):
            version = start
            while version is not None and version not in reached:
                found = reached[version] = self._inspect(version)
                version = records.parents.get(version) if found is None else found.parent
        return reached

    def _wrong_files(
        self, records: LedgerRecords, versions: Mapping[str, _Version | None]
    ) -> Iterator[str]:
        done: set[str] = set()
        for version, found in versions.items():
            whose = f"version {version} of {self._location}"
            if f"snapshots/{version}" not in records.files:
                _log.info(
                    "%s is not in %s: other software committed it, or its writer was killed",
                    whose,
                    LEDGER,
                )
            files = found.files(version) if found else {f"snapshots/{version}"}
            for file in sorted(files - done):
                done.add(file)
                value = file_sum(self._root / file)
                if found is None or value is None or value != records.files.get(file, value):
                    yield _wrong_file(file, value, whose)


def _wrong_file(file: str, found: str | None, whose: str) -> str:
    if found is None:
        return f"{whose} cannot be read: {file} is gone"
    return f"{whose} is damaged: {file} does not hold what was written ({_ON_PURPOSE})"
