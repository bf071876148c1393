"""Serve one ONNX model over MQTT: the script one writes first.

    python plain.py model-1.onnx 127.0.0.1:1883 sensors/+/accel predictions --qos 1

Takes Open Inference Protocol V2 requests in JSON, or with --raw the input tensor's bytes; answers
in kind. SIGHUP loads the file again: the name may be a link, its target's name ends in the version.
"""

import argparse
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import paho.mqtt.client as mqtt

DTYPES = {"tensor(float)": np.float32, "tensor(int16)": np.int16, "tensor(uint8)": np.uint8}


class Model:
    """A loaded model and what it answers."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.load()

    def load(self) -> None:
        file = self.path.resolve()
        self.name, _, self.version = file.stem.rpartition("-")
        self.session = ort.InferenceSession(file)
        self.input = self.session.get_inputs()[0]
        self.output = self.session.get_outputs()[0]
        self.dtype = DTYPES[self.input.type]

    def run(self, array: Any) -> Any:
        return self.session.run(None, {self.input.name: array})[0]

    def answer_v2(self, payload: bytes) -> str:
        request = json.loads(payload)
        tensor = request["inputs"][0]
        scores = self.run(np.array(tensor["data"], dtype=self.dtype).reshape(tensor["shape"]))
        output = {
            "name": self.output.name,
            "shape": scores.shape,
            "datatype": "FP32",
            "data": scores.flatten().tolist(),
        }
        answer = {
            "id": request["id"],
            "model_name": self.name,
            "model_version": self.version,
            "outputs": [output],
        }
        return json.dumps(answer)

    def answer_raw(self, payload: bytes) -> bytes:
        array = np.frombuffer(payload, dtype=self.dtype).reshape(self.input.shape)
        answer: bytes = self.run(array).tobytes()
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("broker", help="host:port")
    parser.add_argument("input", help="topic filter of the requests")
    parser.add_argument("output", help="topic of the answers")
    parser.add_argument("--qos", type=int, default=0)
    parser.add_argument("--raw", action="store_true")
    args = parser.parse_args()

    model = Model(args.model)
    signal.signal(signal.SIGHUP, lambda *_: model.load())

    def on_connect(client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        client.subscribe(args.input, args.qos)

    def on_message(client: Any, userdata: Any, message: Any) -> None:
        answer = model.answer_raw if args.raw else model.answer_v2
        client.publish(args.output, answer(message.payload), args.qos)

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = on_connect
    client.on_message = on_message
    host, _, port = args.broker.partition(":")
    client.connect(host, int(port or 1883))
    client.loop_forever()


if __name__ == "__main__":
    main()
