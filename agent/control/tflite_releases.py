"""Which versions of TFLite's operators each release of its runtimes knows.

Found by giving every release a model of one operator code in each version, and noting which it
takes (wheels for x86-64; of 2.5 and 2.6 the interpreter in TensorFlow's). What converters note as
the oldest runtime of a model comes from a list that names other releases in a few places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from agent.control.versions import at_least, release

TFLITE_RUNTIME = "tflite-runtime"
AI_EDGE_LITERT = "ai-edge-litert"
TITLES: Mapping[str, str] = {TFLITE_RUNTIME: "TensorFlow Lite", AI_EDGE_LITERT: "LiteRT"}


class Step(NamedTuple):
    """A release that knows more than the one before it.

    Attributes:
        package: Whose release.
        version: Which.
        operators: The newest version of each operator that is new there.
    """

    package: str
    version: str
    operators: str

    def __str__(self) -> str:
        return f"{TITLES[self.package]} {self.version}"


# Oldest first. None forgets what the one before it knew, and LiteRT goes on where tflite-runtime
# ended: its 1.0 knows all that 2.14 does.
STEPS = (
    Step(
        TFLITE_RUNTIME,
        "2.5",
        """
        ADD:3 AVERAGE_POOL_2D:3 CONCATENATION:3 CONV_2D:5 DEPTHWISE_CONV_2D:6 DEPTH_TO_SPACE:2
        DEQUANTIZE:4 EMBEDDING_LOOKUP:3 FLOOR:1 FULLY_CONNECTED:9 HASHTABLE_LOOKUP:1
        L2_NORMALIZATION:2 L2_POOL_2D:1 LOCAL_RESPONSE_NORMALIZATION:1 LOGISTIC:3
        LSH_PROJECTION:1 LSTM:4 MAX_POOL_2D:3 MUL:4 RELU:3 RELU_N1_TO_1:1 RELU6:3 RESHAPE:1
        RESIZE_BILINEAR:4 RNN:3 SOFTMAX:3 SPACE_TO_DEPTH:2 SVDF:4 TANH:3 SKIP_GRAM:1
        EMBEDDING_LOOKUP_SPARSE:1 PAD:3 UNIDIRECTIONAL_SEQUENCE_RNN:3 GATHER:5
        BATCH_TO_SPACE_ND:3 SPACE_TO_BATCH_ND:3 TRANSPOSE:5 MEAN:3 SUB:5 DIV:2 SQUEEZE:2
        UNIDIRECTIONAL_SEQUENCE_LSTM:3 STRIDED_SLICE:5 BIDIRECTIONAL_SEQUENCE_RNN:3 EXP:1
        TOPK_V2:2 SPLIT:4 LOG_SOFTMAX:2 BIDIRECTIONAL_SEQUENCE_LSTM:3 CAST:1 PRELU:1 MAXIMUM:4
        ARG_MAX:2 MINIMUM:4 LESS:2 NEG:1 PADV2:3 GREATER:2 GREATER_EQUAL:2 LESS_EQUAL:2 SELECT:2
        SLICE:5 SIN:1 TRANSPOSE_CONV:3 SPARSE_TO_DENSE:3 TILE:2 EXPAND_DIMS:1 EQUAL:3
        NOT_EQUAL:3 LOG:1 SUM:2 SQRT:1 RSQRT:2 SHAPE:1 POW:1 ARG_MIN:2 FAKE_QUANT:2
        REDUCE_PROD:1 REDUCE_MAX:3 PACK:3 LOGICAL_OR:1 ONE_HOT:1 LOGICAL_AND:1 LOGICAL_NOT:1
        UNPACK:4 REDUCE_MIN:3 FLOOR_DIV:2 REDUCE_ANY:1 SQUARE:1 ZEROS_LIKE:1 FILL:3 FLOOR_MOD:1
        RANGE:1 RESIZE_NEAREST_NEIGHBOR:4 LEAKY_RELU:2 SQUARED_DIFFERENCE:2 MIRROR_PAD:2 ABS:3
        SPLIT_V:2 UNIQUE:1 CEIL:1 REVERSE_V2:3 ADD_N:1 GATHER_ND:3 COS:1 WHERE:1 RANK:1 ELU:1
        REVERSE_SEQUENCE:1 MATRIX_DIAG:1 QUANTIZE:2 MATRIX_SET_DIAG:1 ROUND:1 HARD_SWISH:1 IF:1
        WHILE:1 NON_MAX_SUPPRESSION_V4:1 NON_MAX_SUPPRESSION_V5:1 SCATTER_ND:1 SELECT_V2:1
        DENSIFY:1 SEGMENT_SUM:1 BATCH_MATMUL:4 CUMSUM:1 CALL_ONCE:1 BROADCAST_TO:3 RFFT2D:1
        CONV_3D:1 IMAG:1 REAL:1 COMPLEX_ABS:1 HASHTABLE:1 HASHTABLE_FIND:1 HASHTABLE_IMPORT:1
        HASHTABLE_SIZE:1
        """,
    ),
    Step(
        TFLITE_RUNTIME,
        "2.6",
        """
        ADD:4 MUL:5 PAD:4 STRIDED_SLICE:6 PADV2:4 ABS:4 REDUCE_ALL:1 CONV_3D_TRANSPOSE:1
        VAR_HANDLE:1 READ_VARIABLE:1 ASSIGN_VARIABLE:1
        """,
    ),
    Step(
        TFLITE_RUNTIME,
        "2.7",
        """
        DEQUANTIZE:5 CAST:2 REDUCE_PROD:2 QUANTIZE:3 BROADCAST_ARGS:1 RANDOM_STANDARD_NORMAL:1
        """,
    ),
    Step(
        TFLITE_RUNTIME,
        "2.8",
        """
        CAST:3 TILE:3 WHERE:2 BUCKETIZE:1 RANDOM_UNIFORM:1 MULTINOMIAL:1 GELU:1
        """,
    ),
    Step(
        TFLITE_RUNTIME,
        "2.9",
        """
        CONV_2D:6 CAST:4 ARG_MAX:3 ARG_MIN:3 GELU:2 DYNAMIC_UPDATE_SLICE:1
        """,
    ),
    Step(
        TFLITE_RUNTIME,
        "2.10",
        """
        RELU_0_TO_1:1 UNSORTED_SEGMENT_PROD:1 UNSORTED_SEGMENT_MAX:1 UNSORTED_SEGMENT_SUM:1
        ATAN2:1
        """,
    ),
    Step(TFLITE_RUNTIME, "2.11", "MUL:6 UNSORTED_SEGMENT_MIN:1 SIGN:1"),
    Step(
        TFLITE_RUNTIME,
        "2.12",
        """
        CONV_2D:7 TRANSPOSE:6 UNIDIRECTIONAL_SEQUENCE_LSTM:4 SELECT:3 TRANSPOSE_CONV:4 FILL:4
        ABS:5 SIGN:2
        """,
    ),
    Step(
        TFLITE_RUNTIME,
        "2.13",
        """
        ADD:5 DEPTHWISE_CONV_2D:7 FULLY_CONNECTED:10 MUL:7 GATHER:6 BATCH_TO_SPACE_ND:4
        SPACE_TO_BATCH_ND:4 EXP:2 TOPK_V2:3 CAST:5 LESS:3 GREATER_EQUAL:3 EQUAL:4 FLOOR_DIV:3
        FLOOR_MOD:2 MIRROR_PAD:3 GATHER_ND:4 BITCAST:1 BITWISE_XOR:1 RIGHT_SHIFT:1
        """,
    ),
    Step(
        TFLITE_RUNTIME,
        "2.14",
        """
        CONCATENATION:4 STRIDED_SLICE:8 SELECT:4 SLICE:6 PACK:4 RANGE:2 SELECT_V2:2
        """,
    ),
    Step(
        AI_EDGE_LITERT,
        "1.0",
        """
        CONV_2D:8 DEQUANTIZE:6 EMBEDDING_LOOKUP:4 FULLY_CONNECTED:13 GATHER:7 CAST:6
        TRANSPOSE_CONV:5 LOG:2 RSQRT:3 GATHER_ND:5 DYNAMIC_UPDATE_SLICE:2 STABLEHLO_ADD:1
        STABLEHLO_MULTIPLY:1 STABLEHLO_MAXIMUM:1 STABLEHLO_MINIMUM:1 STABLEHLO_SCATTER:1
        STABLEHLO_PAD:1 STABLEHLO_REDUCE_WINDOW:1 STABLEHLO_GATHER:1 DILATE:1
        STABLEHLO_RNG_BIT_GENERATOR:1 REDUCE_WINDOW:1 STABLEHLO_COMPOSITE:1
        """,
    ),
    Step(
        AI_EDGE_LITERT,
        "1.1",
        """
        CAST:7 DYNAMIC_UPDATE_SLICE:3 STABLEHLO_AND:1 STABLEHLO_SHIFT_LEFT:1 STABLEHLO_CASE:1
        """,
    ),
    Step(AI_EDGE_LITERT, "1.2", "TRANSPOSE:7"),
    Step(AI_EDGE_LITERT, "1.3", "DYNAMIC_UPDATE_SLICE:4"),
    Step(AI_EDGE_LITERT, "2.0", "PAD:5 PADV2:5 SQRT:2"),
    Step(
        AI_EDGE_LITERT,
        "2.1",
        """
        DEQUANTIZE:7 FULLY_CONNECTED:14 CAST:8 SLICE:7 EQUAL:5 NOT_EQUAL:4 QUANTIZE:4
        """,
    ),
    Step(
        AI_EDGE_LITERT,
        "2.1.2",
        """
        CONCATENATION:5 EMBEDDING_LOOKUP:5 DYNAMIC_UPDATE_SLICE:5
        """,
    ),
    Step(AI_EDGE_LITERT, "2.1.3", "DEQUANTIZE:8 UNPACK:5 QUANTIZE:6"),
    Step(
        AI_EDGE_LITERT,
        "2.1.6",
        """
        ADD:6 CONCATENATION:6 MUL:8 SOFTMAX:4 TRANSPOSE:9 SLICE:8 SIN:2 COS:2 GELU:3
        DYNAMIC_UPDATE_SLICE:6
        """,
    ),
    Step(
        AI_EDGE_LITERT,
        "2.2",
        """
        CONCATENATION:7 DEQUANTIZE:9 PAD:6 GATHER:8 SPLIT:5 CAST:9 PADV2:6 PACK:5 UNPACK:6
        FILL:5 SPLIT_V:3 REVERSE_V2:4 GATHER_ND:6 BROADCAST_TO:4
        """,
    ),
)
# Of LiteRT. The last tflite-runtime is 2.14, and there will be no other.
NEWEST_TRIED = "2.3"


class TooNew(NamedTuple):
    """An operator that a runtime does not know in this version.

    Attributes:
        operator: Its name.
        version: Of the operator.
        since: The first release that knows it; None: none that was tried.
    """

    operator: str
    version: int
    since: Step | None

    def __str__(self) -> str:
        """What it needs."""
        if self.since is None:
            needs = f"something newer than {TITLES[AI_EDGE_LITERT]} {NEWEST_TRIED}"
        elif self.since.package == TFLITE_RUNTIME:
            needs = f"{self.since} or newer, or {TITLES[AI_EDGE_LITERT]}"
        else:
            needs = f"{self.since} or newer"
        return f"operator {self.operator} version {self.version} needs {needs}"


def too_new(operators: Iterable[str], package: str, version: str) -> TooNew | None:
    """Return the operator that needs the newest release of all that a runtime does not know.

    Args:
        operators: As a manifest has them: `CONV_2D:3`. Names that no release knows are passed over.
        package: The distribution.
        version: Its version.

    Returns:
        None: It knows them all, or it is a release of which nothing is known here.
    """
    here = _place(package, version)
    if here is None:
        return None
    needed = [(place, one) for one in operators if (place := _needed(one)) is not None]
    place, operator = max(needed, default=(here, ""))
    if place <= here:
        return None
    name, _, number = operator.rpartition(":")
    return TooNew(name, int(number), STEPS[place] if place < len(STEPS) else None)


def knows_all(operators: Iterable[str]) -> bool:
    """Whether there are operators, and of each it is known here which releases have it."""
    places = [_needed(one) for one in operators]
    return bool(places) and None not in places


def _place(package: str, version: str) -> int | None:
    """Return which step a release stands on."""
    # Releases of one series differ too: 2.1.6 knows more than 2.1.2.
    beyond = package == AI_EDGE_LITERT and release(version) > release(NEWEST_TRIED)
    reached = [
        place
        for place, step in enumerate(STEPS)
        if step.package == package and at_least(version, step.version)
    ]
    return reached[-1] if reached and not beyond else None


def _needed(operator: str) -> int | None:
    """Return the first step that knows an operator; behind the last one: none does.

    None: not an operator with a version, or not one of which anything is known.
    """
    name, _, number = operator.rpartition(":")
    steps = _by_operator().get(name)
    if steps is None or not number.isdecimal():
        return None
    return next((place for newest, place in steps if newest >= int(number)), len(STEPS))


@cache
def _by_operator() -> dict[str, list[tuple[int, int]]]:
    """For each operator (its newest version, the step), oldest first."""
    found: dict[str, list[tuple[int, int]]] = {}
    for place, step in enumerate(STEPS):
        for one in step.operators.split():
            name, _, number = one.partition(":")
            found.setdefault(name, []).append((int(number), place))
    return found
