from __future__ import annotations

from pathlib import Path

import pytest

from insula.model.system import PoolConfig
from insula.storage.pool import StorageError
from insula.storage.registry import DRIVERS, BadOption, MissingOption, UnknownDriver, UnknownOption, open_pool


def test_drivers_are_listed_with_their_options() -> None:
    listed = {name: [option.name for option in driver.options] for name, driver in DRIVERS.items()}
    assert listed == {
        "qcow2": ["dir_path", "revisions_to_keep", "ephemeral_volatile", "reserve_mib"],
        "linux-kernel": ["dir_path"],
    }


@pytest.mark.parametrize("driver", DRIVERS)
async def test_pool_opens_with_required_options_and_shows_them(driver: str, tmp_path: Path) -> None:
    pool = open_pool(PoolConfig("p", driver, {"dir_path": str(tmp_path / "p")}))
    assert (pool.name, pool.driver, pool.config) == ("p", driver, {"dir_path": str(tmp_path / "p")})
    assert await pool.volumes() == []
    await pool.aclose()


@pytest.mark.parametrize(
    ("driver", "options", "error"),
    [
        ("zfs", {"dir_path": "/x"}, UnknownDriver),
        ("qcow2", {}, MissingOption),
        ("qcow2", {"dir_path": "/x", "colour": "red"}, UnknownOption),
        ("linux-kernel", {"dir_path": "/x", "reserve_mib": "1"}, UnknownOption),
        ("qcow2", {"dir_path": "relative"}, BadOption),
        ("qcow2", {"dir_path": ""}, BadOption),
        ("qcow2", {"dir_path": "/x/../y"}, BadOption),
        ("qcow2", {"dir_path": "/x\ny"}, BadOption),
        ("qcow2", {"dir_path": "/x", "reserve_mib": "-1"}, BadOption),
        ("qcow2", {"dir_path": "/x", "reserve_mib": "much"}, BadOption),
        ("qcow2", {"dir_path": "/x", "reserve_mib": "9" * 30}, BadOption),
        ("qcow2", {"dir_path": "/x", "reserve_mib": "--1"}, BadOption),
        ("qcow2", {"dir_path": "/x", "revisions_to_keep": "-2"}, BadOption),
        ("qcow2", {"dir_path": "/x", "ephemeral_volatile": "yes"}, BadOption),
    ],
)
def test_wrong_configuration_refused(driver: str, options: dict[str, str], error: type[StorageError]) -> None:
    with pytest.raises(error):
        open_pool(PoolConfig("p", driver, options))


def test_folder_that_cannot_be_made_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="opening pool"):
        open_pool(PoolConfig("p", "qcow2", {"dir_path": str(tmp_path / "file" / "p")}))
