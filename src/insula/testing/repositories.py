"""Repositories of packages on the loopback: a web server whose moods a test decides, and apt's own kind, signed."""

from __future__ import annotations

import gzip
import hashlib
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LIMIT_S = 120
GIVE_UP_S = 10.0
"""For a test that forgot to open a gate."""


@dataclass
class File:
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    has_length: bool = True
    sent: int | None = None
    """Bytes that come before the connection ends; None: all."""
    gate: threading.Event | None = None
    """Half of it comes before this is set."""


class Origin(ThreadingHTTPServer):
    """Answers for every host: files by path; :attr:`asked` counts, :attr:`seen` has the last headers of a path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.files: dict[str, File] = {}
        self.asked: Counter[str] = Counter()
        self.seen: dict[str, dict[str, str]] = {}

    def connect(self, host: str, port: int) -> socket.socket:
        """In place of the proxy's own way to a host."""
        del host, port
        return socket.create_connection(("127.0.0.1", self.server_address[1]), LIMIT_S)


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Origin

    def do_GET(self) -> None:
        # A tunnel to this place brings whole addresses' paths, a proxy paths.
        self.server.asked[self.path] += 1
        self.server.seen[self.path] = {name.lower(): value for name, value in self.headers.items()}
        file = self.server.files.get(self.path)
        if file is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        tag, time = file.headers.get("ETag"), file.headers.get("Last-Modified")
        asked_tag, asked_time = self.headers.get("If-None-Match"), self.headers.get("If-Modified-Since")
        if (asked_tag and asked_tag == tag) or (not asked_tag and asked_time and asked_time == time):
            self.send_response(304)
            self.end_headers()
            return
        self.send_response(200)
        for name, value in file.headers.items():
            self.send_header(name, value)
        if file.has_length:
            self.send_header("Content-Length", str(len(file.content)))
        else:
            self.close_connection = True
        self.end_headers()
        half = len(file.content) // 2
        self.wfile.write(file.content[:half])
        if file.gate is not None:
            file.gate.wait(GIVE_UP_S)
        if file.sent is not None:
            self.close_connection = True
        try:
            self.wfile.write(file.content[half : file.sent])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "7")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(*servers: ThreadingHTTPServer) -> Iterator[None]:
    threads = [threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True) for made in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for made in servers:
            made.shutdown()
            made.server_close()
        for thread in threads:
            thread.join()


def apt_repository(origin: Origin, folder: Path, packages: Mapping[str, bytes]) -> Path:
    """Serve packages by name with one file each, as Debian does, from ``/debian``; the file with the key.

    :param folder: for keys and what is built; not there yet.
    """
    folder.mkdir(mode=0o700)
    home, key = folder / "gnupg", folder / "key.gpg"
    home.mkdir(mode=0o700)
    gpg = ("gpg", "--homedir", str(home), "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback")
    _run(*gpg, "--passphrase", "", "--quick-generate-key", "test@example.org", "ed25519", "sign", "never")
    key.write_bytes(_run(*gpg, "--export"))
    stanzas = []
    for name, content in packages.items():
        path = f"/debian/pool/{name}_1_all.deb"
        deb = _deb(folder, name, content)
        origin.files[path] = File(deb, {"Last-Modified": "Mon, 02 Jun 2025 10:00:00 GMT"})
        stanzas.append(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
            f"Description: a test\nFilename: {path.removeprefix('/debian/')}\nSize: {len(deb)}\n"
            f"SHA256: {hashlib.sha256(deb).hexdigest()}\n"
        )
    plain = "\n".join(stanzas).encode()
    index = gzip.compress(plain, mtime=0)
    digest = hashlib.sha256(index).hexdigest()
    listed = "main/binary-amd64/Packages.gz"
    release = (
        "Origin: test\nSuite: stable\nCodename: test\nArchitectures: amd64\nComponents: main\nAcquire-By-Hash: yes\n"
        f"Date: Mon, 02 Jun 2025 10:00:00 UTC\nSHA256:\n {digest} {len(index)} {listed}\n"
        f" {hashlib.sha256(plain).hexdigest()} {len(plain)} {listed.removesuffix('.gz')}\n"
    )
    (folder / "Release").write_text(release, encoding="ascii")
    signed = _run(*gpg, "--clearsign", "--output", "-", str(folder / "Release"))
    _run("gpgconf", "--homedir", str(home), "--kill", "all")
    dated = {"Last-Modified": "Mon, 02 Jun 2025 10:00:00 GMT", "ETag": '"1"'}
    origin.files["/debian/dists/test/InRelease"] = File(signed, dated)
    origin.files[f"/debian/dists/test/{listed}"] = File(index, dated)
    origin.files[f"/debian/dists/test/main/binary-amd64/by-hash/SHA256/{digest}"] = File(index, dated)
    return key


def _deb(folder: Path, name: str, content: bytes) -> bytes:
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True, mode=0o755)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
        "Description: a test\n",
        encoding="ascii",
    )
    (tree / name).write_bytes(content)
    for path in (folder, tree, tree / "DEBIAN"):
        path.chmod(0o755)
    _run("dpkg-deb", "--build", "--root-owner-group", "-Znone", str(tree), str(folder / f"{name}.deb"))
    return (folder / f"{name}.deb").read_bytes()


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S).stdout
