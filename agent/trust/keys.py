"""Keys that may sign: which kinds, what they are called, and for how long each counts."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from agent.errors import KeyExpired, KeyNotYetValid, SignatureInvalid, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

MAX_PEM_BYTES = 16 << 10
# The curves of the format → the hash that goes with each.
CURVES: Mapping[str, str] = {
    "secp256r1": "SHA256",
    "secp384r1": "SHA384",
    "secp521r1": "SHA512",
}
CURVES_IN_WORDS = "P-256, P-384 or P-521"


class TrustedKey(msgspec.Struct, frozen=True):
    """A public key that somebody has decided to trust. Make it with `trusted_key`.

    Attributes:
        id: SHA-256, in hex, of its PEM text: the `hint` of a bundle.
        pem: SubjectPublicKeyInfo, as `openssl pkey -pubout` writes it.
        not_before: The first day, UTC, on which new packs signed by it are taken.
        not_after: The last such day.
    """

    id: str
    pem: str
    not_before: dt.date | None = None
    not_after: dt.date | None = None


def trusted_key(
    pem: bytes, *, not_before: dt.date | None = None, not_after: dt.date | None = None
) -> TrustedKey:
    """Make a trusted key of a file's content.

    Raises:
        UsageError: It is no public key of a kind that can sign packs.
    """
    public = load_public_key(pem)
    return TrustedKey(key_id(public), pem_of(public), not_before, not_after)


def check_day(key: TrustedKey, now: dt.datetime) -> None:
    """Refuse a key whose time has not begun, or is over.

    Raises:
        KeyNotYetValid, KeyExpired: So it is.
    """
    today = now.astimezone(dt.timezone.utc).date()
    if key.not_before is not None and today < key.not_before:
        raise KeyNotYetValid(
            f"the pack is signed by key {key.id[:16]}…, which counts from {key.not_before} on; "
            f"here it is {today}",
            hint="check the clock, or not_before of this key in [trust] keys",
        )
    if key.not_after is not None and today > key.not_after:
        raise KeyExpired(
            f"the pack is signed by key {key.id[:16]}…, which counted until {key.not_after}; "
            f"here it is {today}",
            hint="sign the pack with a newer key, and name its file in [trust] keys",
        )


def load_public_key(pem: bytes) -> EllipticCurvePublicKey:
    """Read a public key.

    Raises:
        UsageError: It is none, or of a kind that cannot sign packs.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY-----" in pem:
        raise UsageError(
            "this is a private key", hint="name its public half, the file that ends in .pub"
        )
    if pem.count(b"-----BEGIN PUBLIC KEY-----") != 1 or pem.count(b"-----BEGIN ") != 1:
        raise UsageError(
            "this is not one public key in PEM", hint="it begins with -----BEGIN PUBLIC KEY-----"
        )
    try:
        return checked_public_key(load_pem_public_key(pem))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"this public key cannot be read: {error}") from None


def checked_public_key(key: object) -> EllipticCurvePublicKey:
    """Refuse keys of kinds with which the format has no signatures.

    Raises:
        UsageError: It is such a key.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        kind = key.curve.name if isinstance(key, EllipticCurvePublicKey) else type(key).__name__
        raise UsageError(
            f"a key of kind {kind.strip('_')} cannot sign packs",
            hint=f"make an elliptic curve key, {CURVES_IN_WORDS}, with `edgeward keygen`",
        )
    return key


def load_private_key(pem: bytes, password: bytes | None) -> EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        UsageError: It is none, the password is not its own, or it is of a kind that cannot sign.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if b"-----BEGIN PUBLIC KEY-----" in pem:
        raise UsageError("this is a public key", hint="name the private one, without .pub")
    try:
        key = load_pem_private_key(pem, password)
    except TypeError:
        if password is None:
            raise UsageError("this key is encrypted", hint="give --password-file") from None
        raise UsageError("this key is not encrypted", hint="leave --password-file out") from None
    except (ValueError, UnsupportedAlgorithm):
        hint = "is it a private key in PEM" + (", and is the password right?" if password else "?")
        raise UsageError("this private key cannot be read", hint=hint) from None
    checked_public_key(key.public_key())
    assert isinstance(key, EllipticCurvePrivateKey)
    return key


def pem_of(key: EllipticCurvePublicKey) -> str:
    """The one text of a public key that its id is made of."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def key_id(key: EllipticCurvePublicKey) -> str:
    """The id of a key: SHA-256 of its PEM text, 64 hex digits."""
    return hashlib.sha256(pem_of(key).encode()).hexdigest()


def algorithm_of(key: EllipticCurvePublicKey) -> ECDSA:
    """The one signature algorithm of a key; the bundle has no say in it."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    algorithm: hashes.HashAlgorithm = getattr(hashes, CURVES[key.curve.name])()
    return ECDSA(algorithm)


def check_signature(key: EllipticCurvePublicKey, signature: bytes, signed: bytes) -> None:
    """Verify a signature.

    Raises:
        SignatureInvalid: It is not one of these bytes by this key.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, signed, algorithm_of(key))
    except InvalidSignature:
        raise SignatureInvalid(
            f"the signature of the pack is not one by key {key_id(key)[:16]}…",
            hint="model.sig was altered, or made by model-signing before 1.0: sign the pack again",
        ) from None
