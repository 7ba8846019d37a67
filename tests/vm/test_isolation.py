"""What the README promises of qubes, shown with real guests."""

from __future__ import annotations

import asyncio

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, create_app_qube, run, sh

from .conftest import discard


async def test_root_file_is_gone_after_restart_and_home_file_stays(daemon: DaemonProcess, qube: str) -> None:
    await sh(daemon, qube, "echo system > /written; echo mine > /home/user/kept; sync", user="root")
    assert await sh(daemon, qube, "cat /written /home/user/kept") == "system\nmine"
    await daemon.client.shutdown(qube, wait=True)
    await daemon.client.start(qube)
    assert (await run(daemon, qube, "cat /written")).code == 1
    assert await sh(daemon, qube, "cat /home/user/kept") == "mine"


async def test_two_qubes_share_nothing_they_write_and_no_identity(daemon: DaemonProcess) -> None:
    names = ("test-a", "test-b")
    for name in names:
        await create_app_qube(daemon.client, name)
    await asyncio.gather(*(daemon.client.start(name) for name in names))
    for name in names:
        await sh(daemon, name, f"echo secret-of-{name} > ~/secret; cp ~/secret /tmp/secret")
    for name, other in (names, names[::-1]):
        assert await sh(daemon, name, "cat ~/secret /tmp/secret") == f"secret-of-{name}\nsecret-of-{name}"
        search = f"grep -rl secret-of-[{other[0]}]{other[1:]} /home /tmp /rw /var /etc"
        assert (await run(daemon, name, search, user="root")).out == b""
        assert await sh(daemon, name, "hostname") == name
    ids = [await sh(daemon, name, "cat /etc/machine-id") for name in names]
    assert len(set(ids)) == len(ids)
    assert all(len(i) == 32 and i != "0" * 32 for i in ids)
    for name in names:
        await discard(daemon, name)


async def test_qube_without_netvm_has_no_interface_at_all(daemon: DaemonProcess, qube: str) -> None:
    """MC-82: not a disabled one, none."""
    assert await sh(daemon, qube, "ls /sys/class/net") == "lo"
    network_controller = "0x02"
    assert await sh(daemon, qube, f"grep -l '^{network_controller}' /sys/bus/pci/devices/*/class || true") == ""


async def test_template_change_reaches_app_qube_at_its_next_start_only(daemon: DaemonProcess, qube: str) -> None:
    """MC-58: a running qube keeps the version it started with, and is shown as outdated."""
    await daemon.client.start(TEMPLATE)
    await sh(daemon, TEMPLATE, "echo v2 > /etc/from-template", user="root")
    await daemon.client.shutdown(TEMPLATE, wait=True)
    assert (await run(daemon, qube, "cat /etc/from-template")).code == 1
    assert (await daemon.client.volume_info(qube, "root")).is_outdated
    await daemon.client.shutdown(qube, wait=True)
    await daemon.client.start(qube)
    assert await sh(daemon, qube, "cat /etc/from-template") == "v2"
    assert not (await daemon.client.volume_info(qube, "root")).is_outdated


async def test_killed_template_keeps_nothing_of_a_half_done_change(daemon: DaemonProcess) -> None:
    """MC-96: only a clean shutdown of a template is committed."""
    await daemon.client.start(TEMPLATE)
    await sh(daemon, TEMPLATE, "echo half > /etc/half-done; sync", user="root")
    await daemon.client.kill(TEMPLATE)
    await daemon.client.start(TEMPLATE)
    assert (await run(daemon, TEMPLATE, "cat /etc/half-done")).code == 1
    await daemon.client.shutdown(TEMPLATE, wait=True)


async def test_killed_app_qube_keeps_its_home_as_after_a_power_cut(daemon: DaemonProcess, qube: str) -> None:
    await sh(daemon, qube, "echo mine > ~/kept; sync")
    await daemon.client.kill(qube)
    await daemon.client.start(qube)
    assert await sh(daemon, qube, "cat ~/kept") == "mine"


async def test_guest_gets_the_services_and_the_persistence_its_keys_say(
    daemon: DaemonProcess, halted_qube: str
) -> None:
    qube = halted_qube
    await daemon.client.set_feature(qube, "service.test-service", "1")
    await daemon.client.start(qube)
    assert await sh(daemon, qube, "test -e /run/qubes-service/test-service && echo on") == "on"
    assert await sh(daemon, qube, "test -e /run/qubes/persistent-rw-only && echo yes") == "yes"


async def test_tmp_keeps_what_an_early_command_wrote_and_is_empty_at_the_next_boot(daemon: DaemonProcess) -> None:
    """Commands run before the boot is over; nothing of theirs may be tidied away by the rest of it."""
    await daemon.client.start(TEMPLATE)
    await sh(daemon, TEMPLATE, "echo early > /tmp/early; systemctl start systemd-tmpfiles-setup.service", user="root")
    assert await sh(daemon, TEMPLATE, "cat /tmp/early; stat -c %a /tmp") == "early\n1777"
    await daemon.client.shutdown(TEMPLATE, wait=True)
    await daemon.client.start(TEMPLATE)
    assert (await run(daemon, TEMPLATE, "cat /tmp/early")).code == 1
    await daemon.client.shutdown(TEMPLATE, wait=True)
