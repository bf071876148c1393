"""From a pack's folder to a model that answers: checks that need no runtime, load, warm-up."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.documents import codec
from agent.documents.manifest import MAX_MANIFEST_BYTES, Manifest, Tensor, Variant
from agent.documents.report import Isolation
from agent.errors import AgentError, ModelError, ModelRejected, PackError
from agent.formats import registry as formats
from agent.formats.bounds import shown
from agent.formats.description import OnnxNeeds
from agent.formats.external_data import check_external_data
from agent.pipeline.chain import Chain, ProducedBy, compile_chain
from agent.pipeline.tensors import may_match, show_shape
from agent.runtimes.api import Runtime, Session, Wanted, shorten
from agent.wire.worker import COMPILES_AS, Load, Ready
from agent.worker.sessions import Run, compile_run

MANIFEST_NAME = "manifest.json"
MAX_NAMES_SHOWN = 5
# The key of the entry that names a file (StringStringEntryProto of TensorProto.external_data):
# a model without these bytes refers to no file.
_EXTERNAL_KEY = b"location"


class Model(msgspec.Struct, frozen=True):
    """One variant, loaded and ready to serve."""

    manifest: Manifest
    variant: Variant
    directory: Path
    chain: Chain
    run: Run
    ready: Ready


def open_model(runtime: Runtime, load: Load, isolation: Isolation) -> Model:
    """Load one variant of an unpacked pack, compile its chain and run it once.

    Args:
        runtime: That of the variant's format.
        load: What to load.
        isolation: What confines this process, for the report.

    Raises:
        PackError, DocumentError: The pack contradicts itself, its file or what can be served.
        ModelRejected: The file is no model, or not one for this runtime.
        MemoryError: It needs more memory than this process may have.
    """
    directory = Path(load.directory)
    manifest = read_manifest(directory)
    variant = _variant(manifest, load.variant)
    path = check_file(directory, manifest, variant, thorough=load.probe)

    wanted = Wanted(
        load.provider,
        load.threads,
        load.options,
        share=load.share,
        memory_mb=load.memory_mb,
        cache=Path(load.cache) if load.cache else None,
        fill=load.policy in COMPILES_AS.values(),
    )
    outputs = [tensor.name for tensor in variant.outputs]

    def load_session() -> Session:
        try:
            return runtime.load(path, wanted, outputs=outputs)
        except (AgentError, MemoryError):
            raise
        except Exception as error:
            # A damaged file can surprise a library anywhere, down to the text of a name.
            raise ModelRejected(
                f"the runtime {runtime.name} fails on {variant.file}: {shorten(repr(error))}"
            ) from error

    started = time.monotonic()
    session = load_session()
    load_ms = (time.monotonic() - started) * 1000
    check_tensors("input", variant.inputs, session.inputs, may_lack=False)
    check_tensors("output", variant.outputs, session.outputs, may_lack=True)
    chain = compile_chain(
        manifest,
        variant,
        load.settings,
        reply_to=load.reply_to,
        produced_by=ProducedBy(load.pack, runtime.name, session.placement.got, load.slot),
        id_prefix=os.urandom(6).hex(),
    )
    # The first run also allocates: it belongs to the start. Zeros may be an input that the model
    # cannot digest, which says nothing of its real ones.
    with suppress(ModelError):
        session.run(chain.zeros())
    ready = Ready(
        runtime=runtime.name,
        runtime_version=runtime.version,
        placement=session.placement,
        threads=load.threads,
        variant=variant.name,
        isolation=isolation,
        owner=getattr(session, "owner", None),
        replayable=variant.hidden_state != "per_source",
        load_ms=round(load_ms, 3),
        compiled=getattr(session, "compiled", ""),
    )
    run = compile_run(variant, manifest.limits, session, load_session)
    return Model(manifest, variant, directory, chain, run, ready)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of an unpacked pack.

    Raises:
        PackError: It cannot be read.
        DocumentError: It is not what a manifest must be.
    """
    data = read_file(directory / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    return codec.decode(data, Manifest, name="manifest", max_bytes=MAX_MANIFEST_BYTES).value


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read a file of a pack, at most one byte more than it may have.

    Raises:
        PackError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise PackError(f"{path.name} of the pack cannot be read: {error.strerror}") from None


def check_file(directory: Path, manifest: Manifest, variant: Variant, *, thorough: bool) -> Path:
    """Check a variant's file before a runtime sees it.

    The digest is not computed again: who unpacked the pack has done it.

    Args:
        directory: The unpacked pack.
        manifest: Its manifest.
        variant: One of its variants.
        thorough: Walk the whole structure of the file, as on its way to qualification. Otherwise
            only what is cheap, since it has been qualified here before.

    Raises:
        PackError: It is missing, outside the pack, or of another size than the manifest says.
        ModelRejected: It is not of the format that it should be, or reads files of others.
    """
    path = Path(os.path.realpath(directory / variant.file))
    promised = manifest.files.get(variant.file)
    if promised is None or not path.is_relative_to(os.path.realpath(directory)):
        raise PackError(f"the variant {variant.name!r} names {variant.file!r}, no file of the pack")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != promised.size:
                raise PackError(
                    f"{variant.file} has {size} bytes, the manifest says {promised.size}",
                    hint="the file was cut short or replaced; fetch the pack again",
                )
            _check_format(file.read(formats.HEAD_LENGTH), variant)
            _check_content(file.fileno(), manifest, variant, thorough=thorough)
    except OSError as error:
        raise PackError(f"{variant.file} cannot be read: {error.strerror}") from None
    return path


def check_tensors(
    kind: str, manifest: Sequence[Tensor], session: Sequence[Tensor], *, may_lack: bool
) -> None:
    """Hold what a variant says of its tensors against what the loaded file says.

    Args:
        kind: `input` or `output`.
        manifest: The variant's tensors.
        session: The session's.
        may_lack: The variant may leave some of the file's out.

    Raises:
        PackError: They differ.
    """
    by_name = {tensor.name: tensor for tensor in session}
    names = ", ".join(shown(name) for name in list(by_name)[:MAX_NAMES_SHOWN]) or "none"
    for tensor in manifest:
        real = by_name.pop(tensor.name, None)
        if real is None:
            raise PackError(f"the manifest names an {kind} {tensor.name!r}; the model has {names}")
        # With no shape in the file, its author's word stands, and the self-test proves it.
        fits = not real.shape or may_match(real.shape, tensor.shape)
        if real.datatype != tensor.datatype or not fits:
            raise PackError(
                f"{kind} {tensor.name!r}: the manifest says "
                f"{tensor.datatype} {show_shape(tensor.shape)}, "
                f"the model {real.datatype} {show_shape(real.shape)}"
            )
    if by_name and not may_lack:
        raise PackError(f"the model's {kind} {shown(next(iter(by_name)))} is not in the manifest")


def _variant(manifest: Manifest, name: str) -> Variant:
    for variant in manifest.variants:
        if variant.name == name:
            return variant
    names = ", ".join(variant.name for variant in manifest.variants)
    raise PackError(f"the pack has no variant {name!r}; it has {names}")


def _check_format(head: bytes, variant: Variant) -> None:
    kind = formats.recognise(head)
    if kind == variant.format:
        return
    if kind not in {known.name for known in formats.known()}:
        # Says what the file is instead; of a head alone it cannot say more.
        formats.describe(head)
    raise PackError(f"the manifest calls {variant.file} {variant.format}, it is {kind}")


def _check_content(
    descriptor: int, manifest: Manifest, variant: Variant, *, thorough: bool
) -> None:
    if variant.format != "onnx" and not thorough:
        return
    # Not closed by hand: the error of a damaged file still holds views of it.
    data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    if not thorough and data.find(_EXTERNAL_KEY) < 0:
        return
    needs = formats.describe(memoryview(data), filename=variant.file).needs
    if isinstance(needs, OnnxNeeds):
        folder = variant.file.rpartition("/")[0]
        check_external_data(needs.external_data, _beside(folder, manifest))


def _beside(folder: str, manifest: Manifest) -> dict[str, int]:
    """Return the pack's files below the model's folder, by their name relative to it."""
    prefix = f"{folder}/" if folder else ""
    return {
        name.removeprefix(prefix): file.size
        for name, file in manifest.files.items()
        if name.startswith(prefix)
    }
