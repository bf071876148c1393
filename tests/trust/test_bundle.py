"""Signature files that are not of the one form: each is refused by the rule it breaks."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes

from agent.errors import BundleMalformed, SignatureInvalid
from agent.trust.bundle import PAYLOAD_TYPE, parse_bundle
from agent.trust.in_toto import parse_statement
from agent.trust.signing import sign
from agent.trust.verify import verify_bundle
from tests.trust.signers import (
    FILES,
    KEY,
    NOW,
    digests_of,
    manifest_of,
    sign_payload,
    statement,
    trust,
    with_root,
)

MANIFEST = manifest_of(FILES)
BUNDLE = sign(digests_of(FILES), KEY, name="pump").decode()
Document = dict[str, Any]


def reason(data: bytes) -> str:
    with pytest.raises(BundleMalformed) as caught:
        verify_bundle(data, MANIFEST, trust(), NOW)
    assert caught.value.hint
    return caught.value.reason


def _material(bundle: Document) -> Document:
    found: Document = bundle["verificationMaterial"]
    return found


def _envelope(bundle: Document) -> Document:
    found: Document = bundle["dsseEnvelope"]
    return found


OUTSIDE: list[tuple[str, Callable[[Document], object]]] = [
    ("media_type", lambda b: b.update(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json")),
    ("media_type", lambda b: b.pop("mediaType")),
    ("field", lambda b: b.pop("dsseEnvelope")),
    ("field", lambda b: b.update(dsseEnvelope=[])),
    ("field", lambda b: _envelope(b).update(payload=7)),
    ("unknown_field", lambda b: b.update(messageSignature={})),
    ("unknown_field", lambda b: _envelope(b).update(payload_type=PAYLOAD_TYPE)),
    ("payload_type", lambda b: _envelope(b).update(payloadType="text/plain")),
    ("signatures", lambda b: _envelope(b).update(signatures=[])),
    ("signatures", lambda b: _envelope(b)["signatures"].append(_envelope(b)["signatures"][0])),
    ("key_id", lambda b: _envelope(b)["signatures"][0].update(keyid="another")),
    ("base64", lambda b: _envelope(b).update(payload=_envelope(b)["payload"] + "\n")),
    ("base64", lambda b: _envelope(b).update(payload="e30")),
    ("base64", lambda b: _envelope(b).update(payload="e31=")),  # other bits behind the same bytes
    ("base64", lambda b: _envelope(b).update(payload="ä")),
    ("base64", lambda b: _envelope(b)["signatures"][0].update(sig="_-_-")),
    ("material", lambda b: _material(b).pop("publicKey")),
    ("material", lambda b: _material(b).update(x509CertificateChain={"certificates": []})),
    ("material", lambda b: _material(b)["publicKey"].update(hint="")),
    ("material", lambda b: _material(b).update(tlogEntries=[{"logIndex": "1"}])),
    ("unknown_field", lambda b: _material(b)["publicKey"].update(rawBytes="")),
    (
        "certificates",
        lambda b: b.update(verificationMaterial={"x509CertificateChain": {"certificates": []}}),
    ),
    (
        "certificates",
        lambda b: b.update(
            verificationMaterial={
                "x509CertificateChain": {"certificates": [{"rawBytes": "AAAA" * 6000}]}
            }
        ),
    ),
]


@pytest.mark.parametrize(("why", "spoil"), OUTSIDE)
def test_a_bundle_of_another_form_is_refused_by_its_rule(
    why: str, spoil: Callable[[Document], object]
) -> None:
    bundle = json.loads(BUNDLE)
    spoil(bundle)
    assert reason(json.dumps(bundle).encode()) == why


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("not_json", b""),
        ("not_json", b"{"),
        ("not_json", BUNDLE.encode("utf-16")),
        ("not_json", b"\xef\xbb\xbf" + BUNDLE.encode()),
        ("not_json", BUNDLE.encode() + b"{}"),
        ("not_json", b'{"mediaType": NaN}'),
        ("not_json", b'{"mediaType": ' + b"9" * 500_000 + b"}"),
        ("media_type", b"[]"),
        ("media_type", b"null"),
        ("too_deep", b"[" * 500_000),
        ("too_deep", b'{"a":' * 100_000),
        ("duplicate_key", BUNDLE.replace("{", '{"mediaType":"x",', 1).encode()),
        ("duplicate_key", BUNDLE.replace('"sig"', '"sig":"","sig"').encode()),
        ("duplicate_key", BUNDLE.replace('"hint"', '"hint":"","h\\u0069nt"').encode()),
        ("too_large", BUNDLE.encode() + b" " * (1 << 20)),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_json_that_is_broken_or_has_two_readings_is_refused(why: str, data: bytes) -> None:
    assert reason(data) == why


def test_a_bundle_of_50_mb_is_refused_unread() -> None:
    data = b"[" * 50_000_000
    tracemalloc.start()
    try:
        assert reason(data) == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def _first(payload: Document) -> Document:
    found: Document = payload["predicate"]["resources"][0]
    return found


def _how(payload: Document) -> Document:
    found: Document = payload["predicate"]["serialization"]
    return found


def _add(*names: str) -> Callable[[Document], object]:
    """What lists files beside those of the pack."""

    def add(payload: Document) -> None:
        listed = payload["predicate"]["resources"]
        listed += [{**listed[0], "name": name} for name in names]
        with_root(payload)

    return add


_SHARDS = {"method": "shards", "shard_size": 1_000_000_000}
INSIDE: list[tuple[str, Callable[[Document], object]]] = [
    ("statement_type", lambda p: p.update(_type="https://in-toto.io/Statement/v0.1")),
    ("statement_type", lambda p: p.update(predicateType="https://model_signing/Digests/v0.1")),
    ("statement_type", lambda p: p.pop("predicateType")),
    ("field", lambda p: p.update(predicate={})),
    ("field", lambda p: _how(p).update(allow_symlinks="false")),
    ("field", lambda p: _first(p).pop("algorithm")),
    ("subject", lambda p: p["subject"].append(p["subject"][0])),
    ("subject", lambda p: p.update(subject=[])),
    ("method", lambda p: _how(p).update(_SHARDS)),
    ("hash_type", lambda p: _how(p).update(hash_type="blake2b")),
    ("hash_type", lambda p: _how(p).update(hash_type="blake3")),
    ("symlinks", lambda p: _how(p).update(allow_symlinks=True)),
    ("ignore_paths", lambda p: _how(p).update(ignore_paths=["model.sig", "evil.so"])),
    ("ignore_paths", lambda p: _how(p).update(ignore_paths=["."])),
    ("ignore_paths", lambda p: _how(p).update(ignore_paths=["/elsewhere/model.sig"])),
    ("unknown_field", lambda p: _how(p).update(shard_size=1)),
    ("unknown_field", lambda p: _first(p).update(annotations={})),
    ("algorithm", lambda p: _first(p).update(algorithm="blake3")),
    ("algorithm", lambda p: _first(p).update(algorithm="sha256-sharded-1000000000")),
    ("digest", lambda p: _first(p).update(digest="AB" * 32)),
    ("digest", lambda p: _first(p).update(digest="")),
    ("root", lambda p: p["subject"][0]["digest"].update(sha256="0" * 64)),
    ("root", lambda p: p["predicate"]["resources"].reverse()),
    ("no_manifest", lambda p: p.update(with_root(statement({"a": "sha256:" + "0" * 64})))),
    ("name", _add("../x")),
    ("name", _add("/etc/passwd")),
    ("name", _add("a//b")),
    ("name", _add("./a")),
    ("name", _add("a\\b")),
    ("name", _add("a\0b")),
    ("name", _add("x" * 256)),
    ("name", _add("\udcff")),
    ("name", _add("A", "a")),
    ("name", _add("\u00e9", "e\u0301")),
    ("name", _add("d/a", "D/b")),
    ("name", _add("d", "d/a")),
    ("name", _add("model.sig")),
    ("name", _add("Model.SIG")),
    ("name", _add("manifest.json")),
    ("name", _add("MANIFEST.json")),
    ("name", _add("model.onnx")),
    ("name", _add(*(str(number) for number in range(1024)))),
]


@pytest.mark.parametrize(("why", "spoil"), INSIDE)
def test_a_signed_list_of_another_form_is_refused_by_its_rule(
    why: str, spoil: Callable[[Document], object]
) -> None:
    payload = statement()
    spoil(payload)
    assert reason(sign_payload(json.dumps(payload).encode())) == why


@pytest.mark.parametrize(
    ("why", "payload"),
    [
        ("not_json", b"\x00"),
        ("duplicate_key", b'{"_type": 1, "_type": 2}'),
        ("too_deep", b"[" * 10_000),
        ("statement_type", b"[]"),
    ],
)
def test_a_signed_payload_that_is_no_list_is_refused(why: str, payload: bytes) -> None:
    assert reason(sign_payload(payload)) == why


def test_what_the_specification_lets_grow_is_not_looked_at() -> None:
    payload = {**statement(), "remark": 1}
    payload["predicate"]["card"] = {"licence": "Apache-2.0"}
    assert parse_statement(json.dumps(payload).encode()) == digests_of(FILES)


def test_the_names_that_the_standard_tool_leaves_out_may_be_left_out() -> None:
    payload = statement()
    git = [".git", ".gitattributes", ".github", ".gitignore", "model.sig"]
    payload["predicate"]["serialization"]["ignore_paths"] = git
    bundle = sign_payload(json.dumps(payload, indent=2).encode())
    assert verify_bundle(bundle, MANIFEST, trust(), NOW)


def test_a_signature_over_the_encoding_of_before_1_0_is_invalid() -> None:
    payload = json.dumps(statement()).encode()
    length, kind = len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode()
    old = f"DSSEV1 {length} {kind!r} {len(payload)} {payload!r}".encode()
    with pytest.raises(SignatureInvalid, match=r"before 1\.0"):
        verify_bundle(sign_payload(payload, signed=old), MANIFEST, trust(), NOW)


@pytest.mark.parametrize(
    "signed",
    [
        json.dumps(statement()).encode(),
        hashlib.sha256(json.dumps(statement()).encode()).digest(),
        b"DSSEv1 10 text/plain 2 {}",
    ],
)
def test_a_signature_of_anything_but_the_envelope_is_invalid(signed: bytes) -> None:
    payload = json.dumps(statement()).encode()
    with pytest.raises(SignatureInvalid):
        verify_bundle(sign_payload(payload, signed=signed), MANIFEST, trust(), NOW)


def test_a_signature_by_another_hash_than_the_curves_is_invalid() -> None:
    payload = json.dumps(statement()).encode()
    with pytest.raises(SignatureInvalid):
        verify_bundle(sign_payload(payload, algorithm=hashes.SHA512()), MANIFEST, trust(), NOW)


@pytest.mark.parametrize("sig", ["", "AAAA", "MAYCAQECAQE="])
def test_a_signature_that_is_none_is_invalid(sig: str) -> None:
    bundle = json.loads(BUNDLE)
    _envelope(bundle)["signatures"][0]["sig"] = sig
    with pytest.raises(SignatureInvalid):
        verify_bundle(json.dumps(bundle).encode(), MANIFEST, trust(), NOW)


def test_nothing_of_the_payload_is_read_before_its_signature_is_good() -> None:
    bundle = json.loads(sign_payload(b"[" * 10_000))
    _envelope(bundle)["signatures"][0]["sig"] = "AAAA"
    assert parse_bundle(json.dumps(bundle).encode()).payload.startswith(b"[[[")
    with pytest.raises(SignatureInvalid):
        verify_bundle(json.dumps(bundle).encode(), MANIFEST, trust(), NOW)
