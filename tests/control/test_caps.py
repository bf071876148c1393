"""What "slowed down" means is decided once: for a device's condition and for times taken on it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.control.heat import Caps, Reading, Rules, Strain, reading
from agent.documents.device import Sensor

COOL = Reading("soc", 50.0)
CAP = "cpu policy0 capped"
FLAG = "firmware throttled"


def flag(name: str, value: float | None, kind: str = "throttle") -> Sensor:
    return Sensor(kind, name, "firmware", value, "1")  # type: ignore[arg-type]


def test_what_the_firmware_remembers_since_boot_disturbs_no_measurement() -> None:
    remembered = reading(
        (
            flag(FLAG, 0.0),
            flag(f"{FLAG} since boot", 1.0),
            flag("firmware under-voltage", 0.0, "undervoltage"),
            flag("firmware under-voltage since boot", 1.0, "undervoltage"),
        )
    )
    assert not Caps().after(remembered).impaired(remembered)
    assert Strain().after(remembered, 0.0, Rules()).worst == "well"


def test_what_is_so_now_disturbs_it() -> None:
    for now in (
        reading((flag(FLAG, 1.0),)),
        reading((flag("firmware under-voltage", 1.0, "undervoltage"),)),
    ):
        assert Caps().after(now).impaired(now)


def test_a_cap_that_is_a_setting_disturbs_nothing_until_it_comes_again() -> None:
    capped = replace(COOL, slowed=frozenset({CAP}))
    setting = Caps().after(capped)
    assert not setting.impaired(capped)
    lifted = setting.after(COOL)
    assert lifted.after(capped).slowing(capped) == {CAP}
    # A power mode brings its own.
    saving = replace(capped, power_mode="15W")
    assert not lifted.after(saving).impaired(saving)


def test_before_the_first_look_every_cap_counts() -> None:
    assert Caps().impaired(replace(COOL, slowed=frozenset({CAP})))


looks = st.lists(
    st.builds(
        Reading,
        hottest_c=st.just(50.0),
        slowed=st.frozensets(st.sampled_from([CAP, "cpu policy4 capped", FLAG])),
        undervoltage=st.none() | st.booleans(),
        power_mode=st.sampled_from(["", "MAXN", "15W"]),
    ),
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(looks)
def test_a_round_is_marked_exactly_where_the_condition_would_be_told(seen: list[Reading]) -> None:
    at_once = Rules(leave_s=0.0)
    strain, caps = Strain(), Caps()
    for now, each in enumerate(seen):
        strain, caps = strain.after(each, float(now), at_once), caps.after(each)
        told = strain.conditions & {"throttled", "undervoltage"}
        assert caps.impaired(each) is bool(told)
