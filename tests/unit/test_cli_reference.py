"""The generated pages of docs/ are current and name everything."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from insula.cli.catalogue import COMMANDS
from insula.cli.reference import cli_page

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "generate_docs.py"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current() -> None:
    assert generator().outdated() == [], "run `make docs`"


def test_cli_page_has_every_command_with_its_options() -> None:
    page = cli_page()
    for name in COMMANDS:
        assert f"### insula {name}\n" in page
    assert "    insula create [OPTIONS] NAME\n" in page
    assert "| `--label`, `-l` LABEL |" in page
    assert "#### insula volume revert\n\n    insula volume revert QUBE VOLUME [REVISION]\n" in page
    assert page.count("--install-completion") == 1
