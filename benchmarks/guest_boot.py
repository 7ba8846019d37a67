"""How long a template takes from QEMU's start to an agent that answers, without anything of the host's side.

Baseline: the same kernel with the same options and an initramfs of one file, from QEMU's start to that file running,
in the same run. Promised: at most 4 times as long. The guest is started by plain QEMU with the devices the driver uses;
the host's part of the handshake is played by this script.

``--template FOLDER`` measures a published template instead of building one, ``--console`` shows the guest's console.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import select
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from insula.hal.capabilities import EMULATED_KERNEL_OPTIONS
from insula.hal.driver import RPC_CHANNEL
from insula.hal.qemu.accel import EMULATED_CPU
from insula.templates.build import BuiltTemplate, load
from insula.templates.initramfs import Entry, write_newc
from insula.testing.guest import build_template
from insula_proto import qrexec, qubesdb
from insula_proto.mux import HOST, Mux
from insula_proto.mux_events import DataReceived, StreamOpened
from report import Case, publish

RUNS = 3
MEMORY_MIB = 400
GREETING_S = 30.0
"""QEMU keeps what is sent before the guest opens its end, so the greeting is repeated only in case of an accident."""
TIMEOUT_S = 120.0
BAR = 4.0
MARK = b"INSULA-BARE-INIT\n"
KEYS = {
    "/name": b"bench",
    "/type": b"AppVM",
    "/default-user": b"user",
    "/qubes-vm-type": b"AppVM",
    "/qubes-vm-updateable": b"False",
    "/qubes-vm-persistence": b"rw-only",
    "/qubes-base-template": b"debian-12",
    "/qubes-debug-mode": b"0",
    "/qubes-timezone": b"Europe/Berlin",
    "/qubes-service/meminfo-writer": b"1",
}

# A static x86-64 program of two system calls: write(1, MARK) and pause(). Handwritten, so that the bare boot needs
# neither a compiler nor a shell that would be measured along with it.
_CODE = (
    b"\xb8\x01\x00\x00\x00\xbf\x01\x00\x00\x00"  # mov eax, 1; mov edi, 1
    b"\x48\x8d\x35\x10\x00\x00\x00"  # lea rsi, [rip+16]
    b"\xba" + len(MARK).to_bytes(4, "little") + b"\x0f\x05"  # mov edx, length; syscall
    b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7" + MARK  # mov eax, 34; syscall; jmp back
)


def bare_initramfs() -> bytes:
    base = 0x400000
    header_size = 64 + 56
    total = header_size + len(_CODE)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + b"".join(
        number.to_bytes(size, "little")
        for number, size in (
            (2, 2), (62, 2), (1, 4), (base + header_size, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (1, 2),
            (0, 2), (0, 2), (0, 2),
            # one PT_LOAD, readable and executable
            (1, 4), (5, 4), (0, 8), (base, 8), (base, 8), (total, 8), (total, 8), (4096, 8),
        )
    )  # fmt: skip
    return write_newc(
        [
            Entry("dev", stat.S_IFDIR | 0o755),
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Entry("init", stat.S_IFREG | 0o755, elf + _CODE),
        ]
    )


def is_hardware() -> bool:
    """Whether KVM is of use here, by the driver's own rule in short."""
    flags = Path("/proc/cpuinfo").read_text()
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and (" vmx" in flags or " svm" in flags)


def accelerator_options() -> list[str]:
    emulated = ["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]
    return ["-accel", "kvm", "-cpu", "host"] if is_hardware() else emulated


def command(built: BuiltTemplate, initrd: Path, extra: list[str]) -> list[str]:
    hardware = is_hardware()
    options = [built.cmdline, "" if hardware else EMULATED_KERNEL_OPTIONS, "systemd.machine_id=" + "5" * 32]
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", *accelerator_options(),
        "-machine", "q35,hpet=off,smm=off,vmport=off,i8042=off,sata=off,usb=off",
        "-smp", "1", "-m", str(MEMORY_MIB), "-no-reboot",
        "-kernel", str(built.kernel), "-initrd", str(initrd), "-append", " ".join(filter(None, options)),
        *extra,
    ]  # fmt: skip


@contextmanager
def guest(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far: unlike the clock, hardly disturbed by what else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bare_seconds(built: BuiltTemplate, folder: Path) -> tuple[float, float]:
    """From QEMU's start to the only process of a bare kernel: on the clock, and of CPU."""
    initrd = folder / "bare.cpio"
    initrd.write_bytes(bare_initramfs())
    begin = time.perf_counter()
    with guest(command(built, initrd, ["-serial", "stdio"])) as process:
        assert process.stdout is not None
        seen = b""
        while MARK.strip() not in seen:
            if time.perf_counter() - begin > TIMEOUT_S or not (data := os.read(process.stdout.fileno(), 4096)):
                raise RuntimeError(f"the bare kernel did not start: {seen[-500:]!r}")
            seen += data
        return time.perf_counter() - begin, cpu_seconds(process.pid)


class Host:
    """The host's side of the agent's start: mux handshake, keys, qrexec HELLO."""

    def __init__(self, channel: socket.socket, keys: dict[str, bytes]) -> None:
        self._channel = channel
        self._mux = Mux(HOST)
        self._keys = qubesdb.KeyServer(keys, lambda _path, _value: True)
        self._ports: dict[int, int] = {}
        self._hello = bytearray()
        self.times: dict[str, float] = {}

    def run(self, begin: float, is_done: Callable[[dict[str, float]], bool]) -> None:
        """Until ``is_done`` says so of the times seen. :raise RuntimeError: it takes too long."""
        self._channel.setblocking(False)
        self._mux.start(pad=False)
        greeted = time.perf_counter()
        while not is_done(self.times):
            now = time.perf_counter()
            if now - begin > TIMEOUT_S:
                raise RuntimeError(f"no answer in {TIMEOUT_S:.0f} s; so far: {self.times}")
            if not self._mux.in_sync and now - greeted > GREETING_S:
                self._mux.start()
                greeted = now
            self._write()
            readable, _, _ = select.select([self._channel], [], [], 0.01)
            if readable:
                self._read(begin)

    def _write(self) -> None:
        while buffers := self._mux.data_to_send():
            try:
                self._mux.sent(self._channel.send(b"".join(buffers)))
            except BlockingIOError:
                return

    def _read(self, begin: float) -> None:
        for event in self._mux.receive(self._channel.recv(65536)):
            self.times.setdefault("mux", time.perf_counter() - begin)
            if isinstance(event, StreamOpened):
                self._ports[event.stream] = event.port
                if event.port == 512:
                    self._mux.send(event.stream, qrexec.encode(qrexec.Hello(qrexec.VERSION)))
            elif isinstance(event, DataReceived):
                self._data(event, begin)

    def _data(self, event: DataReceived, begin: float) -> None:
        self._mux.consumed(event.stream, len(event.data))
        if self._ports[event.stream] == qubesdb.PORT:
            self.times.setdefault("keys asked", time.perf_counter() - begin)
            self._keys.receive(event.data)
            if output := self._keys.take_output():
                self._mux.send(event.stream, output)
        else:
            self.times.setdefault("hello", time.perf_counter() - begin)


def disk(name: str, path: Path) -> list[str]:
    return [
        "-drive", f"if=none,id={name},file={path},format=qcow2,cache=unsafe,discard=unmap",
        "-device", f"virtio-blk-pci,drive={name},serial={name},disable-legacy=on",
    ]  # fmt: skip


def qcow2(path: Path, *arguments: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments[:-1], str(path), arguments[-1]], check=True)
    return path


def agent_seconds(built: BuiltTemplate, folder: Path, private: Path, *, console: bool) -> dict[str, float]:
    """From QEMU's start to each step of the agent's."""
    root = folder / "root.qcow2"
    qcow2(root, "-b", str(built.root_image), "-F", "raw", str(built.size))
    volatile = qcow2(folder / "volatile.qcow2", "10G")
    channel_path = folder / "rpc.sock"
    channel_path.unlink(missing_ok=True)
    keys = {**KEYS, "/qubes-random-seed": base64.b64encode(os.urandom(64))}
    argv = command(
        built,
        built.initrd,
        [
            *disk("root", root), *disk("private", private), *disk("volatile", volatile),
            "-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto", "-device", "virtio-balloon-pci",
            "-device", "virtio-serial-pci,disable-legacy=on",
            "-chardev", f"socket,id=rpc,path={channel_path},server=on,wait=off",
            "-device", f"virtserialport,chardev=rpc,name={RPC_CHANNEL}",
            "-serial", "stdio",
        ],
    )  # fmt: skip
    begin = time.perf_counter()
    with guest(argv) as process:
        host = Host(_connect(channel_path, process), keys)
        try:
            host.run(begin, lambda times: "hello" in times)
            host.times["cpu"] = cpu_seconds(process.pid)
        finally:
            process.kill()
            if console and process.stdout is not None:
                sys.stderr.buffer.write(process.stdout.read())
    return host.times


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    deadline = time.perf_counter() + 10
    while True:
        try:
            channel.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            if time.perf_counter() > deadline or process.poll() is not None:
                raise
            select.select([], [], [], 0.002)
        else:
            return channel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="accepted for uniformity; JSON is always the last line")
    parser.add_argument("--template", type=Path, help="folder of a published template")
    parser.add_argument("--console", action="store_true")
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    built = load(arguments.template.absolute()) if arguments.template else asyncio.run(build_template())
    if built is None:
        parser.error(f"{arguments.template} holds no template")
    with tempfile.TemporaryDirectory(prefix="insula-bench-") as temporary:
        folder = Path(temporary)
        private = qcow2(folder / "private.qcow2", "2G")
        first = agent_seconds(built, folder, private, console=arguments.console)
        bare, ready = [], []
        for _ in range(arguments.runs):
            # In turns, so that another load on the machine meets both.
            bare.append(bare_seconds(built, folder))
            ready.append(agent_seconds(built, folder, private, console=arguments.console))
            print({"bare": bare[-1][0], "bare cpu": bare[-1][1], **ready[-1]}, file=sys.stderr)
    bare_median = statistics.median(clock for clock, _ in bare)
    what = "same kernel to a one-file initramfs"
    cases = [
        Case(
            f"guest_boot: QEMU's start to {label}",
            statistics.median(times[step] for times in ready),
            "s",
            bare_median,
            what,
            f"≤ {BAR:g} × baseline" if step == "hello" else "reported",
            statistics.median(times[step] for times in ready) <= BAR * bare_median if step == "hello" else None,
            arguments.runs,
        )
        for step, label in (("mux", "the agent's first byte"), ("hello", "qrexec HELLO"))
    ]
    cases.append(
        Case(
            "guest_boot: CPU time to qrexec HELLO",
            statistics.median(times["cpu"] for times in ready),
            "s",
            statistics.median(cpu for _, cpu in bare),
            what,
            "reported: what the clock would say on an idle machine",
            None,
            arguments.runs,
        )
    )
    cases.append(
        Case("guest_boot: first boot, private disk made", first["hello"], "s", bare_median, what, "reported", None, 1)
    )
    publish("guest_boot", cases)


if __name__ == "__main__":
    main()
