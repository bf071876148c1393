"""`edgeward keygen`, `sign` and `verify` as a person types them."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_der_x509_certificate

from agent.cli import exits
from agent.cli.main import run
from tests.author.signing import write_pack
from tests.trust.signers import SUBJECT, Issuer

pytest.importorskip("click")
Out = pytest.CaptureFixture[str]


def edgeward(*words: object) -> int:
    return run([str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path, capsys: Out) -> Path:
    write_pack(tmp_path / "pack")
    assert edgeward("keygen", "--out", tmp_path / "release") == exits.DONE
    capsys.readouterr()
    return tmp_path


def test_a_key_is_made_a_pack_signed_and_verified(folder: Path, capsys: Out) -> None:
    pack = folder / "pack"
    assert edgeward("sign", pack, "--key", folder / "release") == exits.DONE
    signed = capsys.readouterr().out
    assert edgeward("verify", pack, "--key", folder / "release.pub") == exits.DONE
    verified = capsys.readouterr().out
    assert "model.sig: 4 files, signed by key " in signed
    assert verified.startswith("verified: 4 files, signed by key ")
    assert signed.splitlines()[-1] == verified.splitlines()[-1]
    assert signed.splitlines()[-1].startswith("sha256:")


def test_programs_are_told_the_same(folder: Path, capsys: Out) -> None:
    assert edgeward("keygen", "--out", folder / "next", "--curve", "P-384", "--json") == 0
    key = json.loads(capsys.readouterr().out)
    assert key["private"] == str(folder / "next")
    pack = folder / "pack"
    assert edgeward("sign", pack, "--key", folder / "next", "--json") == 0
    signed = json.loads(capsys.readouterr().out)
    assert (signed["key_id"], signed["files"]) == (key["id"], 4)
    (pack / "evil.so").touch()
    assert edgeward("verify", pack, "--key", folder / "next.pub", "--json") == exits.BAD_PACK
    verified = json.loads(capsys.readouterr().out)
    assert verified["wrong"] == ["evil.so: is not signed"]
    assert not verified["verified"]
    assert verified["pack"] == signed["pack"]


def test_one_of_several_keys_is_enough_and_others_are_refused(folder: Path, capsys: Out) -> None:
    assert edgeward("keygen", "--out", folder / "next") == 0
    pack, old, new = folder / "pack", folder / "release.pub", folder / "next.pub"
    assert edgeward("sign", pack, "--key", folder / "release") == 0
    assert edgeward("verify", pack, "--key", new, "--key", old) == 0
    assert edgeward("verify", pack, "--key", new, "--json") == exits.BAD_PACK
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["error"]["code"] == "key_unknown"
    assert "Traceback" not in told.err


def test_an_encrypted_key_signs_with_its_password(folder: Path, capsys: Out) -> None:
    (folder / "password").write_text("correct horse\n")
    locked, password = folder / "locked", ("--password-file", folder / "password")
    assert edgeward("keygen", "--out", locked, *password) == 0
    assert edgeward("sign", folder / "pack", "--key", locked) == exits.USAGE
    assert "give --password-file" in capsys.readouterr().err
    assert edgeward("sign", folder / "pack", "--key", locked, *password) == 0
    assert edgeward("verify", folder / "pack", "--key", folder / "locked.pub") == 0


def test_a_certificate_is_verified_by_authority_and_subject(folder: Path, capsys: Out) -> None:
    issuer, begin, end = _today()
    key = load_pem_private_key((folder / "release").read_bytes(), None)
    leaf = load_der_x509_certificate(issuer.issue(key, begin=begin, end=end))
    (folder / "release.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    (folder / "ca.pem").write_bytes(issuer.pem)
    pack, out = folder / "pack", folder / "out.sig"
    words = ("--key", folder / "release", "--certificate", folder / "release.pem", "--out", out)
    assert edgeward("sign", pack, *words) == 0
    by = ("--ca", folder / "ca.pem", "--signature", out)
    assert edgeward("verify", pack, *by, "--subject", SUBJECT) == 0
    assert f"signed by {SUBJECT} with key" in capsys.readouterr().out
    assert edgeward("verify", pack, *by, "--subject", "CN=Another") == exits.BAD_PACK
    assert edgeward("verify", pack, *by) == exits.USAGE
    assert "no subject is given" in capsys.readouterr().err


def test_inspect_says_by_whom_a_pack_claims_to_be_signed(folder: Path, capsys: Out) -> None:
    pack = folder / "pack"
    assert edgeward("inspect", pack) == 0
    assert "not signed" in capsys.readouterr().out
    assert edgeward("sign", pack, "--key", folder / "release", "--json") == 0
    key_id = json.loads(capsys.readouterr().out)["key_id"]
    assert edgeward("inspect", pack) == 0
    assert f"signed by key {key_id}, which was not verified here" in capsys.readouterr().out
    assert edgeward("inspect", pack, "--json") == 0
    signer = json.loads(capsys.readouterr().out)["signer"]
    assert signer == {"key_id": key_id, "subject": ""}
    (pack / "model.sig").write_bytes(b"{")
    assert edgeward("inspect", pack) == exits.BAD_PACK
    assert "model.sig: is not JSON" in capsys.readouterr().err


def test_nobody_named_is_a_mistake_of_the_person(folder: Path, capsys: Out) -> None:
    assert edgeward("verify", folder / "pack") == exits.USAGE
    assert "give --key or --ca" in capsys.readouterr().err


def test_a_pack_that_is_not_signed_says_so(folder: Path, capsys: Out) -> None:
    words = ("verify", folder / "pack", "--key", folder / "release.pub")
    assert edgeward(*words) == exits.BAD_PACK
    assert "sign the pack with `edgeward sign`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["keygen", "sign", "verify"])
def test_help_has_an_example_and_the_exit_codes(command: str, capsys: Out) -> None:
    assert edgeward(command, "--help") == 0
    told = capsys.readouterr().out
    assert f"  edgeward {command} " in told
    assert "Exit codes:" in told


def _today() -> tuple[Issuer, dt.datetime, dt.datetime]:
    now = dt.datetime.now(dt.timezone.utc)
    begin, end = now - dt.timedelta(days=1), now + dt.timedelta(days=1)
    return Issuer(begin=begin, end=end), begin, end
