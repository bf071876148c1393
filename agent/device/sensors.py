"""Heat, power, clocks, throttling, load: every reading that the kernel offers without a tool.

Numbers of zones and monitors change between boots; a sensor's name is its driver's and its label.
A value that is refused or absurd is left out, and its sensor stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

from agent.device.firmware import SINCE_BOOT, THROTTLES, UNDERVOLTAGE
from agent.device.machine import Machine
from agent.device.tree import Tree, number, short
from agent.documents.device import Sensor

MAX_SENSORS = 256
_MILLI = 1000
# A dead or disconnected chip reads all ones: -89.7 °C on an Edge TPU.
_COLDEST_C, _HOTTEST_C = -40.0, 200.0
_MAX_PLAIN = 10**12
_HWMON = "/sys/class/hwmon"
_THERMAL = "/sys/class/thermal"
_CPUFREQ = "/sys/devices/system/cpu/cpufreq"
_DEVFREQ = "/sys/class/devfreq"
_INA3221X = "/sys/bus/i2c/drivers/ina3221x"
_GET_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
# Load of a Jetson's GPU where devfreq does not show it, in thousandths.
_GPU_LOADS = (
    "/sys/devices/gpu.0/load",
    "/sys/devices/platform/gpu.0/load",
    "/sys/devices/platform/17000000.ga10b/load",
    "/sys/devices/platform/17000000.gpu/load",
    "/sys/devices/platform/bus@0/17000000.gpu/load",
)


def probe(tree: Tree, machine: Machine) -> tuple[Sensor, ...]:
    """Find all sensors and read each once."""
    sources: tuple[Callable[[Tree], Iterator[Sensor]], ...] = (
        _zones,
        _monitors,
        _apex,
        _old_jetson_power,
        _cpu_clocks,
        _device_clocks,
        _pressure,
    )
    found = list(islice((s for source in sources for s in source(tree)), MAX_SENSORS))
    # Asked last: only where nothing else tells of under-voltage is the last resort read.
    told = any(sensor.kind == "undervoltage" for sensor in found)
    return (*found, *_firmware(tree, machine, told))[:MAX_SENSORS]


def _zones(tree: Tree) -> Iterator[Sensor]:
    for name in tree.names(_THERMAL, r"thermal_zone\d{1,4}", most=64):
        path = f"{_THERMAL}/{name}/temp"
        yield _heat(tree, path, tree.line(f"{_THERMAL}/{name}/type") or name)


def _monitors(tree: Tree) -> Iterator[Sensor]:
    for monitor in tree.names(_HWMON, r"hwmon\d{1,4}", most=64):
        base = f"{_HWMON}/{monitor}"
        name = tree.line(f"{base}/name") or monitor
        for file in tree.names(base, r"temp\d{1,3}_input", most=32):
            label = tree.line(f"{base}/{file.replace('_input', '_label')}")
            yield _heat(tree, f"{base}/{file}", f"{name} {label}")
        for file in tree.names(base, r"curr\d{1,3}_input", most=32):
            yield from _channel(tree, base, name, file[len("curr") : -len("_input")])
        for file in tree.names(base, r"power\d{1,3}_input", most=32):
            path = f"{base}/{file}"
            label = tree.line(f"{base}/{file.replace('_input', '_label')}")
            yield Sensor("power", short(f"{name} {label}"), path, _scaled(tree, path, 1e6), "W")
        if name == "rpi_volt":
            path = f"{base}/in0_lcrit_alarm"
            yield Sensor("undervoltage", name, path, _scaled(tree, path, 1), "1")


def _channel(tree: Tree, base: str, name: str, index: str) -> Iterator[Sensor]:
    """Power of one channel of a monitor that measures voltage (mV) and current (mA)."""
    label = tree.line(f"{base}/in{index}_label")
    volt = tree.number(f"{base}/in{index}_input")
    current = tree.number(f"{base}/curr{index}_input")
    # A fourth channel of the INA3221 adds up shunt voltages: no current of anything.
    if volt is None or "sum of shunt" in label:
        return
    value = None if current is None else round(volt * current / 1e6, 3)
    if value is not None and abs(value) > _MAX_PLAIN:
        value = None
    yield Sensor("power", short(f"{name} {label}"), f"{base}/curr{index}_input", value, "W")


def _apex(tree: Tree) -> Iterator[Sensor]:
    for name in tree.names("/sys/class/apex", r"apex_\d{1,3}", most=16):
        yield _heat(tree, f"/sys/class/apex/{name}/temp", f"edgetpu {name}")


def _old_jetson_power(tree: Tree) -> Iterator[Sensor]:
    """Power rails in kernels of L4T 32, whose driver is another (mW)."""
    for chip in tree.names(_INA3221X, r"\d+-[0-9a-f]{4}", most=8):
        for device in tree.names(f"{_INA3221X}/{chip}", r"iio:device\d{1,3}", most=8):
            base = f"{_INA3221X}/{chip}/{device}"
            for file in tree.names(base, r"in_power\d_input", most=8):
                label = tree.line(f"{base}/rail_name_{file[len('in_power')]}")
                path = f"{base}/{file}"
                value = _scaled(tree, path, _MILLI)
                yield Sensor("power", short(f"ina3221 {label}"), path, value, "W")


def _cpu_clocks(tree: Tree) -> Iterator[Sensor]:
    for name in tree.names(_CPUFREQ, r"policy\d{1,4}", most=32):
        base = f"{_CPUFREQ}/{name}"
        path = f"{base}/scaling_cur_freq"
        yield Sensor("clock", f"cpu {name}", path, _scaled(tree, path, 1 / _MILLI), "Hz")
        allowed = tree.number(f"{base}/scaling_max_freq")
        possible = tree.number(f"{base}/cpuinfo_max_freq")
        if allowed is not None and possible is not None:
            capped = float(allowed < possible)
            yield Sensor("throttle", f"cpu {name} capped", f"{base}/scaling_max_freq", capped, "1")


def _device_clocks(tree: Tree) -> Iterator[Sensor]:
    gpu_told = False
    for name in tree.names(_DEVFREQ, most=32):
        base = f"{_DEVFREQ}/{name}"
        path = f"{base}/cur_freq"
        yield Sensor("clock", short(name), path, _scaled(tree, path, 1), "Hz")
        if any(mark in name for mark in ("gpu", "ga10b", "gv11b", "gp10b")):
            load = tree.number(f"{base}/device/load")
            if load is not None:
                gpu_told = True
                yield _load(f"{base}/device/load", name, load)
    for path in () if gpu_told else _GPU_LOADS:
        load = tree.number(path)
        if load is not None:
            yield _load(path, "gpu", load)
            return


def _pressure(tree: Tree) -> Iterator[Sensor]:
    """Share of the last ten seconds in which some task waited (the kernel's PSI)."""
    for resource in ("cpu", "memory", "io"):
        path = f"/proc/pressure/{resource}"
        found = re.search(r"^some avg10=(\d{1,3}\.\d{1,4})\b", tree.text(path), re.MULTILINE)
        if found:
            value = round(min(float(found[1]), 100.0) / 100, 4)
            yield Sensor("load", f"{resource} pressure", path, value, "1")


def _firmware(tree: Tree, machine: Machine, told: bool) -> Iterator[Sensor]:
    """The Raspberry Pi firmware's flags, now and since the machine booted."""
    word, source = machine.throttled, "firmware"
    if word is None and not told:
        # Reading this makes some kernels log a warning with a trace.
        word, source = number("0x" + tree.text(_GET_THROTTLED)[:16]), _GET_THROTTLED
    if word is None:
        return
    names = {UNDERVOLTAGE: "under-voltage", **THROTTLES}
    for bit, name in names.items():
        kind = "undervoltage" if bit == UNDERVOLTAGE else "throttle"
        for shift, when in ((0, ""), (SINCE_BOOT, " since boot")):
            value = float(word >> (bit + shift) & 1)
            yield Sensor(
                "undervoltage" if kind == "undervoltage" else "throttle",
                f"firmware {name}{when}",
                source,
                value,
                "1",
            )


def _heat(tree: Tree, path: str, name: str) -> Sensor:
    value = _scaled(tree, path, _MILLI)
    if value is not None and not _COLDEST_C <= value <= _HOTTEST_C:
        value = None
    return Sensor("temperature", short(name), path, value, "Cel")


def _load(path: str, name: str, per_mille: int) -> Sensor:
    value = per_mille / _MILLI if 0 <= per_mille <= _MILLI else None
    return Sensor("load", short(name), path, value, "1")


def _scaled(tree: Tree, path: str, divisor: float) -> float | None:
    value = tree.number(path)
    if value is None or abs(value) > _MAX_PLAIN:
        return None
    return round(value / divisor, 3)
