"""Serve one ONNX model over MQTT from one process, tuned as far as paho and ONNX Runtime allow.

    python expert.py model-1.onnx 127.0.0.1:1883 sensors/+/accel predictions --qos 1

Takes Open Inference Protocol V2 requests in JSON, or with --raw the input tensor's bytes; answers
in kind. SIGHUP loads the file again beside the old one, which serves until the new one is warm: the
name may be a link, its target's name ends in the version.
"""

import argparse
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

# Before the imports that read them: no threads but ours, nothing sent home.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
import orjson
import paho.mqtt.client as mqtt

DTYPES = {"tensor(float)": np.float32, "tensor(int16)": np.int16, "tensor(uint8)": np.uint8}


class Model:
    """One loaded, warmed model; everything that messages share is made here, once."""

    def __init__(self, path: Path, threads: int) -> None:
        file = path.resolve()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        source, target = session.get_inputs()[0], session.get_outputs()[0]
        self.dtype, self.shape = DTYPES[source.type], source.shape
        self.source, self.targets, self.run = source.name, [target.name], session.run
        name, _, version = file.stem.rpartition("-")
        self.head = (
            b'"model_name":%b,"model_version":%b,"outputs":[{"name":%b,"datatype":"FP32",'
            % (*map(orjson.dumps, (name, version, target.name)),)
        )
        self.scores(np.zeros(self.shape, self.dtype))

    def scores(self, array: Any) -> Any:
        return self.run(self.targets, {self.source: array})[0]

    def answer_v2(self, payload: bytes) -> bytes:
        request = orjson.loads(payload)
        tensor = request["inputs"][0]
        scores = self.scores(np.array(tensor["data"], self.dtype).reshape(tensor["shape"]))
        return b'{"id":%b,%b"shape":%b,"data":%b}]}' % (
            orjson.dumps(request["id"]),
            self.head,
            orjson.dumps(scores.shape),
            orjson.dumps(scores.ravel().tolist()),
        )

    def answer_raw(self, payload: bytes) -> bytes:
        scores = self.scores(np.frombuffer(payload, self.dtype).reshape(self.shape))
        answer: bytes = scores.tobytes()
        return answer


class Server:
    """The model that serves now, and the connection."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = Model(Path(args.model), args.threads)
        self.loading = threading.Lock()
        # At QoS 1 the broker keeps what comes while this process is down; paho acknowledges a
        # message after on_message, so behind the answer on the same connection.
        keep = args.qos > 0
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=args.client_id if keep else "",
            clean_session=not keep,
        )
        self.client.max_inflight_messages_set(1000)
        self.client.on_socket_open = self.no_delay
        self.client.on_connect = self.subscribe
        self.client.on_message = self.on_message
        self.raw = args.raw

    def no_delay(self, _client: Any, _userdata: Any, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def subscribe(self, client: Any, _data: Any, _flags: Any, _reason: Any, _props: Any) -> None:
        client.subscribe(self.args.input, self.args.qos)

    def on_message(self, client: Any, _userdata: Any, message: Any) -> None:
        model = self.model
        try:
            answer = model.answer_raw if self.raw else model.answer_v2
            client.publish(self.args.output, answer(message.payload), self.args.qos)
        except Exception as error:  # one bad message must not end the stream
            print(f"{message.topic}: {error}", file=sys.stderr)

    def reload(self, *_: object) -> None:
        threading.Thread(target=self.load_beside, daemon=True).start()

    def load_beside(self) -> None:
        with self.loading:
            self.model = Model(Path(self.args.model), self.args.threads)

    def serve(self) -> None:
        signal.signal(signal.SIGHUP, self.reload)
        host, _, port = self.args.broker.partition(":")
        self.client.connect(host, int(port or 1883))
        self.client.loop_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("broker", help="host:port")
    parser.add_argument("input", help="topic filter of the requests")
    parser.add_argument("output", help="topic of the answers")
    parser.add_argument("--qos", type=int, default=0)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--client-id", default=f"expert-{os.uname().nodename}")
    Server(parser.parse_args()).serve()


if __name__ == "__main__":
    main()
