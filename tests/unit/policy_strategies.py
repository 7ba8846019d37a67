"""Rules, requests and snapshots for property tests of policy."""

from collections.abc import Sequence

from hypothesis import strategies as st

from insula.policy.decisions import Request
from insula.policy.errors import Location
from insula.policy.rules import Action, Rule
from insula.policy.snapshot import QubeFacts, Snapshot
from insula.policy.tokens import DEFAULT, Place, parse_token

NAMES = ("work", "vault", "dvm", "disp1", "gone")
UUIDS = {name: f"{number:08x}-1111-4111-8111-111111111111" for number, name in enumerate(NAMES, 1)}
TAGS = ("t1", "t2")
SERVICES = ("test.S", "qubes.Filecopy")
ARGUMENTS = ("+", "+a", "+a+b")

_QUBE = st.sampled_from([*NAMES, "dom0", "@adminvm", *(f"uuid:{uuid}" for uuid in UUIDS.values())])
_OF = st.sampled_from([f"@dispvm:{name}" for name in (*NAMES, f"uuid:{UUIDS['dvm']}")])
_SET = st.sampled_from(["*", "@anyvm", "@type:AppVM", "@type:AdminVM", "@tag:t1", "@tag:t2", "@dispvm:@tag:t1"])
_SOURCES = _QUBE | _OF | _SET
_TARGETS = _SOURCES | st.sampled_from(["@default", "@dispvm"])
_REDIRECTS = _QUBE | _OF | st.just("@dispvm")


@st.composite
def rules(draw: st.DrawFn, actions: Sequence[Action] = tuple(Action)) -> Rule:
    action = draw(st.sampled_from(actions))
    target = draw(_TARGETS)
    redirect = draw(_REDIRECTS | st.none()) if action is not Action.DENY else None
    if action is Action.ALLOW and target == DEFAULT and redirect is None:
        redirect = "work"
    default = draw(_REDIRECTS | st.none()) if action is Action.ASK else None
    service = draw(st.sampled_from(["*", *SERVICES]))
    return Rule(
        Location("", "50-x.policy", 1),
        service,
        "*" if service == "*" else draw(st.sampled_from(["*", *ARGUMENTS])),
        parse_token(draw(_SOURCES), Place.SOURCE),
        parse_token(target, Place.TARGET),
        action,
        None if redirect is None else parse_token(redirect, Place.REDIRECT),
        None if default is None else parse_token(default, Place.REDIRECT),
        draw(st.sampled_from([None, "root", "a=b"])) if action is not Action.DENY else None,
        draw(st.booleans()) if action is not Action.DENY else True,
        draw(st.booleans()),
    )


def _facts(name: str) -> st.SearchStrategy[QubeFacts]:
    return st.builds(
        QubeFacts,
        name=st.just(name),
        uuid=st.just(UUIDS[name]),
        klass=st.sampled_from(["AppVM", "DispVM", "RemoteVM"]),
        tags=st.frozensets(st.sampled_from(TAGS)),
        default_dispvm=st.sampled_from([None, "dvm", "gone", "work"]),
        template_for_dispvms=st.booleans(),
        power_state=st.sampled_from(["Running", "Halted", "Paused"]),
        internal=st.booleans(),
        relayvm=st.sampled_from([None, "work", "gone"]),
        transport_rpc=st.sampled_from([None, "test.Ssh"]),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Some of the qubes, and dom0 nearly always."""
    names = draw(st.sets(st.sampled_from(NAMES)))
    found = [draw(_facts(name)) for name in sorted(names)]
    if draw(st.integers(0, 9)):
        found.append(QubeFacts("dom0", "00000000-0000-0000-0000-000000000000", "AdminVM", frozenset({"t1"})))
    return Snapshot(found)


def requests() -> st.SearchStrategy[Request]:
    """Calls as guests make them, and nonsense."""
    return st.builds(
        Request,
        service=st.sampled_from(SERVICES) | st.text(max_size=8),
        argument=st.sampled_from(ARGUMENTS) | st.text(max_size=8),
        source=_QUBE | st.text(max_size=8),
        target=_TARGETS | st.just("") | st.text(max_size=8),
        requested_source=st.just("") | _QUBE | st.text(max_size=8),
    )
