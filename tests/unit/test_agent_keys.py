from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent import keys
from insula_proto import qubesdb


class Pipe:
    """A link that hands the client's messages to a key server and back at once."""

    def __init__(self, host_keys: dict[str, bytes]) -> None:
        self.server = qubesdb.KeyServer(host_keys, lambda path, value: True)
        self.was_reset = False
        self.keys: keys.Keys | None = None
        self.changes: list[tuple[str, bytes]] = []
        self.removed: list[str] = []

    def changed(self, path: str, value: bytes) -> None:
        self.changes.append((path, value))

    def open(self, port: int, handler: object) -> int:
        assert port == 111
        return 1

    def writable(self, stream: int) -> int:
        return 1 << 20

    def send(self, stream: int, data: bytes) -> None:
        self.server.receive(data)

    def consumed(self, stream: int, count: int) -> None:
        pass

    def reset(self, stream: int, code: int) -> None:
        self.was_reset = True

    def deliver(self, data: bytes = b"") -> None:
        assert self.keys is not None
        self.keys.data(1, data or self.server.take_output())


def connected(folder: Path, host_keys: dict[str, bytes]) -> tuple[Pipe, list[dict[str, bytes]]]:
    pipe = Pipe(host_keys)
    seen: list[dict[str, bytes]] = []
    pipe.keys = keys.Keys(pipe, str(folder), seen.append, pipe.changed, pipe.removed.append)  # type: ignore[arg-type]
    pipe.keys.start()
    pipe.deliver()
    return pipe, seen


def shown(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_keys_are_handed_on_and_shown_as_files_except_the_seed(tmp_path: Path) -> None:
    _, seen = connected(tmp_path / "k", {"/name": b"work", "/qubes-service/x": b"1", "/qubes-random-seed": b"secret"})
    assert seen == [{"/name": b"work", "/qubes-service/x": b"1", "/qubes-random-seed": b"secret"}]
    assert shown(tmp_path / "k") == {"name": b"work", "qubes-service%2Fx": b"1"}


def test_change_and_removal_by_host_are_followed(tmp_path: Path) -> None:
    pipe, _ = connected(tmp_path, {"/name": b"work"})
    pipe.deliver(pipe.server.write("/name", b"play"))
    pipe.deliver(pipe.server.write("/new", b"1"))
    assert shown(tmp_path) == {"name": b"play", "new": b"1"}
    assert pipe.changes == [("/name", b"play"), ("/new", b"1")]
    pipe.deliver(pipe.server.remove("/name"))
    pipe.deliver(pipe.server.remove("/name"))
    assert shown(tmp_path) == {"new": b"1"}
    assert pipe.removed == ["/name", "/name"]


def test_clock_is_handed_on_each_time_and_never_a_file(tmp_path: Path) -> None:
    pipe, seen = connected(tmp_path, {"/name": b"work", "/insula-clock": b"1"})
    pipe.deliver(pipe.server.write("/insula-clock", b"2"))
    assert seen[0]["/insula-clock"] == b"1"
    assert pipe.changes == [("/insula-clock", b"2")]
    assert shown(tmp_path) == {"name": b"work"}


def test_files_of_an_earlier_connection_are_removed(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    connected(tmp_path, {"/name": b"work"})
    assert shown(tmp_path) == {"name": b"work"}


def test_forget_seed_removes_it_at_the_host(tmp_path: Path) -> None:
    host_keys = {"/name": b"work", "/qubes-random-seed": b"secret"}
    pipe, _ = connected(tmp_path, host_keys)
    assert pipe.keys is not None
    pipe.keys.forget_seed()
    pipe.keys.forget_seed()
    assert host_keys == {"/name": b"work"}


def test_nonsense_from_host_resets_the_stream(tmp_path: Path) -> None:
    pipe, _ = connected(tmp_path, {})
    pipe.deliver(b"\xff" * 80)
    assert pipe.was_reset


@given(st.text("ab/%._-", min_size=1, max_size=60), st.text("ab/%._-", min_size=1, max_size=60))
def test_file_name_any_two_keys_have_two_files_inside_the_folder(first: str, second: str) -> None:
    names = {keys.file_name("/" + first), keys.file_name("/" + second)}
    assert len(names) == len({first, second})
    for name in names:
        assert "/" not in name
        assert name not in (".", "..")
        assert not name.startswith(".")


def test_make_file_makes_a_new_one_only(tmp_path: Path) -> None:
    keys.make_file(str(tmp_path), "name", b"work")
    assert (tmp_path / "name").read_bytes() == b"work"
    with pytest.raises(FileExistsError):
        keys.make_file(str(tmp_path), "name", b"play")
    assert (tmp_path / "name").read_bytes() == b"work"


def test_all_keys_read_again_replace_what_is_shown(tmp_path: Path) -> None:
    connected(tmp_path, {"/name": b"work", "/a": b"1"})
    connected(tmp_path, {"/name": b"play", "/b": b"2"})
    assert shown(tmp_path) == {"name": b"play", "b": b"2"}


def test_write_file_replaces_and_does_not_follow_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    folder = tmp_path / "k"
    folder.mkdir()
    (folder / "name").symlink_to(victim)
    (folder / ".other.new").symlink_to(victim)
    keys.write_file(str(folder), "name", b"new")
    assert victim.read_text() == "safe"
    assert (folder / "name").read_bytes() == b"new"
    with pytest.raises(OSError, match="symbolic"):
        keys.write_file(str(folder), "other", b"new")
    assert victim.read_text() == "safe"
    assert not (folder / "other").exists()
