"""MC-62: the writer is killed at any moment, or cannot write on; the next one finds the state before or after."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from insula.store.store import Store
from insula.testing.systems import WORK, small_system

WRITER = """
import sys
from pathlib import Path
from insula.model.klass import Klass
from insula.store.store import Store
from insula.testing.systems import WORK, with_qube_of

store = Store.open(Path(sys.argv[1]))
number = int(store.system.get(WORK).notes)
while True:
    number += 1
    qube = store.system.get(WORK)
    # Many rows a commit, so that there is much to be torn apart; a qube comes or goes, so that the copy is renewed.
    qube = qube.with_notes(str(number)).with_tags(f"t{number}-{i}" for i in range(50)).without_tags(qube.tags)
    system = store.system.with_qube(qube)
    system = system.without_qube("extra") if "extra" in system.qubes else with_qube_of(
        system, Klass.STANDALONEVM, "extra")
    store.commit(system)
    store.put_machine(WORK, {"number": number})
    print(number, flush=True)
"""
ROUNDS = 25
MOST_COMMITS = 12
"""Commits seen before the kill, at most."""
LIMIT_S = 120

LIMITED_WRITER = """
import resource
import sys
from pathlib import Path
from insula.store.errors import StoreError
from insula.store.store import Store
from insula.testing.systems import WORK

store = Store.open(Path(sys.argv[1]))
before = store.system
limit = Path(sys.argv[1]).stat().st_size + 64 * 1024
# Writing past the limit fails with an error, as on a full disk; Python ignores the signal.
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    store.commit(before.with_qube(before.get(WORK).with_notes("x" * 250_000)))
except StoreError as error:
    assert store.system is before
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.commit(before.with_qube(before.get(WORK).with_notes("after")))
    print("refused:", error)
store.close()
"""


def make_store(path: Path) -> None:
    with Store.open(path) as store:
        system = small_system()
        store.commit(system.with_qube(system.get(WORK).with_notes("0")))


def kill_after(path: Path, commits: int) -> int:
    """Run the writer, kill it once it has told of so many commits; return the last number it told."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(commits)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout if line.endswith("\n")]
        assert writer.wait(LIMIT_S) == -signal.SIGKILL
    return told[-1]


def test_mc62_killed_in_the_middle_of_commits_finds_old_or_new_state(tmp_path: Path) -> None:
    path = tmp_path / "system.db"
    make_store(path)
    chance = random.Random(20)
    for _ in range(ROUNDS):
        told = kill_after(path, chance.randint(1, MOST_COMMITS))
        with Store.open(path) as store:
            assert store.recovery is None
            found = store.system.get(WORK)
            assert int(found.notes) in (told, told + 1)
            assert found.tags == {f"t{found.notes}-{i}" for i in range(50)}
            assert ("extra" in store.system.qubes) == (int(found.notes) % 2 == 1)
            assert store.machines()[WORK]["number"] in (told, told + 1)


@pytest.mark.parametrize("commits", [1, 4])
def test_mc62_good_copy_is_whole_whenever_the_writer_is_killed(tmp_path: Path, commits: int) -> None:
    path = tmp_path / "system.db"
    make_store(path)
    for _ in range(5):
        told = kill_after(path, commits)
        path.write_bytes(b"")
        with Store.open(path) as store:
            assert store.recovery is not None
            assert int(store.system.get(WORK).notes) in (told, told + 1)


def test_mc60_commit_without_space_is_refused_and_the_store_works_on(tmp_path: Path) -> None:
    path = tmp_path / "system.db"
    make_store(path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_WRITER, str(path)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("refused:")
    with Store.open(path) as store:
        assert store.recovery is None
        assert store.system.get(WORK).notes == "after"
