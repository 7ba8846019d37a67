"""``qubes.FeaturesRequest``: what a qube has written becomes features of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.admin.guest_reports import GuestReports
from insula.model.names import QubeName
from insula.rpc.host_services import HostCall, HostReply
from insula.testing.admin_daemon import AdminDaemon, admin_daemon
from insula.testing.systems import TEMPLATE, WORK


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[AdminDaemon]:
    async with admin_daemon(tmp_path) as running:
        yield running


async def say(daemon: AdminDaemon, caller: str, **keys: bytes) -> HostReply:
    service = GuestReports(daemon.context).services()["qubes.FeaturesRequest"]
    written = {f"/features-request/{name.replace('_', '-')}": value for name, value in keys.items()}
    call = HostCall(caller, "qubes.FeaturesRequest", "", "dom0", b"", {**written, "/dns/1": b"\xff"})
    return await service.answer(call)


async def test_template_says_what_it_is_once_for_all(daemon: AdminDaemon) -> None:
    assert (await say(daemon, TEMPLATE, os=b"Linux", qrexec=b"1", internal=b"1")).code == 0
    assert dict(daemon.store.system.get(TEMPLATE).features) == {"os": "Linux", "qrexec": "1"}


async def test_app_qube_does_not_speak_for_its_template(daemon: AdminDaemon) -> None:
    before = daemon.store.system
    assert (await say(daemon, WORK, os=b"Linux")).code == 0
    assert daemon.store.system == before


@pytest.mark.parametrize("value", [b"\xff", b"a\nb"])
async def test_value_that_cannot_be_changes_nothing_and_the_caller_is_told(daemon: AdminDaemon, value: bytes) -> None:
    before = daemon.store.system
    reply = await say(daemon, TEMPLATE, os=b"Linux", os_distribution=value)
    assert reply.code == 1
    assert "characters" in reply.last_words
    assert daemon.store.system is before


async def test_qube_that_was_removed_meanwhile_is_told(daemon: AdminDaemon) -> None:
    """MC-20."""
    assert (await say(daemon, QubeName("gone"), os=b"Linux")).code == 1
