"""MC-57: whatever is done in whatever order, the system stays one that can be; what is refused changes nothing."""

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from insula.model.consistency import problems
from insula.model.errors import InsulaError
from insula.model.features import remove_feature, set_feature
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.properties import definition, names_for, parse_value, reset_property, resolve, set_property
from insula.model.state import PowerState
from insula.model.system import PoolConfig, System
from insula.model.tags import with_kept_tags, with_tag, without_tag
from insula.model.volumes import refreshed
from insula.testing.systems import small_system, with_qube_of

names = st.sampled_from(["dom0", "debian-12", "sys-net", "work", "disp1234", "a", "b", "A"]).map(QubeName)
net_names = st.sampled_from(["sys-net", "fw", "work"]).map(QubeName)
klasses = st.sampled_from(Klass)
flags = st.sampled_from(["provides_network", "template_for_dispvms", "debug"])
references = st.sampled_from(["template", "netvm", "netvm", "default_dispvm", "guivm", "default_netvm", "clockvm"])
others = st.sampled_from(["memory", "label", "kernel", "kernelopts", "ip", "include_in_backups", "qid", "icon"])
property_names = flags | references | others
settings_made = (
    st.tuples(flags, st.sampled_from(["True", "False"]))
    | st.tuples(references, names | st.just(""))
    | st.tuples(others, st.sampled_from(["", "1", "True", "500", "red", "10.0.0.1", "6.1"]))
)
words = st.sampled_from(["x", "servicevm", "service.meminfo-writer", "a b"])


class Operations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.system = with_qube_of(small_system(), Klass.APPVM, "fw", template="debian-12", provides_network=True)
        self.system = with_kept_tags(self.system)
        self.on: set[QubeName] = set()

    def power_state(self, name: QubeName) -> PowerState:
        return PowerState.RUNNING if name in self.on else PowerState.HALTED

    def attempt(self, change: Callable[[System], System]) -> None:
        before = dict(self.system.qubes)
        try:
            after = change(self.system)
        except InsulaError as error:
            assert str(error).isprintable()
            assert dict(self.system.qubes) == before
        else:
            self.system = after

    @rule(name=names, klass=klasses, template=names)
    def create(self, name: QubeName, klass: Klass, template: QubeName) -> None:
        if klass is Klass.ADMINVM:
            return
        properties = {"template": template} if klass.has_template else {}
        self.attempt(lambda s: with_kept_tags(with_qube_of(s, klass, name, label="red", **properties)))

    @rule(name=names)
    def remove(self, name: QubeName) -> None:
        if name not in self.on:
            self.attempt(lambda s: s.without_qube(name))

    @rule(name=names)
    def start_or_stop(self, name: QubeName) -> None:
        if name in self.system.qubes:
            self.on ^= {name}

    @rule(name=names | st.none(), setting=settings_made)
    def set(self, name: QubeName | None, setting: tuple[str, str]) -> None:
        self.set_to(name, *setting)

    def set_to(self, name: QubeName | None, prop: str, text: str) -> None:
        def change(system: System) -> System:
            qube = None if name is None else system.get(name)
            value = parse_value(definition(None if qube is None else qube.klass, prop), text, system, qube)
            return set_property(system, name, prop, value, self.power_state)

        self.attempt(change)

    @rule(name=net_names | st.none(), netvm=net_names)
    def rewire(self, name: QubeName | None, netvm: QubeName) -> None:
        self.set_to(name, "default_netvm" if name is None else "netvm", netvm)

    @rule(name=net_names, provides=st.sampled_from(["True", "False"]))
    def provide_network(self, name: QubeName, provides: str) -> None:
        self.set_to(name, "provides_network", provides)

    @rule(name=names | st.none(), prop=property_names)
    def reset(self, name: QubeName | None, prop: str) -> None:
        self.attempt(lambda s: reset_property(s, name, prop, self.power_state))

    @rule(name=names, word=words, value=st.sampled_from(["", "1"]))
    def feature(self, name: QubeName, word: str, value: str) -> None:
        if word != "a b":
            self.attempt(lambda s: set_feature(s, name, word, value, self.power_state))
        self.attempt(lambda s: remove_feature(s, name, word))

    @rule(name=names)
    def tag(self, name: QubeName) -> None:
        self.attempt(lambda s: with_tag(s, name, "t"))
        self.attempt(lambda s: without_tag(s, name, "t"))

    @rule(label=st.sampled_from(["red", "green"]))
    def remove_label(self, label: str) -> None:
        self.attempt(lambda s: s.without_label(label))

    @rule(pool=st.sampled_from(["default", "spare"]))
    def pools(self, pool: str) -> None:
        self.attempt(lambda s: s.without_pool(pool))
        if pool not in self.system.pools:
            self.attempt(lambda s: s.with_pool(PoolConfig(pool, "qcow2")))

    @invariant()
    def system_is_consistent(self) -> None:
        assert problems(self.system) == []

    @invariant()
    def volumes_are_up_to_date(self) -> None:
        assert refreshed(self.system) == self.system

    @invariant()
    def everything_resolves_and_no_qube_is_its_own_way_out(self) -> None:
        for qube in self.system.qubes.values():
            for name in names_for(qube.klass):
                resolve(self.system, qube, name)
            seen = {qube.name}
            used = resolve(self.system, qube, "netvm").value if qube.klass.has_machine else None
            assert used is None or resolve(self.system, self.system.get(str(used)), "provides_network").value
            netvm = used
            while netvm is not None:
                assert netvm not in seen
                seen.add(QubeName(str(netvm)))
                netvm = resolve(self.system, self.system.get(str(netvm)), "netvm").value


Operations.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestMc57AnyOrderOfOperations = Operations.TestCase
