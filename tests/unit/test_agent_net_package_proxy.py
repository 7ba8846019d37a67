"""What dnf and pacman are told of their proxy: in templates alone, whatever else their files say."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.net import package_proxy
from insula_agent.net.package_proxy import BEGIN, CONFIGS, END, PROXY, configure, configured, main

DNF = "# comment\n[main]\ngpgcheck=True\ninstallonly_limit=3\n\n[other]\nproxy=none\n"
PACMAN = "#\n[options]\nHoldPkg     = pacman glibc\nSigLevel    = Required DatabaseOptional\n\n[core]\nInclude = /x\n"


def test_dnf_has_the_proxy_and_keeps_what_it_had() -> None:
    parsed = configparser.ConfigParser()
    parsed.read_string(configured(DNF, "[main]", f"proxy={PROXY}"))
    assert dict(parsed["main"]) == {"gpgcheck": "True", "installonly_limit": "3", "proxy": "http://127.0.0.1:8082"}
    assert dict(parsed["other"]) == {"proxy": "none"}


def test_pacman_fetches_through_the_proxy_and_checks_as_before() -> None:
    _, section, line = CONFIGS[1]
    lines = configured(PACMAN, section, line).splitlines()
    assert lines.index("[options]") < lines.index(line) < lines.index("[core]")
    assert "SigLevel    = Required DatabaseOptional" in lines
    assert f"--proxy {PROXY} " in line
    assert line.endswith(" -o %o %u")


@given(st.lists(st.sampled_from(["[main]", " [main] ", "a=b", "", "# c", "[x]"])), st.integers(1, 3))
def test_written_again_or_taken_out_it_is_as_it_was(lines: list[str], times: int) -> None:
    text = "".join(f"{line}\n" for line in lines)
    once = changed = configured(text, "[main]", "proxy=p")
    for _ in range(times):
        changed = configured(changed, "[main]", "proxy=p")
    assert changed == once
    assert once.splitlines().count("proxy=p") == 1
    assert configured(once, "[main]", None) == (text if "[main]" in text else f"{text}[main]\n")


def test_lines_whose_end_was_lost_are_taken_out_to_the_end() -> None:
    assert configured(f"a\n{BEGIN}\nproxy=old\n", "[main]", None) == "a\n"
    assert configured(f"a\n{END}\nb\n", "[main]", None) == "a\nb\n"


@pytest.mark.parametrize("is_template", [True, False])
def test_start_of_a_template_writes_and_start_of_another_qube_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_template: bool
) -> None:
    dnf = tmp_path / "dnf.conf"
    dnf.write_text(DNF if is_template else configured(DNF, "[main]", "proxy=old"))
    dnf.chmod(0o640)
    service = tmp_path / "updates-proxy-setup"
    if is_template:
        service.touch()
    monkeypatch.setattr(package_proxy, "SERVICE", str(service))
    monkeypatch.setattr(
        package_proxy, "CONFIGS", ((str(dnf), *CONFIGS[0][1:]), (str(tmp_path / "pacman.conf"), *CONFIGS[1][1:]))
    )
    assert main() == 0
    assert dnf.read_text() == (configured(DNF, *CONFIGS[0][1:]) if is_template else DNF)
    assert dnf.stat().st_mode & 0o777 == 0o640
    # What is not there is not made.
    assert sorted(path.name for path in tmp_path.iterdir() if path != service) == ["dnf.conf"]


def test_file_that_is_right_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "dnf.conf"
    path.write_text(configured(DNF, "[main]", "proxy=p"))
    path.chmod(0o400)
    before = path.stat().st_ino
    configure(str(path), "[main]", "proxy=p")
    assert path.stat().st_ino == before
