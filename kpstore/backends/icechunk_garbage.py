"""Removing versions of an Icechunk repository, and the files that no version needs.

Icechunk does the work: its ``expire_snapshots`` ends histories behind the versions that are kept,
for which it writes the snapshot file of the oldest ones anew, and its ``garbage_collect`` removes
files. The ledger must not call that damage, whenever the process is killed. So a ledger without the
checksums of those snapshot files takes its place before, and one with their new checksums after.

What is left are rows behind the ends of versions (:mod:`kpstore.backends.icechunk_ends`), and equal
chunks of several versions (:mod:`kpstore.backends.icechunk_equal`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import icechunk

from kpstore.backends.garbage import Before, Garbage, kept_versions
from kpstore.backends.icechunk_ends import clear_ends
from kpstore.backends.icechunk_equal import share_equal_chunks
from kpstore.backends.icechunk_errors import translated
from kpstore.backends.icechunk_manifests import chunks_of_manifest
from kpstore.backends.icechunk_names import FOLDERS, read_refs
from kpstore.backends.icechunk_records import VersionRecords
from kpstore.errors import CorruptError, InvalidError


@dataclass(frozen=True)
class Histories:
    """All versions that names lead to, by id, and which of them are kept.

    Parameters
    ----------
    first : Icechunk's own empty version, which every history ends with.
    """

    versions: dict[str, icechunk.SnapshotInfo]
    kept: set[str]
    first: str

    @classmethod
    def read(cls, repository: icechunk.Repository, tips: list[str], old: datetime) -> Histories:
        """Return what named versions build upon."""
        found: dict[str, icechunk.SnapshotInfo] = {}
        first = ""
        for tip in tips:
            for info in repository.ancestry(snapshot_id=tip):
                if info.id in found:
                    break
                if info.parent_id is None:
                    first = info.id
                    break
                found[info.id] = info

        def about(version: str) -> tuple[str | None, datetime] | None:
            info = found.get(version)
            return None if info is None else (info.parent_id, info.written_at)

        return cls(found, kept_versions(tips, about, old), first)

    def oldest_first(self) -> list[str]:
        """Return the kept versions and Icechunk's own first one, parents before children."""
        kept = sorted(self.kept, key=lambda version: self.versions[version].written_at)
        return [self.first, *kept]

    def rewritten(self, old: datetime) -> set[str]:
        """Return the kept versions whose snapshot files Icechunk may write anew."""
        found = set()
        for version in self.kept:
            parent = self.versions.get(self.versions[version].parent_id or "")
            times = [self.versions[version].written_at, *([parent.written_at] if parent else [])]
            if min(times) < old:
                found.add(version)
        return found


def collect(root: Path, location: str, before: Before, *, apply: bool) -> Garbage:
    """Remove old versions and unneeded files, under the commit lock and without any writer.

    See :meth:`kpstore.backends.garbage.Collector.collect_garbage`.
    """
    tips = _tips(root, location)

    def opened() -> icechunk.Repository:
        # Anew, because an open repository goes on to show what it has read before.
        return icechunk.Repository.open(icechunk.local_filesystem_storage(str(root)))

    with translated(location):
        repository = opened()
        records = VersionRecords(root, location, lambda: repository)
        histories = Histories.read(repository, tips, before.versions)
        files = dict(_files(root))
        n_bytes = _bytes_of(files.values())
        needed = _needed(root, location, records, histories)
        gone = {
            file
            for file, about in files.items()
            if file not in needed and about.st_mtime < before.files.timestamp()
        }
        left = _bytes_of(about for file, about in files.items() if file not in gone)
        kept, freed = histories.kept, n_bytes - left
        if apply:
            records.keep_only(histories.oldest_first(), unsure=histories.rewritten(before.versions))
            repository.expire_snapshots(before.versions)
            repository.garbage_collect(before.files)
            repository = opened()
            now = Histories.read(repository, tips, datetime.min.replace(tzinfo=UTC))
            records.keep_only(now.oldest_first())
            _remove_staged(root, gone)
            clear_ends(repository, root, now.kept)
            share_equal_chunks(root)
            kept, freed = now.kept, n_bytes - _bytes_of(about for _, about in _files(root))
    versions = {Path(file).name for file in gone if file.startswith("snapshots/")}
    versions |= histories.versions.keys() - kept
    return Garbage(tuple(sorted(versions)), len(kept), n_bytes, freed)


def _remove_staged(root: Path, gone: Iterable[str]) -> None:
    """Remove the files under which killed writers wrote others, which Icechunk does not see."""
    for file in gone:
        if "#" in file:
            (root / file).unlink(missing_ok=True)


def _tips(root: Path, location: str) -> list[str]:
    """Return the versions that branches and tags name."""
    tips: dict[str, None] = {}
    for kind in ("branch", "tag"):
        for name, ref in read_refs(root, kind).items():
            if ref.version is None or ref.is_deleted:
                continue
            if not ref.given.isascii():
                raise InvalidError(
                    f"{kind} {name!r} of {location} was named by an older kpstore in a way that "
                    "Icechunk does not see, so nothing was removed; delete it first, and name its "
                    f"version {ref.version} anew if it is to stay"
                )
            tips[ref.version] = None
    return list(tips)


def _files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files of versions and chunks, as paths relative to the store."""
    for folder in FOLDERS:
        if (root / folder).is_dir():
            for entry in os.scandir(root / folder):
                yield f"{folder}/{entry.name}", entry.stat(follow_symlinks=False)


def _bytes_of(files: Iterable[os.stat_result]) -> int:
    """Return the size of files, each once however many names it has."""
    return sum({(about.st_dev, about.st_ino): about.st_size for about in files}.values())


def _needed(root: Path, location: str, records: VersionRecords, histories: Histories) -> set[str]:
    """Return the files that the kept versions need."""
    needed: set[str] = set()
    for version in histories.oldest_first():
        needed |= records.files_of(version)
    for manifest in sorted(file for file in needed if file.startswith("manifests/")):
        chunks = chunks_of_manifest(root / manifest)
        if chunks is None:
            raise CorruptError(
                f"{location}: {manifest} cannot be read, so nothing was removed; see 'kpstore "
                "verify --all'"
            )
        needed.update(f"chunks/{chunk}" for chunk in chunks)
    return needed
