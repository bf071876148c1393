"""Changes of a file in ONNX Runtime's own format that keep most of it meaningful."""

from __future__ import annotations

from tests.campaign import flat_changes
from tests.campaign.flat_changes import Change, numbers

CHANGES: dict[str, Change] = {
    **flat_changes.CHANGES,
    "dims": numbers("Tensor.dims", near=512),
    "data type": numbers("Tensor.data_type", near=24),
    "value type": numbers("TensorType.elem_type", "TypeInfo.value_type", near=24),
    "value shape": numbers("DimensionValue.dim_value", "DimensionValue.dim_type", near=512),
    "node": numbers("Node.since_version", "Node.type", "Node.input_arg_counts", near=24),
    "node index": numbers(
        *("Node.index", "Graph.max_node_index", "NodeEdge.node_index"),
        *("NodeEdge.input_edges", "NodeEdge.output_edges"),
        near=32,
    ),
    "attribute value": numbers(
        *("Attribute.type", "Attribute.f", "Attribute.i", "Attribute.floats", "Attribute.ints"),
        near=16,
    ),
    "external data": numbers("Tensor.external_data_offset", near=4096),
    "opset": numbers("OperatorSetId.version", "Model.ir_version", near=30),
}
