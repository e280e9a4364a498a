"""Object storage for tests: moto's server of S3, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_SERVE = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()  # ends with the process that started this one
"""
KEYS = {"AWS_ACCESS_KEY_ID": "kpstore-tests", "AWS_SECRET_ACCESS_KEY": "very-secret"}


class Bucket(NamedTuple):
    """A bucket of a server that a test may use alone."""

    endpoint: str
    name: str

    def address(self, prefix: str = "phoenix.kps") -> str:
        """Return the address of a store in it."""
        return f"s3://{self.name}/{prefix}?endpoint={self.endpoint}"


@contextmanager
def served() -> Iterator[str]:
    """Yield the endpoint of a new server."""
    env = {**os.environ, **KEYS}
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as server:
        assert server.stdout is not None
        host, port = server.stdout.readline().split()
        try:
            yield f"http://{host.decode()}:{int(port)}"
        finally:
            server.kill()


def new_bucket(endpoint: str) -> Bucket:
    """Make a bucket of a name that nobody else has."""
    name = f"kpstore-{uuid.uuid4().hex[:12]}"
    # Moto makes a bucket for a plain request; Amazon's own client takes a while to begin.
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")):
        return Bucket(endpoint, name)
