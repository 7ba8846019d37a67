"""What guests tell of themselves: with the real store; the calls are made up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from insula.admin import guest_reports
from insula.admin.guest_reports import GuestReports
from insula.model import applications
from insula.model.names import QubeName
from insula.rpc.host_services import HostCall, HostReply
from insula.testing.admin_daemon import TEMPLATE, WORK, AdminDaemon, admin_daemon

TIME = datetime(2026, 1, 31, 16, 10, 43, 123456, tzinfo=UTC)


NOTHING: Mapping[str, bytes] = {}
EDITOR = b"a.desktop:Name=Editor\na.desktop:Exec=x\n\n"


async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 7):
        yield data[start : start + 7]


class Reports:
    def __init__(self, daemon: AdminDaemon) -> None:
        self.daemon = daemon
        self._services = GuestReports(daemon.context, lambda: TIME).services()

    async def call(
        self, caller: str, service: str, argument: str = "", payload: bytes = b"", keys: Mapping[str, bytes] = NOTHING
    ) -> HostReply:
        pieces = in_pieces(payload)
        return await self._services[service].answer(HostCall(caller, service, argument, "dom0", payload, keys, pieces))

    def features(self, name: str) -> dict[str, str]:
        return dict(self.daemon.store.system.get(QubeName(name)).features)


@pytest.fixture
async def reports(tmp_path: Path) -> AsyncIterator[Reports]:
    async with admin_daemon(tmp_path) as daemon:
        yield Reports(daemon)


async def test_time_is_told_in_the_published_forms(reports: Reports) -> None:
    assert (await reports.call(WORK, "qubes.GetDate")).output == b"2026-01-31T16:10:43+00:00\n"
    nanoseconds = await reports.call(WORK, "qubes.GetDate", "nanoseconds")
    assert nanoseconds.output == b"2026-01-31T16:10:43,123456000+00:00\n"
    assert (await reports.call(WORK, "qubes.GetDate", "other")).code == 1


async def test_updates_are_kept_with_the_qube_they_would_be_installed_in(reports: Reports) -> None:
    assert (await reports.call(TEMPLATE, "qubes.NotifyUpdates", payload=b"3\n")).code == 0
    assert reports.features(TEMPLATE)["updates-available"] == "1"
    assert reports.features(TEMPLATE)["last-updates-check"] == "2026-01-31 16:10:43"
    assert "last-update" not in reports.features(TEMPLATE)
    await reports.call(TEMPLATE, "qubes.NotifyUpdates", payload=b"0")
    assert reports.features(TEMPLATE)["updates-available"] == ""
    assert reports.features(TEMPLATE)["last-update"] == "2026-01-31 16:10:43"


async def test_app_qube_tells_of_its_template_but_not_that_all_is_well(reports: Reports) -> None:
    """MC-97: a claim, and one that can only make the user look."""
    await reports.call(WORK, "qubes.NotifyUpdates", payload=b"0")
    assert "updates-available" not in reports.features(TEMPLATE)
    await reports.call(WORK, "qubes.NotifyUpdates", payload=b"1")
    assert reports.features(TEMPLATE)["updates-available"] == "1"
    assert "updates-available" not in reports.features(WORK)


async def test_app_qube_does_not_speak_for_a_template_that_runs(reports: Reports) -> None:
    await reports.daemon.client.start(TEMPLATE)
    await reports.call(WORK, "qubes.NotifyUpdates", payload=b"1")
    assert "updates-available" not in reports.features(TEMPLATE)


@pytest.mark.parametrize("payload", [b"", b"-1", b"many", b"1 2", b"\xff", "٣".encode()])
async def test_number_of_updates_that_is_none_changes_nothing(reports: Reports, payload: bytes) -> None:
    assert (await reports.call(TEMPLATE, "qubes.NotifyUpdates", payload=payload)).code == 1
    assert "updates-available" not in reports.features(TEMPLATE)


async def test_applications_of_a_template_are_those_of_its_qubes(reports: Reports) -> None:
    client = reports.daemon.client
    assert await client.applications(WORK) == []
    assert (await reports.call(TEMPLATE, "qubes.SyncAppMenus", payload=EDITOR)).code == 0
    [shown] = await client.applications(WORK)
    assert (shown["id"], shown["name"]) == ("a", "Editor")
    own = b"a.desktop:Name=Mine\na.desktop:Exec=x\nb.desktop:Name=Other\nb.desktop:Exec=x\n"
    await reports.call(WORK, "qubes.SyncAppMenus", payload=own)
    assert [item["name"] for item in await client.applications(WORK)] == ["Mine", "Other"]
    assert [item["name"] for item in await client.applications(TEMPLATE)] == ["Editor"]
    # A later list replaces an earlier one.
    await reports.call(WORK, "qubes.SyncAppMenus", payload=b"")
    assert [item["name"] for item in await client.applications(WORK)] == ["Editor"]


async def test_list_of_applications_that_is_too_long_changes_nothing(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reports.call(TEMPLATE, "qubes.SyncAppMenus", payload=EDITOR)
    monkeypatch.setattr(guest_reports, "MAX_LIST", 100)
    monkeypatch.setattr(applications, "MAX_LIST", 100)
    reply = await reports.call(TEMPLATE, "qubes.SyncAppMenus", payload=bytes(1000))
    assert (reply.code, "at most 100 bytes" in reply.last_words) == (1, True)
    assert len(await reports.daemon.client.applications(TEMPLATE)) == 1


async def test_applications_of_a_qube_that_is_gone_are_forgotten(reports: Reports) -> None:
    """MC-20."""
    daemon = reports.daemon
    await reports.call(WORK, "qubes.SyncAppMenus", payload=EDITOR)
    lists = daemon.context.applications
    old = daemon.store.system.get(QubeName(WORK)).uuid
    assert len(lists.told_by(old)) == 1
    lists.forget_all_but([])
    assert lists.told_by(old) == ()


async def test_file_that_is_damaged_is_no_list(reports: Reports) -> None:
    await reports.call(WORK, "qubes.SyncAppMenus", payload=EDITOR)
    [path] = (path for path in reports.daemon.socket.parent.glob("applications/*"))
    path.write_text("[{")
    assert await reports.daemon.client.applications(WORK) == []


async def test_older_tools_tell_what_they_have(reports: Reports) -> None:
    name = "windows"
    await reports.daemon.client.create_qube("StandaloneVM", name, "red")
    keys = {"/qubes-tools/version": b"4", "/qubes-tools/qrexec": b"1", "/qubes-tools/gui": b"0"}
    assert (await reports.call(name, "qubes.NotifyTools", keys=keys)).code == 0
    assert {key: reports.features(name).get(key) for key in ("qrexec", "gui")} == {"qrexec": "1", "gui": ""}


@pytest.mark.parametrize(
    "keys",
    [{"/qubes-tools/qrexec": b"1"}, {"/qubes-tools/version": b"4"}, {"/other": b"1"}, {}],
)
async def test_older_tools_of_a_qube_with_a_template_or_without_version_change_nothing(
    reports: Reports, keys: Mapping[str, bytes]
) -> None:
    before = reports.features(WORK)
    assert (await reports.call(WORK, "qubes.NotifyTools", keys=keys)).code == 0
    assert reports.features(WORK) == before


@pytest.mark.parametrize("value", [b"", b"-1", b"1 ", b"x", b"9" * 20, "\u0663".encode()])
async def test_tools_that_are_no_number_are_refused(reports: Reports, value: bytes) -> None:
    keys = {"/qubes-tools/version": b"4", "/qubes-tools/qrexec": value}
    assert (await reports.call(TEMPLATE, "qubes.NotifyTools", keys=keys)).code == 1


async def test_qube_that_waits_for_its_session_has_its_windows_shown_where_the_last_ones_were(reports: Reports) -> None:
    refused = await reports.call(WORK, "insula.ShowWindows")
    assert (refused.code, refused.last_words) == (1, "work is not running\n")
    await reports.daemon.engine.start(QubeName(WORK))
    assert (await reports.call(WORK, "insula.ShowWindows")).code == 0
    assert reports.daemon.engine.shown_on == {WORK: None}
