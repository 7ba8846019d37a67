"""The proxy through which templates reach package repositories: where it leads, and that it leads nowhere else."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.net import updates_proxy
from insula_agent.net.updates_proxy import Proxy, Refused, connect, is_allowed, read_allowed, target_of, tunnel

HOSTS = ["debian.org", "*.debian.org"]
BODY = bytes(range(256)) * 2000


def test_hosts_are_matched_exactly_or_below_a_star() -> None:
    assert is_allowed("deb.debian.org", HOSTS)
    assert is_allowed("DEBIAN.ORG.", HOSTS)
    for host in ("evildebian.org", "debian.org.evil.example", "", "org", "*.debian.org.", "192.0.2.1"):
        assert not is_allowed(host, HOSTS)


def test_lists_are_read_from_all_files_and_comments_left_out(tmp_path: Path) -> None:
    (tmp_path / "10.conf").write_text("# a comment\n\nDeb.Debian.org\n")
    (tmp_path / "20.conf").write_text("*.example.org\n")
    (tmp_path / "30.txt").write_text("evil.example\n")
    assert read_allowed(str(tmp_path)) == ["deb.debian.org", "*.example.org"]
    assert read_allowed(str(tmp_path / "absent")) == []


@pytest.mark.parametrize(
    ("method", "target", "answer"),
    [
        ("GET", "http://deb.debian.org/debian/dists?x=1", ("deb.debian.org", 80, "/debian/dists?x=1")),
        ("GET", "http://deb.debian.org", ("deb.debian.org", 80, "/")),
        ("GET", "http://deb.debian.org:80/a", ("deb.debian.org", 80, "/a")),
        ("CONNECT", "deb.debian.org:443", ("deb.debian.org", 443, "")),
    ],
)
def test_places_of_repositories_are_understood(method: str, target: str, answer: tuple[str, int, str]) -> None:
    assert target_of(method, target, HOSTS) == answer


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "http://evil.example/"),
        ("GET", "http://deb.debian.org:8080/"),
        ("GET", "http://deb.debian.org:99999/"),
        ("GET", "http://deb.debian.org:x/"),
        ("GET", "https://deb.debian.org/"),
        ("GET", "ftp://deb.debian.org/"),
        ("GET", "file:///etc/passwd"),
        ("GET", "/etc/passwd"),
        ("GET", "http://deb.debian.org@evil.example/"),
        ("GET", "http://[::1/"),
        ("CONNECT", "deb.debian.org:22"),
        ("CONNECT", "evil.example:443"),
        ("CONNECT", "deb.debian.org"),
        ("CONNECT", ""),
    ],
)
def test_anything_else_is_refused(method: str, target: str) -> None:
    with pytest.raises(Refused):
        target_of(method, target, HOSTS)


@given(
    st.sampled_from(["GET", "HEAD", "CONNECT"]), st.text(max_size=60) | st.text("htp:/debian.org@[]:80#?", max_size=40)
)
def test_any_target_is_an_allowed_host_or_refused(method: str, target: str) -> None:
    try:
        host, port, _ = target_of(method, target, HOSTS)
    except Refused:
        return
    assert is_allowed(host, HOSTS)
    assert port in (80, 443)


def test_name_that_leads_back_into_the_qube_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Refused, match="is this qube"):
        connect("localhost", server.getsockname()[1])


class Repository(BaseHTTPRequestHandler):
    """What is behind the proxy in these tests."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(BODY)))
        else:
            self.close_connection = True
        self.send_header("X-Path", self.path)
        self.send_header("X-Seen", self.headers.get("Proxy-Connection", "nothing"))
        self.end_headers()
        self.wfile.write(BODY)

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "7")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Port of a proxy; every allowed host is a repository of this test."""
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Repository)
    monkeypatch.setattr(
        updates_proxy, "connect", lambda host, port: socket.create_connection(upstream.server_address[:2])
    )
    monkeypatch.setattr(updates_proxy.Handler, "log_message", lambda *_: None)
    server = Proxy(("127.0.0.1", 0), HOSTS)
    threads = [threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True) for made in (upstream, server)]
    for thread in threads:
        thread.start()
    yield server.server_address[1]
    for made in (server, upstream):
        made.shutdown()
        made.server_close()
    for thread in threads:
        thread.join()


def test_files_come_through_unchanged_one_after_the_other_on_one_connection(proxy: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", proxy, timeout=10)
    for name in ("a", "b"):
        client.request("GET", f"http://deb.debian.org/{name}", headers={"Proxy-Connection": "keep-alive"})
        answer = client.getresponse()
        assert (answer.status, answer.getheader("X-Path"), answer.getheader("X-Seen")) == (200, f"/{name}", "nothing")
        assert answer.read() == BODY
    client.request("HEAD", "http://deb.debian.org/absent")
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (404, b"")
    client.close()


def test_answer_without_length_ends_with_its_connection(proxy: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", proxy, timeout=10)
    client.request("GET", "http://deb.debian.org/endless")
    assert client.getresponse().read() == BODY
    client.close()


def test_tunnel_carries_both_ways(proxy: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", proxy, timeout=10)
    client.set_tunnel("deb.debian.org", 443)
    client.request("GET", "/through")
    answer = client.getresponse()
    assert (answer.getheader("X-Path"), answer.read()) == ("/through", BODY)
    client.close()


def test_refused_place_is_told_with_the_reason_and_the_connection_goes_on(proxy: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", proxy, timeout=10)
    client.request("GET", "http://evil.example/")
    answer = client.getresponse()
    assert answer.status == 403
    assert b"not among the hosts" in answer.read()
    client.close()


def test_tunnel_ends_when_one_side_does() -> None:
    (left, ours), (right, theirs) = socket.socketpair(), socket.socketpair()
    with left, ours, right, theirs:
        thread = threading.Thread(target=tunnel, args=(ours, theirs))
        thread.start()
        left.sendall(b"question")
        assert right.recv(100) == b"question"
        right.close()
        thread.join(10)
        assert not thread.is_alive()
