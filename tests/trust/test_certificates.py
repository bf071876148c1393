"""Certificate mode, with the rules that the standard tool does not have."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import (
    AgentError,
    CertificateRefused,
    KeyExpired,
    KeyNotYetValid,
    KeyUnknown,
    NotTrusted,
    SignatureInvalid,
    UsageError,
)
from agent.trust.certificates import Authority, authority, signer_key, subject_of
from agent.trust.keys import key_id
from agent.trust.signing import sign
from agent.trust.verify import Signed, TrustedKeys, verify_bundle
from tests.trust.signers import (
    DAY,
    FILES,
    KEY,
    NOW,
    OTHER_KEY,
    SUBJECT,
    Issuer,
    digests_of,
    manifest_of,
    name,
    trust,
)

CA = Issuer()
LEAF = CA.issue()
TRUST = TrustedKeys(authority=authority(CA.pem, SUBJECT))
MANIFEST = manifest_of(FILES)
BUNDLE = sign(digests_of(FILES), KEY, name="pump", certificates=(LEAF,))


def _short(value: object) -> str:
    """A name for a parameter; certificates differ from run to run."""
    return value if isinstance(value, str) else ""


def verified(*certificates: bytes, by: TrustedKeys = TRUST, now: dt.datetime = NOW) -> Signed:
    bundle = sign(digests_of(FILES), KEY, name="pump", certificates=certificates)
    return verify_bundle(bundle, MANIFEST, by, now)


def test_a_pack_signed_by_the_named_subject_of_the_pinned_authority_is_taken() -> None:
    signed = verify_bundle(BUNDLE, MANIFEST, TRUST, NOW)
    assert (signed.subject, signed.key_id) == (SUBJECT, key_id(KEY.public_key()))


def test_keys_and_an_authority_may_be_trusted_side_by_side() -> None:
    both = TrustedKeys(trust(OTHER_KEY).keys, TRUST.authority)
    assert verify_bundle(BUNDLE, MANIFEST, both, NOW).subject == SUBJECT
    by_key = sign(digests_of(FILES), OTHER_KEY, name="pump")
    assert verify_bundle(by_key, MANIFEST, both, NOW).subject == ""


def test_a_certificate_counts_for_nothing_where_only_keys_are_trusted() -> None:
    with pytest.raises(KeyUnknown, match="no authority is trusted"):
        verify_bundle(BUNDLE, MANIFEST, trust(KEY), NOW)


def test_the_name_of_a_key_counts_for_nothing_where_only_an_authority_is_trusted() -> None:
    with pytest.raises(KeyUnknown):
        verify_bundle(sign(digests_of(FILES), KEY, name="pump"), MANIFEST, TRUST, NOW)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(BUNDLE) - 1), st.integers(1, 255))
def test_a_bundle_with_any_byte_changed_is_refused(position: int, change: int) -> None:
    altered = bytearray(BUNDLE)
    altered[position] ^= change
    with pytest.raises(NotTrusted):
        verify_bundle(bytes(altered), MANIFEST, TRUST, NOW)


def test_what_else_the_bundle_brings_makes_nobody_trusted() -> None:
    foreign = Issuer()
    der = foreign.certificate.public_bytes(serialization.Encoding.DER)
    with pytest.raises(CertificateRefused, match="not issued by the authority"):
        verified(foreign.issue(), der)
    assert verified(LEAF, b"not even a certificate")


@pytest.mark.parametrize(
    ("why", "leaf"),
    [
        ("issuer", Issuer().issue()),
        ("issuer", Issuer("Another CA").issue()),
        ("subject", CA.issue(common="Web server")),
        ("subject", CA.issue(common="model release")),
        ("purpose", CA.issue(purpose=ExtendedKeyUsageOID.SERVER_AUTH)),
        ("purpose", CA.issue(purpose=ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)),
        ("purpose", CA.issue(purpose=None)),
        ("purpose", CA.issue(digital_signature=False)),
        ("purpose", CA.issue(extensions=[(x509.BasicConstraints(True, None), True)])),
        (
            "extension",
            CA.issue(extensions=[(x509.TLSFeature([x509.TLSFeatureType.status_request]), True)]),
        ),
    ],
    ids=_short,
)
def test_a_certificate_that_may_not_sign_packs_is_refused_by_its_rule(
    why: str, leaf: bytes
) -> None:
    with pytest.raises(CertificateRefused) as caught:
        verified(leaf)
    assert caught.value.reason == why
    assert caught.value.hint


@pytest.mark.parametrize(
    "make", [lambda: ec.generate_private_key(ec.SECP256K1()), ed25519.Ed25519PrivateKey.generate]
)
def test_a_certificate_for_a_key_of_another_kind_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(CertificateRefused, match="cannot sign packs") as caught:
        signer_key(CA.issue(make()), _pinned(CA), NOW)
    assert caught.value.reason == "key"


def test_a_certificate_signed_with_a_weak_hash_is_refused() -> None:
    leaf = CA.issue(signed_by=hashes.SHA224())
    with pytest.raises(CertificateRefused, match="can be forged") as caught:
        signer_key(leaf, _pinned(CA), NOW)
    assert caught.value.reason == "hash"


@pytest.mark.parametrize(
    ("at", "error"),
    [
        (NOW, None),
        (NOW + 30 * DAY, None),
        (NOW + 30 * DAY + dt.timedelta(seconds=1), KeyExpired),
        (NOW + 3650 * DAY, KeyExpired),
        (NOW - 2 * DAY, KeyNotYetValid),
        (dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc), KeyNotYetValid),
    ],
)
def test_a_certificate_is_judged_at_the_given_time(
    at: dt.datetime, error: type[AgentError] | None
) -> None:
    if error is None:
        assert verified(LEAF, now=at)
        return
    with pytest.raises(error, match="here it is"):
        verified(LEAF, now=at)


def test_an_authority_that_has_expired_vouches_for_nobody() -> None:
    expired = Issuer(end=NOW - DAY)
    by = TrustedKeys(authority=_pinned(expired))
    with pytest.raises(KeyExpired, match="CN=Model CA"):
        verified(expired.issue(), by=by)


def test_several_certificates_of_authorities_may_be_pinned() -> None:
    older = Issuer("Older CA")
    both = TrustedKeys(authority=authority(older.pem + CA.pem, SUBJECT))
    assert verified(LEAF, by=both)
    assert verified(older.issue(), by=both)


def test_an_authority_above_the_issuer_is_not_enough() -> None:
    root, intermediate = Issuer("Root"), Issuer("Intermediate")
    with pytest.raises(CertificateRefused, match="not one above it"):
        verified(intermediate.issue(), by=TrustedKeys(authority=_pinned(root)))


def test_a_signature_by_another_key_than_the_certificates_is_invalid() -> None:
    theirs = json.loads(sign(digests_of(FILES), OTHER_KEY, name="pump"))
    mixed = json.loads(BUNDLE)
    mixed["dsseEnvelope"] = theirs["dsseEnvelope"]
    with pytest.raises(SignatureInvalid):
        verify_bundle(json.dumps(mixed).encode(), MANIFEST, TRUST, NOW)


def test_nobody_signs_with_a_certificate_of_another_key() -> None:
    with pytest.raises(UsageError, match="not of this key"):
        sign(digests_of(FILES), OTHER_KEY, name="pump", certificates=(LEAF,))


@pytest.mark.parametrize(
    "leaf", [b"", b"\x30\x00", LEAF[:-1], LEAF + b"\x00"], ids=["empty", "hollow", "short", "long"]
)
def test_a_certificate_that_cannot_be_read_is_refused(leaf: bytes) -> None:
    with pytest.raises(CertificateRefused):
        signer_key(leaf, _pinned(CA), NOW)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(LEAF) - 1), st.integers(1, 255))
def test_a_certificate_with_any_byte_changed_is_refused(position: int, change: int) -> None:
    altered = bytearray(LEAF)
    altered[position] ^= change
    with pytest.raises(NotTrusted):
        signer_key(bytes(altered), _pinned(CA), NOW)


def test_what_stands_outside_of_what_is_signed_has_no_second_reading() -> None:
    signature = x509.load_der_x509_certificate(LEAF).signature
    unused_bits = len(LEAF) - len(signature) - 1
    algorithm = LEAF.rindex(bytes.fromhex("2a8648ce3d040302")) + 7
    for position in (unused_bits, algorithm):
        altered = bytearray(LEAF)
        altered[position] ^= 1
        with pytest.raises(CertificateRefused):
            signer_key(bytes(altered), _pinned(CA), NOW)


@pytest.mark.parametrize(
    ("pem", "subject", "said"),
    [
        (CA.pem, "", "no subject is given"),
        (CA.pem, "Model release", "no name of a certificate's subject"),
        (CA.pem, "COLOUR=red", "no name of a certificate's subject"),
        (b"", SUBJECT, "no certificate that can be read"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", SUBJECT, "can be read"),
        (Issuer(ca=False).pem, SUBJECT, "may not issue others"),
        (Issuer(ca=None).pem, SUBJECT, "may not issue others"),
        (Issuer(signs=False).pem, SUBJECT, "may not issue others"),
        (CA.pem * 9, SUBJECT, "at most 8"),
    ],
    ids=_short,
)
def test_an_authority_that_cannot_be_pinned_says_why(pem: bytes, subject: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        authority(pem, subject)


def test_the_order_of_a_subject_is_that_of_rfc_4514() -> None:
    assert subject_of(LEAF) == SUBJECT
    with pytest.raises(CertificateRefused, match="CN=Model release,O=Example"):
        verified(LEAF, by=TrustedKeys(authority=authority(CA.pem, "O=Example,CN=Model release")))


def _pinned(issuer: Issuer) -> Authority:
    return authority(issuer.pem, SUBJECT)


def test_the_authoritys_own_key_may_be_of_another_kind() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name("Edwards CA"))
        .issuer_name(name("Edwards CA"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    root = builder.sign(key, None)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(name("Model release"))
        .issuer_name(root.subject)
        .public_key(KEY.public_key())
        .serial_number(2)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=True)
        .sign(key, None)
    )
    pinned = authority(root.public_bytes(serialization.Encoding.PEM), SUBJECT)
    assert signer_key(leaf.public_bytes(serialization.Encoding.DER), pinned, NOW)
