"""A device that serves only what was signed by a key that its settings name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.author.pack import Packed
from agent.author.sign import sign_pack
from agent.documents.pack_names import MANIFEST, SIGNATURE
from agent.trust.keys import key_id
from tests.scenarios.conftest import Packs
from tests.scenarios.device import until
from tests.scenarios.running import Running, running, slot
from tests.trust.signers import KEY, OTHER_KEY, pem_of

KEY_ID = key_id(KEY.public_key())
TRUST = '[trust]\nkeys = ["../release.pub"]\nunsigned = "refuse"\n'


class Shelf(NamedTuple):
    """Where a pack lies, and its id: what `slot` wants."""

    directory: Path
    pack: str


def shelved(here: Running, packed: Packed, name: str, key: Any = KEY) -> Shelf:
    """A copy of a pack, signed, that a test may spoil."""
    place = here.device.folder.parent / name
    shutil.copytree(packed.directory, place, ignore=shutil.ignore_patterns(SIGNATURE))
    if key is not None:
        sign_pack(place, key)
    return Shelf(place, packed.pack)


@pytest.fixture
def here(tmp_path: Path, packs: Packs) -> Iterator[Running]:
    """A device that knows one key and serves a pack signed by it."""
    (tmp_path / "release.pub").write_bytes(pem_of(KEY))
    with running(tmp_path, packs, extra=TRUST) as started:
        started.serve(vib=slot(shelved(started, packs.affine(1), "good")))
        yield started


def refused(here: Running, bad: Shelf, code: str, words: str = "") -> dict[str, Any]:
    """Deploy a pack that must be refused, and see that the old one serves on."""
    before = here.device.slot("vib")
    here.deploy(vib=slot(bad))
    found = here.settle("vib", bad.pack)
    error = found["error"]
    assert error["code"] == code, error
    assert words in error["message"] + error.get("hint", ""), error
    assert (found["pack"], found["worker_pid"]) == (before["pack"], before["worker_pid"])
    assert found["trust"] == before["trust"]
    assert here.predict(f"after {code}")["parameters"]["pack"] == before["pack"]
    return found


def test_a_signed_pack_serves_and_the_report_says_by_whose_key(here: Running) -> None:
    assert here.device.status()["trust"] == "signed"
    assert here.device.slot("vib")["trust"] == {"state": "signed", "key": KEY_ID}


def other_signature(here: Running, bad: Shelf, packs: Packs) -> None:
    shutil.copy(shelved(here, packs.affine(3), "third").directory / SIGNATURE, bad.directory)


def flip(here: Running, bad: Shelf, packs: Packs) -> None:
    path = bad.directory / SIGNATURE
    bundle = json.loads(path.read_bytes())
    signature = bundle["dsseEnvelope"]["signatures"][0]
    at = len(signature["sig"]) // 2
    changed = "A" if signature["sig"][at] != "A" else "B"
    signature["sig"] = signature["sig"][:at] + changed + signature["sig"][at + 1 :]
    path.write_text(json.dumps(bundle, separators=(",", ":")))


def cut(here: Running, bad: Shelf, packs: Packs) -> None:
    path = bad.directory / SIGNATURE
    path.write_bytes(path.read_bytes()[:-100])


def empty(here: Running, bad: Shelf, packs: Packs) -> None:
    (bad.directory / SIGNATURE).write_bytes(b"")


def swap_variant(here: Running, bad: Shelf, packs: Packs) -> None:
    """The model file of another pack of the same signer, of the same size."""
    (other,) = packs.affine(4).directory.rglob("*.onnx")
    (own,) = bad.directory.rglob("*.onnx")
    shutil.copy(other, own)


@pytest.mark.parametrize(
    ("spoil", "key", "code", "words"),
    [
        (None, None, "unsigned", "edgeward sign"),
        (None, OTHER_KEY, "key_unknown", "not trusted here"),
        (flip, KEY, "signature_invalid", ""),
        (cut, KEY, "bundle_malformed", ""),
        (empty, KEY, "bundle_malformed", ""),
        (other_signature, KEY, "pack_inconsistent", "not the one that was signed"),
        (swap_variant, KEY, "digest_mismatch", ""),
    ],
    ids=["unsigned", "other key", "altered", "cut", "empty", "of another pack", "swapped file"],
)
def test_what_was_not_signed_as_it_is_does_not_serve(
    here: Running,
    packs: Packs,
    spoil: Callable[[Running, Shelf, Packs], None] | None,
    key: ec.EllipticCurvePrivateKey | None,
    code: str,
    words: str,
) -> None:
    bad = shelved(here, packs.affine(2), "bad", key)
    if spoil is not None:
        spoil(here, bad, packs)
    here.user.subscribe(here.topic("events"))
    refused(here, bad, code, words)


def test_an_altered_manifest_is_not_the_pack_that_was_deployed(here: Running, packs: Packs) -> None:
    bad = shelved(here, packs.affine(2), "bad")
    path = bad.directory / MANIFEST
    path.write_bytes(path.read_bytes() + b" ")
    refused(here, bad, "digest_mismatch")


def test_a_signature_of_more_than_one_mebibyte_is_never_read_and_blocks_nobody(
    here: Running, packs: Packs
) -> None:
    bad, good = shelved(here, packs.affine(2), "bad"), shelved(here, packs.affine(3), "newer")
    (bad.directory / SIGNATURE).write_bytes(b"{" * ((1 << 20) + 1))
    here.deploy(vib=slot(bad))
    until(
        lambda: here.device.slot("vib").get("error", {}).get("code") == "fetch_failed",
        "it says why it waits",
        log=here.device,
    )
    here.serve(vib=slot(good))


def test_a_pack_signed_again_by_a_trusted_key_is_taken_under_its_old_id(
    here: Running, packs: Packs
) -> None:
    pack = shelved(here, packs.affine(2), "pack", OTHER_KEY)
    refused(here, pack, "key_unknown")
    sign_pack(pack.directory, KEY)
    here.serve(vib=slot(pack))
    assert here.device.slot("vib")["trust"]["key"] == KEY_ID


def test_what_serves_goes_on_when_keys_change_and_new_things_are_judged_by_the_new_ones(
    here: Running, packs: Packs
) -> None:
    device = here.device
    device.stop()
    (device.folder.parent / "release.pub").write_bytes(pem_of(OTHER_KEY))
    device.start()
    assert here.predict("by the old key")["parameters"]["pack"] == packs.affine(1).pack
    assert device.slot("vib")["trust"] == {"state": "signed", "key": KEY_ID}
    refused(here, shelved(here, packs.affine(2), "by the old key"), "key_unknown")
    here.serve(vib=slot(shelved(here, packs.affine(3), "by the new key", OTHER_KEY)))
    assert device.slot("vib")["trust"]["key"] == key_id(OTHER_KEY.public_key())


@pytest.mark.parametrize("text", [None, "-----BEGIN nonsense"], ids=["missing", "garbled"])
def test_without_its_keys_the_device_serves_what_it_has_and_says_why_nothing_new_comes(
    here: Running, packs: Packs, text: str | None
) -> None:
    device, keys = here.device, here.device.folder.parent / "release.pub"
    device.stop()
    keys.unlink()
    if text is not None:
        keys.write_text(text)
    device.start()
    assert here.predict("without keys")["parameters"]["pack"] == packs.affine(1).pack
    new = shelved(here, packs.affine(2), "new")
    here.deploy(vib=slot(new))

    def told() -> Any:
        error = device.slot("vib").get("error", {})
        return error if error.get("code") == "vouching_failed" else None

    error = until(told, "it says why", log=device)
    assert "release.pub" in error["message"]
    assert here.predict("still")["parameters"]["pack"] == packs.affine(1).pack
    # The key is back, and the rollout that waits comes to its end by itself.
    keys.write_bytes(pem_of(KEY))
    device.wait_for("vib", "active", new.pack)


def test_a_device_that_restarts_without_its_source_serves_and_still_knows_the_signer(
    here: Running, packs: Packs
) -> None:
    here.device.kill()
    shutil.rmtree(here.device.folder.parent / "good")
    here.broker.stop()
    here.device.start()
    assert here.device.slot("vib")["trust"] == {"state": "signed", "key": KEY_ID}
    until(lambda: here.device.slot("vib").get("worker_pid"), "it serves", log=here.device)


def test_where_unsigned_packs_are_allowed_the_report_says_which_those_are(
    tmp_path: Path, packs: Packs
) -> None:
    (tmp_path / "release.pub").write_bytes(pem_of(KEY))
    with running(tmp_path, packs, extra=TRUST.replace("refuse", "allow")) as here:
        signed = shelved(here, packs.affine(1), "signed")
        here.serve(vib=slot(signed))
        assert here.device.slot("vib")["trust"]["key"] == KEY_ID
        here.serve(vib=slot(shelved(here, packs.affine(2), "by nobody", None)))
        assert here.device.slot("vib")["trust"] == {"state": "unsigned"}
        assert here.device.status().get("trust", "unsigned") == "unsigned"
        here.serve(vib=slot(shelved(here, packs.affine(3), "by a stranger", OTHER_KEY)))
        assert here.device.slot("vib")["trust"] == {"state": "unsigned"}
        bad = shelved(here, packs.affine(4), "altered")
        flip(here, bad, packs)
        refused(here, bad, "signature_invalid")
