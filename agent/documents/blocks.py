"""The JSON messages of the block protocol; `agent.wire.blocks` says how it goes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.documents.manifest import FileName
from agent.documents.names import Digest, Natural, Positive, ShortText, Text

MAX_BLOCK_BYTES = 120 * 1024
MAX_WINDOW = 64

BlockRange = tuple[Natural, Positive]


class BlockRequest(msgspec.Struct, frozen=True):
    """Blocks that the device wants next, at most 64 at a time.

    Attributes:
        schema: The version of this format.
        pack: Of which pack.
        file: Of which file; `manifest.json` is asked for by the pack's own id, and `model.sig` by
            the digest of the text `model.sig of sha256:…` with that id.
        digest: Of that file.
        block_size: Bytes of each block but the last.
        blocks: Ranges of blocks: the number of the first, counted from 0, and how many.
    """

    schema: Literal[1]
    pack: Digest
    file: FileName
    digest: Digest
    block_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK_BYTES)]
    blocks: Annotated[tuple[BlockRange, ...], msgspec.Meta(min_length=1, max_length=MAX_WINDOW)]


class BlockRefused(msgspec.Struct, frozen=True):
    """Why a file is not given. Asking for it again will not help, and the rollout fails.

    Attributes:
        schema: The version of this format.
        digest: Of that file.
        code: `unknown_file`, `unknown_block` or `unreadable`.
        message: A sentence.
    """

    schema: Literal[1]
    digest: Digest
    code: ShortText
    message: Text
