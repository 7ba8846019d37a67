"""``insula prefs features tags service label volume pool`` against a served Admin API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.model.applications import Application
from insula.model.names import QubeName
from insula.testing.cli_runner import Cli, served_cli


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        yield served


# prefs


def test_prefs_lists_every_property_and_marks_defaults(cli: Cli) -> None:
    cli.run("prefs", "work", "memory", "512")
    values = cli.run("prefs", "work", "--json").json
    assert values["memory"] == {"value": 512, "default": False, "type": "int"}
    assert values["autostart"] == {"value": False, "default": True, "type": "bool"}
    assert values["netvm"]["value"] is None
    lines = [line.split() for line in cli.run("prefs", "work").lines]
    assert ["memory", "512"] in lines
    assert ["vcpus", "2", "default"] in lines
    assert ["netvm", "none", "default"] in lines


def test_prefs_sets_prints_and_resets_one(cli: Cli) -> None:
    assert cli.run("prefs", "work", "vcpus", "3").code == 0
    assert cli.run("prefs", "work", "vcpus").out == "3\n"
    assert cli.run("prefs", "work", "-D", "vcpus").code == 0
    assert cli.run("prefs", "work", "vcpus", "--json").json == {
        "name": "vcpus",
        "value": 2,
        "default": True,
        "type": "int",
    }


def test_prefs_none_is_no_qube_for_qubes_and_a_word_for_text(cli: Cli) -> None:
    assert cli.run("prefs", "work", "netvm", "none").code == 0
    assert cli.run("prefs", "work", "netvm", "--json").json["value"] is None
    assert cli.run("prefs", "work", "default_user", "none").code == 0
    assert cli.run("prefs", "work", "default_user").out == "none\n"


def test_prefs_unknown_property_guesses(cli: Cli) -> None:
    for arguments in (("work", "memry"), ("work", "memry", "1"), ("work", "-D", "memry")):
        ran = cli.run("prefs", *arguments)
        assert ran.code == 1
        assert ran.err.endswith("hint: did you mean memory?\n")


def test_prefs_bad_value_names_the_property(cli: Cli) -> None:
    ran = cli.run("prefs", "work", "vcpus", "many")
    assert ran.code == 1
    assert ran.err.startswith("insula: error: ")
    assert "vcpus" in ran.err
    assert "Traceback" not in ran.err


def test_prefs_global_reads_and_sets_the_system(cli: Cli) -> None:
    assert cli.run("prefs", "--global", "default_template").out == "debian-12\n"
    assert cli.run("prefs", "--global", "stats_interval", "5").code == 0
    assert cli.run("prefs", "--global", "--json").json["stats_interval"]["value"] == 5
    assert cli.run("prefs", "--global", "-D", "stats_interval").code == 0
    assert cli.run("prefs", "--global", "stats_interval").out == "3\n"


def test_prefs_help_properties_says_what_each_means(cli: Cli) -> None:
    texts = cli.run("prefs", "work", "--help-properties", "--json").json
    assert texts["memory"] == "Memory at start, MiB."
    assert cli.run("prefs", "--global", "--help-properties").code == 0


def test_prefs_wrong_usage_exits_2(cli: Cli) -> None:
    assert cli.run("prefs").code == 2
    assert cli.run("prefs", "--global", "a", "b", "c").code == 2
    assert cli.run("prefs", "work", "memory", "-D", "memory").code == 2


# features, tags, services


def test_features_set_show_forget(cli: Cli) -> None:
    assert cli.run("features", "work", "x-note", "[red]one[/red]").code == 0
    assert cli.run("features", "work", "x-note").out == "[red]one[/red]\n"
    assert cli.run("features", "work", "x-note", "--json").json == {"name": "x-note", "value": "[red]one[/red]"}
    assert cli.run("features", "work", "--json").json["x-note"] == "[red]one[/red]"
    assert "[red]one[/red]" in cli.run("features", "work", terminal=True, NO_COLOR="1").out
    assert cli.run("features", "work", "-D", "x-note").code == 0
    assert "x-note" not in cli.run("features", "work", "--json").json


def test_features_missing_one_guesses(cli: Cli) -> None:
    cli.run("features", "work", "x-note", "1")
    for arguments in (("x-not",), ("-D", "x-not")):
        ran = cli.run("features", "work", *arguments)
        assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: did you mean x-note?")
    assert cli.run("features", "work", "x", "-D", "y").code == 2


def test_tags_add_remove_test(cli: Cli) -> None:
    assert cli.run("tags", "work", "--add", "finance", "--add", "paper").code == 0
    assert {"finance", "paper"} < set(cli.run("tags", "work", "--json").json)
    assert cli.run("tags", "work", "paper").out == "paper\n"
    assert cli.run("tags", "work", "--remove", "paper").code == 0
    ran = cli.run("tags", "work", "paper")
    assert (ran.code, ran.out) == (1, "")


def test_tags_missing_or_bad_is_refused(cli: Cli) -> None:
    cli.run("tags", "work", "--add", "finance")
    ran = cli.run("tags", "work", "--remove", "finanse")
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: did you mean finance?")
    assert cli.run("tags", "work", "--add", "a.b").code == 1


def test_service_on_off_default(cli: Cli) -> None:
    assert cli.run("service", "work", "cups", "on").code == 0
    assert cli.run("service", "work", "ssh", "off").code == 0
    assert cli.run("service", "work", "--json").json == {"cups": True, "ssh": False}
    assert [line.split() for line in cli.run("service", "work").lines[1:]] == [["cups", "on"], ["ssh", "off"]]
    assert cli.run("service", "work", "cups", "--json").json == {"cups": True}
    assert cli.run("service", "work", "-D", "cups").code == 0
    assert cli.run("service", "work", "--json").json == {"ssh": False}


def test_service_unknown_or_wrong_word(cli: Cli) -> None:
    cli.run("service", "work", "cups", "on")
    for arguments in (("cusp",), ("-D", "cusp")):
        ran = cli.run("service", "work", *arguments)
        assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: did you mean cups?")
    assert cli.run("service", "work", "cups", "maybe").code == 2
    assert cli.run("service", "work", "cups", "on", "-D", "cups").code == 2


# labels


def test_label_create_list_remove(cli: Cli) -> None:
    assert cli.run("label", "create", "pink", "#ff66aa").code == 0
    assert {"name": "pink", "color": "0xff66aa"} in cli.run("label", "ls", "--json").json
    assert ["pink", "0xff66aa"] in [line.split() for line in cli.run("label", "ls").lines]
    assert cli.run("create", "shop", "--label", "pink").code == 0
    assert "38;2;255;102;170m●" in cli.run("ls", terminal=True, COLORTERM="truecolor", NO_COLOR="").out
    assert cli.run("label", "remove", "pink").code == 1
    assert cli.run("remove", "--yes", "shop").code == 0
    assert cli.run("label", "remove", "pink").code == 0


def test_label_bad_color_or_name_is_refused(cli: Cli) -> None:
    assert cli.run("label", "create", "pink", "pinkish").code == 1
    assert cli.run("label", "create", "red", "0xff0000").code == 1
    ran = cli.run("label", "remove", "blu")
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: did you mean blue?")


# volumes


def test_volume_ls_and_info(cli: Cli) -> None:
    rows = cli.run("volume", "ls", "work", "--json").json
    assert {row["volume"] for row in rows} == {"root", "private", "volatile", "kernel"}
    info = cli.run("volume", "info", "work", "private", "--json").json
    assert info["size"] == 2 * 1024**3
    assert info["save_on_stop"] is True
    lines = [line.split() for line in cli.run("volume", "ls").lines]
    assert ["work", "private", "default", "2.0", "GiB", "0", "B", "kept"] in lines
    assert ["size", "2.0", "GiB"] in [line.split() for line in cli.run("volume", "info", "work", "private").lines]


def test_volume_resize_grows_and_never_shrinks(cli: Cli) -> None:
    assert cli.run("volume", "resize", "work", "private", "3G").code == 0
    ran = cli.run("volume", "resize", "work", "private", "1G")
    assert ran.code == 1
    assert "cannot shrink" in ran.err
    assert cli.run("volume", "resize", "work", "private", "big").code == 2
    assert cli.run("volume", "info", "work", "private", "--json").json["size"] == 3 * 1024**3


def test_volume_import_replaces_the_content(cli: Cli, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 4096)
    ran = cli.run("volume", "import", "work", "private", str(image))
    assert ran.code == 0, ran.err
    assert ran.err.startswith("work:private imported in ")
    assert cli.run("volume", "info", "work", "private", "--json").json["size"] == 4096
    assert cli.run("volume", "import", "work", "private", "-", "--size", "512", stdin=b"y" * 512).code == 0
    assert cli.run("volume", "info", "work", "private", "--json").json["size"] == 512


def test_volume_import_wrong_size_or_file_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert cli.run("volume", "import", "work", "private", "-", stdin=b"y").code == 2
    assert cli.run("volume", "import", "work", "private", "-", "--size", "512", stdin=b"y").code == 1
    ran = cli.run("volume", "import", "work", "private", str(tmp_path / "missing"))
    assert ran.code == 1
    assert ran.err == f"insula: error: {tmp_path}/missing: No such file or directory\n"
    assert cli.run("volume", "info", "work", "private", "--json").json["size"] == 2 * 1024**3


def test_volume_revisions_and_revert(cli: Cli, tmp_path: Path) -> None:
    assert cli.run("volume", "revisions", "work", "private", "--json").json == []
    assert cli.run("volume", "revert", "work", "private").code == 1
    cli.run("volume", "import", "work", "private", "-", "--size", "512", stdin=b"y" * 512)
    revisions = cli.run("volume", "revisions", "work", "private", "--json").json
    assert len(revisions) == 1
    assert cli.run("volume", "revisions", "work", "private").lines == revisions
    assert cli.run("volume", "revert", "work", "private", "never").code == 1
    assert cli.run("volume", "revert", "work", "private", revisions[0]).code == 0


def test_volume_clear_and_config(cli: Cli) -> None:
    assert cli.run("volume", "clear", "work", "private").code == 0
    assert cli.run("volume", "config", "work", "private", "revisions_to_keep", "4").code == 0
    assert cli.run("volume", "info", "work", "private", "--json").json["revisions_to_keep"] == 4
    assert cli.run("volume", "config", "work", "private", "rw", "off").code == 0
    assert cli.run("volume", "info", "work", "private", "--json").json["rw"] is False
    assert cli.run("volume", "config", "work", "private", "colour", "4").code == 2
    assert cli.run("volume", "config", "work", "private", "revisions_to_keep", "x").code == 2
    assert cli.run("volume", "config", "work", "private", "rw", "perhaps").code == 2


@pytest.mark.parametrize("command", ["info", "revisions", "revert", "clear"])
def test_unknown_volume_is_refused_with_a_guess(cli: Cli, command: str) -> None:
    ran = cli.run("volume", command, "work", "privat")
    assert (ran.code, ran.err) == (
        1,
        "insula: error: work has no volume 'privat'\nhint: did you mean private?\n",
    )


# pools


def test_pool_ls_and_info(cli: Cli) -> None:
    names = [row["name"] for row in cli.run("pool", "ls", "--json").json]
    assert names == ["default", "linux-kernel"]
    info = cli.run("pool", "info", "default", "--json").json
    assert (info["name"], info["driver"]) == ("default", "qcow2")
    assert ["driver", "qcow2"] in [line.split() for line in cli.run("pool", "info", "default").lines]
    assert cli.run("pool", "ls").lines[0].split() == ["POOL", "DRIVER", "SIZE", "USED"]


def test_pool_add_and_remove(cli: Cli, tmp_path: Path) -> None:
    assert "qcow2" in cli.run("pool", "drivers", "--json").json
    ran = cli.run("pool", "add", "slow", "qcow2", "-o", f"dir_path={tmp_path}/slow")
    assert ran.code == 0, ran.err
    assert cli.run("pool", "info", "slow", "--json").json["config"]["dir_path"] == f"{tmp_path}/slow"
    assert cli.run("pool", "remove", "slow").code == 0
    assert cli.run("pool", "remove", "default").code == 1


def test_pool_unknown_name_or_driver_guesses(cli: Cli) -> None:
    for command in ("info", "remove"):
        ran = cli.run("pool", command, "defualt")
        assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: did you mean default?")
    ran = cli.run("pool", "add", "x", "qcow")
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: did you mean qcow2?")
    assert cli.run("pool", "add", "x", "qcow2", "-o", "nothing").code == 2


# apps


def test_apps_lists_what_a_qube_told_or_says_that_it_told_nothing(cli: Cli) -> None:
    ran = cli.run("apps", "work")
    assert (ran.code, "has told of no applications" in ran.err) == (0, True)
    told = Application("org.editor", "Editor", categories=("Utility", "Text"))
    cli.daemon.context.applications.keep(cli.daemon.store.system.get(QubeName("work")).uuid, [told])
    assert cli.run("apps", "work").lines[1].split() == ["org.editor", "Editor", "Utility", "Text"]
    [shown] = cli.run("apps", "work", "--json").json
    assert (shown["id"], shown["categories"]) == ("org.editor", ["Utility", "Text"])
