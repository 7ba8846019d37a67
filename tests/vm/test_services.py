"""Services in real guests: what the host asks a qube for, and what qubes do for each other."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Iterator

import pytest

from insula.policy.store import PolicyStore
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, Result, create_app_qube, run, sh
from insula_proto import pixels
from insula_proto.pixels import PageStarted, PixelDecoder, PixelsReceived

from .conftest import discard

PDF = """%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Count 1/Kids[3 0 R]>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 36]/Contents 4 0 R>>endobj
4 0 obj<</Length 24>>stream
1 0 0 rg 0 0 72 36 re f
endstream endobj
trailer<</Size 5/Root 1 0 R>>
"""
"""One red page of 72 × 36 points; without a table of contents, which readers make up."""
WORK, VAULT, BASE = "test-work", "test-vault", "test-opener"
RULES = f"""
qubes.Gpg * {WORK} @default allow target={VAULT}
qubes.SshAgent +mail {WORK} {VAULT} allow
qubes.SshAgent * @anyvm @anyvm deny
"""
GROWN = 4 << 30
"""Bytes; new private volumes have 2 GiB."""


TIME_SERVER = """
import os, socket, struct, time
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 123))
if os.fork():
    os._exit(0)
os.setsid()
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
server.settimeout(600)
since = time.time() + 2208988800 + 3600 - time.monotonic()
while True:
    question, who = server.recvfrom(1024)
    now = struct.pack(">II", int(since + time.monotonic()), 0)
    server.sendto(b"$\\1\\6\\xec" + bytes(8) + b"TEST" + now + question[40:48] + now + now, who)
"""
"""Answers questions for the time, an hour ahead (NTP, RFC 5905: version 4, a server, stratum 1), from when it has
returned."""


async def call(daemon: DaemonProcess, qube: str, service: str, stdin: bytes = b"") -> Result:
    """Call a service of a qube, as the host."""
    return await run(daemon, qube, f"QUBESRPC {service} dom0", stdin=stdin)


async def test_date_is_told_and_set(daemon: DaemonProcess, shared_qube: str) -> None:
    told = await call(daemon, shared_qube, "qubes.GetDate+nanoseconds")
    assert len(told.out) == 36
    later = time.strftime("%Y-%m-%dT%H:%M:%S+00:00\n", time.gmtime(time.time() + 3600)).encode()
    assert (await call(daemon, shared_qube, "qubes.SetDateTime", later)).code == 0
    ahead = int(await sh(daemon, shared_qube, "date +%s")) - time.time()
    assert 3500 < ahead < 3700
    # Within 2 s nothing is set; so a second time takes nothing away.
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00\n", time.gmtime()).encode()
    assert (await call(daemon, shared_qube, "qubes.SetDateTime", now)).code == 0
    assert abs(int(await sh(daemon, shared_qube, "date +%s")) - time.time()) < 60
    assert (await call(daemon, shared_qube, "qubes.SetDateTime", b"yesterday\n")).code == 1


async def test_clock_is_set_to_the_hosts_on_request(daemon: DaemonProcess, shared_qube: str) -> None:
    await sh(daemon, shared_qube, "date -s @$(($(date +%s) + 3600)) && qvm-sync-clock", user="root")
    assert abs(int(await sh(daemon, shared_qube, "date +%s")) - time.time()) < 60
    # Nothing in this qube asks the network for the time, and it says so.
    asked = await call(daemon, shared_qube, "qubes.SyncNtpClock")
    assert (asked.code, b"no chrony" in asked.err) == (2, True)


async def test_clock_of_the_clock_qube_is_set_to_the_networks(daemon: DaemonProcess, shared_qube: str) -> None:
    """As at a start of a qube that has the service ``clocksync``, and on request."""
    await sh(daemon, shared_qube, f"python3 -I -S -c {shlex.quote(TIME_SERVER)}", user="root")
    folder = "/run/systemd/timesyncd.conf.d"
    await sh(
        daemon, shared_qube, f"mkdir -p {folder} && printf '[Time]\nNTP=127.0.0.1\n' > {folder}/t.conf", user="root"
    )
    try:
        await sh(daemon, shared_qube, "touch /run/qubes-service/clocksync", user="root")
        await sh(daemon, shared_qube, "systemctl start insula-clocksync.service", user="root")
        asked = await call(daemon, shared_qube, "qubes.SyncNtpClock")
        ahead = int(await sh(daemon, shared_qube, "date +%s")) - time.time()
        assert (asked.code, asked.err) == (0, b"")
        assert 3500 < ahead < 3700
    finally:
        undo = "systemctl stop insula-clocksync.service systemd-timesyncd.service"
        files = f"{folder}/t.conf /run/qubes-service/clocksync"
        await sh(daemon, shared_qube, f"{undo}; rm {files}; qvm-sync-clock", user="root")


async def test_system_and_session_are_waited_for(daemon: DaemonProcess, shared_qube: str) -> None:
    running = await call(daemon, shared_qube, "qubes.WaitForRunningSystem")
    assert running.code == 0, running.err
    assert (await call(daemon, shared_qube, "qubes.WaitForSession", b"user\n")).code == 0
    assert (await call(daemon, shared_qube, "qubes.VMExecGUI+echo+a-20b")).out == b"a b\n"


async def test_applications_are_listed_and_started(daemon: DaemonProcess, shared_qube: str) -> None:
    entry = "[Desktop Entry]\\nType=Application\\nName=Greeting\\nExec=echo hello %c\\n"
    place = "~/.local/share/applications/test"
    await sh(daemon, shared_qube, f"mkdir -p {place} && printf %b '{entry}' > {place}/greet.desktop")
    listed = await call(daemon, shared_qube, "qubes.GetAppmenus")
    assert b"test-greet.desktop:Exec=qubes-desktop-run test-greet.desktop\n" in listed.out
    assert b"test-greet.desktop:Name=Greeting\n" in listed.out
    started = await call(daemon, shared_qube, "qubes.StartApp+test-greet")
    assert (started.code, started.out) == (0, b"hello Greeting\n"), started.err


async def test_private_volume_grows_while_it_is_used(daemon: DaemonProcess, qube: str) -> None:
    size = "df --output=size -B1 /rw | tail -1"
    before = int(await sh(daemon, qube, size))
    await daemon.client.volume_resize(qube, "private", GROWN)
    # The host has told the qube by itself; asked again it has nothing to do.
    assert int(await sh(daemon, qube, size)) > before + (1 << 30)
    assert (await call(daemon, qube, "qubes.ResizeDisk", b"private\n")).code == 0
    await sh(daemon, qube, "dd if=/dev/zero of=~/large bs=1M count=64 && sync && rm ~/large")


async def test_root_volume_grows_while_it_is_used(daemon: DaemonProcess, qube: str) -> None:
    size = "df --output=size -B1 / | tail -1"
    before = int(await sh(daemon, qube, size))
    await daemon.client.volume_resize(qube, "root", 12 << 30)
    assert int(await sh(daemon, qube, size)) > before + (1 << 30)


async def test_document_is_rendered_to_pixels(daemon: DaemonProcess, shared_qube: str) -> None:
    done = await call(daemon, shared_qube, "qubes.PdfConvert+72", PDF.encode())
    assert done.code == 0, done.err
    decoder = PixelDecoder(pixels.RGB)
    events = decoder.receive(done.out)
    decoder.end()
    assert [event for event in events if isinstance(event, PageStarted)] == [PageStarted(72, 36)]
    data = b"".join(event.data for event in events if isinstance(event, PixelsReceived))
    assert data == b"\xff\0\0" * 72 * 36


async def test_image_is_decoded_to_pixels(daemon: DaemonProcess, shared_qube: str) -> None:
    image = b"P6\n2 1\n255\n\xff\0\0\0\0\xff"
    done = await call(daemon, shared_qube, "qubes.GetImageRGBA", b"-\n" + image)
    assert done.out == b"2 1\n\xff\0\0\xff\0\0\xff\xff", done.err


async def test_keys_of_the_qube_are_read_and_some_written(daemon: DaemonProcess, shared_qube: str) -> None:
    assert await sh(daemon, shared_qube, "qubesdb-read /name") == shared_qube
    assert "/qubes-vm-type" in (await sh(daemon, shared_qube, "qubesdb-list -f /")).split()
    write = "qubesdb-write /features-request/test 1 && qubesdb-read /features-request/test"
    assert await sh(daemon, shared_qube, write) == "1"
    assert (await run(daemon, shared_qube, "qubesdb-write /name other")).code == 1


# --- between qubes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qubes(daemon: DaemonProcess) -> Iterator[None]:
    """A qube that works, a vault with throw-away keys, and what disposables are made of."""

    async def make() -> None:
        client = daemon.client
        for name in (WORK, VAULT, BASE):
            await create_app_qube(client, name)
        await client.set_property("template_for_dispvms", "True", BASE)
        await client.set_property("default_dispvm", BASE, WORK)
        await client.set_feature(WORK, "service.app-dispvm.test-mail", "1")
        await client.start(VAULT)
        await client.start(WORK)
        await sh(daemon, VAULT, "gpg -q --batch --passphrase '' --quick-generate-key 'me <me@localhost>' ed25519")
        await sh(daemon, VAULT, "ssh-keygen -q -t ed25519 -N '' -f ~/key && insula-ssh-add mail -q ~/key")

    PolicyStore(daemon.paths.policy).replace("20-services", RULES.encode(), "any")
    asyncio.run(make())
    yield

    async def remove() -> None:
        for name in (WORK, VAULT, BASE):
            await discard(daemon, name)

    asyncio.run(remove())
    PolicyStore(daemon.paths.policy).remove("20-services", "any")


async def answer_questions(daemon: DaemonProcess, words: str) -> None:
    """Have somebody at the vault's terminal who answers each question so."""
    # A terminal that types its answer once a question is there.
    script = f"""
import os, pty
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("insula-consent", ["insula-consent"])
open("/tmp/asker", "w").write(str(pid))
shown = b""
while True:
    try:
        shown += os.read(terminal, 1024)
    except OSError:
        break
    if shown.endswith(b"yes or no? "):
        open("/tmp/asked", "ab").write(shown)
        shown = b""
        os.write(terminal, b"{words}" + bytes([10]))
"""
    reset = "if [ -e /tmp/asker ]; then kill $(cat /tmp/asker); rm /tmp/asker; fi; rm -rf /tmp/insula-1000/{gpg*,cons*}"
    await sh(daemon, VAULT, reset)
    start = f"setsid python3 -c {shlex.quote(script)} </dev/null >/dev/null 2>&1 &"
    await sh(daemon, VAULT, start + " while [ ! -S /tmp/insula-1000/consent.sock ]; do sleep 0.1; done")


@pytest.mark.usefixtures("qubes")
async def test_message_is_signed_by_the_vaults_key_once_somebody_there_says_yes(daemon: DaemonProcess) -> None:
    await answer_questions(daemon, "yes")
    signed = await run(daemon, WORK, "qubes-gpg-client --armor --detach-sign > sig", stdin=b"words")
    assert signed.code == 0, signed.err
    await sh(daemon, WORK, "printf words > words")
    verified = await run(daemon, WORK, "qubes-gpg-client --verify sig words")
    assert verified.code == 0, verified.err
    assert b"Good signature" in verified.err
    # Once for both: a yes is remembered.
    asked = await sh(daemon, VAULT, "cat /tmp/asked; rm /tmp/asked")
    assert asked.count("yes or no?") == 1
    assert f"the qube {WORK} to use your GPG keys" in asked


@pytest.mark.usefixtures("qubes")
async def test_no_of_somebody_there_is_a_refusal(daemon: DaemonProcess) -> None:
    await answer_questions(daemon, "no")
    refused = await run(daemon, WORK, "qubes-gpg-client --detach-sign", stdin=b"words")
    assert (refused.code, refused.out) == (1, b"")


@pytest.mark.usefixtures("qubes")
async def test_secret_key_and_files_of_the_vault_cannot_be_had(daemon: DaemonProcess) -> None:
    """MC-17."""
    await answer_questions(daemon, "yes")
    for options in ("--export-secret-keys me", "--output /tmp/taken --detach-sign", "--decrypt /etc/hostname"):
        assert (await run(daemon, WORK, f"qubes-gpg-client {options}", stdin=b"words")).code != 0
    await sh(daemon, VAULT, "test ! -e /tmp/taken")


@pytest.mark.usefixtures("qubes")
async def test_ssh_key_is_listed_and_signs_from_the_vault(daemon: DaemonProcess) -> None:
    await answer_questions(daemon, "yes")
    public = await sh(daemon, VAULT, "cat ~/key.pub")
    await sh(daemon, WORK, f"echo '{public}' > key.pub; echo 'me {public}' > signers; printf words > words")
    agent = f"insula-ssh-agent -t {VAULT} mail --"
    assert public.split()[1] in await sh(daemon, WORK, f"{agent} ssh-add -L")
    signed = await run(daemon, WORK, f"rm -f words.sig; {agent} ssh-keygen -Y sign -n file -f key.pub words")
    assert signed.code == 0, signed.err
    verify = "ssh-keygen -Y verify -f signers -I me -n file -s words.sig < words"
    assert "Good" in await sh(daemon, WORK, verify)
    assert (await run(daemon, WORK, f"insula-ssh-agent -t {VAULT} other -- ssh-add -l")).code != 0


@pytest.mark.usefixtures("qubes")
async def test_unit_serves_the_keys_of_the_vault(daemon: DaemonProcess) -> None:
    await sh(daemon, WORK, f"echo {VAULT} > /rw/config/split-ssh-domain", user="root")
    await sh(daemon, WORK, "systemctl start insula-ssh-agent@mail.socket", user="root")
    listed = "SSH_AUTH_SOCK=/run/insula-ssh-agent/mail ssh-add -L"
    assert "ssh-ed25519" in await sh(daemon, WORK, listed)


@pytest.mark.usefixtures("qubes")
async def test_document_is_converted_in_a_disposable(daemon: DaemonProcess) -> None:
    await run(daemon, WORK, "cat > paper.pdf", stdin=PDF.encode())
    done = await run(daemon, WORK, "qvm-convert-pdf -r 72 paper.pdf")
    assert done.code == 0, done.err
    assert await sh(daemon, WORK, "ls ~/QubesUntrustedPDFs; test ! -e paper.pdf") == "paper.pdf"
    count = await sh(daemon, WORK, "pdfimages -list paper.trusted.pdf")
    assert count.split("\n")[-1].split()[2:6] == ["image", "72", "36", "rgb"]


@pytest.mark.usefixtures("qubes")
async def test_image_is_converted_in_a_disposable(daemon: DaemonProcess) -> None:
    await run(daemon, WORK, "cat > in.ppm", stdin=b"P6\n2 1\n255\n\xff\0\0\0\0\xff")
    done = await run(daemon, WORK, "qvm-convert-img in.ppm out.png")
    assert done.code == 0, done.err
    show = "python3 -c 'from PIL import Image; print(list(Image.open(\"out.png\").getdata()))'"
    assert await sh(daemon, WORK, show) == "[(255, 0, 0, 255), (0, 0, 255, 255)]"


@pytest.mark.usefixtures("qubes")
async def test_what_is_no_document_leaves_everything_as_it_was(daemon: DaemonProcess) -> None:
    """MC-22."""
    await sh(daemon, WORK, "echo nothing > bad.pdf")
    assert (await run(daemon, WORK, "qvm-convert-pdf bad.pdf")).code == 1
    assert await sh(daemon, WORK, "ls bad*") == "bad.pdf"


@pytest.mark.usefixtures("qubes")
async def test_marked_application_opens_everything_in_a_disposable(daemon: DaemonProcess) -> None:
    script = b"grep -h text/plain $XDG_DATA_DIRS/applications/mimeapps.list || echo the usual one"
    await run(daemon, WORK, "cat > show; mkdir -p ~/.local/share/applications", stdin=script)
    entry = b"[Desktop Entry]\nType=Application\nName=x\nExec=sh /home/user/show\n"
    for name in ("test-mail", "test-other"):
        await run(daemon, WORK, f"cat > ~/.local/share/applications/{name}.desktop", stdin=entry)
    assert (await call(daemon, WORK, "qubes.StartApp+test-mail")).text == "text/plain=qvm-open-in-dvm.desktop;"
    assert (await call(daemon, WORK, "qubes.StartApp+test-other")).text == "the usual one"


@pytest.mark.usefixtures("qubes")
async def test_qube_tells_the_host_what_it_supports_and_whether_it_has_updates(daemon: DaemonProcess) -> None:
    await daemon.client.start(TEMPLATE)
    try:
        entry = b"[Desktop Entry]\nType=Application\nName=Test\nExec=true\n"
        await run(daemon, TEMPLATE, "cat > /usr/share/applications/test.desktop", user="root", stdin=entry)
        await sh(daemon, TEMPLATE, "/etc/qubes-rpc/qubes.PostInstall", user="root")
        features = await daemon.client.get_features(TEMPLATE)
        told = ("os", "os-distribution", "os-version", "qrexec", "supported-rpc.qubes.PdfConvert")
        assert [features.get(key) for key in told] == ["Linux", "debian", "12", "1", "1"]
        listed = {item["id"] for item in await daemon.client.applications(WORK)}
        assert "test" in listed
        await sh(daemon, TEMPLATE, "/usr/lib/qubes/upgrades-status-notify", user="root")
        assert "updates-available" in await daemon.client.list_features(TEMPLATE)
    finally:
        # Killed, it keeps nothing of what was done in it.
        await daemon.client.kill(TEMPLATE)
