"""The proxy of a net qube through which templates reach package repositories, and nothing else (agent-services §7).

It listens on the loopback only; who may connect is decided by policy (``qubes.UpdatesProxy``), where to by lists of
hosts in :data:`ALLOWED`: a template that was taken over can fetch packages, not send things anywhere. What comes back
is not looked at: the package manager checks signatures.

With the service ``updates-cache`` it keeps copies, so that many templates fetch a file once
(:mod:`insula_agent.net.updates_fetch`). In a Tor gateway everything goes to ``tor`` by a port that it has for this
proxy; the rules of the role let nothing past it.

Run by path with ``python3 -I -S``; one thread a connection, at most :data:`MAX_CONNECTIONS`.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

if __name__ == "__main__":
    sys.path.insert(0, os.path.abspath(__file__ + "/../../.."))

from insula_agent.log import log
from insula_agent.net.roles import TOR, UPDATES_PORT
from insula_agent.net.socks import Negotiation
from insula_agent.net.updates_cache import Store, rule_of
from insula_agent.net.updates_fetch import Cache, Failed, Reader, Upstream
from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

ADDRESS = ("127.0.0.1", 8082)
"""agent-services §7."""
ALLOWED = "/etc/insula/updates-proxy.d"
"""Folder of ``*.conf``: a host a line, ``*.example.org`` for all below one; ``#`` begins a comment line."""
MAX_CONNECTIONS = 32
MAX_HOSTS = 1000
PORTS = {"http": 80, "https": 443}
IDLE_LIMIT_S = 60.0
"""Without a byte in either direction."""
LIFE_LIMIT_S = 3600.0
"""Of one request: slower than this is as good as endless (MC-95)."""
MAX_BODY = 4 << 30
"""Bytes of one file; the largest packages have 2 GiB."""
PIECE = 65536
SERVICES = "/run/qubes-service"
CACHE_SERVICE = "updates-cache"
CACHE_VARIABLE = "CACHE_DIRECTORY"
"""Names the folder for copies; systemd sets it (insula-updates-proxy.service)."""
MAX_RANGE_DIGITS = 15
_HOP_BY_HOP = frozenset(
    (
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    )
)  # fmt: skip
"""Headers that concern one connection only (RFC 9110 §7.6.1)."""


_HOST_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-")


class Refused(Exception):
    """Not a place that templates may reach; the message is for the package manager."""


def read_allowed(folder: str = ALLOWED) -> list[str]:
    """Host patterns of all files, in lower case."""
    found: list[str] = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if name.endswith(".conf"):
            with open(f"{folder}/{name}", encoding="utf-8", errors="replace") as file:
                lines = [line.strip().lower() for line in file]
            found += [line for line in lines if line and not line.startswith("#")]
    return found[:MAX_HOSTS]


def is_allowed(host: str, patterns: list[str]) -> bool:
    """Whether a host is one of those, exactly or below ``*.``."""
    host = host.lower().rstrip(".")
    if not _HOST_LETTERS.issuperset(host):
        return False
    return any(host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:])) for pattern in patterns)


def target_of(method: str, untrusted_target: str, patterns: list[str]) -> tuple[str, int, str]:
    """Host, port and path of a request to a proxy. :raise Refused:"""
    if method == "CONNECT":
        host, _, port_text = untrusted_target.rpartition(":")
        scheme, path = "https", ""
    else:
        try:
            parts = urlsplit(untrusted_target)
            host, port_text = parts.hostname or "", str(parts.port or "")
        except ValueError as error:
            raise Refused(f"not an address: {error}") from error
        scheme, path = parts.scheme, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    port = PORTS.get(scheme)
    if port is None or (method != "CONNECT" and scheme != "http"):
        raise Refused("only http, and https by CONNECT")
    if port_text not in ("", str(port)):
        raise Refused(f"port {port_text[:5]} is none of package repositories")
    if not host or not is_allowed(host, patterns):
        raise Refused(f"{host[:253]!a} is not among the hosts that templates may reach ({ALLOWED})")
    return host, port, path


def connect(host: str, port: int) -> socket.socket:
    """:raise OSError: nobody there. :raise Refused: the name leads back into this qube."""
    connection = socket.create_connection((host, port), IDLE_LIMIT_S)
    peer = connection.getpeername()[0]
    if peer.startswith("127.") or peer in ("::1", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        connection.close()
        raise Refused(f"{host!a} is this qube")
    return connection


def connect_through_tor(host: str, port: int) -> socket.socket:
    """The same by ``tor``, with circuits of the host's own; it has no way to this qube. :raise OSError:"""
    negotiation = Negotiation(host, port, host)
    connection = socket.create_connection(("127.0.0.1", UPDATES_PORT), IDLE_LIMIT_S)
    try:
        connection.sendall(negotiation.first)
        while negotiation.wanted:
            untrusted_data = b""
            while len(untrusted_data) < negotiation.wanted:
                piece = connection.recv(negotiation.wanted - len(untrusted_data))
                if not piece:
                    raise ConnectionError("tor has ended the connection")
                untrusted_data += piece
            connection.sendall(negotiation.receive(untrusted_data))
    except OSError:
        connection.close()
        raise
    return connection


class Wish(Value):
    """What a package manager says with its request, as far as copies are concerned."""

    __slots__ = ("first", "is_complaint", "is_for_copies", "known", "validator")
    is_for_copies: bool
    """Whether a copy can be the answer."""
    is_complaint: bool
    """It does not want what was kept before."""
    first: int
    """Byte to begin with."""
    validator: str
    """The rest is wanted only of a file that has this; empty: of any."""
    known: tuple[str, str]
    """ETag and time of what it has already, each empty if it said none."""

    def __init__(self, get: Callable[[str, str], str]) -> None:
        """``get``: name of a header and what it is if absent → untrusted value."""
        control = {word.strip().lower() for word in f"{get('Cache-Control', '')},{get('Pragma', '')}".split(",")}
        untrusted_range = get("Range", "")
        digits = untrusted_range[len("bytes=") : -1]
        is_rest = digits.isascii() and digits.isdigit() and len(digits) <= MAX_RANGE_DIGITS
        is_rest = is_rest and untrusted_range == f"bytes={digits}-"
        self._fill(
            is_for_copies=(
                "no-store" not in control
                and (is_rest or not untrusted_range)
                and not get("Authorization", "")
                and not get("Cookie", "")
            ),
            is_complaint="no-cache" in control,
            first=int(digits) if is_rest else 0,
            validator=get("If-Range", ""),
            known=(get("If-None-Match", ""), get("If-Modified-Since", "")),
        )

    def first_of(self, etag: str, modified: str) -> int:
        """Where to begin in a file that has these."""
        return self.first if self.validator in ("", etag or None, modified or None) else 0

    def has(self, etag: str, modified: str) -> bool:
        """Whether it has that file already."""
        known_etag, known_time = self.known
        if known_etag:
            return known_etag == etag
        return bool(known_time) and known_time == modified


class Handler(BaseHTTPRequestHandler):
    """One connection of a package manager."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_LIMIT_S
    server: Proxy
    origin = ""
    """Where what is sent comes from, for the log."""

    def do_GET(self) -> None:
        self.origin = ""
        if self.server.cache is None or not self._answer_from(self.server.cache):
            self._forward()

    def do_HEAD(self) -> None:
        self._forward()

    def do_CONNECT(self) -> None:
        try:
            host, port, _ = target_of("CONNECT", self.path, self.server.patterns)
            upstream = self.server.connect(host, port)
        except (Refused, OSError) as error:
            self._fail(error)
            return
        with upstream:
            self.send_response(200, "Connection established")
            self.end_headers()
            tunnel(self.connection, upstream)
        self.close_connection = True

    def _forward(self) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            host, port, path = target_of(self.command, self.path, self.server.patterns)
            upstream = self.server.ask(host, port, path, {**headers, "Connection": "close"}, self.command)
        except (Refused, OSError, http.client.HTTPException) as error:
            self._fail(error)
            return
        self._pass_on_all(upstream)

    def _answer_from(self, cache: Cache) -> bool:
        """Answer by a copy, or by what becomes one; whether that was done."""
        wish = Wish(self.headers.get)
        try:
            place = target_of("GET", self.path, self.server.patterns)
            rule = rule_of(place[2])
            if rule is None or not wish.is_for_copies:
                return False
            found = cache.get(place, rule, is_complaint=wish.is_complaint)
        except (Refused, OSError, http.client.HTTPException) as error:
            self._fail(error)
            return True
        if found is None:
            return False
        if isinstance(found, Upstream):
            self._pass_on_all(found)
            return True
        try:
            self._send(found, wish)
        finally:
            found.close()
        return True

    def _send(self, reader: Reader, wish: Wish) -> None:
        copy = reader.copy
        self.origin = " (a copy)" if reader.is_copy else " (to be a copy)"
        first = wish.first_of(copy.etag, copy.modified)
        if wish.has(copy.etag, copy.modified):
            status, size = 304, 0
        elif first and first >= copy.size:
            status, size = 416, 0
        else:
            status, size = 206 if first else 200, copy.size - first
        self.send_response(status)
        for name, value in (("ETag", copy.etag), ("Last-Modified", copy.modified)):
            if value:
                self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{copy.size - 1}/{copy.size}")
        elif status == 416:
            self.send_header("Content-Range", f"bytes */{copy.size}")
        if status != 304:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(size))
        self.end_headers()
        if size:
            try:
                reader.send(self.connection, first)
            except (Failed, OSError) as error:
                # It has less than it was promised, and sees that.
                self.log_message("%s: %s", self.requestline[:200], error)
                self.close_connection = True

    def _pass_on_all(self, upstream: Upstream) -> None:
        try:
            self._pass_on(upstream.answer)
        finally:
            upstream.close()

    def _pass_on(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP and name.lower() not in ("date", "server"):
                self.send_header(name, value)
        if answer.length is None and self.command != "HEAD":
            # Its end is the end of the connection.
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        deadline, size = time.monotonic() + LIFE_LIMIT_S, 0
        while self.command != "HEAD" and (piece := answer.read(PIECE)):
            size += len(piece)
            if size > MAX_BODY or time.monotonic() > deadline:
                self.close_connection = True
                return
            self.wfile.write(piece)

    def _fail(self, error: Exception) -> None:
        self.log_message("%s: %s", self.requestline[:200], error)
        self.send_error(403 if isinstance(error, Refused) else 502, explain=str(error))

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        del size
        self.log_message("%s %s%s", code, self.requestline[:200], self.origin)


def tunnel(left: socket.socket, right: socket.socket) -> None:
    """Move bytes both ways until one side ends, nobody says anything, or the time is over."""
    deadline = time.monotonic() + LIFE_LIMIT_S
    pairs = {left: right, right: left}
    while time.monotonic() < deadline:
        readable, _, _ = select.select(list(pairs), [], [], IDLE_LIMIT_S)
        if not readable:
            return
        for source in readable:
            try:
                data = source.recv(PIECE)
                if not data:
                    return
                pairs[source].sendall(data)
            except OSError:
                return


class Proxy(ThreadingHTTPServer):
    """The server; ``patterns`` are the hosts that may be reached, ``connect`` is how."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        address: tuple[str, int],
        patterns: list[str],
        connect: Callable[[str, int], socket.socket] = connect,
        store: Store | None = None,
    ) -> None:
        super().__init__(address, Handler)
        self.patterns = patterns
        self.connect = connect
        self.cache = None if store is None else Cache(store, self.ask)
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def ask(self, host: str, port: int, path: str, headers: dict[str, str], command: str = "GET") -> Upstream:
        """What a repository answers. :raise Refused, OSError, HTTPException:"""
        upstream = http.client.HTTPConnection(host, port, timeout=IDLE_LIMIT_S)
        upstream.sock = self.connect(host, port)
        try:
            upstream.request(command, path, headers=headers)
            return Upstream(upstream, upstream.getresponse())
        except BaseException:
            upstream.close()
            raise

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        # Others wait in the backlog until one has gone.
        self._places.acquire()
        super().process_request(request, client_address)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


def open_store() -> Store | None:
    """Where copies are kept, if that is wanted and there is such a place."""
    folder = os.environ.get(CACHE_VARIABLE, "")
    if not folder or not os.path.exists(f"{SERVICES}/{CACHE_SERVICE}"):
        return None
    try:
        return Store(folder)
    except OSError as error:
        log(f"updates proxy: no copies are kept: {error}")
        return None


def main() -> int:
    way = connect_through_tor if os.path.exists(f"{SERVICES}/{TOR}") else connect
    with Proxy(ADDRESS, read_allowed(), way, open_store()) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
