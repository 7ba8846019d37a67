"""Distributions: found by listing the folder; Debian's recipe is well-formed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from insula.templates.apt_sources import KEYRING
from insula.templates.distribution import find_distribution, known_distributions
from insula.templates.distributions.debian import MASKED_UNITS, SHELL_START, DebianRelease
from insula.templates.errors import TemplateError


def test_debian_is_found_by_its_name() -> None:
    assert "debian-12" in known_distributions()
    assert find_distribution("debian-12").os.version == "12"


def test_unknown_name_is_refused() -> None:
    with pytest.raises(TemplateError, match="debian-12"):
        find_distribution("debian-1")


def test_adapt_script_is_a_shell_script() -> None:
    script = find_distribution("debian-12").adapt_script()
    subprocess.run(["sh", "-n"], input=script.encode(), check=True, timeout=120)
    assert all(unit in script for unit in MASKED_UNITS)


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("/etc/profile", 'if [ "$(id -u)" -eq 0 ]; then', "if [ -O / ]; then"),
        ("/root/.profile", "mesg n 2> /dev/null || true", "[ ! -t 0 ] || mesg n 2> /dev/null || true"),
    ],
)
def test_login_shell_starts_no_program_of_its_own(path: str, before: str, after: str) -> None:
    edited = subprocess.run(
        ["sed", dict(SHELL_START)[path]], input=f"{before}\n", capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert edited == f"{after}\n"
    for shell in ("dash", "bash"):
        root = subprocess.run([shell, "-c", "[ -O / ]"], check=False, timeout=120).returncode == 0
        assert root is (os.geteuid() == Path("/").stat().st_uid)


def test_packages_decide_the_bootstrap() -> None:
    release = DebianRelease("12", "bookworm", "2028-06-30")
    more = DebianRelease("12", "bookworm", "2028-06-30", packages=(*release.packages, "hello"))
    assert release.bootstrap_inputs() == DebianRelease("12", "bookworm", "2028-06-30").bootstrap_inputs()
    assert release.bootstrap_inputs() != more.bootstrap_inputs()


def test_every_source_is_checked_against_debians_keyring() -> None:
    sources = DebianRelease("12", "bookworm", "2028-06-30")._sources()
    assert len(sources) == 3
    assert all(source.startswith(f"deb [signed-by={KEYRING}] ") for source in sources)
    assert {source.split()[3] for source in sources} == {"bookworm", "bookworm-updates", "bookworm-security"}
