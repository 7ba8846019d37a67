"""Who a qube is, however it was started: the same checks for a machine that booted and for a fork of a frozen one.

Two qubes a start mode, started together: ``plain`` for the first time, ``lived-in`` for the second, with things of its
user's. They are only looked at, so that all tests can share them, and what tests want to see is looked at in one
command for each user (:func:`look`): a command's way into a guest costs more than most of what is looked at. What may
differ between the modes is written in docs/decisions/009-identity-at-fork.md; a check here holds for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
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
class Look:
    """A shell command that tests want the output of."""

    number: int
    command: str
    user: str


LOOKS: list[Look] = []
"""All of them, in order."""
BEGIN, END = "\x1e", "\x1f"
"""Around the output of each."""


def look(command: str, user: str = "user") -> Look:
    LOOKS.append(Look(len(LOOKS), command, user))
    return LOOKS[-1]


@dataclass(frozen=True)
class Seen:
    code: int
    text: str
    """Without its last newline."""


async def look_at(daemon: DaemonProcess, name: str, user: str) -> dict[Look, Seen]:
    """All that is wanted of a user's, in one command; each in a shell of its own."""
    wanted = [entry for entry in LOOKS if entry.user == user]
    script = "\n".join(
        f"printf '{BEGIN}{entry.number} '; (\n{entry.command}\n) </dev/null; printf '{END}%d' $?" for entry in wanted
    )
    out = (await run(daemon, name, script, user=user)).out.decode()
    seen = {}
    for part in out.split(BEGIN)[1:]:
        number, _, rest = part.partition(" ")
        text, _, code = rest.rpartition(END)
        seen[LOOKS[int(number)]] = Seen(int(code), text.strip())
    assert seen.keys() == set(wanted)
    return seen


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
    seen: Mapping[Look, Seen]

    def sees(self, wanted: Look) -> str:
        """Output of a command that went well."""
        assert self.seen[wanted].code == 0, wanted.command
        return self.seen[wanted].text


@pytest.fixture(scope="module", params=START_MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def home(daemon: DaemonProcess) -> Iterator[str]:
    """A qube that was lived in, and is off."""
    name = "test-home"

    async def make() -> None:
        await create_app_qube(daemon.client, name)
        await _live_in(daemon, name)

    asyncio.run(make())
    yield name
    asyncio.run(discard(daemon, name))


@pytest.fixture(scope="module")
def qubes(daemon: DaemonProcess, mode: str, home: str) -> Iterator[tuple[Started, Started]]:
    names = (f"test-plain-{mode}", f"test-lived-in-{mode}")
    try:
        plain, lived_in = asyncio.run(_start(daemon, mode, names, home))
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


async def _start(daemon: DaemonProcess, mode: str, names: tuple[str, str], home: str) -> list[Started]:
    plain, lived_in = names
    client = daemon.client
    for name in names:
        await create_app_qube(client, name)
        await client.set_property("start_mode", "cold" if mode == "cold" else "warm", name)
    await client.volume_resize(plain, "private", PRIVATE_SIZE)
    await client.set_feature(lived_in, "timezone", "Asia/Tokyo")
    await client.set_feature(lived_in, "service.tracker", "")
    await client.set_feature(lived_in, "service.mine", "1")
    await client.volume_clone((home, "private"), (lived_in, "private"))
    await hold_in_waiting(client, len(names) if mode == "waited" else 0)
    taken = await taken_from_waiting(client)
    await asyncio.gather(*(client.start(name) for name in names))
    assert await taken_from_waiting(client) - taken == (len(names) if mode == "waited" else 0)
    states = await asyncio.gather(*(run(daemon, name, SETTLED, user="root") for name in names))

    async def started(name: str, state: str) -> Started:
        # Root's first: what the user's begin (a service of the bus) is no job that was left from the start.
        seen = {**await look_at(daemon, name, "root"), **await look_at(daemon, name, "user")}
        return Started(daemon, name, mode, await _uuid(client, name), state, seen)

    return await asyncio.gather(*(started(name, state.text) for name, state in zip(names, states, strict=True)))


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


BOOTED = look("test -e /run/insula/booted")


def test_start_was_what_it_was_asked_to_be(qube: Started) -> None:
    """Without this the rest of the file could pass for a warm start that was none."""
    assert (qube.seen[BOOTED].code == 0) is (qube.mode != "cold")


FAILED = look("systemctl --failed --no-legend; systemctl list-jobs --no-legend", "root")
ACTIVE = look(
    "systemctl is-active insula-identity.target basic.target multi-user.target insula-agent systemd-journald dbus"
    " systemd-logind",
    "root",
)


def test_system_came_up_completely_and_nothing_failed(qube: Started) -> None:
    assert qube.state == "running"
    assert qube.sees(FAILED) == ""
    assert set(qube.sees(ACTIVE).split()) == {"active"}


HOST_NAMES = look("hostname; uname -n; cat /proc/sys/kernel/hostname /etc/hostname; hostnamectl hostname")
HOSTS = look("cat /etc/hosts")
SERVICE_HOST_NAME = look("systemd-run --quiet --pipe --wait hostname", "root")


def test_host_name_is_the_qubes_everywhere(qube: Started) -> None:
    assert set(qube.sees(HOST_NAMES).split()) == {qube.name}
    assert qube.sees(HOSTS) == f"127.0.0.1\tlocalhost\n127.0.1.1\t{qube.name}"
    # Running services of the system were told too.
    assert qube.sees(SERVICE_HOST_NAME) == qube.name


MACHINE_IDS = look(
    "cat /etc/machine-id /var/lib/dbus/machine-id; systemd-id128 machine-id;"
    "hostnamectl | sed -n 's/.*Machine ID: //p'; ls /run/log/journal;"
    "systemd-run --quiet --pipe --wait --unit=identity-%m sh -c true; dbus-uuidgen --get;"
    "for name in systemd1 login1; do"
    "  busctl call org.freedesktop.$name / org.freedesktop.DBus.Peer GetMachineId | sed 's/s //; s/\"//g';"
    "done; journalctl --output=export | sed -n 's/^_MACHINE_ID=//p' | sort -u; journalctl --field=_MACHINE_ID",
    "root",
)


def test_machine_id_is_the_qubes_everywhere(qube: Started) -> None:
    assert set(qube.sees(MACHINE_IDS).split()) == {qube.uuid}


BOOT_IDS = look("tr -d - < /proc/sys/kernel/random/boot_id; systemd-id128 boot-id; journalctl -F _BOOT_ID", "root")


def test_boot_id_is_one_a_boot_and_another_in_each_qube(qubes: tuple[Started, Started]) -> None:
    boots = [set(qube.sees(BOOT_IDS).split()) for qube in qubes]
    assert [len(ids) for ids in boots] == [1, 1]
    assert boots[0] != boots[1]


DRAW = (
    "import os, random, secrets, uuid; print(os.getrandom(16).hex(), random.getrandbits(128), secrets.token_hex(), "
    "uuid.uuid4(), hash('x'), open('/dev/random', 'rb').read(16).hex(), sep='\\n')"
)
DRAWN = look(
    f'python3 -c "{DRAW}"; head -c16 /dev/urandom | xxd -p || head -c16 /dev/urandom | od -An -tx1 -w16;'
    "cat /proc/sys/kernel/random/uuid; mktemp -u XXXXXXXXXXXXXXXX; bash -c 'echo $SRANDOM'"
)


def test_two_qubes_draw_different_random_numbers(qubes: tuple[Started, Started]) -> None:
    first, second = [qube.sees(DRAWN).splitlines() for qube in qubes]
    assert len(first) == len(second) >= 9
    assert not set(first) & set(second)


async def test_clock_is_the_hosts(qube: Started) -> None:
    """It is late by the time that the quickest word of it took to be obeyed: on a busy machine not much less than the
    quickest answer now takes."""
    takes_s = float("inf")
    for _ in range(3):
        before = time.time()
        clock = float(await sh(qube.daemon, qube.name, "date +%s.%N"))
        after = time.time()
        takes_s = min(takes_s, after - before)
    assert before - takes_s - CLOCK_TOLERANCE_S <= clock <= after + CLOCK_TOLERANCE_S


TIME_ZONE = look("readlink /etc/localtime; cat /etc/timezone; date +%Z")


def test_timezone_is_what_the_qube_is_told(lived_in: Started) -> None:
    assert lived_in.sees(TIME_ZONE).split() == ["/usr/share/zoneinfo/Asia/Tokyo", "Asia/Tokyo", "JST"]


SERVICES = look("ls /run/qubes-service")
MARKS = look("ls /run/qubes")


def test_services_are_the_types_changed_by_features(plain: Started, lived_in: Started) -> None:
    defaults = {"qubes-update-check", "software-rendering", "tracker", "evolution-data-server"}
    assert set(plain.sees(SERVICES).split()) - {"meminfo-writer"} == defaults
    assert set(lived_in.sees(SERVICES).split()) - {"meminfo-writer"} == defaults - {"tracker"} | {"mine"}
    assert plain.sees(MARKS) == "persistent-rw-only\nqrexec-agent\nqubesdb.sock\nthis-is-appvm"


KEYS = look("ls -a /run/insula/keys")
NAME_KEY = look("cat /run/insula/keys/name")


def test_keys_are_shown_as_files_and_the_random_seed_is_not(qube: Started) -> None:
    shown = qube.sees(KEYS).split()
    assert {"name", "qubes-vm-type", "insula-machine-id"} <= set(shown)
    assert not {"insula-seed", "qubes-random-seed"} & set(shown)
    assert qube.sees(NAME_KEY) == qube.name


MOUNTS = look("findmnt --noheadings --raw --output TARGET,FSTYPE,FSROOT,OPTIONS --source /dev/vdb | sort")
OWNERS = look("stat --format '%U %a' ~; ls -A /rw | sort | tr '\\n' ' '")


def test_private_disk_is_shown_where_it_belongs(qube: Started) -> None:
    shown = {line.split()[0]: line.split()[1:] for line in qube.sees(MOUNTS).splitlines()}
    assert shown["/rw"][:2] == ["ext4", "/"]
    assert shown["/home"][:2] == ["ext4", "/home"]
    assert {"nosuid", "nodev"} <= set(shown["/home"][2].split(","))
    assert shown["/usr/local"][:2] == ["ext4", "/usrlocal"]
    assert qube.sees(OWNERS) in (
        "user 700\nconfig home lost+found usrlocal",
        "user 700\nbind-dirs config home lost+found usrlocal",
    )


DISK_SIZE = look("cat /sys/block/vdb/size")
FILE_SYSTEM_SIZE = look("df --block-size=1 --output=size /rw | tail -1")


def test_private_disk_has_its_own_size_and_so_has_its_file_system(plain: Started) -> None:
    assert int(plain.sees(DISK_SIZE)) * 512 == PRIVATE_SIZE
    assert int(plain.sees(FILE_SYSTEM_SIZE)) > PRIVATE_SIZE * 0.95


UDEV = "udevadm settle; udevadm info --query=property --property=ID_FS_TYPE --value"
PRIVATE_TYPE = look(f"{UDEV} /dev/disk/by-id/virtio-private", "root")
VOLATILE_TYPE = look(f"{UDEV} /dev/disk/by-id/virtio-volatile", "root")


def test_udev_knows_what_is_on_the_disks(qube: Started) -> None:
    assert qube.sees(PRIVATE_TYPE) == "ext4"
    assert qube.sees(VOLATILE_TYPE) == "swap"


SWAP = look("tail -n +2 /proc/swaps | cut -d' ' -f1; awk '/SwapTotal/ { print $2 }' /proc/meminfo")


def test_swap_is_on_the_volatile_disk(qube: Started) -> None:
    assert qube.sees(SWAP) == f"/dev/vdc\n{(1 << 20) - 4}"


KEPT = look("cat ~/kept /etc/bound-file /var/lib/bound-folder/file; mine")
GONE = look("test -e /etc/gone")


def test_what_the_user_kept_is_there_and_the_rest_is_not(lived_in: Started) -> None:
    assert lived_in.sees(KEPT) == "kept\nbound\nbound too\nmine"
    assert lived_in.seen[GONE].code == 1


RUNS = look("cat /run/rc-local-runs /run/rc-local-name")
MOUNTS_THEN = look("cat /run/rc-local-mounts")


def test_boot_script_of_the_user_ran_once_when_all_was_in_place(lived_in: Started) -> None:
    assert lived_in.sees(RUNS) == f"run\n{lived_in.name}"
    mounts = lived_in.sees(MOUNTS_THEN)
    assert all(f" on {place} type " in mounts for place in ("/rw", "/home", "/usr/local", "/etc/bound-file"))


ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SURROUNDINGS = {
    user: look(
        "env -u _ -u SHLVL | sort | sed s/^QREXEC_AGENT_PID=[0-9]*$/QREXEC_AGENT_PID=N/; nice; umask; pwd; ulimit -n",
        user,
    )
    for user in ("user", "root")
}


@pytest.mark.parametrize("user", ["user", "root"])
def test_command_finds_the_usual_surroundings(qube: Started, user: str) -> None:
    home = "/home/user" if user == "user" else "/root"
    assert qube.sees(SURROUNDINGS[user]).splitlines() == [
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


LOGGED = look(
    "sudo -n -u user logger --tag identity-test said; journalctl --sync;"
    "journalctl --boot --identifier=identity-test --output=cat",
    "root",
)
KERNEL = look("journalctl --boot --dmesg --output=cat | head -3", "root")
IDENTITY = look("journalctl --boot --output=cat --grep='insula-agent: identity'", "root")
LOGGED_NAMES = look("journalctl --boot --output=export | sed -n 's/^_HOSTNAME=//p' | sort -u", "root")


def test_journal_has_the_kernels_words_and_the_services(qube: Started) -> None:
    assert qube.sees(LOGGED) == "said"
    assert "Linux version" in qube.sees(KERNEL)
    assert f"identity {qube.name}" in qube.sees(IDENTITY)
    assert qube.sees(LOGGED_NAMES) == qube.name


# The last two are what a machine in waiting has rehearsed with. (A qube's own name is told apart by the shell.)
NAMES = [f"test-{kind}-{mode}" for kind in ("plain", "lived-in") for mode in START_MODES]
OTHERS = " ".join([*NAMES, "test-home", "nobody-yet", "f" * 32])
TRACES = look(
    f'others=$(printf "%s\\n" {OTHERS} | grep -vFx "$(hostname)" | paste -sd "|");'
    'grep -rIlE "$others" /etc /run /var/lib /var/log',
    "root",
)
LEFT = look("ls /run/insula/gate /run/systemd/journald.conf.d/*", "root")
JOURNALS = look("find /run/log /var/log/journal -name '*.journal*' 2>/dev/null", "root")


def test_nothing_tells_of_another_machine(qube: Started) -> None:
    """Neither another qube nor a seed nor a rehearsal has left a word in what this one shows."""
    assert qube.seen[TRACES] == Seen(1, "")
    assert qube.seen[LEFT].text == ""
    assert qube.sees(JOURNALS) == f"/run/log/journal/{qube.uuid}/system.journal"


BECOME = look("sudo -n id -un; sudo -n -u user id -un")


def test_user_may_become_root_and_root_the_user(qube: Started) -> None:
    assert qube.sees(BECOME) == "root\nuser"
