"""Will it run, and how: reasons that a person can act on, candidates, and what is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.control.objections import PlanLimits, files_for
from agent.control.plan import Plan, plan
from agent.control.profiles import recognise, typical_of
from agent.device.profiles import load
from agent.documents.deployment import Pin
from agent.documents.device import (
    Accelerator,
    Cpu,
    Device,
    Jetson,
    Memory,
    RuntimeFacts,
    Storage,
    System,
)
from agent.documents.manifest import Delta, Manifest, Needs
from tests.control.packs import DIGEST, pack, real_pack, variant

KNOWN = load(None)
ORT = RuntimeFacts(
    *("onnx", True, "1.32.0", "onnxruntime", ("onnx",), ("CPUExecutionProvider",)),
    opset=28,
    ir_version=14,
)
LITERT = RuntimeFacts("tflite", True, "2.3.0", "ai-edge-litert", ("tflite",), ("CPU", "XNNPACK"))
TPU = RuntimeFacts("edgetpu", True, "2.3.0", "ai-edge-litert", ("tflite",), ("EdgeTPU",))
PI = System(architecture="aarch64", libc="glibc 2.41", python="3.13.5", os="debian 13")


def device(*runtimes: RuntimeFacts, **more: object) -> Device:
    facts: dict[str, object] = {"system": PI, "cpu": Cpu(count=4, usable=4.0), **more}
    return Device(1, runtimes=runtimes, **facts)  # type: ignore[arg-type]


def planned(manifest: Manifest, here: Device, **more: object) -> Plan:
    return plan(manifest, here, recognise(KNOWN.every, here), **more)  # type: ignore[arg-type]


def typical(name: str, *addons: str) -> Device:
    board, *others = (KNOWN.named(one) for one in (name, *addons))
    assert board is not None
    found = typical_of(board, [one for one in others if one])
    assert found is not None
    return found


def reason(found: Plan, name: str, runtime: str = "", provider: str = "") -> str:
    one = next(one for one in found.variants if one.variant.name == name)
    for verdict in one.verdicts:
        if runtime in ("", verdict.runtime) and provider == verdict.provider:
            return "" if verdict.reason is None else str(verdict.reason)
    return str(one.reason or "")


def ways(found: Plan) -> list[str]:
    return [str(one.way) for one in found.candidates]


# One pack of real models on five boards.


def test_on_a_pi_3_with_32_bits_only_tflite_runs(shared_models: Path) -> None:
    found = planned(real_pack(shared_models), typical("raspberry-pi-3"))
    runs = {one.variant.name: one.runs for one in found.variants}
    assert runs == {
        "onnx-fp32": False,
        "tflite-fp32": True,
        "tflite-int8": True,
        "edgetpu": False,
    }
    assert "no wheel for 32-bit ARM (armv7l)" in reason(found, "onnx-fp32")
    assert "python3-onnxruntime (1.21)" in reason(found, "onnx-fp32")
    assert "there is none here" in reason(found, "edgetpu")
    assert found.fetch == ("tflite-fp32", "tflite-int8")
    assert {one.runtime for one in found.candidates} == {"tflite"}


def test_on_a_pi_5_the_integers_come_first_as_its_processor_counts_them(
    shared_models: Path,
) -> None:
    found = planned(real_pack(shared_models), typical("raspberry-pi-5"))
    assert found.fetch == ("tflite-int8", "tflite-fp32")
    assert ways(found)[0] == "tflite-int8 on tflite, 1 thread"
    assert "tflite-int8 on tflite, 4 threads" in ways(found)
    assert reason(found, "onnx-fp32", "onnx") == ""
    assert "plug one in" in reason(found, "edgetpu")


def test_on_a_pi_5_with_a_stick_the_compiled_one_runs_and_its_twin_stands_by(
    shared_models: Path,
) -> None:
    found = planned(real_pack(shared_models), typical("raspberry-pi-5", "coral-usb"))
    assert found.fetch == ("edgetpu", "tflite-int8")
    assert found.candidates[0].runtime == "edgetpu"
    # What can be unplugged is told by its provider, which is the adapter's own word.
    assert found.candidates[0].way.accelerated
    assert {one.runtime for one in found.candidates} == {"edgetpu", "tflite"}


def test_on_a_coral_board_the_compiled_one_runs_and_the_plain_ones_say_what_to_compile(
    shared_models: Path,
) -> None:
    found = planned(real_pack(shared_models), typical("coral-dev-board"))
    assert found.fetch == ("edgetpu", "tflite-int8")
    assert found.candidates[0].way.variant == "edgetpu"
    assert "edgetpu_compiler" in reason(
        found, "tflite-int8", "edgetpu", found.candidates[0].provider
    )
    assert all(one.runs for one in found.variants)


def test_on_a_coral_board_as_mendel_leaves_it_the_agent_itself_does_not_run(
    shared_models: Path,
) -> None:
    stock = typical("coral-dev-board")
    stock = replace(stock, system=replace(stock.system, python="3.7.3", libc="glibc 2.28"))
    found = planned(real_pack(shared_models), stock)
    assert not found.runs
    assert all("needs Python 3.10 or newer, and here is 3.7.3" in one for one in found.refused)
    faults = recognise(KNOWN.every, stock).faults
    assert "container" in next(one.do for one in faults if one.id == "python-of-mendel")


def test_on_an_orin_the_gpu_comes_first_and_the_cpu_stands_by(shared_models: Path) -> None:
    found = planned(real_pack(shared_models), typical("jetson-orin"))
    assert found.fetch[0] == "onnx-fp32"
    assert [one.provider for one in found.candidates][:3] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "",
    ]
    assert found.candidates[1].options["arena_extend_strategy"] == "kSameAsRequested"
    assert found.fetch[1].startswith("tflite-")


def test_on_an_orin_with_the_public_wheel_the_plan_says_where_the_right_one_is(
    shared_models: Path,
) -> None:
    orin = typical("jetson-orin")
    public = replace(ORT, version="1.23.2", opset=23, ir_version=11)
    found = planned(real_pack(shared_models), replace(orin, runtimes=(public, LITERT)))
    said = reason(found, "onnx-fp32", "onnx", "CUDAExecutionProvider")
    assert "this build (onnxruntime 1.23.2) has no CUDAExecutionProvider" in said
    assert "JetPack 6.2" in said
    assert "jp6/cu126" in said
    assert reason(found, "onnx-fp32", "onnx") == ""


def test_on_an_n100_onnx_comes_first_and_openvino_is_one_command_away(
    shared_models: Path,
) -> None:
    found = planned(real_pack(shared_models), typical("intel-n-series"))
    assert found.fetch == ("onnx-fp32", "tflite-int8")
    assert "pip install 'edgeward[openvino]'" in reason(found, "onnx-fp32", "openvino", "CPU")
    assert ways(found)[0] == "onnx-fp32 on onnx, 1 thread"


# Reasons, one by one.


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (
            Needs(ir_version=15, opsets={"ai.onnx": 13}),
            "IR version 15, and ONNX Runtime 1.32.0 knows up to 14",
        ),
        (
            Needs(ir_version=8, opsets={"ai.onnx": 29}),
            "opset 29, and ONNX Runtime 1.32.0 knows up to 28",
        ),
        (Needs(ir_version=8, opsets={"": 99}), "opset 99"),
        (Needs(custom_operators=("ai.onnx.contrib:Tokenize",)), "uses ai.onnx.contrib:Tokenize"),
    ],
)
def test_what_an_onnx_model_needs_and_the_runtime_lacks_is_named(needs: Needs, says: str) -> None:
    found = planned(pack(variant("fp32", needs=needs)), device(ORT))
    assert not found.runs
    assert says in reason(found, "fp32")
    assert "→" not in reason(found, "fp32")


@pytest.mark.parametrize(
    ("version", "opset", "ir_version", "runs"),
    [
        ("1.21.0", 22, 10, True),
        ("1.21.0", 23, 10, False),
        ("1.21.0", 22, 11, False),
        ("1.20.1", 21, 10, True),
        ("1.32.0", 28, 14, True),
        # Of a release that is newer than the table nobody knows what it does not take.
        ("1.99.0", 99, 99, True),
        ("", 99, 99, True),
    ],
)
def test_a_runtime_that_says_nothing_of_opsets_is_judged_by_its_version(
    version: str, opset: int, ir_version: int, runs: bool
) -> None:
    silent = RuntimeFacts("onnx", usable=True, version=version)
    needs = Needs(ir_version=ir_version, opsets={"ai.onnx": opset})
    found = planned(pack(variant("fp32", needs=needs)), device(silent))
    assert found.runs is runs
    assert runs or "as its version is known for" in reason(found, "fp32")


@pytest.mark.parametrize(
    ("needs", "facts", "says"),
    [
        (Needs(schema_version=4), LITERT, "its schema is version 4"),
        (Needs(custom_operators=("MyOp",)), LITERT, "it uses MyOp"),
        (Needs(custom_operators=("TFLite_Detection_PostProcess",)), LITERT, ""),
        (Needs(min_runtime_version="2.16.0"), LITERT, ""),
        (
            Needs(min_runtime_version="2.16.0"),
            replace(LITERT, package="tflite-runtime", version="2.14.0"),
            "asks for a TFLite runtime 2.16.0 or newer, and here is 2.14.0",
        ),
        (
            Needs(operators=("CONV_2D:8", "RESHAPE:1")),
            replace(LITERT, package="tflite-runtime", version="2.5.0"),
            "operator CONV_2D version 8 needs LiteRT 1.0 or newer, and this device has "
            "tflite-runtime 2.5.0 (use ai-edge-litert where it has a wheel",
        ),
        (
            Needs(operators=("SOFTMAX:4",)),
            replace(LITERT, version="1.2.0"),
            "needs LiteRT 2.1.6 or newer, and this device has ai-edge-litert 1.2.0 (update it",
        ),
        (Needs(operators=("CONV_2D:8", "RESHAPE:1")), LITERT, ""),
        # The table knows better than what the converter wrote.
        (
            Needs(operators=("CONV_2D:5",), min_runtime_version="2.16.0"),
            replace(LITERT, package="tflite-runtime", version="2.14.0"),
            "",
        ),
        (
            Needs(operators=("CONV_2D:5", "BUILTIN_999:1"), min_runtime_version="2.16.0"),
            replace(LITERT, package="tflite-runtime", version="2.14.0"),
            "asks for a TFLite runtime 2.16.0",
        ),
    ],
)
def test_what_a_tflite_model_needs_and_the_runtime_lacks_is_named(
    needs: Needs, facts: RuntimeFacts, says: str
) -> None:
    found = planned(pack(variant("plain", "tflite", needs)), device(facts))
    assert found.runs is not bool(says)
    assert says in reason(found, "plain")


def test_an_edge_tpu_s_interpreter_must_know_the_operators_that_stay_on_the_cpu() -> None:
    needs = Needs(operators=("SOFTMAX:4",), custom_operators=("edgetpu-custom-op",), edgetpu=True)
    old = replace(TPU, version="1.2.0+libedgetpu.5f3a")
    here = device(old, accelerators=(Accelerator("edgetpu", "usb", ready=True),))
    found = planned(pack(variant("tpu", "tflite", needs)), here)
    assert "this device has ai-edge-litert 1.2.0 (" in reason(found, "tpu", "edgetpu", "EdgeTPU")


def test_a_runtime_that_knows_few_operators_names_those_that_it_does_not() -> None:
    small = RuntimeFacts(
        "reference", True, formats=("onnx", "tflite"), operators=("Gemm", "CONV_2D")
    )
    here = device(small)
    fine = pack(
        variant("a", needs=Needs(operators=("Gemm",))),
        variant("b", "tflite", Needs(operators=("CONV_2D:3",))),
    )
    assert all(one.runs for one in planned(fine, here).variants)
    other = pack(variant("a", needs=Needs(operators=("Gemm", "LSTM"))))
    assert "does not know LSTM" in reason(planned(other, here), "a", "reference")


def test_a_runtime_that_does_not_work_says_so_in_its_own_words() -> None:
    broken = RuntimeFacts("onnx", why="it died of SIGILL", hint="this processor lacks AVX")
    found = planned(pack(variant("fp32")), device(broken))
    assert reason(found, "fp32") == "it died of SIGILL (this processor lacks AVX)"


@pytest.mark.parametrize(
    ("system", "says"),
    [
        (replace(PI, libc="musl 1.2"), "no wheel for musl"),
        (replace(PI, architecture="riscv64"), "no wheel for riscv64"),
        (replace(PI, libc="glibc 2.17"), "needs glibc 2.28, and here is glibc 2.17"),
        (PI, "pip install 'edgeward[onnx]' brings onnxruntime 1.32.0"),
        (replace(PI, python="3.10.12"), "brings onnxruntime 1.23.2"),
        (System(), "is not installed here"),
    ],
)
def test_a_runtime_that_is_not_there_comes_with_the_way_to_get_it(
    system: System, says: str
) -> None:
    found = planned(pack(variant("fp32")), device(system=system))
    assert says in reason(found, "fp32", "onnx")


@pytest.mark.parametrize(
    ("python", "libc", "says"),
    [
        ("3.11.2", "glibc 2.36", "brings tflite-runtime 2.14.0"),
        ("3.10.4", "glibc 2.31", "brings tflite-runtime 2.13.0"),
        ("3.13.5", "glibc 2.41", "no wheel for Python 3.13.5 on 32-bit ARM"),
    ],
)
def test_on_32_bits_the_answer_depends_on_python_and_glibc(
    python: str, libc: str, says: str
) -> None:
    system = System(architecture="armv7l", python=python, libc=libc)
    found = planned(pack(variant("plain", "tflite")), device(system=system))
    assert says in reason(found, "plain")


def test_an_accelerator_that_is_not_ready_says_why() -> None:
    why = "/dev/apex_0 may not be opened: put the user into the group apex"
    chip = Accelerator("edgetpu", "pci", why=why)
    compiled = variant(
        "tpu", "tflite", Needs(edgetpu=True, custom_operators=("edgetpu-custom-op",))
    )
    found = planned(pack(compiled), device(LITERT, TPU, accelerators=(chip,)))
    assert (
        reason(found, "tpu", "edgetpu", "EdgeTPU") == f"the Edge TPU is there and not ready: {why}"
    )
    assert found.absent == ("tpu",)
    assert planned(pack(compiled), device(LITERT, TPU)).absent == ("tpu",)
    ready = device(LITERT, TPU, accelerators=(replace(chip, ready=True),))
    assert not planned(pack(compiled), ready).absent


def test_a_provider_that_the_build_lacks_is_told_with_what_it_has() -> None:
    gpu = Accelerator("cuda", "pci", ready=True)
    pc = replace(PI, architecture="x86_64")
    found = plan(
        pack(variant("fp32")),
        device(ORT, system=pc, accelerators=(gpu,)),
        recognise(KNOWN.every, device(ORT)),
        pin=Pin(provider="CUDAExecutionProvider", runtime="onnx"),
    )
    assert not found.runs
    assert found.pin is not None
    assert "has no CUDAExecutionProvider; it has CPUExecutionProvider" in str(found.pin)
    assert "pip install onnxruntime-gpu" in found.pin.do


@pytest.mark.parametrize(
    ("l4t", "jetpack", "says"),
    [
        ("32.7.6", "4.6.6", "own old Python only"),
        ("35.6.1", "5.1.5", "own old Python only"),
        ("36.4.3", "6.2", "Jetson AI Lab index"),
        ("38.4.0", "7.1", "CUDA 13"),
    ],
)
def test_how_to_get_cuda_depends_on_the_jetpack(l4t: str, jetpack: str, says: str) -> None:
    here = device(
        ORT,
        jetson=Jetson("orin", l4t, jetpack),
        accelerators=(Accelerator("cuda", "soc", ready=True),),
    )
    pin = Pin(runtime="onnx", provider="CUDAExecutionProvider")
    found = planned(pack(variant("fp32")), here, pin=pin)
    assert says in str(found.pin)


def test_nobody_is_sent_to_a_plug_in_that_is_not_taken() -> None:
    pin = Pin(runtime="onnx", provider="QNNExecutionProvider")
    found = planned(pack(variant("fp32")), device(ORT), pin=pin)
    assert "onnxruntime-qnn from 2.0 on is a plug-in, which is not used here" in str(found.pin)


def test_a_model_that_the_memory_cannot_hold_is_told_with_both_numbers() -> None:
    big = pack(variant("fp32"), size=400_000_000)
    small = Memory(total_bytes=512 * 1024**2)
    found = planned(big, device(ORT, memory=small))
    assert "loading it takes about 856 MB, and there are 537 MB" in reason(found, "fp32", "onnx")
    limited = Memory(total_bytes=8 * 1024**3, limit_bytes=500_000_000)
    assert "there are 500 MB" in reason(planned(big, device(ORT, memory=limited)), "fp32", "onnx")
    assert planned(big, device(ORT, memory=Memory(total_bytes=8 * 1024**3))).runs
    assert planned(big, device(ORT)).runs
    busy = device(ORT, memory=Memory(total_bytes=8 * 1024**3, available_bytes=10**8))
    assert planned(big, busy).runs
    assert not planned(big, busy, limits=PlanLimits(momentary=True)).runs


def test_weights_beside_the_model_count_too() -> None:
    beside = pack(variant("fp32"), files={"fp32.onnx_data": 400_000_000})
    found = planned(beside, device(ORT, memory=Memory(total_bytes=512 * 1024**2)))
    assert not found.runs


def test_a_worker_s_limit_counts_private_memory_only() -> None:
    limits = PlanLimits(worker_memory_bytes=150_000_000)
    onnx, integers = variant("fp32"), variant("int8", "tflite", integers=True)
    found = planned(pack(onnx, integers, size=100_000_000), device(ORT, LITERT), limits=limits)
    assert "raise limits.worker_memory_mb" in reason(found, "fp32", "onnx")
    assert found.fetch == ("int8",)


@pytest.mark.parametrize(
    ("storage", "limits", "says"),
    [
        (Storage(free_bytes=500_000), PlanLimits(momentary=True), "there are 0.5 MB"),
        (Storage(), PlanLimits(store_bytes=0), "there are 0.0 MB"),
        (Storage(read_only=True), PlanLimits(momentary=True), "takes nothing"),
        (Storage(), PlanLimits(momentary=True), ""),
        (Storage(free_bytes=2_000_000), PlanLimits(momentary=True), ""),
        # May be otherwise tomorrow, so no deployment is refused for it.
        (Storage(free_bytes=500_000), PlanLimits(), ""),
        (Storage(read_only=True), PlanLimits(), ""),
    ],
)
def test_a_pack_that_the_disk_cannot_hold_is_told(
    storage: Storage, limits: PlanLimits, says: str
) -> None:
    found = planned(pack(variant("fp32")), device(ORT, storage=storage), limits=limits)
    assert says in reason(found, "fp32", "onnx")
    assert found.runs is not bool(says)


def test_a_format_that_nothing_loads_is_told() -> None:
    found = planned(pack(variant("engine", "plan")), device(ORT, LITERT))
    assert found.refused == ("engine: no runtime here or known to us loads 'plan' models",)


def test_of_many_ways_that_fail_the_nearest_gives_the_reason() -> None:
    needs = Needs(ir_version=99)
    found = planned(
        pack(variant("fp32", needs=needs)), device(ORT, system=replace(PI, architecture="x86_64"))
    )
    assert found.variants[0].reason is not None
    assert found.variants[0].reason.code == "ir_version"


# Candidates, and what is fetched.


def test_a_runtime_of_somebody_else_is_picked_for_its_format() -> None:
    other = RuntimeFacts("acme", True, "1", formats=("acme",))
    found = planned(pack(variant("fast", "acme")), device(ORT, other))
    assert ways(found)[0] == "fast on acme, 1 thread"


def test_a_runtime_of_somebody_else_is_measured_beside_ours() -> None:
    other = RuntimeFacts("acme", True, "1", formats=("onnx",))
    found = planned(pack(variant("fp32")), device(ORT, other))
    assert {one.runtime for one in found.candidates} == {"onnx", "acme"}


def test_threads_are_bounded_by_what_may_be_used_and_by_the_profile() -> None:
    here = device(ORT, cpu=Cpu(count=8, usable=2.5))
    assert [one.threads for one in planned(pack(variant("fp32")), here).candidates] == [1, 2]


def test_only_files_of_fetched_variants_are_needed_and_all_that_is_nobodys() -> None:
    three = pack(
        variant("a", "tflite"),
        variant("b", "tflite"),
        variant("c", "tflite"),
        files={"labels.txt": 5},
    )
    found = planned(three, device(LITERT))
    assert found.fetch == ("a", "b")
    assert set(found.files) == {"a.tflite", "b.tflite", "case-0.json", "labels.txt"}


def test_more_variants_can_be_asked_for() -> None:
    three = pack(variant("a", "tflite"), variant("b", "tflite"), variant("c", "tflite"))
    found = planned(three, device(LITERT), limits=PlanLimits(variants=16))
    assert found.fetch == ("a", "b", "c")
    assert {one.variant.name for one in found.candidates} == {"a", "b", "c"}


# Pins.


def test_a_pin_leaves_only_what_it_asks_for() -> None:
    two = pack(variant("fp32"), variant("lite", "tflite"))
    here = device(ORT, LITERT)
    found = planned(two, here, pin=Pin(variant="lite", threads=3))
    assert ways(found) == ["lite on tflite, 3 threads"]
    assert found.fetch == ("lite",)
    assert {one.runtime for one in planned(two, here, pin=Pin(runtime="onnx")).candidates} == {
        "onnx"
    }
    assert planned(two, here, pin=Pin()) == planned(two, here)


def test_a_pin_to_the_cpu_leaves_accelerators_out(shared_models: Path) -> None:
    found = planned(real_pack(shared_models), typical("jetson-orin"), pin=Pin(provider="CPU"))
    assert found.runs
    assert not any(one.way.accelerated for one in found.candidates)


@pytest.mark.parametrize(
    ("pin", "says"),
    [
        (Pin(variant="int4"), "the pack has no variant 'int4'; it has fp32"),
        (Pin(runtime="tensorflow"), "nothing here fits the pin (tensorflow)"),
        (Pin(runtime="openvino"), "OpenVINO is not installed here"),
        (Pin(provider="CUDAExecutionProvider", runtime="onnx"), "there is no NVIDIA GPU here"),
    ],
)
def test_a_pin_that_cannot_be_had_says_why(pin: Pin, says: str) -> None:
    found = planned(pack(variant("fp32")), device(ORT), pin=pin)
    assert not found.runs
    assert says in str(found.pin)
    assert says in found.refused[-1]


# Whatever the pack and the device.

RUNTIMES = st.lists(
    st.sampled_from(
        (
            ORT,
            LITERT,
            TPU,
            replace(ORT, name="acme"),
            RuntimeFacts("onnx", why="broken"),
            replace(ORT, opset=10),
        )
    ),
    max_size=4,
    unique_by=lambda one: one.name,
).map(tuple)
DEVICES = st.builds(
    Device,
    st.just(1),
    system=st.sampled_from(
        (PI, System(), replace(PI, architecture="armv7l"), replace(PI, python="3.7"))
    ),
    cpu=st.builds(
        Cpu,
        count=st.integers(0, 8),
        usable=st.floats(0, 8),
        features=st.sampled_from(((), ("asimddp",))),
    ),
    memory=st.builds(Memory, total_bytes=st.sampled_from((0, 60_000_000, 10**10))),
    storage=st.builds(
        Storage, free_bytes=st.sampled_from((0, 10, 10**10)), read_only=st.booleans()
    ),
    accelerators=st.lists(
        st.builds(
            Accelerator, st.sampled_from(("edgetpu", "cuda")), st.just("usb"), ready=st.booleans()
        ),
        max_size=2,
    ).map(tuple),
    runtimes=RUNTIMES,
)
VARIANTS = st.lists(
    st.builds(
        variant,
        st.sampled_from(("a", "b", "c", "d")),
        st.sampled_from(("onnx", "tflite", "plan")),
        st.builds(
            Needs,
            ir_version=st.sampled_from((None, 8, 99)),
            opsets=st.sampled_from(({}, {"ai.onnx": 17}, {"ai.onnx": 99})),
            custom_operators=st.sampled_from(((), ("X",))),
            edgetpu=st.booleans(),
        ),
        integers=st.booleans(),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one.name,
)
PINS = st.none() | st.builds(
    Pin,
    variant=st.sampled_from(("", "a", "z")),
    runtime=st.sampled_from(("", "onnx", "acme", "none")),
    provider=st.sampled_from(("", "CPU", "CUDAExecutionProvider")),
    threads=st.sampled_from((None, 3)),
)


@settings(max_examples=300, deadline=None)
@given(VARIANTS, DEVICES, PINS)
def test_every_no_has_a_reason_and_every_candidate_is_a_yes(
    variants: list[object], here: Device, pin: Pin | None
) -> None:
    found = planned(pack(*variants), here, pin=pin)  # type: ignore[arg-type]
    yes = {
        (verdict.variant, verdict.runtime, verdict.provider)
        for one in found.variants
        for verdict in one.verdicts
        if verdict.runs
    }
    for one in found.variants:
        assert one.runs == any(verdict.runs for verdict in one.verdicts)
        assert one.runs or (one.reason is not None and one.reason.says)
    assert len(found.candidates) <= 6
    for candidate in found.candidates:
        assert (candidate.variant.name, candidate.runtime, candidate.provider) in yes
        assert 1 <= candidate.threads <= max(3, int(here.cpu.usable or here.cpu.count or 1))
    assert len({str(one.way) for one in found.candidates}) == len(found.candidates)
    assert {one.variant.name for one in found.candidates} == set(found.fetch)
    assert len(found.fetch) <= 2
    assert bool(found.files) == found.runs
    if not found.runs:
        assert found.refused
    if pin is None or pin == Pin():
        assert found.pin is None
        assert found.runs == any(one.runs for one in found.variants)
    elif not found.runs:
        assert found.pin is not None


@settings(max_examples=100, deadline=None)
@given(VARIANTS, DEVICES)
def test_the_first_fall_back_of_an_accelerator_is_something_that_the_cpu_runs(
    variants: list[object], here: Device
) -> None:
    found = planned(pack(*variants), here)  # type: ignore[arg-type]
    on_cpu = {
        verdict.variant
        for one in found.variants
        for verdict in one.verdicts
        if verdict.runs and verdict.runtime != "edgetpu" and not verdict.provider
    }
    if found.candidates and found.candidates[0].runtime == "edgetpu" and on_cpu:
        assert on_cpu & set(found.fetch)


def test_a_delta_is_no_file_that_a_variant_needs_nor_one_of_its_weights() -> None:
    whole = pack(variant("a"), files={"weights.bin": 2_000_000, "delta/1-2.xp": 900_000})
    delta = Delta(DIGEST, "xor-planes-1", 4, "zlib", 1 << 20, "delta/1-2.xp")
    model = replace(whole.files["a.onnx"], deltas=(delta,))
    made = replace(whole, files={**whole.files, "a.onnx": model})
    assert files_for(made, ["a"]) == ("a.onnx", "case-0.json", "weights.bin")
    before, after = (planned(one, device(ORT)).variants[0].verdicts[0] for one in (whole, made))
    assert after.peak_bytes < before.peak_bytes
