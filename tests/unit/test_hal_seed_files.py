from __future__ import annotations

import fcntl
import json
import mmap
import os
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.hal.errors import DriverError, SeedUnusable
from insula.hal.qemu.seed_files import (
    BLOCK,
    MANIFEST_NAME,
    MAX_STATE,
    MEMORY_NAME,
    SEGMENT,
    STATE_NAME,
    Cancelled,
    FileNote,
    Manifest,
    copy_sparse,
    empty,
    load_seed,
    machine_memory,
    read_manifest,
    state_memory,
    write_seed,
)

QEMU = "7.2.22"
SIZE = 3 * SEGMENT
STATE = b"devices" * 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A seed with three pieces of data in its memory."""
    target = tmp_path / "seed"
    target.mkdir()
    make_seed(target)
    return target


def make_seed(target: Path, cancelled: Event | None = None) -> None:
    with ExitStack() as stack:
        memory, state = machine_memory(SIZE), state_memory()
        for fd in (memory, state):
            stack.callback(os.close, fd)
        for offset in (0, SEGMENT - 2, SIZE - 5):
            os.pwrite(memory, b"data!", offset)
        os.pwrite(state, STATE, 0)
        manifest = Manifest(qemu=QEMU, model="model", memory=FileNote(SIZE, ""), state=FileNote(len(STATE), ""))
        write_seed(target, manifest, memory, state, Event() if cancelled is None else cancelled)


def open_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def load(folder: Path) -> None:
    load_seed(folder, QEMU, Event()).close()


# Round trip


def test_loaded_seed_has_what_was_written(folder: Path) -> None:
    seed = load_seed(folder, QEMU, Event())
    with ExitStack() as stack:
        memory, state = seed.open(stack)
        seed.close()
        assert os.pread(memory, 5, 0) == os.pread(memory, 5, SEGMENT - 2) == os.pread(memory, 5, SIZE - 5) == b"data!"
        assert os.fstat(memory).st_size == SIZE
        assert os.read(state, MAX_STATE) == STATE


def test_written_and_loaded_memory_is_sparse(folder: Path) -> None:
    assert (folder / MEMORY_NAME).stat().st_blocks * 512 <= 5 * BLOCK
    seed = load_seed(folder, QEMU, Event())
    with ExitStack() as stack:
        assert os.fstat(seed.open(stack)[0]).st_blocks * 512 <= 5 * BLOCK
    seed.close()


def test_each_fork_reads_the_state_from_its_beginning(folder: Path) -> None:
    seed = load_seed(folder, QEMU, Event())
    with ExitStack() as stack:
        one, two = seed.open(stack)[1], seed.open(stack)[1]
        assert os.read(one, MAX_STATE) == os.read(two, MAX_STATE) == STATE
    seed.close()


def test_all_descriptors_are_closed(folder: Path) -> None:
    before = open_count()
    seed = load_seed(folder, QEMU, Event())
    with ExitStack() as stack:
        seed.open(stack)
    seed.close()
    seed.close()
    (folder / STATE_NAME).write_bytes(b"?" * len(STATE))
    with pytest.raises(SeedUnusable):
        load(folder)
    assert open_count() == before
    with pytest.raises(SeedUnusable, match="unloaded"), ExitStack() as stack:
        seed.open(stack)


def test_loaded_files_are_sealed_against_every_change(folder: Path) -> None:
    seed = load_seed(folder, QEMU, Event())
    with ExitStack() as stack:
        for fd in seed.open(stack):
            # As a VMM can: opened anew for writing, which the mode allows.
            with Path(f"/proc/self/fd/{fd}").open("r+b", buffering=0) as file:
                number = file.fileno()
                with pytest.raises(PermissionError):
                    os.pwrite(number, b"x", 0)
                for size in (0, 1 << 40):
                    with pytest.raises(PermissionError):
                        os.ftruncate(number, size)
                with pytest.raises(PermissionError):
                    mmap.mmap(number, mmap.PAGESIZE)
                with pytest.raises(PermissionError):
                    fcntl.fcntl(number, fcntl.F_ADD_SEALS, 0)
                # What a fork does instead: a copy of its own of each page that it writes to.
                private = mmap.mmap(number, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
                private[0:1] = b"x"
                private.close()
                assert os.pread(number, 1, 0) == b"d"
    seed.close()


def test_mode_changed_by_a_vmm_of_the_same_user_does_not_keep_the_next_out(folder: Path) -> None:
    seed = load_seed(folder, QEMU, Event())
    with ExitStack() as stack:
        memory, _ = seed.open(stack)
        os.fchmod(memory, 0)
        seed.open(stack)
        assert os.fstat(memory).st_mode & 0o777 == 0o666
    seed.close()


def test_state_larger_than_its_limit_is_refused_by_the_kernel() -> None:
    fd = state_memory()
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", MAX_STATE)
    os.close(fd)


# The digest


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 9 * BLOCK), st.binary(min_size=1, max_size=20)), max_size=5),
    st.integers(0, 9 * BLOCK),
)
def test_digest_depends_on_content_only_not_on_holes(pieces: list[tuple[int, bytes]], zeroed: int) -> None:
    size = 10 * BLOCK
    with ExitStack() as stack:
        files = [os.memfd_create(name) for name in ("sparse", "dense", "copy", "changed")]
        for fd in files:
            stack.callback(os.close, fd)
            os.ftruncate(fd, size)
        sparse, dense, copy, changed = files
        os.pwrite(dense, bytes(size), 0)
        for offset, data in pieces:
            for fd in (sparse, dense, changed):
                os.pwrite(fd, data, offset)
        digest = copy_sparse(sparse, copy, size, Event())
        assert os.pread(copy, size, 0) == os.pread(sparse, size, 0)
        assert copy_sparse(dense, copy, size, Event()) == copy_sparse(copy, dense, size, Event()) == digest
        (old,) = os.pread(changed, 1, zeroed)
        os.pwrite(changed, bytes([old ^ 0x40]), zeroed)
        assert copy_sparse(changed, copy, size, Event()) != digest


def test_data_moved_to_another_place_changes_the_digest(tmp_path: Path) -> None:
    digests = set()
    for offset in (0, BLOCK, SEGMENT):
        path = tmp_path / str(offset)
        with path.open("w+b") as file, (tmp_path / "copy").open("w+b") as copy:
            file.truncate(2 * SEGMENT)
            os.pwrite(file.fileno(), b"data", offset)
            copy.truncate(2 * SEGMENT)
            digests.add(copy_sparse(file.fileno(), copy.fileno(), 2 * SEGMENT, Event()))
    assert len(digests) == 3


def test_copy_of_a_file_that_became_shorter_fails(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * (BLOCK - 1))
    with path.open("rb") as file, (tmp_path / "copy").open("w+b") as copy, pytest.raises(OSError, match="shorter"):
        copy_sparse(file.fileno(), copy.fileno(), BLOCK, Event())


# What is no seed


def test_changed_manifest_is_refused(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    whole = json.loads(path.read_bytes())
    assert read_manifest(folder).qemu == QEMU
    for text in (
        "", "{", "[]", "null", json.dumps(whole)[:-1], json.dumps({**whole, "format": 0}),
        json.dumps({**whole, "memory": {"size": "1"}}), json.dumps({**whole, "more": 1}), " " * (1 << 20),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(SeedUnusable):
            read_manifest(folder)


def test_other_version_of_qemu_is_refused(folder: Path) -> None:
    with pytest.raises(SeedUnusable, match=r"by QEMU 7\.2\.22, this is 8\.0"):
        load_seed(folder, "8.0", Event())


def test_fifo_in_place_of_a_file_is_refused_without_waiting(folder: Path) -> None:
    (folder / MEMORY_NAME).unlink()
    os.mkfifo(folder / MEMORY_NAME)
    with pytest.raises(SeedUnusable):
        load(folder)


def test_cancelled_load_and_write_leave_nothing(folder: Path, tmp_path: Path) -> None:
    cancelled = Event()
    cancelled.set()
    before = open_count()
    with pytest.raises(Cancelled):
        load_seed(folder, QEMU, cancelled)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(Cancelled):
        make_seed(other, cancelled)
    assert list(other.iterdir()) == []
    assert open_count() == before


def test_unwritable_folder_is_a_driver_error(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="cannot be written"):
        make_seed(tmp_path / "absent")


def test_emptied_folder_loses_files_of_seeds_and_halves_of_them_only(folder: Path) -> None:
    (folder / f"{MANIFEST_NAME}.partial").write_bytes(b"")
    (folder / "notes").write_bytes(b"")
    empty(folder)
    empty(folder)
    assert [path.name for path in folder.iterdir()] == ["notes"]
