"""A small fleet of motors whose bearings wear out, as their sensors would report it.

Two streams leave each machine. Vibration: short snapshots of a low-cost accelerometer, the way
run-to-failure rigs record them (Nectoux et al., "PRONOSTIA", IEEE PHM 2012: 0.1 s every 10 s, while
an overloaded bearing dies within hours). Temperature and current: slow readings of bearing,
surroundings and motor. All times are simulated seconds; whoever replays a fleet chooses how many
of them pass in one second of a viewer's time. Wear is known here and nowhere else, so every
message has a ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Samples: TypeAlias = NDArray[np.float32]

CONDITIONS = ("healthy", "worn", "faulty")
WORN_FROM, FAULTY_FROM = 0.15, 0.5

# ADXL345 data sheet: up to 3,200 readings a second, 4 mg a count, 290 ug/sqrt(Hz) over 1.6 kHz.
SAMPLE_RATE_HZ = 3200
WINDOW = 512
RESOLUTION_G = 0.004
SENSOR_NOISE_G = 0.012
SNAPSHOT_EVERY_S = 10.0

THERMAL_CHANNELS = ("bearing_c", "ambient_c", "current_a")
THERMAL_EVERY_S = 60.0

# A 1.1 kW induction motor with two pole pairs on 50 Hz, about 3 % slip at rated load.
SYNCHRONOUS_HZ = 25.0
RATED_SLIP = 0.03
MAGNETISING_A, TORQUE_A = 1.6, 2.1

# A 6205 deep-groove bearing, the one of the Case Western Reserve data: 9 balls of 7.94 mm.
BALLS, BALL_MM, PITCH_MM, CONTACT_RAD = 9, 7.94, 39.04, 0.0
BORE_M, RATED_FORCE_N = 0.025, 1200.0
FRICTION_COEFFICIENT = 0.0015  # SKF, "Rolling bearings", deep-groove ball bearings
FRICTION_GROWTH = 6.0
HOUSING_J_PER_K = 150.0  # a third of a kilogram of steel

IMPACT_G = 1.6
SHOCK_PROBABILITY = 0.12
STANDARD_GRAVITY = 9.80665
_TIME_S = np.arange(WINDOW) / SAMPLE_RATE_HZ


def outer_race_hz(shaft_hz: float) -> float:
    """Ball-pass frequency of the outer race (BPFO): how often a ball crosses a fixed spall.

    Randall and Antoni, "Rolling element bearing diagnostics: a tutorial", MSSP 25 (2011), eq. 1.
    """
    return BALLS * shaft_hz / 2 * (1 - BALL_MM / PITCH_MM * float(np.cos(CONTACT_RAD)))


def shaft_hz(load: float) -> float:
    """Turns a second of the shaft; slip grows with torque (`load` as a share of rated)."""
    return SYNCHRONOUS_HZ * (1 - RATED_SLIP * load)


def condition(wear: float) -> str:
    """The word for a wear between 0 (new) and 1 (end of life)."""
    return CONDITIONS[int(wear >= WORN_FROM) + int(wear >= FAULTY_FROM)]


@dataclass(frozen=True)
class Machine:
    """One motor with its bearing: what sets it apart from its neighbours.

    Args:
        name: As it appears in topics.
        life_s: Simulated seconds from new to end of life.
        load: Mean load as a share of rated; swings by `load_swing` every `load_period_s`.
        unbalance_mm_s: Peak velocity at shaft speed (ISO 20816-3: below 2.3 mm/s RMS is good).
        misalignment: Velocity at twice shaft speed as a share of the unbalance's.
        mesh_hz: Tooth-mesh frequency of the gear it drives, and its peak `mesh_g` at rated load.
        resonance_hz: Structural resonance that impacts ring, with its `damping` ratio.
        path_gain: What the way from bearing to sensor leaves of an impact.
        background_g: RMS of the broadband vibration of the process around it.
        housing_k_per_w: Thermal resistance from bearing to surroundings.
        ambient_c: Mean temperature of the surroundings.
    """

    name: str
    life_s: float
    load: float
    load_swing: float
    load_period_s: float
    unbalance_mm_s: float
    misalignment: float
    mesh_hz: float
    mesh_g: float
    resonance_hz: float
    damping: float
    path_gain: float
    background_g: float
    housing_k_per_w: float
    ambient_c: float

    def wear_at(self, at_s: float) -> float:
        """Wear in 0..1: exponential growth (Gebraeel et al., IIE Transactions 37, 2005)."""
        steepness = 3.0
        age = min(max(at_s / self.life_s, 0.0), 1.0)
        return float(np.expm1(steepness * age) / np.expm1(steepness))

    def load_at(self, at_s: float) -> float:
        """Load as a share of rated."""
        return self.load + self.load_swing * float(np.sin(2 * np.pi * at_s / self.load_period_s))

    def ambient_at(self, at_s: float) -> float:
        """Temperature of the hall in degrees Celsius: a slow swing about its mean."""
        return self.ambient_c + 2.0 * float(np.sin(2 * np.pi * at_s / 10_000))


def machine(name: str, life_s: float, rng: np.random.Generator) -> Machine:
    """Draw a machine as series production and mounting would scatter it."""
    return Machine(
        name=name,
        life_s=life_s,
        load=rng.uniform(0.75, 0.9),
        load_swing=rng.uniform(0.05, 0.12),
        load_period_s=rng.uniform(1500, 4000),
        unbalance_mm_s=rng.uniform(0.7, 6.0),
        misalignment=rng.uniform(0.1, 0.7),
        mesh_hz=rng.uniform(330, 620),
        mesh_g=rng.uniform(0.02, 0.25),
        resonance_hz=rng.uniform(900, 1250),
        damping=rng.uniform(0.035, 0.06),
        path_gain=rng.uniform(0.93, 1.07),
        background_g=rng.uniform(0.015, 0.045),
        housing_k_per_w=rng.uniform(3.6, 4.4),
        ambient_c=rng.uniform(17, 27),
    )


def fleet(count: int, *, horizon_s: float, seed: int = 7) -> tuple[Machine, ...]:
    """Machines of which the first wears out within the horizon and the last outlives it by far.

    Args:
        count: How many.
        horizon_s: Simulated seconds that will be shown.
        seed: Same seed, same fleet.
    """
    rng = np.random.default_rng(seed)
    lives = horizon_s * np.linspace(0.6, 2.4, count) if count > 1 else [0.8 * horizon_s]
    return tuple(
        machine(f"motor-{number}", float(life) * rng.uniform(0.95, 1.05), rng)
        for number, life in enumerate(lives, start=1)
    )


def vibration(m: Machine, wear: float, load: float, rng: np.random.Generator) -> Samples:
    """One snapshot of the accelerometer, in g.

    Sum of unbalance, misalignment, gear, the spall's impacts ringing the structure, knocks
    from elsewhere, and noise; rounded to what the sensor resolves.

    Args:
        m: The machine.
        wear: 0..1.
        load: Share of rated load.
        rng: Source of phases, slip and noise; advanced.

    Returns:
        (512,) float32, whole counts of 0.004 g.
    """
    speed = shaft_hz(load) * (1 + 0.002 * rng.standard_normal())
    signal = _rotation(m, speed, load, rng)
    impacts = _impact_times(speed, rng)
    spread = 0.1 + 0.25 * wear  # a spall's ragged edge: impacts grow and become less alike
    strength = IMPACT_G * wear * load * m.path_gain
    signal += _ring(m, impacts, strength * (1 + spread * rng.standard_normal(impacts.size)))
    if rng.random() < SHOCK_PROBABILITY:  # a fork-lift, a press next door
        signal += _ring(m, rng.uniform(0, _TIME_S[-1], 1), rng.uniform(0.2, 0.8, 1))
    noise = np.hypot(SENSOR_NOISE_G, m.background_g * (1 + 0.5 * wear))
    signal += noise * rng.standard_normal(WINDOW)
    return (np.rint(signal / RESOLUTION_G) * RESOLUTION_G).astype(np.float32)


def _rotation(
    m: Machine, speed: float, load: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Unbalance at one and misalignment at two times shaft speed (a = 2 pi f v), and the gear."""
    first, second, third = rng.uniform(0, 2 * np.pi, 3)
    per_mm_s = 2 * np.pi * speed * 1e-3 / STANDARD_GRAVITY
    once = per_mm_s * m.unbalance_mm_s
    twice = 2 * per_mm_s * m.unbalance_mm_s * m.misalignment * load
    turn = 2 * np.pi * speed * _TIME_S
    mesh = m.mesh_g * load * np.sin(2 * np.pi * m.mesh_hz * _TIME_S + third)
    return np.asarray(once * np.sin(turn + first) + twice * np.sin(2 * turn + second) + mesh)


def _impact_times(speed: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """When balls cross the spall, in seconds from the first sample.

    Cages slip, so intervals vary by 1 to 2 % and the error adds up (Randall and Antoni 2011, 2.2).
    Starts before the window, because earlier impacts still ring in it.
    """
    lead_s, slip = 0.03, 0.015
    period = 1 / outer_race_hz(speed)
    count = int((lead_s + _TIME_S[-1]) / period) + 2
    intervals = period * (1 + slip * rng.standard_normal(count))
    return rng.uniform(0, period) - lead_s + np.cumsum(intervals)


def _ring(
    m: Machine, at_s: NDArray[np.float64], strength_g: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Impulse responses of the damped structure (McFadden and Smith, JSV 96, 1984)."""
    omega = 2 * np.pi * m.resonance_hz
    lag = np.maximum(_TIME_S - at_s[:, None], 0.0)
    response = np.exp(-m.damping * omega * lag) * np.sin(omega * np.sqrt(1 - m.damping**2) * lag)
    return np.asarray(strength_g @ response)


def friction_w(load: float, wear: float) -> float:
    """Heat of the bearing in watts: M = mu F d / 2 (SKF), times the speed; mu grows with wear."""
    moment = 0.5 * FRICTION_COEFFICIENT * (1 + FRICTION_GROWTH * wear)
    return moment * RATED_FORCE_N * load * BORE_M * 2 * np.pi * shaft_hz(load)


def current_a(load: float) -> float:
    """Phase current of the motor: magnetising and torque part, a quarter turn apart."""
    return float(np.hypot(MAGNETISING_A, TORQUE_A * load))


@dataclass(frozen=True)
class VibrationSnapshot:
    """`samples_g`: (512,) float32. `wear` and `condition` are the truth behind it."""

    samples_g: Samples
    wear: float
    condition: str


@dataclass(frozen=True)
class ThermalReading:
    """One slow reading, as measured; `wear` and `condition` are the truth behind it."""

    bearing_c: float
    ambient_c: float
    current_a: float
    wear: float
    condition: str


class SensorNode:
    """The sensors of one machine. Ask with times that do not go back; same seed, same answers."""

    def __init__(self, m: Machine, *, seed: int) -> None:
        self.machine = m
        vibration_seed, thermal_seed = np.random.SeedSequence(seed).spawn(2)
        self._vibration_rng = np.random.default_rng(vibration_seed)
        self._thermal_rng = np.random.default_rng(thermal_seed)
        self._at_s = 0.0
        self._bearing_c = self._settled_c(0.0)

    def vibration(self, at_s: float) -> VibrationSnapshot:
        """The snapshot that starts at `at_s`; wear does not move within it."""
        wear, load = self.machine.wear_at(at_s), self.machine.load_at(at_s)
        samples = vibration(self.machine, wear, load, self._vibration_rng)
        return VibrationSnapshot(samples, wear, condition(wear))

    def thermal(self, at_s: float) -> ThermalReading:
        """The reading at `at_s`, after the housing has warmed or cooled since the last one."""
        time_constant_s = HOUSING_J_PER_K * self.machine.housing_k_per_w
        kept = float(np.exp(-max(at_s - self._at_s, 0.0) / time_constant_s))
        settled_c = self._settled_c(at_s)
        self._bearing_c = settled_c + (self._bearing_c - settled_c) * kept
        self._at_s = at_s
        wear = self.machine.wear_at(at_s)
        noise = self._thermal_rng.standard_normal(3)
        return ThermalReading(
            bearing_c=round(self._bearing_c + 0.3 * noise[0], 1),
            ambient_c=round(self.machine.ambient_at(at_s) + 0.2 * noise[1], 1),
            current_a=round(current_a(self.machine.load_at(at_s)) * (1 + 0.005 * noise[2]), 2),
            wear=wear,
            condition=condition(wear),
        )

    def _settled_c(self, at_s: float) -> float:
        heat_w = friction_w(self.machine.load_at(at_s), self.machine.wear_at(at_s))
        return self.machine.ambient_at(at_s) + heat_w * self.machine.housing_k_per_w
