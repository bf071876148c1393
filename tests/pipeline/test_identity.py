"""A pack without steps: a V2 request in, the model's own tensors, a V2 response out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agent.documents.manifest import Manifest, PackFile, Tensor, Tolerance, Variant
from agent.pipeline.chain import Chain, Incoming, ProducedBy, compile_chain
from agent.pipeline.message import RejectedMessage


def make_chain() -> Chain:
    inputs = (Tensor("x", "FP32", (-1, 3)),)
    outputs = (Tensor("y", "FP32", (-1, 2)),)
    variant = Variant("onnx", "m.onnx", "onnx", inputs, outputs, Tolerance(1e-4))
    manifest = Manifest(
        schema=1,
        name="tab",
        version="1.0.0",
        inputs=inputs,
        outputs=outputs,
        variants=(variant,),
        files={"m.onnx": PackFile("sha256:" + "0" * 64, 1)},
    )
    made = ProducedBy("sha256:" + "1" * 64, "onnx", "CPUExecutionProvider", "vibration")
    return compile_chain(manifest, variant, produced_by=made, id_prefix="boot")


def request(**fields: object) -> bytes:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, -3]}
    return json.dumps({"id": "m-1", "inputs": [{**tensor, **fields}]}).encode()


def test_a_request_becomes_a_response_with_the_same_id() -> None:
    chain = make_chain()
    step = chain.accept(Incoming(7, "sensors/a", request()))
    assert step.inputs is not None
    np.testing.assert_array_equal(step.inputs["x"], np.array([[1, 2.5, -3]], np.float32))
    prediction = chain.predict(step, {"y": np.array([[0.25, 0.75]], np.float32)})
    assert json.loads(chain.encode(step, prediction, 12)) == {
        "model_name": "tab",
        "model_version": "1.0.0",
        "id": "m-1",
        "outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [0.25, 0.75]}],
        "parameters": {
            "pack": "sha256:" + "1" * 64,
            "variant": "onnx",
            "runtime": "onnx",
            "provider": "CPUExecutionProvider",
            "slot": "vibration",
            "id_from": "payload",
            "run_us": 12,
        },
    }


def test_a_wrong_shape_is_named_with_the_message_id() -> None:
    with pytest.raises(RejectedMessage) as caught:
        make_chain().accept(Incoming(1, "a", request(shape=[1, 2], data=[1, 2])))
    assert caught.value.message == "inputs[0].shape: expected [-1,3], got [1,2]"
    assert caught.value.id == "m-1"
