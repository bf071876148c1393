"""Compiling beside what serves, with real processes: what is kept, what is not, and why."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from agent.control import events as e
from agent.control.lifecycle import step
from agent.control.state import DeviceState, Outcome, Phase, SlotState, choice_for, choice_key
from agent.daemon.choosing import Chooser
from agent.daemon.compiling import Compiling, Wanted
from agent.daemon.here import Here
from agent.daemon.supervisor import Supervisor
from agent.documents.choice import Choice, Way
from agent.documents.deployment import Input, Output, Pin, Slot
from agent.documents.device import RuntimeFacts
from agent.documents.manifest import CaseTensor, Manifest, SelfTestCase, Tensor
from agent.documents.settings import LimitSettings
from agent.links.template import TemplateProcess
from agent.runtimes.reference.runtime import ReferenceRuntime
from agent.store.compiled import CompiledStore
from agent.store.files import Files
from agent.wire.worker import Load
from tests.runtimes import compiling as runtimes
from tests.runtimes import models
from tests.worker.packs import make_pack, v2

X, Y = Tensor("x", "FP32", (1, 4)), Tensor("y", "FP32", (1, 4))
PACK = "sha256:" + "a" * 64
TARGET = Slot(pack=PACK, input=Input("in"), output=Output("out"))
WITHIN_S = 40.0


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    expected = CaseTensor("y", "FP32", (1, 4), np.array([0, 2, 0, 4], np.float32).tobytes())
    payload = v2({"x": ("FP32", [1, 4], [-1, 2, -3, 4])})
    case = SelfTestCase(schema=1, payloads=(payload,), outputs=(expected,))
    folder = tmp_path_factory.mktemp("relu")
    return make_pack(folder, models.relu_onnx(), "onnx", [X], [Y], cases=[case])


class Agent:
    """The parts of an agent that compile, with a slot that serves the pack."""

    def __init__(
        self, root: Path, pack: Path, compiler: str, other: str, limits: LimitSettings
    ) -> None:
        self.pack, self.limits = pack, limits
        self.manifest = msgspec.json.decode((pack / "manifest.json").read_bytes(), type=Manifest)
        self.names = [name for name in (compiler, other) if name]
        self.compiles = {compiler: "7.1"}
        self.started: list[TemplateProcess] = []
        self.supervisor = Supervisor(self._start)
        self.store = CompiledStore(Files(), root, limits.compiled_mb << 20)
        self.here = Here(root, own_profiles=root / "none", probe=self._facts)
        self.chooser = Chooser(self.here, limits, self.supervisor, self.store)
        self.state = DeviceState()
        self.compiling = Compiling(
            self.store,
            root,
            self.supervisor,
            limits,
            lambda: self.chooser,
            lambda: self.state,
            self._prepare,
            self._feed,
        )
        self.fed: asyncio.Queue[e.Compiled] = asyncio.Queue()

    def _start(self, runtime: str) -> TemplateProcess:
        process = runtimes.start(runtime)
        self.started.append(process)
        return process

    def _facts(self) -> tuple[RuntimeFacts, ...]:
        kinds = {**runtimes.RUNTIMES, "reference": ReferenceRuntime}
        return tuple(
            replace(
                kinds[name]().facts(),
                compiles={"": self.compiles[name]} if name in self.compiles else {},
            )
            for name in self.names
        )

    def load(self, way: Way) -> Load:
        return Load(
            str(self.pack),
            PACK,
            way.variant,
            provider=way.provider,
            threads=way.threads,
            options=way.options,
            probe=True,
        )

    def _prepare(self, name: str, target: Slot, choice: Choice) -> Wanted:
        return Wanted(name, target.pack, self.manifest, choice, self.load, 10.0)

    def _feed(self, event: e.Compiled) -> asyncio.Future[None]:
        self.state, _ = step(self.state, event)
        self.fed.put_nowait(event)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def choose(self) -> Choice:
        return await self.chooser.choose(self.manifest, Pin(threads=1), self.load, 10.0)

    def serve(self, choice: Choice) -> None:
        """Let a slot serve the pack, proven, in a way that was chosen."""
        entry = SlotState(TARGET, proven=True, outcome=Outcome("active", TARGET))
        self.state = DeviceState(slots={"s": entry}, qualified={choice_key(TARGET): choice})

    @property
    def choice(self) -> Choice:
        found = choice_for(self.state, TARGET)
        assert found is not None
        return found

    async def compiled(self) -> Choice:
        """Compile what is pending; return what is remembered then."""
        self.compiling.look()
        await asyncio.wait_for(self.fed.get(), WITHIN_S)
        return self.choice

    async def serving(self, way: Way) -> tuple[str, float]:
        """Start a worker as for service; what became of what was compiled, and its load's time."""
        folder = await self.compiling.folder(self.manifest, way) if way.compiled else ""
        load = replace(self.load(way), probe=False, cache=folder)
        worker = await self.supervisor.start(way.runtime, load, WITHIN_S)
        assert worker.ready is not None
        told = worker.ready.compiled, worker.ready.load_ms
        assert worker.ready.isolation.policy == "strict"
        worker.stop()
        return told


Story = Callable[[Agent], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, pack: Path) -> Iterator[Callable[..., None]]:
    """Return what runs a story with an agent that has these runtimes."""

    def play(story: Story, compiler: str, other: str = "reference", **limits: Any) -> None:
        async def whole() -> None:
            agent = Agent(tmp_path, pack, compiler, other, LimitSettings(**limits))
            running = asyncio.ensure_future(agent.compiling.run())
            try:
                await asyncio.wait_for(story(agent), WITHIN_S)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await agent.supervisor.close()

        asyncio.run(whole())

    yield play
    assert not list((tmp_path / "compiled").glob(".*.tmp"))


def test_another_way_serves_until_what_is_compiled_is_proven_and_then_it_takes_over(
    play: Callable[..., None],
) -> None:
    async def story(agent: Agent) -> None:
        chosen = await agent.choose()
        assert chosen.way.runtime == "reference"
        assert {way.runtime for way in chosen.pending} == {"keeper"}
        waiting = f"{chosen.pending[0]}: it is being compiled"
        assert waiting in chosen.left_out
        agent.serve(chosen)
        after = await agent.compiled()
        assert after.way == replace(chosen.pending[0], compiled=True)
        assert after.pending == chosen.pending[1:]
        assert waiting not in after.left_out
        assert after.runner_up == chosen.way
        rollout = agent.state.slots["s"].rollout
        assert rollout is not None
        assert (rollout.phase, rollout.target) == (Phase.SWITCHING, TARGET)
        assert (await agent.serving(after.way))[0] == "used"

    play(story, "keeper")


def test_the_only_way_serves_at_once_and_its_next_start_is_spared_the_work(
    play: Callable[..., None],
) -> None:
    async def story(agent: Agent) -> None:
        chosen = await agent.choose()
        assert chosen.way == Way("cpu", "keeper", threads=chosen.way.threads)
        assert chosen.pending == (chosen.way,)
        cold = await agent.serving(chosen.way)
        agent.serve(chosen)
        after = await agent.compiled()
        assert after.way == replace(chosen.way, compiled=True)
        assert after.pending == ()
        assert after.key == chosen.key
        # Nothing is switched: it is the same, and only its next start is another.
        assert agent.state.slots["s"].rollout is None
        warm = await agent.serving(after.way)
        assert (cold[0], warm[0]) == ("", "used")
        assert warm[1] < cold[1] / 2
        assert await agent.chooser.still_holds(agent.manifest, after)

    play(story, "keeper", "")


def test_what_answers_wrongly_is_not_used_and_not_compiled_again(play: Callable[..., None]) -> None:
    async def story(agent: Agent) -> None:
        chosen = await agent.choose()
        agent.serve(chosen)
        after = await agent.compiled()
        assert after.way == chosen.way
        row = after.of(replace(chosen.way, compiled=True))
        assert row is not None
        assert row.excluded.startswith("self-test case 1")
        assert agent.state.slots["s"].rollout is None
        key = await agent.chooser.key(agent.manifest, chosen.way)
        assert agent.store.refused(key).startswith("self-test case 1")
        again = await agent.choose()
        assert again.pending == ()
        assert again.way == chosen.way

    play(story, "liar", "")


def test_what_is_slower_is_not_used(play: Callable[..., None]) -> None:
    async def story(agent: Agent) -> None:
        agent.serve(await agent.choose())
        after = await agent.compiled()
        assert not after.way.compiled
        assert "compiled at the load it takes" in after.tried[-1].excluded

    play(story, "slacker", "")


def test_what_is_faster_takes_over_from_another_runtime(play: Callable[..., None]) -> None:
    async def story(agent: Agent) -> None:
        chosen = await agent.choose()
        assert chosen.way.runtime == "plodder"
        agent.serve(chosen)
        after = await agent.compiled()
        assert after.way == Way("cpu", "keeper", compiled=True)
        assert "times as fast as cpu on plodder" in after.because
        assert after.runner_up == chosen.way

    play(story, "keeper", "plodder")


def test_what_is_slower_than_what_serves_does_not_take_over(play: Callable[..., None]) -> None:
    async def story(agent: Agent) -> None:
        chosen = await agent.choose()
        assert chosen.way.runtime == "keeper"
        agent.serve(chosen)
        after = await agent.compiled()
        assert after.way == chosen.way
        assert "ms a run, cpu on keeper, 1 thread takes" in after.tried[-1].excluded
        assert agent.state.slots["s"].rollout is None

    play(story, "plodder", "keeper")


def test_one_for_another_driver_is_never_looked_at(play: Callable[..., None]) -> None:
    async def story(agent: Agent) -> None:
        agent.serve(await agent.choose())
        after = await agent.compiled()
        assert await agent.chooser.still_holds(agent.manifest, after)
        agent.compiles["keeper"] = "7.2"
        agent.here._asked_at = None
        assert not await agent.chooser.still_holds(agent.manifest, after)
        anew = await agent.choose()
        assert not anew.way.compiled
        assert anew.pending == (anew.way,)

    play(story, "keeper", "")


def test_a_damaged_one_is_dropped_and_the_runtime_compiles_anew(play: Callable[..., None]) -> None:
    async def story(agent: Agent) -> None:
        agent.serve(await agent.choose())
        after = await agent.compiled()
        file = Path(await agent.compiling.folder(agent.manifest, after.way)) / runtimes.FILE
        file.chmod(0o600)
        file.write_bytes(file.read_bytes()[::-1])
        assert (await agent.serving(after.way))[0] == ""
        assert not file.exists()
        assert not await agent.chooser.still_holds(agent.manifest, after)
        assert (await agent.choose()).pending == (after.way.plain,)

    play(story, "keeper", "")


def test_killed_in_the_middle_it_leaves_what_serves_and_nothing_else(
    play: Callable[..., None], tmp_path: Path
) -> None:
    async def story(agent: Agent) -> None:
        chosen = await agent.choose()
        agent.serve(chosen)
        agent.compiling.look()
        while not list(tmp_path.glob(f"compiled/.*/{runtimes.FILE}")):
            await asyncio.sleep(0)
        template = await agent.supervisor._template("endless")
        (worker,) = template.workers.values()
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == 19
        assert os.sched_getscheduler(worker.pid) == os.SCHED_BATCH
        os.kill(worker.pid, signal.SIGKILL)
        event = await asyncio.wait_for(agent.fed.get(), WITHIN_S)
        assert event.choice.way == chosen.way
        assert "cannot be compiled here" in event.choice.tried[-1].excluded

    play(story, "endless", "")


def test_one_that_does_not_end_is_ended(play: Callable[..., None]) -> None:
    async def story(agent: Agent) -> None:
        agent.serve(await agent.choose())
        after = await agent.compiled()
        assert "no answer within 1 s" in after.tried[-1].excluded

    play(story, "endless", "", compile_deadline_s=1.0)


def test_one_that_fills_the_disk_is_ended_and_waits_for_another_time(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def story(agent: Agent) -> None:
        chosen = await agent.choose()
        agent.serve(chosen)
        agent.compiling.look()
        while "there is room for" not in caplog.text:
            await asyncio.sleep(0.01)
        assert agent.choice == chosen
        assert agent.store.used_bytes() == 0

    play(story, "glutton", "", compiled_mb=1)


def test_it_may_write_into_its_folder_and_nowhere_else(play: Callable[..., None]) -> None:
    async def story(agent: Agent) -> None:
        chosen = await agent.choose()
        agent.serve(chosen)
        after = await agent.compiled()
        folder = await agent.compiling.folder(agent.manifest, replace(after.way, compiled=True))
        # It told where else it could write.
        assert folder == "" or (Path(folder) / runtimes.FILE).read_text() == ""
        assert not list(Path("/tmp").glob("out"))

    play(story, "escaper", "")


def test_with_no_room_allowed_nothing_is_compiled_ahead(play: Callable[..., None]) -> None:
    async def story(agent: Agent) -> None:
        chosen = await agent.choose()
        assert chosen.pending == ()
        assert not chosen.way.compiled

    play(story, "keeper", "", compiled_mb=0)
