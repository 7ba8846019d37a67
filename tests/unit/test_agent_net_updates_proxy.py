"""The proxy through which templates reach package repositories: where it leads, and that it leads nowhere else."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.testing.repositories import File, Origin, served
from insula_agent.net import updates_proxy
from insula_agent.net.updates_proxy import (
    Handler,
    Proxy,
    Refused,
    Wish,
    connect,
    connect_through_tor,
    is_allowed,
    read_allowed,
    target_of,
    tunnel,
)

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


class Quiet(Handler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[int, list[str]]]:
    """Port of a proxy for which nobody is there, and the hosts it would connect to."""
    hosts: list[str] = []

    def connect(host: str, port: int) -> socket.socket:
        hosts.append(host)
        raise ConnectionRefusedError(port)

    proxy = Proxy(("127.0.0.1", 0), HOSTS, connect)
    proxy.RequestHandlerClass = Quiet
    with served(proxy):
        yield proxy.server_address[1], hosts


REQUEST = (
    b"GET http://deb.debian.org/a.deb HTTP/1.1\r\nHost: evil.example\r\nRange: bytes=1-\r\nConnection: close\r\n\r\n"
)


@given(
    st.binary(max_size=200),
    st.integers(0, len(REQUEST)),
    st.integers(0, len(REQUEST)),
    st.integers(0, len(REQUEST)),
)
@settings(max_examples=60, deadline=None)
def test_any_bytes_in_any_pieces_lead_to_hosts_that_are_allowed_or_to_an_error(
    asked: tuple[int, list[str]], noise: bytes, at: int, until: int, split: int
) -> None:
    port, hosts = asked
    data = REQUEST[:at] + noise + REQUEST[until:]
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        for piece in (data[:split], data[split:]):
            # It may have had enough.
            with suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(piece)
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    assert all(is_allowed(host, HOSTS) for host in hosts)


def test_name_that_leads_back_into_the_qube_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Refused, match="is this qube"):
        connect("localhost", server.getsockname()[1])


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A repository that answers for every host."""
    origin = Origin()
    for path in ("/a", "/b", "/through"):
        origin.files[path] = File(BODY)
    origin.files["/endless"] = File(BODY, has_length=False)
    with served(origin):
        yield origin


@pytest.fixture
def proxy(origin: Origin) -> Iterator[int]:
    """Port of a proxy."""
    proxy = Proxy(("127.0.0.1", 0), HOSTS, origin.connect)
    with served(proxy):
        yield proxy.server_address[1]


def test_files_come_through_unchanged_one_after_the_other_on_one_connection(origin: Origin, proxy: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", proxy, timeout=120)
    for name in ("a", "b"):
        client.request("GET", f"http://deb.debian.org/{name}", headers={"Proxy-Connection": "keep-alive"})
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, BODY)
        assert "proxy-connection" not in origin.seen[f"/{name}"]
    client.request("HEAD", "http://deb.debian.org/absent")
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (404, b"")
    client.close()


def test_answer_without_length_ends_with_its_connection(proxy: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", proxy, timeout=120)
    client.request("GET", "http://deb.debian.org/endless")
    assert client.getresponse().read() == BODY
    client.close()


def test_tunnel_carries_both_ways(proxy: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", proxy, timeout=120)
    client.set_tunnel("deb.debian.org", 443)
    client.request("GET", "/through")
    answer = client.getresponse()
    assert answer.read() == BODY
    client.close()


def test_refused_place_is_told_with_the_reason_and_the_connection_goes_on(proxy: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", proxy, timeout=120)
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
        thread.join(120)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("headers", "is_for_copies", "is_complaint", "first"),
    [
        ({}, True, False, 0),
        ({"Cache-Control": "max-age=0"}, True, False, 0),
        ({"Cache-Control": "max-age=0, No-Cache"}, True, True, 0),
        ({"Pragma": "no-cache"}, True, True, 0),
        ({"Cache-Control": "no-store"}, False, False, 0),
        ({"Range": "bytes=7-"}, True, False, 7),
        ({"Range": "bytes=0-"}, True, False, 0),
        ({"Range": "bytes=7-9"}, False, False, 0),
        ({"Range": "bytes=-9"}, False, False, 0),
        ({"Range": "bytes=1-,3-"}, False, False, 0),
        ({"Range": "bytes=\u0661-"}, False, False, 0),
        ({"Range": f"bytes={'9' * 16}-"}, False, False, 0),
        ({"Authorization": "Basic eA=="}, False, False, 0),
        ({"Cookie": "a=b"}, False, False, 0),
    ],
)
def test_what_a_request_says_of_copies(
    headers: dict[str, str], is_for_copies: bool, is_complaint: bool, first: int
) -> None:
    wish = Wish(headers.get)
    assert (wish.is_for_copies, wish.is_complaint, wish.first) == (is_for_copies, is_complaint, first)


@given(st.text(max_size=30) | st.text("bytes=-0123456789,", max_size=30), st.text(max_size=10), st.text(max_size=10))
def test_any_range_begins_within_what_there_may_be(untrusted_range: str, etag: str, modified: str) -> None:
    wish = Wish({"Range": untrusted_range, "If-Range": etag, "If-None-Match": etag}.get)
    assert 0 <= wish.first < 10**15
    assert wish.first_of(etag, modified) in (0, wish.first)
    assert wish.has(etag, modified) is bool(etag)


def test_rest_is_given_of_the_very_file_that_is_meant() -> None:
    for validator, first in (("", 7), ('"tag"', 7), ("now", 7), ('"other"', 0), ("before", 0)):
        assert Wish({"Range": "bytes=7-", "If-Range": validator}.get).first_of('"tag"', "now") == first
    # Nothing is known of the file: it may be another one.
    assert Wish({"Range": "bytes=7-", "If-Range": '"tag"'}.get).first_of("", "") == 0


def socks_server(script: list[tuple[int, bytes]]) -> tuple[threading.Thread, list[bytes], int]:
    """In place of tor: reads so many bytes, answers those, each in turn; then it sends what it is sent."""
    server = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve() -> None:
        with server, server.accept()[0] as client:
            for size, answer in script:
                heard.append(client.recv(size, socket.MSG_WAITALL))
                client.sendall(answer)
            # One that has heard enough may leave things unread.
            with suppress(ConnectionResetError):
                while data := client.recv(100):
                    client.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread, heard, server.getsockname()[1]


def test_in_a_tor_gateway_everything_goes_to_tor_by_name_with_circuits_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread, heard, port = socks_server([(3, b"\5\2"), (2 + 14 + 2, b"\1\0"), (5 + 14 + 2, b"\5\0\0\1\0\0\0\0\0\0")])
    monkeypatch.setattr(updates_proxy, "UPDATES_PORT", port)
    with connect_through_tor("deb.debian.org", 80) as connection:
        connection.sendall(b"through")
        assert connection.recv(7, socket.MSG_WAITALL) == b"through"
    thread.join()
    assert heard == [b"\5\1\2", b"\1\x0edeb.debian.org\1-", b"\5\1\0\3\x0edeb.debian.org\0\x50"]


@pytest.mark.parametrize(
    "script",
    [
        [],
        [(3, b"\5\xff")],
        [(3, b"\5\2"), (18, b"\1\1")],
        [(3, b"\5\2"), (18, b"\1\0"), (21, b"\5\1\0\1\0\0\0\0\0\0")],
    ],
)
def test_tor_that_does_not_connect_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, script: list[tuple[int, bytes]]
) -> None:
    thread, _, port = socks_server(script)
    monkeypatch.setattr(updates_proxy, "UPDATES_PORT", port)
    monkeypatch.setattr(updates_proxy, "IDLE_LIMIT_S", 0.2)
    with pytest.raises(OSError):
        connect_through_tor("deb.debian.org", 80)
    thread.join()


def test_tor_that_is_not_there_is_a_failure_and_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(updates_proxy, "UPDATES_PORT", port)
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *_: (
            pytest.fail(host)
            if host != "127.0.0.1"
            else [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        ),
    )
    with pytest.raises(ConnectionRefusedError):
        connect_through_tor("deb.debian.org", 80)
