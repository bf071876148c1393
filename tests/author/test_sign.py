"""Keys made, packs signed, and every way in which a folder is not what was signed."""

from __future__ import annotations

import datetime as dt
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.author import sign as author
from agent.author.sign import Verified, make_key, read_key, sign_pack, verify_pack
from agent.errors import (
    BundleMalformed,
    KeyUnknown,
    NotTrusted,
    PackError,
    PackInconsistent,
    Unsigned,
    UsageError,
)
from agent.trust.keys import key_id, trusted_key
from agent.trust.verify import TrustedKeys
from tests.author.signing import FILES, write_pack
from tests.trust.signers import KEY, NOW, OTHER_KEY, SUBJECT, Issuer, pem_of, trust

TRUST = trust()


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    place = write_pack(tmp_path / "pack")
    sign_pack(place, KEY)
    return place


def verified(place: Path, by: TrustedKeys = TRUST) -> Verified:
    return verify_pack(place, by, now=NOW)


# Keys.


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_a_new_key_is_its_owners_alone_and_its_public_half_is_known_by_its_id(
    tmp_path: Path, curve: str
) -> None:
    made = make_key(tmp_path / "release", curve=curve)
    assert stat.S_IMODE(made.private.stat().st_mode) == 0o600
    assert made.public == tmp_path / "release.pub"
    assert trusted_key(made.public.read_bytes()).id == made.id
    assert key_id(read_key(made.private).public_key()) == made.id


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"secret\n")
    made = make_key(tmp_path / "key", password=author.read_password(tmp_path / "password"))
    assert b"ENCRYPTED" in made.private.read_bytes()
    assert read_key(made.private, b"secret")
    with pytest.raises(UsageError, match=r"key: this key is encrypted.*--password-file"):
        read_key(made.private)
    (tmp_path / "password").write_bytes(b"\n")
    with pytest.raises(UsageError, match="holds no password"):
        author.read_password(tmp_path / "password")


@pytest.mark.parametrize("taken", ["key", "key.pub"])
@pytest.mark.parametrize("how", ["file", "link"])
def test_a_key_is_never_written_over(tmp_path: Path, taken: str, how: str) -> None:
    if how == "file":
        (tmp_path / taken).write_bytes(b"precious")
    else:
        (tmp_path / taken).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="exists"):
        make_key(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        make_key(tmp_path / "none" / "key")


# Signing.


def test_a_signed_pack_is_verified_with_all_its_files(pack: Path) -> None:
    found = verified(pack)
    assert found.wrong == ()
    assert set(found.signed.files) == {*FILES, "manifest.json"}


def test_a_pack_that_was_renamed_or_signed_again_keeps_its_id(pack: Path) -> None:
    before = verified(pack).signed
    sign_pack(pack, OTHER_KEY)
    after = verified(pack.rename(pack.with_name("other")), trust(OTHER_KEY)).signed
    assert (before.pack, before.files) == (after.pack, after.files)
    assert before.signature != after.signature


def test_a_signature_may_stand_elsewhere(tmp_path: Path) -> None:
    place, out = write_pack(tmp_path / "pack"), tmp_path / "signatures" / "pump.sig"
    out.parent.mkdir()
    sign_pack(place, KEY, out=out)
    assert not (place / "model.sig").exists()
    assert not verify_pack(place, TRUST, signature=out, now=NOW).wrong


def test_a_signature_that_cannot_be_written_leaves_the_old_one(pack: Path) -> None:
    before = (pack / "model.sig").read_bytes()
    with pytest.raises(UsageError, match="No such file"):
        sign_pack(pack, KEY, out=pack.parent / "none" / "x")
    with pytest.raises(UsageError, match="is a folder"):
        sign_pack(pack, KEY, out=pack.parent)
    assert (pack / "model.sig").read_bytes() == before
    assert [path.name for path in pack.parent.iterdir()] == ["pack"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: (p / "model.onnx").write_bytes(b"x"), "two digests"),
        (lambda p: (p / "model.onnx").unlink(), "in the manifest only"),
        (lambda p: (p / ".hidden").touch(), "'.hidden' is listed in the signature only"),
        (lambda p: (p / "Model.onnx").touch(), "only"),
    ],
)
def test_a_pack_that_is_not_its_manifest_is_not_signed(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    place = write_pack(tmp_path / "pack")
    spoil(place)
    with pytest.raises(PackInconsistent, match=f"{said}.*pack it again"):
        sign_pack(place, KEY)
    assert not (place / "model.sig").exists()


def test_a_pack_with_a_link_is_not_signed(tmp_path: Path) -> None:
    place = write_pack(tmp_path / "pack")
    (place / "link").symlink_to("model.onnx")
    with pytest.raises(PackError, match="symbolic link"):
        sign_pack(place, KEY)


def test_a_folder_that_is_no_pack_is_neither_signed_nor_verified(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no pack"):
        sign_pack(tmp_path, KEY)
    (tmp_path / "model.sig").touch()
    with pytest.raises(UsageError, match="holds no pack"):
        verified(tmp_path)


def test_a_pack_is_signed_with_a_certificate(tmp_path: Path) -> None:
    place, issuer = write_pack(tmp_path / "pack"), Issuer()
    signed = sign_pack(place, KEY, certificates=(issuer.issue(),))
    assert signed.subject == SUBJECT
    assert author.claimed_signer(place) == author.Signer(subject=SUBJECT)


def test_certificates_are_read_in_their_order(tmp_path: Path) -> None:
    issuer, file = Issuer(), tmp_path / "chain.pem"
    file.write_bytes(issuer.pem + Issuer("Other").pem)
    first, second = author.read_certificates(file)
    assert first == issuer.certificate.public_bytes(serialization.Encoding.DER)
    assert first != second
    file.write_bytes(b"none")
    with pytest.raises(UsageError, match=r"chain\.pem: holds no certificate"):
        author.read_certificates(file)


# What a folder may have become since.

CHANGES: list[tuple[str, Callable[[Path], object]]] = [
    ("model.onnx: is not what was signed", lambda p: (p / "model.onnx").write_bytes(b"evil")),
    ("model.onnx: is signed, and is missing", lambda p: (p / "model.onnx").unlink()),
    ("evil.so: is not signed", lambda p: (p / "evil.so").touch()),
    ("other: is not signed", lambda p: (p / "model.onnx").rename(p / "other")),
    (".git/hook: is not signed", lambda p: _inside(p / ".git" / "hook")),
    (".github/run: is not signed", lambda p: _inside(p / ".github" / "run")),
    (".gitignore: is not signed", lambda p: (p / ".gitignore").touch()),
    ("sub/model.sig: is not signed", lambda p: _inside(p / "sub" / "model.sig")),
    ("MODEL.onnx: is not signed", lambda p: (p / "MODEL.onnx").touch()),
    ("a: is a symbolic link, which no pack may hold", lambda p: (p / "a").symlink_to("b")),
    ("model.onnx: is a symbolic link, which no pack may hold", lambda p: _linked(p / "model.onnx")),
    ("pipe: is a named pipe, which no pack may hold", lambda p: os.mkfifo(p / "pipe")),
]


def _inside(path: Path) -> None:
    path.parent.mkdir()
    path.touch()


def _linked(path: Path) -> None:
    """The same content, behind a link."""
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(("said", "change"), CHANGES, ids=[said for said, _ in CHANGES])
def test_a_folder_that_changed_since_is_told_by_what_changed(
    pack: Path, said: str, change: Callable[[Path], object]
) -> None:
    change(pack)
    assert said in verified(pack).wrong


def test_all_that_is_wrong_is_told_at_once(pack: Path) -> None:
    (pack / "model.onnx").unlink()
    (pack / "evil.so").touch()
    assert len(verified(pack).wrong) == 2


def test_modes_and_empty_folders_are_not_covered(pack: Path) -> None:
    (pack / "model.onnx").chmod(0o4777)
    (pack / "empty").mkdir()
    assert verified(pack).wrong == ()


@pytest.mark.parametrize("how", ["folder", "link", "pipe"])
def test_a_signature_that_is_no_plain_file_is_refused(pack: Path, how: str) -> None:
    signature = pack / "model.sig"
    kept = signature.rename(pack.with_name("kept"))
    if how == "folder":
        signature.mkdir()
        kept.rename(signature / "model.sig")
    elif how == "link":
        signature.symlink_to(kept)
    else:
        os.mkfifo(signature)
    with pytest.raises(PackError, match=r"a signature is a plain file"):
        verified(pack)


def test_a_manifest_behind_a_link_is_refused(pack: Path) -> None:
    _linked(pack / "manifest.json")
    with pytest.raises(UsageError, match="is a symbolic link"):
        verified(pack)


def test_another_manifest_is_refused(pack: Path) -> None:
    manifest = pack / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(PackInconsistent):
        verified(pack)


def test_a_pack_without_a_signature_is_unsigned(tmp_path: Path) -> None:
    place = write_pack(tmp_path / "pack")
    with pytest.raises(Unsigned):
        verified(place)
    assert author.claimed_signer(place) is None


def test_a_pack_of_somebody_else_is_refused(pack: Path) -> None:
    with pytest.raises(KeyUnknown):
        verified(pack, trust(OTHER_KEY))
    assert not verified(pack, trust(OTHER_KEY, KEY)).wrong


def test_a_signature_of_50_mb_is_refused(pack: Path) -> None:
    with (pack / "model.sig").open("wb") as file:
        file.truncate(50_000_000)
    with pytest.raises(BundleMalformed) as caught:
        verified(pack)
    assert caught.value.reason == "too_large"


def test_a_key_of_yesterday_does_not_count_now(pack: Path) -> None:
    yesterday = dt.datetime.now(dt.timezone.utc).date() - dt.timedelta(days=1)
    key = trusted_key(pem_of(KEY), not_after=yesterday)
    with pytest.raises(NotTrusted, match="counted until"):
        verify_pack(pack, TrustedKeys((key,)))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["model.sig", "manifest.json", *FILES]), st.integers(0), st.integers(1, 255))
def test_a_pack_with_any_byte_of_any_file_changed_is_refused(
    pack: Path, name: str, position: int, change: int
) -> None:
    whole = (pack / name).read_bytes()
    altered = bytearray(whole)
    altered[position % len(whole)] ^= change
    (pack / name).write_bytes(altered)
    try:
        assert verified(pack).wrong == (f"{name}: is not what was signed",)
    except (NotTrusted, PackInconsistent):
        assert name in ("model.sig", "manifest.json")
    finally:
        (pack / name).write_bytes(whole)
