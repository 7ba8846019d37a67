"""Invariant: any text loads, to rules that survive being written and read, or to problems; every call is decided.

And: with problems nothing is allowed; an allowed call was allowed by a rule that says allow; explaining is deciding.
The first line of the input is the call (service, argument, source, target, requested source), the rest is the policy;
lines after one that starts with ``=`` are a file of the old syntax that the policy may include.
"""

from __future__ import annotations

import harness

from insula.policy.decisions import Allow, Ask, Deny, Request
from insula.policy.engine import answer, evaluate, explain
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.rules import Action
from insula.policy.snapshot import QubeFacts, Snapshot

SNAPSHOT = Snapshot(
    [
        QubeFacts("dom0", "00000000-0000-0000-0000-000000000000", "AdminVM", frozenset({"t"})),
        QubeFacts("work", "w", tags=frozenset({"t"}), default_dispvm="dvm", power_state="Running"),
        QubeFacts("vault", "v", default_dispvm="gone"),
        QubeFacts("dvm", "d", template_for_dispvms=True, tags=frozenset({"t"})),
        QubeFacts("remote", "r", "RemoteVM", relayvm="work", transport_rpc="test.Ssh"),
    ]
)

SEEDS = [
    b"test.S + work vault\n* * work @anyvm ask default_target=vault user=root\n* * @tag:t @adminvm deny notify=no\n",
    b"test.S +a work @dispvm\ntest.S * @anyvm @dispvm:@tag:t allow autostart=no\n* * * @dispvm:dvm allow\n",
    b"test.S + vault @dispvm\n* * @type:AppVM @default allow target=@dispvm\n* * uuid:v * ask target=uuid:w\n",
    b"test.S + work @default remote\n!include-service test.S * include/old\n=\n$tag:t $default allow,target=dom0\n",
    b"a.B + work remote\n!include include/old\n!include-dir .\n!compat-4.0\n=\n* * work remote allow\n",
]


def fuzz_one(data: bytes) -> None:
    first, _, rest = data.decode("utf-8", "replace").partition("\n")
    text, _, old = rest.partition("\n=")
    words = [*first.split(" "), "", "", "", "", ""][:5]
    request = Request(*words)
    folder = MemoryFolder({"50-fuzz.policy": text, "include/old": old})
    policy = load(Sources([folder], MemoryFolder({"test.S": old, "test.S+a": old})))
    if not policy.problems:
        again = load(Sources([MemoryFolder({"50-fuzz.policy": "\n".join(map(str, policy.rules))})]))
        assert again.rules == policy.rules
    decision = evaluate(request, policy, SNAPSHOT)
    assert explain(request, policy, SNAPSHOT).decision == decision
    assert isinstance(decision, Deny) or not policy.problems
    if isinstance(decision, Allow):
        assert decision.rule.action is Action.ALLOW
        assert decision.response()["target"]
    if isinstance(decision, Ask):
        assert all(isinstance(answer(decision, target, SNAPSHOT), Allow | Deny) for target in decision.targets)


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
