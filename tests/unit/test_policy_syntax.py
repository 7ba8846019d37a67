"""Lines and tokens of the policy language; rules and their text. The golden data have many more lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import rules

from insula.policy.errors import Location
from insula.policy.rules import Action, Rule
from insula.policy.syntax import (
    Compat,
    Include,
    IncludeDir,
    IncludeService,
    LineError,
    is_service_file,
    parse_line,
    parse_old_line,
)
from insula.policy.tokens import Kind, Place, TokenError, parse_token

HERE = Location("", "50-x.policy", 3)


def rule_of(line: str) -> Rule:
    rule = parse_line(line, HERE)
    assert isinstance(rule, Rule)
    return rule


@given(rules())
def test_rule_formatted_parses_to_itself(rule: Rule) -> None:
    assert rule_of(str(rule)) == rule


@given(rules(), st.sampled_from(["\t", "  ", "\u00a0", " \u3000 ", "\x0b"]))
def test_rule_any_white_space_means_the_same(rule: Rule, space: str) -> None:
    assert rule_of(f"{space}{str(rule).replace(' ', space)}{space}") == rule


@given(rules())
def test_old_line_of_same_words_is_the_same_rule(rule: Rule) -> None:
    _, _, words = str(rule).split(" ", 2)
    old = words.replace("@", "$").replace(" ", ",")
    assert parse_old_line(old, rule.service, rule.argument, HERE) == rule


@given(st.text())
def test_any_text_is_a_line_or_the_documented_error(text: str) -> None:
    for parse in (
        lambda: parse_line(text, HERE),
        lambda: parse_line("test.S * " + text, HERE),
        lambda: parse_old_line(text, "test.S", "*", HERE),
    ):
        try:
            parsed = parse()
        except LineError as error:
            assert str(error).isprintable()
        else:
            assert parsed is None or isinstance(parsed, Rule | Include | IncludeDir | IncludeService | Compat)


def test_parameters_are_kept() -> None:
    rule = rule_of("a.B +x @tag:t @default ask target=vault default_target=@dispvm user=root autostart=no notify=yes")
    assert rule.location == HERE
    assert (rule.service, rule.argument, rule.action) == ("a.B", "+x", Action.ASK)
    assert (str(rule.redirect), str(rule.default_target)) == ("vault", "@dispvm")
    assert (rule.user, rule.autostart, rule.notify) == ("root", False, True)


@pytest.mark.parametrize(("action", "notify"), [("allow", False), ("ask", False), ("deny", True)])
def test_parameters_left_out_have_published_defaults(action: str, notify: bool) -> None:
    rule = rule_of(f"* * a b {action}")
    assert (rule.redirect, rule.default_target, rule.user, rule.autostart, rule.notify) == (
        None, None, None, True, notify,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("test.S * work vault", "a word is missing"),
        ("test.S * work vault allow frob=1", "allow has no parameter 'frob'"),  # MC-28
        ("test.S * work vault allow default_target=a", "allow has no parameter 'default_target'"),
        ("test.S * work vault deny target=a", "deny has no parameter 'target'"),
        ("test.S * work vault allow user=a user=b", "user= is given twice"),
        ("test.S * work vault allow # why", "'#' is no parameter (KEY=VALUE); a comment needs a line of its own"),
        ("test.S * work vault allow autostart=1", "autostart= is yes or no, not '1'"),
        ("test.S * work vault Allow", "'Allow' is no action (allow, ask, deny)"),
        ("test.S * work @default allow", "allow with @default as the target needs target="),
        ("test.S * work vault allow target=@tag:x", "target=: '@tag:x' cannot stand in target= or default_target="),
        ("test.S * work vault allow target=", "target=: a qube is missing"),
        ("test.S * @default vault allow", "'@default' cannot stand as a source"),
        ("test.S * work @tag: allow", "'@tag:' is no token of the policy language"),
        ("te/st * work vault allow", "'te/st' is no name of a service"),  # MC-16
        ("test.S +a/../b work vault allow", "'+a/../b' is no argument"),
        ("test.S +$(id) work vault allow", "is no argument"),
        ("test.S arg work vault allow", "'arg' is no argument"),
        ("* +a work vault allow", "a rule for every service is a rule for every argument"),
        ("!include", "!include takes 1 words, here are 0"),
        ("!include a # why", "!include takes 1 words, here are 3"),
        ("!include-service * +a f", "a rule for every service is a rule for every argument"),
        ("!compat-4.0 x", "!compat-4.0 takes 0 words, here are 1"),
        ("!frob", "'!frob' is no directive"),
        ("\ufeff* * work vault allow", "'\\ufeff*' is no name of a service"),
    ],
)
def test_wrong_line_reason_says_what(line: str, reason: str) -> None:
    with pytest.raises(LineError) as caught:
        parse_line(line, HERE)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("!include include/x", Include("include/x")),
        ("!include-dir d", IncludeDir("d")),
        ("!include-service a.B +c f", IncludeService("a.B", "+c", "f")),
        ("  !compat-4.0 ", Compat()),
        ("# * * * * allow", None),
        ("  ", None),
    ],
)
def test_directives_and_empty_lines(line: str, parsed: object) -> None:
    assert parse_line(line, HERE) == parsed


def test_old_line_include_stays_an_include() -> None:
    assert parse_old_line("$include:include/x", "a.B", "*", HERE) == Include("include/x")
    assert parse_old_line("!include include/x", "a.B", "*", HERE) == Include("include/x")


@pytest.mark.parametrize("line", ["!include-dir d", "!compat-4.0", "a b", "a.B * work vault allow", "@include x y"])
def test_old_line_what_only_the_new_syntax_has_is_refused(line: str) -> None:
    with pytest.raises(LineError):
        parse_old_line(line, "a.B", "*", HERE)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("a.B", True), ("a.B+", True), ("a.B+c+d", True), ("+c", False), ("a b", False), ("a.B+/", False), ("", False)],
)
def test_file_names_of_the_old_format(name: str, is_one: bool) -> None:
    assert is_service_file(name) is is_one


KINDS = {
    "*": Kind.ANYTHING,
    "@anyvm": Kind.ANYVM,
    "dom0": Kind.ADMIN,
    "@adminvm": Kind.ADMIN,
    "uuid:00000000-0000-0000-0000-000000000000": Kind.ADMIN,
    "work": Kind.NAME,
    "uuid:11111111-1111-4111-8111-111111111111": Kind.NAME,
    "DOM0": Kind.NAME,  # exact text (MC-19)
    "@type:AppVM": Kind.TYPE,
    "@tag:a": Kind.TAG,
    "@default": Kind.DEFAULT,
    "@dispvm": Kind.DISPVM,
    "@dispvm:dvm": Kind.DISPVM_OF,
    "@dispvm:@tag:a": Kind.DISPVM_TAG,
}
PLACES = {
    Place.SOURCE: set(Kind) - {Kind.DEFAULT, Kind.DISPVM},
    Place.TARGET: set(Kind),
    Place.REDIRECT: {Kind.ADMIN, Kind.NAME, Kind.DISPVM, Kind.DISPVM_OF},
    Place.REQUEST: {Kind.ADMIN, Kind.NAME, Kind.DISPVM, Kind.DISPVM_OF, Kind.DEFAULT},
}


@pytest.mark.parametrize("place", Place)
@pytest.mark.parametrize("text", KINDS)
def test_tokens_stand_where_the_table_says(text: str, place: Place) -> None:
    if KINDS[text] in PLACES[place]:
        assert parse_token(text, place).kind is KINDS[text]
    else:
        with pytest.raises(TokenError):
            parse_token(text, place)


@pytest.mark.parametrize(
    "text", ["", "@", "@any", "@ANYVM", "@tag:", "@tag:@x", "@type:", "@dispvm:", "@dispvm:@tag:", "@dispvm:@type:x"]
)
@pytest.mark.parametrize("place", Place)
def test_what_looks_like_a_token_and_is_none_is_refused(text: str, place: Place) -> None:
    with pytest.raises(TokenError):
        parse_token(text, place)
