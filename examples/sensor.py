"""A sensor and a consumer in one: sends readings, waits for the prediction to each.

For the model of README.md (four `readings`). Needs paho-mqtt, 1.6 or newer.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import sys
import threading
import time
from typing import Any

import paho.mqtt.client as paho


class Consumer:
    """Collects answers by the id of their message; a repeat is seen and dropped."""

    def __init__(self) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.repeats = 0
        self.changed = threading.Condition()

    def on_message(self, client: paho.Client, data: object, message: paho.MQTTMessage) -> None:
        answer = json.loads(message.payload)
        with self.changed:
            # At QoS 1 a message, and so its prediction, may come twice.
            self.repeats += answer["id"] in self.answers
            self.answers.setdefault(answer["id"], answer)
            self.changed.notify_all()


def connect(broker: str, client_id: str) -> paho.Client:
    """Connect with a session that the broker keeps: what comes while we are away, waits."""
    newer = getattr(paho, "CallbackAPIVersion", None)
    version = (newer.VERSION2,) if newer else ()
    client = paho.Client(*version, client_id=client_id, clean_session=False)
    host, _, port = broker.partition(":")
    client.connect(host, int(port or 1883))
    return client


def reading(number: int) -> dict[str, Any]:
    """A request of the Open Inference Protocol V2, with an id that nobody else has."""
    values = [math.sin(number / 10 + i) for i in range(4)]
    tensor = {"name": "readings", "shape": [1, 4], "datatype": "FP32", "data": values}
    return {"id": f"{secrets.token_hex(4)}-{number}", "inputs": [tensor]}


def main() -> int:
    parser = argparse.ArgumentParser(description="Send readings, print what the model says.")
    parser.add_argument("--broker", default="127.0.0.1:1883", metavar="HOST:PORT")
    parser.add_argument("--count", type=int, default=100, help="how many readings")
    options = parser.parse_args()
    consumer, client = Consumer(), connect(options.broker, "example-sensor")
    client.on_message = consumer.on_message
    client.subscribe("predictions/#", qos=1)
    client.loop_start()
    began = time.monotonic()
    sent = {request["id"]: request for request in map(reading, range(options.count))}
    for request in sent.values():
        client.publish("sensors/left/accel", json.dumps(request), qos=1)
    with consumer.changed:
        consumer.changed.wait_for(lambda: sent.keys() <= consumer.answers.keys(), 10.0)
    answers = [consumer.answers[key] for key in sent if key in consumer.answers]
    refused = [answer for answer in answers if "error" in answer]
    print(f"{len(sent)} sent, {len(answers)} answered in {time.monotonic() - began:.2f} s")
    print(f"{len(refused)} refused, {consumer.repeats} repeats; the last: {answers[-1:]}")
    client.disconnect()
    return 0 if len(answers) == len(sent) and not refused else 1


if __name__ == "__main__":
    sys.exit(main())
