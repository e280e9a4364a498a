"""Reservations in object storage: one holder, renewed, taken over only when it has ended."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kpstore.backends import object_lease
from kpstore.backends.object_address import parse_address
from kpstore.backends.object_files import ObjectFiles
from kpstore.backends.object_lease import FREE, Lease
from kpstore.errors import BusyError
from tests.object_storage import Bucket
from tests.processes import until


@pytest.fixture
def files(bucket: Bucket) -> ObjectFiles:
    return ObjectFiles(parse_address(bucket.address()))


def holder(files: ObjectFiles) -> dict[str, object]:
    return dict(json.loads(files.read("kpstore/writer")))


def test_a_second_holder_is_refused_and_told_of_the_first(files: ObjectFiles) -> None:
    lease = Lease(files, "kpstore/writer")
    with lease.held("a test", wait=False):
        assert lease.is_held()
        another = Lease(files, "kpstore/writer").held("another", wait=False)
        with pytest.raises(BusyError, match="another process \\(a test, process"), another:
            pass
    assert not lease.is_held()
    assert files.read("kpstore/writer") == FREE
    with lease.held("once more", wait=False) as held:
        held.check()


def test_what_a_killed_process_held_is_free_at_once(files: ObjectFiles, bucket: Bucket) -> None:
    code = (
        "import sys\n"
        "from kpstore.backends.object_address import parse_address\n"
        "from kpstore.backends.object_files import ObjectFiles\n"
        "from kpstore.backends.object_lease import Lease\n"
        "files = ObjectFiles(parse_address(sys.argv[1]))\n"
        "with Lease(files, 'kpstore/writer').held('x', wait=False):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, bucket.address()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        lease = Lease(files, "kpstore/writer")
        assert lease.is_held()
        process.kill()
        process.wait()
    assert not lease.is_held()
    with lease.held("after it", wait=False):
        assert holder(files)["purpose"] == "after it"


def test_another_machines_holder_keeps_it_until_it_was_not_renewed_for_long(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(files, "kpstore/writer")
    files.write("kpstore/writer", json.dumps({"machine": "elsewhere", "pid": 1}).encode())
    assert lease.is_held()
    with pytest.raises(BusyError, match="does not say which"), lease.held("me", wait=False):
        pass
    monkeypatch.setattr(object_lease, "STALE_S", -1.0)  # as if it were long ago
    assert not lease.is_held()
    with lease.held("me", wait=False):
        assert holder(files)["purpose"] == "me"


def test_it_is_renewed_and_its_loss_is_noticed(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_lease, "RENEW_S", 0.02)
    with Lease(files, "kpstore/writer").held("a test", wait=False) as held:
        _until(lambda: bool(holder(files)["renewed"]))
        held.check()
        files.write("kpstore/writer", json.dumps({"machine": "elsewhere"}).encode())
        _until(lambda: held.is_lost)
        with pytest.raises(BusyError, match="nothing more was written, repeat it"):
            held.check()
    assert holder(files) == {"machine": "elsewhere"}  # what is another one's stays


def _until(happened: object) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        until(happened, process)  # type: ignore[arg-type]
        process.kill()
