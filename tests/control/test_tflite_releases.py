"""Which release knows which version of an operator: the table, held against a real interpreter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control.tflite_releases import (
    AI_EDGE_LITERT,
    NEWEST_TRIED,
    STEPS,
    TFLITE_RUNTIME,
    knows_all,
    too_new,
)
from agent.control.versions import release
from agent.formats.tflite_operators import BUILTIN_OPERATORS
from tests.formats.building import operator_code, tflite_bytes, tflite_model

PLACES = st.integers(0, len(STEPS) - 1)


def grown() -> list[dict[str, int]]:
    """What each step knows, with all that the ones before it know."""
    known: dict[str, int] = {}
    every = []
    for step in STEPS:
        pairs = [one.split(":") for one in step.operators.split()]
        known = {**known, **{name: int(version) for name, version in pairs}}
        every.append(known)
    return every


def test_each_step_only_adds_and_names_operators_that_exist() -> None:
    before: dict[str, int] = {}
    for step, known in zip(STEPS, grown(), strict=True):
        news = [name for name, version in known.items() if version != before.get(name)]
        assert sorted(news) == sorted(one.partition(":")[0] for one in step.operators.split())
        assert all(known[name] > before.get(name, 0) for name in news)
        assert set(news) <= set(BUILTIN_OPERATORS)
        before = known
    places = [(step.package == AI_EDGE_LITERT, release(step.version)) for step in STEPS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("operators", "package", "version", "says"),
    [
        (
            ("ADD:1", "CONV_2D:8"),
            *(TFLITE_RUNTIME, "2.5.0.post1"),
            "operator CONV_2D version 8 needs LiteRT 1.0 or newer",
        ),
        (
            ("CONV_2D:7",),
            *(TFLITE_RUNTIME, "2.11.0"),
            "operator CONV_2D version 7 needs TensorFlow Lite 2.12 or newer, or LiteRT",
        ),
        # The one that asks for the newest is told.
        (
            ("CONV_2D:6", "GELU:1", "SIGN:2"),
            *(TFLITE_RUNTIME, "2.7.0"),
            "operator SIGN version 2 needs TensorFlow Lite 2.12 or newer, or LiteRT",
        ),
        (
            ("SOFTMAX:4",),
            *(AI_EDGE_LITERT, "2.1.5"),
            "operator SOFTMAX version 4 needs LiteRT 2.1.6 or newer",
        ),
        (
            ("CONV_2D:40",),
            *(AI_EDGE_LITERT, "2.3.0"),
            "operator CONV_2D version 40 needs something newer than LiteRT 2.3",
        ),
        (("CONV_2D:7",), TFLITE_RUNTIME, "2.12.0", ""),
        (("CONV_2D:8",), AI_EDGE_LITERT, "1.0.1", ""),
        (("SOFTMAX:4",), AI_EDGE_LITERT, "2.1.6", ""),
        # Of a newer release, another package and a version without a number nothing is known.
        (("CONV_2D:40",), AI_EDGE_LITERT, "2.4.0.dev1", ""),
        (("CONV_2D:40",), "openvino", "2026.4.1", ""),
        (("CONV_2D:40",), TFLITE_RUNTIME, "", ""),
        (("CONV_2D:40",), TFLITE_RUNTIME, "2.4.0", ""),
        # What is no operator of the table is passed over.
        (("BUILTIN_999:1", "CONV_2D", "Gemm", ":3", "CONV_2D:x"), TFLITE_RUNTIME, "2.5.0", ""),
        ((), TFLITE_RUNTIME, "2.5.0", ""),
    ],
)
def test_the_operator_that_asks_for_the_newest_release_is_named(
    operators: tuple[str, ...], package: str, version: str, says: str
) -> None:
    assert str(too_new(operators, package, version) or "") == says


def test_whether_all_is_known_of_a_model_takes_its_operators() -> None:
    assert knows_all(["CONV_2D:3", "ADD:99"])
    assert not knows_all(["CONV_2D:3", "BUILTIN_999:1"])
    assert not knows_all([])


@settings(max_examples=200, deadline=None)
@given(here=PLACES, wanted=PLACES, data=st.data())
def test_a_release_takes_what_the_ones_before_it_take_and_the_first_that_would_is_named(
    here: int, wanted: int, data: st.DataObject
) -> None:
    named = data.draw(st.sampled_from(STEPS[wanted].operators.split()))
    found = too_new([named, "ADD:1"], STEPS[here].package, STEPS[here].version)
    assert found is None if wanted <= here else found is not None and found.since == STEPS[wanted]


def test_the_installed_interpreter_takes_what_the_table_says_and_no_more() -> None:
    litert = pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    if release(litert.__version__) > release(NEWEST_TRIED):
        pytest.skip(f"LiteRT {litert.__version__} is newer than the table")

    def takes(operator: str, version: int) -> bool:
        # Codes are resolved whether an operator has them or not.
        code = operator_code(BUILTIN_OPERATORS.index(operator), version=version)
        model = tflite_model(codes=[code])
        model.subgraphs[0].operators, model.subgraphs[0].outputs = [], [0]
        try:
            Interpreter(model_content=tflite_bytes(model))
        except ValueError as error:
            if "Didn't find op for builtin opcode" in str(error):
                return False
            raise
        return True

    for operator, newest in grown()[-1].items():
        for version in (newest, newest + 1):
            said = too_new([f"{operator}:{version}"], AI_EDGE_LITERT, litert.__version__) is None
            assert takes(operator, version) is said, (operator, version)
