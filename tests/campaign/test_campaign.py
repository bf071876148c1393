"""A short campaign: damaged model files end in a reason, and only their workers may die.

`make campaign-models` runs a long one; `docs/robustness.md` has its figures.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from agent.demo.models import build_models
from agent.errors import ModelRejected, WorkerExited
from tests.campaign import outcome
from tests.campaign.lane import Order
from tests.campaign.mutations import Origin, mutate
from tests.campaign.outcome import ENDS, Outcome
from tests.campaign.run import REPOSITORY, Campaign, replay
from tests.campaign.sources import Source, make_sources, shared_files
from tests.campaign.table import markdown, result
from tests.conftest import SHARED_MODELS

SEED, FILES, SECONDS = 5, 150, 20.0
SMALL = ("hello_world_sine_int8", "breast_cancer_logreg_zipmap", "mnist_lstm_int8")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """The demo's models, and a few real ones where the machine has them."""
    folder = tmp_path_factory.mktemp("models")
    built = build_models(folder)
    files = {"bearing": built.bearing_v1.file, "thermal": built.thermal.file}
    if (SHARED_MODELS / "index.json").is_file():
        files |= {n: f for n, f in shared_files(SHARED_MODELS).items() if n in SMALL}
    return make_sources(files, folder / "packs")


@pytest.fixture(scope="module")
def origins(sources: list[Source]) -> list[Origin]:
    return [source.origin() for source in sources]


def test_each_damaged_file_ends_in_a_reason_and_nothing_but_its_worker_dies(
    sources: list[Source], tmp_path: Path
) -> None:
    campaign = Campaign(sources, tmp_path, lambda found: None)
    campaign.run([Order(SEED, number) for number in range(FILES)], until=time.monotonic() + SECONDS)
    assert [(one.id, one.offences) for one in campaign.outcomes if one.offences] == []
    assert len(campaign.outcomes) > FILES // 10
    assert {one.end for one in campaign.outcomes} <= set(ENDS)
    figures = result(campaign.outcomes, seed=SEED, seconds=1.0, sources=[])
    assert sum(sum(row.values()) for row in figures["ends"].values()) == len(campaign.outcomes)
    assert "**0 offences.**" in markdown(figures)


def test_the_models_themselves_are_served_with_the_right_answer(
    sources: list[Source], tmp_path: Path
) -> None:
    campaign = Campaign(sources, tmp_path, lambda found: None)
    files = [(one.name, str(Path(one.directory) / one.variant().file)) for one in sources]
    campaign.run([Order(0, n, file, name) for n, (name, file) in enumerate(files)])
    assert {(one.end, one.offences) for one in campaign.outcomes} == {(outcome.RIGHT, ())}
    assert {one.format for one in campaign.outcomes} == {"onnx", "ort", "tflite"}


def test_the_same_seed_gives_the_same_files_in_any_process(
    origins: list[Origin], tmp_path: Path
) -> None:
    here = [mutate(origins, SEED, number) for number in range(60)]
    assert len({file.data for file in here}) > 50
    assert len({file.mutation for file in here}) > 15
    (tmp_path / "origins").write_bytes(msgspec.msgpack.encode(origins))
    script = (
        "import sys, msgspec, hashlib\n"
        "from pathlib import Path\n"
        "from tests.campaign.mutations import Origin, mutate\n"
        "origins = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=list[Origin])\n"
        f"files = [mutate(origins, {SEED}, n).data for n in range(60)]\n"
        "print(*(hashlib.sha256(data).hexdigest() for data in files))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "origins")]
    there = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=50)
    assert there.stdout.decode().split() == digests([file.data for file in here])


def digests(files: Sequence[bytes]) -> list[str]:
    return [hashlib.sha256(data).hexdigest() for data in files]


def test_a_lane_that_dies_is_an_offence_and_its_file_is_kept_and_replayed(
    sources: list[Source], tmp_path: Path
) -> None:
    # A file of a model that the lane has never heard of ends it.
    bad = tmp_path / "bad"
    bad.write_bytes(b"bytes")
    campaign = Campaign(sources, tmp_path, lambda found: None)
    campaign.run([Order(1, 2, str(bad), "no such model", "none"), Order(1, 3)], lanes=1)
    lost, after = campaign.outcomes
    assert "the parent of the workers ended" in lost.offences[0]
    assert after.offences == ()
    again = replay(tmp_path, "1-2")
    assert Path(again.file).read_bytes() == b"bytes"
    assert (again.seed, again.number, again.source) == (1, 2, "no such model")
    assert replay(tmp_path, "1-3") == Order(1, 3)


def test_reasons_that_no_person_can_read_are_offences() -> None:
    rejected, exited = ModelRejected.code, WorkerExited.code
    assert outcome.offences_of(rejected, "it is cut short", "copy it again", "load") == []
    assert outcome.offences_of(exited, "the model crashed the runtime (signal 11)", "", "x") == []
    for code, message, hint in (
        (rejected, " ", "a hint"),
        (rejected, "the name \x1b[31m", ""),
        (rejected, "words", "two\nlines"),
        (rejected, "n" * 601, ""),
        (exited, "the worker ended unasked (exit status 1)", "KeyError: 3"),
        ("no_such_code", "words", ""),
    ):
        assert len(outcome.offences_of(code, message, hint, "load")) == 1


def test_an_outcome_survives_its_way_between_processes() -> None:
    one = Outcome(
        id="1-2", source="m", format="onnx", mutation="dims", bytes=3, digest="", end=outcome.LOAD
    )
    assert msgspec.json.decode(json.dumps(msgspec.to_builtins(one)), type=Outcome) == one
