"""Signs packs, in the form that `verify` and the standard tool take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agent.errors import PackError, UsageError
from agent.trust import dsse, in_toto
from agent.trust.bundle import MAX_BUNDLE_BYTES, PAYLOAD_TYPE, write_bundle
from agent.trust.keys import algorithm_of, checked_public_key, key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


def sign(
    files: Mapping[str, str],
    key: EllipticCurvePrivateKey,
    *,
    name: str,
    certificates: Sequence[bytes] = (),
) -> bytes:
    """Sign a list of files.

    Args:
        files: Name of every file of the pack, `manifest.json` among them → `sha256:<hex>`.
        key: One that `load_private_key` has read.
        name: The pack's, for people.
        certificates: DER: the key's own, then those between it and the authority's. None: the
            signature names the key itself.

    Returns:
        The content of `model.sig`.

    Raises:
        PackError: A name is none that a pack may have, or there are more than a device takes.
        UsageError: The first certificate is of another key.
    """
    payload = in_toto.write_statement(files, name=name)
    signed = dsse.pre_authentication_encoding(PAYLOAD_TYPE, payload)
    public = key.public_key()
    if certificates:
        _check_own(key, certificates[0])
    signature = key.sign(signed, algorithm_of(public))
    bundle = write_bundle(payload, signature, hint=key_id(public), certificates=certificates)
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise PackError(
            f"the signature has {len(bundle)} bytes, a device takes {MAX_BUNDLE_BYTES}",
            hint="give the pack fewer files, or shorter names",
        )
    return bundle


def _check_own(key: EllipticCurvePrivateKey, certificate: bytes) -> None:
    from cryptography.x509 import load_der_x509_certificate

    owner = checked_public_key(load_der_x509_certificate(certificate).public_key())
    if key_id(owner) != key_id(key.public_key()):
        raise UsageError(
            "the certificate is not of this key", hint="give the certificate that was issued for it"
        )
