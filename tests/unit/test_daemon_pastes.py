"""Text between qubes: what policy says of it, with the default rules and with others."""

from __future__ import annotations

import pytest

from insula.daemon.calls import default_policy
from insula.daemon.pastes import PasteJudge
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.ruleset import Policy
from insula.policy.snapshot import QubeFacts, Snapshot
from insula.policy.store import PolicyStore

QUBES = Snapshot([QubeFacts(name, f"uuid of {name}", "AppVM") for name in ("work", "mail", "vault")])


async def may(policy: Policy, source: str, target: str) -> bool:
    async def current() -> Policy:
        return policy

    return await PasteJudge(current, lambda: QUBES)(source, target)


def rules(text: str) -> Policy:
    return load(Sources((MemoryFolder({"50-test.policy": text}),), MemoryFolder({})))


async def test_by_default_the_users_key_is_the_consent() -> None:
    policy = PolicyStore(default_policy()).load()
    assert await may(policy, "work", "mail")
    assert not await may(policy, "work", "gone")


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        ("allow", True),
        ("ask", True),
        ("ask default_target=vault", True),
        ("deny", False),
        ("ask target=vault", False),
        ("allow target=vault", False),
        ("allow target=@adminvm", False),
        ("nonsense", False),
    ],
)
async def test_rule_decides_for_the_qube_of_the_window_alone(rule: str, allowed: bool) -> None:
    """MC-55."""
    policy = rules(f"qubes.ClipboardPaste * work mail {rule}\n")
    assert await may(policy, "work", "mail") is allowed
    assert not await may(policy, "mail", "work")
    assert not await may(policy, "vault", "mail")


async def test_no_rule_no_paste() -> None:
    """MC-27."""
    assert not await may(rules(""), "work", "mail")
