"""What is read from ONNX models that are made for one question each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from agent.errors import ModelRejected
from agent.formats import onnx_survey
from agent.formats.description import ExternalData, ModelDescription, OnnxNeeds
from agent.formats.registry import describe
from tests.formats.building import external_tensor, nested_if, onnx_model

FLOAT = TensorProto.FLOAT


def read(model: Any) -> ModelDescription:
    return describe(model.SerializeToString())


def needs_of(model: Any) -> OnnxNeeds:
    needs = read(model).needs
    assert isinstance(needs, OnnxNeeds)
    return needs


def value(name: str, kind: int = FLOAT, shape: Any = (1,)) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def test_a_plain_model_is_described_whole() -> None:
    model = onnx_model(producer_name="maker", producer_version="2.1", doc_string="what it does")
    model.model_version = 7
    model.metadata_props.add(key="author", value="someone")
    description = read(model)
    assert description.producer == "maker 2.1"
    assert description.name == "graph"
    assert description.description == "what it does"
    assert description.model_version == "7"
    assert description.metadata == {"author": "someone"}
    assert description.needs == OnnxNeeds(8, {"ai.onnx": 17}, (("ai.onnx", "Relu"),))
    (x,) = description.inputs
    assert (x.name, x.datatype, x.shape, x.dim_names) == ("x", "FP32", (-1, 4), ("batch", ""))
    assert description.state == "none"
    assert not description.quantised
    assert description.notes == ()


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.DOUBLE, "FP64"),
        (TensorProto.BFLOAT16, "BF16"),
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.UINT64, "UINT64"),
        (TensorProto.STRING, "BYTES"),
    ],
)
def test_datatypes_carry_the_names_of_the_inference_protocol(kind: int, datatype: str) -> None:
    (x,) = read(onnx_model(inputs=[value("x", kind)])).inputs
    assert (x.datatype, x.kind) == (datatype, "tensor")


def test_a_datatype_that_no_payload_carries_is_named_but_not_given() -> None:
    (x,) = read(onnx_model(inputs=[value("x", TensorProto.COMPLEX64)])).inputs
    assert (x.datatype, x.kind) == ("", "tensor(COMPLEX64)")


def test_a_scalar_and_an_unsaid_shape_are_told_apart() -> None:
    description = read(
        onnx_model(inputs=[value("scalar", FLOAT, ()), value("unsaid", FLOAT, None)])
    )
    scalar, unsaid = description.inputs
    assert (scalar.shape, scalar.ranked) == ((), True)
    assert (unsaid.shape, unsaid.ranked) == ((), False)


def test_a_negative_dimension_is_free_and_a_zero_is_zero() -> None:
    (x,) = read(onnx_model(inputs=[value("x", FLOAT, (-7, 0, None))])).inputs
    assert x.shape == (-1, 0, -1)


def test_types_that_are_not_tensors_are_said_in_words() -> None:
    tensor = helper.make_tensor_type_proto(FLOAT, None)
    types = {
        "sequence(map(INT64,FP32))": helper.make_sequence_type_proto(
            helper.make_map_type_proto(TensorProto.INT64, tensor)
        ),
        "map(BYTES,FP32)": helper.make_map_type_proto(TensorProto.STRING, tensor),
        "sequence(FP32)": helper.make_sequence_type_proto(tensor),
        "optional(sequence(FP32))": helper.make_optional_type_proto(
            helper.make_sequence_type_proto(tensor)
        ),
        "sparse_tensor(FP32)": helper.make_sparse_tensor_type_proto(FLOAT, [1]),
    }
    outputs = [helper.make_value_info(kind, proto) for kind, proto in types.items()]
    description = read(onnx_model(outputs=outputs))
    assert [output.kind for output in description.outputs] == list(types)
    assert {output.datatype for output in description.outputs} == {""}
    assert len(description.notes) == len(types)


def test_an_output_without_a_type_is_left_to_the_runtime() -> None:
    output = helper.make_empty_tensor_value_info("y")
    (y,) = read(onnx_model(outputs=[output])).outputs
    assert (y.kind, y.datatype, y.ranked) == ("unknown", "", False)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_a_constant_that_is_listed_as_input_is_no_input(ir_version: int) -> None:
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    sparse = SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64)))
    model = onnx_model(
        inputs=[value("x"), value("w"), value("s")], initializers=[weights], ir_version=ir_version
    )
    model.graph.sparse_initializer.append(sparse)
    assert [t.name for t in read(model).inputs] == ["x"]


def test_operators_are_found_in_subgraphs_and_functions_and_own_functions_are_not_needs() -> None:
    function = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    nodes = [
        helper.make_node("Twice", ["x"], ["y"], domain="own"),
        nested_if(2, [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]),
    ]
    needs = needs_of(onnx_model(nodes, functions=[function], opsets=[("", 17), ("own", 1)]))
    assert needs.operators == (("ai.onnx", "Add"), ("ai.onnx", "If"), ("com.microsoft", "Gelu"))
    assert needs.opsets == {"ai.onnx": 18, "own": 1}
    assert needs.custom_operators == ()


def test_an_operator_of_a_foreign_domain_is_custom() -> None:
    node = helper.make_node("Magic", ["x"], ["y"], domain="com.example")
    needs = needs_of(onnx_model([node], opsets=[("", 17), ("com.example", 1)]))
    assert needs.custom_operators == (("com.example", "Magic"),)


def test_quantised_operators_and_random_ones_are_noticed() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("RandomNormal", [], ["y"], shape=[1]),
    ]
    description = read(onnx_model(nodes))
    assert description.quantised
    assert "random" in description.notes[0]


def test_class_names_of_detectors_become_labels() -> None:
    model = onnx_model()
    model.metadata_props.add(key="names", value="{0: 'person', 1: \"traffic light\"}")
    assert read(model).labels == ("person", "traffic light")


def attribute(name: str, content: Any) -> Any:
    """An attribute that holds tensors, dense or sparse, one or several."""
    return helper.make_node("Constant", [], [name], value=content)


def sparse_of(tensor: Any) -> Any:
    sparse = SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "v"))
    sparse.indices.CopyFrom(tensor)
    return sparse


def model_with_external_data(place: str) -> Any:
    """A model that hides a reference to `secret.bin` in one of the places that hold tensors."""
    tensor = external_tensor("secret.bin", offset="8", length="16")
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    function = helper.make_function(
        "own", "F", [], ["y"], [constant], [helper.make_opsetid("", 17)]
    )
    node = helper.make_node("Custom", [], ["y"], domain="own")
    list_of_tensors = node.attribute.add(name="many", type=9)
    model = onnx_model()
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "sparse_initializer":
        model.graph.sparse_initializer.append(sparse_of(tensor))
    elif place == "attribute":
        model.graph.node.append(constant)
    elif place == "tensors":
        list_of_tensors.tensors.append(tensor)
        model.graph.node.append(node)
    elif place == "sparse_tensor":
        node.attribute[0].sparse_tensor.CopyFrom(sparse_of(tensor))
        model.graph.node.append(node)
    elif place == "sparse_tensors":
        node.attribute[0].sparse_tensors.append(sparse_of(tensor))
        model.graph.node.append(node)
    elif place == "subgraph":
        model.graph.node.append(nested_if(5, [constant]))
    elif place == "subgraph initializer":
        outer = nested_if(1, [helper.make_node("Relu", ["x"], ["y"])])
        outer.attribute[1].g.initializer.append(tensor)
        model.graph.node.append(outer)
    elif place == "graphs":
        inner = node.attribute[0].graphs.add()
        inner.node.append(constant)
        model.graph.node.append(node)
    elif place == "function":
        model.functions.append(function)
    elif place == "function attribute":
        function.attribute_proto.append(constant.attribute[0])
        del function.node[:]
        model.functions.append(function)
    elif place == "training":
        model.training_info.add().algorithm.node.append(constant)
    return model


@pytest.mark.parametrize(
    "place",
    [
        *("initializer", "sparse_initializer", "attribute", "tensors", "sparse_tensor"),
        *("sparse_tensors", "subgraph", "subgraph initializer", "graphs", "function"),
        *("function attribute", "training"),
    ],
)
def test_external_data_is_found_wherever_a_tensor_can_be(place: str) -> None:
    needs = needs_of(model_with_external_data(place))
    assert needs.external_data == (ExternalData("secret.bin", 8, 16),)


def test_external_data_without_its_flag_or_said_twice_counts_too() -> None:
    tensor = external_tensor("a.bin")
    tensor.data_location = TensorProto.DEFAULT
    tensor.external_data.add(key="location", value="b.bin")
    needs = needs_of(onnx_model(initializers=[tensor]))
    assert {data.location for data in needs.external_data} == {"a.bin", "b.bin"}


def test_external_data_without_a_location_is_listed_for_the_check_to_refuse() -> None:
    tensor = external_tensor("x")
    del tensor.external_data[:]
    assert needs_of(onnx_model(initializers=[tensor])).external_data == (ExternalData(""),)


def test_a_model_that_comes_in_two_pieces_is_merged_as_protobuf_does() -> None:
    first = onnx_model().SerializeToString()
    second = onnx_model(
        [helper.make_node("Sigmoid", ["x"], ["y2"])],
        inputs=[value("x2")],
        outputs=[value("y2")],
        initializers=[external_tensor("w.bin")],
    ).SerializeToString()
    description = describe(first + second)
    assert [t.name for t in description.inputs] == ["x", "x2"]
    assert isinstance(description.needs, OnnxNeeds)
    assert ("ai.onnx", "Sigmoid") in description.needs.operators
    assert description.needs.external_data == (ExternalData("w.bin"),)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.ClearField("graph"), "no graph"),
        (lambda m: m.ClearField("opset_import"), "no operator set"),
        (lambda m: m.graph.ClearField("output"), "no output"),
        (lambda m: m.graph.output.add(), "an output has no name"),
        (lambda m: m.graph.input.extend([value("x")]), "2 inputs are called 'x'"),
        (lambda m: m.graph.node.add(), "no op_type"),
    ],
)
def test_an_incomplete_model_is_refused_with_the_reason(change: Any, reason: str) -> None:
    model = onnx_model()
    change(model)
    with pytest.raises(ModelRejected, match=reason):
        read(model)


def test_a_name_that_would_move_the_cursor_is_refused_and_shown_harmless() -> None:
    with pytest.raises(ModelRejected, match="control characters") as caught:
        read(onnx_model(inputs=[value("a\x1b[2Jb")]))
    assert "\x1b" not in str(caught.value)


def test_words_for_people_lose_their_control_characters() -> None:
    model = onnx_model(doc_string="red \x1b[31m text\x07")
    assert read(model).description == "red [31m text"


def test_a_model_of_before_operator_sets_means_the_first_one() -> None:
    model = onnx_model(ir_version=2)
    del model.opset_import[:]
    assert needs_of(model).opsets == {"ai.onnx": 1}


def test_graphs_nest_to_the_limit_and_not_further() -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]

    def single(depth: int) -> Any:
        nodes = list(relu)
        for _ in range(depth):
            branch = helper.make_graph(nodes, "g", [], [helper.make_empty_tensor_value_info("y")])
            nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch)]
        return onnx_model(nodes)

    limit = onnx_survey.MAX_GRAPH_DEPTH
    assert read(single(limit - 1)).outputs
    with pytest.raises(ModelRejected, match=f"more than {limit} deep"):
        read(single(limit))


def test_more_nodes_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_survey, "MAX_NODES", 3)
    relu = helper.make_node("Relu", ["x"], ["y"])
    assert read(onnx_model([relu] * 3)).outputs
    with pytest.raises(ModelRejected, match="more than 3 nodes"):
        read(onnx_model([relu] * 4))


def test_a_forest_of_a_million_numbers_is_passed_over_quickly() -> None:
    forest = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml")
    forest.attribute.add(name="values", type=6).floats.extend([0.5] * 500_000)
    forest.attribute.add(name="ids", type=7).ints.extend(range(500_000))
    forest.attribute.add(name="tensor", type=4).t.CopyFrom(external_tensor("after.bin"))
    needs = needs_of(onnx_model([forest]))
    assert needs.external_data == (ExternalData("after.bin"),)


@pytest.mark.parametrize("name", ["squeezenet", "bvlc_alexnet", "resnet50", "densenet121"])
def test_networks_that_list_every_constant_as_input_have_one_input(name: str) -> None:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    description = describe((folder / f"light_{name}.onnx").read_bytes())
    (x,) = description.inputs
    assert (x.datatype, x.shape) == ("FP32", (1, 3, 224, 224))
    assert isinstance(description.needs, OnnxNeeds)
    assert description.needs.ir_version == 3
    assert ("ai.onnx", "Conv") in description.needs.operators
