"""Certificates that may sign: issued by the one pinned authority, to the one named subject.

Stricter than the standard tool, which judges a certificate at the time when it began and looks at
no name. No chain is built: the pinned authority is the one that issued the signer's certificate.
"""

from __future__ import annotations

import datetime as dt
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from agent.errors import CertificateRefused, KeyExpired, KeyNotYetValid, UsageError
from agent.trust.keys import checked_public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate, Name

MAX_AUTHORITIES = 8
# What signs a certificate must not be forgeable by a collision; None: the algorithm has its own.
_HASHES = ("sha256", "sha384", "sha512", None)
# What `cryptography` raises at a certificate that is none, also at the first look at a part of it;
# a KeyError at a kind of text that it does not know.
_UNREADABLE = (ValueError, TypeError, KeyError)


class Authority(msgspec.Struct, frozen=True):
    """Who issues certificates for signers, and to whom. Make it with `authority`.

    Attributes:
        pem: One or more certificates; each may issue.
        subject: RFC 4514, as `openssl x509 -subject -nameopt RFC2253` writes it.
    """

    pem: str
    subject: str


def authority(pem: bytes, subject: str) -> Authority:
    """Make an authority of a file's content and the subject to whom it must have issued.

    Raises:
        UsageError: The file holds no certificates of an authority, or the subject is no name.
    """
    if not subject:
        raise UsageError(
            "no subject is given, so every certificate of the authority could sign",
            hint='name the signer, such as subject = "CN=Model release,O=Example"',
        )
    name_of(subject)
    with _quietly():
        for certificate in _certificates(pem):
            _check_may_issue(certificate)
    return Authority(pem.decode(), subject)


def name_of(subject: str) -> Name:
    """Read a subject.

    Raises:
        UsageError: It is no name of RFC 4514.
    """
    from cryptography.x509 import Name

    try:
        return Name.from_rfc4514_string(subject)
    except (ValueError, KeyError):
        raise UsageError(
            f"{subject!r} is no name of a certificate's subject",
            hint='write it as RFC 4514 does, such as "CN=Model release,O=Example"',
        ) from None


def signer_key(leaf: bytes, pinned: Authority, now: dt.datetime) -> EllipticCurvePublicKey:
    """Check a signer's certificate and return its key.

    Args:
        leaf: DER. Whatever else a bundle brings is not looked at.
        pinned: Who must have issued it, and to whom.
        now: The later of the wall clock and the time floor.

    Raises:
        CertificateRefused: It is not one that may sign packs; `reason` says why.
        KeyNotYetValid, KeyExpired: It, or the authority's, is not valid now.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    broken = (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, UnsupportedAlgorithm)
    with _quietly():
        certificate = _load(leaf)
        try:
            _check_outside(certificate)
            issuer = _issuer(certificate, pinned)
            _check_subject(certificate, name_of(pinned.subject))
            _check_purpose(certificate)
            for one in (certificate, issuer):
                _check_time(one, now)
            return checked_public_key(certificate.public_key())
        except UsageError as error:
            raise refused("key", error.message) from None
        except (*_UNREADABLE, *broken) as error:
            raise _unreadable(error) from None


def refused(reason: str, message: str, hint: str = "") -> CertificateRefused:
    """The error for a certificate that may not sign packs."""
    return CertificateRefused(
        message,
        reason=reason,
        hint=hint or "sign the pack with a certificate for code signing by the authority in `ca`",
    )


def subject_of(leaf: bytes) -> str:
    """What a certificate says whose it is; nobody has checked it.

    Raises:
        CertificateRefused: It cannot be read.
    """
    with _quietly():
        try:
            return _load(leaf).subject.rfc4514_string()
        except _UNREADABLE as error:
            raise _unreadable(error) from None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that a strange certificate could write into the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _load(leaf: bytes) -> Certificate:
    from cryptography.x509 import InvalidVersion, load_der_x509_certificate

    try:
        return load_der_x509_certificate(leaf)
    except (*_UNREADABLE, InvalidVersion) as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> CertificateRefused:
    return refused("malformed", f"the signer's certificate cannot be read: {error}")


def _certificates(pem: bytes) -> list[Certificate]:
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

    try:
        found = load_pem_x509_certificates(pem)
    except (ValueError, InvalidVersion) as error:
        raise UsageError(f"this holds no certificate that can be read: {error}") from None
    if len(found) > MAX_AUTHORITIES:
        raise UsageError(
            f"this holds {len(found)} certificates, at most {MAX_AUTHORITIES} are taken",
            hint="name only the authority that issues certificates for signers",
        )
    return found


def _check_may_issue(certificate: Certificate) -> None:
    from cryptography.x509 import BasicConstraints, ExtensionNotFound, KeyUsage

    try:
        extensions = certificate.extensions
        may = extensions.get_extension_for_class(BasicConstraints).value.ca
        # RFC 5280, 4.2.1.3: without a KeyUsage a key may be used for everything.
        may = may and extensions.get_extension_for_class(KeyUsage).value.key_cert_sign
    except ExtensionNotFound as missing:
        may = missing.oid == KeyUsage.oid
    except ValueError as error:
        raise UsageError(f"this certificate cannot be read: {error}") from None
    if not may:
        raise UsageError(
            f"the certificate of {certificate.subject.rfc4514_string()!r} may not issue others",
            hint="give the certificate of the authority that issued the signer's",
        )


def _check_outside(certificate: Certificate) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    hash_algorithm = certificate.signature_hash_algorithm
    if (hash_algorithm.name if hash_algorithm else None) not in _HASHES:
        raise refused("hash", "the signer's certificate is signed with a hash that can be forged")
    # RFC 5280, 4.1.1.2 and 4.1.1.3: the algorithm stands outside what is signed as well as inside,
    # and the signature is whole octets. Nobody checks either, and no byte shall be without meaning.
    signed, whole = certificate.tbs_certificate_bytes, certificate.public_bytes(Encoding.DER)
    outside = whole[whole.index(signed) + len(signed) :]
    if outside[: 2 + outside[1]] not in signed:
        raise refused("hash", "the signer's certificate names two algorithms of its signature")
    if not outside.endswith(b"\0" + certificate.signature):
        raise refused("malformed", "the signature of the signer's certificate is no whole octets")


def _issuer(certificate: Certificate, pinned: Authority) -> Certificate:
    from cryptography.exceptions import InvalidSignature

    for one in _certificates(pinned.pem.encode()):
        try:
            certificate.verify_directly_issued_by(one)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return one
    raise refused(
        "issuer",
        "the signer's certificate was not issued by the authority in `ca`, but by "
        f"{certificate.issuer.rfc4514_string()!r}",
        "`ca` names the authority that issued the signer's certificate itself, not one above it",
    )


def _check_subject(certificate: Certificate, wanted: Name) -> None:
    if certificate.subject != wanted:
        raise refused(
            "subject",
            f"the pack is signed by {certificate.subject.rfc4514_string()!r}, and only "
            f"{wanted.rfc4514_string()!r} may sign",
            "correct `subject`, or have the pack signed by whom it names",
        )


def _check_purpose(certificate: Certificate) -> None:
    from cryptography.x509 import BasicConstraints, ExtendedKeyUsage, KeyUsage
    from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

    known = {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
    found = {extension.oid: extension for extension in certificate.extensions}
    values = {extension.oid: extension.value for extension in found.values()}
    unknown = [one.oid for one in found.values() if one.critical and one.oid not in known]
    if unknown:
        oid = unknown[0].dotted_string
        raise refused("extension", f"the signer's certificate has a critical extension {oid}")
    constraints = values.get(ExtensionOID.BASIC_CONSTRAINTS)
    if isinstance(constraints, BasicConstraints) and constraints.ca:
        raise refused("purpose", "the signer's certificate is that of an authority")
    usage = values.get(ExtensionOID.KEY_USAGE)
    if isinstance(usage, KeyUsage) and not usage.digital_signature:
        raise refused("purpose", "the signer's certificate is not for digital signatures")
    purposes = values.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if (
        not isinstance(purposes, ExtendedKeyUsage)
        or ExtendedKeyUsageOID.CODE_SIGNING not in purposes
    ):
        raise refused("purpose", "the signer's certificate is not for code signing")


def _check_time(certificate: Certificate, now: dt.datetime) -> None:
    whose = certificate.subject.rfc4514_string()
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        raise KeyNotYetValid(
            f"the certificate of {whose!r} is valid from {begin:%Y-%m-%d} on; here it is "
            f"{now:%Y-%m-%d}",
            hint="check the clock",
        )
    if now > end:
        raise KeyExpired(
            f"the certificate of {whose!r} was valid until {end:%Y-%m-%d}; here it is "
            f"{now:%Y-%m-%d}",
            hint="sign the pack again with a certificate that is valid",
        )
