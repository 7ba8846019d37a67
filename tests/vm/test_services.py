"""Services in real guests: what the host asks a qube for, and what qubes do for each other."""

from __future__ import annotations

import time

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import Result, run, sh
from insula_proto import pixels
from insula_proto.pixels import PageStarted, PixelDecoder, PixelsReceived

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
GROWN = 4 << 30
"""Bytes; new private volumes have 2 GiB."""


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
    done = await call(daemon, qube, "qubes.ResizeDisk", b"private\n")
    assert done.code == 0, done.err
    assert int(await sh(daemon, qube, size)) > before + (1 << 30)
    await sh(daemon, qube, "dd if=/dev/zero of=~/large bs=1M count=64 && sync && rm ~/large")


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
