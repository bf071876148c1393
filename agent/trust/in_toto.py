"""The signed part of a bundle: an in-toto statement that lists each file with its digest.

https://in-toto.io/Statement/v1 with the predicate https://model_signing/signature/v1.0.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping

import msgspec

from agent.documents.codec import show
from agent.documents.pack_names import MANIFEST, SIGNATURE, check_names
from agent.errors import PackError
from agent.trust.bundle import MAX_BUNDLE_BYTES
from agent.trust.strict_json import fit, fit_exactly, malformed, parse

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
# What the standard tool leaves out unless told otherwise. Only the first is left out here.
_MAY_BE_IGNORED = frozenset({SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore"})
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = "what is signed"


class _Digest(msgspec.Struct, frozen=True):
    sha256: str


class _Subject(msgspec.Struct, frozen=True):
    name: str
    digest: _Digest


class _Serialization(msgspec.Struct, frozen=True):
    method: str
    hash_type: str
    allow_symlinks: bool
    ignore_paths: tuple[str, ...] = ()


class _Resource(msgspec.Struct, frozen=True):
    name: str
    digest: str
    algorithm: str


class _Predicate(msgspec.Struct, frozen=True):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Statement(msgspec.Struct, frozen=True):
    predicate: _Predicate
    subject: tuple[_Subject, ...]


def parse_statement(payload: bytes) -> dict[str, str]:
    """Read what was signed. Only for a payload whose signature is good.

    Returns:
        Name of each file, `manifest.json` among them → its digest, written `sha256:<hex>`.

    Raises:
        BundleMalformed: Something is listed or hashed in a way that is not taken here.
    """
    raw = parse(payload, name=_NAME, max_bytes=MAX_BUNDLE_BYTES)
    kinds = (raw.get("_type"), raw.get("predicateType")) if isinstance(raw, dict) else None
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise malformed("statement_type", f"{_NAME} is no list of a model's files: {show(kinds)}")
    statement = fit(raw, _Statement, name=_NAME)
    _check_serialization(statement.predicate.serialization)
    # The specification lets a predicate grow, but these two decide what was hashed and how.
    decisive = {key: raw["predicate"][key] for key in _Predicate.__struct_fields__}
    fit_exactly(decisive, _Predicate, name=_NAME)
    if len(statement.subject) != 1:
        raise malformed("subject", f"{_NAME} must have one subject, not {len(statement.subject)}")
    listed = statement.predicate.resources
    for resource in listed:
        _check_digest(resource)
    if _root(resource.digest for resource in listed) != statement.subject[0].digest.sha256:
        raise malformed("root", f"{_NAME}: the digest over all files is not that of the list")
    _check_listed([resource.name for resource in listed])
    return {resource.name: f"sha256:{resource.digest}" for resource in listed}


def _check_serialization(how: _Serialization) -> None:
    name = f"{_NAME}: serialization"
    if how.method != "files":
        raise malformed("method", f"{name}: files must be hashed whole, not by {show(how.method)}")
    if how.hash_type != "sha256":
        said = show(how.hash_type)
        raise malformed("hash_type", f"{name}: files must be hashed by sha256, not {said}")
    if how.allow_symlinks:
        raise malformed("symlinks", f"{name}: follows symbolic links, which no pack may have")
    foreign = set(how.ignore_paths) - _MAY_BE_IGNORED
    if foreign:
        raise malformed(
            "ignore_paths", f"{name}: leaves {show(min(foreign))} out of what is signed"
        )


def _check_digest(resource: _Resource) -> None:
    name = f"{_NAME}: {show(resource.name)}"
    if resource.algorithm != "sha256":
        raise malformed("algorithm", f"{name}: is hashed by {show(resource.algorithm)}, not sha256")
    if not _HEX.fullmatch(resource.digest):
        raise malformed("digest", f"{name}: its digest is not 64 lowercase hex digits")


def _check_listed(names: list[str]) -> None:
    if MANIFEST not in names:
        raise malformed("no_manifest", f"{_NAME}: does not list {MANIFEST}, so it is of no pack")
    others = names.copy()
    others.remove(MANIFEST)
    try:
        check_names(others)
    except PackError as error:
        raise malformed("name", f"{_NAME}: {error.message}") from None


def _root(digests: Iterable[str]) -> str:
    """SHA-256 over the raw digests in order; names are not in it, so it identifies nothing."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def write_statement(files: Mapping[str, str], *, name: str) -> bytes:
    """List files for signing, in the order of the parts of their paths.

    Args:
        files: Name of each file → its digest, written `sha256:<hex>`.
        name: The pack's; nobody relies on it.

    Raises:
        PackError: A name is none that a pack may have.
    """
    check_names(set(files) - {MANIFEST})
    listed = [
        {"name": file, "digest": files[file].removeprefix("sha256:"), "algorithm": "sha256"}
        for file in sorted(files, key=lambda path: path.split("/"))
    ]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(one["digest"] for one in listed)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": listed,
        },
    }
    return json.dumps(statement, separators=(",", ":")).encode()
