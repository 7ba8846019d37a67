from __future__ import annotations

import pytest

from insula.hal.errors import DriverError
from insula.hal.registry import DEFAULT_DRIVER, DRIVERS, open_driver


@pytest.mark.parametrize("name", sorted(DRIVERS))
async def test_each_driver_opens_under_its_own_name(name: str) -> None:
    driver = await open_driver(name)
    assert driver.name == name
    await driver.close()


async def test_default_driver_is_registered() -> None:
    assert DEFAULT_DRIVER in DRIVERS


async def test_unknown_driver_is_refused_with_the_choice() -> None:
    with pytest.raises(DriverError, match="fake, qemu"):
        await open_driver("nonesuch")
