"""A file of a repository for whoever asks for it: from its copy, or fetched once for all who want it now.

The first who asks for an address that has no copy begins a :class:`Download`, whose thread writes into a file at the
repository's pace; all who want it read from that file at their own, so a template that is slow or hostile holds up
nobody. A download that ends early, is too slow, or that nobody waits for any more leaves nothing, and those who read
it get less than they were promised, never a file that looks whole.

The repository is asked in the proxy's own words. Of what a template sends only the address has an influence, and the
address is what the copy is kept under.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time

from insula_agent.log import log
from insula_agent.net.updates_cache import INDEX, Copy, Damaged, Part, Store, digest_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Callable

MAX_DOWNLOADS = 32
"""At a time; what is asked for beyond is passed on without being kept."""
WAIT_S = 60.0
"""Without a byte from the repository."""
LIFE_LIMIT_S = 3600.0
"""Of one file (MC-95)."""
PIECE = 65536
SEND_PIECE = 1 << 20
_SHA256_DIGITS = 64


class Failed(Exception):
    """The rest of a file does not come."""


class Download:
    """A file on its way."""

    def __init__(self) -> None:
        self.copy: Copy | None = None
        """What it is, once the repository has answered and if it is one to keep."""
        self.is_doubted = False
        """Somebody complained meanwhile."""
        self._part: Part | None = None
        """Open as long as it is here."""
        self._changed = threading.Condition()
        self._readers = 0
        self._done = 0
        self._is_answered = False
        self._is_over = False

    # --- whoever fetches -----------------------------------------------------------------------------------------

    def answered(self, copy: Copy | None, part: Part | None = None) -> None:
        """``copy`` without ``part``: it was there. Neither: what came is not to be kept."""
        with self._changed:
            self.copy, self._part = copy, part
            self._is_answered = True
            self._changed.notify_all()

    def came(self, count: int) -> bool:
        """So many bytes more are in the file; whether anybody wants the rest."""
        with self._changed:
            self._done += count
            self._changed.notify_all()
            return self._readers > 0

    def over(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._is_over = self._is_answered = True
            if self._part is not None:
                os.close(self._part.fd)
                self._part = None
            self._changed.notify_all()

    # --- whoever reads -------------------------------------------------------------------------------------------

    def join(self) -> None:
        with self._changed:
            self._readers += 1

    def leave(self) -> None:
        with self._changed:
            self._readers -= 1

    def reader(self) -> Reader | None:
        """One more that reads it, who has joined before; None: it is not kept, or over, or not answered in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_answered, WAIT_S)
            if self._part is None:
                return None
            return Reader(self._part.copy, os.dup(self._part.fd), self._part.start, self)

    def wait_beyond(self, position: int) -> int:
        """How many bytes are there, more than ``position``. :raise Failed:"""
        with self._changed:
            self._changed.wait_for(lambda: self._done > position or self._is_over, WAIT_S)
            if self._done <= position:
                raise Failed("the rest did not come")
            return self._done


class Reader:
    """One who gets a file, from its copy or while it comes."""

    def __init__(self, copy: Copy, fd: int, start: int, download: Download | None) -> None:
        self.copy = copy
        self.is_copy = download is None
        self._file = os.fdopen(fd, "rb", buffering=0)
        self._start = start
        self._download = download

    def send(self, connection: socket.socket, first: int) -> None:
        """Send all from byte ``first`` on. :raise Failed, OSError: the receiver has less."""
        deadline = time.monotonic() + LIFE_LIMIT_S
        position = first
        while position < self.copy.size:
            end = self.copy.size if self._download is None else self._download.wait_beyond(position)
            while position < end:
                if time.monotonic() > deadline:
                    raise Failed("its receiver is too slow")
                count = connection.sendfile(self._file, self._start + position, min(end - position, SEND_PIECE))
                if not count:
                    raise Failed("its file has ended")
                position += count

    def close(self) -> None:
        self._file.close()
        if self._download is not None:
            self._download.leave()


class Upstream:
    """A repository's answer, with its connection."""

    def __init__(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        self.connection = connection
        self.answer = answer

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


class Cache:
    """Copies, and what is being fetched now."""

    def __init__(self, store: Store, ask: Callable[[str, int, str, dict[str, str]], Upstream]) -> None:
        """``ask``: host, port, path, headers → answer; may raise OSError, HTTPException."""
        self._store = store
        self._ask = ask
        self._lock = threading.Lock()
        self._running: dict[str, Download] = {}

    def get(self, place: tuple[str, int, str], rule: str, *, is_complaint: bool) -> Reader | Upstream | None:
        """A file; or an answer that is not to be kept, for this one asker alone; or None: it must ask by itself.

        :param is_complaint: the asker does not want a copy from before.
        :raise OSError, HTTPException: the repository cannot be reached.
        """
        host, _, path = place
        url = f"http://{host}{path}"
        try:
            Copy(url, 0)
        except ValueError:
            return None
        with self._lock:
            download = self._running.get(url)
            if download is not None and is_complaint:
                download.is_doubted = True
                return None
            if download is not None:
                download.join()
            else:
                found = None if is_complaint else self._store.find(url)
                if found is not None and rule != INDEX:
                    return Reader(*found, None)
                if len(self._running) >= MAX_DOWNLOADS:
                    if found is not None:
                        os.close(found[1])
                    return None
                mine = self._running[url] = Download()
                mine.join()
        if download is not None:
            return self._follow(download, url)
        return self._lead(mine, place, url, found)

    def _follow(self, download: Download, url: str) -> Reader | None:
        """Read what another one fetches."""
        reader = None
        try:
            reader = download.reader()
        finally:
            if reader is None:
                download.leave()
        if reader is not None:
            return reader
        found = None if download.copy is None else self._store.find(url)
        return None if found is None else Reader(*found, None)

    def _lead(
        self, download: Download, place: tuple[str, int, str], url: str, found: tuple[Copy, int, int] | None
    ) -> Reader | Upstream | None:
        """Ask the repository."""
        headers = {"User-Agent": "insula-updates", "Accept": "*/*", "Connection": "close"}
        if found is not None:
            headers.update(_conditions(found[0]))
        part: Part | None = None
        is_begun = False
        try:
            upstream = self._ask(*place, headers)
            if found is not None and upstream.answer.status == http.client.NOT_MODIFIED:
                upstream.close()
                download.answered(found[0])
                copied, found = Reader(*found, None), None
                return copied
            part = self._part_for(url, upstream.answer)
            if part is None:
                return upstream
            download.answered(part.copy, part)
            reader = download.reader()
            threading.Thread(target=self._fetch, args=(download, part, upstream, place[2]), daemon=True).start()
            is_begun = True
            return reader
        finally:
            if found is not None:
                os.close(found[1])
            if not is_begun:
                self._end(download, url)
                if part is not None:
                    self._store.drop(part)

    def _part_for(self, url: str, answer: http.client.HTTPResponse) -> Part | None:
        """Where a whole file of known length goes; None: it is none, or there is no room."""
        if answer.status != http.client.OK or answer.length is None or answer.getheader("Content-Encoding"):
            return None
        try:
            copy = Copy(url, answer.length, answer.getheader("ETag", ""), answer.getheader("Last-Modified", ""))
        except ValueError:
            return None
        return self._store.begin(copy)

    def _fetch(self, download: Download, part: Part, upstream: Upstream, path: str) -> None:
        """Write what comes, keep it if it is whole; a thread of its own."""
        is_kept = False
        try:
            _receive(download, part, upstream.answer, digest_in(path))
            self._store.keep(part)
            is_kept = True
        except (Failed, Damaged, OSError, http.client.HTTPException) as error:
            log(f"updates cache: {part.copy.url}: {error}")
        finally:
            upstream.close()
            self._end(download, part.copy.url)
            if not is_kept:
                self._store.drop(part)

    def _end(self, download: Download, url: str) -> None:
        with self._lock:
            del self._running[url]
            if download.is_doubted:
                self._store.forget(url)
        download.over()


def _conditions(copy: Copy) -> dict[str, str]:
    """Headers by which a repository says only whether a copy is still valid."""
    if copy.etag:
        return {"If-None-Match": copy.etag}
    return {"If-Modified-Since": copy.modified} if copy.modified else {}


def _receive(download: Download, part: Part, answer: http.client.HTTPResponse, expected: str) -> None:
    """:raise Failed, Damaged, OSError, HTTPException: it is not whole, or not what its name says."""
    digest = hashlib.new("sha256" if len(expected) == _SHA256_DIGITS else "sha512") if expected else None
    deadline = time.monotonic() + LIFE_LIMIT_S
    done = 0
    while done < part.copy.size:
        piece = answer.read1(min(PIECE, part.copy.size - done))
        if not piece:
            raise Failed("it ended early")
        if time.monotonic() > deadline:
            raise Failed("it is too slow")
        view = memoryview(piece)
        while view:
            written = os.pwrite(part.fd, view, part.start + done)
            done += written
            view = view[written:]
        if digest is not None:
            digest.update(piece)
        if not download.came(len(piece)):
            raise Failed("nobody wants the rest")
    if digest is not None and digest.hexdigest() != expected:
        raise Damaged("its hash is not the one in its name")
