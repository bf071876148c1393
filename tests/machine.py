"""A machine's sensors and its boot id, as files in a folder that a test can change."""

from __future__ import annotations

from pathlib import Path

_POLICY = "sys/devices/system/cpu/cpufreq/policy0"


class Machine:
    """A board that is cool, well supplied and not pressed.

    Args:
        root: The folder; made when absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._write("sys/class/thermal/thermal_zone0/type", "soc-thermal")
        self._write("sys/class/hwmon/hwmon0/name", "rpi_volt")
        self.heat(45.0)
        self.undervoltage(False)
        self.boot("first")

    def heat(self, degrees: float) -> None:
        self._write("sys/class/thermal/thermal_zone0/temp", str(int(1000 * degrees)))

    def undervoltage(self, low: bool) -> None:
        self._write("sys/class/hwmon/hwmon0/in0_lcrit_alarm", str(int(low)))

    def pressure(self, share: float) -> None:
        line = f"some avg10={100 * share:.2f} avg60=0.00 avg300=0.00 total=0"
        self._write("proc/pressure/memory", line)

    def clock(self, now_khz: int, most_khz: int) -> None:
        self._write(f"{_POLICY}/scaling_cur_freq", str(now_khz))
        self._write(f"{_POLICY}/scaling_max_freq", str(most_khz))
        self._write(f"{_POLICY}/cpuinfo_max_freq", str(most_khz))

    def boot(self, name: str) -> None:
        """Give the machine another boot id, as a restart does."""
        self._write("proc/sys/kernel/random/boot_id", name)

    def _write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever reads meanwhile sees the old or the new.
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(f"{text}\n")
        temporary.replace(path)
