"""Detection on trees of files rebuilt from public facts."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.device.recording import open_root
from agent.documents.codec import decode, encode
from agent.documents.device import MAX_DEVICE_BYTES, Device
from tests.device import trees

READY, NOT = True, False

# Tree → what a person who knows the board would say of it: (chip, architecture of user space,
# kinds of cores, storage, accelerators and whether they are ready).
KNOWN: dict[str, tuple[str, str, tuple[str, ...], str, dict[str, bool]]] = {
    "pi-zero-2-w": ("brcm,bcm2837", "aarch64", ("cortex-a53",), "sd", {}),
    "pi-3b-32bit": ("brcm,bcm2837", "armv7l", ("cortex-a53",), "sd", {}),
    "pi-3b-plus": ("brcm,bcm2837", "aarch64", ("cortex-a53",), "sd", {}),
    "pi-4b": ("brcm,bcm2711", "aarch64", ("cortex-a72",), "sd", {}),
    "pi-400": ("brcm,bcm2711", "aarch64", ("cortex-a72",), "sd", {}),
    "pi-cm4": ("brcm,bcm2711", "aarch64", ("cortex-a72",), "emmc", {}),
    "pi-5": ("brcm,bcm2712", "aarch64", ("cortex-a76",), "sd", {}),
    "pi-cm5": ("brcm,bcm2712", "aarch64", ("cortex-a76",), "emmc", {}),
    "pi-5-coral-pcie": ("brcm,bcm2712", "aarch64", ("cortex-a76",), "sd", {"edgetpu": NOT}),
    "pi-5-hailo": ("brcm,bcm2712", "aarch64", ("cortex-a76",), "sd", {"hailo": READY}),
    "pi-4b-in-docker": ("brcm,bcm2711", "aarch64", ("cortex-a72",), "unknown", {}),
    "coral-dev-board": ("fsl,imx8mq", "aarch64", ("cortex-a53",), "emmc", {"edgetpu": READY}),
    "coral-dev-board-mini": (
        *("mediatek,mt8167", "aarch64", ("cortex-a35",), "emmc"),
        {"edgetpu": READY},
    ),
    "pc-coral-usb-fresh": ("", "x86_64", (), "ssd", {"edgetpu": READY}),
    "pc-coral-usb-used": ("", "x86_64", (), "ssd", {"edgetpu": READY}),
    "pc-coral-usb-forbidden": ("", "x86_64", (), "ssd", {"edgetpu": NOT}),
    "pc-coral-pcie-without-driver": ("", "x86_64", (), "nvme", {"edgetpu": NOT}),
    "pc-nvidia": ("", "x86_64", (), "nvme", {"cuda": READY}),
    "jetson-nano": ("nvidia,tegra210", "aarch64", ("cortex-a57",), "sd", {"cuda": READY}),
    "jetson-tx2": (
        *("nvidia,tegra186", "aarch64", ("cortex-a57", "denver2"), "emmc"),
        {"cuda": READY},
    ),
    "jetson-xavier-nx": ("nvidia,tegra194", "aarch64", ("carmel",), "sd", {"cuda": READY}),
    "jetson-agx-xavier": ("nvidia,tegra194", "aarch64", ("carmel",), "emmc", {"cuda": READY}),
    "jetson-orin-nano": ("nvidia,tegra234", "aarch64", ("cortex-a78ae",), "nvme", {"cuda": READY}),
    "jetson-agx-orin": ("nvidia,tegra234", "aarch64", ("cortex-a78ae",), "emmc", {"cuda": READY}),
    "jetson-agx-thor": ("nvidia,tegra264", "aarch64", ("neoverse-v3ae",), "nvme", {"cuda": READY}),
    "rk3566": ("rockchip,rk3566", "aarch64", ("cortex-a55",), "emmc", {"rknpu": NOT}),
    "rk3568": ("rockchip,rk3568", "aarch64", ("cortex-a55",), "emmc", {"rknpu": READY}),
    "rk3576": (
        *("rockchip,rk3576", "aarch64", ("cortex-a53", "cortex-a72"), "emmc"),
        {"rknpu": READY},
    ),
    "rk3588": (
        *("rockchip,rk3588", "aarch64", ("cortex-a55", "cortex-a76"), "nvme"),
        {"rknpu": READY},
    ),
    "rk3588-mainline": (
        *("rockchip,rk3588", "aarch64", ("cortex-a55", "cortex-a76"), "nvme"),
        {"rknpu": READY},
    ),
    "imx8mp": ("fsl,imx8mp", "aarch64", ("cortex-a53",), "emmc", {"vsi_npu": READY}),
    "imx93": ("fsl,imx93", "aarch64", ("cortex-a55",), "emmc", {"ethosu": READY}),
    "intel-n100": ("", "x86_64", (), "nvme", {"intel_gpu": READY}),
    "intel-core-ultra": ("", "x86_64", (), "nvme", {"intel_gpu": READY, "intel_npu": READY}),
    "intel-core-ultra-old-kernel": ("", "x86_64", (), "nvme", {"intel_npu": NOT}),
    "generic-x86-64": ("", "x86_64", (), "ssd", {}),
    "generic-aarch64": ("acme,soc-1", "aarch64", ("cortex-a53",), "emmc", {}),
    "generic-armv7": ("ti,am33xx", "armv7l", ("cortex-a8",), "emmc", {}),
    "container-cgroup2": ("", "x86_64", (), "unknown", {}),
    "container-cgroup1": ("", "x86_64", (), "unknown", {}),
    "nothing": ("", "", (), "unknown", {}),
}


@pytest.fixture
def found(request: pytest.FixtureRequest, tmp_path: Path) -> Device:
    """The device of the tree that the test names."""
    return trees.device_of(request.param, tmp_path / "tree")


def on(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("found", [name], indirect=True, ids=[name])


def test_every_tree_is_known() -> None:
    assert set(trees.NAMES) == set(KNOWN)
    assert all("rebuilt from public facts" in trees.read(name)["about"] for name in trees.NAMES)


@pytest.mark.parametrize("found", trees.NAMES, indirect=True)
def test_a_board_is_told_by_its_files(found: Device, request: pytest.FixtureRequest) -> None:
    chip, architecture, cores, storage, accelerators = KNOWN[request.node.callspec.params["found"]]
    assert found.board.soc == chip
    assert found.system.architecture == architecture
    assert found.cpu.cores == cores
    assert found.storage.kind == storage
    assert {one.kind: one.ready for one in found.accelerators} == accelerators
    assert all(one.ready or one.why for one in found.accelerators)


@pytest.mark.parametrize("found", trees.NAMES, indirect=True)
def test_what_is_found_is_a_document_that_can_be_read_again(found: Device) -> None:
    again = decode(encode(found), Device, name="device", max_bytes=MAX_DEVICE_BYTES)
    assert again.value == found
    assert again.unknown_fields == 0


@on("pi-3b-32bit")
def test_a_32_bit_system_on_a_64_bit_kernel_counts_as_32_bit(found: Device) -> None:
    assert (found.system.architecture, found.system.kernel_architecture) == ("armv7l", "aarch64")
    assert found.cpu.features == ("asimd",)


@on("pi-4b")
def test_a_memory_limit_is_not_claimed_where_the_kernel_cannot_hold_it(found: Device) -> None:
    assert not found.memory.can_be_limited
    assert found.memory.limit_bytes is None


@on("pi-4b-in-docker")
def test_a_pi_is_told_without_a_device_tree(found: Device) -> None:
    assert found.board.compatible == ("raspberrypi,4-model-b", "brcm,bcm2711")
    assert found.board.model.startswith("Raspberry Pi 4 Model B")
    assert found.system.container == "docker"
    assert found.memory.limit_bytes == 512 * 1024**2
    assert found.cpu.usable == 1.5


@on("pi-3b-plus")
def test_the_firmwares_word_on_power_is_told_flag_by_flag(found: Device) -> None:
    told = {s.name: s.value for s in found.sensors if s.name.startswith("firmware")}
    assert told["firmware under-voltage"] == told["firmware throttled"] == 1
    assert told["firmware under-voltage since boot"] == 1
    assert told["firmware ARM clock capped"] == told["firmware soft temperature limit"] == 0
    assert any(s.name == "cpu policy0 capped" and s.value == 1 for s in found.sensors)


@on("pi-5-coral-pcie")
def test_an_edge_tpu_under_large_pages_is_not_ready_and_says_the_cure(found: Device) -> None:
    (tpu,) = found.accelerators
    assert "kernel8.img" in tpu.why
    assert tpu.node == "/dev/apex_0"
    heat = next(s for s in found.sensors if s.name.startswith("edgetpu"))
    assert heat.value is None, "a disconnected chip's -89.7 °C is no temperature"


def test_an_edge_tpu_in_a_usb_port_is_the_same_before_and_after_its_firmware(
    tmp_path: Path,
) -> None:
    fresh = trees.device_of("pc-coral-usb-fresh", tmp_path / "fresh")
    used = trees.device_of("pc-coral-usb-used", tmp_path / "used")
    assert fresh.accelerators == used.accelerators
    assert fresh.accelerators[0].node == ""


@on("pc-coral-usb-forbidden")
def test_an_edge_tpu_that_we_may_not_use_says_which_group(found: Device) -> None:
    assert "plugdev" in found.accelerators[0].why
    assert found.refused == ("/dev/bus/usb/002/007: Permission denied",)


@on("coral-dev-board-mini")
def test_an_edge_tpu_at_a_slow_port_is_ready_and_says_so(found: Device) -> None:
    assert found.accelerators[0].ready
    assert "USB 2" in found.accelerators[0].why


@on("pc-coral-pcie-without-driver")
def test_an_edge_tpu_without_its_kernel_module_says_what_to_install(found: Device) -> None:
    assert "gasket-dkms" in found.accelerators[0].why


@pytest.mark.parametrize(
    ("name", "family", "module", "l4t", "jetpack", "mode"),
    [
        ("jetson-nano", "nano", "p3448", "32.7.1", "4.6.1", "MAXN"),
        ("jetson-tx2", "tx2", "p3310", "32.7.6", "4.6.6", "MAXP_CORE_ARM"),
        ("jetson-xavier-nx", "xavier", "p3668", "35.5.0", "5.1.3", "MODE_20W_6CORE"),
        ("jetson-agx-xavier", "xavier", "p2888", "35.6.0", "5.1.4", "MAXN"),
        ("jetson-orin-nano", "orin", "p3767", "36.4.3", "6.2", "15W"),
        ("jetson-agx-orin", "orin", "p3701", "36.4.0", "6.1", "MAXN"),
        ("jetson-agx-thor", "thor", "p3834", "38.2.0", "7.0", "MAXN"),
    ],
)
def test_a_jetson_is_told_with_its_module_and_its_jetpack(
    tmp_path: Path, name: str, family: str, module: str, l4t: str, jetpack: str, mode: str
) -> None:
    device = trees.device_of(name, tmp_path / "tree")
    jetson = device.jetson
    assert jetson is not None
    assert device.board.module == module
    told = (jetson.family, jetson.l4t, jetson.jetpack, jetson.power_mode)
    assert told == (family, l4t, jetpack, mode)


def test_an_l4t_that_nobody_knows_has_no_jetpack(tmp_path: Path) -> None:
    tree = trees.read("jetson-agx-orin")
    tree["files"]["/etc/nv_tegra_release"] = "# R36 (release), REVISION: 9.9, GCID: 1\n"
    trees.build_from(tree, tmp_path)
    jetson = trees.detected(open_root(tmp_path)).jetson
    assert jetson is not None
    assert (jetson.l4t, jetson.jetpack) == ("36.9.9", "")


@on("jetson-orin-nano")
def test_a_sensor_that_refuses_keeps_its_place_and_the_others(found: Device) -> None:
    heat = {s.name: s.value for s in found.sensors if s.kind == "temperature"}
    assert heat == {"cpu-thermal": 48.531, "gpu-thermal": None}
    assert any("thermal_zone1/temp" in line for line in found.refused)
    power = [s for s in found.sensors if s.kind == "power"]
    assert [(s.name, s.value) for s in power] == [("ina3221 VDD_IN", 5.04)]


@on("jetson-nano")
def test_an_old_jetsons_power_and_load_are_read(found: Device) -> None:
    assert any(s.name == "ina3221 POM_5V_IN" and s.value == 2.514 for s in found.sensors)
    assert any(s.kind == "load" and s.value == 0.31 for s in found.sensors)


@on("rk3588")
def test_a_board_with_two_kinds_of_cores_has_the_features_of_both(found: Device) -> None:
    assert "asimddp" in found.cpu.features
    assert found.cpu.count == 8
    assert found.accelerators[0].driver_version == "0.9.8"


@on("rk3566")
def test_an_npu_without_its_library_says_which(found: Device) -> None:
    assert "librknnrt.so" in found.accelerators[0].why


@on("intel-n100")
def test_firmware_that_nobody_filled_in_gives_way_to_the_boards_name(found: Device) -> None:
    assert (found.board.vendor, found.board.model) == ("", "AK1PLUS")
    assert "avx_vnni" in found.cpu.features


@on("container-cgroup2")
def test_the_least_limit_of_all_levels_holds(found: Device) -> None:
    assert found.memory.limit_bytes == 768 * 1024**2
    assert found.cpu.usable == 2.0
    assert found.system.container == "kubernetes"


@on("container-cgroup1")
def test_limits_of_the_first_cgroups_hold(found: Device) -> None:
    assert found.memory.limit_bytes == 256 * 1024**2
    assert found.memory.can_be_limited
    assert found.cpu.usable == 0.5


@on("jetson-agx-xavier")
def test_no_limit_of_the_first_cgroups_is_none(found: Device) -> None:
    assert found.memory.limit_bytes is None
    assert found.cpu.usable == 8.0


@on("pi-cm4")
def test_an_emmc_tells_of_its_wear(found: Device) -> None:
    assert found.storage.life_used_percent == 20
    assert found.storage.wear == ""
    assert found.storage.written_bytes == 2_000_000 * 512


@on("nothing")
def test_a_root_that_holds_nothing_is_a_device_of_which_nothing_is_known(found: Device) -> None:
    assert found == Device(schema=1)
