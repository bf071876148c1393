"""Which keys may sign, and that no other kind is mistaken for one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519

from agent.errors import UsageError
from agent.trust.keys import load_private_key, load_public_key, trusted_key
from tests.trust.signers import KEY, Issuer, pem_of

OTHER_KINDS: list[tuple[str, Callable[[], Any]]] = [
    ("Ed25519", ed25519.Ed25519PrivateKey.generate),
    ("X25519", x25519.X25519PrivateKey.generate),
    ("RSA", lambda: rsa.generate_private_key(65537, 2048)),
    ("DSA", lambda: dsa.generate_private_key(2048)),
    ("secp256k1", lambda: ec.generate_private_key(ec.SECP256K1())),
    ("secp224r1", lambda: ec.generate_private_key(ec.SECP224R1())),
    ("brainpoolP256r1", lambda: ec.generate_private_key(ec.BrainpoolP256R1())),
]


def private_pem(key: Any, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    return pem


def test_the_id_of_a_key_is_the_digest_of_its_pem_text() -> None:
    pem = pem_of(KEY)
    assert pem.startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert trusted_key(pem).id == hashlib.sha256(pem).hexdigest()


def test_the_id_does_not_depend_on_how_the_file_is_written() -> None:
    pem = pem_of(KEY)
    assert trusted_key(b"remark\n" + pem.replace(b"\n", b"\r\n")).id == trusted_key(pem).id


@pytest.mark.parametrize(("kind", "make"), OTHER_KINDS)
def test_a_key_of_another_kind_neither_signs_nor_verifies(
    kind: str, make: Callable[[], Any]
) -> None:
    try:
        key = make()
    except Exception:
        pytest.skip(f"this cryptography makes no {kind} keys")
    with pytest.raises(UsageError, match=rf"{kind}.*cannot sign packs"):
        load_public_key(pem_of(key))
    with pytest.raises(UsageError, match=rf"{kind}.*cannot sign packs"):
        load_private_key(private_pem(key), None)


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        (b"", "not one public key"),
        (b"hello", "not one public key"),
        (private_pem(KEY), "this is a private key"),
        (Issuer().pem, "not one public key"),
        (pem_of(KEY) * 2, "not one public key"),
        (pem_of(KEY)[:100], "cannot be read"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be read"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_file_that_is_no_public_key_is_refused_with_what_it_is(pem: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_public_key(pem)


@pytest.mark.parametrize(
    ("pem", "password", "said"),
    [
        (pem_of(KEY), None, "this is a public key"),
        (b"hello", None, "cannot be read"),
        (private_pem(KEY), b"secret", "is not encrypted"),
        (private_pem(KEY, b"secret"), None, "is encrypted"),
        (private_pem(KEY, b"secret"), b"guess", "is the password right"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_private_key_that_cannot_be_used_says_why(
    pem: bytes, password: bytes | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        load_private_key(pem, password)


def test_an_encrypted_key_signs_with_its_password() -> None:
    assert load_private_key(private_pem(KEY, b"secret"), b"secret").curve.name == "secp256r1"
