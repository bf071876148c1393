"""What a workstation offers of a pack: also its signature, where it has one."""

from __future__ import annotations

from pathlib import Path

from agent.author.offer import open_pack
from agent.author.sign import sign_pack
from agent.documents.blocks import BlockRefused, BlockRequest
from agent.documents.pack_names import SIGNATURE
from agent.wire.blocks import BLOCK_BYTES, signature_digest
from tests.author.signing import write_pack
from tests.trust.signers import KEY


def asked(pack: str) -> BlockRequest:
    return BlockRequest(1, pack, SIGNATURE, signature_digest(pack), BLOCK_BYTES, ((0, 1),))


def test_a_signed_pack_is_offered_with_its_signature(tmp_path: Path) -> None:
    place = write_pack(tmp_path / "pack")
    sign_pack(place, KEY)
    offer = open_pack(place)
    answer = offer.server().answer(asked(offer.id))
    assert answer is not None
    assert not isinstance(answer, BlockRefused)
    assert b"".join(bytes(block.data) for block in answer) == (place / SIGNATURE).read_bytes()


def test_an_unsigned_pack_is_refused_its_signature(tmp_path: Path) -> None:
    offer = open_pack(write_pack(tmp_path / "pack"))
    answer = offer.server().answer(asked(offer.id))
    assert isinstance(answer, BlockRefused)
    assert answer.code == "unknown_file"
