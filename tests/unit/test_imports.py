"""Imports point one way: the layers written in ``insula/__init__.py`` hold, and packages stay what they are."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula

SRC = Path(__file__).parents[2] / "src"

WITHIN_A_LAYER = frozenset(
    {
        ("hal", "net"),  # a machine that leads outside has the process that does so at its interface
        ("net", "preload"),  # that process shuts itself in as those do that are forked
        ("gui", "rpc"),  # the same host user as the qube's session; the same limits on how often something happens
        ("sound", "rpc"),  # as above, and how long paths of sockets are reached
        ("lifecycle", "rpc"),  # starting a qube starts the process that terminates its channel
        ("qrexec", "rpc"),  # a policy daemon asks the user as the broker does
        ("cli", "daemon"),  # the first command starts the daemon
        ("client", "daemon"),  # so does the first call
        ("cli", "manager"),  # `insula prompt` starts it
        ("manager", "daemon"),  # where the daemon looks for the prompt's socket
        ("cli", "client"),  # `insula run --dispvm` holds a disposable as a program does
    }
)
"""Edges between rooms of one layer; each needs a reason here."""

AGENT_MAY_IMPORT = frozenset(
    {
        "insula_agent",
        "insula_proto",
        "PIL",  # images are taken apart by a program that does nothing else
        "xcffib",  # the X server's protocol, by the agent of windows
    }
)


def layers(docstring: str) -> list[frozenset[str]]:
    """Rooms a layer, lowest first, from the lines of the form "``a b c``  text"."""
    found = []
    for line in docstring.splitlines():
        if line.startswith("``"):
            found.append(frozenset(" ".join(re.findall(r"``([a-z ]+)``", line)).split()))
    return found


LAYERS = layers(insula.__doc__ or "")
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def imported_modules(source: str, module: str) -> Iterator[str]:
    """Full names of all modules that a module imports, also inside functions and under TYPE_CHECKING."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                assert node.module is not None
                yield node.module
                if node.module == "insula":
                    yield from (f"insula.{alias.name}" for alias in node.names)
            else:
                base = package[: len(package) - node.level + 1]
                yield ".".join([*base, *([node.module] if node.module else [])])


def modules_of(package: str) -> list[tuple[str, Path]]:
    """What lies in ``rootfs`` is no module of ours: it runs in other programs, against their modules."""
    return [
        (".".join(path.relative_to(SRC).with_suffix("").parts), path)
        for path in sorted((SRC / package).rglob("*.py"))
        if "rootfs" not in path.relative_to(SRC).parts
    ]


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "insula" and len(parts) > 1 and parts[1] in LEVEL else None


def is_allowed(importer: str, imported: str) -> bool:
    """Whether code of one room may import from another."""
    if importer == imported or (importer, imported) in WITHIN_A_LAYER:
        return True
    return LEVEL[imported] < LEVEL[importer]


def forbidden_imports(module: str, source: str) -> list[str]:
    importer = room_of(module)
    wrong = []
    for imported in imported_modules(source, module):
        top, room = imported.split(".", maxsplit=1)[0], room_of(imported)
        if top == "insula_agent" or (importer and room and not is_allowed(importer, room)):
            wrong.append(f"{module} imports {imported}")
    return wrong


def foreign_imports(module: str, source: str, own: frozenset[str]) -> list[str]:
    """Imports that are neither of the standard library nor of ``own`` packages."""
    tops = {imported.split(".", maxsplit=1)[0] for imported in imported_modules(source, module)}
    return [f"{module} imports {top}" for top in sorted(tops - own - sys.stdlib_module_names)]


def test_layers_of_docstring_name_every_room() -> None:
    folders = {path.name for path in (SRC / "insula").iterdir() if (path / "__init__.py").exists()}
    assert folders <= LEVEL.keys()


def test_every_room_imports_only_lower_layers() -> None:
    wrong = [w for module, path in modules_of("insula") for w in forbidden_imports(module, path.read_text())]
    assert wrong == []


def test_proto_imports_only_itself_and_standard_library() -> None:
    own = frozenset({"insula_proto"})
    wrong = [w for module, path in modules_of("insula_proto") for w in foreign_imports(module, path.read_text(), own)]
    assert wrong == []


def test_agent_imports_only_proto_and_standard_library() -> None:
    wrong = [
        w
        for module, path in modules_of("insula_agent")
        for w in foreign_imports(module, path.read_text(), AGENT_MAY_IMPORT)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("insula.model.x", "from insula.store.store import Store"),
        ("insula.model.x", "import insula.events.bus"),
        ("insula.store.x", "from insula.hal.driver import Driver"),
        ("insula.store.x", "from insula import storage"),
        ("insula.store.x", "from ..hal import driver"),
        ("insula.lifecycle.x", "def f():\n    from insula.admin import call"),
        ("insula.rpc.x", "from insula.lifecycle.engine import Engine"),
        ("insula.daemon.x", "import insula_agent.main"),
        ("insula.daemon.x", "from insula.testing import systems"),
    ],
)
def test_import_in_wrong_direction_is_found(module: str, source: str) -> None:
    assert forbidden_imports(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("insula.store.x", "from insula.model.system import System"),
        ("insula.store.sub.x", "from ...model import names"),
        ("insula.lifecycle.x", "from insula.rpc.session import Session"),
        ("insula.testing.x", "from insula.daemon.insulad import main"),
        ("insula.store.x", "import insula_proto.mux"),
    ],
)
def test_import_in_right_direction_is_fine(module: str, source: str) -> None:
    assert forbidden_imports(module, source) == []


def test_third_party_import_in_agent_is_found() -> None:
    assert foreign_imports("insula_agent.x", "import msgspec", AGENT_MAY_IMPORT) == ["insula_agent.x imports msgspec"]
    assert foreign_imports("insula_agent.x", "from insula.model import names", AGENT_MAY_IMPORT)
