from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from insula.policy import current
from insula.policy.current import CurrentPolicy
from insula.policy.ruleset import Policy
from insula.policy.store import PolicyStore


class CountingStore(PolicyStore):
    loads = 0

    def load(self, on_look: Callable[[Path], None] | None = None) -> Policy:
        self.loads += 1
        return super().load(on_look)


def old(path: Path) -> None:
    """As if it had been written long ago."""
    os.utime(path, (1, 1))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingStore:
    # Time of change cannot be set back, so that nothing would ever be old enough in a test.
    monkeypatch.setattr(current, "RECENT_NS", -1)
    write(tmp_path, "50-a", "a.B * work vault allow\n")
    return CountingStore(tmp_path)


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.policy").write_text(text)


async def test_policy_that_stays_is_read_once(store: CountingStore) -> None:
    policies: list[Policy] = []
    kept = CurrentPolicy(store, policies.append)
    first = await kept.get()
    for _ in range(5):
        assert await kept.get() is first
    assert store.loads == 1
    assert policies == [first]


async def test_changed_new_and_removed_files_are_noticed_included_ones_too(store: CountingStore) -> None:
    folder = store.folder
    kept = CurrentPolicy(store, lambda _: None)
    await kept.get()
    changes: list[Callable[[], None]] = [
        lambda: write(folder, "50-a", "a.B * work vault deny\n"),
        lambda: write(folder, "60-b", "!include include/more\n"),
        (folder / "include").mkdir,
        lambda: (folder / "include" / "more").write_text("c.D * work vault allow\n"),
        lambda: (folder / "include" / "more").write_text("c.D * work vault deny\n"),
        (folder / "60-b.policy").unlink,
    ]
    expected = [1, None, None, 2, 2, 1]
    for change, rules in zip(changes, expected, strict=True):
        before = await kept.get()
        change()
        policy = await kept.get()
        assert policy is not before or (rules is None and before.problems)
        assert (None if policy.problems else len(policy.rules)) == rules


async def test_file_touched_and_not_changed_is_the_same_version(store: CountingStore) -> None:
    policies: list[Policy] = []
    kept = CurrentPolicy(store, policies.append)
    first = await kept.get()
    old(store.folder / "50-a.policy")
    assert await kept.get() is first
    assert store.loads == 2
    assert len(policies) == 1


async def test_rule_that_moved_is_told_at_its_new_line(store: CountingStore) -> None:
    kept = CurrentPolicy(store, lambda _: None)
    await kept.get()
    write(store.folder, "50-a", "\n\na.B * work vault allow\n")
    assert str((await kept.get()).rules[0].location) == "50-a.policy:3"


async def test_folder_that_is_gone_is_a_policy_with_a_problem_and_comes_back(store: CountingStore) -> None:
    kept = CurrentPolicy(store, lambda _: None)
    first = await kept.get()
    away = store.folder.with_name("away")
    store.folder.rename(away)
    assert (await kept.get()).problems
    away.rename(store.folder)
    again = await kept.get()
    assert again.rules == first.rules


async def test_many_questions_during_a_change_load_it_once(store: CountingStore) -> None:
    kept = CurrentPolicy(store, lambda _: None)
    await kept.get()
    write(store.folder, "50-a", "a.B * work vault deny\n")
    policies = await asyncio.gather(*(kept.get() for _ in range(50)))
    assert store.loads == 2
    assert len({id(policy) for policy in policies}) == 1


async def test_file_changed_just_now_is_looked_at_again(tmp_path: Path) -> None:
    """Clocks of file systems have steps: a second change within one would not show."""
    write(tmp_path, "50-a", "a.B * work vault allow\n")
    store = CountingStore(tmp_path)
    kept = CurrentPolicy(store, lambda _: None)
    first = await kept.get()
    assert await kept.get() is first
    assert store.loads == 2
