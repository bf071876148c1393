"""A condition begins and ends once, whatever the readings do around its threshold; and what a slot
does then keeps to its policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.control.heat import (
    HINTS,
    WORST_FIRST,
    Easing,
    Pace,
    Reading,
    Rules,
    Strain,
    easing,
    in_words,
    lighter,
    reading,
    worst_of,
)
from agent.documents.choice import Choice, Tried, Way
from agent.documents.deployment import Policy
from agent.documents.device import Sensor
from agent.documents.telemetry import CONDITIONS, EVENTS

RULES = Rules(hot_c=80.0, enter_s=3.0, leave_s=30.0)
COOL = Reading("soc", 50.0)
CAP = "cpu policy0 capped"


def after(*looks: tuple[float, Reading], strain: Strain | None = None) -> Strain:
    strain = strain or Strain()
    for now, seen in looks:
        strain = strain.after(seen, now, RULES)
    return strain


def heat(degrees: float | None) -> Reading:
    return Reading("soc", degrees)


def test_a_device_is_well_until_something_says_otherwise() -> None:
    assert Strain().worst == "well"
    assert after((0, COOL)).worst == "well"
    assert after((0, Reading())).at_rest


def test_heat_counts_when_it_lasts_and_one_wrong_reading_does_not() -> None:
    assert after((0, COOL), (2, heat(120.0)), (4, COOL), (6, heat(120.0))).conditions == set()
    assert after((0, heat(85.0)), (2, heat(85.0))).conditions == set()
    assert after((0, heat(85.0)), (2, heat(85.0)), (4, heat(85.0))).worst == "hot"
    assert not after((0, heat(85.0))).at_rest


def test_warm_is_near_to_hot() -> None:
    assert after((0, heat(70.0)), (4, heat(70.0))).conditions == {"warm"}
    assert after((0, heat(80.0)), (4, heat(80.0))).conditions == {"warm", "hot"}
    assert after((0, heat(69.9)), (4, heat(69.9))).conditions == set()


def test_heat_ends_a_while_after_it_is_clearly_gone() -> None:
    hot = after((0, heat(81.0)), (4, heat(81.0)))
    # Just below where it began is not gone.
    assert after((100, heat(79.0)), (200, heat(75.0)), strain=hot).worst == "hot"
    gone = after((10, heat(74.0)), (33, heat(74.0)), strain=hot)
    assert gone.worst == "hot"
    assert after((34, heat(74.0)), strain=gone).worst == "warm"
    # A sensor that is gone tells of no heat.
    assert after((40, heat(None)), strain=hot).worst == "well"


def test_flags_count_at_once() -> None:
    assert after((0, replace(COOL, undervoltage=True))).worst == "undervoltage"
    assert after((0, replace(COOL, slowed=frozenset({"firmware throttled"})))).worst == "throttled"
    assert after((0, replace(COOL, pressure={"memory": 0.1, "cpu": 1.0}))).worst == "pressed"
    assert after((0, replace(COOL, pressure={"memory": 0.09, "cpu": 1.0}))).worst == "well"


def test_a_cap_that_was_there_from_the_beginning_is_a_setting() -> None:
    capped = replace(COOL, slowed=frozenset({CAP}))
    assert after((0, capped), (100, capped)).worst == "well"
    assert after((0, COOL), (10, capped)).worst == "throttled"
    assert after((0, capped), (10, COOL), (20, capped)).worst == "throttled"
    # A power mode brings its own.
    saving = replace(capped, power_mode="15W")
    assert after((0, replace(COOL, power_mode="MAXN")), (10, saving), (20, saving)).worst == "well"


def test_the_worst_condition_names_them_all() -> None:
    assert worst_of(()) == "well"
    assert worst_of(("warm", "pressed", "hot", "undervoltage", "throttled")) == "undervoltage"
    assert tuple(CONDITIONS)[::-1] == (*WORST_FIRST, "well")


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_is_told_in_words_and_as_an_event(condition: str) -> None:
    assert in_words(condition, heat(81.5), RULES)
    assert f"device_{condition}" in EVENTS
    assert set(HINTS) <= set(CONDITIONS)


def durations(least_s: float, most_s: float) -> st.SearchStrategy[float]:
    """Seconds in 64ths, whose sums and differences are exact: with any others a moment and 30 s
    later may be a little less than 30 s apart, and the boundary cannot be tried."""
    return st.integers(int(64 * least_s), int(64 * most_s)).map(lambda parts: parts / 64)


steps = st.lists(
    st.tuples(
        durations(0.5, 20.0),
        st.builds(
            Reading,
            hottest=st.just("soc"),
            hottest_c=st.none() | st.floats(60.0, 90.0),
            slowed=st.sampled_from([frozenset(), frozenset({CAP}), frozenset({"firmware"})]),
            undervoltage=st.none() | st.booleans(),
            pressure=st.fixed_dictionaries({"memory": st.floats(0.0, 0.3)}),
        ),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_no_condition_flaps_whatever_is_read(looks: list[tuple[float, Reading]]) -> None:
    strain, now = Strain(), 0.0
    began: dict[str, float] = {}
    for pause, seen in looks:
        now += pause
        before, strain = strain.conditions, strain.after(seen, now, RULES)
        for name in strain.conditions - before:
            began[name] = now
        for name in before - strain.conditions:
            assert now - began[name] >= RULES.leave_s
        assert strain.worst == worst_of(strain.conditions)


@settings(max_examples=60, deadline=None)
@given(steps, st.just(RULES.leave_s) | durations(RULES.leave_s, 100.0))
def test_all_is_well_again_once_all_has_been_well_for_a_while(
    looks: list[tuple[float, Reading]], pause: float
) -> None:
    strain, now = Strain(), 0.0
    for step, seen in looks:
        now += step
        strain = strain.after(seen, now, RULES)
    strain = strain.after(COOL, now + pause, RULES)
    assert strain.worst == "well"
    assert strain.at_rest


# What is read.


def test_a_reading_sums_up_the_sensors() -> None:
    sensors = (
        Sensor("temperature", "soc", value=61.0, unit="Cel"),
        Sensor("temperature", "nvme", value=44.0, unit="Cel"),
        Sensor("temperature", "gpu", unit="Cel"),
        Sensor("throttle", CAP, value=1.0, unit="1"),
        Sensor("throttle", "firmware throttled since boot", value=1.0, unit="1"),
        Sensor("undervoltage", "firmware under-voltage since boot", value=1.0, unit="1"),
        Sensor("undervoltage", "rpi_volt", value=0.0, unit="1"),
        Sensor("clock", "cpu policy0", value=1.5e9, unit="Hz"),
        Sensor("clock", "17000000.gpu", value=9e9, unit="Hz"),
        Sensor("load", "memory pressure", value=0.25, unit="1"),
        Sensor("load", "17000000.gpu", value=0.5, unit="1"),
        Sensor("power", "ina3221 VDD_IN", value=6.5, unit="W"),
        Sensor("power", "ina3221 VDD_SOC", value=1.5, unit="W"),
    )
    assert reading(sensors, speed_limit_hz=2.4e9, power_mode="MAXN") == Reading(
        hottest="soc",
        hottest_c=61.0,
        slowed=frozenset({CAP}),
        tells_slowed=True,
        undervoltage=False,
        pressure={"memory": 0.25},
        speed_hz=1.5e9,
        speed_limit_hz=2.4e9,
        power_w=6.5,
        power_mode="MAXN",
    )
    assert reading(()) == Reading()


# What a slot does.


def test_without_a_policy_a_slot_serves_as_always() -> None:
    assert easing(Policy(), CONDITIONS) is None


def test_a_policy_acts_in_its_conditions_and_in_no_others() -> None:
    policy = Policy("reduce_rate", on=("hot", "pressed"), rate_per_s=5.0)
    assert easing(policy, ()) is None
    assert easing(policy, ("warm", "throttled")) is None
    found = easing(policy, ("warm", "hot", "undervoltage"))
    assert found == Easing("reduce_rate", rate_per_s=5.0)
    assert found is not None
    assert found.because == "hot"
    # Another reason alone changes nothing.
    assert found == easing(policy, ("pressed",))


def test_each_action_has_its_own_numbers_and_words() -> None:
    says = {
        action: str(easing(Policy(action, rate_per_s=2.5, one_in=4), ("hot",)))
        for action in ("reduce_rate", "skip", "lighter_variant")
    }
    assert "2.5 messages" in says["reduce_rate"]
    assert "one message in 4" in says["skip"]
    assert "CPU" in says["lighter_variant"]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 50),
    st.lists(st.floats(0.0, 0.3), min_size=1, max_size=200),
)
def test_never_more_than_so_many_go_in_a_second(rate: int, gaps: list[float]) -> None:
    pace, now, went = Pace(float(rate)), 0.0, []
    for gap in gaps:
        now += gap
        if pace.wait_s(now) == 0:
            pace.went(now)
            went.append(now)
    for first, last in zip(went, went[rate:], strict=False):
        assert last - first >= 1 - 1e-9


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 1000.0), st.floats(0.0, 1e6))
def test_whoever_waits_as_long_as_told_may_go(rate: float, now: float) -> None:
    pace = Pace(rate)
    pace.went(now)
    assert 0 < pace.wait_s(now) <= 1 / rate * (1 + 1e-6) + 1e-9
    assert pace.wait_s(now + 1 / rate) == 0
    assert pace.room == max(1, int(rate))


def tried(name: str, ms: float, cpu_ms: float | None, excluded: str = "") -> Tried:
    return Tried(Way(name, "onnx"), excluded=excluded, median_ms=ms, cpu_ms=cpu_ms)


def test_the_lighter_way_is_the_best_that_takes_clearly_less_cpu_time() -> None:
    best = tried("fp32", 1.0, 2.0)
    others = (
        tried("alike", 1.1, 1.9),
        tried("broken", 1.2, 0.1, excluded="failed its self-test"),
        tried("unknown", 1.2, None),
        tried("int8", 1.5, 1.0),
        tried("tiny", 2.0, 0.5),
    )
    assert lighter(Choice(best.way, (best, *others))) == Way("int8", "onnx")
    assert lighter(Choice(best.way, (best, *others[:3]))) is None
    assert lighter(Choice(best.way)) is None
