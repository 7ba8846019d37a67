"""``insula template``: with a build that makes small files instead of a system."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from insula.cli.commands import template
from insula.lifecycle.template import TemplateImage
from insula.model.names import QubeName
from insula.templates.build import BuildProgress, BuiltTemplate
from insula.templates.distribution import OsInfo
from insula.templates.errors import BuildFailed
from insula.templates.foreign import ForeignSystem
from insula.testing.cli_runner import Cli, served_cli


@dataclass
class FakeBuild:
    """Takes the place of :func:`insula.templates.build.build`."""

    key: str = "a" * 32
    error: Exception | None = None
    folders: list[tuple[Path, Path]] = field(default_factory=list)

    async def __call__(
        self, name: str, work_dir: Path, out_dir: Path, progress: Callable[[BuildProgress], None]
    ) -> BuiltTemplate:
        self.folders.append((work_dir, out_dir))
        progress(BuildProgress("bootstrap", 0.4, "unpacking things"))
        if self.error is not None:
            raise self.error
        out_dir.mkdir(parents=True, exist_ok=True)
        for file in ("root.img", "vmlinux", "initrd"):
            (out_dir / file).write_bytes(b"x" * 512)
        return BuiltTemplate(
            name=name,
            root_image=out_dir / "root.img",
            kernel=out_dir / "vmlinux",
            initrd=out_dir / "initrd",
            kernel_version="6.1.0",
            cmdline="quiet",
            content_key=self.key,
            size=512,
            os=OsInfo("debian", "", "12", "2028-06-30"),
            agent_version="1",
        )


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        yield served


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> FakeBuild:
    fake = FakeBuild()
    monkeypatch.setattr(template.builder, "build", fake)
    return fake


def note_installed(cli: Cli, key: str) -> None:
    """As the daemon does when it took in a build."""
    assert cli.run("features", "debian-12", "template-content-key", key).code == 0


def test_build_hands_the_files_to_the_daemon(cli: Cli, build: FakeBuild) -> None:
    ran = cli.run("template", "build", "debian-12", "--json")
    assert ran.code == 0, ran.err
    assert {key: ran.json[key] for key in ("name", "content_key", "changed")} == {
        "name": "debian-12",
        "content_key": build.key,
        "changed": True,
    }
    folder = cli.paths.templates / "debian-12"
    assert build.folders == [(folder / "work", folder / "built")]
    assert cli.daemon.templates.installed == [
        TemplateImage(
            name=QubeName("debian-12"),
            root_image=folder / "built" / "root.img",
            kernel=folder / "built" / "vmlinux",
            initrd=folder / "built" / "initrd",
            kernel_version="6.1.0",
            cmdline="quiet",
            content_key=build.key,
            distribution="debian",
            release="12",
        )
    ]
    assert "debian-12 installed in " in ran.err


def test_build_with_nothing_changed_says_so_and_installs_nothing(cli: Cli, build: FakeBuild) -> None:
    note_installed(cli, build.key)
    ran = cli.run("template", "build")
    assert (ran.code, ran.err) == (0, "debian-12 is up to date\n")
    assert cli.run("template", "build", "--json").json["changed"] is False
    assert cli.daemon.templates.installed == []


def test_rebuild_starts_from_nothing_and_installs_again(cli: Cli, build: FakeBuild) -> None:
    note_installed(cli, build.key)
    stale = cli.paths.templates / "debian-12" / "built" / "stale"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert cli.run("template", "build", "--rebuild").code == 0
    assert not stale.exists()
    assert len(cli.daemon.templates.installed) == 1


def test_build_that_fails_shows_its_last_output_made_safe(cli: Cli, build: FakeBuild) -> None:
    build.error = BuildFailed("bootstrap failed", tail="E: no such\x1b[2J mirror")
    ran = cli.run("template", "build")
    assert ran.code == 1
    assert "    E: no such\\x1b[2J mirror\n" in ran.err
    assert ran.err.endswith(
        "insula: error: bootstrap failed\nhint: insula template build debian-12 goes on where it stopped\n"
    )
    assert cli.daemon.templates.installed == []


def test_build_of_running_template_or_other_qube_is_refused_before_the_work(cli: Cli, build: FakeBuild) -> None:
    cli.run("start", "debian-12")
    ran = cli.run("template", "build")
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: insula stop debian-12")
    cli.run("stop", "debian-12")
    cli.run("remove", "--yes", "work")
    cli.run("prefs", "--global", "default_template", "none")
    assert cli.run("remove", "--yes", "debian-12").code == 0
    cli.run("create", "debian-12", "--class", "StandaloneVM", "--label", "red")
    ran = cli.run("template", "build")
    assert (ran.code, "already" in ran.err) == (1, True)
    assert build.folders == []


def test_build_of_unknown_recipe_guesses(cli: Cli) -> None:
    ran = cli.run("template", "build", "debain-12")
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: did you mean debian-12?")


def test_ls_shows_system_build_and_users(cli: Cli) -> None:
    note_installed(cli, "b" * 32)
    cli.run("features", "debian-12", "os-distribution", "debian")
    cli.run("features", "debian-12", "os-version", "12")
    assert cli.run("template", "ls", "--json").json == [
        {
            "name": "debian-12",
            "state": "Halted",
            "distribution": "debian",
            "release": "12",
            "content_key": "b" * 32,
            "qubes": 1,
        }
    ]
    assert cli.run("template", "ls").lines[1].split() == ["debian-12", "Halted", "debian", "12", "b" * 12, "1"]
    assert "debian-12" in cli.run("template", "ls", "--available", "--json").json
    assert "debian-12" in cli.run("template", "ls", "--available").lines


def test_remove_takes_templates_only_and_cleans_up(cli: Cli, build: FakeBuild) -> None:
    assert cli.run("template", "build").code == 0
    assert cli.run("template", "remove", "--yes", "debian-12").code == 1
    ran = cli.run("template", "remove", "--yes", "work")
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: insula remove work")
    assert cli.run("template", "remove", "debian-12").code == 2
    assert cli.run("remove", "--yes", "work").code == 0
    assert cli.run("prefs", "--global", "default_template", "none").code == 0
    assert cli.run("template", "remove", "--yes", "debian-12").code == 0
    assert not (cli.paths.templates / "debian-12").exists()


async def _imported(
    distribution: ForeignSystem, work_dir: Path, out_dir: Path, progress: Callable[[BuildProgress], None]
) -> BuiltTemplate:
    """Takes the place of :func:`insula.templates.build.build_distribution`."""
    return await FakeBuild("b" * 32)(distribution.name, work_dir, out_dir, progress)


def test_import_hands_the_files_to_the_daemon(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(template.builder, "build_distribution", _imported)
    disk = tmp_path / "Whonix.qcow2"
    disk.write_bytes(b"disk")
    ran = cli.run("template", "import", str(disk), "whonix-gateway", "--json")
    assert ran.code == 0, ran.err
    assert ran.json == {"name": "whonix-gateway", "content_key": "b" * 32, "distribution": "debian"}
    assert [image.name for image in cli.daemon.templates.installed] == ["whonix-gateway"]


def test_import_that_is_refused_says_why_and_installs_nothing(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "Whonix.qcow2"
    disk.write_bytes(b"QFI\xfb")
    ran = cli.run("template", "import", str(disk), "whonix-gateway")
    assert ran.code == 1
    assert "ends within its header" in ran.err
    for name, said in (("debian-12", "is built"), ("no such/name", "name")):
        refused = cli.run("template", "import", str(disk), name)
        assert refused.code != 0
        assert said in refused.err
    assert cli.daemon.templates.installed == []
