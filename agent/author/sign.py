"""Makes keys, signs packs and verifies them, on the workstation.

Signing and verifying look at a whole folder; a device verifies the files that it fetches.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.author.folder import open_pack
from agent.author.tree import read_file, read_tree
from agent.documents.manifest import MAX_MANIFEST_BYTES
from agent.documents.pack_names import MANIFEST, SIGNATURE
from agent.documents.text import printable
from agent.errors import PackError, PackInconsistent, Unsigned, UsageError
from agent.store.trust_files import read_small
from agent.trust import keys, signing, verify
from agent.trust.bundle import MAX_BUNDLE_BYTES, parse_bundle
from agent.trust.certificates import subject_of
from agent.trust.verify import Signed, TrustedKeys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurve,
        EllipticCurvePrivateKey,
    )

# As people write them → as `cryptography` calls them.
CURVES: Mapping[str, str] = {"P-256": "SECP256R1", "P-384": "SECP384R1", "P-521": "SECP521R1"}
_MAX_PASSWORD_BYTES = 1024
_MAX_CERTIFICATES_BYTES = 128 << 10


class MadeKey(msgspec.Struct, frozen=True):
    """A new pair of keys: its id and its two files."""

    id: str
    private: Path
    public: Path


class SignedPack(msgspec.Struct, frozen=True):
    """A signature that was written.

    Args:
        pack: The pack's id.
        key_id: Of the key that signed.
        subject: Whose certificate went in; empty in key mode.
        files: How many files are signed.
        signature: Where it was written.
    """

    pack: str
    key_id: str
    subject: str
    files: int
    signature: Path


class Verified(msgspec.Struct, frozen=True):
    """A good signature, and what of the folder is not what was signed.

    Args:
        signed: What somebody who is trusted has signed.
        wrong: A sentence for each file that is missing, altered, not signed, or no file.
    """

    signed: Signed
    wrong: tuple[str, ...]


class Signer(msgspec.Struct, frozen=True):
    """By whom a pack claims to be signed; nobody has verified it."""

    key_id: str = ""
    subject: str = ""


def make_key(out: Path, *, password: bytes | None = None, curve: str = "P-256") -> MadeKey:
    """Make a pair of keys: `out` for its owner alone, and `out`.pub.

    Raises:
        UsageError: One of the files exists, or cannot be written; nothing was changed.
    """
    from cryptography.hazmat.primitives import serialization as to
    from cryptography.hazmat.primitives.asymmetric import ec

    kind: EllipticCurve = getattr(ec, CURVES[curve])()
    key = ec.generate_private_key(kind)
    encryption: to.KeySerializationEncryption = (
        to.BestAvailableEncryption(password) if password else to.NoEncryption()
    )
    private = key.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, encryption)
    public = out.with_name(f"{out.name}.pub")
    _create(public, keys.pem_of(key.public_key()).encode(), 0o644)
    try:
        _create(out, private, 0o600)
    except BaseException:
        public.unlink()
        raise
    return MadeKey(keys.key_id(key.public_key()), out, public)


def read_key(path: Path, password: bytes | None = None) -> EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        UsageError: It cannot be read, or cannot sign packs.
    """
    pem = read_small(path, keys.MAX_PEM_BYTES)
    try:
        return keys.load_private_key(pem, password)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None


def read_password(path: Path | None) -> bytes | None:
    """Read a password, if a file is given; a line end behind it is not part of it.

    Raises:
        UsageError: The file holds none.
    """
    if path is None:
        return None
    password = read_small(path, _MAX_PASSWORD_BYTES).rstrip(b"\r\n")
    if not password:
        raise UsageError(f"{path}: holds no password")
    return password


def read_certificates(path: Path) -> tuple[bytes, ...]:
    """Read the certificates that go into a signature, the signer's own first; as DER.

    Raises:
        UsageError: There is none.
    """
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificates

    try:
        found = load_pem_x509_certificates(read_small(path, _MAX_CERTIFICATES_BYTES))
    except ValueError as error:
        raise UsageError(f"{path}: holds no certificate that can be read: {error}") from None
    return tuple(one.public_bytes(Encoding.DER) for one in found)


def sign_pack(
    directory: Path,
    key: EllipticCurvePrivateKey,
    *,
    certificates: tuple[bytes, ...] = (),
    out: Path | None = None,
) -> SignedPack:
    """Sign a pack that is whole.

    Args:
        directory: The pack.
        key: As `read_key` gives it.
        certificates: As `read_certificates` gives them; none: the signature names the key.
        out: Where the signature goes; default: `model.sig` in the pack.

    Raises:
        UsageError: There is no pack, or the certificate is not the key's.
        PackError: It holds links or other things that are no files, or is not what its manifest
            says.
    """
    opened = open_pack(directory)
    tree = read_tree(directory)
    if tree.refused:
        raise PackError(
            f"{directory}: {tree.refused[0]}", hint="a pack holds plain files and folders only"
        )
    manifest = _manifest(directory)
    try:
        verify.check_lists(tree.digests, manifest)
    except PackInconsistent as error:
        raise PackInconsistent(f"{directory}: {error.message}", hint="pack it again") from None
    bundle = signing.sign(tree.digests, key, name=opened.manifest.name, certificates=certificates)
    place = out or directory / SIGNATURE
    _replace(place, bundle)
    return SignedPack(
        pack=opened.pack,
        key_id=keys.key_id(key.public_key()),
        subject=subject_of(certificates[0]) if certificates else "",
        files=len(tree.digests),
        signature=place,
    )


def verify_pack(
    directory: Path,
    trust: TrustedKeys,
    *,
    signature: Path | None = None,
    now: dt.datetime | None = None,
) -> Verified:
    """Verify the signature of a pack, then every file of its folder.

    Args:
        directory: The pack.
        trust: Who may sign it.
        signature: Where the signature is; default: `model.sig` in the pack.
        now: When certificates and keys must be valid; default: now.

    Raises:
        UsageError: There is no pack.
        Unsigned: It has no signature.
        NotTrusted, PackInconsistent: The signature is not one that counts; says why.
    """
    place = signature or directory / SIGNATURE
    bundle = _signature(place)
    if bundle is None:
        raise Unsigned(f"{place}: is not there", hint="sign the pack with `edgeward sign`")
    at = now or dt.datetime.now(dt.timezone.utc)
    signed = verify.verify_bundle(bundle, _manifest(directory), trust, at)
    return Verified(signed, tuple(_wrong(directory, signed)))


def claimed_signer(directory: Path) -> Signer | None:
    """By whom a pack claims to be signed; None where it is not.

    Raises:
        BundleMalformed, CertificateRefused: Its signature cannot be read.
    """
    data = _signature(directory / SIGNATURE)
    if data is None:
        return None
    bundle = parse_bundle(data)
    return Signer(bundle.hint, subject_of(bundle.certificates[0]) if bundle.certificates else "")


def _wrong(directory: Path, signed: Signed) -> list[str]:
    tree = read_tree(directory)
    wrong = list(tree.refused)
    for name, digest in signed.files.items():
        found = tree.digests.pop(name, None)
        if found is None:
            wrong.append(f"{name}: is signed, and is missing")
        elif found != digest:
            wrong.append(f"{name}: is not what was signed")
    return wrong + [f"{printable(name)}: is not signed" for name in sorted(tree.digests)]


def _manifest(directory: Path) -> bytes:
    data = read_file(directory / MANIFEST, MAX_MANIFEST_BYTES)
    if data is None:
        raise UsageError(f"{directory}: holds no pack ({MANIFEST} is not there)")
    return data


def _signature(place: Path) -> bytes | None:
    try:
        return read_file(place, MAX_BUNDLE_BYTES)
    except UsageError as error:
        raise PackError(error.message, hint="a signature is a plain file") from None


def _create(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except FileExistsError:
        raise UsageError(
            f"{path}: exists", hint="give another name; a key is never written over"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 of a descriptor
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise UsageError(f"{path}: {error.strerror}") from None
        raise


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", hint="give a file with --out")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    _create(beside, data, 0o644)
    try:
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise UsageError(f"{path}: {error.strerror}") from None
