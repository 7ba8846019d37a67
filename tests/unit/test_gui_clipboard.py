"""The clipboard's two machines; cases MC-51 to MC-55."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui.clipboard import (
    COPY_TIMEOUT,
    DELIVERY_TIMEOUT,
    KEPT,
    PASTE_TIMEOUT,
    Board,
    BoardCommand,
    Deliver,
    Drop,
    Judge,
    Notice,
    QubeClipboard,
    is_before,
)
from insula.gui.desktop import AskPaste, Command, FailCopy, OfferCopy, Send, StartCopy, Tell
from insula_proto import gui, gui_wire

LIMIT = 1000


def asked() -> QubeClipboard:
    clipboard = QubeClipboard(LIMIT)
    clipboard.copy(7, 100, 0.0)
    return clipboard


# --- one qube --------------------------------------------------------------------------------------------------------


def test_copy_asks_the_guest_and_offers_its_one_answer() -> None:
    clipboard = QubeClipboard(LIMIT)
    assert clipboard.copy(7, 100, 0.0) == [StartCopy(1, 100), Send(gui.ClipboardRequest(7))]
    assert clipboard.received(b"text", 1.0) == [OfferCopy(1, b"text")]


def test_data_nobody_asked_for_is_dropped() -> None:
    """MC-51."""
    assert QubeClipboard(LIMIT).received(b"text", 0.0) == []


def test_second_answer_is_dropped() -> None:
    """MC-51."""
    clipboard = asked()
    clipboard.received(b"first", 1.0)
    assert clipboard.received(b"second", 1.0) == []


def test_late_answer_is_dropped() -> None:
    """MC-51."""
    clipboard = asked()
    assert clipboard.received(b"late", COPY_TIMEOUT) == []
    assert clipboard.received(b"later", COPY_TIMEOUT) == []


def test_answer_after_a_paste_key_is_dropped() -> None:
    """MC-51: the user went on."""
    clipboard = asked()
    clipboard.paste(7, 101, 0.5)
    assert clipboard.received(b"text", 1.0) == []


@pytest.mark.parametrize("data", [b"x" * (LIMIT + 1), b"x" * 256001, b""])
def test_too_long_or_empty_answer_is_refused_as_a_whole_and_answers_the_request(data: bytes) -> None:
    """MC-52: never cut."""
    clipboard = asked()
    [failed] = clipboard.received(data, 1.0)
    assert isinstance(failed, FailCopy)
    assert clipboard.received(b"short", 1.0) == []


def test_answer_as_long_as_may_be_is_offered_unchanged() -> None:
    """MC-52."""
    data = "\0\n\u202e€".encode() * 125
    assert len(data) == LIMIT
    assert asked().received(data, 1.0) == [OfferCopy(1, data)]


IMAGE = gui.ClipboardImage(7, 3, 2, bytes(range(24)))
IMAGE_FILE = gui_wire.encode_body(IMAGE)


def test_image_is_offered_as_one_and_delivered_as_it_was() -> None:
    [offer] = asked().received_image(IMAGE, 1.0)
    assert offer == OfferCopy(1, IMAGE_FILE, is_image=True)
    target = QubeClipboard(LIMIT)
    target.paste(7, 101, 0.0)
    assert target.deliver(1, IMAGE_FILE, 1.0, is_image=True) == [Send(IMAGE)]


def test_image_nobody_asked_for_late_or_a_second_time_is_dropped() -> None:
    """MC-51."""
    assert QubeClipboard(LIMIT).received_image(IMAGE, 0.0) == []
    assert asked().received_image(IMAGE, COPY_TIMEOUT) == []
    clipboard = asked()
    clipboard.received(b"text", 1.0)
    assert clipboard.received_image(IMAGE, 1.0) == []


@pytest.mark.parametrize("limit", [0, 5])
def test_image_with_more_pixels_than_may_be_is_refused_where_it_comes_from_and_where_it_goes(limit: int) -> None:
    """MC-52."""
    source, target = QubeClipboard(LIMIT, limit), QubeClipboard(LIMIT, limit)
    source.copy(7, 100, 0.0)
    [failed] = source.received_image(IMAGE, 1.0)
    assert isinstance(failed, FailCopy)
    target.paste(7, 101, 0.0)
    [told] = target.deliver(1, IMAGE_FILE, 1.0, is_image=True)
    assert isinstance(told, Tell)


@pytest.mark.parametrize("data", [b"", IMAGE_FILE[:-1], IMAGE_FILE + b"x", bytes(12), b"text", b"\xff" * 24])
def test_what_is_no_image_is_not_pasted_whatever_the_sources_process_says(data: bytes) -> None:
    """MC-52."""
    target = QubeClipboard(LIMIT)
    target.paste(7, 101, 0.0)
    [told] = target.deliver(1, data, 1.0, is_image=True)
    assert isinstance(told, Tell)


def test_image_on_the_board_is_judged_as_one_and_no_limit_of_text_holds_for_it() -> None:
    """MC-55."""
    board: Board[str] = Board()
    board.copy_started("work", 1, 100, 0.0)
    assert board.copy_offered("work", 1, "image", 9000, 1.0, is_image=True) == [
        Notice("an image of 9000 bytes copied from work")
    ]
    assert board.paste_asked("mail", 5, 101, 2.0, limit=256) == [Judge(1, "work", "mail", True)]
    [deliver, notice] = board.judged(1, True, 2.0)
    assert deliver == Deliver("mail", 5, "image", True)
    assert notice == Notice("an image of 9000 bytes pasted from work into mail; the clipboard is empty")


NO_TEXTS = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"cut \xe2\x82", b"\x80"]


@pytest.mark.parametrize("data", NO_TEXTS)
def test_what_is_no_utf8_is_refused_as_a_whole(data: bytes) -> None:
    """MC-52: overlong forms, surrogates, what is beyond Unicode, a character that is cut."""
    clipboard = asked()
    assert clipboard.received(data, 1.0) == [FailCopy(1, "what it gave is no text")]
    assert clipboard.received(b"text", 1.0) == []


@pytest.mark.parametrize("data", NO_TEXTS)
def test_what_is_no_utf8_is_not_pasted_though_the_sources_process_let_it_through(data: bytes) -> None:
    clipboard = QubeClipboard(LIMIT)
    clipboard.paste(7, 100, 0.0)
    [told] = clipboard.deliver(1, data, 1.0)
    assert isinstance(told, Tell)
    assert clipboard.deliver(1, b"text", 1.0) == []


def test_paste_delivers_to_the_window_of_the_key() -> None:
    clipboard = QubeClipboard(LIMIT)
    assert clipboard.paste(7, 100, 0.0) == [AskPaste(1, 100)]
    assert clipboard.deliver(1, b"text", 1.0) == [Send(gui.ClipboardData(7, b"text"))]


def test_deliver_without_paste_key_sends_nothing() -> None:
    """MC-53."""
    assert QubeClipboard(LIMIT).deliver(1, b"secret", 0.0) == []
    assert asked().deliver(1, b"secret", 0.0) == []


@pytest.mark.parametrize(
    ("number", "size", "now"), [(2, 4, 1.0), (1, LIMIT + 1, 1.0), (1, 4, DELIVERY_TIMEOUT), (0, 4, 1.0)]
)
def test_deliver_for_another_key_too_long_or_late_sends_nothing(number: int, size: int, now: float) -> None:
    """MC-52, MC-53."""
    clipboard = QubeClipboard(LIMIT)
    clipboard.paste(7, 100, 0.0)
    commands = clipboard.deliver(number, b"x" * size, now)
    assert all(isinstance(command, Tell) for command in commands)


def test_deliver_twice_sends_once() -> None:
    """MC-54."""
    clipboard = QubeClipboard(LIMIT)
    clipboard.paste(7, 100, 0.0)
    clipboard.deliver(1, b"text", 1.0)
    assert clipboard.deliver(1, b"text", 1.0) == []


# --- between qubes ---------------------------------------------------------------------------------------------------


def without_notices(commands: list[BoardCommand]) -> list[BoardCommand]:
    return [command for command in commands if not isinstance(command, Notice)]


def notices(commands: list[BoardCommand]) -> list[str]:
    return [command.text for command in commands if isinstance(command, Notice)]


def copied(source: str = "work", content: str = "text") -> Board[str]:
    board: Board[str] = Board()
    board.copy_started(source, 1, 100, 0.0)
    board.copy_offered(source, 1, content, len(content), 0.1)
    return board


def test_copy_then_paste_moves_it_once_with_policys_word() -> None:
    """MC-54."""
    board = copied()
    assert board.holds == ("work", 4)
    [judge] = board.paste_asked("mail", 5, 200, 1.0)
    assert judge == Judge(1, "work", "mail")
    commands = board.judged(1, True, 1.1)
    assert without_notices(commands) == [Deliver("mail", 5, "text")]
    assert board.holds is None
    again = board.paste_asked("mail", 6, 300, 2.0)
    assert without_notices(again) == []
    assert notices(again) == ["there is nothing to paste"]


def test_notices_name_source_target_and_size_and_never_the_text() -> None:
    """MC-109."""
    board: Board[str] = Board()
    board.copy_started("work", 1, 100, 0.0)
    said = notices(board.copy_offered("work", 1, "hunter2", 7, 0.1))
    board.paste_asked("mail", 1, 200, 0.2)
    said += notices(board.judged(1, True, 0.3))
    assert said == ["7 bytes copied from work", "7 bytes pasted from work into mail; the clipboard is empty"]


def test_policy_that_forbids_delivers_nothing_and_asks_nothing_of_the_target() -> None:
    """MC-55."""
    board = copied()
    [judge] = board.paste_asked("mail", 5, 200, 1.0)
    assert isinstance(judge, Judge)
    commands = board.judged(judge.number, False, 1.1)
    assert without_notices(commands) == []
    assert board.holds == ("work", 4)


def test_judgement_twice_or_of_another_paste_delivers_nothing() -> None:
    """MC-54, MC-55."""
    board = copied()
    board.paste_asked("mail", 5, 200, 1.0)
    board.paste_asked("vault", 6, 300, 1.2)
    assert board.judged(1, True, 1.3) == []
    assert without_notices(board.judged(2, True, 1.4)) == [Deliver("vault", 6, "text")]
    assert board.judged(2, True, 1.5) == []


def test_offer_nobody_started_is_dropped() -> None:
    """MC-51."""
    board: Board[str] = Board()
    assert board.copy_offered("work", 1, "text", 4, 0.0) == [Drop("text")]
    board.copy_started("work", 2, 100, 0.0)
    assert board.copy_offered("work", 1, "older", 5, 0.0) == [Drop("older")]
    assert board.copy_offered("mail", 2, "other", 5, 0.0) == [Drop("other")]
    assert board.holds is None


def test_offer_after_the_user_went_to_another_qube_is_dropped() -> None:
    """MC-51."""
    board: Board[str] = Board()
    board.copy_started("work", 1, 100, 0.0)
    assert board.focused("work") == []
    assert notices(board.focused("mail")) == ["work had not answered yet; nothing was copied"]
    assert board.copy_offered("work", 1, "late", 4, 0.5) == [Drop("late")]


def test_new_copy_clears_the_old_one_though_it_fails() -> None:
    """MC-52: no bytes of an older copy appear."""
    board = copied(content="old")
    assert board.copy_started("mail", 1, 200, 1.0) == [Drop("old")]
    board.copy_failed("mail", 1, "the text is longer than 1000 bytes")
    assert without_notices(board.paste_asked("vault", 1, 300, 2.0)) == []


def test_paste_into_its_own_source_is_told_and_kept() -> None:
    board = copied()
    assert without_notices(board.paste_asked("work", 1, 200, 1.0)) == []
    assert board.holds == ("work", 4)


def test_key_older_than_the_last_does_nothing() -> None:
    """A process that was held up cannot paste what was copied after its key was pressed."""
    board = copied()
    board.copy_started("mail", 2, 500, 1.0)
    board.copy_offered("mail", 2, "newer", 5, 1.1)
    assert board.paste_asked("evil", 1, 400, 2.0) == []
    assert board.copy_started("evil", 2, 499, 2.0) == []
    assert board.holds == ("mail", 5)


def test_copy_is_wiped_after_its_time() -> None:
    board = copied()
    assert board.expires_at == 0.1 + KEPT
    assert board.expire(KEPT) == []
    commands = board.expire(0.1 + KEPT)
    assert without_notices(commands) == [Drop("text")]
    assert notices(commands) == ["what was copied from work is wiped: it was not pasted"]
    assert board.holds is None
    board = copied()
    assert without_notices(board.paste_asked("mail", 1, 200, 0.1 + KEPT)) == [Drop("text")]
    board = copied()
    board.paste_asked("mail", 1, 200, KEPT)
    assert without_notices(board.judged(1, True, 0.1 + KEPT)) == [Drop("text")]


def test_guest_that_never_answers_a_copy_is_given_up_and_the_user_told() -> None:
    """MC-51."""
    board: Board[str] = Board()
    board.copy_started("work", 1, 100, 0.0)
    assert board.expires_at == COPY_TIMEOUT
    assert board.expire(COPY_TIMEOUT - 0.1) == []
    assert notices(board.expire(COPY_TIMEOUT)) == ["work took too long; nothing was copied"]
    assert board.copy_offered("work", 1, "late", 4, COPY_TIMEOUT) == [Drop("late")]
    assert board.expires_at is None


def test_policy_that_never_answers_leaves_the_text_where_it_is_and_its_late_yes_is_void() -> None:
    """MC-55."""
    board = copied()
    board.paste_asked("mail", 5, 200, 1.0)
    assert board.expires_at == 1.0 + PASTE_TIMEOUT
    commands = board.expire(1.0 + PASTE_TIMEOUT)
    assert notices(commands) == ["policy could not be asked in time; nothing was pasted into mail"]
    assert board.judged(1, True, 7.0) == []
    assert board.holds == ("work", 4)


def test_second_paste_key_takes_the_place_of_the_first() -> None:
    """MC-54: two pastes at once, in two qubes: the text goes where the user pressed last, and nowhere else."""
    board = copied()
    board.paste_asked("mail", 5, 200, 1.0)
    [judge] = board.paste_asked("vault", 6, 201, 1.0)
    assert isinstance(judge, Judge)
    assert board.judged(1, True, 1.1) == []
    assert without_notices(board.judged(judge.number, True, 1.2)) == [Deliver("vault", 6, "text")]
    assert board.judged(judge.number, True, 1.3) == []


def test_text_longer_than_the_target_takes_stays_where_it_is_and_policy_is_not_asked() -> None:
    """MC-52."""
    board = copied(content="x" * 300)
    commands = board.paste_asked("mail", 5, 200, 1.0, limit=256)
    assert without_notices(commands) == []
    assert notices(commands) == ["the text has 300 bytes, mail takes 256; nothing was pasted"]
    assert board.holds == ("work", 300)


def test_qube_that_is_gone_leaves_nothing() -> None:
    """MC-20."""
    board = copied()
    board.paste_asked("mail", 1, 200, 1.0)
    assert board.qube_gone("mail") == []
    assert board.judged(1, True, 1.1) == []
    assert board.qube_gone("work") == [Drop("text")]
    board.copy_started("work", 2, 300, 2.0)
    board.qube_gone("work")
    assert board.copy_offered("work", 2, "x", 1, 2.1) == [Drop("x")]


@pytest.mark.parametrize(
    ("first", "second", "before"), [(1, 2, True), (2, 1, False), (5, 5, False), (2**32 - 5, 3, True)]
)
def test_stamps_wrap_with_the_servers_clock(first: int, second: int, before: bool) -> None:
    assert is_before(first, second) is before


QUBES = ("work", "mail")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("copy"), st.sampled_from(QUBES)),
        st.tuples(st.just("offer"), st.sampled_from(QUBES)),
        st.tuples(st.just("fail"), st.sampled_from(QUBES)),
        st.tuples(st.just("focus"), st.sampled_from(QUBES)),
        st.tuples(st.just("paste"), st.sampled_from(QUBES)),
        st.tuples(st.just("allow"), st.just("")),
        st.tuples(st.just("deny"), st.just("")),
        st.tuples(st.just("wait"), st.just("")),
    ),
    max_size=25,
)


@given(STEPS)
def test_any_order_every_content_is_delivered_at_most_once_to_where_the_user_pasted(
    steps: list[tuple[str, str]],
) -> None:
    """MC-51, MC-53, MC-54, MC-55: all orders of events."""
    board: Board[str] = Board()
    now, judge = 0.0, None
    copies: dict[str, int] = {}
    serial = itertools.count()
    live: set[str] = set()
    delivered: list[str] = []
    for stamp, (step, qube) in enumerate(steps):
        now += 400.0 if step == "wait" else 0.1
        commands: list[BoardCommand] = []
        if step == "copy":
            copies[qube] = stamp
            commands = board.copy_started(qube, stamp, stamp, now)
        elif step == "offer" and qube in copies:
            content = f"{qube} {next(serial)}"
            live.add(content)
            commands = board.copy_offered(qube, copies[qube], content, 1, now)
        elif step == "fail" and qube in copies:
            commands = board.copy_failed(qube, copies[qube], "no")
        elif step == "focus":
            commands = board.focused(qube)
        elif step == "paste":
            commands = board.paste_asked(qube, stamp, stamp, now)
        elif step in ("allow", "deny") and judge is not None:
            commands = board.judged(judge.number, step == "allow", now)
        for command in commands:
            if isinstance(command, Judge):
                judge = command
                assert command.source != command.target
            elif isinstance(command, Drop):
                live.remove(command.content)
            elif isinstance(command, Deliver):
                assert step == "allow"
                assert judge is not None
                assert command.target == judge.target
                assert command.content.split()[0] == judge.source
                live.remove(command.content)
                delivered.append(command.content)
        assert len(live) == (board.holds is not None)
    assert len(delivered) == len(set(delivered))


@given(st.lists(st.sampled_from(["copy", "paste", "data", "deliver", "long"]), max_size=20))
def test_any_order_a_guest_gets_and_gives_text_only_once_for_each_key(steps: list[str]) -> None:
    """MC-51, MC-53, MC-54."""
    clipboard = QubeClipboard(LIMIT)
    keys = {"copy": 0, "paste": 0}
    got = {OfferCopy: 0, Send: 0}
    number = 0
    for step in steps:
        commands: list[Command] = []
        if step in keys:
            keys[step] += 1
            number += 1
            asked_by_key = clipboard.copy(7, number, 0.0) if step == "copy" else clipboard.paste(7, number, 0.0)
            assert len(asked_by_key) <= 2
            continue
        if step == "deliver":
            commands = clipboard.deliver(number, b"in", 0.1)
        else:
            commands = clipboard.received(b"x" * (LIMIT + 1 if step == "long" else 3), 0.1)
        for command in commands:
            got[type(command)] = got.get(type(command), 0) + 1
    assert got[OfferCopy] <= keys["copy"]
    assert got[Send] <= keys["paste"]
