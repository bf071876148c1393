"""The signature file of a pack: a Sigstore bundle around one envelope.

The form is that of OpenSSF Model Signing (https://github.com/ossf/model-signing-spec) with a key
pair or a certificate; nothing in it is believed before `agent.trust.verify` has checked it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from agent.trust import dsse
from agent.trust.strict_json import fit_exactly, malformed, parse

MAX_BUNDLE_BYTES = 1 << 20
MAX_CERTIFICATES = 8
MAX_CERTIFICATE_BYTES = 16 << 10
NAME = "model.sig"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class _PublicKey(msgspec.Struct, frozen=True):
    hint: str


class _Certificate(msgspec.Struct, frozen=True, rename="camel"):
    raw_bytes: str


class _Chain(msgspec.Struct, frozen=True):
    certificates: tuple[_Certificate, ...]


class _Material(msgspec.Struct, frozen=True, rename="camel"):
    public_key: _PublicKey | None = None
    x509_certificate_chain: _Chain | None = msgspec.field(name="x509CertificateChain", default=None)
    tlog_entries: tuple[Any, ...] = ()


class _Bundle(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: dsse.Envelope


class Bundle(msgspec.Struct, frozen=True):
    """A bundle as it was read; nobody has vouched for anything in it yet.

    Attributes:
        hint: Id of the key that it claims to be signed by; empty in certificate mode.
        certificates: DER, the signer's own first; empty in key mode.
        payload: What is signed.
        signature: DER of an ECDSA signature.
    """

    hint: str
    certificates: tuple[bytes, ...]
    payload: bytes
    signature: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What the signature must be one of."""
        return dsse.pre_authentication_encoding(PAYLOAD_TYPE, self.payload)


def parse_bundle(data: bytes) -> Bundle:
    """Take a signature file apart.

    Raises:
        BundleMalformed: It is not of this form; `reason` says which rule it breaks.
    """
    raw = parse(data, name=NAME, max_bytes=MAX_BUNDLE_BYTES)
    # Of another version other fields are unknown; its name is the better reason.
    media_type = raw.get("mediaType") if isinstance(raw, dict) else None
    if media_type != MEDIA_TYPE:
        raise malformed("media_type", f"{NAME}: is not a bundle of media type {MEDIA_TYPE}")
    bundle = fit_exactly(raw, _Bundle, name=NAME)
    envelope, material = bundle.dsse_envelope, bundle.verification_material
    if envelope.payload_type != PAYLOAD_TYPE:
        raise malformed("payload_type", f"{NAME}: its payload is not of type {PAYLOAD_TYPE}")
    if len(envelope.signatures) != 1:
        count = len(envelope.signatures)
        raise malformed("signatures", f"{NAME}: has {count} signatures, exactly one is taken")
    hint = _hint(material)
    if envelope.signatures[0].keyid not in ("", hint):
        raise malformed("key_id", f"{NAME}: its signature names another key than the bundle does")
    return Bundle(
        hint,
        _certificates(material),
        dsse.from_base64(envelope.payload, name=f"{NAME}: the payload"),
        dsse.from_base64(envelope.signatures[0].sig, name=f"{NAME}: the signature"),
    )


def _hint(material: _Material) -> str:
    key, chain = material.public_key, material.x509_certificate_chain
    if material.tlog_entries:
        raise malformed("material", f"{NAME}: has entries of a log, which nobody here can check")
    if (key is None) == (chain is None):
        raise malformed("material", f"{NAME}: must name either a key or a certificate")
    if key is not None and not key.hint:
        raise malformed("material", f"{NAME}: does not say by which key it is signed")
    return key.hint if key is not None else ""


def _certificates(material: _Material) -> tuple[bytes, ...]:
    chain = material.x509_certificate_chain
    if chain is None:
        return ()
    if not 1 <= len(chain.certificates) <= MAX_CERTIFICATES:
        count = len(chain.certificates)
        raise malformed(
            "certificates", f"{NAME}: has {count} certificates, 1 to {MAX_CERTIFICATES} are taken"
        )
    certificates = tuple(
        dsse.from_base64(one.raw_bytes, name=f"{NAME}: a certificate") for one in chain.certificates
    )
    if max(map(len, certificates)) > MAX_CERTIFICATE_BYTES:
        raise malformed("certificates", f"{NAME}: has a certificate of more than 16 KiB")
    return certificates


def write_bundle(
    payload: bytes, signature: bytes, *, hint: str = "", certificates: Sequence[bytes] = ()
) -> bytes:
    """Put a signature file together, compact, so that each of its bytes means something.

    Args:
        payload: What is signed.
        signature: Over `Bundle.signed_bytes`.
        hint: Id of the key, in key mode.
        certificates: DER, the signer's own first, in certificate mode.
    """
    chain = [{"rawBytes": dsse.to_base64(one)} for one in certificates]
    material = (
        {"x509CertificateChain": {"certificates": chain}}
        if chain
        else {"publicKey": {"hint": hint}}
    )
    return json.dumps(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {**material, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": dsse.to_base64(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": dsse.to_base64(signature), "keyid": ""}],
            },
        },
        separators=(",", ":"),
    ).encode()
