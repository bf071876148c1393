"""Which profile a device gets, and which known faults concern it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.control.profiles import Recognised, holds, recognise
from agent.control.versions import at_least, older, release
from agent.device.profiles import load
from agent.documents.device import Accelerator, Board, Cpu, Device, Jetson, Memory, System
from agent.documents.profile import Condition, Fault, Match, Preference, Profile

PACKAGED = load(None).every
BOARDS = {profile.name: profile for profile in PACKAGED if profile.kind == "board"}
BARE = Device(1)


def profile(name: str, **match: object) -> Profile:
    return Profile(1, name, name.title(), Match(**match))  # type: ignore[arg-type]


def typical(name: str) -> Device:
    device = BOARDS[name].typical
    assert device is not None
    return device


@pytest.mark.parametrize("name", [name for name, one in BOARDS.items() if one.typical])
def test_a_board_as_it_usually_comes_is_recognised_as_itself(name: str) -> None:
    assert recognise(PACKAGED, typical(name)).board is BOARDS[name]


def test_a_board_s_own_name_outweighs_its_chip_and_its_chip_its_architecture() -> None:
    device = Device(
        1,
        board=Board("Board X Rev 2", compatible=("maker,x", "chip,y"), soc="chip,y"),
        system=System(architecture="aarch64"),
    )
    ladder = [
        profile("by-name", compatible=("maker,x",)),
        profile("by-chip", compatible=("chip,y",)),
        profile("by-long-model", model=("Board X",)),
        profile("by-model", model=("Board",)),
        profile("by-soc", soc=("chip,y",)),
        profile("by-architecture", architecture=("aarch64",)),
    ]
    while ladder:
        found = recognise(ladder, device)
        assert found.board is ladder[0]
        assert all("more precisely" in one.why_not for one in found.considered)
        ladder.pop(0)


def test_a_profile_that_says_more_wins_over_one_that_says_the_same_and_less() -> None:
    device = Device(1, board=Board(compatible=("a,b",), module="m2"))
    general, special = (
        profile("a", compatible=("a,b",)),
        profile("z", compatible=("a,b",), module=("m2",)),
    )
    assert recognise([general, special], device).board is special


def test_of_two_that_fit_alike_the_user_s_own_counts() -> None:
    device = Device(1, board=Board(compatible=("a,b",)))
    ours, mine = profile("zz-ours", compatible=("a,b",)), profile("mine", compatible=("a,b",))
    assert recognise([ours, mine], device, own={"mine"}).board is mine
    assert recognise([ours, mine], device, own={"zz-ours"}).board is ours


def test_an_unknown_raspberry_pi_is_a_raspberry_pi() -> None:
    board = Board("Raspberry Pi 9 Model Z", compatible=("raspberrypi,9-model-z", "brcm,bcm9999"))
    device = Device(1, board=board, system=System(architecture="aarch64"))
    assert recognise(PACKAGED, device).name == "raspberry-pi"


def test_a_device_that_nothing_fits_has_no_board_and_every_profile_says_why() -> None:
    found = recognise(PACKAGED, Device(1, system=System(architecture="riscv64")))
    assert found.board is None
    assert found.name == ""
    assert {one.name for one in found.considered} == {one.name for one in PACKAGED}
    why_not = {one.name: one.why_not for one in found.considered}
    assert why_not["generic-x86-64"] == "the architecture would have to be x86_64; here: riscv64"
    assert "here: nothing" in why_not["raspberry-pi-5"]


def test_an_add_on_comes_on_top_of_any_board_and_its_way_of_running_comes_first() -> None:
    stick = Accelerator("edgetpu", "usb", ready=True)
    device = replace(typical("raspberry-pi-5"), accelerators=(stick,))
    found = recognise(PACKAGED, device)
    assert found.name == "raspberry-pi-5+coral-usb"
    assert [one.runtime for one in found.prefer] == ["edgetpu", "tflite", "onnx"]
    assert "edgetpu on usb" in found.why["coral-usb"]
    assert "raspberrypi,5-model-b" in found.why["raspberry-pi-5"]


def test_an_add_on_on_another_bus_is_another_add_on() -> None:
    chip = Accelerator("edgetpu", "pci", ready=True)
    device = replace(typical("raspberry-pi-5"), accelerators=(chip,))
    found = recognise(PACKAGED, device)
    assert [one.name for one in found.addons] == ["coral-pcie"]
    assert "pages-of-16-kib" in [fault.id for fault in found.faults]


def test_an_edge_tpu_on_the_pcie_of_a_compute_module_4_is_told_not_to_work() -> None:
    chip = Accelerator("edgetpu", "pci")
    found = recognise(PACKAGED, replace(typical("raspberry-pi-cm4"), accelerators=(chip,)))
    faults = {fault.id: fault for fault in found.faults}
    assert "USB port" in faults["edgetpu-pcie-on-cm4"].do


def test_what_an_add_on_and_its_board_both_prefer_is_measured_once() -> None:
    found = recognise(PACKAGED, typical("coral-dev-board"))
    assert [one.runtime for one in found.prefer].count("edgetpu") == 1


@pytest.mark.parametrize(
    ("when", "device", "concerns"),
    [
        (Condition(), BARE, True),
        (Condition(page_bytes_not=4096), BARE, False),
        (Condition(page_bytes_not=4096), Device(1, system=System(page_bytes=16384)), True),
        (Condition(page_bytes_not=4096), Device(1, system=System(page_bytes=4096)), False),
        (Condition(kernel_from="6.12"), Device(1, system=System(kernel="6.8.0-52")), False),
        (Condition(kernel_from="6.12"), Device(1, system=System(kernel="6.12.34+rpt")), True),
        (Condition(kernel_from="6.12"), BARE, False),
        (Condition(python_below="3.10"), Device(1, system=System(python="3.7.3")), True),
        (Condition(python_below="3.10"), Device(1, system=System(python="3.10.0")), False),
        (Condition(python_from="3.12"), Device(1, system=System(python="3.13.5")), True),
        (Condition(memory_not_limited=True), BARE, True),
        (Condition(memory_not_limited=True), Device(1, memory=Memory(can_be_limited=True)), False),
        (Condition(l4t=("36.",)), Device(1, jetson=Jetson(l4t="36.4.3")), True),
        (Condition(l4t=("36.",)), Device(1, jetson=Jetson(l4t="35.6.1")), False),
        (Condition(l4t=("36.",)), BARE, False),
        (Condition(storage=("sd",)), BARE, False),
        (Condition(runtime="onnx"), BARE, True),
        (Condition(not_ready=True), Device(1, accelerators=(Accelerator("x", "usb"),)), True),
        (
            Condition(not_ready=True),
            Device(1, accelerators=(Accelerator("x", "usb", ready=True),)),
            False,
        ),
        (
            Condition(accelerators=("x",), not_ready=True),
            Device(1, accelerators=(Accelerator("y", "usb"), Accelerator("x", "pci", ready=True))),
            False,
        ),
    ],
)
def test_a_condition_holds_where_all_of_it_does(
    when: Condition, device: Device, concerns: bool
) -> None:
    assert holds(when, device) is concerns


def test_every_known_fault_says_what_to_do_and_where_more_stands() -> None:
    for one in PACKAGED:
        for fault in one.faults:
            assert fault.do, f"{one.name}: {fault.id}"
            assert fault.link.startswith("https://"), f"{one.name}: {fault.id}"


def test_a_fault_of_board_and_add_on_is_told_once() -> None:
    faults = recognise(PACKAGED, typical("coral-dev-board-mini")).faults
    assert len(faults) == len({fault.id for fault in faults})


def test_versions_are_compared_as_numbers() -> None:
    assert release("6.12.34+rpt-rpi-2712") == (6, 12, 34)
    assert release("2.14.0") == release("2.14")
    assert release("unknown") == ()
    assert at_least("3.10.12", "3.10")
    assert not at_least("", "3.10")
    assert older("3.9.2", "3.10")
    assert not older("", "3.10")


# Whatever the facts.

WORDS = st.sampled_from(("a", "b", "ab", "abc"))
TUPLES = st.lists(WORDS, max_size=2).map(tuple)
DEVICES = st.builds(
    Device,
    st.just(1),
    board=st.builds(Board, model=WORDS, compatible=TUPLES, soc=WORDS, module=WORDS),
    system=st.builds(System, architecture=WORDS),
    cpu=st.builds(Cpu, model=WORDS, features=TUPLES),
    accelerators=st.lists(
        st.builds(Accelerator, WORDS, st.sampled_from(("usb", "pci")), ready=st.booleans()),
        max_size=2,
    ).map(tuple),
)
MATCHES = st.builds(
    Match,
    compatible=TUPLES,
    soc=TUPLES,
    model=TUPLES,
    model_contains=TUPLES,
    module=TUPLES,
    architecture=TUPLES,
    features=TUPLES,
    cpu_model=TUPLES,
    accelerators=TUPLES,
    bus=st.lists(st.sampled_from(("usb", "pci")), max_size=1).map(tuple),
)
PROFILES = st.lists(
    st.builds(
        Profile,
        st.just(1),
        st.uuids().map(lambda one: f"p-{one.hex[:8]}"),
        st.just("title"),
        MATCHES,
        st.sampled_from(("board", "addon")),
        prefer=st.just((Preference("tflite"),)),
        faults=st.just((Fault("f", "says", "do"),)),
    ),
    max_size=6,
    unique_by=lambda one: one.name,
)


@settings(max_examples=150, deadline=None)
@given(PROFILES, DEVICES, st.data())
def test_the_order_in_which_profiles_are_known_changes_nothing(
    profiles: list[Profile], device: Device, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(profiles))
    assert recognise(profiles, device) == recognise(shuffled, device)


@settings(max_examples=150, deadline=None)
@given(PROFILES, DEVICES)
def test_each_profile_is_either_matched_with_a_reason_or_considered_with_one(
    profiles: list[Profile], device: Device
) -> None:
    found: Recognised = recognise(profiles, device)
    matched = [one.name for one in found.matched]
    considered = [one.name for one in found.considered]
    assert sorted(matched + considered) == sorted(one.name for one in profiles)
    assert set(found.why) == set(matched)
    assert all(found.why.values())
    assert all(one.why_not for one in found.considered)
    assert all(one.kind == "addon" for one in found.addons)
    assert found.board is None or found.board.kind == "board"
    assert (found.board is None) <= all(
        "more precisely" not in one.why_not for one in found.considered
    )


@settings(max_examples=100, deadline=None)
@given(PROFILES, DEVICES)
def test_one_profile_less_never_makes_another_add_on(
    profiles: list[Profile], device: Device
) -> None:
    every = recognise(profiles, device)
    for left_out in profiles:
        fewer = recognise([one for one in profiles if one is not left_out], device)
        names = {one.name for one in fewer.addons}
        assert names == {one.name for one in every.addons} - {left_out.name}
