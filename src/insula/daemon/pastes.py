"""Whether text or an image may go from one qube's clipboard to another's: what policy says of
``qubes.ClipboardPaste``, of an image with the argument ``+image``.

The key the user pressed in the target's window is the consent, so ``ask`` is as good as ``allow`` (gui-protocol §9). A
rule that sends the call elsewhere than to the qube of that window does not allow it there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from insula.policy.decisions import Allow, Request
from insula.policy.engine import evaluate, settle
from insula.policy.ruleset import Policy
from insula.policy.snapshot import Snapshot

SERVICE = "qubes.ClipboardPaste"


class PasteJudge:
    """Implements :data:`insula.gui.launcher.MayPaste`."""

    def __init__(self, policy: Callable[[], Awaitable[Policy]], snapshot: Callable[[], Snapshot]) -> None:
        """What they are now."""
        self._policy = policy
        self._snapshot = snapshot

    async def __call__(self, source: str, target: str, argument: str = "") -> bool:
        policy = await self._policy()
        snapshot = self._snapshot()
        request = Request(SERVICE, f"+{argument}", source, target)
        decision = settle(evaluate(request, policy, snapshot), snapshot, assume_yes=True)
        return isinstance(decision, Allow) and decision.qube == target and decision.objection is None
