"""Every method of the Admin API, once (admin-api §2).

To add one: a line here, a function in ``handlers``, and ``make docs``.
Scope and right are those of the published policy includes; ``I`` (ours) is for methods no qube may be granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from insula.admin.call import Answer, Destination, Method, Presence, Right, Scope, Stream, Upload
from insula.admin.handlers import (
    applications,
    daemon,
    devices,
    disposables,
    features,
    firewall,
    internal,
    labels,
    pools,
    power,
    properties,
    qubes,
    seeds,
    streams,
    tags,
    templates,
    updates,
    volumes,
)
from insula.model.klass import Klass

_DOM0, _VM, _NOT_DOM0 = Destination.ADMIN, Destination.ANY, Destination.NOT_ADMIN
_NONE, _SOME, _MAYBE = Presence.NONE, Presence.REQUIRED, Presence.OPTIONAL
_L, _G, _I = Scope.LOCAL, Scope.GLOBAL, Scope.INTERNAL
_R, _W, _X = Right.READ, Right.WRITE, Right.EXECUTE

CREATABLE = tuple(klass for klass in Klass if klass is not Klass.ADMINVM)
DEVICE_CLASSES = ("block", "pci", "usb", "mic")
"""Classes clients ask about, announced or not (admin-api §8)."""


def _table(methods: Iterable[Method]) -> Mapping[str, Method]:
    table: dict[str, Method] = {}
    for method in methods:
        assert method.name not in table, method.name
        table[method.name] = method
    return MappingProxyType(table)


def _qubes() -> Iterable[Method]:
    yield Method("admin.vmclass.List", _DOM0, _NONE, _NONE, _G, _R, Answer(qubes.list_classes), "Classes of qubes")
    yield Method("admin.vm.List", _VM, _NONE, _NONE, _G, _R, Answer(qubes.list_qubes), "Qubes with class and state")
    for klass in CREATABLE:
        create, in_pool = Answer(qubes.create), Answer(qubes.create_in_pool)
        text = f"Make a qube of class {klass}"
        yield Method(f"admin.vm.Create.{klass}", _DOM0, _MAYBE, _SOME, _G, _W, create, text)
        yield Method(f"admin.vm.CreateInPool.{klass}", _DOM0, _MAYBE, _SOME, _G, _W, in_pool, f"{text} in chosen pools")
    disposable = Answer(qubes.create_disposable)
    yield Method("admin.vm.CreateDisposable", _VM, _MAYBE, _MAYBE, _G, _W, disposable, "Make a disposable")
    yield Method("admin.vm.Remove", _VM, _NONE, _NONE, _G, _W, Answer(qubes.remove), "Remove a qube and its data")
    yield Method("admin.vm.notes.Get", _NOT_DOM0, _NONE, _NONE, _L, _R, Answer(qubes.get_notes), "Notes of a qube")
    yield Method("admin.vm.notes.Set", _NOT_DOM0, _NONE, _MAYBE, _L, _W, Answer(qubes.set_notes), "Replace the notes")


def _power() -> Iterable[Method]:
    for verb, run, text in (
        ("Start", power.start, "Start; answers when the qube is up"),
        ("Kill", power.kill, "End the machine at once"),
        ("Pause", power.pause, "Stop the qube's CPUs"),
        ("Unpause", power.unpause, "Let a paused qube go on"),
    ):
        yield Method(f"admin.vm.{verb}", _VM, _NONE, _NONE, _L, _X, Answer(run), text)
    yield Method("admin.vm.Shutdown", _VM, _MAYBE, _NONE, _L, _X, Answer(power.shutdown), "Ask a qube to power off")
    state = Answer(power.current_state)
    yield Method("admin.vm.CurrentState", _VM, _NONE, _NONE, _L, _R, state, "Power state, memory, CPU time")
    yield Method("admin.vm.Console", _VM, _NONE, _NONE, _L, _W, Answer(power.console), "Terminal of a qube")
    yield Method("admin.vm.Stats", _VM, _NONE, _NONE, _G, _R, Stream(streams.stats), "What running qubes use")
    yield Method("admin.Events", _VM, _NONE, _NONE, _G, _R, Stream(streams.events), "What happens")


def _properties() -> Iterable[Method]:
    for prefix, dest, scope in (("admin.vm.property", _VM, _L), ("admin.property", _DOM0, _G)):
        whose = "the system's" if dest is _DOM0 else "a qube's"
        for verb, arg, payload, right, run, text in (
            ("List", _NONE, _NONE, _R, properties.list_names, f"Names of {whose} properties"),
            ("Get", _SOME, _NONE, _R, properties.get, f"One of {whose} properties"),
            ("GetAll", _NONE, _NONE, _R, properties.get_all, f"All of {whose} properties"),
            ("GetDefault", _SOME, _NONE, _R, properties.get_default, f"Default of one of {whose} properties"),
            ("Help", _SOME, _NONE, _R, properties.help_text, f"What one of {whose} properties means"),
            ("Set", _SOME, _MAYBE, _W, properties.set_value, f"Set one of {whose} properties"),
            ("Reset", _SOME, _NONE, _W, properties.reset, f"Let one of {whose} properties have its default"),
        ):
            yield Method(f"{prefix}.{verb}", dest, arg, payload, scope, right, Answer(run), text)


def _features_and_tags() -> Iterable[Method]:
    yield Method("admin.vm.feature.List", _VM, _NONE, _NONE, _L, _R, Answer(features.list_features), "Own features")
    for verb, text in (
        ("Get", "One of the qube's own features"),
        ("CheckWithTemplate", "A feature, else the template's"),
        ("CheckWithNetvm", "A feature, else the nearest net qube's"),
        ("CheckWithAdminVM", "A feature, else dom0's"),
        ("CheckWithTemplateAndAdminVM", "A feature, else the template's, else dom0's"),
    ):
        yield Method(f"admin.vm.feature.{verb}", _VM, _SOME, _NONE, _L, _R, Answer(features.get), text)
    yield Method("admin.vm.feature.Set", _VM, _SOME, _MAYBE, _L, _W, Answer(features.set_feature), "Set a feature")
    yield Method("admin.vm.feature.Remove", _VM, _SOME, _NONE, _L, _W, Answer(features.remove), "Remove a feature")
    yield Method("admin.vm.tag.List", _VM, _NONE, _NONE, _L, _R, Answer(tags.list_tags), "Tags")
    yield Method("admin.vm.tag.Get", _VM, _SOME, _NONE, _L, _R, Answer(tags.get), "Whether a qube has a tag")
    yield Method("admin.vm.tag.Set", _VM, _SOME, _NONE, _L, _W, Answer(tags.set_tag), "Add a tag")
    yield Method("admin.vm.tag.Remove", _VM, _SOME, _NONE, _L, _W, Answer(tags.remove), "Remove a tag")


def _volumes() -> Iterable[Method]:
    prefix = "admin.vm.volume"
    for verb, arg, payload, right, run, text in (
        ("List", _NONE, _NONE, _R, volumes.list_volumes, "Names of volumes"),
        ("Info", _SOME, _NONE, _R, volumes.info, "Everything about a volume"),
        ("ListSnapshots", _SOME, _NONE, _R, volumes.list_snapshots, "Older revisions of a volume"),
        ("Revert", _SOME, _SOME, _W, volumes.revert, "Go back to an older revision"),
        ("CloneFrom", _SOME, _NONE, _R, volumes.clone_from, "Token for one copy of a volume"),
        ("CloneTo", _SOME, _SOME, _W, volumes.clone_to, "Replace the content by the token's volume"),
        ("Resize", _SOME, _SOME, _W, volumes.resize, "Grow a volume"),
        ("Clear", _SOME, _NONE, _W, volumes.clear, "Empty a volume"),
        ("Set.revisions_to_keep", _SOME, _SOME, _W, volumes.set_revisions_to_keep, "How many older revisions stay"),
        ("Set.rw", _SOME, _SOME, _W, volumes.set_rw, "Whether the qube may write"),
        ("Set.ephemeral", _SOME, _SOME, _W, volumes.set_ephemeral, "Encrypt with a key that is never kept"),
    ):
        yield Method(f"{prefix}.{verb}", _VM, arg, payload, _L, right, Answer(run), text)
    whole, sized = Upload(volumes.import_data), Upload(volumes.import_with_size)
    yield Method(f"{prefix}.Import", _VM, _SOME, _SOME, _L, _W, whole, "Replace the content by the payload")
    yield Method(f"{prefix}.ImportWithSize", _VM, _SOME, _SOME, _L, _W, sized, "Replace content and size")


def _pools_and_labels() -> Iterable[Method]:
    for name, arg, payload, right, run, text in (
        ("admin.pool.List", _NONE, _NONE, _R, pools.list_pools, "Pools"),
        ("admin.pool.ListDrivers", _NONE, _NONE, _R, pools.list_drivers, "Pool drivers with their options"),
        ("admin.pool.Info", _SOME, _NONE, _R, pools.info, "Configuration and size of a pool"),
        ("admin.pool.UsageDetails", _SOME, _NONE, _R, pools.usage_details, "Use of a pool"),
        ("admin.pool.Add", _SOME, _SOME, _W, pools.add, "Add a pool of a driver"),
        ("admin.pool.Remove", _SOME, _NONE, _W, pools.remove, "Remove an unused pool"),
        ("admin.pool.volume.List", _SOME, _NONE, _R, pools.list_volumes, "Volumes in a pool"),
        ("admin.pool.Set.revisions_to_keep", _SOME, _SOME, _W, pools.set_revisions_to_keep, "For new volumes"),
        ("admin.pool.Set.ephemeral_volatile", _SOME, _SOME, _W, pools.set_ephemeral_volatile, "For new volumes"),
        ("admin.label.List", _NONE, _NONE, _R, labels.list_labels, "Labels"),
        ("admin.label.Get", _SOME, _NONE, _R, labels.get, "Colour of a label"),
        ("admin.label.Index", _SOME, _NONE, _R, labels.index, "Number of a label"),
        ("admin.label.Create", _SOME, _SOME, _W, labels.create, "Make a label"),
        ("admin.label.Remove", _SOME, _NONE, _W, labels.remove, "Remove an unused label"),
    ):
        yield Method(name, _DOM0, arg, payload, _G, right, Answer(run), text)


def _devices_and_firewall() -> Iterable[Method]:
    nothing, classes = Answer(devices.list_nothing), Answer(devices.list_classes)
    yield Method("admin.deviceclass.List", _DOM0, _NONE, _NONE, _G, _R, classes, "Classes of devices")
    listed = {"mic.Available": devices.list_available, "mic.Attached": devices.list_attached}
    for klass in DEVICE_CLASSES:
        for verb in ("Available", "Assigned", "Attached"):
            run = listed.get(f"{klass}.{verb}")
            text = "Devices: none yet" if run is None else "The microphone"
            action = nothing if run is None else Answer(run)
            yield Method(f"admin.vm.device.{klass}.{verb}", _VM, _MAYBE, _NONE, _L, _R, action, text)
    attach, detach = Answer(devices.attach), Answer(devices.detach)
    microphone = "admin.vm.device.mic"
    yield Method(f"{microphone}.Attach", _NOT_DOM0, _SOME, _MAYBE, _L, _W, attach, "Let a qube hear the microphone")
    yield Method(f"{microphone}.Detach", _NOT_DOM0, _SOME, _NONE, _L, _W, detach, "Take the microphone away")
    denied = Answer(devices.list_denied)
    yield Method("admin.vm.device.denied.List", _VM, _NONE, _NONE, _L, _R, denied, "Interfaces a qube must not get")
    get, set_rules, reload = Answer(firewall.get), Answer(firewall.set_rules), Answer(firewall.reload)
    yield Method("admin.vm.firewall.Get", _NOT_DOM0, _NONE, _NONE, _L, _R, get, "What it may reach, a rule a line")
    yield Method("admin.vm.firewall.Reload", _NOT_DOM0, _NONE, _NONE, _L, _X, reload, "Have its rules carried out anew")
    yield Method("admin.vm.firewall.Set", _NOT_DOM0, _NONE, _SOME, _L, _W, set_rules, "Replace all rules")


def _ours() -> Iterable[Method]:
    yield Method("insula.Status", _DOM0, _NONE, _NONE, _I, _R, Answer(daemon.status), "What the daemon runs on")
    yield Method("insula.Shutdown", _DOM0, _NONE, _NONE, _I, _X, Answer(daemon.shut_down), "Stop everything")
    install = Answer(templates.install)
    yield Method("insula.template.Install", _DOM0, _SOME, _SOME, _I, _W, install, "Take in a built template")
    list_seeds, build, drop = Answer(seeds.list_seeds), Answer(seeds.build), Answer(seeds.drop)
    yield Method("insula.seed.List", _DOM0, _NONE, _NONE, _I, _R, list_seeds, "Frozen systems to fork from, as JSON")
    yield Method("insula.seed.Build", _NOT_DOM0, _NONE, _NONE, _I, _W, build, "Have the seed for this qube or template")
    yield Method("insula.seed.Drop", _DOM0, _SOME, _NONE, _I, _W, drop, "Remove a seed")
    held = Stream(disposables.open_disposable)
    yield Method(
        "insula.disposable.Open", _VM, _NONE, _MAYBE, _I, _X, held, "A started disposable, until the caller hangs up"
    )
    updating = Stream(updates.open_update)
    yield Method(
        "insula.update.Open", _VM, _NONE, _NONE, _I, _X, updating, "A template started for an update, kept if shut down"
    )
    applications_of = Answer(applications.list_applications)
    yield Method("insula.vm.Applications", _VM, _NONE, _NONE, _I, _R, applications_of, "For menus, as JSON")
    plan = Answer(power.start_plan)
    yield Method("insula.vm.StartPlan", _VM, _NONE, _NONE, _I, _R, plan, "What a start would do, step by step, as JSON")
    with_cd = Answer(power.start_with_cd)
    yield Method(
        "insula.vm.StartWithCd", _VM, _NONE, _SOME, _I, _X, with_cd, "Boot it from a CD's image on this computer"
    )
    show = Answer(power.show_windows)
    yield Method("insula.vm.ShowWindows", _VM, _NONE, _MAYBE, _I, _X, show, "Show its windows on the caller's desktop")
    yield Method("insula.vm.RpcSocket", _VM, _NONE, _NONE, _I, _X, Answer(power.rpc_socket), "Where commands are run")


def _internal() -> Iterable[Method]:
    info = Answer(internal.get_system_info)
    yield Method("internal.GetSystemInfo", _DOM0, _NONE, _NONE, _I, _R, info, "What policy decides on, as JSON")
    begin, end = Answer(volumes.import_begin), Answer(volumes.import_end)
    yield Method("internal.vm.volume.ImportBegin", _VM, _SOME, _MAYBE, _I, _W, begin, "Where to write a volume's data")
    yield Method("internal.vm.volume.ImportEnd", _VM, _SOME, _SOME, _I, _W, end, "Take the data, or give up")


METHODS: Mapping[str, Method] = _table(
    (
        *_qubes(),
        *_power(),
        *_properties(),
        *_features_and_tags(),
        *_volumes(),
        *_pools_and_labels(),
        *_devices_and_firewall(),
        *_ours(),
    )
)
"""Methods of the main socket."""

INTERNAL_METHODS: Mapping[str, Method] = _table(_internal())
"""Methods of the internal socket."""

_DOC_HEAD = """\
# Methods of the Admin API

Generated from `src/insula/admin/api.py`; a test checks that it is current. Do not edit.

Destination: `dom0` only, any `vm` (dom0 included), or any qube but dom0 (`!dom0`). Argument and payload: `–` must be
empty, `+` must not be empty, `?` either. Scope: L (a right over single qubes), G (over the system), I (ours, never
granted to a qube). Right: r, w, x. Wire format, errors: see `insula-admin.md`.
"""


def document() -> str:
    """Text of ``docs/protocols/admin-methods.md``."""
    parts = [_DOC_HEAD]
    for title, table in (("Main socket", METHODS), ("Internal socket", INTERNAL_METHODS)):
        parts.append(f"\n## {title}\n\n| method | dest | arg | payload | scope | answers | what |\n{'|---' * 7}|\n")
        for method in table.values():
            answers = {Answer: "once", Stream: "events", Upload: "once; payload is a stream"}[type(method.action)]
            parts.append(
                f"| `{method.name}` | {method.dest} | {method.arg} | {method.payload} | {method.scope} {method.right}"
                f" | {answers} | {method.summary} |\n"
            )
    return "".join(parts)
