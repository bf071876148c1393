"""Every real model is described as measured with its runtime; every hostile one as it must be."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from agent.errors import ModelRejected
from agent.formats.description import (
    ModelDescription,
    OnnxNeeds,
    TensorDescription,
    TfliteNeeds,
)
from agent.formats.external_data import check_external_data
from agent.formats.onnx_types import DATATYPES as ONNX_DATATYPES
from agent.formats.registry import describe
from agent.formats.tflite_tensors import DATATYPES as TFLITE_DATATYPES

V2_NAMES = {
    "float32": "FP32",
    "int8": "INT8",
    "uint8": "UINT8",
    "tensor(float)": "FP32",
    "tensor(int64)": "INT64",
}

# What must happen to the files of `invalid/`: a part of the refusal, or None where only a runtime,
# a limit or the self-test can refuse them.
REFUSALS = {
    "zero_length.tflite": "the model file is empty",
    "truncated.tflite": "cut short",
    "wrong_magic.tflite": "bytes 4 to 7 are 'XXL3', must be 'TFL3'",
    "root_offset_outside.tflite": "points outside the file of 2704 bytes",
    "zip_archive.onnx": "is a ZIP archive",
    "crashes_runtime.tflite": "it holds no subgraph",
    "crashes_when_loaded_from_bytes.tflite": None,
    "memory_4gb.tflite": None,
    "external_data_escape.onnx": None,
    "endless_loop.onnx": None,
    "memory_12gb_at_run.onnx": None,
    "nan_output.onnx": None,
    "future_opset.onnx": None,
    "person_detect_refused_by_litert.tflite": None,
}


@pytest.fixture(scope="session")
def index(shared_models: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared_models / "index.json").read_text())
    return content


@pytest.fixture(scope="session")
def described(
    shared_models: Path, index: dict[str, Any]
) -> dict[str, tuple[dict[str, Any], ModelDescription]]:
    """Model name → (its entry in index.json, what is read from its file)."""
    return {
        entry["name"]: (entry, describe((shared_models / entry["file"]).read_bytes()))
        for entry in index["models"]
    }


def expected_tensor(entry: dict[str, Any]) -> TensorDescription:
    dtype: str = entry["dtype"]
    if dtype == "seq(map(int64,tensor(float)))":
        return TensorDescription(entry["name"], "", ranked=False, kind="sequence(map(INT64,FP32))")
    sizes = entry.get("shape_signature", entry["shape"])
    return TensorDescription(
        entry["name"],
        V2_NAMES[dtype],
        tuple(size if isinstance(size, int) else -1 for size in sizes),
        tuple(size if isinstance(size, str) else "" for size in sizes),
        default_shape=None if dtype.startswith("tensor(") else tuple(entry["shape"]),
        scale=entry.get("scale"),
        zero_point=entry.get("zero_point"),
    )


def without_words(tensor: TensorDescription) -> TensorDescription:
    """The author's words (description, normalisation) are not in index.json."""
    values = {f: getattr(tensor, f) for f in tensor.__struct_fields__}
    return TensorDescription(**{**values, "description": "", "normalisation": None})


def test_inputs_and_outputs_are_those_that_the_runtimes_report(
    described: dict[str, tuple[dict[str, Any], ModelDescription]],
) -> None:
    for entry, description in described.values():
        for role in ("inputs", "outputs"):
            read = [without_words(t) for t in getattr(description, role)]
            assert read == [expected_tensor(t) for t in entry[role]], entry["name"]


def test_the_format_quantisation_and_state_are_those_of_the_index(
    described: dict[str, tuple[dict[str, Any], ModelDescription]],
) -> None:
    states = {
        "mnist_lstm_fp32": "variable_tensors",
        "mnist_lstm_int8": "variable_tensors",
        "hey_jarvis_wakeword": "resource_variables",
    }
    for name, (entry, description) in described.items():
        assert description.format == entry["format"].split()[0]
        assert description.state == states.get(name, "none"), name
        integers = any(word in entry["format"] for word in ("int8", "Edge TPU"))
        assert description.quantised == integers, name


def test_only_the_compiled_twin_needs_an_edge_tpu(
    described: dict[str, tuple[dict[str, Any], ModelDescription]],
) -> None:
    needing = {
        name
        for name, (_, description) in described.items()
        if isinstance(description.needs, TfliteNeeds) and description.needs.edgetpu
    }
    assert needing == {"mobilenet_v1_025_128_edgetpu"}
    twin = described["mobilenet_v1_025_128_edgetpu"][1].needs
    assert isinstance(twin, TfliteNeeds)
    assert twin.custom_operators == ("edgetpu-custom-op",)
    assert twin.operators == {}


def test_labels_and_words_are_found_in_the_tail_and_metadata(
    shared_models: Path, described: dict[str, tuple[dict[str, Any], ModelDescription]]
) -> None:
    entry, description = described["mobilenet_v1_025_128"]
    assert description.labels == tuple((shared_models / entry["labels"]).read_text().splitlines())
    assert description.associated_files == ("imagenet_labels.txt",)
    assert description.name == "ImageClassifier"
    normalisation = description.inputs[0].normalisation
    assert normalisation is not None
    assert (normalisation.mean, normalisation.std) == ((127.5,), (127.5,))
    assert description.notes == ()


def test_the_signature_names_what_the_tensors_are(
    described: dict[str, tuple[dict[str, Any], ModelDescription]],
) -> None:
    (signature,) = described["basic_pitch_tflite"][1].signatures
    assert signature.key == "serving_default"
    assert signature.outputs == {
        "note": "StatefulPartitionedCall:1",
        "onset": "StatefulPartitionedCall:2",
        "contour": "StatefulPartitionedCall:0",
    }


def test_the_onnx_package_reads_the_same(
    shared_models: Path, described: dict[str, tuple[dict[str, Any], ModelDescription]]
) -> None:
    for entry, description in described.values():
        if description.format == "onnx":
            model = onnx.load(shared_models / entry["file"], load_external_data=False)
            assert_same_as_onnx(model, description)


def assert_same_as_onnx(model: Any, description: ModelDescription) -> None:
    needs = description.needs
    assert isinstance(needs, OnnxNeeds)
    assert needs.ir_version == model.ir_version
    assert needs.opsets == {o.domain or "ai.onnx": o.version for o in model.opset_import}
    assert set(needs.operators) == set(onnx_operators(model.graph))
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    assert [t.name for t in description.inputs] == [value.name for value in inputs]
    for tensor, value in zip(description.inputs, inputs, strict=True):
        declared = value.type.tensor_type
        assert tensor.datatype == ONNX_DATATYPES[declared.elem_type]
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in declared.shape.dim]
        assert tensor.shape == tuple(sizes)
        assert tensor.dim_names == tuple(d.dim_param for d in declared.shape.dim)


def onnx_operators(graph: Any) -> list[tuple[str, str]]:
    found = []
    for node in graph.node:
        found.append((node.domain or "ai.onnx", node.op_type))
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                found += onnx_operators(inner)
    return found


def test_the_generated_schema_reads_the_same(
    shared_models: Path, described: dict[str, tuple[dict[str, Any], ModelDescription]]
) -> None:
    for entry, description in described.values():
        if description.format == "tflite":
            data = (shared_models / entry["file"]).read_bytes()
            assert_same_as_schema(schema.ModelT.InitFromPackedBuf(data, 0), description)


def assert_same_as_schema(model: Any, description: ModelDescription) -> None:
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    versions: dict[str, int] = {}
    for code in model.operatorCodes:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        if number != schema.BuiltinOperator.CUSTOM:
            versions[names[number]] = max(versions.get(names[number], 0), code.version)
    assert isinstance(description.needs, TfliteNeeds)
    assert description.needs.operators == versions
    assert description.needs.schema_version == model.version
    assert description.producer == model.description.decode()
    main = model.subgraphs[0]
    for read, indices in ((description.inputs, main.inputs), (description.outputs, main.outputs)):
        for tensor, index in zip(read, indices, strict=True):
            there = main.tensors[index]
            assert tensor.name == there.name.decode()
            assert tensor.datatype == TFLITE_DATATYPES[there.type]
            assert tensor.default_shape == tuple(there.shape)


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_a_hostile_file_is_refused_or_described_as_it_must_be(
    shared_models: Path, name: str
) -> None:
    data = (shared_models / "invalid" / name).read_bytes()
    refusal = REFUSALS[name]
    if refusal is None:
        assert describe(data, filename=name).outputs
        return
    with pytest.raises(ModelRejected) as caught:
        describe(data, filename=name)
    assert refusal in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_hostile_file_is_left_out(index: dict[str, Any]) -> None:
    assert {Path(entry["file"]).name for entry in index["invalid"]} == set(REFUSALS)


def test_external_data_outside_the_pack_is_refused_by_its_own_check(shared_models: Path) -> None:
    data = (shared_models / "invalid" / "external_data_escape.onnx").read_bytes()
    needs = describe(data).needs
    assert isinstance(needs, OnnxNeeds)
    (external,) = needs.external_data
    assert external.location.endswith("/etc/passwd")
    with pytest.raises(ModelRejected, match="outside its pack"):
        check_external_data(needs.external_data, {"external_data_escape.onnx": 184})


def test_an_opset_of_the_future_is_carried_for_the_runtime_to_judge(shared_models: Path) -> None:
    needs = describe((shared_models / "invalid" / "future_opset.onnx").read_bytes()).needs
    assert isinstance(needs, OnnxNeeds)
    assert needs.opsets == {"ai.onnx": 999}


def test_the_largest_real_models_are_described_in_well_under_a_second(
    shared_models: Path, index: dict[str, Any]
) -> None:
    files = [(shared_models / entry["file"]).read_bytes() for entry in index["models"]]
    started = time.process_time()
    for data in files:
        describe(data)
    assert time.process_time() - started < 1.0
