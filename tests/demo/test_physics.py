"""The machines behave as their data sheets and the cited papers say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.demo import features, physics
from agent.demo.physics import Machine, SensorNode


@pytest.fixture
def worn_out() -> Machine:
    return physics.fleet(1, horizon_s=7200)[0]


def test_a_6205_bearing_has_the_published_outer_race_frequency() -> None:
    assert physics.outer_race_hz(1.0) == pytest.approx(3.5848, abs=2e-4)


def test_a_snapshot_is_whole_counts_of_the_sensor(worn_out: Machine) -> None:
    samples = physics.vibration(worn_out, 0.7, 0.8, np.random.default_rng(1))
    counts = samples / physics.RESOLUTION_G
    assert samples.shape == (512,)
    assert samples.dtype == np.float32
    assert np.allclose(counts, np.rint(counts), atol=1e-3)
    assert np.ptp(samples) > 20 * physics.RESOLUTION_G


def test_a_spall_shows_at_the_outer_race_frequency_and_a_new_bearing_does_not(
    worn_out: Machine,
) -> None:
    expected_hz = physics.outer_race_hz(physics.shaft_hz(0.8))
    assert _envelope_peak_hz(worn_out, 0.9) == pytest.approx(expected_hz, abs=6)
    assert _envelope_rise(worn_out, 0.9) > 10 * _envelope_rise(worn_out, 0.0)


def _envelope(m: Machine, wear: float) -> features.Floats:
    rng = np.random.default_rng(2)
    windows = np.array([physics.vibration(m, wear, 0.8, rng) for _ in range(40)])
    spectrum = features.envelope_spectrum(windows)[:, features.BANDS :]
    return np.asarray(np.exp(np.median(spectrum, axis=0)))


def _envelope_peak_hz(m: Machine, wear: float) -> float:
    above_shaft_harmonics = features.ENVELOPE_HZ > 60
    spectrum = np.where(above_shaft_harmonics, _envelope(m, wear), 0)
    return float(features.ENVELOPE_HZ[spectrum.argmax()])


def _envelope_rise(m: Machine, wear: float) -> float:
    spectrum = _envelope(m, wear)
    near = np.abs(features.ENVELOPE_HZ - 87) < 8
    return float(spectrum[near].max())


def test_same_seed_same_stream_whatever_the_other_stream_is_asked(worn_out: Machine) -> None:
    alone, mixed = SensorNode(worn_out, seed=3), SensorNode(worn_out, seed=3)
    for at_s in np.arange(0, 600, 60.0):
        mixed.thermal(at_s)
        assert np.array_equal(
            alone.vibration(at_s).samples_g,
            mixed.vibration(at_s).samples_g,
        )


def test_the_fleet_is_the_same_for_the_same_seed_and_differs_for_another() -> None:
    assert physics.fleet(4, horizon_s=3600, seed=1) == physics.fleet(4, horizon_s=3600, seed=1)
    assert physics.fleet(4, horizon_s=3600, seed=1) != physics.fleet(4, horizon_s=3600, seed=2)


@pytest.mark.parametrize("horizon_s", [1800.0, 3600.0, 9000.0])
def test_a_viewer_sees_every_condition_and_one_machine_that_never_fails(horizon_s: float) -> None:
    fleet = physics.fleet(4, horizon_s=horizon_s)
    seen = [
        {physics.condition(m.wear_at(at_s)) for at_s in np.linspace(0, horizon_s, 200)}
        for m in fleet
    ]
    assert seen[0] == set(physics.CONDITIONS)
    assert "faulty" not in seen[-1]


@given(st.lists(st.floats(0, 1e5), min_size=2, max_size=8))
@settings(max_examples=50, deadline=None)
def test_wear_never_heals_and_stays_between_new_and_dead(times: list[float]) -> None:
    wear = [physics.fleet(1, horizon_s=7200)[0].wear_at(at_s) for at_s in sorted(times)]
    assert wear == sorted(wear)
    assert 0 <= wear[0] <= wear[-1] <= 1


def test_wear_accelerates(worn_out: Machine) -> None:
    quarter, half, whole = (worn_out.wear_at(worn_out.life_s * part) for part in (0.25, 0.5, 1.0))
    assert half - quarter > quarter
    assert whole - half > 3 * half


def test_wear_heats_the_bearing_and_leaves_the_current_alone(worn_out: Machine) -> None:
    node = SensorNode(worn_out, seed=4)
    run = [node.thermal(at_s) for at_s in np.arange(0, worn_out.life_s, 60.0)]
    young, old = run[5], run[-1]
    assert young.condition == "healthy"
    assert old.condition == "faulty"
    assert old.bearing_c - old.ambient_c > 3 * (young.bearing_c - young.ambient_c)
    currents = [reading.current_a for reading in run]
    assert min(currents) > 1.9
    assert max(currents) < 2.7


def test_the_housing_follows_its_heat_with_its_time_constant(worn_out: Machine) -> None:
    node = SensorNode(worn_out, seed=5)
    start_c = node.thermal(0.0).bearing_c
    jump_s = worn_out.life_s
    soon = node.thermal(1.0).bearing_c
    late = node.thermal(jump_s).bearing_c
    assert abs(soon - start_c) < 2
    assert late > start_c + 30
