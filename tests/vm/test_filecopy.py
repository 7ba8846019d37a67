"""Files and addresses from qube to qube, with real guests: the whole way, policy included."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import create_app_qube, run, sh

pytestmark = pytest.mark.vm

GONE_S = 120.0
NAMES = ("copy-from", "copy-to")
POLICY = """\
qubes.Filecopy    *                 copy-from  @default  allow target=copy-to
qubes.Filecopy    *                 copy-from  copy-to   allow
qubes.Filecopy    *                 copy-to    @anyvm    deny
qubes.OpenInVM    *                 copy-from  copy-to   allow
qubes.OpenURL     *                 copy-from  copy-to   allow
qubes.VMShell     *                 copy-from  copy-to   allow
qubes.ConnectTCP  +8000             copy-from  copy-to   allow
"""
EDITOR = """\
mkdir -p ~/.local/share/applications
printf '#!/bin/sh\\ncp "$1" ~/seen; echo "seen by $(hostname)" >> "$1"\\n' > ~/editor
chmod +x ~/editor
printf '[Desktop Entry]\\nType=Application\\nName=E\\nExec=/home/user/editor %%f\\nMimeType=text/plain;' \
    > ~/.local/share/applications/e.desktop
printf 'x-scheme-handler/https;\\n' >> ~/.local/share/applications/e.desktop
"""
HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "add-a-service.md"
LISTING = (
    "cd {} && find . ! -type l -exec stat -c '%n %a %s %Y' {{}} + | sort && find . -type l -printf '%p %l\\n'"
    " && find . -type f -exec md5sum {{}} + | sort"
)


@pytest.fixture(scope="module")
def qubes(daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """Two qubes and rules between them."""
    policy = daemon.paths.policy / "10-copy.policy"
    policy.write_text(POLICY)

    async def make() -> None:
        for name in NAMES:
            await create_app_qube(daemon.client, name)
            await daemon.client.start(name)

    async def discard() -> None:
        for name in NAMES:
            await daemon.client.kill(name)
            await daemon.client.remove(name)

    asyncio.run(make())
    yield daemon
    policy.unlink()
    asyncio.run(discard())


async def test_tree_is_copied_as_it_is(qubes: DaemonProcess) -> None:
    await sh(
        qubes, "copy-from", "mkdir -p t/sub/empty && head -c 3000000 /dev/urandom > t/big && echo x > 't/sub/ünï n'"
    )
    await sh(qubes, "copy-from", "ln -s ../big t/sub/l; chmod 4755 t/big; chmod 555 t/sub; touch -d 2020-01-01 t t/big")
    await sh(qubes, "copy-from", "qvm-copy t")
    before = await sh(qubes, "copy-from", LISTING.format("t"))
    after = await sh(qubes, "copy-to", LISTING.format("QubesIncoming/copy-from/t"))
    assert after == before.replace("./big 4755", "./big 755")
    assert await sh(qubes, "copy-to", "stat -c '%a %U' QubesIncoming/copy-from") == "700 user"


async def test_second_copy_of_a_name_is_refused(qubes: DaemonProcess) -> None:
    """MC-09."""
    await sh(qubes, "copy-from", "echo one > twice && qvm-copy-to-vm copy-to twice && echo two > twice")
    done = await run(qubes, "copy-from", "qvm-move-to-vm copy-to twice")
    assert done.code == 1
    assert done.err.splitlines()[-1] == b'qvm-move-to-vm: the other qube has "twice" already; nothing is replaced'
    assert await sh(qubes, "copy-to", "cat QubesIncoming/copy-from/twice") == "one"
    assert await sh(qubes, "copy-from", "cat twice") == "two"


async def test_move_removes_here(qubes: DaemonProcess) -> None:
    await sh(qubes, "copy-from", "mkdir m && echo text > m/f && qvm-move m && ! test -e m")
    assert await sh(qubes, "copy-to", "cat QubesIncoming/copy-from/m/f") == "text"


async def test_copy_that_policy_denies_is_refused(qubes: DaemonProcess) -> None:
    done = await run(qubes, "copy-to", "echo x > f; qvm-move-to-vm copy-from f; echo $?; cat f")
    assert done.out == b"126\nx\n"
    assert b"the call was refused" in done.err


async def test_receiver_is_shut_in(qubes: DaemonProcess) -> None:
    """While it waits for a file, its process sees nothing but the folder, as no root."""
    look = (
        "mkfifo gate; (exec 3<>gate; QREXEC_REMOTE_DOMAIN=look /etc/qubes-rpc/qubes.Filecopy <&3 >/dev/null &"
        " echo $! > pid; wait) & sleep 1; until ls QubesIncoming/look/incomplete-* 2>/dev/null >&2; do sleep 0.2; done;"
        " p=$(cat pid); readlink /proc/$p/root; grep -E 'Uid|CapEff|NoNewPrivs' /proc/$p/status; kill $p"
    )
    text = await sh(qubes, "copy-to", look)
    lines = dict(line.split(":\t") for line in text.splitlines()[1:])
    assert text.splitlines()[0] != "/"
    assert lines["Uid"].split() == ["1000"] * 4
    assert int(lines["CapEff"], 16) == 0
    assert lines["NoNewPrivs"] == "1"


async def test_edit_comes_back(qubes: DaemonProcess) -> None:
    await sh(qubes, "copy-to", EDITOR)
    await sh(qubes, "copy-from", "echo letter > letter.txt && qvm-open-in-vm copy-to letter.txt")
    assert await sh(qubes, "copy-from", "cat letter.txt") == "letter\nseen by copy-to"
    assert await sh(qubes, "copy-to", "cat seen; ls -d /tmp/copy-from-* 2>/dev/null | wc -l") == "letter\n0"


async def test_command_runs_in_the_other_qube_with_our_input(qubes: DaemonProcess) -> None:
    done = await run(qubes, "copy-from", "qvm-run-vm copy-to 'hostname; cat'; echo $?", stdin=b"from here")
    assert done.out == b"copy-to\nfrom here0\n"


async def test_port_of_the_other_qube_is_reachable(qubes: DaemonProcess) -> None:
    server = "import socket; s = socket.create_server(('127.0.0.1', 8000))\nfor _ in range(2):\n  c = s.accept()[0]; "
    server += "c.sendall(c.recv(99).upper()); c.close()"
    listens = "until ss -Hltn sport = :8000 | grep -q .; do sleep 0.1; done"
    await sh(qubes, "copy-to", f'nohup python3 -c "{server}" > /dev/null 2>&1 < /dev/null & {listens}')
    client = (
        "import socket\nfor _ in range(2):\n  c = socket.create_connection(('127.0.0.1', 9000)); c.sendall(b'hello')"
    )
    client += "; print(c.recv(99).decode())"
    await sh(qubes, "copy-from", "qvm-connect-tcp 9000:copy-to:8000")
    assert await sh(qubes, "copy-from", f'python3 -c "{client}"') == "HELLO\nHELLO"


async def test_disposable_for_a_file_is_gone_afterwards(qubes: DaemonProcess) -> None:
    """The default rule: a new disposable may always be used."""
    await create_app_qube(qubes.client, "copy-dvm")
    await qubes.client.set_property("template_for_dispvms", "True", "copy-dvm")
    await qubes.client.set_property("default_dispvm", "copy-dvm", "copy-from")
    done = await run(qubes, "copy-from", "echo x > f.pdf; qvm-open-in-dvm --view-only f.pdf; echo $?")
    assert done.out == b"1\n"
    assert b"no application here opens application/pdf" in done.err
    async with asyncio.timeout(GONE_S):
        while [row.name for row in await qubes.client.list_qubes() if row.klass == "DispVM"]:
            await asyncio.sleep(0.05)
    await qubes.client.reset_property("default_dispvm", "copy-from")
    await qubes.client.remove("copy-dvm")


async def test_service_of_the_howto(qubes: DaemonProcess) -> None:
    """docs/howto/add-a-service.md, step by step: a file in the guest, a line, a call."""
    text = HOWTO.read_text()
    service, line, call = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    place = re.findall(r"`(/usr/local/etc/qubes-rpc/example\.Shout)`", text)[0]
    install = f"mkdir -p {place.rpartition('/')[0]} && cat > {place} && chmod 755 {place}"
    assert (await run(qubes, "copy-to", install, user="root", stdin=service.encode())).code == 0
    renamed = {"work": "copy-from", "vault": "copy-to"}
    rule = qubes.paths.policy / "20-howto.policy"
    rule.write_text(" ".join(renamed.get(word, word) for word in line.split()) + "\n")
    try:
        done = await run(qubes, "copy-from", call.replace("vault", "copy-to"))
        assert (done.code, done.out) == (0, b"HELLO\n")
    finally:
        rule.unlink()
    assert (await run(qubes, "copy-from", call.replace("vault", "copy-to"))).code == 126
