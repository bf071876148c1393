"""Both load generators send what they should and notice every answer that is not right."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import driver
from bench.driver import Driver
from bench.load import publish_packet, read_messages, remaining_length
from bench.stats import LoadReport

WANTED = ((0.25, 0.75), (0.5, 0.125))
# What a broker sends back for one message: its number and payload in, answers out.
Answers = Callable[[int, bytes], list[bytes]]


class FakeBroker:
    """A broker with one client, which itself answers what is published."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.published: list[tuple[str, bytes]] = []
        self.acknowledged = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        channel, _ = self._listener.accept()
        with channel, channel.makefile("rb") as stream:
            while head := stream.read(1):
                size = shift = 0
                while True:
                    (digit,) = stream.read(1)
                    size |= (digit & 127) << shift
                    shift += 7
                    if digit < 128:
                        break
                self._packet(channel, head[0], stream.read(size))

    def _packet(self, channel: socket.socket, head: int, body: bytes) -> None:
        kind = head >> 4
        if kind == 1:
            channel.sendall(b"\x20\2\0\0")
        elif kind == 8:
            # A straggler of an earlier run comes with the SUBACK.
            late = publish_packet("out", v2(99_000_000, WANTED[0]))
            channel.sendall(b"\x90\3" + body[:2] + body[-1:] + late)
        elif kind == 4:
            self.acknowledged += 1
        elif kind == 3:
            at = 2 + int.from_bytes(body[:2], "big")
            topic = body[2:at].decode()
            qos = head >> 1 & 3
            out = b"\x40\2" + body[at : at + 2] if qos else b""
            payload = body[at + 2 :] if qos else body[at:]
            number = len(self.published)
            self.published.append((topic, payload))
            for answer in self._answers(number, payload):
                out += publish_packet("out", answer, qos=qos, packet_id=number + 1)
            channel.sendall(out)


def v2(number: int, values: tuple[float, ...], version: str = "1") -> bytes:
    output = {"name": "scores", "shape": [1, len(values)], "datatype": "FP32", "data": values}
    answer = {"model_version": version, "id": f"{number:08}", "outputs": [output]}
    return json.dumps(answer).encode()


def sent_id(payload: bytes) -> int:
    return int(json.loads(payload)["id"])


def right(number: int, payload: bytes) -> list[bytes]:
    return [v2(sent_id(payload), WANTED[number % 2])]


def write_messages(path: Path, *, raw: bool) -> Path:
    parts = [struct.pack("<I", len(WANTED))]
    for kind, wanted in enumerate(WANTED):
        payload = bytes([kind]) * 200 if raw else b'{"id": "00000000", "kind": %d}' % kind
        id_at = -1 if raw else payload.index(b"0000")
        topic = f"in/{kind}".encode()
        parts.append(struct.pack("<IIiI", len(topic), len(payload), id_at, len(wanted)))
        parts += [topic, payload, struct.pack("<2f", *wanted)]
    path.write_bytes(b"".join(parts))
    return path


@pytest.fixture(scope="module", params=["c", "python"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if request.param == "python":
        return [sys.executable, "-m", "bench.load"]
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    made = driver.build(tmp_path_factory.mktemp("load"))
    assert made[-1] != "bench.load", "load.c does not compile"
    return made


@pytest.fixture
def broker_for() -> Iterator[Callable[[Answers], FakeBroker]]:
    brokers: list[FakeBroker] = []

    def start(answers: Answers) -> FakeBroker:
        brokers.append(FakeBroker(answers))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.close()


Start = Callable[[Answers], FakeBroker]


def windowed(
    command: list[str], broker: FakeBroker, folder: Path, *, qos: int = 0, raw: bool = False
) -> LoadReport:
    messages = write_messages(folder / "messages", raw=raw)
    return Driver(command, broker.port, qos, messages).window(4, 10, drain_ms=300)


def verdict(report: LoadReport) -> dict[str, int]:
    names = ("lost", "duplicates", "split", "stray", "wrong", "disordered")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


@pytest.mark.parametrize("qos", [0, 1])
def test_right_answers_are_all_counted(
    command: list[str], broker_for: Start, tmp_path: Path, qos: int
) -> None:
    broker = broker_for(right)
    report = windowed(command, broker, tmp_path, qos=qos)
    assert verdict(report) == {"stray": 1}  # the straggler
    assert (report.sent, report.answered) == (10, 10)
    assert [topic for topic, _ in broker.published] == ["in/0", "in/1"] * 5
    assert [sent_id(payload) % 1_000_000 for _, payload in broker.published] == list(range(10))
    assert all(0 < latency < 1e6 for latency in report.latencies_us)
    broker.close()
    assert broker.acknowledged == 10 * qos


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (lambda n, p: right(n, p) if n != 3 else [], {"lost": 1}),
        (lambda n, p: right(n, p) * (2 if n == 3 else 1), {"duplicates": 1}),
        (
            lambda n, p: right(n, p) + ([v2(sent_id(p), WANTED[1], "2")] if n == 3 else []),
            {"duplicates": 1, "split": 1},
        ),
        (lambda n, p: [v2(sent_id(p), (0.9, 0.1))] if n == 3 else right(n, p), {"wrong": 1}),
        (lambda n, p: [b'{"error": "no"}'] if n == 3 else right(n, p), {"lost": 1, "stray": 1}),
    ],
    ids=["lost", "twice", "by two models", "wrong values", "an error"],
)
def test_answers_that_are_not_right_are_noticed(
    command: list[str],
    broker_for: Start,
    tmp_path: Path,
    answers: Answers,
    expected: dict[str, int],
) -> None:
    found = verdict(windowed(command, broker_for(answers), tmp_path))
    expected = {**expected, "stray": expected.get("stray", 0) + 1}  # the straggler
    assert found == expected


def test_an_answer_out_of_order_is_noticed(
    command: list[str], broker_for: Start, tmp_path: Path
) -> None:
    kept: list[bytes] = []

    def swapped(number: int, payload: bytes) -> list[bytes]:
        if number == 2:
            kept.extend(right(number, payload))
            return []
        return right(number, payload) + (kept if number == 3 else [])

    found = verdict(windowed(command, broker_for(swapped), tmp_path))
    assert found == {"disordered": 1, "stray": 1}


def test_raw_answers_are_matched_by_their_values(
    command: list[str], broker_for: Start, tmp_path: Path
) -> None:
    def raw(number: int, payload: bytes) -> list[bytes]:
        assert payload == bytes([number % 2]) * 200
        return [struct.pack("<2f", *WANTED[number % 2])] if number != 3 else [b"1234567"]

    report = windowed(command, broker_for(raw), tmp_path, raw=True)
    # The straggler is no tensor either.
    assert (report.wrong, report.lost) == (2, 1)


def test_a_schedule_is_kept_and_latency_counts_from_it(
    command: list[str], broker_for: Start, tmp_path: Path
) -> None:
    messages = write_messages(tmp_path / "messages", raw=False)
    driver_ = Driver(command, broker_for(right).port, 0, messages)
    report = driver_.rate(500, 50, drain_ms=300)
    assert report.sent_us == pytest.approx([n * 2000 for n in range(50)])
    assert report.versions == "1" * 50
    assert len(report.arrivals) == 50


def test_the_first_answer_ends_the_probing(
    command: list[str], broker_for: Start, tmp_path: Path
) -> None:
    messages = write_messages(tmp_path / "messages", raw=False)
    broker = broker_for(lambda n, p: right(n, p) if n >= 5 else [])
    probing = Driver(command, broker.port, 0, messages)
    report = probing.finish(probing.start_first(500, 5000))
    assert report.answered == 1
    assert report.sent < 5000


def test_a_time_limit_ends_the_sending(
    command: list[str], broker_for: Start, tmp_path: Path
) -> None:
    messages = write_messages(tmp_path / "messages", raw=False)
    load = Driver(command, broker_for(right).port, 0, messages)
    report = load.window(2, 1_000_000, limit_ms=100, drain_ms=300)
    assert 0 < report.sent < 1_000_000
    assert (report.lost, report.wrong) == (0, 0)
    assert report.wall_s < 5


def test_messages_are_read_back(tmp_path: Path) -> None:
    first, second = read_messages(write_messages(tmp_path / "messages", raw=True))
    assert (first.topic, second.topic, second.id_at) == ("in/0", "in/1", -1)
    assert second.wanted == WANTED[1]


@pytest.mark.parametrize(
    ("size", "encoded"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\1"), (32_010, b"\x8a\xfa\1")]
)
def test_lengths_are_encoded_as_mqtt_says(size: int, encoded: bytes) -> None:
    assert remaining_length(size) == encoded


def test_a_run_that_fails_says_why(command: list[str], tmp_path: Path) -> None:
    messages = write_messages(tmp_path / "messages", raw=False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(driver.LoadFailed):
        Driver(command, port, 0, messages).window(1, 1)
    assert subprocess.run([*command], capture_output=True, check=False, cwd="/").returncode != 0
