"""A folder served as a bucket of S3, for reading alone, with a delay before each answer.

``python -m benchmarks.slow_storage FOLDER --delay-ms 20`` prints its port. It counts what it is
asked for: ``GET /stats`` returns that as JSON, and begins anew. With ``--busy-every 3``, each third
request is told to slow down.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Server:
    """Serves the files of a folder as ``/bucket/name``.

    Parameters
    ----------
    delay_s : from a request to the first byte of its answer.
    busy_every : of so many requests one is refused for now; 0 for none.
    """

    def __init__(self, folder: Path, delay_s: float, busy_every: int = 0) -> None:
        self._folder, self._delay_s = folder.resolve(), delay_s
        self._busy_every, self._n_requests = busy_every, 0
        self._begin()
        self._now = 0

    def _begin(self) -> None:
        self._names: dict[str, int] = {}
        self._most = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                await self._answer(method, unquote(urlsplit(target).path), fields, writer)
        writer.close()

    async def _answer(
        self, method: str, path: str, fields: dict[str, str], writer: asyncio.StreamWriter
    ) -> None:
        if path == "/stats":
            stats = {"requests": sum(self._names.values()), "most": self._most}
            chunks = {name: n for name, n in self._names.items() if "/chunks/" in name}
            stats |= {"chunk_requests": sum(chunks.values()), "chunks": len(chunks)}
            self._begin()
            await _send(writer, "200 OK", json.dumps(stats).encode())
            return
        self._now += 1
        self._most = max(self._most, self._now)
        try:
            await asyncio.sleep(self._delay_s)
            self._n_requests += 1
            if self._busy_every and self._n_requests % self._busy_every == 0:
                body = b"<Error><Code>SlowDown</Code></Error>"
                await _send(writer, "503 Slow Down", body)
                return
            self._names[path] = self._names.get(path, 0) + 1
            await self._send_file(method, path, fields.get("range"), writer)
        finally:
            self._now -= 1

    async def _send_file(
        self, method: str, path: str, wanted: str | None, writer: asyncio.StreamWriter
    ) -> None:
        file = self._folder.joinpath(*path.split("/")[2:])
        if not file.is_file():
            await _send(writer, "404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>")
            return
        size = file.stat().st_size
        first, last = 0, size - 1
        if wanted:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        lines = [
            "HTTP/1.1 206 Partial Content" if wanted else "HTTP/1.1 200 OK",
            f"Content-Length: {last - first + 1}",
            f"Last-Modified: {formatdate(file.stat().st_mtime, usegmt=True)}",
            f'ETag: "{file.stat().st_mtime_ns:x}"',
            *([f"Content-Range: bytes {first}-{last}/{size}"] if wanted else []),
        ]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await writer.drain()
        if method == "GET":
            with file.open("rb") as opened:
                loop = asyncio.get_running_loop()
                await loop.sendfile(writer.transport, opened, first, last - first + 1)


async def _send(writer: asyncio.StreamWriter, status: str, content: bytes) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()


async def _run(folder: Path, delay_s: float, busy_every: int) -> None:
    server = Server(folder, delay_s, busy_every)
    served = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    print(served.sockets[0].getsockname()[1], flush=True)
    await served.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--busy-every", type=int, default=0)
    args = parser.parse_args()
    asyncio.run(_run(args.folder, args.delay_ms / 1e3, args.busy_every))
