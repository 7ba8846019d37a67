"""The Admin API byte for byte: what published client tools send and what they must get (admin-api §1 to §6, §10)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.testing.admin_daemon import AdminDaemon, admin_daemon, exchange

WORK_UUID = b"00000000-0000-0000-0000-000000000002"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[AdminDaemon]:
    async with admin_daemon(tmp_path) as running:
        yield running


def exception(name: bytes, message: bytes) -> bytes:
    return b"2\0" + name + b"\0\0" + message + b"\0"


ANSWERS = [
    # qvm-ls
    (
        b"admin.vm.List+ dom0 name dom0\0",
        b"0\0dom0 class=AdminVM state=Running uuid=00000000-0000-0000-0000-000000000000\n"
        b"debian-12 class=TemplateVM state=Halted uuid=00000000-0000-0000-0000-000000000001\n"
        b"work class=AppVM state=Halted uuid=" + WORK_UUID + b"\n",
    ),
    (b"admin.vm.List+ dom0 name work\0", b"0\0work class=AppVM state=Halted uuid=" + WORK_UUID + b"\n"),
    (b"admin.vm.List dom0 name work\0", b"0\0work class=AppVM state=Halted uuid=" + WORK_UUID + b"\n"),
    (b"admin.vm.List dom0 keyword adminvm\0", b"0\0dom0 class="),
    (
        b"admin.vm.List+ uuid:00000000-0000-0000-0000-000000000000 name uuid:" + WORK_UUID + b"\0",
        b"0\0work class=AppVM state=Halted uuid=" + WORK_UUID + b"\n",
    ),
    (b"admin.vmclass.List+ dom0 name dom0\0", b"0\0AppVM\nTemplateVM\nStandaloneVM\nDispVM\nAdminVM\nRemoteVM\n"),
    (b"admin.vm.CurrentState+ dom0 name work\0", b"0\0mem=0 mem_static_max=409600 cputime=0 power_state=Halted"),
    (b"admin.vm.CurrentState+ dom0 name dom0\0", b"0\0mem=0 mem_static_max=0 cputime=0 power_state=Running"),
    # qvm-prefs, qubes-prefs
    (b"admin.vm.property.Get+memory dom0 name work\0", b"0\0default=True type=int 400"),
    (b"admin.vm.property.Get+label dom0 name work\0", b"0\0default=False type=label blue"),
    (b"admin.vm.property.Get+netvm dom0 name work\0", b"0\0default=True type=vm "),
    (b"admin.vm.property.Get+template dom0 name work\0", b"0\0default=False type=vm debian-12"),
    (b"admin.vm.property.Get+autostart dom0 name work\0", b"0\0default=True type=bool False"),
    (b"admin.vm.property.Get+backup_timestamp dom0 name work\0", b"0\0default=True type=int "),
    (b"admin.vm.property.Get+default_user dom0 name work\0", b"0\0default=True type=str user"),
    (b"admin.vm.property.GetDefault+memory dom0 name work\0", b"0\0type=int 400"),
    (b"admin.vm.property.GetDefault+name dom0 name work\0", b"0\0"),
    (b"admin.vm.property.Help+memory dom0 name work\0", b"0\0Memory at start, MiB."),
    (b"admin.property.Get+default_template dom0 name dom0\0", b"0\0default=False type=vm debian-12"),
    (b"admin.property.GetDefault+stats_interval dom0 name dom0\0", b"0\0type=int 3"),
    # qvm-features, qvm-tags
    (b"admin.vm.feature.List+ dom0 name work\0", b"0\0"),
    (b"admin.vm.tag.List+ dom0 name work\0", b"0\0audiovm-dom0\ncreated-by-dom0\nguivm-dom0\n"),
    (b"admin.vm.tag.Get+created-by-dom0 dom0 name work\0", b"0\x001"),
    (b"admin.vm.tag.Get+other dom0 name work\0", b"0\x000"),
    # qvm-volume, qvm-pool
    (b"admin.vm.volume.List+ dom0 name work\0", b"0\0root\nprivate\nvolatile\nkernel\n"),
    (b"admin.vm.volume.List+ dom0 name dom0\0", b"0\0"),
    (
        b"admin.vm.volume.Info+private dom0 name work\0",
        (
            b"0\0pool=default\nvid=qubes/work/private\nsize=2147483648\nusage=0\nrw=True\nsource=\npath=\n"
            b"save_on_stop=True\nsnap_on_start=False\nrevisions_to_keep=1\nephemeral=False\n"
        ),
    ),
    (
        b"admin.vm.volume.Info+root dom0 name work\0",
        (
            b"0\0pool=default\nvid=qubes/work/root\nsize=10737418240\nusage=0\nrw=True\nsource=qubes/debian-12/root\npath=\n"
            b"save_on_stop=False\nsnap_on_start=True\nrevisions_to_keep=0\nephemeral=False\nis_outdated=False\n"
        ),
    ),
    (
        b"admin.vm.volume.Info+kernel dom0 name work\0",
        (
            b"0\0pool=linux-kernel\nvid=6.1.0\nsize=0\nusage=0\nrw=False\nsource=\npath=\n"
            b"save_on_stop=False\nsnap_on_start=False\nrevisions_to_keep=0\nephemeral=False\n"
        ),
    ),
    (b"admin.vm.volume.ListSnapshots+private dom0 name work\0", b"0\0"),
    (b"admin.vm.volume.ListSnapshots+kernel dom0 name work\0", b"0\0"),
    (b"admin.pool.List+ dom0 name dom0\0", b"0\0default\nlinux-kernel\n"),
    (b"admin.pool.UsageDetails+default dom0 name dom0\0", b"0\0data_size=1073741824000\ndata_usage=0\n"),
    (
        b"admin.pool.volume.List+default dom0 name dom0\0",
        b"0\0qubes/debian-12/private\nqubes/debian-12/root\nqubes/work/private\n",
    ),
    # labels
    (b"admin.label.List+ dom0 name dom0\0", b"0\0red\norange\nyellow\ngreen\ngray\nblue\npurple\nblack\n"),
    (b"admin.label.Get+red dom0 name dom0\0", b"0\x000xcc0000"),
    (b"admin.label.Index+black dom0 name dom0\0", b"0\x008"),
    # what qvm-clone and the device tools ask for, though nothing is there yet
    (b"admin.deviceclass.List+ dom0 name dom0\0", b"0\0mic\n"),
    (
        b"admin.vm.device.mic.Available+ dom0 name dom0\0",
        (
            b"0\0mic:0000:0000::m000000 device_id='0000:0000::m000000' port_id='mic' devclass='mic'"
            b" backend_domain='dom0' manufacturer='build-in' product='microphone' interfaces='m000000'\n"
        ),
    ),
    (b"admin.vm.device.mic.Attached+ dom0 name work\0", b"0\0"),
    (b"admin.vm.device.block.Available+ dom0 name work\0", b"0\0"),
    (b"admin.vm.device.pci.Assigned+ dom0 name work\0", b"0\0"),
    (b"admin.vm.device.denied.List+ dom0 name work\0", b"0\0"),
    (b"admin.vm.firewall.Get+ dom0 name work\0", b"0\0action=accept\n"),
    (b"admin.vm.firewall.Set+ dom0 name work\0action=accept\n", b"0\0"),
    (b"admin.vm.notes.Get+ dom0 name work\0", b"0\0"),
    # changes
    (b"admin.vm.Create.AppVM+ dom0 name dom0\0name=new label=red", b"0\0"),
    (b"admin.vm.Create.AppVM+debian-12 dom0 name dom0\0name=new label=red", b"0\0"),
    (b"admin.vm.CreateInPool.AppVM+ dom0 name dom0\0name=new label=red pool=default", b"0\0"),
    (b"admin.vm.CreateInPool.TemplateVM+ dom0 name dom0\0name=new label=red pool:root=default", b"0\0"),
    (b"admin.vm.Start+ dom0 name work\0", b"0\0"),
    (b"admin.vm.property.Set+memory dom0 name work\x00500", b"0\0"),
    (b"admin.vm.property.Set+netvm dom0 name work\0", b"0\0"),
    (b"admin.vm.property.Reset+memory dom0 name work\0", b"0\0"),
    (b"admin.vm.feature.Set+service.cups dom0 name work\x001", b"0\0"),
    (b"admin.vm.feature.Set+gui dom0 name work\0", b"0\0"),
    (b"admin.vm.tag.Set+mine dom0 name work\0", b"0\0"),
    (b"admin.vm.volume.Resize+private dom0 name work\x003221225472", b"0\0"),
    (b"admin.vm.volume.Clear+private dom0 name work\0", b"0\0"),
    (b"admin.vm.volume.Set.revisions_to_keep+private dom0 name work\x00-1", b"0\0"),
    (b"admin.vm.volume.Set.rw+private dom0 name work\0False", b"0\0"),
    (b"admin.vm.volume.Set.ephemeral+volatile dom0 name work\0True", b"0\0"),
    (b"admin.vm.volume.ImportWithSize+private dom0 name work\x00512\n" + bytes(512), b"0\0"),
    (b"admin.pool.Add+qcow2 dom0 name dom0\0name=extra\ndir_path=/srv/extra\n", b"0\0"),
    (b"admin.pool.Set.revisions_to_keep+default dom0 name dom0\x002", b"0\0"),
    (b"admin.label.Create+teal dom0 name dom0\x000x008080", b"0\0"),
    (b"admin.vm.notes.Set+ dom0 name work\0caf\xc3\xa9\n", b"0\0"),
    (b"admin.vm.Remove+ dom0 name work\0", b"0\0"),
    # refusals: unknown qube before unknown method before payload before argument before destination
    (b"admin.nosuch+ dom0 name nosuch\0", exception(b"QubesVMNotFoundError", b"No such qube: 'nosuch'")),
    (b"admin.nosuch+ nosuch name dom0\0", exception(b"QubesVMNotFoundError", b"No such qube: 'nosuch'")),
    (b"admin.nosuch+x dom0 name work\0p", exception(b"ProtocolError", b"No such method: admin.nosuch")),
    (b"admin.pool.List+x dom0 name work\0p", exception(b"ProtocolError", b"admin.pool.List takes no payload")),
    (b"admin.pool.List+x dom0 name work\0", exception(b"ProtocolError", b"admin.pool.List takes no argument")),
    (
        b"admin.pool.List+ dom0 name work\0",
        exception(b"ProtocolError", b"admin.pool.List must be called on dom0, not on work"),
    ),
    (
        b"admin.vm.notes.Get+ dom0 name dom0\0",
        exception(b"ProtocolError", b"admin.vm.notes.Get cannot be called on dom0"),
    ),
    (
        b"admin.vm.property.Get+ dom0 name work\0",
        exception(b"ProtocolError", b"admin.vm.property.Get needs an argument"),
    ),
    (b"admin.label.Create+x dom0 name dom0\0", exception(b"ProtocolError", b"admin.label.Create needs a payload")),
    # a percent sign in a message is doubled, for clients format it
    (
        b"admin.vm.feature.Get+100%s dom0 name work\0",
        exception(b"QubesFeatureNotFoundError", b"work has no feature '100%%s'"),
    ),
]


@pytest.mark.parametrize(("request_bytes", "answer"), ANSWERS, ids=[item[0][:60].decode() for item in ANSWERS])
async def test_published_request_gets_published_answer(
    daemon: AdminDaemon, request_bytes: bytes, answer: bytes
) -> None:
    received = await exchange(daemon.socket, request_bytes)
    if answer.endswith(b"class="):
        assert received.startswith(answer)
    else:
        assert received == answer


async def test_get_all_is_sorted_one_line_each_and_escaped(daemon: AdminDaemon) -> None:
    await exchange(daemon.socket, rb"admin.vm.property.Set+kernelopts dom0 name work" + b"\0" + rb"a=\n")
    answer = await exchange(daemon.socket, b"admin.vm.property.GetAll+ dom0 name work\0")
    assert answer.startswith(b"0\0audiovm default=True type=vm dom0\n")
    lines = answer[2:].decode().splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    assert r"kernelopts default=False type=str a=\\n" + "\n" in lines
    assert "netvm default=True type=vm \n" in lines


async def test_pool_info_is_sorted_with_size_last(daemon: AdminDaemon) -> None:
    answer = await exchange(daemon.socket, b"admin.pool.Info+default dom0 name dom0\0")
    config, _, rest = answer.decode().removeprefix("0\0").partition("driver=qcow2\n")
    assert config.startswith("dir_path=/")
    assert rest == "name=default\nsize=1073741824000\nusage=0\n"


async def test_pool_drivers_come_with_their_options(daemon: AdminDaemon) -> None:
    answer = await exchange(daemon.socket, b"admin.pool.ListDrivers+ dom0 name dom0\0")
    assert answer.startswith(b"0\0linux-kernel dir_path\nqcow2 dir_path revisions_to_keep ephemeral_volatile")
    assert answer.endswith(b"\n")


async def test_clone_token_is_32_letters_and_digits(daemon: AdminDaemon) -> None:
    answer = await exchange(daemon.socket, b"admin.vm.volume.CloneFrom+private dom0 name work\0")
    assert len(answer) == 2 + 32
    assert answer[2:].decode().isalnum()


async def test_event_stream_begins_with_connection_established_and_has_published_records(daemon: AdminDaemon) -> None:
    reader, writer = await asyncio.open_unix_connection(str(daemon.socket))
    writer.write(b"admin.Events+ dom0 name dom0\0")
    writer.write_eof()
    established = b"1\0\0connection-established\0\0"
    assert await reader.readexactly(len(established)) == established
    await exchange(daemon.socket, b"admin.vm.property.Set+memory dom0 name work\x00500")
    expected = (
        b"1\0work\0property-pre-set:memory\0name\0memory\0newvalue\x00500\0\0"
        b"1\0work\0property-set:memory\0name\0memory\0newvalue\x00500\0\0"
    )
    assert await reader.readexactly(len(expected)) == expected
    writer.close()
    await writer.wait_closed()


MALFORMED = [
    b"",
    b"\0",
    b"admin.vm.List+ dom0 name dom0",
    b"admin.vm.List+ dom0 dom0\0",
    b"admin.vm.List+ dom0 name dom0 \0",
    b"admin.vm.List+ dom0 vm dom0\0",
    b"admin.vm.List+ dom0 keyword anyvm\0",
    b"admin.vm.List+ dom0 name caf\xc3\xa9\0",
    b"admin.vm.feature.Set+\xff dom0 name work\0",
    b"admin.vm.List+\n dom0 name dom0\0",
    b"/etc/passwd dom0 name dom0\0",
    b"admin.vm.notes.Set+ dom0 name work\0" + bytes(65536),
    b"a" * 65537,
    b"\xff" * 1000,
]


@pytest.mark.parametrize("request_bytes", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_framing_is_dropped_without_a_byte(daemon: AdminDaemon, request_bytes: bytes) -> None:
    assert await exchange(daemon.socket, request_bytes) == b""
    # …and the next caller is served as if nothing had been.
    assert (await exchange(daemon.socket, b"admin.pool.List+ dom0 name dom0\0")).startswith(b"0\0")


async def test_request_of_exactly_the_limit_is_served(daemon: AdminDaemon) -> None:
    head = b"admin.vm.notes.Set+ dom0 name work\0"
    assert await exchange(daemon.socket, head + b"x" * (65536 - len(head))) == b"0\0"


async def test_internal_methods_are_not_on_the_main_socket(daemon: AdminDaemon) -> None:
    request = b"internal.GetSystemInfo+ dom0 name dom0\0"
    assert (await exchange(daemon.socket, request)).startswith(b"2\0ProtocolError\0")
    assert (await exchange(daemon.internal_socket, request)).startswith(b'0\0{"domains": {"dom0": {')


async def test_admin_methods_are_not_on_the_internal_socket(daemon: AdminDaemon) -> None:
    answer = await exchange(daemon.internal_socket, b"admin.vm.List+ dom0 name dom0\0")
    assert answer.startswith(b"2\0ProtocolError\0")
