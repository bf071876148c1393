"""Who may sign packs, read from the files that the settings name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.documents.settings import KeyFile, Trust
from agent.errors import StoreError, UsageError
from agent.store.files import Files
from agent.trust.certificates import Authority, authority
from agent.trust.keys import MAX_PEM_BYTES, TrustedKey, trusted_key
from agent.trust.verify import TrustedKeys

_MAX_AUTHORITY_BYTES = 128 << 10


def read_trust(trust: Trust) -> TrustedKeys:
    """Read every file that `[trust]` names.

    Imports `cryptography`: not for the daemon's own process.

    Raises:
        UsageError: A file cannot be read, or does not hold what it must; names it.
    """
    keys = tuple(read_key(entry) for entry in trust.keys)
    ids = [key.id for key in keys]
    twice = next((path_of(e) for e, i in zip(trust.keys, ids, strict=True) if ids.count(i) > 1), "")
    if twice:
        raise UsageError(f"{twice}: this key is named twice", hint="leave one of the two out")
    pinned = read_authority(trust) if trust.ca or trust.subject else None
    return TrustedKeys(keys, pinned)


def fingerprint(trust: Trust) -> str:
    """What stands in all those files, as one digest: another one, and every judgement is anew.

    Imports no `cryptography`; a file that cannot be read counts as empty.
    """
    digest = hashlib.sha256(repr(trust).encode())
    for name in (*map(path_of, trust.keys), *((trust.ca,) if trust.ca else ())):
        try:
            data = read_small(Path(name), _MAX_AUTHORITY_BYTES)
        except UsageError:
            data = b""
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def read_key(entry: str | KeyFile) -> TrustedKey:
    """Read one entry of `keys`.

    Raises:
        UsageError: The file cannot be read, holds no key that can sign packs, or another than said.
    """
    file = KeyFile(entry) if isinstance(entry, str) else entry
    pem = read_small(Path(file.file), MAX_PEM_BYTES)
    try:
        key = trusted_key(pem, not_before=file.not_before, not_after=file.not_after)
    except UsageError as error:
        raise UsageError(f"{file.file}: {error.message}", hint=error.hint) from None
    if file.id and file.id != key.id:
        raise UsageError(
            f"{file.file}: this is key {key.id}, and the settings say {file.id}",
            hint="was the file exchanged? Correct `id` only if you did that",
        )
    return key


def read_authority(trust: Trust) -> Authority:
    """Read the file of `ca`.

    Raises:
        UsageError: It cannot be read, holds no authority, or `ca` or `subject` is missing.
    """
    if not trust.ca:
        raise UsageError("subject stands without ca", hint="name the authority's file in ca")
    pem = read_small(Path(trust.ca), _MAX_AUTHORITY_BYTES)
    try:
        return authority(pem, trust.subject)
    except UsageError as error:
        raise UsageError(f"{trust.ca}: {error.message}", hint=error.hint) from None


def path_of(entry: str | KeyFile) -> str:
    """The file that an entry of `keys` names."""
    return entry if isinstance(entry, str) else entry.file


def read_small(path: Path, max_bytes: int) -> bytes:
    """Read a file of a bounded size.

    Raises:
        UsageError: It cannot be read, or is larger.
    """
    try:
        data = Files().read_range(path, 0, max_bytes + 1)
    except StoreError as error:
        raise UsageError(error.message) from None
    if data is None:
        raise UsageError(f"{path}: No such file or directory")
    if len(data) > max_bytes:
        raise UsageError(f"{path}: has more than {max_bytes >> 10} KiB")
    return data
