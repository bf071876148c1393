"""Which execution providers and options may be asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import RuntimeUnavailable
from agent.runtimes.api import Wanted
from agent.runtimes.onnx_providers import CPU, PROVIDERS, compiling, offered, plan

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
OPENVINO, XNNPACK = "OpenVINOExecutionProvider", "XnnpackExecutionProvider"
JETSON = (TENSORRT, CUDA, CPU)


def test_the_cpu_is_what_nobody_asks_for() -> None:
    made = plan(Wanted(threads=3), [CPU])
    assert made.providers == ((CPU, {}),)
    assert made.threads == 3


def test_the_cpu_stands_behind_every_provider_and_cuda_behind_tensorrt() -> None:
    assert [name for name, _ in plan(Wanted(CUDA), JETSON).providers] == [CUDA, CPU]
    assert [name for name, _ in plan(Wanted(TENSORRT), JETSON).providers] == [TENSORRT, CUDA, CPU]


def test_a_plug_in_is_not_what_brings_a_provider() -> None:
    with pytest.raises(RuntimeUnavailable) as refused:
        plan(Wanted("QNNExecutionProvider"), [CPU])
    assert "onnxruntime-qnn from 2.0 on is a plug-in, which is not used" in str(refused.value.hint)


def test_a_provider_that_the_build_lacks_is_refused_with_what_brings_it() -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        plan(Wanted(CUDA), [CPU])
    assert "has no CUDAExecutionProvider; it has CPUExecutionProvider" in caught.value.message
    assert "onnxruntime-gpu" in caught.value.hint


def test_what_sends_data_off_the_device_is_not_offered() -> None:
    azure = "AzureExecutionProvider"
    assert offered([azure, CPU]) == (CPU,)
    with pytest.raises(RuntimeUnavailable, match="no execution provider 'AzureExecutionProvider'"):
        plan(Wanted(azure), [azure, CPU])


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        (CUDA, {"device_id": "1", "use_tf32": "0", "gpu_mem_limit": "2147483648"}),
        (TENSORRT, {"trt_fp16_enable": "1", "trt_profile_min_shapes": "x:1x3x224x224,y:1"}),
        (OPENVINO, {"device_type": "HETERO:NPU,CPU"}),
        ("QNNExecutionProvider", {"backend_type": "htp", "htp_performance_mode": "burst"}),
        (CPU, {"session.set_denormal_as_zero": "1"}),
    ],
)
def test_a_known_option_is_taken(provider: str, options: dict[str, str]) -> None:
    made = plan(Wanted(provider, options=options), [provider, CPU])
    assert {**made.providers[0][1], **made.session}.items() >= options.items()


@pytest.mark.parametrize(
    ("provider", "options", "named"),
    [
        (CUDA, {"device_Id": "0"}, "device_Id"),
        (CUDA, {"device_id": "first"}, "device_id"),
        (CUDA, {"use_tf32": "0\n"}, "use_tf32"),
        (CPU, {"session.set_denormal_as_zer0": "1"}, "session.set_denormal_as_zer0"),
        # They name a file.
        ("QNNExecutionProvider", {"backend_path": "libQnnHtp.so"}, "backend_path"),
        (TENSORRT, {"trt_engine_cache_path": "/tmp"}, "trt_engine_cache_path"),
        (OPENVINO, {"load_config": "/etc/passwd"}, "load_config"),
        (CPU, {"session.load_model_format": "ORT"}, "session.load_model_format"),
    ],
)
def test_any_other_option_or_value_is_refused_by_name(
    provider: str, options: dict[str, str], named: str
) -> None:
    with pytest.raises(RuntimeUnavailable, match=named):
        plan(Wanted(provider, options=options), [provider, CPU])


@pytest.mark.parametrize(
    ("provider", "option"), [(OPENVINO, "num_of_threads"), (XNNPACK, "intra_op_num_threads")]
)
def test_a_provider_with_threads_of_its_own_gets_all_of_them(provider: str, option: str) -> None:
    made = plan(Wanted(provider, threads=3), [provider, CPU])
    assert made.providers[0][1][option] == "3"
    assert made.threads == 1


def test_what_is_compiled_is_kept_only_where_there_is_a_folder_for_it() -> None:
    folder = Path("/var/cache/m")
    kept = plan(Wanted(TENSORRT, cache=folder, fill=True), JETSON).providers[0][1]
    assert kept["trt_engine_cache_path"] == kept["trt_timing_cache_path"] == str(folder)
    # A timing cache is written again at each start, which a sealed folder does not allow.
    used = plan(Wanted(TENSORRT, cache=folder), JETSON).providers[0][1]
    assert used["trt_engine_cache_path"] == str(folder)
    assert not any("timing" in key for key in used)
    assert not any("cache" in key for key in plan(Wanted(TENSORRT), JETSON).providers[0][1])
    with pytest.raises(RuntimeUnavailable, match="not absolute"):
        plan(Wanted(TENSORRT, cache=Path("here")), JETSON)


def test_no_option_that_may_be_set_names_a_file() -> None:
    for provider in PROVIDERS.values():
        for pattern in provider.options.values():
            assert not pattern.fullmatch("/etc/passwd")
            assert not pattern.fullmatch("../evil.so")


def test_what_compiles_is_told_with_its_version(tmp_path: Path) -> None:
    offer = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    assert compiling(offer, [tmp_path, tmp_path / "none"]) == {TENSORRT: ""}
    for name in ("libnvinfer.so.10", "libnvinfer.so.10.3.0", "libnvinfer_plugin.so.10.4.0"):
        (tmp_path / name).touch()
    assert compiling(offer, [tmp_path]) == {TENSORRT: "10.3.0"}
    assert compiling(("OpenVINOExecutionProvider",), []) == {"OpenVINOExecutionProvider": ""}
