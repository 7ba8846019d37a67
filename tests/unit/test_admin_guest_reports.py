"""What guests tell of themselves: with the real store; the calls are made up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from insula.admin.guest_reports import GuestReports
from insula.model.names import QubeName
from insula.rpc.host_services import HostCall, HostReply
from insula.testing.admin_daemon import TEMPLATE, WORK, AdminDaemon, admin_daemon

TIME = datetime(2026, 1, 31, 16, 10, 43, 123456, tzinfo=UTC)


class Reports:
    def __init__(self, daemon: AdminDaemon) -> None:
        self.daemon = daemon
        self._services = GuestReports(daemon.context, lambda: TIME).services()

    async def call(self, caller: str, service: str, argument: str = "", payload: bytes = b"") -> HostReply:
        return await self._services[service].answer(HostCall(caller, service, argument, "dom0", payload))

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
