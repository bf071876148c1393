"""What a choice says of the ways to run a pack."""

from __future__ import annotations

from agent.documents.choice import Choice, Tried, Way

TPU = Way("int8", "edgetpu", "edgetpu")
ONE, TWO = Way("fp32", "onnx"), Way("fp32", "onnx", threads=2)
OTHER, EXACT = Way("int8", "tflite"), Way("fp32", "reference")


def choice(*ways: Way, out: tuple[Way, ...] = ()) -> Choice:
    passed = tuple(Tried(way, median_ms=1.0) for way in ways)
    return Choice(ways[0], (*passed, *(Tried(way, excluded="it answers 2") for way in out)))


def test_where_an_accelerator_fails_the_cpu_serves() -> None:
    assert choice(TPU, Way("int8", "tflite", "edgetpu"), OTHER).runner_up == OTHER
    assert choice(TPU).runner_up is None


def test_what_keeps_dying_is_not_tried_with_other_threads_but_as_another_thing() -> None:
    assert choice(ONE, TWO).runner_up is None
    assert choice(ONE, TWO, EXACT).runner_up == EXACT
    assert choice(ONE, TWO, OTHER, EXACT).runner_up == OTHER


def test_what_did_not_pass_is_no_runner_up() -> None:
    assert choice(ONE, out=(OTHER,)).runner_up is None


def test_an_accelerator_that_could_not_be_had_is_tried_again_unless_it_is_the_pack_s_fault() -> (
    None
):
    def lost(code: str) -> Choice:
        return Choice(OTHER, (Tried(OTHER), Tried(TPU, "it is away", code)))

    for code in ("accelerator_failed", "worker_exited", "worker_timed_out"):
        again = lost(code).again
        assert again is not None
        assert again.way == TPU
        assert lost(code).waits
    for code in ("", "self_test_failed", "model_rejected", "memory_limit"):
        assert lost(code).lost is not None
        assert not lost(code).waits


def test_a_way_reads_as_people_say_it() -> None:
    assert str(TWO) == "fp32 on onnx, 2 threads"
    assert str(TPU) == "int8 on edgetpu (edgetpu), 1 thread"
    assert (TPU.accelerated, ONE.accelerated) == (True, False)
    assert (EXACT.last_resort, ONE.last_resort) == (True, False)
