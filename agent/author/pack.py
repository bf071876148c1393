"""Makes a pack of a model file: reads it, tries it, and writes manifest, files and self-test.

The same input gives the same bytes, and so the same id: no time, no path, no host name goes in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.author import chunking, deltas, golden, placeholder, reading, signature
from agent.author.folder import Folder, OpenedPack, open_pack, replace_pack
from agent.author.spec import Spec, VariantSpec
from agent.author.trials import Trials, Tried, check_chains
from agent.documents import codec
from agent.documents.manifest import (
    MAX_MANIFEST_BYTES,
    Card,
    Manifest,
    SelfTestCase,
    Tensor,
    Variant,
)
from agent.errors import BadOutput, ModelRejected, PackError, SelfTestFailed, UsageError
from agent.formats.description import ModelDescription
from agent.formats.labels import parse_labels

DEADLINE_S = 30.0
MAX_LABELS_BYTES = 8 * 1024 * 1024
MAX_UNRANKED_DIMENSIONS = 5
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9_.@+-]+")


class Packed(msgspec.Struct, frozen=True):
    """What was written.

    Args:
        pack: The pack's id: `sha256:` and the digest of its manifest.
        directory: Where it lies.
        manifest: Its content.
        tried: How each variant did here.
        notes: What a person should know of the file: unusual things, things left out.
        savings: What devices with an older pack need not fetch.
    """

    pack: str
    directory: Path
    manifest: Manifest
    tried: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = ()
    savings: tuple[deltas.Saving, ...] = ()


class ModelFile(msgspec.Struct, frozen=True):
    """One model file in the pack's folder, and what is known of it."""

    name: str
    description: ModelDescription
    given: VariantSpec | None
    # Names of the files that hold its weights.
    external: tuple[str, ...] = ()


def pack(
    model: Path,
    out: Path,
    *,
    spec: Spec | None = None,
    name: str | None = None,
    version: str | None = None,
    samples: Path | Sequence[Path] | None = None,
    unchecked: bool = False,
    force: bool = False,
    deadline_s: float = DEADLINE_S,
    delta_from: Sequence[Path] = (),
) -> Packed:
    """Pack a model.

    Args:
        model: An `.onnx` or `.tflite` file.
        out: The folder to make.
        spec: What `model.toml` says.
        name: The pack's name; default: the specification's, else the file's.
        version: Its version; default: the specification's, else "1".
        samples: Files with golden samples; default: the specification's, else random ones.
        unchecked: Write the pack without reading the model or running it. For tests that must
            bring a broken model to a device: its self-test is made up and fails.
        force: Replace another pack in `out`.
        deadline_s: How long reading the model, loading it, or one run may take.
        delta_from: Folders of older packs, at most 8: whoever has one of them fetches a delta.

    Raises:
        UsageError: A file is not there, or `out` holds something else.
        DocumentError: The specification does not fit the model; names the value.
        ModelRejected: The model is damaged, or asks for what a pack cannot give.
        ModelError, WorkerError, RuntimeUnavailable: It did not run here; says why.
    """
    spec = spec or Spec()
    if not model.is_file():
        what = "is a folder" if model.is_dir() else "there is no such file"
        raise UsageError(f"{model}: {what}", hint="give an .onnx or .tflite file")
    if len(delta_from) > deltas.MAX_BASES:
        raise UsageError(f"{len(delta_from)} older packs: at most {deltas.MAX_BASES} can be given")
    bases = [open_pack(base) for base in delta_from]
    folder = Folder.beside(out)
    try:
        spec = msgspec.structs.replace(
            spec,
            name=name or spec.name or signature.pack_name(model.stem),
            version=version or spec.version or "1",
        )
        work = _Work(folder, spec, _sample_files(samples, spec), deadline_s)
        made = work.make_up(model) if unchecked else work.run(model)
        manifest, savings = _smaller(folder, made.manifest, bases)
        data = codec.encode(manifest)
        replace_pack(folder, out, data, force=force)
        return msgspec.structs.replace(
            made, pack=pack_id(data), directory=out, manifest=manifest, savings=savings
        )
    finally:
        folder.remove()


def _smaller(
    folder: Folder, manifest: Manifest, bases: Sequence[OpenedPack]
) -> tuple[Manifest, tuple[deltas.Saving, ...]]:
    """Add what makes the pack small on the wire: chunk lists, and deltas from older packs."""
    files = chunking.with_lists(folder.path, manifest.files)
    manifest = msgspec.structs.replace(manifest, files=files)
    manifest, savings = deltas.add(folder, manifest, bases)
    return check(manifest), savings


def pack_id(manifest: bytes) -> str:
    """Return the id of the pack with this manifest."""
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def _sample_files(samples: Path | Sequence[Path] | None, spec: Spec) -> tuple[Path, ...]:
    if samples is None:
        return tuple(map(Path, spec.samples))
    return (samples,) if isinstance(samples, Path) else tuple(samples)


class _Work:
    """One pack in the making."""

    def __init__(
        self, folder: Folder, spec: Spec, samples: tuple[Path, ...], deadline_s: float
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._samples = samples
        self._deadline_s = deadline_s
        self._notes: list[str] = []

    def make_up(self, model: Path) -> Packed:
        """Fill the folder with a model that nobody looked at."""
        manifest = placeholder.write(self._folder, model, self._spec)
        note = "nothing was checked, and the self-test is made up: for tests only"
        return Packed("", self._folder.path, manifest, notes=(note,))

    def run(self, model: Path) -> Packed:
        """Fill the folder, all but the manifest."""
        files = self._take_models(model)
        manifest = check(self._draft(files))
        check_chains(manifest)
        trials = Trials(self._folder, self._spec.limits, self._deadline_s)
        manifest, cases = self._golden(trials, manifest, files)
        names = tuple(f"selftest/{index:03}.json" for index in range(len(cases)))
        for name, case in zip(names, cases, strict=True):
            self._folder.write(name, codec.encode(case))
        manifest = check(
            msgspec.structs.replace(manifest, selftest=names, files=self._folder.files())
        )
        try:
            tried = trials.qualify(manifest)
        except SelfTestFailed as error:
            raise SelfTestFailed(
                error.message, hint="; ".join((error.hint, *self._notes))
            ) from None
        return Packed("", self._folder.path, manifest, tried, tuple(self._notes))

    def _take_models(self, model: Path) -> list[ModelFile]:
        own = next((v for v in self._spec.variants if _same(Path(v.file), model)), None)
        files = [self._take(model, own)]
        files += [self._take(Path(v.file), v) for v in self._spec.variants if v is not own]
        # The variant that others are measured by comes first, and one for the CPU gives its output.
        alone = all(signature.is_for_edgetpu(file.description) for file in files)
        if alone:
            raise ModelRejected(
                f"{model.name} is compiled for the Edge TPU and cannot be run here, so it has no "
                "golden output",
                hint="pack the file that it was compiled from, with this one under [[variants]] "
                "in model.toml",
            )
        return sorted(files, key=lambda file: signature.is_for_edgetpu(file.description))

    def _take(self, path: Path, given: VariantSpec | None) -> ModelFile:
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file", hint="[[variants]] file names it")
        name = self._folder.take(path, _file_name(path))
        copy = self._folder.path / name
        description = reading.read_model(copy, deadline_s=self._deadline_s)
        external = reading.external_files(path, description)
        for part in external:
            self._folder.take(path.parent / part, part, exactly=True)
        self._notes += [f"{name}: {note}" for note in signature.notes_of(description)]
        return ModelFile(name, description, given, external)

    def _draft(self, files: Sequence[ModelFile]) -> Manifest:
        """Return the manifest without a self-test."""
        spec = self._spec
        labels = read_labels(spec, files[0].description)
        variants = [signature.variant_of(f.description, f.name, f.given, spec) for f in files]
        variants = _with_names_of_their_own(variants)
        outputs = signature.public_outputs(variants[0], spec, labels)
        variants = [
            signature.with_tolerance(variant, file.description, file.given, spec, outputs)
            for variant, file in zip(variants, files, strict=True)
        ]
        return Manifest(
            schema=1,
            name=spec.name or "",
            version=spec.version or "",
            task=spec.task or "",
            inputs=signature.public_inputs(variants[0], spec),
            outputs=outputs,
            pipeline=spec.pipeline,
            labels=labels,
            variants=tuple(variants),
            state=spec.state,
            limits=spec.limits,
            card=_card(spec.card, files[0].description),
            files=self._folder.files(),
        )

    def _golden(
        self, trials: Trials, manifest: Manifest, files: Sequence[ModelFile]
    ) -> tuple[Manifest, list[SelfTestCase]]:
        """Run the samples; find the rank of outputs whose file does not say it by trying."""
        said = files[0].description
        unranked = signature.unranked_outputs(said, self._spec.outputs)
        dim_names = {tensor.name: tensor.dim_names for tensor in said.inputs}
        guesses = range(MAX_UNRANKED_DIMENSIONS + 1) if unranked else (0,)
        for rank in guesses:
            guess = _with_rank(manifest, unranked, rank) if unranked else manifest
            try:
                return guess, golden.make_cases(trials, guess, self._samples, dim_names)
            except (BadOutput, PackError):
                if not unranked:
                    raise
        raise ModelRejected(
            f"the file does not say how many dimensions output {min(unranked)!r} has",
            hint="state its shape under [[outputs]] in model.toml",
        )


def check(manifest: Manifest) -> Manifest:
    """Return a manifest as a device will read it.

    Raises:
        DocumentError: A value is not what a manifest may hold.
    """
    return codec.decode(
        codec.encode(manifest), Manifest, name="manifest", max_bytes=MAX_MANIFEST_BYTES
    ).value


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)


def _file_name(path: Path) -> str:
    name = _NOT_IN_FILE_NAMES.sub("_", path.name)
    return name if name[:1].isalnum() or name[:1] == "_" else f"_{name}"


def _with_names_of_their_own(variants: Sequence[Variant]) -> list[Variant]:
    taken: dict[str, int] = {}
    result = []
    for variant in variants:
        count = taken[variant.name] = taken.get(variant.name, 0) + 1
        name = variant.name if count == 1 else f"{variant.name}-{count}"
        result.append(msgspec.structs.replace(variant, name=name))
    return result


def _with_rank(manifest: Manifest, names: set[str], rank: int) -> Manifest:
    def ranked(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        shape = (-1,) * rank
        replace = msgspec.structs.replace
        return tuple(replace(t, shape=shape) if t.name in names else t for t in tensors)

    replace = msgspec.structs.replace
    variants = tuple(replace(v, outputs=ranked(v.outputs)) for v in manifest.variants)
    return replace(manifest, variants=variants, outputs=ranked(manifest.outputs))


def read_labels(spec: Spec, description: ModelDescription) -> tuple[str, ...]:
    """Return the author's labels, else those that the model file carries.

    Raises:
        UsageError: The author's file is not there.
        ModelRejected: It is no list of labels.
    """
    if spec.labels is not None:
        return spec.labels
    if spec.labels_file is None:
        return description.labels or ()
    path = Path(spec.labels_file)
    try:
        if path.stat().st_size > MAX_LABELS_BYTES:
            raise UsageError(f"{path}: a label file of more than {MAX_LABELS_BYTES >> 20} MiB")
        return parse_labels(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="labels_file names it") from None


def _card(card: Card, description: ModelDescription) -> Card:
    """Return the author's card; what it leaves empty, the model file's own words fill."""
    return msgspec.structs.replace(
        card,
        licence=card.licence or description.metadata.get("license", "")[:128],
        description=card.description or description.description[:1024],
    )
