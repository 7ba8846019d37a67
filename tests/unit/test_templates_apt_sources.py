"""Mirrors and proxies: what is taken from this machine's apt, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.templates.apt_sources import (
    DEFAULT_MIRROR,
    DEFAULT_SECURITY,
    Mirrors,
    Source,
    machine_mirrors,
    parse_deb822,
    parse_one_line,
    parse_proxies,
    plan_mirrors,
)

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] http://mirror.example/debian bookworm main # the mirror
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian-security bookworm-security main
deb
"""

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://one.example/debian/
 http://two.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
"""


def test_one_line_format_gives_binary_sources() -> None:
    assert parse_one_line(ONE_LINE) == [
        Source("http://mirror.example/debian", ("bookworm",)),
        Source("http://mirror.example/debian-security", ("bookworm-security",)),
    ]


def test_deb822_format_gives_enabled_binary_sources() -> None:
    suites = ("bookworm", "bookworm-updates")
    assert parse_deb822(DEB822) == [
        Source("http://one.example/debian/", suites),
        Source("http://two.example/debian", suites),
    ]


def test_first_of_each_kind_is_used() -> None:
    assert plan_mirrors(parse_one_line(ONE_LINE), {}) == Mirrors(
        "http://mirror.example/debian", "http://mirror.example/debian-security"
    )


@pytest.mark.parametrize(
    "uri",
    [
        "https://deb.nodesource.com/node_20.x",
        "https://packages.cloud.google.com/apt",
        "ftp://x/debian",
        "cdrom:[Debian]/",
    ],
)
def test_archives_of_others_are_not_debian(uri: str) -> None:
    assert plan_mirrors([Source(uri, ("bookworm",))], {}) == Mirrors(DEFAULT_MIRROR, DEFAULT_SECURITY)


def test_variable_overrides_the_machine() -> None:
    sources = parse_one_line(ONE_LINE)
    assert plan_mirrors(sources, {"INSULA_DEBIAN_MIRROR": "http://a.example/debian/"}) == Mirrors(
        "http://a.example/debian", DEFAULT_SECURITY
    )
    assert plan_mirrors(sources, {"INSULA_DEBIAN_MIRROR": "http://a.example/d,http://a.example/s/"}) == Mirrors(
        "http://a.example/d", "http://a.example/s"
    )


def test_both_formats_are_read_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSULA_DEBIAN_MIRROR", raising=False)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://m.example/debian-security bookworm-security main\n")
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/old.list.save").write_text("deb http://saved.example/debian bookworm main\n")
    assert machine_mirrors(tmp_path) == Mirrors("http://one.example/debian", "http://m.example/debian-security")


def test_machine_without_apt_uses_debians_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSULA_DEBIAN_MIRROR", raising=False)
    assert machine_mirrors(tmp_path) == Mirrors(DEFAULT_MIRROR, DEFAULT_SECURITY)


def test_only_proxies_are_passed_on() -> None:
    dump = (
        'APT "";\nAcquire::http::Proxy "http://proxy.example:3128";\n'
        'Acquire::https::Proxy::deb.debian.org "DIRECT";\nAcquire::http::Timeout "5";\n'
        'DPkg::Pre-Invoke:: "rm -rf /";\n'
    )
    assert parse_proxies(dump) == [
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::https::Proxy::deb.debian.org "DIRECT";',
    ]
