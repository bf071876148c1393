"""Topic names and filters, by the rules of MQTT 5.0 section 4.7."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DocumentError
from agent.wire import topics


@pytest.mark.parametrize(
    ("topic_filter", "topic", "wildcards"),
    [
        ("a/b", "a/b", ()),
        ("a/b", "a/b/c", None),
        ("a/b", "A/b", None),
        ("+", "a", ("a",)),
        ("+", "a/b", None),
        ("+", "/a", None),
        ("/+", "/a", ("a",)),
        ("+/+", "/a", ("", "a")),
        ("a/+/c", "a/b/c", ("b",)),
        ("a/+/c", "a//c", ("",)),
        ("a/+", "a", None),
        ("a/+", "a/", ("",)),
        ("a/#", "a/b/c", ("b/c",)),
        ("a/#", "a", ("",)),
        ("a/#", "ab", None),
        ("a/+/#", "a/b", ("b", "")),
        ("a/+/#", "a/b/c/d", ("b", "c/d")),
        ("#", "a/b", ("a/b",)),
        # Section 4.7.2: a leading wildcard does not match topics that begin with $.
        ("#", "$SYS/broker", None),
        ("+/broker", "$SYS/broker", None),
        ("$SYS/#", "$SYS/broker", ("broker",)),
        ("a/+", "a/$b", ("$b",)),
        ("$share/group/a/+", "a/b", ("b",)),
        ("a.b/+", "axb/c", None),
        ("a/+", "a/new\nline", ("new\nline",)),
    ],
)
def test_a_filter_matches_as_the_specification_says(
    topic_filter: str, topic: str, wildcards: tuple[str, ...] | None
) -> None:
    assert topics.match(topic_filter, topic) == wildcards


@pytest.mark.parametrize("topic_filter", ["a", "a/+", "+/+/b", "#", "a/#", "/", "a//b"])
def test_a_good_filter_passes(topic_filter: str) -> None:
    topics.check_filter(topic_filter, name="input.topic")


@pytest.mark.parametrize(
    "topic_filter", ["a#", "a/#/b", "#/", "a+", "a/b+/c", "a/##", "a\x00b", "x" * 65536]
)
def test_a_bad_filter_is_refused_by_its_path(topic_filter: str) -> None:
    with pytest.raises(DocumentError, match=r"^slots\.s\.input\.topic: expected"):
        topics.check_filter(topic_filter, name="slots.s.input.topic")


def test_an_output_topic_is_filled_from_the_wildcards() -> None:
    wildcards = topics.match("plant/+/line/#", "plant/north/line/7/accel")
    assert wildcards == ("north", "7/accel")
    filled = topics.fill("p/{device}/{slot}/{1}/{2}", slot="s", device="d", wildcards=wildcards)
    assert filled == "p/d/s/north/7/accel"


def test_a_wildcard_value_with_braces_is_not_filled_again() -> None:
    filled = topics.fill("{1}/{2}", slot="s", device="d", wildcards=("{2}", "x"))
    assert filled == "{2}/x"


@pytest.mark.parametrize(
    ("template", "topic_filter"),
    [("p/{1}", "a/b"), ("p/{2}", "a/+"), ("p/{0}", "a/+"), ("p/{host}", "a/+"), ("p/+", "a/+")],
)
def test_an_output_topic_that_cannot_be_filled_is_refused(template: str, topic_filter: str) -> None:
    with pytest.raises(DocumentError, match=r"^output\.topic: expected"):
        topics.check_template(template, topic_filter, name="output.topic")


LEVEL = st.text(alphabet="ab${}.*\n", max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(LEVEL, min_size=1, max_size=5), st.data())
def test_replacing_levels_by_plus_still_matches_and_gives_them_back(
    levels: list[str], data: st.DataObject
) -> None:
    plus = data.draw(st.lists(st.booleans(), min_size=len(levels), max_size=len(levels)))
    if levels[0].startswith("$"):
        plus[0] = False
    topic_filter = "/".join(
        "+" if wild else level for wild, level in zip(plus, levels, strict=True)
    )
    expected = tuple(level for wild, level in zip(plus, levels, strict=True) if wild)
    assert topics.match(topic_filter, "/".join(levels)) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="a/+#$\x00", max_size=8))
def test_every_filter_that_passes_can_be_matched_and_templated(topic_filter: str) -> None:
    try:
        topics.check_filter(topic_filter, name="f")
    except DocumentError:
        return
    topics.match(topic_filter, "a/a")
    count = sum(1 for level in topic_filter.split("/") if level in ("+", "#"))
    topics.check_template("".join(f"{{{i}}}" for i in range(1, count + 1)), topic_filter, name="t")


def test_a_name_has_no_wildcard_and_is_not_empty() -> None:
    assert topics.is_name("a/b")
    assert not any(topics.is_name(bad) for bad in ("", "a/+", "#", "a\x00", "x" * 1025))


@pytest.mark.parametrize(
    "topic", ["a/" * 128, "/" * 250, "a\x01", "a\x85", "a\ufdd0", "a\uffff", "a\U0001fffe"]
)
def test_what_a_broker_ends_connections_for_is_no_name(topic: str) -> None:
    assert not topics.is_name(topic)


def test_a_name_may_have_many_levels_and_any_script() -> None:
    assert topics.is_name("a/" * 127 + "a")
    assert topics.is_name("Gerät/日本/\U0001f600/ \u2028")


def test_what_is_remembered_of_topics_stays_bounded() -> None:
    known: dict[str, int] = {}
    topics.remember(known, "long" * 100, 0)
    assert known == {}
    for number in range(topics.MAX_KEPT_TOPICS + 1):
        topics.remember(known, f"in/{number}", number)
    assert known == {f"in/{topics.MAX_KEPT_TOPICS}": topics.MAX_KEPT_TOPICS}
