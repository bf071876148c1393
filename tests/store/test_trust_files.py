"""The files that `[trust]` names, read into a value."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from agent.documents.settings import KeyFile, Trust
from agent.errors import UsageError
from agent.store.trust_files import read_trust
from tests.trust.signers import KEY, OTHER_KEY, SUBJECT, Issuer, pem_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.pub").write_bytes(pem_of(KEY))
    (tmp_path / "b.pub").write_bytes(pem_of(OTHER_KEY))
    (tmp_path / "ca.pem").write_bytes(Issuer().pem)
    return tmp_path


def test_keys_and_an_authority_are_read(folder: Path) -> None:
    until = dt.date(2027, 1, 1)
    second = KeyFile(str(folder / "b.pub"), not_after=until)
    trust = Trust((str(folder / "a.pub"), second), str(folder / "ca.pem"), SUBJECT)
    found = read_trust(trust)
    assert [key.not_after for key in found.keys] == [None, until]
    assert found.keys[0].pem.encode() == pem_of(KEY)
    assert found.authority is not None
    assert found.authority.subject == SUBJECT


def test_nobody_named_is_nobody_trusted() -> None:
    assert not read_trust(Trust())


def test_an_id_holds_a_file_to_the_key_it_had(folder: Path) -> None:
    file = str(folder / "a.pub")
    (key,) = read_trust(Trust((file,))).keys
    assert read_trust(Trust((KeyFile(file, id=key.id),)))
    (folder / "a.pub").write_bytes(pem_of(OTHER_KEY))
    with pytest.raises(UsageError, match=f"the settings say {key.id}.*exchanged"):
        read_trust(Trust((KeyFile(file, id=key.id),)))


def test_what_is_wrong_names_the_file(folder: Path) -> None:
    none, key = str(folder / "none.pub"), str(folder / "a.pub")
    (folder / "large").write_bytes(b"-" * 200_000)
    with pytest.raises(UsageError, match=r"none\.pub: No such file"):
        read_trust(Trust((none,)))
    with pytest.raises(UsageError, match=r"ca\.pem: this is not one public key"):
        read_trust(Trust((str(folder / "ca.pem"),)))
    with pytest.raises(UsageError, match="large: has more than 16 KiB"):
        read_trust(Trust((str(folder / "large"),)))
    with pytest.raises(UsageError, match=r"a\.pub: this key is named twice"):
        read_trust(Trust((key, KeyFile(key))))
    with pytest.raises(UsageError, match="large: has more than 128 KiB"):
        read_trust(Trust(ca=str(folder / "large"), subject=SUBJECT))
    with pytest.raises(UsageError, match=r"a\.pub: this holds no certificate"):
        read_trust(Trust(ca=key, subject=SUBJECT))
    with pytest.raises(UsageError, match=r"ca\.pem: no subject is given"):
        read_trust(Trust(ca=str(folder / "ca.pem")))
    with pytest.raises(UsageError, match="subject stands without ca"):
        read_trust(Trust(subject=SUBJECT))
