"""The look for updates: when it asks, and that it tells."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "src/insula_agent/rootfs/usr/lib/qubes/insula-update-check"


def look(tmp_path: Path, services: list[str], route: str = "", apt: int = 0) -> tuple[int, list[str]]:
    """Exit code, and what was called."""
    (tmp_path / "services").mkdir()
    for service in services:
        (tmp_path / "services" / service).touch()
    calls = tmp_path / "calls"
    calls.touch()
    for name, body in (("apt-get", f"exit {apt}"), ("notify", "exit 0"), ("ip", f"echo '{route}'")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho {name} >> {calls}\n{body}\n")
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "INSULA_SERVICES": str(tmp_path / "services"),
        "INSULA_NOTIFY": str(tmp_path / "notify"),
    }
    done = subprocess.run([SCRIPT], env=environment, check=False, timeout=120)
    return done.returncode, [call for call in calls.read_text().split() if call != "ip"]


def test_qube_with_a_way_to_repositories_asks_and_tells(tmp_path: Path) -> None:
    route = "default via 10.137.0.3 dev eth0"
    assert look(tmp_path, ["qubes-update-check"], route) == (0, ["apt-get", "notify"])


def test_template_with_the_proxy_asks_and_tells(tmp_path: Path) -> None:
    assert look(tmp_path, ["qubes-update-check", "updates-proxy-setup"]) == (0, ["apt-get", "notify"])


@pytest.mark.parametrize("services", [["updates-proxy-setup"], ["qubes-update-check"], []])
def test_qube_that_is_not_to_or_has_no_way_does_not(tmp_path: Path, services: list[str]) -> None:
    assert look(tmp_path, services) == (0, [])


def test_lists_that_do_not_come_are_not_told_of(tmp_path: Path) -> None:
    assert look(tmp_path, ["qubes-update-check", "updates-proxy-setup"], apt=100) == (1, ["apt-get"])
