"""The microphone: nobody has it until it is given, one qube has it then, and what it records ends when it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.admin.microphone import Microphone, TakenAway
from insula.model.devices import ARGUMENT
from insula.model.errors import (
    DeviceAlreadyAttached,
    DeviceNotAssigned,
    PermissionDenied,
    ProtocolError,
    QubesException,
    QubesVMNotRunningError,
)
from insula.model.names import QubeName
from insula.testing.admin_daemon import WORK, AdminDaemon, admin_daemon

OTHER = "other"
PATIENCE_S = 120.0


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[AdminDaemon]:
    async with admin_daemon(tmp_path) as made:
        await made.client.create_qube("AppVM", OTHER, "red", template="debian-12")
        for name in (WORK, OTHER):
            await made.client.start(name)
        yield made


def microphone(daemon: AdminDaemon) -> Microphone:
    return daemon.context.microphone


async def test_nobody_has_it_at_first_then_one_then_nobody(daemon: AdminDaemon) -> None:
    client = daemon.client
    assert await client.microphone_holder() is None
    await client.attach_microphone(WORK)
    assert await client.microphone_holder() == WORK
    assert (await client.call("admin.vm.device.mic.Attached", WORK)).startswith(b"dom0+mic:")
    assert await client.call("admin.vm.device.mic.Attached", OTHER) == b""
    for name in (WORK, OTHER):
        with pytest.raises(DeviceAlreadyAttached, match=WORK):
            await client.attach_microphone(name)
    with pytest.raises(DeviceNotAssigned):
        await client.detach_microphone(OTHER)
    await client.detach_microphone(WORK)
    assert await client.microphone_holder() is None
    with pytest.raises(DeviceNotAssigned):
        await client.detach_microphone(WORK)
    await client.attach_microphone(OTHER)


async def test_qube_that_ends_has_it_no_more_nor_when_it_is_started_again(daemon: AdminDaemon) -> None:
    await daemon.client.attach_microphone(WORK)
    await daemon.client.kill(WORK)
    assert await daemon.client.microphone_holder() is None
    with pytest.raises(QubesVMNotRunningError):
        await daemon.client.attach_microphone(WORK)
    await daemon.client.start(WORK)
    assert await daemon.client.microphone_holder() is None


async def test_refused_attachment_leaves_nothing(daemon: AdminDaemon) -> None:
    client = daemon.client
    for argument, payload in (("dom0+sda", b""), (ARGUMENT, b"mode='required'")):
        with pytest.raises(ProtocolError):
            await client.call("admin.vm.device.mic.Attach", WORK, argument, payload)
    await client.set_property("devices_denied", "m******", WORK)
    with pytest.raises(PermissionDenied):
        await client.attach_microphone(WORK)
    await client.set_property("audiovm", "", OTHER)
    with pytest.raises(QubesException, match="audiovm"):
        await client.attach_microphone(OTHER)
    assert await client.microphone_holder() is None


async def test_recording_of_a_qube_without_it_does_not_begin(daemon: AdminDaemon) -> None:
    begun = []

    async def recording() -> None:
        begun.append(True)

    await daemon.client.attach_microphone(OTHER)
    with pytest.raises(TakenAway):
        await microphone(daemon).record(daemon.engine, WORK, recording())
    assert not begun
    await microphone(daemon).record(daemon.engine, QubeName(OTHER), recording())
    assert begun


async def test_recording_ends_when_it_is_taken_away_or_nobody_wants_it(daemon: AdminDaemon) -> None:
    for is_taken_away in (True, False):
        begun, ended = asyncio.Event(), asyncio.Event()

        async def recording(begun: asyncio.Event = begun, ended: asyncio.Event = ended) -> None:
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.set()

        await daemon.client.attach_microphone(WORK)
        task = asyncio.create_task(microphone(daemon).record(daemon.engine, WORK, recording()))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        if is_taken_away:
            await daemon.client.detach_microphone(WORK)
            with pytest.raises(TakenAway):
                await asyncio.wait_for(task, PATIENCE_S)
        else:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert ended.is_set()


async def test_what_goes_wrong_with_a_recording_is_said(daemon: AdminDaemon) -> None:
    async def recording() -> None:
        raise OSError("the sound server has gone")

    await daemon.client.attach_microphone(WORK)
    with pytest.raises(OSError, match="gone"):
        await microphone(daemon).record(daemon.engine, WORK, recording())
