"""``insula menu`` against a served Admin API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.admin.client import AdminClient, QubeRow
from insula.model.applications import Application
from insula.model.names import QubeName
from insula.testing.cli_runner import Cli, served_cli


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as made:
        yield made


def tell(cli: Cli, qube: str, *applications: Application) -> None:
    context = cli.daemon.context
    uuid = context.store.system.get(QubeName(qube)).uuid
    cli.in_daemon(lambda: context.applications.keep(uuid, applications))


def test_every_qube_that_may_have_windows_is_listed_templates_and_the_host_are_not(cli: Cli) -> None:
    tell(cli, "work", Application("web", "Web Browser"), Application("edit", "Editor"))
    assert cli.run("create", "other", "--template", "debian-12", "--label", "red").code == 0
    rows = [(row["qube"], row["name"]) for row in cli.run("menu", "--json").json]
    assert rows == [("other", "Terminal"), ("work", "Editor"), ("work", "Web Browser")]
    assert cli.run("features", "work", "gui", "").code == 0
    assert [row["qube"] for row in cli.run("menu", "--json").json] == ["other"]


@pytest.mark.parametrize("command", [["menu"], ["net"], ["volume", "ls"], ["ls"]])
def test_qube_that_is_gone_before_it_is_asked_about_is_left_out(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """As disposables go: at any moment, several a minute."""
    assert cli.run("create", "other", "--template", "debian-12", "--label", "red").code == 0
    list_qubes = AdminClient.list_qubes

    async def and_one_goes(client: AdminClient) -> list[QubeRow]:
        rows = await list_qubes(client)
        other = QubeName("other")
        if any(row.name == other for row in rows):
            cli.await_in_daemon(cli.daemon.engine.remove(other))
        return rows

    monkeypatch.setattr(AdminClient, "list_qubes", and_one_goes)
    ran = cli.run(*command, "--json")
    assert ran.code == 0, ran.err
    assert "work" in ran.out
    assert "other" not in ran.out


def test_words_that_match_several_list_them_and_none_is_said(cli: Cli) -> None:
    tell(cli, "work", Application("web", "Web Browser"), Application("edit", "Web Editor"))
    listed = cli.run("menu", "web", "work")
    assert listed.code == 0
    assert "Web Browser" in listed.out
    assert "Web Editor" in listed.out
    missing = cli.run("menu", "nothing")
    assert missing.code == 1
    assert "no application matches nothing" in missing.err


def test_desktops_menu_has_them_and_is_rid_of_them(cli: Cli, tmp_path: Path) -> None:
    tell(cli, "work", Application("web", "Web Browser"))
    home = tmp_path / "home"
    ran = cli.run("menu", "--install", HOME=str(home), XDG_DATA_HOME=str(home / "data"))
    assert ran.code == 0, ran.err
    files = {path.name for path in (home / "data/applications").iterdir()}
    assert "insula-app-work+web.desktop" in files
    assert cli.run("menu", "--uninstall", HOME=str(home), XDG_DATA_HOME=str(home / "data")).code == 0
    assert not list((home / "data/applications").iterdir())
    assert cli.run("menu", "--install", "web").code == 2
