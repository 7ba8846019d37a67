"""Who a qube is, however it was started: the same checks for a machine that booted and for a fork of a frozen one.

Two qubes a start mode, started together: ``plain`` for the first time, ``lived-in`` for the second, with things of its
user's. They are only looked at, so that all tests can share them. What may differ between the modes is written in
docs/decisions/009-identity-at-fork.md; a check here holds for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from insula.admin.client import AdminClient
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import create_app_qube, hold_in_waiting, run, sh

from .conftest import discard

START_MODES = ("cold", "warm", "waited")
"""Booted, forked, and a machine in waiting taken."""
CLOCK_TOLERANCE_S = 0.2
PRIVATE_SIZE = 3 << 30
"""Not the size new qubes get, so not what the seed's disk had."""
SETTLED = "systemctl is-system-running --wait"
RC_LOCAL = "#!/bin/sh\necho run >> /run/rc-local-runs; hostname > /run/rc-local-name; mount > /run/rc-local-mounts\n"
BINDS = "binds+=( '/etc/bound-file' '/var/lib/bound-folder' )\n"


@dataclass(frozen=True)
class Started:
    """A qube that runs and has come to rest."""

    daemon: DaemonProcess
    name: str
    mode: str
    uuid: str
    """32 hex digits."""
    state: str
    """The first answer of its systemd."""

    async def sh(self, command: str, *, user: str = "user") -> str:
        return await sh(self.daemon, self.name, command, user=user)

    async def root(self, command: str) -> str:
        return await self.sh(command, user="root")


@pytest.fixture(scope="module", params=START_MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def qubes(daemon: DaemonProcess, mode: str) -> Iterator[tuple[Started, Started]]:
    names = (f"test-plain-{mode}", f"test-lived-in-{mode}")
    try:
        plain, lived_in = asyncio.run(_start(daemon, mode, names))
        yield plain, lived_in
    finally:
        for name in names:
            asyncio.run(discard(daemon, name))


@pytest.fixture
def plain(qubes: tuple[Started, Started]) -> Started:
    return qubes[0]


@pytest.fixture
def lived_in(qubes: tuple[Started, Started]) -> Started:
    return qubes[1]


@pytest.fixture(params=[0, 1], ids=["plain", "lived-in"])
def qube(request: pytest.FixtureRequest, qubes: tuple[Started, Started]) -> Started:
    return qubes[int(request.param)]


async def _start(daemon: DaemonProcess, mode: str, names: tuple[str, str]) -> list[Started]:
    plain, lived_in = names
    client = daemon.client
    for name in names:
        await create_app_qube(client, name)
        await client.set_property("start_mode", "cold" if mode == "cold" else "warm", name)
    await client.volume_resize(plain, "private", PRIVATE_SIZE)
    await client.set_feature(lived_in, "timezone", "Asia/Tokyo")
    await client.set_feature(lived_in, "service.tracker", "")
    await client.set_feature(lived_in, "service.mine", "1")
    await _live_in(daemon, lived_in)
    await hold_in_waiting(client, len(names) if mode == "waited" else 0)
    taken = await taken_from_waiting(client)
    await asyncio.gather(*(client.start(name) for name in names))
    assert await taken_from_waiting(client) - taken == (len(names) if mode == "waited" else 0)
    states = await asyncio.gather(*(run(daemon, name, SETTLED, user="root") for name in names))
    return [
        Started(daemon, name, mode, await _uuid(client, name), state.text)
        for name, state in zip(names, states, strict=True)
    ]


async def taken_from_waiting(client: AdminClient) -> int:
    """Starts so far that found a machine in waiting."""
    return sum([seed["waiting"]["taken"] for seed in await client.seeds()])


async def _live_in(daemon: DaemonProcess, name: str) -> None:
    """Run it once and leave things of a user's in it."""
    await daemon.client.start(name)

    async def write(path: str, text: str) -> None:
        done = await run(daemon, name, f"mkdir -p $(dirname {path}); cat > {path}", user="root", stdin=text.encode())
        assert done.code == 0, done.err

    await write("/rw/config/rc.local", RC_LOCAL)
    await write("/rw/config/qubes-bind-dirs.d/mine.conf", BINDS)
    await write("/rw/bind-dirs/etc/bound-file", "bound\n")
    await write("/rw/bind-dirs/var/lib/bound-folder/file", "bound too\n")
    await write("/home/user/kept", "kept\n")
    await write("/usr/local/bin/mine", "#!/bin/sh\necho mine\n")
    await sh(daemon, name, "chmod 755 /usr/local/bin/mine; echo gone > /etc/gone; sync", user="root")
    await daemon.client.shutdown(name, wait=True)


async def _uuid(client: AdminClient, name: str) -> str:
    return (await client.get_property("uuid", name)).value.replace("-", "")


async def test_start_was_what_it_was_asked_to_be(qube: Started) -> None:
    """Without this the rest of the file could pass for a warm start that was none."""
    was_frozen = (await run(qube.daemon, qube.name, "test -e /run/insula/booted")).code == 0
    assert was_frozen is (qube.mode != "cold")


async def test_system_came_up_completely_and_nothing_failed(qube: Started) -> None:
    assert qube.state == "running"
    assert await qube.root("systemctl --failed --no-legend; systemctl list-jobs --no-legend") == ""
    units = "insula-identity.target basic.target multi-user.target insula-agent systemd-journald dbus systemd-logind"
    assert set((await qube.root(f"systemctl is-active {units}")).split()) == {"active"}


async def test_host_name_is_the_qubes_everywhere(qube: Started) -> None:
    places = "hostname; uname -n; cat /proc/sys/kernel/hostname /etc/hostname; hostnamectl hostname"
    assert set((await qube.sh(places)).split()) == {qube.name}
    assert await qube.sh("cat /etc/hosts") == f"127.0.0.1\tlocalhost\n127.0.1.1\t{qube.name}"
    # Running services of the system were told too.
    assert await qube.root("systemd-run --quiet --pipe --wait hostname") == qube.name


async def test_machine_id_is_the_qubes_everywhere(qube: Started) -> None:
    ids = await qube.root(
        "cat /etc/machine-id /var/lib/dbus/machine-id; systemd-id128 machine-id;"
        "hostnamectl | sed -n 's/.*Machine ID: //p'; ls /run/log/journal;"
        "systemd-run --quiet --pipe --wait --unit=identity-%m sh -c true; dbus-uuidgen --get;"
        "for name in systemd1 login1; do"
        "  busctl call org.freedesktop.$name / org.freedesktop.DBus.Peer GetMachineId | sed 's/s //; s/\"//g';"
        "done; journalctl --output=export | sed -n 's/^_MACHINE_ID=//p' | sort -u; journalctl --field=_MACHINE_ID"
    )
    assert set(ids.split()) == {qube.uuid}


async def test_boot_id_is_one_a_boot_and_another_in_each_qube(qubes: tuple[Started, Started]) -> None:
    boots = []
    for qube in qubes:
        ids = await qube.root(
            "tr -d - < /proc/sys/kernel/random/boot_id; systemd-id128 boot-id; journalctl -F _BOOT_ID"
        )
        boots.append(set(ids.split()))
    assert [len(ids) for ids in boots] == [1, 1]
    assert boots[0] != boots[1]


async def test_two_qubes_draw_different_random_numbers(qubes: tuple[Started, Started]) -> None:
    program = (
        "import os, random, secrets, uuid; print(os.getrandom(16).hex(), random.getrandbits(128), secrets.token_hex(), "
        "uuid.uuid4(), hash('x'), open('/dev/random', 'rb').read(16).hex(), sep='\\n')"
    )
    command = f'python3 -c "{program}"; head -c16 /dev/urandom | xxd -p || head -c16 /dev/urandom | od -An -tx1 -w16;'
    command += "cat /proc/sys/kernel/random/uuid; mktemp -u XXXXXXXXXXXXXXXX; bash -c 'echo $SRANDOM'"
    first, second = [(await qube.sh(command)).splitlines() for qube in qubes]
    assert len(first) == len(second) >= 9
    assert not set(first) & set(second)


async def test_clock_is_the_hosts(qube: Started) -> None:
    before = time.time()
    clock = float(await qube.sh("date +%s.%N"))
    assert before - CLOCK_TOLERANCE_S <= clock <= time.time() + CLOCK_TOLERANCE_S


async def test_timezone_is_what_the_qube_is_told(lived_in: Started) -> None:
    places = "readlink /etc/localtime; cat /etc/timezone; date +%Z"
    assert (await lived_in.sh(places)).split() == ["/usr/share/zoneinfo/Asia/Tokyo", "Asia/Tokyo", "JST"]


async def test_services_are_the_types_changed_by_features(plain: Started, lived_in: Started) -> None:
    defaults = {"qubes-update-check", "software-rendering", "tracker", "evolution-data-server"}
    listing = "ls /run/qubes-service"
    on = set((await plain.sh(listing)).split()) - {"meminfo-writer"}
    assert on == defaults
    assert set((await lived_in.sh(listing)).split()) - {"meminfo-writer"} == defaults - {"tracker"} | {"mine"}
    assert await plain.sh("ls /run/qubes") == "persistent-rw-only\nqrexec-agent\nqubesdb.sock\nthis-is-appvm"


async def test_keys_are_shown_as_files_and_the_random_seed_is_not(qube: Started) -> None:
    shown = (await qube.sh("ls -a /run/insula/keys")).split()
    assert {"name", "qubes-vm-type", "insula-machine-id"} <= set(shown)
    assert not {"insula-seed", "qubes-random-seed"} & set(shown)
    assert await qube.sh("cat /run/insula/keys/name") == qube.name


async def test_private_disk_is_shown_where_it_belongs(qube: Started) -> None:
    mounts = await qube.sh("findmnt --noheadings --raw --output TARGET,FSTYPE,FSROOT,OPTIONS --source /dev/vdb | sort")
    shown = {line.split()[0]: line.split()[1:] for line in mounts.splitlines()}
    assert shown["/rw"][:2] == ["ext4", "/"]
    assert shown["/home"][:2] == ["ext4", "/home"]
    assert {"nosuid", "nodev"} <= set(shown["/home"][2].split(","))
    assert shown["/usr/local"][:2] == ["ext4", "/usrlocal"]
    assert await qube.sh("stat --format '%U %a' ~; ls -A /rw | sort | tr '\\n' ' '") in (
        "user 700\nconfig home lost+found usrlocal",
        "user 700\nbind-dirs config home lost+found usrlocal",
    )


async def test_private_disk_has_its_own_size_and_so_has_its_file_system(plain: Started) -> None:
    assert int(await plain.sh("cat /sys/block/vdb/size")) * 512 == PRIVATE_SIZE
    assert int(await plain.sh("df --block-size=1 --output=size /rw | tail -1")) > PRIVATE_SIZE * 0.95


async def test_udev_knows_what_is_on_the_disks(qube: Started) -> None:
    known = "udevadm settle; udevadm info --query=property --property=ID_FS_TYPE --value"
    assert await qube.root(f"{known} /dev/disk/by-id/virtio-private") == "ext4"
    assert await qube.root(f"{known} /dev/disk/by-id/virtio-volatile") == "swap"


async def test_swap_is_on_the_volatile_disk(qube: Started) -> None:
    assert await qube.sh("tail -n +2 /proc/swaps | cut -d' ' -f1; awk '/SwapTotal/ { print $2 }' /proc/meminfo") == (
        f"/dev/vdc\n{(1 << 20) - 4}"
    )


async def test_what_the_user_kept_is_there_and_the_rest_is_not(lived_in: Started) -> None:
    assert (
        await lived_in.sh("cat ~/kept /etc/bound-file /var/lib/bound-folder/file; mine")
        == "kept\nbound\nbound too\nmine"
    )
    assert (await run(lived_in.daemon, lived_in.name, "test -e /etc/gone")).code == 1


async def test_boot_script_of_the_user_ran_once_when_all_was_in_place(lived_in: Started) -> None:
    assert await lived_in.sh("cat /run/rc-local-runs /run/rc-local-name") == f"run\n{lived_in.name}"
    mounts = await lived_in.sh("cat /run/rc-local-mounts")
    assert all(f" on {place} type " in mounts for place in ("/rw", "/home", "/usr/local", "/etc/bound-file"))


@pytest.mark.parametrize("user", ["user", "root"])
async def test_command_finds_the_usual_surroundings(qube: Started, user: str) -> None:
    surroundings = await qube.sh(
        "env -u _ -u SHLVL | sort | sed s/^QREXEC_AGENT_PID=[0-9]*$/QREXEC_AGENT_PID=N/; nice; umask; pwd; ulimit -n",
        user=user,
    )
    home = "/home/user" if user == "user" else "/root"
    assert surroundings.splitlines() == [
        f"HOME={home}",
        "LANG=C.UTF-8",
        f"LOGNAME={user}",
        "PATH=" + ("/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games" if user == "user" else ROOT_PATH),
        f"PWD={home}",
        "QREXEC_AGENT_PID=N",
        "SHELL=/bin/bash",
        f"USER={user}",
        "0",
        "0022",
        home,
        "65536",
    ]


ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def test_journal_has_the_kernels_words_and_the_services(qube: Started) -> None:
    await qube.sh("logger --tag identity-test said")
    await qube.root("journalctl --sync")
    assert await qube.root("journalctl --boot --identifier=identity-test --output=cat") == "said"
    assert "Linux version" in await qube.root("journalctl --boot --dmesg --output=cat | head -3")
    assert f"identity {qube.name}" in await qube.root("journalctl --boot --output=cat --grep='insula-agent: identity'")
    assert (await qube.root("journalctl --boot --output=export | sed -n 's/^_HOSTNAME=//p' | sort -u")) == qube.name


async def test_nothing_tells_of_another_machine(qube: Started) -> None:
    """Neither the other qube nor a seed nor a rehearsal has left a word in what this one shows."""
    names = {f"test-{kind}-{mode}" for kind in ("plain", "lived-in") for mode in START_MODES}
    # The last two are what a machine in waiting has rehearsed with.
    others = "|".join([*sorted(names - {qube.name}), "nobody-yet", "f" * 32])
    found = await run(qube.daemon, qube.name, f"grep -rIlE '{others}' /etc /run /var/lib /var/log", user="root")
    assert found.out == b""
    assert (await run(qube.daemon, qube.name, "ls /run/insula/gate /run/systemd/journald.conf.d/*")).out == b""
    journals = await qube.root("find /run/log /var/log/journal -name '*.journal*' 2>/dev/null")
    assert journals == f"/run/log/journal/{qube.uuid}/system.journal"


async def test_user_may_become_root_and_root_the_user(qube: Started) -> None:
    assert await qube.sh("sudo -n id -un; sudo -n -u user id -un") == "root\nuser"
