"""``qvm-copy`` and its kin against ``qubes.Filecopy``: real programs, real folders, real pipes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.qube_calls import TwoQubes
from insula_agent.filecopy import confinement, receive
from insula_agent.filecopy import incoming as incoming_module
from insula_agent.filecopy.confinement import NotConfined
from insula_agent.filecopy.incoming import Incoming
from insula_proto import qfile
from insula_proto.qfile import Answer, AnswerDecoder, Decoder, Encoder, Quota

S = 1_000_000_000
MIB = 1 << 20
ENOUGH_ROUNDS = 300
MAX_DISTURBED = 500


@pytest.fixture
def qubes(tmp_path: Path) -> TwoQubes:
    return TwoQubes(tmp_path)


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: kind, mode, time, content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            found[str(path.relative_to(root))] = ("link", str(path.readlink()))
        else:
            content = path.read_bytes() if path.is_file() else None
            found[str(path.relative_to(root))] = (stat.S_IFMT(status.st_mode), status.st_mode & 0o777,
                                                  status.st_mtime_ns, content)  # fmt: skip
    return found


def make_tree(folder: Path) -> None:
    top = folder / "top"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "small").write_bytes(b"small")
    (top / "none").touch()
    (top / "big").write_bytes(os.urandom(3_000_001))
    (top / "sub" / "ünï 漢").write_bytes(b"x" * 70_000)
    (top / "sub" / "run").write_bytes(b"#!/bin/sh\n")
    (top / "sub" / "run").chmod(0o755)
    (top / "sub" / "up").symlink_to("../small")
    os.utime(top / "small", ns=(5 * S + 1, 1_000 * S + 123_456_789))
    (top / "sub").chmod(0o555)
    os.utime(top, ns=(5 * S, 2_000 * S + 7))


def headed(name: bytes, mode: int, size: int = 0) -> bytes:
    return qfile.HEADER.pack(len(name) + 1, mode, size, 0, 0, 0, 0) + name + b"\0"


FILE, FOLDER, LINK, END = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777, bytes(32)


def answer_of(done: subprocess.CompletedProcess[bytes]) -> Answer:
    decoder = AnswerDecoder()
    decoder.receive(done.stdout)
    assert decoder.is_full, done
    return decoder.finish()


def incomplete(qubes: TwoQubes) -> list[Path]:
    return [path for path in qubes.room.iterdir() if path.name.startswith("incomplete-")]


# from one end to the other


def test_copy_everything_arrives_as_it_was(qubes: TwoQubes) -> None:
    make_tree(qubes.here)
    (qubes.here / "single").write_bytes(b"one")
    done = qubes.run("qvm-copy", "top/", "./single")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert snapshot(qubes.room) == snapshot(qubes.here)
    assert qubes.calls == ["@default qubes.Filecopy"]
    assert qubes.room.stat().st_mode & 0o777 == 0o700


def test_copy_to_vm_names_its_target(qubes: TwoQubes) -> None:
    (qubes.here / "f").touch()
    assert qubes.run("qvm-copy-to-vm", "vault", "f").returncode == 0
    assert qubes.calls == ["vault qubes.Filecopy"]


def test_progress_is_shown_when_asked_for_only(qubes: TwoQubes) -> None:
    (qubes.here / "f").write_bytes(bytes(5000))
    assert qubes.run("qvm-copy", "--with-progress", "f").stderr.endswith(b"sent 5/5 KB\r\n")
    (qubes.here / "g").write_bytes(bytes(5000))
    assert qubes.run("qvm-copy", "--without-progress", "g").stderr == b""


@pytest.mark.parametrize("arguments", [[], ["--what", "f"], ["--help"], ["--"]])
def test_usage_is_told(qubes: TwoQubes, arguments: list[str]) -> None:
    done = qubes.run("qvm-copy", *arguments)
    assert done.stderr.startswith(b"usage: qvm-copy ")
    assert done.returncode == (0 if arguments == ["--help"] else 1)
    assert qubes.calls == []


@pytest.mark.parametrize("path", [".", "..", "/", "top/.", "missing", ""])
def test_what_has_no_name_or_is_not_there_cannot_be_sent(qubes: TwoQubes, path: str) -> None:
    (qubes.here / "top").mkdir()
    done = qubes.run("qvm-copy", "--", path)
    assert done.returncode == 1
    assert done.stderr.startswith(b"qvm-copy: ")
    assert qubes.calls == []


def test_odd_names_are_sent_by_the_service_for_them(qubes: TwoQubes) -> None:
    """MC-05: byte for byte, and never shown raw."""
    name = os.fsdecode(b"a\x1b[2J\xff\n")
    (qubes.here / name).write_bytes(b"x")
    assert qubes.run("qvm-copy", name).returncode == 0
    assert qubes.calls == ["@default qubes.Filecopy+allow-all-names"]
    assert (qubes.room / name).read_bytes() == b"x"
    again = qubes.run("qvm-copy", name)
    assert again.returncode == 1
    assert b'"a_[2J__"' in again.stderr


def test_call_refused_is_said_and_126(qubes: TwoQubes) -> None:
    (qubes.here / "f").write_bytes(bytes(5_000_000))
    qubes.refuse()
    done = qubes.run("qvm-copy", "f")
    assert (done.returncode, done.stderr) == (126, b"qvm-copy: the call was refused\n")


def test_existing_name_is_never_replaced(qubes: TwoQubes) -> None:
    """MC-09: whether file, folder or link."""
    qubes.room.mkdir(parents=True)
    (qubes.room / "file").write_bytes(b"mine")
    (qubes.room / "folder").mkdir()
    (qubes.room / "link").symlink_to("/nonexistent")
    before = snapshot(qubes.room)
    for name in ("file", "folder", "link"):
        (qubes.here / name).mkdir()
        (qubes.here / name / "inner").write_bytes(b"theirs")
        done = qubes.run("qvm-copy", name)
        assert done.returncode == 1
        assert f'has "{name}" already'.encode() in done.stderr
    assert snapshot(qubes.room) == before


def test_sizes_around_the_blocks_of_direct_writes(qubes: TwoQubes) -> None:
    """Whole blocks go to the disk directly, the rest of a file through the cache; no byte more or less."""
    top = qubes.here / "top"
    top.mkdir()
    for size in (1, 65_536, 65_537, MIB - 1, MIB, MIB + 1, MIB + 4096, 2 * MIB, 3 * MIB + 4095, 3 * MIB + 8192):
        (top / str(size)).write_bytes(os.urandom(size))
    assert qubes.run("qvm-copy", "top").returncode == 0
    assert snapshot(qubes.room) == snapshot(qubes.here)


# links


def test_link_at_the_top_or_out_of_it_is_refused_before_anything_is_sent(qubes: TwoQubes) -> None:
    (qubes.here / "link").symlink_to("elsewhere")
    (qubes.here / "top").mkdir()
    (qubes.here / "top" / "out").symlink_to("../secret")
    for name in ("link", "top"):
        done = qubes.run("qvm-copy", name)
        assert done.returncode == 1
        assert b"is a symbolic link" in done.stderr
        assert qubes.calls == []
        assert qubes.run("qvm-copy", "--ignore-symlinks", name).returncode == 0
        qubes._calls.unlink()
    assert [path.name for path in qubes.room.rglob("*")] == ["top"]


def test_nothing_is_sent_through_a_link(qubes: TwoQubes) -> None:
    (qubes.here / "secret").write_bytes(b"secret")
    (qubes.here / "top").mkdir()
    (qubes.here / "top" / "inner").symlink_to("secret")
    assert qubes.run("qvm-copy", "top").returncode == 0
    assert (qubes.room / "top" / "inner").readlink() == Path("secret")


# moving


def test_move_removes_after_all_has_arrived(qubes: TwoQubes) -> None:
    make_tree(qubes.here)
    before = snapshot(qubes.here)
    (qubes.here / "top" / "sub").chmod(0o755)
    before["top/sub"] = snapshot(qubes.here)["top/sub"]
    done = qubes.run("qvm-move", "top")
    assert (done.returncode, done.stderr) == (0, b"")
    assert snapshot(qubes.room) == before
    assert list(qubes.here.iterdir()) == []


def test_move_that_fails_removes_nothing(qubes: TwoQubes) -> None:
    make_tree(qubes.here)
    before = snapshot(qubes.here)
    (qubes.room / "top").mkdir(parents=True)
    assert qubes.run("qvm-move", "top").returncode == 1
    qubes.refuse()
    assert qubes.run("qvm-move-to-vm", "vault", "top").returncode == 126
    assert snapshot(qubes.here) == before


def test_move_keeps_what_was_not_sent(qubes: TwoQubes) -> None:
    top = qubes.here / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "sent").touch()
    (top / "link").symlink_to("sub")
    os.mkfifo(top / "fifo")
    done = qubes.run("qvm-move", "--ignore-symlinks", "top")
    assert done.returncode == 1
    assert b"left out: top/fifo" in done.stderr
    assert b"kept: top/link was not sent" in done.stderr
    assert sorted(path.name for path in top.iterdir()) == ["fifo", "link"]
    assert (qubes.room / "top" / "sub" / "sent").exists()


def replace_service(qubes: TwoQubes, folder: Path, script: str) -> None:
    """Have the other qube run something else as its ``qubes.Filecopy``."""
    qubes.services = folder / "services"
    qubes.services.mkdir()
    service = qubes.services / "qubes.Filecopy"
    service.write_text(f"#!/bin/sh\n{script}\n")
    service.chmod(0o755)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", b"did not say that it has the files"),
        (struct.pack("<IIQ", 0, 0, 1), b"checksum"),
        (struct.pack("<IIQ", 28, 0, 0), b"No space left"),
        (struct.pack("<IIQI", 0xFFFFFFFF, 0, 0, 4) + b"\x1b[2J", b'error 4294967295, at "_[2J"'),
        (b"you have won", b"did not say that it has the files"),
    ],
)
def test_move_believes_nothing_but_a_good_answer(
    qubes: TwoQubes, tmp_path: Path, answer: bytes, expected: bytes
) -> None:
    """MC-07, MC-10: nothing of what comes back is used but the status; of its name only printable letters are shown."""
    (tmp_path / "answer").write_bytes(answer)
    replace_service(qubes, tmp_path, f'cat > /dev/null; cat "{tmp_path}/answer"')
    (qubes.here / "f").write_bytes(b"precious")
    done = qubes.run("qvm-move", "f")
    assert done.returncode == 1
    assert expected in done.stderr
    assert b"\x1b" not in done.stderr
    assert (qubes.here / "f").read_bytes() == b"precious"


def test_move_is_not_done_when_the_service_fails_after_a_good_answer(qubes: TwoQubes, tmp_path: Path) -> None:
    replace_service(qubes, tmp_path, f'"{qubes.services}/qubes.Filecopy"; exit 9')
    (qubes.here / "f").touch()
    done = qubes.run("qvm-move", "f")
    assert (done.returncode, done.stderr) == (1, b"qvm-move: the call ended with exit code 9\n")
    assert (qubes.here / "f").exists()


def test_move_keeps_what_changed_since_it_was_sent(qubes: TwoQubes, tmp_path: Path) -> None:
    real = f"{qubes.services}/qubes.Filecopy"
    script = f'"{real}" > "{tmp_path}/answer"; echo more >> "{qubes.here}/top/f"; cat "{tmp_path}/answer"'
    replace_service(qubes, tmp_path, script)
    (qubes.here / "top").mkdir()
    (qubes.here / "top" / "f").write_text("text\n")
    (qubes.here / "top" / "g").touch()
    done = qubes.run("qvm-move", "top")
    assert (done.returncode, done.stderr) == (1, b"qvm-move: kept: top/f has changed\n")
    assert (qubes.here / "top" / "f").read_text() == "text\nmore\n"
    assert not (qubes.here / "top" / "g").exists()
    assert (qubes.room / "top" / "f").read_text() == "text\n"


def test_interrupted_copy_says_nothing_and_moves_nothing(qubes: TwoQubes, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    replace_service(qubes, tmp_path, f'exec cat "{gate}"')
    (qubes.here / "f").write_bytes(bytes(5_000_000))
    # Where these tests run in the background, they inherit that SIGINT is ignored.
    command = ["env", "--default-signal=INT", *qubes.command("qvm-move", "--with-progress", "f")]
    with subprocess.Popen(
        command, cwd=qubes.here, env=qubes.environment(),
        stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        seen = b""
        while b"sent 0/" not in seen:
            seen += os.read(process.stderr.fileno(), 100)
        # As a terminal does: everybody in the group.
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in rest
    assert (qubes.here / "f").exists()


def test_early_answer_stops_the_sender(qubes: TwoQubes) -> None:
    """A gigabyte is not sent to find out what the first header would have told."""
    (qubes.room / "a").mkdir(parents=True)
    with (qubes.here / "a").open("wb") as file:
        file.truncate(1 << 30)
    done = qubes.run("qvm-copy", "--with-progress", "a")
    assert b'has "a" already' in done.stderr
    assert b"sent 1048576/" not in done.stderr


def test_file_that_shrinks_while_it_is_sent_fails(qubes: TwoQubes, tmp_path: Path) -> None:
    """MC-07: the receiver keeps no file that is not whole."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    replace_service(qubes, tmp_path, f'read word < "{gate}"; exec "{qubes.services}/qubes.Filecopy"')
    with (qubes.here / "f").open("wb") as file:
        file.truncate(30 << 20)
    with subprocess.Popen(
        qubes.command("qvm-copy", "--with-progress", "f"), cwd=qubes.here, env=qubes.environment(),
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        seen = b""
        while b"sent 0/" not in seen:
            seen += os.read(process.stderr.fileno(), 100)
        os.truncate(qubes.here / "f", 100)
        gate.write_text("go\n")
        error = process.stderr.read()
    assert process.returncode == 1
    assert b"f changed while it was copied" in error
    assert list(qubes.room.iterdir()) == []


# the receiver alone


def test_answer_has_checksum_and_last_name(qubes: TwoQubes) -> None:
    encoder = Encoder()
    stream = encoder.file(b"f", 0o640, 3, 0, 0) + b"abc"
    encoder.sent(b"abc")
    stream += encoder.end()
    done = qubes.serve("qubes.Filecopy", stream)
    assert (done.returncode, done.stderr) == (0, b"")
    assert answer_of(done) == Answer(0, encoder.crc, b"f")


@pytest.mark.parametrize("name", [b"../x", b"/tmp/x", b"", b"a/../../x", b"..", b"a\0b"])
def test_path_outside_refused_nothing_made(qubes: TwoQubes, name: bytes) -> None:
    """MC-01."""
    done = qubes.serve("qubes.Filecopy", headed(name, FILE) + END)
    assert answer_of(done).code == errno.EILSEQ
    assert done.returncode == errno.EILSEQ
    assert list(qubes.room.iterdir()) == []
    assert [path.name for path in qubes.home.iterdir()] == ["QubesIncoming"]


def test_file_through_a_link_refused(qubes: TwoQubes) -> None:
    """MC-02: a link that was sent, and one that lay there, is not followed."""
    canary = qubes.home / "canary"
    canary.mkdir()
    stream = headed(b"d", FOLDER) + headed(b"d/l", LINK, 1) + b"." + headed(b"d/l/f", FILE) + END
    answer = answer_of(qubes.serve("qubes.Filecopy", stream))
    assert (answer.code, answer.name) == (errno.ENOTDIR, b"d/l/f")
    qubes.room.joinpath("e").symlink_to(canary)
    answer = answer_of(qubes.serve("qubes.Filecopy", headed(b"e/f", FILE) + END))
    assert answer.code == errno.ENOENT
    assert list(canary.iterdir()) == []


def test_room_that_is_a_link_is_not_entered(qubes: TwoQubes) -> None:
    """MC-02."""
    canary = qubes.home / "canary"
    canary.mkdir()
    qubes.room.parent.mkdir()
    qubes.room.symlink_to(canary)
    answer = answer_of(qubes.serve("qubes.Filecopy", headed(b"f", FILE) + END))
    assert answer.code == errno.ENOTDIR
    assert list(canary.iterdir()) == []


@pytest.mark.parametrize("remote", ["", "..", "../x", "a/b", ".hidden", "x" * 64, "a\nb"])
def test_remote_that_is_no_name_of_a_qube_refused(qubes: TwoQubes, remote: str) -> None:
    """MC-18: what the folder is called is never taken from a strange name."""
    done = qubes.serve("qubes.Filecopy", END, QREXEC_REMOTE_DOMAIN=remote)
    assert (done.returncode, done.stdout) == (1, b"")
    assert list(qubes.home.iterdir()) == []


def test_unknown_argument_refused(qubes: TwoQubes) -> None:
    done = qubes.serve("qubes.Filecopy", END, ["--verbose"])
    assert (done.returncode, done.stdout) == (1, b"")


def test_mode_loses_special_bits_and_device_is_refused(qubes: TwoQubes) -> None:
    """MC-04."""
    stream = headed(b"f", stat.S_IFREG | 0o7755) + headed(b"d", stat.S_IFDIR | 0o7777) * 2 + END
    assert answer_of(qubes.serve("qubes.Filecopy", stream)).code == 0
    assert stat.S_IMODE((qubes.room / "f").stat().st_mode) == 0o755
    assert stat.S_IMODE((qubes.room / "d").stat().st_mode) == 0o777
    for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
        assert answer_of(qubes.serve("qubes.Filecopy", headed(b"x", kind | 0o666) + END)).code == errno.EINVAL
    assert not (qubes.room / "x").exists()


def test_too_many_entries_stop_at_the_count_the_rest_is_called_incomplete(qubes: TwoQubes) -> None:
    """MC-06: ten million empty files, of which three are allowed."""

    def endless() -> Iterator[bytes]:
        for number in range(10_000_000):
            yield headed(b"f%d" % number, FILE)

    environment = {**qubes.environment(UPDATES_MAX_FILES="3"), "HOME": str(qubes.home), "QREXEC_REMOTE_DOMAIN": "work"}
    with subprocess.Popen(
        [qubes.services / "qubes.Filecopy"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with pytest.raises(BrokenPipeError):
            for header in endless():
                process.stdin.write(header)
        decoder = AnswerDecoder()
        decoder.receive(process.stdout.read())
        # What Python still holds for the broken pipe is nobody's.
        os.close(os.dup(process.stdin.fileno()))
        process.stdin.raw.close()  # type: ignore[attr-defined]
    assert (decoder.finish().code, decoder.finish().name) == (errno.EDQUOT, b"f3")
    (folder,) = qubes.room.iterdir()
    assert folder.name.startswith("incomplete-")
    assert sorted(path.name for path in folder.iterdir()) == ["f0", "f1", "f2"]


def test_too_deep_refused(qubes: TwoQubes) -> None:
    """MC-06: 100 levels of folders."""
    levels = [b"/".join([b"d"] * depth) for depth in range(1, 101)]
    answer = answer_of(qubes.serve("qubes.Filecopy", b"".join(headed(level, FOLDER) for level in levels) + END))
    assert (answer.code, answer.name) == (errno.EDQUOT, b"/".join([b"d"] * 65))
    assert [path.name.startswith("incomplete-") for path in qubes.room.iterdir()] == [True]


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"", errno.EREMOTEIO),
        (headed(b"whole", FILE) + headed(b"f", FILE, 10) + b"abc", qfile.CUT_OFF),
        (headed(b"whole", FILE) + headed(b"f", FILE, 3) + b"abc" + headed(b"../x", FILE), errno.EILSEQ),
        (headed(b"whole", FILE) + headed(b"f", FILE, 3) + b"abc", errno.EREMOTEIO),
    ],
)
def test_stream_that_is_wrong_leaves_nothing_under_its_name(qubes: TwoQubes, stream: bytes, code: int) -> None:
    """MC-07: what is whole is in a folder called incomplete, what is cut is gone."""
    done = qubes.serve("qubes.Filecopy", stream)
    assert answer_of(done).code == code
    assert done.returncode != 0
    assert [path for path in qubes.room.iterdir() if not path.name.startswith("incomplete-")] == []
    names = sorted(path.name for folder in incomplete(qubes) for path in folder.iterdir())
    assert names == (
        [] if not stream else ["f", "whole"] if b"f\0abc" in stream and code != qfile.CUT_OFF else ["whole"]
    )


def test_receiver_killed_in_the_middle_leaves_nothing_under_its_name(qubes: TwoQubes) -> None:
    """MC-07: whatever ends it."""
    environment = {**qubes.environment(), "HOME": str(qubes.home), "QREXEC_REMOTE_DOMAIN": "work"}
    for number in (signal.SIGKILL, signal.SIGHUP):
        with subprocess.Popen(
            [qubes.services / "qubes.Filecopy"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            process.stdin.write(headed(b"whole", FILE) + headed(b"f", FILE, 10) + b"abc")
            process.stdin.flush()
            wait_until(lambda: qubes.room.exists() and any((f / "whole").exists() for f in incomplete(qubes)))
            process.send_signal(number)
        names = [path.name for folder in incomplete(qubes) for path in folder.iterdir()]
        assert names == ["whole"]
        for folder in incomplete(qubes):
            (folder / "whole").unlink()
            folder.rmdir()
        assert list(qubes.room.iterdir()) == []


def test_sender_killed_in_the_middle_leaves_nothing_under_its_name(qubes: TwoQubes) -> None:
    """MC-07."""
    top = qubes.here / "top"
    top.mkdir()
    (top / "whole").write_bytes(b"whole")
    # Longer than everything in between can hold, so that it cannot be sent before the kill.
    with (top / "zero").open("wb") as file:
        file.truncate(1 << 40)
    with subprocess.Popen(qubes.command("qvm-move", "top"), cwd=qubes.here, env=qubes.environment()) as process:
        wait_until(lambda: qubes.room.exists() and any((f / "top").exists() for f in incomplete(qubes)))
        process.kill()
    wait_until(lambda: not [line for line in Path("/proc").glob("[0-9]*/cmdline") if is_receiver(line, qubes)])
    assert [path for path in qubes.room.iterdir() if not path.name.startswith("incomplete-")] == []
    assert {path.name for folder in incomplete(qubes) for path in (folder / "top").iterdir()} <= {"whole"}
    assert sorted(path.name for path in top.iterdir()) == ["whole", "zero"]


def is_receiver(command_line: Path, qubes: TwoQubes) -> bool:
    """Whether a process is the service of these two qubes."""
    try:
        if b"qubes.Filecopy" not in command_line.read_bytes():
            return False
        return f"OTHER_HOME={qubes.home}".encode() in command_line.with_name("environ").read_bytes()
    except OSError:
        return False


def wait_until(is_so: object) -> None:
    assert callable(is_so)
    pause = threading.Event()
    for _ in range(12000):
        if is_so():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to that")


def test_program_that_moves_folders_meanwhile_leads_nothing_elsewhere(qubes: TwoQubes) -> None:
    """MC-03: a loop that puts a link in the place of the folder being written to, thousands of times."""
    # Where even a process that is shut in could get at it.
    canary = qubes.room / "canary"
    canary.mkdir(parents=True)
    stop = threading.Event()
    rounds = 0

    def disturb() -> None:
        nonlocal rounds
        while not stop.is_set():
            for folder in incomplete(qubes):
                for name, target in (("d", "../canary"), ("d/e", "../../canary")):
                    place, aside = folder / name, folder / f"{name}-aside"
                    try:
                        place.rename(aside)
                        place.symlink_to(target)
                        place.unlink()
                        aside.rename(place)
                        rounds += 1
                    except OSError:
                        continue

    disturber = threading.Thread(target=disturb)
    disturber.start()
    codes = set()
    try:
        for _ in range(MAX_DISTURBED):
            if rounds > ENOUGH_ROUNDS:
                break
            pieces = [headed(b"d", FOLDER), headed(b"d/e", FOLDER)]
            for number in range(300):
                # In turn, so that the folder is entered anew each time.
                pieces += [headed(b"d/e/f%d" % number, FILE, 2) + b"ab", headed(b"d/g%d" % number, FILE, 2) + b"ab"]
            codes.add(answer_of(qubes.serve("qubes.Filecopy", b"".join(pieces) + END)).code)
            for path in set(qubes.room.iterdir()) - {canary}:
                path.rename(qubes.home / f"done-{os.urandom(4).hex()}")
    finally:
        stop.set()
        disturber.join()
    assert list(canary.iterdir()) == []
    assert rounds > ENOUGH_ROUNDS
    # Finished, or stopped where somebody had been; never anything else.
    assert codes <= {0, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EEXIST}


def test_confined_to_the_folder(qubes: TwoQubes, tmp_path: Path) -> None:
    """The second line: for the process that writes there is nothing but the folder, without devices or set-uid."""
    environment = {**qubes.environment(), "HOME": str(qubes.home), "QREXEC_REMOTE_DOMAIN": "work"}
    with subprocess.Popen(
        [qubes.services / "qubes.Filecopy"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(headed(b"f", FILE))
        process.stdin.flush()
        wait_until(lambda: qubes.room.exists() and any((f / "f").exists() for f in incomplete(qubes)))
        proc = Path("/proc") / str(process.pid)
        assert (proc / "root").readlink() != Path("/")
        assert [path.name[:11] for path in (proc / "root").iterdir()] == ["incomplete-"]
        status = (proc / "status").read_text()
        for line in ("CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"):
            assert line in status
        options = (proc / "mountinfo").read_text().splitlines()[-1].split()[5]
        assert {"nosuid", "nodev", "noexec"} <= set(options.split(","))
        process.stdin.write(END)


def test_name_taken_while_files_come_is_not_replaced(qubes: TwoQubes) -> None:
    """MC-09: the look beforehand is a courtesy, the move itself never replaces."""
    environment = {**qubes.environment(), "HOME": str(qubes.home), "QREXEC_REMOTE_DOMAIN": "work"}
    for make in (lambda path: path.write_text("mine"), lambda path: path.mkdir(), lambda path: path.symlink_to("x")):
        with subprocess.Popen(
            [qubes.services / "qubes.Filecopy"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(headed(b"name", FOLDER) + headed(b"name/f", FILE))
            process.stdin.flush()
            wait_until(lambda: qubes.room.exists() and any((f / "name" / "f").exists() for f in incomplete(qubes)))
            make(qubes.room / "name")
            before = snapshot(qubes.room / "name") if (qubes.room / "name").is_dir() else (qubes.room / "name").lstat()
            process.stdin.write(END)
            process.stdin.close()
            decoder = AnswerDecoder()
            decoder.receive(process.stdout.read())
        assert decoder.finish().code == errno.EEXIST
        after = snapshot(qubes.room / "name") if (qubes.room / "name").is_dir() else (qubes.room / "name").lstat()
        assert after == before
        assert [path.name for folder in incomplete(qubes) for path in folder.iterdir()] == ["name"]
        shutil.rmtree(qubes.room)


@pytest.mark.parametrize("step", ["separate", "bind"])
def test_without_namespaces_the_open_folders_are_the_only_line(
    qubes: TwoQubes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise NotConfined("no namespaces")

    # In a process of the test's own nothing can be left of namespaces: in the second case they were made, and no mount.
    monkeypatch.setattr(confinement, "separate", refuse if step == "separate" else lambda: None)
    monkeypatch.setattr(confinement, "bind", refuse)
    monkeypatch.setattr(confinement, "drop_capabilities", lambda: None)
    folder, descriptors = receive.open_destination(str(qubes.home), "work")
    answer = receive.receive(
        stream_of(headed(b"d", FOLDER) + headed(b"d/f", FILE, 3) + b"abc" + headed(b"d", FOLDER) + END),
        Incoming(folder, descriptors), Decoder(Quota(), all_names=False),
    )  # fmt: skip
    os.close(folder)
    os.close(descriptors)
    assert answer.code == 0
    assert (qubes.room / "d" / "f").read_bytes() == b"abc"
    assert capsys.readouterr().err == "qubes.Filecopy: not confined: no namespaces\n"


def test_direct_write_that_the_disk_refuses_goes_through_the_cache(
    qubes: TwoQubes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk with larger blocks than we think would: here the odd end of a file is tried directly."""
    monkeypatch.setattr(incoming_module, "_ALIGNMENT", 1)
    monkeypatch.setattr(confinement, "separate", lambda: (_ for _ in ()).throw(NotConfined("not here")))
    folder, descriptors = receive.open_destination(str(qubes.home), "work")
    data = os.urandom(3 * MIB + 77)
    decoder = Decoder(Quota(), all_names=False)
    answer = receive.receive(
        stream_of(headed(b"f", FILE, len(data)) + data + END), Incoming(folder, descriptors), decoder
    )
    os.close(folder)
    os.close(descriptors)
    assert answer.code == 0
    assert (qubes.room / "f").read_bytes() == data


def stream_of(data: bytes) -> int:
    """A descriptor from which these bytes are read."""
    fd = os.memfd_create("stream")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def test_waiting_for_space_ends_when_there_is_some(qubes: TwoQubes) -> None:
    stream = headed(b"f", FILE, 3) + b"abc" + END
    assert answer_of(qubes.serve("qubes.Filecopy", stream, ["--wait-for-space=1"])).code == 0
    free = os.statvfs(qubes.home)
    too_much = free.f_bavail * free.f_frsize * 2
    environment = {**qubes.environment(), "HOME": str(qubes.home), "QREXEC_REMOTE_DOMAIN": "other"}
    with subprocess.Popen(
        [qubes.services / "qubes.Filecopy", f"--wait-for-space={too_much}"], env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(stream)
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.terminate()


def test_qfile_agent_is_a_program_of_the_client(qubes: TwoQubes) -> None:
    """The published way, for scripts that call it so."""
    (qubes.here / "f").write_bytes(b"abc")
    agent = Path(qubes.services).parent / "rootfs" / "usr" / "lib" / "qubes" / "qfile-agent"
    stream, answers = os.pipe(), os.pipe()
    receiver = subprocess.Popen(
        [qubes.services / "qubes.Filecopy"], stdin=stream[0], stdout=answers[1],
        env={**qubes.environment(), "HOME": str(qubes.home), "QREXEC_REMOTE_DOMAIN": "work"},
    )  # fmt: skip
    sender = subprocess.Popen(
        [agent, "--ignore-symlinks", "--", "f"], stdin=answers[0], stdout=stream[1], stderr=subprocess.PIPE,
        cwd=qubes.here, env=qubes.environment(PROGRESS_TYPE="console", FILECOPY_TOTAL_BYTES="3"),
    )  # fmt: skip
    for fd in (*stream, *answers):
        os.close(fd)
    _, error = sender.communicate(timeout=120)
    assert (sender.returncode, receiver.wait(60)) == (0, 0)
    assert b"sent 1/1 KB" in error
    assert (qubes.room / "f").read_bytes() == b"abc"
