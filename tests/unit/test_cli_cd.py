"""``insula start --cdrom`` with an image that lies in a qube: a real session and agent in this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.model.names import QubeName
from insula.testing.cli_runner import Cli, Ran, served_cli
from insula.testing.local_guest import LocalGuest

INSTALLER = QubeName("installer")
CONTENT = b"an image of a CD".ljust(2048, b"\0")


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        assert served.run("create", INSTALLER, "--template", "debian-12", "--label", "red").code == 0
        yield served


@pytest.fixture
def guest(cli: Cli, tmp_path: Path) -> Iterator[LocalGuest]:
    """The qube ``work``."""
    (tmp_path / "work").mkdir()
    made = LocalGuest(tmp_path / "work" / "rpc.sock", tmp_path / "keys")
    try:
        cli.await_in_daemon(made.boot())
        yield made
    finally:
        cli.await_in_daemon(made.end())


def start(cli: Cli, image: str) -> Ran:
    environment = {"INSULA_DATA_DIR": str(cli.paths.data), "INSULA_RUNTIME_DIR": str(cli.paths.runtime)}
    return cli.run("start", INSTALLER, "--cdrom", image, **environment)


@pytest.mark.usefixtures("guest")
def test_image_of_a_qube_is_there_when_the_machine_opens_it_and_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "system.iso").write_bytes(CONTENT)
    before = sorted(cli.paths.data.iterdir())
    ran = start(cli, f"work:{tmp_path}/system.iso")
    assert ran.code == 0, ran.err
    assert cli.daemon.engine.cd_contents == {INSTALLER: CONTENT}
    assert sorted(cli.paths.data.iterdir()) == before


@pytest.mark.usefixtures("guest")
def test_image_that_cannot_be_had_starts_nothing_and_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    before = sorted(cli.paths.data.iterdir())
    for image in (f"work:{tmp_path}/missing.iso", "nonesuch:system.iso"):
        assert start(cli, image).code == 1
    assert cli.daemon.engine.cds == {}
    assert sorted(cli.paths.data.iterdir()) == before
