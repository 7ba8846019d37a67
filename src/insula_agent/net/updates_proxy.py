"""The proxy of a net qube through which templates reach package repositories, and nothing else (agent-services §7).

It listens on the loopback only; who may connect is decided by policy (``qubes.UpdatesProxy``), where to by lists of
hosts in :data:`ALLOWED`: a template that was taken over can fetch packages, not send things anywhere. What comes back
is not looked at: the package manager checks signatures.

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


class Handler(BaseHTTPRequestHandler):
    """One connection of a package manager."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_LIMIT_S
    server: Proxy

    def do_GET(self) -> None:
        self._forward()

    def do_HEAD(self) -> None:
        self._forward()

    def do_CONNECT(self) -> None:
        try:
            host, port, _ = target_of("CONNECT", self.path, self.server.patterns)
            upstream = connect(host, port)
        except (Refused, OSError) as error:
            self._fail(error)
            return
        with upstream:
            self.send_response(200, "Connection established")
            self.end_headers()
            tunnel(self.connection, upstream)
        self.close_connection = True

    def _forward(self) -> None:
        try:
            host, port, path = target_of(self.command, self.path, self.server.patterns)
            upstream = http.client.HTTPConnection(host, port, timeout=IDLE_LIMIT_S)
            upstream.sock = connect(host, port)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            upstream.request(self.command, path, headers={**headers, "Connection": "close"})
            answer = upstream.getresponse()
        except (Refused, OSError, http.client.HTTPException) as error:
            self._fail(error)
            return
        with answer:
            self._pass_on(answer)
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
        self.log_message("%s %s", code, self.requestline[:200])


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
    """The server; ``patterns`` are the hosts that may be reached."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], patterns: list[str]) -> None:
        super().__init__(address, Handler)
        self.patterns = patterns
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

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


def main() -> int:
    with Proxy(ADDRESS, read_allowed()) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
