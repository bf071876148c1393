"""What every runtime promises: one suite, run on each; a new one joins by a line in `RUNTIMES`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from edgeward_steps.runtime import StepsRuntime

from agent.documents import codec
from agent.documents.choice import CPU_PROVIDERS
from agent.documents.device import RuntimeFacts
from agent.errors import BadInput, ModelRejected, RuntimeUnavailable
from agent.runtimes import registry
from agent.runtimes.api import Runtime, Session, Wanted
from tests.delegate import models as compiled
from tests.runtimes import models


class Kit(NamedTuple):
    """A runtime with models that it can load, and one that it cannot."""

    name: str
    # The format of all of them.
    format: str
    # y = relu(x), of this shape; -1: free. Where every shape is fixed, none is.
    relu: Callable[[tuple[int, ...]], bytes]
    # a, b → sum, difference, all (1, 4).
    sum_and_difference: Callable[[], bytes]
    # With an operator called Frobnicate.
    unknown_operator: Callable[[], bytes]
    # Of a package that is not installed here.
    make: Callable[[], Runtime] | None = None
    # Without this library there is nothing to run.
    needs: str = ""
    # How many threads a session has that only wait while another computes.
    waiting: int = 0
    # A fixture that gives it a device.
    device: str = ""
    # Its models have no free dimensions, so what is promised of these is not promised of it.
    fixed: bool = False


def _onnx(name: str, **more: Any) -> Kit:
    return Kit(
        name,
        "onnx",
        lambda shape: models.relu_onnx([f"d{n}" if n == -1 else n for n in shape]),
        models.sum_and_difference_onnx,
        lambda: models.unknown_operator_onnx("Frobnicate"),
        **more,
    )


RUNTIMES = (
    _onnx("onnx"),
    Kit(
        "tflite",
        "tflite",
        models.relu_tflite,
        models.sum_and_difference_tflite,
        lambda: models.custom_operator_tflite("Frobnicate"),
    ),
    Kit(
        "edgetpu",
        "tflite",
        lambda shape: compiled.compiled(shape, relu_after=True),
        compiled.sum_and_difference,
        lambda: compiled.unknown_operator("Frobnicate"),
        device="loaded_double",
        fixed=True,
    ),
    _onnx("reference"),
    _onnx("openvino", needs="openvino", waiting=2),
    Kit(
        "steps",
        "steps",
        models.relu_steps,
        models.sum_and_difference_steps,
        lambda: models.steps_bytes({"x": [4]}, {"y": [4]}, ("Frobnicate", "y", "x")),
        StepsRuntime,
    ),
)
# What is promised only by those whose models can leave a dimension free.
of_free_dimensions = pytest.mark.parametrize(
    "kit", [kit for kit in RUNTIMES if not kit.fixed], ids=lambda kit: kit.name, indirect=True
)
ROW = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)


@pytest.fixture(params=RUNTIMES, ids=lambda kit: kit.name)
def kit(request: pytest.FixtureRequest) -> Kit:
    found: Kit = request.param
    return found


@pytest.fixture
def runtime(kit: Kit, request: pytest.FixtureRequest) -> Runtime:
    if kit.needs:
        pytest.importorskip(kit.needs, reason=f"{kit.needs} is not installed")
    if kit.device:
        request.getfixturevalue(kit.device).plug()
    return kit.make() if kit.make else registry.find(kit.name)


OPEN: list[Session] = []


@pytest.fixture(autouse=True)
def free_devices() -> Iterator[None]:
    """Others of this process may want the device."""
    yield
    while OPEN:
        OPEN.pop().close()


def load(
    runtime: Runtime, folder: Path, data: bytes, *outputs: str, wanted: Wanted | None = None
) -> Session:
    path = folder / "model"
    path.write_bytes(data)
    session = runtime.load(path, wanted or Wanted(), outputs=outputs)
    OPEN.append(session)
    return session


def rows(kit: Kit, count: int) -> int:
    """How many rows a model is made for: any, or where that cannot be, these."""
    return count if kit.fixed else -1


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_it_says_who_it_is_and_that_it_works_here(kit: Kit, runtime: Runtime) -> None:
    started = time.monotonic()
    assert runtime.probe() is None
    assert time.monotonic() - started < 1.0
    assert runtime.name == kit.name
    assert runtime.version[0].isdigit()
    assert kit.format in runtime.formats


def test_its_facts_are_quick_and_agree_with_it(kit: Kit, runtime: Runtime) -> None:
    threads, started = thread_count(), time.monotonic()
    facts = runtime.facts()
    assert time.monotonic() - started < 1.0
    # Workers are forked from the process that asked for the facts.
    assert thread_count() == threads
    assert (facts.name, facts.version) == (runtime.name, runtime.version)
    assert facts.usable
    assert not facts.why
    assert tuple(facts.formats) == tuple(runtime.formats)
    assert facts.providers
    codec.decode(codec.encode(facts), RuntimeFacts, name="facts", max_bytes=65536)


def test_each_provider_that_it_offers_computes_or_says_why_not(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    for provider in runtime.facts().providers:
        session = load(runtime, tmp_path, kit.relu((1, 4)), wanted=Wanted(provider))
        assert session.placement.wanted == provider
        assert session.placement.got == provider or session.placement.why
        np.testing.assert_array_equal(session.run({"x": ROW})["y"], [[0, 2, 0, 4]])


def test_a_placement_is_whole(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    placement = load(runtime, tmp_path, kit.relu((1, 4))).placement
    assert placement.wanted
    assert placement.got == placement.wanted or placement.why
    for share in (placement.operators, placement.time):
        assert share is None or 0 <= share <= 1
    # Nobody measures it, so only what follows from the operators may be said.
    assert placement.time in (None, 1.0)
    assert placement.time is None or placement.operators == 1.0
    assert len(placement.why) <= 1024


def test_a_provider_that_there_is_not_is_refused_with_those_that_there_are(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        load(runtime, tmp_path, kit.relu((1, 4)), wanted=Wanted("FrobnicateProvider"))
    assert "FrobnicateProvider" in caught.value.message
    assert all(name in str(caught.value) for name in runtime.facts().providers)


def test_an_option_that_it_does_not_know_is_refused_by_name(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    wanted = Wanted(options={"frobnicate_library": "/tmp/evil.so"})
    with pytest.raises(RuntimeUnavailable, match="frobnicate_library") as caught:
        load(runtime, tmp_path, kit.relu((1, 4)), wanted=wanted)
    assert "it takes" in caught.value.hint


@pytest.mark.parametrize("threads", [1, 2])
def test_it_takes_no_more_threads_than_it_may(
    kit: Kit, runtime: Runtime, tmp_path: Path, threads: int
) -> None:
    # What only the first session of a process starts, if anything, is not this one's.
    load(runtime, tmp_path, kit.relu((64, 64)), wanted=Wanted(threads=threads)).close()
    gc.collect()
    before = thread_count()
    session = load(runtime, tmp_path, kit.relu((64, 64)), wanted=Wanted(threads=threads))
    session.run({"x": np.zeros((64, 64), np.float32)})
    assert thread_count() <= before + threads - 1 + kit.waiting
    session.close()
    del session
    gc.collect()
    assert thread_count() <= before + kit.waiting


def test_it_says_what_the_file_says(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, kit.relu((1, 4)))
    (x,), (y,) = session.inputs, session.outputs
    assert (x.name, x.datatype, x.shape) == ("x", "FP32", (1, 4))
    assert (y.name, y.datatype, y.shape) == ("y", "FP32", (1, 4))


def test_it_runs_and_leaves_its_input_alone(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, kit.relu((1, 4)))
    given = ROW.copy()
    result = session.run({"x": given})
    assert list(result) == ["y"]
    np.testing.assert_array_equal(result["y"], [[0, 2, 0, 4]])
    np.testing.assert_array_equal(given, ROW)


def test_it_takes_read_only_input(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, kit.relu((1, 4)))
    given = np.frombuffer(ROW.tobytes(), np.float32).reshape(1, 4)
    np.testing.assert_array_equal(session.run({"x": given})["y"], [[0, 2, 0, 4]])


def test_an_output_outlives_the_next_run(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, kit.relu((1, 4)))
    first = session.run({"x": ROW})["y"]
    kept = first.copy()
    second = session.run({"x": ROW + 10})["y"]
    np.testing.assert_array_equal(first, kept)
    first[:] = 99
    np.testing.assert_array_equal(second, [[9, 12, 7, 14]])
    np.testing.assert_array_equal(session.run({"x": ROW})["y"], kept)


def test_no_output_shares_memory_with_an_input_or_another_output(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    session = load(runtime, tmp_path, kit.sum_and_difference())
    given = {"a": ROW.copy(), "b": ROW.copy()}
    outputs = list(session.run(given).values())
    again = list(session.run(given).values())
    arrays = [*given.values(), *outputs, *again]
    for place, one in enumerate(arrays):
        assert not any(np.shares_memory(one, other) for other in arrays[place + 1 :])
    assert all(array.flags.writeable for array in (*outputs, *again))


@of_free_dimensions
def test_each_run_chooses_its_free_dimensions(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, kit.relu((-1, 4)))
    assert session.inputs[0].shape == (-1, 4)
    for rows in (3, 1, 32, 3):
        result = session.run({"x": np.full((rows, 4), -1, np.float32)})["y"]
        assert result.shape == (rows, 4)


def test_several_inputs_and_outputs_go_by_name(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, kit.sum_and_difference())
    result = session.run({"b": ROW, "a": ROW * 3})
    np.testing.assert_array_equal(result["sum"], ROW * 4)
    np.testing.assert_array_equal(result["difference"], ROW * 2)


def test_it_gives_only_the_outputs_asked_for(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, kit.sum_and_difference(), "difference")
    assert [tensor.name for tensor in session.outputs] == ["difference"]
    assert list(session.run({"a": ROW, "b": ROW})) == ["difference"]


def test_two_threads_give_the_same_answer(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, kit.relu((1, 4)), wanted=Wanted(threads=2))
    np.testing.assert_array_equal(session.run({"x": ROW})["y"], [[0, 2, 0, 4]])
    session.close()


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"z": ROW},
        {"x": ROW.astype(np.float64)},
        {"x": ROW.astype(np.int32)},
        {"x": ROW[:, :3].copy()},
        {"x": ROW.reshape(4)},
        {"x": np.repeat(ROW, 2, axis=0)},
    ],
    ids=["none", "other name", "float64", "int32", "too short", "lower rank", "two rows"],
)
def test_what_does_not_fit_is_bad_input_and_the_next_run_works(
    kit: Kit, runtime: Runtime, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    session = load(runtime, tmp_path, kit.relu((1, 4)))
    with pytest.raises(BadInput):
        session.run(arrays)
    np.testing.assert_array_equal(session.run({"x": ROW})["y"], [[0, 2, 0, 4]])


def test_a_shape_that_fails_does_not_spoil_the_next(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    session = load(runtime, tmp_path, kit.relu((rows(kit, 1), 4)))
    session.run({"x": ROW})
    for shape in ((2, 5), (4,), (1, 1, 4)):
        with pytest.raises(BadInput):
            session.run({"x": np.zeros(shape, np.float32)})
    np.testing.assert_array_equal(session.run({"x": ROW})["y"], [[0, 2, 0, 4]])


@pytest.mark.parametrize("data", [b"no model at all", b"\0" * 64, b"{}"])
def test_what_is_no_model_is_rejected_in_one_sentence(
    runtime: Runtime, tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(ModelRejected) as caught:
        load(runtime, tmp_path, data)
    assert len(caught.value.message) < 600
    assert "\n" not in caught.value.message


def test_an_operator_that_it_does_not_know_is_named(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    with pytest.raises(ModelRejected, match="Frobnicate") as caught:
        load(runtime, tmp_path, kit.unknown_operator())
    assert "\n" not in caught.value.message


def test_a_model_that_is_cut_short_is_rejected(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected):
        load(runtime, tmp_path, kit.relu((1, 4))[:40])


def test_a_model_that_is_replaced_while_it_is_loaded_goes_on(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    session = load(runtime, tmp_path, kit.relu((1, 4)))
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    other.replace(tmp_path / "model")
    np.testing.assert_array_equal(session.run({"x": ROW})["y"], [[0, 2, 0, 4]])


def test_two_sessions_know_nothing_of_each_other(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    first = load(runtime, tmp_path, kit.relu((1, 4)))
    second = load(runtime, tmp_path, kit.relu((1, 4)))
    kept = first.run({"x": ROW})["y"]
    first.close()
    np.testing.assert_array_equal(second.run({"x": ROW})["y"], kept)


def test_a_missing_file_is_rejected(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected):
        runtime.load(tmp_path / "absent", Wanted())


def test_a_reset_changes_nothing_for_a_model_without_state(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    session = load(runtime, tmp_path, kit.relu((rows(kit, 1), 4)))
    session.run({"x": ROW + 1 if kit.fixed else np.repeat(ROW, 2, axis=0)})
    session.reset()
    np.testing.assert_array_equal(session.run({"x": ROW})["y"], [[0, 2, 0, 4]])


def test_what_it_compiled_is_used_later_and_what_cannot_be_used_costs_nothing_but_time(
    kit: Kit, runtime: Runtime, tmp_path: Path
) -> None:
    cache, data = tmp_path / "cache", kit.relu((1, 4))
    cache.mkdir()
    load(runtime, tmp_path, data, wanted=Wanted(cache=cache, fill=True)).run({"x": ROW})
    kept = {path: path.read_bytes() for path in cache.iterdir()}
    # For its CPU kernels it compiles only if its facts say so.
    assert bool(kept) is bool(CPU_PROVIDERS & runtime.facts().compiles.keys())
    for damage in (False, True):
        if damage:
            for path in kept:
                path.write_bytes(b"junk")
            kept = dict.fromkeys(kept, b"junk")
        session = load(runtime, tmp_path, data, wanted=Wanted(cache=cache))
        np.testing.assert_array_equal(session.run({"x": ROW})["y"], [[0, 2, 0, 4]])
        told = getattr(session, "compiled", "")
        assert told == ("" if not kept else "refused" if damage else "used")
        assert {path: path.read_bytes() for path in cache.iterdir()} == kept
    load(runtime, tmp_path, data, wanted=Wanted(cache=tmp_path / "absent")).run({"x": ROW})


def test_it_may_be_closed_twice(kit: Kit, runtime: Runtime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, kit.relu((1, 4)))
    session.close()
    session.close()
