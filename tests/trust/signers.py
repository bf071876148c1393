"""Keys, certificates and packs of a few bytes, and signatures made wrongly on purpose."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.trust import dsse, keys
from agent.trust.bundle import PAYLOAD_TYPE, write_bundle
from agent.trust.in_toto import write_statement
from agent.trust.keys import trusted_key
from agent.trust.verify import TrustedKeys
from tests.certificates import usage as key_usage

NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)

# The same in every process of a test run, as names of tests are made of them.
KEY = ec.derive_private_key(0x5EED, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(0xBEEF, ec.SECP256R1())
FILES = {"model.onnx": b"weights", "selftest/000.json": b"{}"}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def manifest_of(files: Mapping[str, bytes], name: str = "pump") -> bytes:
    listed = {n: {"digest": digest(data), "size": len(data)} for n, data in files.items()}
    return json.dumps({"schema": 1, "name": name, "files": listed}).encode()


def digests_of(files: Mapping[str, bytes], manifest: bytes | None = None) -> dict[str, str]:
    listed = {name: digest(data) for name, data in files.items()}
    return {**listed, "manifest.json": digest(manifest or manifest_of(files))}


def pem_of(key: Any) -> bytes:
    """The public half of any kind of key."""
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    pem: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, public)
    return pem


def trust(*own: Any, **dates: dt.date) -> TrustedKeys:
    return TrustedKeys(tuple(trusted_key(pem_of(key), **dates) for key in own or (KEY,)))


def statement(files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What is signed, taken apart, for a test to spoil."""
    made: dict[str, Any] = json.loads(write_statement(files or digests_of(FILES), name="pump"))
    return made


def with_root(spoilt: dict[str, Any]) -> dict[str, Any]:
    """The same with the digest over all files that fits it, so that only the rest is wrong."""
    listed = spoilt["predicate"]["resources"]
    raw = b"".join(bytes.fromhex(one["digest"]) for one in listed)
    spoilt["subject"][0]["digest"]["sha256"] = hashlib.sha256(raw).hexdigest()
    return spoilt


def sign_payload(
    payload: bytes,
    key: ec.EllipticCurvePrivateKey = KEY,
    *,
    payload_type: str = PAYLOAD_TYPE,
    signed: bytes | None = None,
    algorithm: hashes.HashAlgorithm | None = None,
    certificates: Sequence[bytes] = (),
) -> bytes:
    """A bundle around any payload, its signature over what the test says."""
    covered = signed or dsse.pre_authentication_encoding(payload_type, payload)
    chosen = ec.ECDSA(algorithm) if algorithm else keys.algorithm_of(key.public_key())
    hint = keys.key_id(key.public_key())
    return write_bundle(payload, key.sign(covered, chosen), hint=hint, certificates=certificates)


def name(common: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])


SUBJECT = "CN=Model release,O=Example"


class Issuer:
    """An authority that issues whatever it is asked for."""

    def __init__(
        self,
        common: str = "Model CA",
        *,
        ca: bool | None = True,
        signs: bool | None = None,
        begin: dt.datetime = NOW - 365 * DAY,
        end: dt.datetime = NOW + 365 * DAY,
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name(common)
        builder = _builder(self.name, self.name, self.key.public_key(), begin, end)
        if ca is not None:
            constraints = x509.BasicConstraints(ca=ca, path_length=None)
            builder = builder.add_extension(constraints, critical=True)
        if signs is not None:
            builder = builder.add_extension(key_usage(signs=signs), critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        key: Any = KEY,
        common: str = "Model release",
        *,
        purpose: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CODE_SIGNING,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        digital_signature: bool = True,
        begin: dt.datetime = NOW - DAY,
        end: dt.datetime = NOW + 30 * DAY,
        signed_by: hashes.SHA224 | hashes.SHA256 | None = None,
    ) -> bytes:
        """DER of a certificate that may sign packs, but for what the test changes."""
        builder = _builder(name(common), self.name, key.public_key(), begin, end)
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        usage = key_usage(signs=not digital_signature)
        builder = builder.add_extension(usage, critical=True)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        # The standard tool builds a chain, for which OpenSSL wants both sides to name the key.
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        made = builder.sign(self.key, signed_by or hashes.SHA256())
        return made.public_bytes(serialization.Encoding.DER)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Any, begin: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
