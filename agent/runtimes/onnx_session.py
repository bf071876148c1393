"""Makes an ONNX Runtime session, and finds out where its operators really run.

The library says nothing when an execution provider does not work and the CPU does its work: a
provider may be in the build and lack its libraries, take no operator, or fail on this model. So a
session is believed only in what it says of itself once the model is loaded.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from agent.documents.report import Placement
from agent.runtimes import onnx_providers as providers
from agent.runtimes.api import Wanted, shorten
from agent.runtimes.onnx_providers import CPU, Plan
from agent.runtimes.onnx_refusals import reason_in

ORT_MAGIC = b"ORTM"
MAX_OPERATORS_NAMED = 6
_RECORD = "session.record_ep_graph_assignment_info"
_NO_FALLBACK = "session.disable_cpu_ep_fallback"


def open_session(model: Path, wanted: Wanted) -> tuple[Any, Placement]:
    """Load a model on what is wanted, or on the CPU with the reason.

    Raises:
        RuntimeUnavailable: This build has no such provider, or it does not take an option.
        Exception: What the library raises on a model that the CPU does not load either.
    """
    plan = providers.plan(wanted, onnxruntime.get_available_providers())
    is_ort = _is_ort(model)
    if plan.name == CPU:
        return _create(model, plan, is_ort), Placement(CPU, CPU, 1.0, 1.0)
    try:
        # Absent from older versions, which take any entry without a word.
        native = _create(model, plan, is_ort, {_RECORD: "1"})
    except MemoryError:
        raise
    except Exception as error:
        on_cpu = providers.plan(Wanted(threads=wanted.threads), [CPU])
        why = f"{plan.name} fails on this model: {reason_in(str(error))}"
        return _create(model, on_cpu, is_ort), Placement(plan.name, CPU, 1.0, 1.0, why[:1000])
    placed = placement(native, plan.name)
    if placed.got == plan.name and placed.operators is None and _runs_alone(model, plan, is_ort):
        placed = Placement(plan.name, plan.name, 1.0, 1.0)
    return native, placed


def placement(native: Any, wanted: str) -> Placement:
    """Say where the operators of a loaded model run.

    Args:
        native: The library's session.
        wanted: The provider that was to run them.
    """
    if native.get_providers()[0] != wanted:
        return Placement(wanted, CPU, 1.0, 1.0, f"{wanted} does not work here{_missing(wanted)}")
    nodes = _assigned(native)
    if nodes is None:
        return Placement(
            wanted, wanted, why="this version of ONNX Runtime does not tell where operators run"
        )
    total, own = sum(map(len, nodes.values())), len(nodes.get(wanted, ()))
    if not own:
        share = 1.0 if len(nodes) < 2 else None
        why = f"{wanted} takes none of the model's {total} operators"
        return Placement(wanted, next(iter(nodes)), share, share, why)
    others = [name for provider, names in nodes.items() if provider != wanted for name in names]
    if not others:
        return Placement(wanted, wanted, 1.0, 1.0)
    why = f"{len(others)} of {total} operators run elsewhere: {_named(others)}"
    return Placement(wanted, wanted, round(own / total, 4), why=why)


def _assigned(native: Any) -> dict[str, list[str]] | None:
    """Return the operators on each provider; None where this version does not tell."""
    try:
        parts = native.get_provider_graph_assignment_info()
    except Exception:
        return None
    nodes: dict[str, list[str]] = {}
    for part in parts:
        nodes.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    # A graph without operators, its outputs its inputs, runs nowhere.
    return nodes or None


def _runs_alone(model: Path, plan: Plan, is_ort: bool) -> bool:
    """Whether the provider takes the whole model, found out by forbidding it the others.

    For versions that do not tell; it costs one more load.
    """
    alone = plan._replace(providers=plan.providers[:1])
    try:
        session = _create(model, alone, is_ort, {_NO_FALLBACK: "1"})
    except Exception:
        return False
    return bool(session.get_providers()[0] == plan.name)


def _named(operators: Sequence[str]) -> str:
    counted = Counter(operators).most_common()
    shown = [f"{count} {name}" for name, count in counted[:MAX_OPERATORS_NAMED]]
    return ", ".join(shown) + (" …" if len(counted) > MAX_OPERATORS_NAMED else "")


def _missing(provider: str) -> str:
    """Return what the provider's library lacks, which the log line that nobody sees would say."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    stem = provider.removesuffix("ExecutionProvider").lower()
    library = folder / f"libonnxruntime_providers_{stem}.so"
    if not library.is_file():
        return ""
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return f": {shorten(error)}"
    return ": its library loads, so it finds no device or driver"


def _is_ort(model: Path) -> bool:
    """Whether the file is in ONNX Runtime's own format, whatever it is called."""
    try:
        with model.open("rb") as file:
            return file.read(8)[4:] == ORT_MAGIC
    except OSError:
        # The library's own refusal names the file.
        return False


def _create(model: Path, plan: Plan, is_ort: bool, more: dict[str, str] | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = plan.threads
    options.inter_op_num_threads = 1
    if not plan.optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    entries = {**plan.session, **(more or {})}
    if plan.threads > 1:
        # Waiting threads would burn a core for the next message (20 runs 50 ms apart: 1.27 s of
        # CPU time spinning, 0.38 s without).
        entries.setdefault("session.intra_op.allow_spinning", "0")
    if is_ort:
        entries["session.load_model_format"] = "ORT"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    # By its path: from bytes, external data would be looked for in the working directory. The
    # library's own retry on the CPU would hide the reason.
    return onnxruntime.InferenceSession(
        str(model),
        options,
        providers=[*plan.providers],
        enable_fallback=0,
    )
