"""Dead Simple Signing Envelopes: what exactly is signed, and base64 with one reading.

https://github.com/secure-systems-lab/dsse, protocol.md and envelope.md, version 1.0.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from agent.trust.strict_json import malformed


class EnvelopeSignature(msgspec.Struct, frozen=True):
    """One signature, in base64, and an unsigned remark whose key it is of."""

    sig: str
    keyid: str = ""


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """What is signed, in base64, what it is, and the signatures."""

    payload: str
    payload_type: str
    signatures: tuple[EnvelopeSignature, ...]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that a signature is made over; they cover the type, so none passes for another."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def from_base64(text: str, *, name: str) -> bytes:
    """Decode base64 that was written in the one canonical way (RFC 4648, sections 3.5 and 4).

    Raises:
        BundleMalformed: It is written in another way, which would decode to the same bytes.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise malformed("base64", f"{name}: is not base64: {error}") from None
    if base64.b64encode(data).decode() != text:
        raise malformed("base64", f"{name}: is not base64 in its canonical form")
    return data


def to_base64(data: bytes) -> str:
    """Encode as `from_base64` takes it."""
    return base64.b64encode(data).decode()
