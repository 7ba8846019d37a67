"""A template without network is updated through a net qube's proxy, as a whole or not at all.

How an update is to be interrupted is chosen from outside, by a service of the template: a hook of its package manager,
part of its system from the start, does it. Each update begins with a look whether the one before left something.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from insula.model.errors import QubesVMNotStartedError
from insula.model.state import PowerState
from insula.rpc.client import run_collect
from insula.templates.build import BuiltTemplate
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, create_app_qube, sh

from .conftest import installation

LIMIT_S = 300.0


FETCH_SUM = """
import hashlib, urllib.request as r
opener = r.build_opener(r.ProxyHandler({{"http": "http://127.0.0.1:8082"}}))
print(hashlib.sha256(opener.open("{}", timeout=60).read()).hexdigest())
"""
ROOT = "root.img"
HOOK = "/usr/lib/test-interruption"
"""Of the package manager, before it fetches anything."""
HOOK_TEXT = r"""#!/bin/sh
ls /half-an-update /filler 2> /dev/null && echo "an update before this one left something"
cd /run/qubes-service
[ -e test-none ] && exit 0
touch /half-an-update
if [ -e test-full-disk ]; then
    # Less than 4 MiB are left, also to root: too little for the lists.
    touch /filler
    for size in 1G 64M 4M; do
        while fallocate -o $(stat -c %s /filler) -l $size /filler 2> /dev/null; do :; done
    done
fi
if [ -e test-other-keys ]; then
    # What the repositories have signed is signed by nobody who is known.
    find /etc/apt/trusted.gpg.d /usr/share/keyrings -type f -delete
fi
if [ -e test-standstill ]; then
    echo "it stands still"
    sleep 1000
fi
exit 0
"""


@pytest.fixture(scope="module")
def own_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """With a template of its own, which has the hook, and the net qube that the default policy names."""
    folder = tmp_path_factory.mktemp("hooked")
    with installation(add_net_qube, lambda built: with_hook(built, folder)) as running:
        # It was copied.
        (folder / ROOT).unlink()
        yield running


def with_hook(built: BuiltTemplate, folder: Path) -> BuiltTemplate:
    root = folder / ROOT
    copy = ["cp", "--reflink=auto", "--sparse=always", str(built.root_image), str(root)]
    subprocess.run(copy, check=True, capture_output=True, timeout=LIMIT_S)
    setting = f'APT::Update::Pre-Invoke {{ "{HOOK}"; }};\n'
    for name, text, mode, path in (
        ("hook", HOOK_TEXT, 0o755, HOOK),
        ("setting", setting, 0o644, "/etc/apt/apt.conf.d/99test"),
    ):
        (folder / name).write_text(text, encoding="ascii")
        (folder / name).chmod(mode)
        write = ["debugfs", "-w", "-R", f"write {name} {path}", ROOT]
        subprocess.run(write, check=True, capture_output=True, timeout=LIMIT_S, cwd=folder)
    return replace(built, root_image=root)


async def add_net_qube(running: DaemonProcess) -> None:
    await create_app_qube(running.client, "sys-net")
    # It boots: a seed made in the background would take the time from these tests.
    for prop, value in (("provides_network", "True"), ("netvm", ""), ("uplink", "host"), ("start_mode", "cold")):
        await running.client.call("admin.vm.property.Set", "sys-net", arg=prop, payload=value.encode())
    await running.client.set_feature("sys-net", "service.updates-cache", "1")


async def begin(daemon: DaemonProcess, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("insula")), *arguments, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=daemon.environment,
    )  # fmt: skip


async def end(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(LIMIT_S):
        output, _ = await process.communicate()
    return process.returncode, output.decode()


async def insula(daemon: DaemonProcess, *arguments: str) -> tuple[int | None, str]:
    return await end(await begin(daemon, *arguments))


async def revisions(daemon: DaemonProcess) -> list[str]:
    """What the template's system was before each change that was kept."""
    return await daemon.client.volume_revisions(TEMPLATE, "root")


async def until_over(daemon: DaemonProcess) -> None:
    """The update has ended, and the template's machine with it."""
    async with asyncio.timeout(LIMIT_S):
        while "insula-updating" in await daemon.client.list_features(TEMPLATE):
            await asyncio.sleep(0.1)
    assert (await daemon.client.current_state(TEMPLATE)).power_state is PowerState.HALTED


async def in_template(daemon: DaemonProcess, command: str) -> str:
    code, stdout, stderr = await run_collect(daemon.paths.rpc_socket(TEMPLATE), command, user="root")
    assert code == 0, stderr.decode()
    return stdout.decode()


def log_of(daemon: DaemonProcess) -> str:
    path = daemon.paths.logs / f"update-{TEMPLATE}.log"
    return path.read_text() if path.exists() else ""


async def choose(daemon: DaemonProcess, interruption: str) -> None:
    for name in await daemon.client.list_features(TEMPLATE):
        if name.startswith("service.test-"):
            await daemon.client.remove_feature(TEMPLATE, name)
    if interruption:
        await daemon.client.set_feature(TEMPLATE, f"service.test-{interruption}", "1")
    (daemon.paths.logs / f"update-{TEMPLATE}.log").unlink(missing_ok=True)


async def test_template_is_updated_through_the_net_qube(own_daemon: DaemonProcess) -> None:
    daemon = own_daemon
    await choose(daemon, "none")
    before = await revisions(daemon)
    code, output = await insula(daemon, "update", TEMPLATE)
    assert code == 0, output
    assert await revisions(daemon) != before
    log = log_of(daemon)
    assert "nothing to update" in output or "updated in" in output
    assert "Get:" in log or "Hit:" in log
    await daemon.client.start(TEMPLATE)
    assert (await in_template(daemon, "ls /sys/class/net")).split() == ["lo"]
    # The lists are there, so the update was kept.
    assert (await in_template(daemon, "ls /var/lib/apt/lists | grep -c Packages")).strip() != "0"
    # Large lists are kept on the net qube's own disk, and are there for the next who asks.
    kept = "cd /rw/insula-updates && grep -alm1 /by-hash/SHA256/ * | head -1 | xargs -r sed -n 2p"
    url = await sh(daemon, "sys-net", kept, user="root")
    assert "/by-hash/SHA256/" in url
    content = await in_template(daemon, f"python3 -c '{FETCH_SUM.format(url)}'")
    assert content.strip() == url.rpartition("/")[2]
    said = await sh(daemon, "sys-net", "journalctl -b -o cat -u insula-updates-proxy | grep -F '(a copy)'", user="root")
    assert url in said
    # No other place is reached than repositories, and nothing without the proxy.
    code, stdout, _ = await run_collect(
        daemon.paths.rpc_socket(TEMPLATE),
        "python3 -c 'import urllib.request as r; "
        'r.install_opener(r.build_opener(r.ProxyHandler({"http": "http://127.0.0.1:8082"}))); '
        'print(r.urlopen("http://example.org/", timeout=30))\'',
        user="root",
    )
    assert code != 0, stdout
    # A template that is killed keeps nothing.
    await daemon.client.kill(TEMPLATE)


@pytest.mark.parametrize(
    ("interruption", "why"),
    [("full-disk", "no space is left on its disk"), ("other-keys", "GPG error")],
)
async def test_update_that_fails_inside_leaves_the_template_as_it_was_and_says_why(
    own_daemon: DaemonProcess, interruption: str, why: str
) -> None:
    """MC-96"""
    await choose(own_daemon, interruption)
    before = await revisions(own_daemon)
    code, output = await insula(own_daemon, "update", TEMPLATE)
    assert code != 0
    assert "is as before" in output
    assert why in output, f"{output}\n{log_of(own_daemon)}"
    assert "left something" not in log_of(own_daemon)
    await until_over(own_daemon)
    assert await revisions(own_daemon) == before


def kill_daemon(daemon: DaemonProcess, update: asyncio.subprocess.Process) -> None:
    del update
    daemon.kill()


def kill_machine(daemon: DaemonProcess, update: asyncio.subprocess.Process) -> None:
    del update
    status = (daemon.paths.qube(TEMPLATE) / "vmm.status").read_text().splitlines()[1]
    os.kill(int(json.loads(status)["child-pid"]), signal.SIGKILL)


def kill_command(daemon: DaemonProcess, update: asyncio.subprocess.Process) -> None:
    del daemon
    update.kill()


@pytest.mark.parametrize(
    ("kill", "why"),
    [
        (kill_command, ""),
        (kill_machine, "is as before: it did not shut down cleanly"),
        (kill_daemon, "is as before when insulad runs again"),
    ],
)
async def test_update_that_is_killed_leaves_the_template_as_it_was_and_says_why(
    own_daemon: DaemonProcess, kill: Callable[[DaemonProcess, asyncio.subprocess.Process], None], why: str
) -> None:
    """MC-96"""
    await choose(own_daemon, "standstill")
    before = await revisions(own_daemon)
    update = await begin(own_daemon, "update", TEMPLATE)
    async with asyncio.timeout(LIMIT_S):
        while "it stands still" not in log_of(own_daemon):
            assert update.returncode is None, await end(update)
            await asyncio.sleep(0.1)
    kill(own_daemon, update)
    code, output = await end(update)
    assert code != 0
    assert why in output
    assert "left something" not in log_of(own_daemon)
    assert own_daemon.process is not None
    if own_daemon.process.poll() is not None:
        await own_daemon.start()
    await until_over(own_daemon)
    assert await revisions(own_daemon) == before


async def test_update_whose_daemon_is_killed_while_the_template_shuts_down_is_kept_whole_or_not_at_all(
    own_daemon: DaemonProcess,
) -> None:
    """MC-96"""
    await choose(own_daemon, "")
    async with aclosing(own_daemon.client.events()) as events:
        await anext(events)
        update = await begin(own_daemon, "update", TEMPLATE)
        async with asyncio.timeout(LIMIT_S):
            async for event in events:
                if event.name == "domain-pre-shutdown":
                    break
    own_daemon.kill()
    code, output = await end(update)
    assert code != 0
    assert "is as before when insulad runs again" in output
    await own_daemon.start()
    await until_over(own_daemon)


async def test_update_without_a_way_out_fails_and_says_so(own_daemon: DaemonProcess) -> None:
    daemon = own_daemon
    await choose(daemon, "")
    before = await revisions(daemon)
    with suppress(QubesVMNotStartedError):
        await daemon.client.kill("sys-net")
    await daemon.client.call("admin.vm.property.Set", "sys-net", arg="uplink", payload=b"none")
    code, output = await insula(daemon, "update", TEMPLATE)
    assert code != 0
    assert "is as before" in output
    assert "update-debian-12.log" in output
    assert "left something" not in log_of(daemon)
    await until_over(daemon)
    assert await revisions(daemon) == before
