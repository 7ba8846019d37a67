"""Debian's own apt behind the proxy that keeps copies: a repository on the loopback, signed by a key of the test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from insula.testing.repositories import File, Origin, apt_repository, served
from insula_agent.net.updates_cache import Store
from insula_agent.net.updates_proxy import Proxy

HOSTS = ["*.debian.org"]
LIMIT_S = 60
PACKAGES = {name: bytes(range(256)) * 400 + name.encode() for name in ("one", "two")}
DEBS = [f"/debian/pool/{name}_1_all.deb" for name in PACKAGES]
RELEASE = "/debian/dists/test/InRelease"

CONFIG = """\
Dir "{folder}";
Dir::State::status "{folder}/status";
Dir::Etc::sourcelist "{folder}/sources.list";
Acquire::http::Proxy "http://127.0.0.1:{port}";
Acquire::Retries "0";
Acquire::Languages "none";
APT::Architecture "amd64";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
"""


class Apt:
    """A template's package manager, with files of its own."""

    def __init__(self, folder: Path, key: Path, port: int) -> None:
        self.folder = folder
        for name in ("lists/partial", "cache/archives/partial", "etc/apt/preferences.d", "etc/apt/apt.conf.d", "home"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(
            f"deb [arch=amd64 signed-by={key}] http://deb.debian.org/debian test main\n", encoding="ascii"
        )
        (folder / "apt.conf").write_text(
            CONFIG.format(folder=folder, port=port)
            + f'Dir::State::lists "{folder}/lists";\nDir::Cache "{folder}/cache";\n',
            encoding="ascii",
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["apt-get", "-q", *arguments], cwd=self.folder / "home", capture_output=True, text=True, timeout=LIMIT_S,
            check=False, stdin=subprocess.DEVNULL,
            env={"APT_CONFIG": str(self.folder / "apt.conf"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def fetch(self, *options: str) -> None:
        """Lists and all packages, checked."""
        for arguments in (("update",), ("download", *PACKAGES)):
            code, output = self.run(*options, *arguments)
            assert code == 0, output
        for name, content in PACKAGES.items():
            assert content in (self.folder / "home" / f"{name}_1_all.deb").read_bytes()


class Templates:
    def __init__(self, folder: Path, origin: Origin, proxy: Proxy) -> None:
        self.origin = origin
        self.key = apt_repository(origin, folder / "repository", PACKAGES)
        self._folder = folder
        self._port = proxy.server_address[1]
        self._count = 0

    def new(self) -> Apt:
        self._count += 1
        return Apt(self._folder / f"template-{self._count}", self.key, self._port)


@pytest.fixture
def templates(tmp_path: Path) -> Iterator[Templates]:
    (tmp_path / "copies").mkdir()
    origin = Origin()
    proxy = Proxy(("127.0.0.1", 0), HOSTS, origin.connect, Store(str(tmp_path / "copies")))
    with served(origin, proxy):
        yield Templates(tmp_path, origin, proxy)


def test_many_templates_at_a_time_download_once(templates: Templates) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(templates.new().fetch) for _ in range(4)]:
            done.result()
    asked = templates.origin.asked
    assert [asked[path] for path in DEBS] == [1, 1]
    assert [count for path, count in asked.items() if "/by-hash/" in path] == [1]
    # Which list is valid today each asks anew.
    assert asked[RELEASE] == 4


def test_bad_package_is_refused_by_apt_and_its_copy_replaced_on_complaint(templates: Templates) -> None:
    good = templates.origin.files[DEBS[0]]
    templates.origin.files[DEBS[0]] = replace(good, content=good.content[:-1] + b"x")
    first, second, third = (templates.new() for _ in range(3))
    for template in (first, second):
        assert template.run("update")[0] == 0
        code, output = template.run("download", *PACKAGES)
        assert code != 0
        assert "Hash Sum mismatch" in output
        templates.origin.files[DEBS[0]] = good
    # As insula.Update does.
    second.fetch("-o", "Acquire::http::No-Cache=true")
    third.fetch()


def test_repository_that_is_signed_by_somebody_else_is_refused_whoever_asked_before(
    templates: Templates, tmp_path: Path
) -> None:
    templates.new().fetch()
    stranger = Origin()
    with stranger.socket:
        apt_repository(stranger, tmp_path / "stranger", {"one": b"evil"})
    templates.origin.files.update(stranger.files)
    code, output = templates.new().run("update")
    assert code != 0
    assert "NO_PUBKEY" in output


def test_download_that_broke_off_is_never_whole_and_goes_on_from_the_copy(templates: Templates) -> None:
    good = templates.origin.files[DEBS[0]]
    templates.origin.files[DEBS[0]] = File(good.content, good.headers, sent=len(good.content) - 1000)
    first, second = templates.new(), templates.new()
    assert first.run("update")[0] == 0
    assert first.run("download", *PACKAGES)[0] != 0
    templates.origin.files[DEBS[0]] = good
    second.fetch()
    first.fetch()
    assert templates.origin.asked[DEBS[0]] == 2
