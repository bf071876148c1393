"""Execution providers of ONNX Runtime: which may be asked for, with which options.

ONNX Runtime takes any key and any value without a word, so what is misspelt here would silently do
nothing. Left out on purpose is what names a file (native code, other people's models) or sends data
off the device. Source of the names: the providers' own pages in ONNX Runtime's documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from agent.errors import RuntimeUnavailable
from agent.runtimes.api import Wanted

CPU = "CPUExecutionProvider"

_FLAG = re.compile(r"[01]")
_COUNT = re.compile(r"\d{1,4}")
_BYTES = re.compile(r"\d{1,15}")
_SHAPES = re.compile(r"[\w./:-]+:\d+(?:x\d+)*(?:,[\w./:-]+:\d+(?:x\d+)*)*")
_BOOLEAN = re.compile(r"true|false|True|False")


def _one_of(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, words)))


Allowed = Mapping[str, re.Pattern[str]]

# For every provider: entries of the session's own configuration.
SESSION_OPTIONS: Allowed = {
    "session.set_denormal_as_zero": _FLAG,
    "session.disable_prepacking": _FLAG,
    "session.intra_op.allow_spinning": _FLAG,
    "session.intra_op_thread_affinities": re.compile(r"\d[\d,;-]{0,255}"),
}


class Provider(NamedTuple):
    """What may be asked of one execution provider.

    Attributes:
        options: By the library's names, with the pattern that a value must match.
        install: What brings it; for the refusal where a build has none.
        behind: What takes the operators that it does not, before the CPU.
        threads: The option that says how many CPU threads it may use itself.
        cache: The options that make it keep what it compiles in a folder, and those with which it
            only uses what is there; None: it compiles nothing that is worth keeping.
        optimises: It wants the graph as it is in the file and optimises it itself.
    """

    options: Allowed = MappingProxyType({})
    install: str = ""
    behind: tuple[str, ...] = ()
    threads: str = ""
    cache: Callable[[str, bool], dict[str, str]] | None = None
    optimises: bool = False


PROVIDERS: Mapping[str, Provider] = {
    CPU: Provider(),
    "CUDAExecutionProvider": Provider(
        {
            "device_id": _COUNT,
            "gpu_mem_limit": _BYTES,
            "arena_extend_strategy": _one_of("kNextPowerOfTwo", "kSameAsRequested"),
            "cudnn_conv_algo_search": _one_of("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
            "cudnn_conv_use_max_workspace": _FLAG,
            "cudnn_conv1d_pad_to_nc1d": _FLAG,
            "prefer_nhwc": _FLAG,
            "use_tf32": _FLAG,
        },
        install="onnxruntime-gpu, with the CUDA and cuDNN that it was built for",
    ),
    "TensorrtExecutionProvider": Provider(
        {
            "device_id": _COUNT,
            "trt_fp16_enable": _FLAG,
            "trt_int8_enable": _FLAG,
            "trt_max_workspace_size": _BYTES,
            "trt_min_subgraph_size": _COUNT,
            "trt_builder_optimization_level": _COUNT,
            "trt_profile_min_shapes": _SHAPES,
            "trt_profile_opt_shapes": _SHAPES,
            "trt_profile_max_shapes": _SHAPES,
            "trt_context_memory_sharing_enable": _FLAG,
            "trt_force_timing_cache": _FLAG,
            "trt_dla_enable": _FLAG,
            "trt_dla_core": _COUNT,
        },
        install="onnxruntime-gpu, with the TensorRT that it was built for",
        behind=("CUDAExecutionProvider",),
        cache=lambda folder, fill: {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            # It is written whenever an engine is built, so it has no place in a sealed folder.
            **({"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder} if fill else {}),
        },
    ),
    "OpenVINOExecutionProvider": Provider(
        {
            "device_type": re.compile(
                r"(?:CPU|NPU|GPU(?:\.\d)?)|(?:AUTO|HETERO|MULTI):[A-Z0-9.]+(?:,[A-Z0-9.]+)*"
            ),
            "num_streams": _COUNT,
            "precision": _one_of("FP32", "FP16", "ACCURACY"),
            "disable_dynamic_shapes": _BOOLEAN,
            "enable_qdq_optimizer": _BOOLEAN,
            "reshape_input": re.compile(r"[\w./:-]+\[[\d.,]+\](?:,[\w./:-]+\[[\d.,]+\])*"),
        },
        install="onnxruntime-openvino (x86_64 only)",
        threads="num_of_threads",
        cache=lambda folder, fill: {"cache_dir": folder},
        optimises=True,
    ),
    "QNNExecutionProvider": Provider(
        {
            # Not `backend_path`: it names a library to load.
            "backend_type": _one_of("htp", "cpu", "gpu"),
            "htp_performance_mode": _one_of(
                *("burst", "balanced", "default", "high_performance"),
                *("high_power_saver", "low_balanced", "low_power_saver", "power_saver"),
                *("extreme_power_saver", "sustained_high_performance"),
            ),
            "htp_graph_finalization_optimization_mode": re.compile(r"[0-3]"),
            "enable_htp_fp16_precision": _FLAG,
            "offload_graph_io_quantization": _FLAG,
            "soc_model": _COUNT,
            "vtcm_mb": _COUNT,
        },
        # Of the package with this name only versions below 2 are builds, and none for Linux.
        install="a build of ONNX Runtime with it (onnxruntime-qnn from 2.0 on is a plug-in, which "
        "is not used here)",
    ),
    "XnnpackExecutionProvider": Provider(
        install="a build of ONNX Runtime with it (it is in no wheel)",
        threads="intra_op_num_threads",
    ),
    "MIGraphXExecutionProvider": Provider(
        {"device_id": _COUNT, "migraphx_fp16_enable": _FLAG, "migraphx_int8_enable": _FLAG},
        install="onnxruntime-migraphx",
    ),
}


class Plan(NamedTuple):
    """How a session is to be made.

    Attributes:
        name: The wanted provider.
        providers: In order of preference, each with its options; the CPU is last.
        threads: Of the session's own pool.
        session: Entries of its configuration.
        optimise: Let the session optimise the graph.
    """

    name: str
    providers: tuple[tuple[str, dict[str, str]], ...]
    threads: int
    session: dict[str, str]
    optimise: bool = True


def offered(available: Sequence[str]) -> tuple[str, ...]:
    """Return which of a build's providers may be asked for here."""
    return tuple(name for name in available if name in PROVIDERS)


def compiling(offer: Sequence[str], folders: Sequence[Path]) -> dict[str, str]:
    """Return which providers compile what is worth keeping, and what compiles it.

    Args:
        offer: From `offered`.
        folders: Where TensorRT's library may be.
    """
    found = sorted(
        path.name.partition(".so.")[2]
        for folder in folders
        for path in folder.glob("libnvinfer.so.*.*")
    )
    versions = {"TensorrtExecutionProvider": found[-1] if found else ""}
    return {name: versions.get(name, "") for name in offer if PROVIDERS[name].cache is not None}


def plan(wanted: Wanted, available: Sequence[str]) -> Plan:
    """Turn what is wanted into what a session is made with.

    Args:
        wanted: By the library's own names.
        available: The providers of this build.

    Raises:
        RuntimeUnavailable: There is no such provider or option, or a value that it does not take;
            names what there is.
    """
    name = wanted.provider or CPU
    offer = offered(available)
    if name not in offer:
        raise _no_provider(name, offer)
    provider = PROVIDERS[name]
    session, own = _sorted_out(name, provider, wanted.options)
    threads = max(1, wanted.threads)
    if provider.threads:
        # It brings a pool of its own; two of them would fight for the same cores.
        own[provider.threads] = str(threads)
        threads = 1
    if wanted.cache is not None and provider.cache is not None:
        own.update(provider.cache(str(_own_folder(wanted.cache)), wanted.fill))
    after = [other for other in (*provider.behind, CPU) if other in offer and other != name]
    return Plan(
        name,
        ((name, own), *((other, {}) for other in after)),
        threads,
        session,
        not provider.optimises,
    )


def _own_folder(path: Path) -> Path:
    if not path.is_absolute():
        raise RuntimeUnavailable(f"the folder for compiled models, {path}, is not absolute")
    return path


def _no_provider(name: str, offer: Sequence[str]) -> RuntimeUnavailable:
    has = ", ".join(offer)
    known = PROVIDERS.get(name)
    if known is None:
        return RuntimeUnavailable(
            f"there is no execution provider {name!r} that may be used here",
            hint=f"this build of ONNX Runtime has {has}",
        )
    return RuntimeUnavailable(
        f"this build of ONNX Runtime has no {name}; it has {has}",
        hint=f"{known.install} brings it; uninstall the other onnxruntime packages first, as they "
        "share a folder",
    )


def _sorted_out(
    name: str, provider: Provider, options: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Check the options and tell the session's from the provider's."""
    session: dict[str, str] = {}
    own: dict[str, str] = {}
    for key, value in options.items():
        target = session if key in SESSION_OPTIONS else own
        pattern = SESSION_OPTIONS.get(key) or provider.options.get(key)
        if pattern is None:
            known = ", ".join((*provider.options, *SESSION_OPTIONS))
            raise RuntimeUnavailable(
                f"{name} has no option {key!r} that may be set", hint=f"it takes {known}"
            )
        if len(value) > 1024 or not pattern.fullmatch(value):
            raise RuntimeUnavailable(
                f"{name}'s option {key} does not take {value[:80]!r}",
                hint=f"it must match {pattern.pattern}",
            )
        target[key] = value
    return session, own
