"""Who vouches for a pack, decided on bytes: every way to be refused, and the one to be taken."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.pack_names import FILES_MAX
from agent.errors import (
    AgentError,
    BundleMalformed,
    DigestMismatch,
    DocumentError,
    KeyExpired,
    KeyNotYetValid,
    KeyUnknown,
    NotTrusted,
    PackError,
    PackInconsistent,
    SignatureInvalid,
)
from agent.trust.keys import key_id, trusted_key
from agent.trust.signing import sign
from agent.trust.verify import TrustedKeys, check_file, verify_bundle
from tests.trust.signers import (
    FILES,
    KEY,
    NOW,
    OTHER_KEY,
    digest,
    digests_of,
    manifest_of,
    pem_of,
    sign_payload,
    statement,
    trust,
)

MANIFEST = manifest_of(FILES)
BUNDLE = sign(digests_of(FILES), KEY, name="pump")
TRUST = trust()


def test_a_signed_pack_is_known_by_its_id_its_key_and_all_its_files() -> None:
    signed = verify_bundle(BUNDLE, MANIFEST, TRUST, NOW)
    assert (signed.pack, signed.signature) == (digest(MANIFEST), digest(BUNDLE))
    assert (signed.key_id, signed.subject) == (key_id(KEY.public_key()), "")
    assert signed.files == digests_of(FILES)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_each_curve_of_the_format_signs(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    bundle = sign(digests_of(FILES), key, name="pump")
    assert verify_bundle(bundle, MANIFEST, trust(KEY, key), NOW).key_id == key_id(key.public_key())


def test_files_are_listed_in_the_order_of_the_parts_of_their_paths() -> None:
    files = {"a.txt": b"", "a-b/c": b"", "a/z": b"", "a/b": b""}
    listed = statement(digests_of(files))["predicate"]["resources"]
    names = [one["name"] for one in listed]
    assert names == ["a/b", "a/z", "a-b/c", "a.txt", "manifest.json"]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(BUNDLE) - 1), st.integers(1, 255))
def test_a_bundle_with_any_byte_changed_is_refused(position: int, change: int) -> None:
    altered = bytearray(BUNDLE)
    altered[position] ^= change
    with pytest.raises(NotTrusted):
        verify_bundle(bytes(altered), MANIFEST, TRUST, NOW)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(MANIFEST) - 1), st.integers(1, 255))
def test_a_manifest_with_any_byte_changed_is_refused(position: int, change: int) -> None:
    altered = bytearray(MANIFEST)
    altered[position] ^= change
    with pytest.raises(PackInconsistent, match="not the one that was signed"):
        verify_bundle(BUNDLE, bytes(altered), TRUST, NOW)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(FILES["model.onnx"]) - 1), st.integers(1, 255))
def test_a_file_with_any_byte_changed_is_refused(position: int, change: int) -> None:
    altered = bytearray(FILES["model.onnx"])
    altered[position] ^= change
    signed = verify_bundle(BUNDLE, MANIFEST, TRUST, NOW)
    with pytest.raises(DigestMismatch):
        check_file(signed, "model.onnx", digest(bytes(altered)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(BUNDLE)))
def test_a_bundle_that_breaks_off_or_goes_on_is_refused(end: int) -> None:
    for altered in (BUNDLE[:end], BUNDLE[:end] + b"x" + BUNDLE[end:]):
        if altered != BUNDLE:
            with pytest.raises(NotTrusted):
                verify_bundle(altered, MANIFEST, TRUST, NOW)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_an_expected_error(data: bytes) -> None:
    with pytest.raises(BundleMalformed):
        verify_bundle(data, MANIFEST, TRUST, NOW)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    ),
    st.sampled_from(["_type", "subject", "predicateType", "predicate"]),
)
def test_any_value_in_what_is_signed_is_taken_or_refused_with_an_expected_error(
    value: object, key: str
) -> None:
    spoilt = statement()
    spoilt[key] = value
    with pytest.raises(AgentError):
        verify_bundle(sign_payload(json.dumps(spoilt).encode()), MANIFEST, TRUST, NOW)


def test_a_key_that_is_not_trusted_is_named() -> None:
    with pytest.raises(KeyUnknown, match=key_id(KEY.public_key())[:16]):
        verify_bundle(BUNDLE, MANIFEST, trust(OTHER_KEY), NOW)
    with pytest.raises(KeyUnknown):
        verify_bundle(BUNDLE, MANIFEST, TrustedKeys(), NOW)


def test_a_signature_by_another_key_under_the_name_of_a_trusted_one_is_invalid() -> None:
    forged = sign(digests_of(FILES), OTHER_KEY, name="pump").decode()
    theirs, ours = (key_id(key.public_key()) for key in (OTHER_KEY, KEY))
    with pytest.raises(SignatureInvalid):
        verify_bundle(forged.replace(theirs, ours).encode(), MANIFEST, TRUST, NOW)


def test_a_signature_of_another_payload_is_invalid() -> None:
    other = json.loads(sign(digests_of({"model.onnx": b"evil"}), KEY, name="pump"))
    mixed = json.loads(BUNDLE)
    mixed["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"]
    with pytest.raises(SignatureInvalid):
        verify_bundle(json.dumps(mixed).encode(), MANIFEST, TRUST, NOW)


@pytest.mark.parametrize(
    ("not_before", "not_after", "error"),
    [
        (dt.date(2026, 11, 24), dt.date(2026, 11, 24), None),
        (dt.date(2026, 11, 25), None, KeyNotYetValid),
        (None, dt.date(2026, 11, 23), KeyExpired),
    ],
)
def test_a_key_counts_from_its_first_to_its_last_day(
    not_before: dt.date | None, not_after: dt.date | None, error: type[AgentError] | None
) -> None:
    key = trusted_key(pem_of(KEY), not_before=not_before, not_after=not_after)
    if error is None:
        assert verify_bundle(BUNDLE, MANIFEST, TrustedKeys((key,)), NOW)
        return
    with pytest.raises(error, match="2026-11-24"):
        verify_bundle(BUNDLE, MANIFEST, TrustedKeys((key,)), NOW)


def test_days_are_those_of_utc_wherever_the_device_stands() -> None:
    key = trusted_key(pem_of(KEY), not_after=dt.date(2026, 11, 24))
    late = dt.datetime(2026, 11, 25, 3, tzinfo=dt.timezone(dt.timedelta(hours=9)))
    assert verify_bundle(BUNDLE, MANIFEST, TrustedKeys((key,)), late)


def test_only_a_clock_that_is_behind_makes_it_worth_trying_again() -> None:
    assert KeyNotYetValid.retryable
    assert not KeyExpired.retryable


# Two lists name each file.


def test_the_signature_of_another_pack_of_the_same_signer_is_refused() -> None:
    other = sign(digests_of({"model.onnx": b"older weights"}), KEY, name="pump")
    with pytest.raises(PackInconsistent, match="not the one that was signed"):
        verify_bundle(other, MANIFEST, TRUST, NOW)


@pytest.mark.parametrize(
    ("signed", "said"),
    [
        ({**FILES, "extra": b""}, "'extra' is listed in the signature only"),
        ({"model.onnx": b"weights"}, "'selftest/000.json' is listed in the manifest only"),
        ({**FILES, "model.onnx": b"other"}, "give 'model.onnx' two digests"),
    ],
)
def test_a_file_must_be_in_both_lists_with_one_digest(signed: dict[str, bytes], said: str) -> None:
    bundle = sign(digests_of(signed, MANIFEST), KEY, name="pump")
    with pytest.raises(PackInconsistent, match=said):
        verify_bundle(bundle, MANIFEST, TRUST, NOW)


def test_a_manifest_that_lists_no_files_is_refused_although_it_is_signed() -> None:
    manifest = b'{"schema": 1}'
    bundle = sign(digests_of({}, manifest), KEY, name="pump")
    with pytest.raises(DocumentError, match="files"):
        verify_bundle(bundle, manifest, TRUST, NOW)


# A device has only some of the files.


def test_each_file_that_is_fetched_is_checked_alone() -> None:
    signed = verify_bundle(BUNDLE, MANIFEST, TRUST, NOW)
    check_file(signed, "model.onnx", digest(b"weights"))


def test_a_variant_swapped_between_two_packs_of_one_signer_is_refused() -> None:
    new = {"model.onnx": b"new weights", "model.tflite": b"new too"}
    old = {"model.onnx": b"old weights", "model.tflite": b"old too"}
    signed = verify_bundle(sign(digests_of(new), KEY, name="pump"), manifest_of(new), TRUST, NOW)
    with pytest.raises(DigestMismatch, match=r"model\.onnx of pack sha256:"):
        check_file(signed, "model.onnx", digest(old["model.onnx"]))
    with pytest.raises(DigestMismatch):
        check_file(signed, "model.onnx", digest(new["model.tflite"]))


@pytest.mark.parametrize("name", ["evil.so", "model.sig", "MODEL.ONNX", "./model.onnx", ""])
def test_a_file_that_the_pack_does_not_have_is_refused(name: str) -> None:
    signed = verify_bundle(BUNDLE, MANIFEST, TRUST, NOW)
    with pytest.raises(PackInconsistent, match="no file of the signed pack"):
        check_file(signed, name, digest(b"weights"))


def test_a_pack_of_as_many_files_as_a_device_takes_can_be_signed_and_no_larger_one() -> None:
    files = {f"f/{number}": b"" for number in range(FILES_MAX)}
    bundle = sign(digests_of(files), KEY, name="pump")
    assert len(verify_bundle(bundle, manifest_of(files), TRUST, NOW).files) == FILES_MAX + 1
    with pytest.raises(PackError, match="more than 1024 files"):
        sign(digests_of({**files, "one more": b""}), KEY, name="pump")


def test_names_that_make_a_signature_too_large_are_told_to_the_signer() -> None:
    files = {f"{'x' * 250}/{'y' * 250}/{'z' * 250}/{number}": b"" for number in range(1000)}
    with pytest.raises(PackError, match="a device takes 1048576"):
        sign(digests_of(files), KEY, name="pump")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\\b", "a\0", "model.sig", "\udcff"])
def test_no_signature_is_made_for_a_name_that_no_device_takes(name: str) -> None:
    with pytest.raises(PackError, match="file name"):
        sign(digests_of({name: b""}, b"{}"), KEY, name="pump")


def test_the_room_costs_nothing_before_it_is_used() -> None:
    code = (
        "import sys; import agent.trust.verify, agent.trust.signing, agent.store.trust_files; "
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
