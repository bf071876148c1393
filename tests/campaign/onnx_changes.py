"""Changes of an ONNX file that keep most of it meaningful."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import onnx
from onnx import TensorProto, helper

WILD = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**40, 2**62)
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1e-45, 3.4e38)
OPERATORS = (
    *("Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Compress"),
    *("Concat", "ConstantOfShape", "Conv", "ConvTranspose", "CumSum", "DepthToSpace", "Det", "Div"),
    *(
        "DynamicQuantizeLinear",
        "Einsum",
        "Expand",
        "EyeLike",
        "Flatten",
        "GRU",
        "Gather",
        "GatherND",
    ),
    *("Gemm", "GridSample", "Identity", "If", "InstanceNormalization", "LRN", "LSTM", "Loop"),
    *("MatMul", "MatMulInteger", "MaxPool", "MaxUnpool", "NonMaxSuppression", "NonZero", "OneHot"),
    *("Optional", "Pad", "Pow", "QLinearConv", "QuantizeLinear", "RNN", "RandomNormal", "Range"),
    *("ReduceSum", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "STFT", "Scan"),
    *("ScatterElements", "SequenceAt", "Shape", "Slice", "Softmax", "SpaceToDepth", "Split"),
    *("SplitToSequence", "Squeeze", "StringNormalizer", "Tile", "TopK", "Transpose", "Unsqueeze"),
    *("TreeEnsembleClassifier", "ZipMap", "LinearClassifier", "FusedConv", "Attention", "NoSuchOp"),
)
DOMAINS = ("", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "no.such.domain", "\x07")
LOCATIONS = (
    *("/etc/passwd", "../manifest.json", "manifest.json", "selftest/000.json", "missing.bin", ""),
    *("/proc/self/mem", "/dev/zero", "..", "a/../../etc/passwd", "C:\\x", "*/_ORT_MEM_ADDR_/*"),
)
ODD_NAMES = ("", "\x00", "\x1b[31m\n", "n" * 70_000, "é" * 600, "../x", "%s%n", "\u202e")

Change = Callable[[Any, Random], bool]


def graphs(model: Any) -> Iterator[Any]:
    """Yield the main graph and those inside its nodes."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def _nodes(model: Any) -> list[Any]:
    return [node for graph in graphs(model) for node in graph.node]


def _attributes(model: Any) -> list[Any]:
    return [attribute for node in _nodes(model) for attribute in node.attribute]


def _tensors(model: Any) -> list[Any]:
    constants = [tensor for graph in graphs(model) for tensor in graph.initializer]
    return constants + [a.t for a in _attributes(model) if a.HasField("t")]


def _values(model: Any) -> list[Any]:
    return [
        value
        for graph in graphs(model)
        for values in (graph.input, graph.output, graph.value_info)
        for value in values
    ]


def dims(model: Any, random: Random) -> bool:
    """A constant has other sizes than its data."""
    tensors = _tensors(model)
    if not tensors:
        return False
    tensor = random.choice(tensors)
    how = random.choice(("set", "set", "longer", "shorter", "many"))
    if how == "set" and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(WILD)
    elif how == "shorter" and tensor.dims:
        del tensor.dims[-1]
    else:
        tensor.dims.extend([random.choice(WILD)] * (1 if how != "many" else 100))
    return True


def data_type(model: Any, random: Random) -> bool:
    tensors = _tensors(model)
    if not tensors:
        return False
    random.choice(tensors).data_type = random.choice((random.randrange(30), 99, -1))
    return True


def value_type(model: Any, random: Random) -> bool:
    """An input or output is of another type, or no tensor at all."""
    values = _values(model)
    if not values:
        return False
    declared = random.choice(values).type
    kind = random.choice(("other", "other", "sequence", "optional", "map", "sparse", "none"))
    if kind == "other":
        declared.tensor_type.elem_type = random.choice((random.randrange(30), 99, -1))
    elif kind == "sequence":
        declared.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    elif kind == "optional":
        declared.optional_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    elif kind == "map":
        declared.map_type.key_type = TensorProto.INT64
        declared.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    elif kind == "sparse":
        declared.sparse_tensor_type.elem_type = TensorProto.FLOAT
    else:
        declared.Clear()
    return True


def value_shape(model: Any, random: Random) -> bool:
    values = [value for value in _values(model) if value.type.HasField("tensor_type")]
    if not values:
        return False
    tensor = random.choice(values).type.tensor_type
    how = random.choice(("set", "set", "named", "longer", "shorter", "none", "many"))
    dimensions = tensor.shape.dim
    if how == "set" and dimensions:
        random.choice(dimensions).dim_value = random.choice(WILD)
    elif how == "named" and dimensions:
        random.choice(dimensions).dim_param = random.choice(("N", "\n", "", "n" * 5000))
    elif how == "shorter" and dimensions:
        del dimensions[-1]
    elif how == "none":
        tensor.ClearField("shape")
    else:
        for _ in range(1 if how != "many" else 100):
            dimensions.add(dim_value=random.choice(WILD))
    return True


def operator(model: Any, random: Random) -> bool:
    """A node is of another kind, which the rest of it may suit or not."""
    nodes = _nodes(model)
    if not nodes:
        return False
    node = random.choice(nodes)
    if random.random() < 0.2:
        node.domain = random.choice(DOMAINS)
    else:
        node.op_type = random.choice((*OPERATORS, random.choice(nodes).op_type, ""))
    return True


def attribute_value(model: Any, random: Random) -> bool:
    attributes = _attributes(model)
    if not attributes:
        return False
    attribute = random.choice(attributes)
    kind = attribute.type
    if kind == onnx.AttributeProto.INT:
        attribute.i = random.choice(WILD)
    elif kind == onnx.AttributeProto.FLOAT:
        attribute.f = random.choice(FLOATS)
    elif kind == onnx.AttributeProto.STRING:
        attribute.s = random.choice((b"", b"\xff\n", b"s" * 70_000, b"NOTSET", b"bilinear"))
    elif kind in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        numbers = attribute.ints if kind == onnx.AttributeProto.INTS else attribute.floats
        _numbers(numbers, WILD if kind == onnx.AttributeProto.INTS else FLOATS, random)
    else:
        return False
    return True


def _numbers(numbers: Any, wild: Sequence[float], random: Random) -> None:
    how = random.choice(("set", "set", "set", "longer", "shorter"))
    if how == "set" and numbers:
        for _ in range(random.choice((1, 1, 8))):
            numbers[random.randrange(len(numbers))] = random.choice(wild)
    elif how == "shorter" and numbers:
        del numbers[random.randrange(len(numbers)) :]
    else:
        numbers.extend([random.choice(wild)] * random.choice((1, 100)))


def attributes(model: Any, random: Random) -> bool:
    """Attributes that are missing, said twice, of another type, or of another name."""
    nodes = [node for node in _nodes(model) if node.attribute]
    if not nodes:
        return False
    node = random.choice(nodes)
    place = random.randrange(len(node.attribute))
    how = random.choice(("missing", "twice", "type", "name", "added"))
    if how == "missing":
        del node.attribute[place]
    elif how == "twice":
        node.attribute.append(node.attribute[place])
    elif how == "type":
        node.attribute[place].type = random.randrange(16)
    elif how == "name":
        node.attribute[place].name = random.choice(("axis", "no_such", "", "kernel_shape"))
    else:
        name = random.choice(("axis", "kernel_shape", "pads", "strides", "group", "perm", "to"))
        node.attribute.append(helper.make_attribute(name, [random.choice(WILD)] * 2))
    return True


def constant_bytes(model: Any, random: Random) -> bool:
    """The data of a constant is shorter, longer, missing, or there twice."""
    tensors = [tensor for tensor in _tensors(model) if tensor.raw_data]
    if not tensors:
        return False
    tensor = random.choice(tensors)
    how = random.choice(("shorter", "longer", "missing", "twice"))
    if how == "shorter":
        tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data))]
    elif how == "longer":
        tensor.raw_data += bytes(random.choice((1, 4, 65536)))
    elif how == "missing":
        tensor.ClearField("raw_data")
    else:
        tensor.float_data.extend([1.0] * 4)
    return True


def external_data(model: Any, random: Random) -> bool:
    """Weights are said to lie in another file."""
    tensors = _tensors(model)
    if not tensors:
        return False
    tensor = random.choice(tensors)
    if random.random() < 0.8:
        tensor.ClearField("raw_data")
    if random.random() < 0.8:
        tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=random.choice(LOCATIONS))
    for key in ("offset", "length"):
        if random.random() < 0.5:
            number = str(random.choice((*WILD, "", "1e9", "0x10", "9" * 30)))
            tensor.external_data.add(key=key, value=number)
    return True


def endless(model: Any, random: Random) -> bool:
    """A loop of so many rounds comes before the answer."""
    output = _moved_output(model)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still_on"]),
            helper.make_node(random.choice(("Identity", "Neg", "Abs")), ["in"], ["out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            onnx.ValueInfoProto(name="in"),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            onnx.ValueInfoProto(name="out"),
        ],
    )
    rounds = random.choice((0, 1, 3, 5, 1000, 1000, -1, -1, 2**31, 2**62))
    model.graph.initializer.append(helper.make_tensor("rounds", TensorProto.INT64, [], [rounds]))
    model.graph.initializer.append(helper.make_tensor("go", TensorProto.BOOL, [], [True]))
    model.graph.node.append(
        helper.make_node("Loop", ["rounds", "go", f"{output}_inner"], [output], body=body)
    )
    return True


def _moved_output(model: Any) -> str:
    """Rename what makes the first output, so that another node can stand in between."""
    output = str(model.graph.output[0].name)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = f"{output}_inner"
    return output


def growth(model: Any, random: Random) -> bool:
    """A few bytes that ask for a great deal of memory."""
    output = _moved_output(model)
    sizes = random.choice(([2**20, 2**12], [2**31, 2], [2**40], [2**62, 4], [50_000, 50_000], [-5]))
    shape = helper.make_tensor("sizes", TensorProto.INT64, [len(sizes)], sizes)
    model.graph.initializer.append(shape)
    kind = random.choice(("ConstantOfShape", "Expand", "Tile", "Reshape", "Pad", "RandomNormal"))
    if kind == "ConstantOfShape":
        node = helper.make_node(kind, ["sizes"], [output])
    elif kind == "RandomNormal":
        node = helper.make_node(kind, [], [output], shape=sizes)
    else:
        node = helper.make_node(kind, [f"{output}_inner", "sizes"], [output])
    model.graph.node.append(node)
    return True


def cycle(model: Any, random: Random) -> bool:
    nodes = [node for node in model.graph.node if node.input and node.output]
    if not nodes:
        return False
    first = random.randrange(len(nodes))
    later = random.randrange(first, len(nodes))
    taker = nodes[first]
    taker.input[random.randrange(len(taker.input))] = random.choice(nodes[later].output)
    return True


def clash(model: Any, random: Random) -> bool:
    """Two things of one name."""
    graph = model.graph
    names = [name for node in graph.node for name in node.output]
    names += [tensor.name for tensor in graph.initializer]
    how = random.choice(("output", "constant", "input", "node"))
    if how == "output" and graph.node and random.choice(graph.node).output:
        node = random.choice([node for node in graph.node if node.output])
        node.output[random.randrange(len(node.output))] = random.choice(names)
    elif how == "constant" and graph.initializer:
        random.choice(graph.initializer).name = random.choice(names)
    elif how == "input" and graph.input:
        graph.input.append(random.choice(graph.input))
    else:
        for node in graph.node:
            node.name = "same"
    return True


def wiring(model: Any, random: Random) -> bool:
    """Inputs of nodes are missing, swapped, left out, or made by nobody."""
    nodes = [node for node in _nodes(model) if node.input]
    if not nodes:
        return False
    node, other = random.choice(nodes), random.choice(nodes)
    place = random.randrange(len(node.input))
    how = random.choice(("nobody", "left out", "other", "fewer", "more", "outputs"))
    if how == "fewer":
        del node.input[place:]
    elif how == "more":
        node.input.extend([node.input[place]] * random.choice((1, 50)))
    elif how == "outputs":
        node.output.extend([f"extra{n}" for n in range(random.choice((1, 50)))])
    else:
        taken = {"nobody": "no_such_value", "left out": "", "other": random.choice(other.input)}
        node.input[place] = taken[how]
    return True


def names(model: Any, random: Random) -> bool:
    """Names that are missing, endless, or not for a terminal."""
    things = [*_nodes(model), *_values(model), *_tensors(model), model.graph]
    random.choice(things).name = random.choice(ODD_NAMES)
    return True


def opset(model: Any, random: Random) -> bool:
    how = random.choice(("version", "version", "domain", "none", "twice", "ir"))
    if how == "none":
        del model.opset_import[:]
    elif how == "ir":
        model.ir_version = random.choice((*WILD, *range(1, 15)))
    elif how == "twice":
        model.opset_import.add(domain=random.choice(DOMAINS), version=random.choice(WILD))
    elif how == "domain":
        random.choice(model.opset_import).domain = random.choice(DOMAINS)
    else:
        random.choice(model.opset_import).version = random.choice((*range(1, 30), *WILD))
    return True


def order(model: Any, random: Random) -> bool:
    """Nodes are left out, doubled or shuffled."""
    nodes = list(model.graph.node)
    if not nodes:
        return False
    how = random.choice(("removed", "doubled", "shuffled", "many", "none"))
    if how == "removed":
        del nodes[random.randrange(len(nodes))]
    elif how == "doubled":
        nodes.append(random.choice(nodes))
    elif how == "shuffled":
        random.shuffle(nodes)
    elif how == "none":
        nodes = []
    else:
        extra = [
            helper.make_node("Identity", [nodes[-1].output[0]], [f"i{n}"]) for n in range(9000)
        ]
        nodes += extra
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return True


def functions(model: Any, random: Random) -> bool:
    """Functions of the file's own that call themselves or each other."""
    output = _moved_output(model)
    pair = random.choice((("f", "f"), ("f", "g"), ("f", "no_such"), ("f", "Relu")))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for name, called in sorted({pair, pair[::-1]}):
        node = helper.make_node(called, ["a"], ["b"], domain="" if called == "Relu" else "own")
        model.functions.append(helper.make_function("own", name, ["a"], ["b"], [node], imports))
    model.opset_import.add(domain="own", version=1)
    model.graph.node.append(helper.make_node("f", [f"{output}_inner"], [output], domain="own"))
    return True


def sparse(model: Any, random: Random) -> bool:
    """A constant is sparse, with indices that may lie anywhere."""
    if not model.graph.initializer:
        return False
    tensor = random.choice(model.graph.initializer)
    count = random.choice((1, 2, 5))
    values = helper.make_tensor(tensor.name, TensorProto.FLOAT, [count], [1.0] * count)
    places = [random.choice(WILD) for _ in range(count)]
    indices = helper.make_tensor("", TensorProto.INT64, [count], places)
    shape = list(tensor.dims) if random.random() < 0.5 else [random.choice(WILD)]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, shape))
    model.graph.initializer.remove(tensor)
    return True


def weights(model: Any, random: Random) -> bool:
    """Weights that are no numbers, or no ordinary ones."""
    tensors = [tensor for tensor in _tensors(model) if len(tensor.raw_data) >= 4]
    if not tensors:
        return False
    for _ in range(random.choice((1, 4, 32))):
        tensor = random.choice(tensors)
        raw = bytearray(tensor.raw_data)
        position = random.randrange(len(raw) // 4) * 4
        struct.pack_into("<f", raw, position, random.choice(FLOATS))
        tensor.raw_data = bytes(raw)
    return True


def quantisation(model: Any, random: Random) -> bool:
    """A scale or zero point (the second and third input) becomes another."""
    makers = [node for node in _nodes(model) if "Linear" in node.op_type and len(node.input) > 1]
    named = {name for node in makers for name in list(node.input)[1:]}
    tensors = [tensor for tensor in _tensors(model) if tensor.name in named and tensor.raw_data]
    if not tensors:
        return False
    tensor = random.choice(tensors)
    if len(tensor.raw_data) == 4:
        tensor.raw_data = struct.pack("<f", random.choice(FLOATS))
    else:
        tensor.raw_data = random.randbytes(len(tensor.raw_data))
    return True


def words(model: Any, random: Random) -> bool:
    """What the author said of the model, and class names."""
    for _ in range(random.choice((1, 500))):
        key = random.choice(("names", "author", "\x1b[2J", "k" * 9000))
        text = random.choice(("{0: 'a', 1: 'b'}", "{0: '" * 9000, "\x00", "v" * 90_000))
        model.metadata_props.add(key=key, value=text)
    model.producer_name = random.choice(ODD_NAMES)
    return True


CHANGES: dict[str, Change] = {
    "dims": dims,
    "data type": data_type,
    "value type": value_type,
    "value shape": value_shape,
    "operator": operator,
    "attribute value": attribute_value,
    "attributes": attributes,
    "constant bytes": constant_bytes,
    "external data": external_data,
    "endless": endless,
    "growth": growth,
    "cycle": cycle,
    "clash": clash,
    "wiring": wiring,
    "names": names,
    "opset": opset,
    "order": order,
    "functions": functions,
    "sparse": sparse,
    "weights": weights,
    "quantisation": quantisation,
    "words": words,
}


def changed(change: Change, data: bytes, random: Random) -> bytes | None:
    """Return a model with one change made; None where it has nothing to change."""
    model = onnx.ModelProto.FromString(data)
    return bytes(model.SerializeToString(deterministic=True)) if change(model, random) else None
