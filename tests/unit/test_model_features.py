import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import (
    PermissionDenied,
    ProtocolError,
    QubesException,
    QubesFeatureNotFoundError,
    QubesValueError,
)
from insula.model.features import (
    MAX_DELIVERED_VALUE,
    MAX_FEATURE_NAME,
    MAX_FEATURE_VALUE,
    MAX_FEATURES,
    PROTECTED,
    Lookup,
    check_client_may_change,
    get_feature,
    parse_feature_name,
    parse_feature_value,
    remove_feature,
    set_feature,
)
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import resolve
from insula.testing.systems import DISPOSABLE, NET, TEMPLATE, WORK, all_halted, small_system


@pytest.mark.parametrize(
    "name",
    ["gui", "service.x", "service." + "a" * 48, "vm-config.a" + "b" * 51, "custom-persist." + "a" * 54, "net.fake-ip"],
)
def test_valid_feature_name_is_returned(name: str) -> None:
    assert parse_feature_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a\n", "a+b", "x" * (MAX_FEATURE_NAME + 1)])
def test_malformed_feature_name_is_a_protocol_error(name: str) -> None:
    with pytest.raises(ProtocolError):
        parse_feature_name(name)


@pytest.mark.parametrize(
    "name",
    ["service.", "service." + "a" * 49, "vm-config.1", "vm-config.a" + "b" * 52, "custom-persist." + "a" * 55],
)
def test_feature_that_cannot_be_delivered_is_refused(name: str) -> None:
    with pytest.raises(QubesValueError):
        parse_feature_name(name)


@pytest.mark.parametrize("value", ["", "1", "a b 'c' \"d\" <e>,%", "x" * MAX_FEATURE_VALUE])
def test_valid_feature_value_is_returned(value: str) -> None:
    assert parse_feature_value("gui", value) == value


@pytest.mark.parametrize("value", ["a\nb", "é", "\x00", "\x7f", "x" * (MAX_FEATURE_VALUE + 1)])
def test_malformed_feature_value_is_a_protocol_error(value: str) -> None:
    with pytest.raises(ProtocolError):
        parse_feature_value("gui", value)


@pytest.mark.parametrize("value", ["/etc/x", "file:root:root:0644:/etc/x", "dir:user:user:755:/home/user/a b"])
def test_path_to_persist_is_accepted(value: str) -> None:
    assert parse_feature_value("custom-persist.x", value) == value


@pytest.mark.parametrize(
    "value", ["", "etc/x", "link:root:root:0644:/x", "file:root:root:/x", "file:root:root:9999:/x"]
)
def test_malformed_path_to_persist_is_refused(value: str) -> None:
    with pytest.raises(QubesValueError):
        parse_feature_value("custom-persist.x", value)


def test_value_too_long_to_deliver_is_refused() -> None:
    with pytest.raises(QubesValueError):
        parse_feature_value("vm-config.a", "x" * (MAX_DELIVERED_VALUE + 1))


@given(st.text(max_size=80), st.text(max_size=80))
def test_mc102_any_feature_is_kept_unchanged_or_refused(name: str, value: str) -> None:
    try:
        assert parse_feature_value(parse_feature_name(name), value) == value
    except (ProtocolError, QubesException) as error:
        assert str(error).isascii()
        return
    assert name.isascii()
    assert value.isascii()


@pytest.mark.parametrize("name", sorted(PROTECTED))
def test_record_of_the_system_cannot_be_changed_by_clients(name: str) -> None:
    with pytest.raises(PermissionDenied):
        check_client_may_change(name)
    check_client_may_change(name + "-max")


def test_feature_is_set_and_removed() -> None:
    system = set_feature(small_system(), WORK, "gui", "", all_halted)
    assert get_feature(system, WORK, "gui") == ""
    with pytest.raises(QubesFeatureNotFoundError, match="gui"):
        get_feature(remove_feature(system, WORK, "gui"), WORK, "gui")
    with pytest.raises(QubesFeatureNotFoundError):
        remove_feature(small_system(), WORK, "gui")


def test_number_of_features_is_limited() -> None:
    system = small_system()
    qube = system.get(WORK)
    full = system.with_qube(type(qube)(**{**vars(qube), "features": {f"f{n}": "" for n in range(MAX_FEATURES)}}))
    assert get_feature(set_feature(full, WORK, "f0", "1", all_halted), WORK, "f0") == "1"
    with pytest.raises(QubesValueError):
        set_feature(full, WORK, "one-more", "1", all_halted)


def test_meminfo_writer_is_translated_to_maxmem_and_not_kept() -> None:
    system = set_feature(small_system(), WORK, "service.meminfo-writer", "", all_halted)
    assert dict(system.get(WORK).features) == {}
    assert resolve(system, system.get(WORK), "maxmem").is_default is False
    system = set_feature(system, WORK, "service.meminfo-writer", "1", all_halted)
    assert resolve(system, system.get(WORK), "maxmem").is_default is True


LOOKUPS = {
    TEMPLATE: {Lookup.TEMPLATE, Lookup.TEMPLATE_AND_ADMINVM},
    NET: {Lookup.NETVM},
    ADMIN_NAME: {Lookup.ADMINVM, Lookup.TEMPLATE_AND_ADMINVM},
    WORK: {Lookup.TEMPLATE, Lookup.TEMPLATE_AND_ADMINVM},
    DISPOSABLE: set(Lookup),
}


@pytest.mark.parametrize("owner", LOOKUPS)
@pytest.mark.parametrize("lookup", list(Lookup))
def test_lookup_of_a_disposable_finds_exactly_where_it_looks(owner: str, lookup: Lookup) -> None:
    system = small_system()
    system = system.with_qube(system.get(owner).with_feature("x", "here"))
    if lookup in LOOKUPS[QubeName(owner)]:
        assert get_feature(system, DISPOSABLE, "x", lookup) == "here"
    else:
        with pytest.raises(QubesFeatureNotFoundError):
            get_feature(system, DISPOSABLE, "x", lookup)


def test_nearest_owner_wins_and_empty_is_an_answer() -> None:
    system = small_system()
    for owner, value in ((TEMPLATE, "far"), (WORK, ""), (ADMIN_NAME, "farthest")):
        system = system.with_qube(system.get(owner).with_feature("x", value))
    assert get_feature(system, DISPOSABLE, "x", Lookup.TEMPLATE_AND_ADMINVM) == ""
