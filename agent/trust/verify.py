"""Whether somebody whom we trust vouches for a pack: the whole decision, on bytes alone.

A device fetches `model.sig` and `manifest.json` first and gives both to `verify_bundle`, which
checks them before anything of the pack is believed and holds the two lists of files against each
other. Then it fetches what it needs of the pack, and each file must pass `check_file`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from agent.documents import codec
from agent.documents.manifest import MAX_MANIFEST_BYTES, PackFile
from agent.documents.pack_names import MANIFEST
from agent.errors import DigestMismatch, KeyUnknown, PackInconsistent
from agent.trust import in_toto
from agent.trust.bundle import Bundle, parse_bundle
from agent.trust.certificates import Authority, signer_key
from agent.trust.keys import TrustedKey, check_day, check_signature, key_id, load_public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey


class TrustedKeys(msgspec.Struct, frozen=True):
    """Who may sign packs: any of these keys, and the subject of an authority.

    A value of texts and dates: it can be sent to another process.
    """

    keys: tuple[TrustedKey, ...] = ()
    authority: Authority | None = None

    def __bool__(self) -> bool:
        return bool(self.keys) or self.authority is not None

    def key(self, key_id: str) -> TrustedKey | None:
        """The key with this id, where it is trusted."""
        return next((key for key in self.keys if key.id == key_id), None)


class Signed(msgspec.Struct, frozen=True):
    """What somebody whom we trust has signed.

    The result holds for as long as (`pack`, `signature`, `key_id`) are the same and the key is
    trusted: it may be kept under the three.

    Attributes:
        pack: Id of the pack: the digest of its manifest.
        signature: Digest of the signature file.
        key_id: Of the key that signed.
        subject: Whose certificate the key is in; empty in key mode.
        files: Name of each file, `manifest.json` among them → its digest, `sha256:<hex>`. But for
            that one name, the same list as the manifest's.
    """

    pack: str
    signature: str
    key_id: str
    subject: str
    files: dict[str, str]


class _Files(msgspec.Struct, frozen=True):
    files: dict[str, PackFile]


def verify_bundle(sig: bytes, manifest: bytes, trust: TrustedKeys, now: dt.datetime) -> Signed:
    """Decide whether a pack is signed by somebody whom we trust.

    Args:
        sig: Content of `model.sig`; more than 1 MiB is refused unread.
        manifest: Content of `manifest.json`.
        trust: Who may sign. The bundle only says which of them did.
        now: The later of the wall clock and the time floor, with its time zone.

    Raises:
        BundleMalformed: The signature file is not of the one form that is taken.
        KeyUnknown, KeyNotYetValid, KeyExpired, CertificateRefused: Its signer may not sign.
        SignatureInvalid: It was altered.
        PackInconsistent: It is the signature of another pack, or the two lists differ.
        DocumentError: The manifest lists no files.
    """
    assert now.tzinfo is not None, "a time without its zone is no time"
    bundle = parse_bundle(sig)
    key = _key_of(bundle, trust, now)
    check_signature(key, bundle.signature, bundle.signed_bytes)
    files = in_toto.parse_statement(bundle.payload)
    check_lists(files, manifest)
    return Signed(
        pack=_digest(manifest),
        signature=_digest(sig),
        key_id=key_id(key),
        subject=trust.authority.subject if bundle.certificates and trust.authority else "",
        files=files,
    )


def check_lists(files: Mapping[str, str], manifest: bytes) -> None:
    """Compare what is signed with the manifest: the same files, the same digests.

    Args:
        files: As in `Signed`.
        manifest: Its bytes, which must be those that were signed.

    Raises:
        PackInconsistent: They differ; says in which file.
        DocumentError: The manifest lists no files.
    """
    if files.get(MANIFEST) != _digest(manifest):
        raise _inconsistent(f"the manifest, {_digest(manifest)}, is not the one that was signed")
    # The decoder that the device reads it with: no second parser, no second opinion.
    name, bound = MANIFEST, MAX_MANIFEST_BYTES
    listed = codec.decode(manifest, _Files, name=name, max_bytes=bound).value.files
    signed = {name: digest for name, digest in files.items() if name != MANIFEST}
    only = sorted(listed.keys() ^ signed.keys())
    if only:
        where = "manifest" if only[0] in listed else "signature"
        raise _inconsistent(f"{codec.show(only[0])} is listed in the {where} only")
    for name, file in listed.items():
        if file.digest != signed[name]:
            raise _inconsistent(f"manifest and signature give {codec.show(name)} two digests")


def check_file(signed: Signed, name: str, digest: str) -> None:
    """Check one file of a pack against what was signed, and so against the manifest.

    Args:
        signed: Of this pack.
        name: In the pack.
        digest: Of the bytes that are here, `sha256:<hex>`.

    Raises:
        PackInconsistent: The pack has no such file.
        DigestMismatch: The bytes are others.
    """
    wanted = signed.files.get(name)
    if wanted is None:
        raise _inconsistent(f"{codec.show(name)} is no file of the signed pack {signed.pack}")
    if digest != wanted:
        raise DigestMismatch(
            f"{name} of pack {signed.pack} has the digest {digest}, signed was {wanted}",
            hint="the source serves another file, or it was altered on the way",
        )


def _key_of(bundle: Bundle, trust: TrustedKeys, now: dt.datetime) -> EllipticCurvePublicKey:
    if bundle.certificates:
        if trust.authority is None:
            raise KeyUnknown(
                "the pack is signed with a certificate, and no authority is trusted here",
                hint="name the authority and the signer in [trust] ca and subject, or have the "
                "pack signed by a key in [trust] keys",
            )
        return signer_key(bundle.certificates[0], trust.authority, now)
    trusted = trust.key(bundle.hint)
    if trusted is None:
        raise KeyUnknown(
            f"the pack is signed by key {codec.show(bundle.hint[:16])}…, which is not trusted here",
            hint="name the file of that public key in [trust] keys if its owner may sign packs",
        )
    check_day(trusted, now)
    return load_public_key(trusted.pem.encode())


def _inconsistent(message: str) -> PackInconsistent:
    return PackInconsistent(
        message,
        hint="manifest.json and model.sig are not of one pack: sign it again, and deliver both",
    )


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
