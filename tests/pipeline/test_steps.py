"""What each step computes, by example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.documents.manifest import Tensor
from agent.errors import BadInput, DocumentError
from agent.pipeline.options import read_options
from agent.pipeline.steps import resize
from agent.pipeline.steps.api import CLASS_INDEX, CompiledStep, Memory, StepContext
from agent.pipeline.steps.registry import STEPS

ROWS = Tensor("x", "FP32", (-1, 3))
LABELS = ("a", "b", "c")


def compiled(
    step: str, *tensors: Tensor, pack_labels: tuple[str, ...] = (), **options: Any
) -> CompiledStep:
    kind = STEPS[step]
    checked = read_options(options, kind.options, "step", path="pre[0]")
    return kind.compile(checked, StepContext(tensors or (ROWS,), pack_labels, "pre[0]", BadInput))


def apply(step: CompiledStep, values: Any, dtype: Any = np.float32) -> dict[str, Any]:
    found = step.run({"x": np.array(values, dtype)}, {})
    return {name: array.tolist() for name, array in found.items()}


def test_published_numbers_for_pictures_are_written_as_they_are() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    step = compiled("normalize", Tensor("x", "UINT8", (1, 1, 3)), scale=1 / 255, mean=mean, std=std)
    pixels = np.array([[[10, 128, 255]]], np.uint8)
    found = step.run({"x": pixels}, {})["x"]
    np.testing.assert_allclose(found, (pixels / 255 - mean) / np.array(std), rtol=1e-5)
    assert found.dtype == np.float32


def test_channels_first_are_normalised_along_their_axis() -> None:
    step = compiled("normalize", Tensor("x", "FP32", (2, 2)), mean=[1, 10], axis=0)
    assert apply(step, [[1, 2], [10, 12]])["x"] == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    "options",
    [
        {"std": 0},
        {"std": [1, 0, 1]},
        {"mean": [1, 2]},
        {"mean": []},
        {"mean": [1, 2, 3], "axis": 2},
        {"mean": 1e300},
    ],
)
def test_numbers_that_cannot_normalise_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        compiled("normalize", **options)


def test_a_value_that_overflows_is_the_messages_fault() -> None:
    with pytest.raises(BadInput, match="too large"):
        apply(compiled("normalize", scale=1e10), [[3e38, 0, 0]])


def test_rgb_becomes_bgr_with_channels_first() -> None:
    step = compiled("reorder", Tensor("x", "UINT8", (1, 2, 3)), flip=-1, axes=[2, 0, 1])
    assert apply(step, [[[1, 2, 3], [4, 5, 6]]], np.uint8)["x"] == [[[3, 6]], [[2, 5]], [[1, 4]]]
    assert step.tensors[0].shape == (3, 1, 2)


@pytest.mark.parametrize(
    ("shape", "result"), [([1, 6, 1], (1, 6, 1)), ([-1], (6,)), ([3, -1], (3, 2)), ([2, 3], (2, 3))]
)
def test_a_new_shape_is_known_before_any_message(shape: list[int], result: Any) -> None:
    assert compiled("reorder", Tensor("x", "FP32", (2, 3)), shape=shape).tensors[0].shape == result


@pytest.mark.parametrize("shape", [[4], [-1, -1], [5, -1], [-2, 3], [0, -1]])
def test_a_shape_of_other_size_is_refused(shape: list[int]) -> None:
    with pytest.raises(DocumentError) as caught:
        compiled("reorder", Tensor("x", "FP32", (2, 3)), shape=shape)
    assert caught.value.path == "pre[0].shape"


def test_a_cast_rounds_to_nearest_and_refuses_what_is_beyond() -> None:
    step = compiled("cast", datatype="INT8")
    assert apply(step, [[0.5, 1.5, -127.6]])["x"] == [[0, 2, -128]]
    for value in (127.6, -129.0, np.nan, np.inf):
        with pytest.raises(BadInput):
            apply(step, [[value, 0, 0]])


@pytest.mark.parametrize(("datatype", "value"), [("INT64", 2.0**63), ("UINT64", 2.0**64)])
def test_the_first_number_beyond_64_bits_is_refused(datatype: str, value: float) -> None:
    step = compiled("cast", Tensor("x", "FP64", (1,)), datatype=datatype)
    with pytest.raises(BadInput):
        apply(step, [value], np.float64)
    below = float(np.nextafter(value, 0))
    assert apply(step, [below], np.float64)["x"] == [int(below)]


@pytest.mark.parametrize(
    "options",
    [
        {"name": "x", "value": 1},
        {"name": "c", "value": "a"},
        {"name": "c", "value": 1, "datatype": "BYTES"},
        {"name": "c", "value": 300, "datatype": "UINT8"},
        {"name": "c", "value": [1, 2], "shape": [3]},
        {"name": "c", "value": 1e300},
        {"name": "c", "value": 1.5, "datatype": "INT8"},
        {"name": "c", "value": True},
        {"name": "", "value": 1},
    ],
)
def test_a_constant_that_is_no_value_of_its_datatype_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        compiled("constant", **options)


def test_a_block_begins_with_the_end_of_the_same_sources_last_one() -> None:
    step = compiled("overlap", Tensor("x", "FP32", (3,)), size=2)
    one: Memory = {}
    other: Memory = {}

    def block(values: list[float], memory: Memory) -> list[float]:
        found: list[float] = step.run({"x": np.array(values, np.float32)}, memory)["x"].tolist()
        return found

    assert block([1, 2, 3], one) == [0, 0, 1, 2, 3]
    assert block([7, 8, 9], other) == [0, 0, 7, 8, 9]
    assert block([4, 5, 6], one) == [2, 3, 4, 5, 6]


def test_an_overlap_longer_than_a_block_reaches_back_over_several() -> None:
    step, memory = compiled("overlap", Tensor("x", "FP32", (1,)), size=3), dict[str, Any]()
    found = [step.run({"x": np.array([i], np.float32)}, memory)["x"].tolist() for i in range(1, 6)]
    assert found[-1] == [2, 3, 4, 5]


def test_a_softmax_of_large_scores_does_not_overflow() -> None:
    found = apply(compiled("softmax"), [[1000, 1000, -1000], [0, 0, 0]])["x"]
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [1 / 3] * 3], rtol=1e-6)


def test_a_sigmoid_of_large_scores_does_not_overflow() -> None:
    found = apply(compiled("sigmoid"), [[0, 1e38, -1e38]])["x"]
    assert found == [[0.5, 1, 0]]


def test_the_largest_score_names_the_class() -> None:
    step, memory = compiled("argmax", pack_labels=LABELS), dict[str, Any]()
    found = step.run({"x": np.array([[0.1, 0.7, 0.2]], np.float32)}, memory)
    assert {name: array.tolist() for name, array in found.items()} == {
        "index": [1],
        "score": [pytest.approx(0.7)],
        "label": ["b"],
    }
    assert memory[CLASS_INDEX] == 1
    batch = apply(compiled("argmax", pack_labels=LABELS, keep=True), [[1, 2, 3], [9, 1, 1]])
    assert batch["label"] == ["c", "a"]
    assert "x" in batch


def test_labels_must_be_as_many_as_scores() -> None:
    for step in ("argmax", "top_k"):
        options = {"k": 1} if step == "top_k" else {}
        with pytest.raises(DocumentError, match=r"manifest\.labels"):
            compiled(step, pack_labels=("a", "b"), **options)
        unknown = compiled(step, Tensor("x", "FP32", (-1, -1)), pack_labels=("a", "b"), **options)
        with pytest.raises(BadInput, match="3 scores"):
            apply(unknown, [[1, 2, 3]])


def test_the_best_come_first_and_of_equals_the_lower_index() -> None:
    found = apply(compiled("top_k", pack_labels=LABELS, k=3), [[0.5, 0.5, 0.5], [1, 3, 2]])
    assert found["indices"] == [[0, 1, 2], [1, 2, 0]]
    assert found["labels"] == [["a", "b", "c"], ["b", "c", "a"]]
    assert found["scores"][1] == [3, 2, 1]
    with pytest.raises(DocumentError):
        compiled("top_k", k=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), st.integers(1, 3))
def test_top_k_begins_with_the_argmax(scores: list[float], k: int) -> None:
    best = apply(compiled("argmax"), [scores])["index"][0]
    found = apply(compiled("top_k", k=k), [scores])
    assert found["indices"][0][0] == best
    assert found["scores"][0] == sorted(scores, reverse=True)[:k]


def test_a_number_at_the_threshold_is_not_above_it() -> None:
    step = compiled(
        "threshold", Tensor("x", "FP32", (-1,)), threshold=0.8, output="hot", labels=["ok", "hot!"]
    )
    found = apply(step, [0.8, 0.81, -5])
    assert found["hot"] == [False, True, False]
    assert found["label"] == ["ok", "hot!", "ok"]
    assert step.class_labels == ("ok", "hot!")
    for threshold in (1e39, float("nan"), float("inf")):
        with pytest.raises(DocumentError):
            compiled("threshold", threshold=threshold)


def test_the_mean_of_the_newest_is_each_sources_own() -> None:
    step = compiled("smooth", Tensor("x", "FP32", (1,)), size=2)
    one: Memory = {}
    found = [step.run({"x": np.array([v], np.float32)}, one)["x"].tolist() for v in (1, 3, 9)]
    assert found == [[1], [2], [6]]
    assert step.run({"x": np.array([5], np.float32)}, {})["x"].tolist() == [5]


@pytest.mark.parametrize(
    "options",
    [
        {"names": ["q"]},
        {"names": ["x", "x"]},
        {"names": []},
        {"names": ["x"], "rename": {"q": "y"}},
        {"names": ["x"], "rename": {"x": ""}},
    ],
)
def test_a_selection_of_what_is_not_there_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        compiled("select", **options)


# Resizing.

FILTERS: tuple[resize.Filter, ...] = ("bilinear", "box", "nearest")


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    # The nearest of two that are as near is not always the same one.
    st.sampled_from(["bilinear", "box"]),
    st.integers(0, 1000),
)
def test_resizing_gives_what_pillow_gives(
    size: tuple[int, int], wanted: tuple[int, int], kind: Any, seed: int
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    theirs = pillow.fromarray(pixels).resize(
        (wanted[1], wanted[0]), pillow.Resampling[kind.upper()]
    )
    ours = resize.resample(pixels, wanted, kind)
    assert ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - np.asarray(theirs).astype(int))
    # Bytes are rounded after each axis, and a tie may go the other way both times.
    assert difference.max() <= 2
    assert (difference > 1).mean() < 0.01


def test_nearest_takes_the_pixel_below_the_middle_of_each_result_pixel() -> None:
    row = np.arange(8, dtype=np.uint8)[np.newaxis, :, np.newaxis]
    assert resize.resample(row, (1, 4), "nearest").ravel().tolist() == [1, 3, 5, 7]
    assert resize.resample(row, (1, 3), "nearest").ravel().tolist() == [1, 4, 6]
    assert resize.resample(row, (2, 16), "nearest")[1].ravel().tolist() == sorted([*range(8)] * 2)


@pytest.mark.parametrize("kind", FILTERS)
def test_both_ways_of_resizing_bytes_agree(kind: resize.Filter) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(3).integers(0, 256, (31, 33, 3), np.uint8)
    theirs = resize._with_pillow(pillow, pixels, (8, 12), kind)
    ours = resize.resample(pixels, (8, 12), kind)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_resized_picture_of_numbers_keeps_its_mean() -> None:
    picture: NDArray[Any] = np.random.default_rng(1).random((64, 48, 1), np.float32)
    for kind in FILTERS[:2]:
        small = resize.resample(picture, (8, 6), kind)
        assert small.shape == (8, 6, 1)
        assert abs(float(small.mean() - picture.mean())) < 0.02


def test_a_flat_picture_stays_flat() -> None:
    picture = np.full((31, 17, 3), 200, np.uint8)
    for wanted in ((7, 40), (64, 3)):
        for kind in FILTERS:
            assert (resize.resample(picture, wanted, kind) == 200).all()


@pytest.mark.parametrize(
    ("size", "wanted", "cropped"),
    [((720, 1280), (32, 32), (720, 720)), ((10, 10), (5, 10), (5, 10)), ((9, 3), (1, 3), (1, 3))],
)
def test_the_centre_is_cut_with_the_proportions_of_the_result(
    size: tuple[int, int], wanted: tuple[int, int], cropped: tuple[int, int]
) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - cropped[0]) // 2, (size[1] - cropped[1]) // 2
    picture[top : top + cropped[0], left : left + cropped[1]] = 255
    found = resize.crop_center(picture, wanted)
    assert found.shape[:2] == cropped
    assert (found == 255).all()


def test_a_picture_without_pixels_is_refused() -> None:
    step = compiled("resize", Tensor("x", "UINT8", (-1, -1, 3)), width=2, height=2)
    with pytest.raises(BadInput, match="without pixels"):
        apply(step, np.zeros((0, 4, 3)), np.uint8)
