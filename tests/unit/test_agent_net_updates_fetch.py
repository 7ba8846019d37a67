"""Files of repositories from copies, or fetched once for all who want them; seen by package managers' requests."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from insula.testing.repositories import File, Origin, served
from insula_agent.net import updates_fetch
from insula_agent.net.updates_cache import Store
from insula_agent.net.updates_proxy import Proxy

HOSTS = ["debian.org", "*.debian.org"]
CONTENT = bytes(range(256)) * 3000
DEB = "/debian/pool/a_1_all.deb"
INDEX = "/debian/dists/x/main/binary-amd64/Packages.xz"
HASHED = f"/debian/by-hash/SHA256/{hashlib.sha256(CONTENT).hexdigest()}"
VALIDATORS = {"ETag": '"tag"', "Last-Modified": "Mon, 02 Jun 2025 10:00:00 GMT"}
WAIT_S = 120.0


class Chain:
    """A proxy with copies before a repository."""

    def __init__(self, origin: Origin, proxy: Proxy, folder: Path) -> None:
        self.origin = origin
        self.proxy = proxy
        self.folder = folder

    def get(self, path: str, headers: dict[str, str] | None = None, host: str = "deb.debian.org") -> tuple[int, bytes]:
        """Status and content; what is missing of it is missing here."""
        client = http.client.HTTPConnection("127.0.0.1", self.proxy.server_address[1], timeout=WAIT_S)
        client.request("GET", f"http://{host}{path}", headers=headers or {})
        with client.getresponse() as answer:
            try:
                content = answer.read()
            except http.client.IncompleteRead as error:
                content = error.partial
            status = answer.status
        client.close()
        return status, content

    def settled(self) -> list[Path]:
        """Copies, when nothing is being fetched any more."""
        assert self.proxy.cache is not None
        deadline = time.monotonic() + WAIT_S
        while self.proxy.cache._running or any(path.name.startswith("part-") for path in self.folder.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return list(self.folder.iterdir())


def make_proxy(origin: Origin, folder: Path) -> Proxy:
    return Proxy(("127.0.0.1", 0), HOSTS, origin.connect, Store(str(folder)))


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    origin = Origin()
    for path in (DEB, INDEX, HASHED):
        origin.files[path] = File(CONTENT, VALIDATORS)
    proxy = make_proxy(origin, tmp_path)
    with served(origin, proxy):
        yield Chain(origin, proxy, tmp_path)


@pytest.mark.parametrize("path", [DEB, HASHED])
def test_what_never_changes_is_fetched_once(chain: Chain, path: str) -> None:
    assert [chain.get(path) for _ in range(3)] == [(200, CONTENT)] * 3
    assert chain.origin.asked[path] == 1


def test_list_is_asked_about_each_time_and_comes_once_until_it_changes(chain: Chain) -> None:
    assert chain.get(INDEX) == (200, CONTENT)
    chain.settled()
    assert chain.get(INDEX) == (200, CONTENT)
    assert chain.origin.asked[INDEX] == 2
    assert chain.origin.seen[INDEX]["if-none-match"] == '"tag"'
    chain.origin.files[INDEX] = File(b"newer", {**VALIDATORS, "ETag": '"other"'})
    assert chain.get(INDEX) == (200, b"newer")
    chain.settled()
    assert chain.get(INDEX) == (200, b"newer")


def refuse(host: str, port: int) -> socket.socket:
    raise ConnectionRefusedError(host, port)


def test_list_that_cannot_be_asked_about_is_a_failure_not_an_old_one(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chain.get(INDEX) == chain.get(HASHED) == (200, CONTENT)
    chain.settled()
    monkeypatch.setattr(chain.proxy, "connect", refuse)
    assert [chain.get(path)[0] for path in (INDEX, DEB, HASHED)] == [502, 502, 200]


def test_copy_outlives_the_repository_and_the_proxy(chain: Chain) -> None:
    chain.get(DEB)
    chain.settled()
    del chain.origin.files[DEB]
    chain.proxy = make_proxy(chain.origin, chain.folder)
    with served(chain.proxy):
        assert chain.get(DEB) == (200, CONTENT)


@pytest.mark.parametrize("host", ["security.debian.org", "debian.org"])
def test_copy_of_one_host_is_not_anothers(chain: Chain, host: str) -> None:
    chain.get(DEB)
    chain.origin.files[DEB] = File(b"of another host")
    assert chain.get(DEB, host=host) == (200, b"of another host")
    assert chain.get(DEB) == (200, CONTENT)


def test_nothing_but_the_address_reaches_the_repository(chain: Chain) -> None:
    chain.get(
        DEB, {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Accept": "text/evil", "User-Agent": "x"}
    )
    seen = chain.origin.seen[DEB]
    assert seen.keys() == {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert (seen["host"], seen["user-agent"]) == ("deb.debian.org", "insula-updates")


@pytest.mark.parametrize("path", ["/debian/dists/x/InRelease", "/a?b.deb", "/index.html"])
def test_other_files_are_passed_on_and_not_kept(chain: Chain, path: str) -> None:
    chain.origin.files[path] = File(CONTENT)
    assert [chain.get(path) for _ in range(2)] == [(200, CONTENT)] * 2
    assert chain.origin.asked[path] == 2
    assert chain.settled() == []


@pytest.mark.parametrize(
    "file",
    [File(CONTENT, has_length=False), File(CONTENT, {"Content-Encoding": "gzip"}), File(CONTENT, {"ETag": "x" * 2000})],
)
def test_answer_that_cannot_be_kept_is_passed_on(chain: Chain, file: File) -> None:
    chain.origin.files[DEB] = file
    assert [chain.get(DEB) for _ in range(2)] == [(200, CONTENT)] * 2
    assert chain.settled() == []


def test_refusals_and_absent_files_are_told_and_not_kept(chain: Chain) -> None:
    assert chain.get("/absent.deb") == (404, b"")
    assert chain.get(DEB, host="evil.example")[0] == 403
    assert chain.settled() == []
    chain.origin.files["/absent.deb"] = File(CONTENT)
    assert chain.get("/absent.deb") == (200, CONTENT)


def test_file_that_is_not_what_its_name_says_is_not_kept(chain: Chain) -> None:
    chain.origin.files[HASHED] = File(CONTENT[:-1] + b"x")
    assert chain.get(HASHED)[0] == 200
    assert chain.settled() == []
    chain.origin.files[HASHED] = File(CONTENT)
    assert [chain.get(HASHED) for _ in range(2)] == [(200, CONTENT)] * 2
    assert chain.origin.asked[HASHED] == 2


def test_download_that_ends_early_is_seen_to_and_not_kept(chain: Chain) -> None:
    chain.origin.files[DEB] = File(CONTENT, sent=len(CONTENT) - 1)
    status, content = chain.get(DEB)
    assert (status, len(content) < len(CONTENT)) == (200, True)
    assert chain.settled() == []
    chain.origin.files[DEB] = File(CONTENT)
    assert chain.get(DEB) == (200, CONTENT)


def test_package_that_was_bad_is_fetched_anew_for_who_complains(chain: Chain) -> None:
    bad = CONTENT[:-1] + b"x"
    chain.origin.files[DEB] = File(bad, VALIDATORS)
    assert chain.get(DEB) == (200, bad)
    chain.settled()
    chain.origin.files[DEB] = File(CONTENT, VALIDATORS)
    assert chain.get(DEB) == (200, bad)
    assert chain.get(DEB, {"Cache-Control": "no-cache"}) == (200, CONTENT)
    chain.settled()
    assert chain.get(DEB) == (200, CONTENT)
    # A complaint that leads nowhere does not take the copy from others.
    del chain.origin.files[DEB]
    assert chain.get(DEB, {"Cache-Control": "no-cache"})[0] == 404
    assert chain.get(DEB) == (200, CONTENT)


def test_package_that_somebody_complains_about_while_it_comes_is_not_kept(chain: Chain) -> None:
    gate = threading.Event()
    chain.origin.files[DEB] = File(CONTENT[:-1] + b"x", gate=gate)
    client, answer = open_and_read(chain, 1)
    chain.origin.files[DEB] = File(CONTENT)
    assert chain.get(DEB, {"Pragma": "no-cache"}) == (200, CONTENT)
    gate.set()
    answer.read()
    answer.close()
    client.close()
    assert chain.settled() == []
    assert chain.get(DEB) == (200, CONTENT)


def test_requests_at_a_time_fetch_once(chain: Chain) -> None:
    gate = threading.Event()
    chain.origin.files[DEB] = File(CONTENT, VALIDATORS, gate=gate)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(chain.get, DEB) for _ in range(8)]
        deadline = time.monotonic() + WAIT_S
        while not chain.origin.asked[DEB]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gate.set()
        assert [answer.result(WAIT_S) for answer in answers] == [(200, CONTENT)] * 8
    assert chain.origin.asked[DEB] == 1


def test_requests_at_a_time_for_what_is_not_kept_are_all_answered(chain: Chain) -> None:
    gate = threading.Event()
    chain.origin.files[DEB] = File(CONTENT, has_length=False, gate=gate)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(chain.get, DEB) for _ in range(4)]
        gate.set()
        assert [answer.result(WAIT_S) for answer in answers] == [(200, CONTENT)] * 4


def open_and_read(chain: Chain, count: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    client = http.client.HTTPConnection("127.0.0.1", chain.proxy.server_address[1], timeout=WAIT_S)
    client.request("GET", f"http://deb.debian.org{DEB}")
    answer = client.getresponse()
    assert len(answer.read(count)) == count
    return client, answer


def test_template_that_does_not_read_holds_up_nobody(chain: Chain) -> None:
    chain.origin.files[DEB] = File(large := CONTENT * 20)
    client, answer = open_and_read(chain, 1)
    assert chain.get(DEB) == (200, large)
    answer.close()
    client.close()


def test_what_is_there_is_read_while_the_rest_comes(chain: Chain) -> None:
    gate = threading.Event()
    chain.origin.files[DEB] = File(CONTENT, gate=gate)
    client, answer = open_and_read(chain, len(CONTENT) // 4)
    late, its_answer = open_and_read(chain, len(CONTENT) // 4)
    gate.set()
    assert len(answer.read()) == len(its_answer.read()) == len(CONTENT) - len(CONTENT) // 4
    for opened in (answer, its_answer, client, late):
        opened.close()
    assert chain.origin.asked[DEB] == 1


def test_download_that_nobody_waits_for_any_more_is_given_up(chain: Chain) -> None:
    download = updates_fetch.Download()
    download.join()
    assert download.came(1)
    download.leave()
    assert not download.came(1)
    gate = threading.Event()
    chain.origin.files[DEB] = File(large := CONTENT * 20, gate=gate)
    client, answer = open_and_read(chain, 1)
    answer.close()
    client.close()
    gate.set()
    # Whether that was noticed before its end or not.
    chain.settled()
    assert chain.get(DEB) == (200, large)


def test_rest_of_a_file_is_given_from_its_copy_and_of_no_other(chain: Chain) -> None:
    assert chain.get(DEB, {"Range": "bytes=100-"}) == (206, CONTENT[100:])
    assert chain.get(DEB, {"Range": "bytes=100-", "If-Range": '"tag"'}) == (206, CONTENT[100:])
    assert chain.get(DEB, {"Range": "bytes=100-", "If-Range": VALIDATORS["Last-Modified"]}) == (206, CONTENT[100:])
    assert chain.get(DEB, {"Range": "bytes=100-", "If-Range": '"other"'}) == (200, CONTENT)
    assert chain.get(DEB, {"Range": f"bytes={len(CONTENT)}-"}) == (416, b"")
    assert chain.origin.asked[DEB] == 1


def test_who_has_it_already_is_told_so(chain: Chain) -> None:
    for headers in ({"If-None-Match": '"tag"'}, {"If-Modified-Since": VALIDATORS["Last-Modified"]}):
        assert chain.get(INDEX, headers) == (304, b"")
    assert chain.get(INDEX, {"If-None-Match": '"other"'}) == (200, CONTENT)


def test_more_downloads_at_a_time_than_there_may_be_are_passed_on(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates_fetch, "MAX_DOWNLOADS", 0)
    assert [chain.get(DEB) for _ in range(2)] == [(200, CONTENT)] * 2
    assert chain.settled() == []


def test_copy_without_room_is_passed_on(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates_fetch.Store, "begin", lambda *_: None)
    assert [chain.get(DEB) for _ in range(2)] == [(200, CONTENT)] * 2
