"""Which names the files of a pack may have: on disk, in its manifest and in its signature."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

from agent.errors import PackError

FILES_MAX = 1024
PART_BYTES_MAX = 255  # NAME_MAX of ext4, xfs, btrfs and f2fs
NAME_BYTES_MAX = 1024
MANIFEST = "manifest.json"
SIGNATURE = "model.sig"


def check_names(names: Iterable[str]) -> None:
    """Refuse names that could leave the pack's folder or overwrite one another.

    Names must differ in more than case and Unicode form, because the workstation a pack came from
    may not tell such names apart; `manifest.json` and `model.sig` belong to the store.

    Raises:
        PackError: A name is refused; says which and why.
    """
    files = {_folded(own): own for own in (MANIFEST, SIGNATURE)}
    folders: dict[str, str] = {}
    for count, name in enumerate(names, start=1):
        if count > FILES_MAX:
            raise PackError(f"the pack has more than {FILES_MAX} files")
        reason = _why_refused(name)
        if reason:
            raise PackError(f"file name {name[:300]!r}: {reason}")
        for folder in _folders_of(name):
            if folders.setdefault(_folded(folder), folder) != folder:
                raise PackError(f"file name {name!r}: differs only in case from another folder")
        folded = _folded(name)
        if folded in files:
            raise PackError(f"file name {name!r}: collides with {files[folded]!r}")
        files[folded] = name
    both = files.keys() & folders.keys()
    if both:
        raise PackError(f"file name {min(both)!r}: is both a file and a folder")


def _why_refused(name: str) -> str:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not encoded or len(encoded) > NAME_BYTES_MAX:
        return f"must have 1 to {NAME_BYTES_MAX} bytes"
    if name.startswith("/"):
        return "must be relative"
    if "\\" in name:
        return "must separate folders by / alone"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "contains a control character"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "must not contain an empty part, '.' or '..'"
        if len(part.encode()) > PART_BYTES_MAX:
            return f"has a part of more than {PART_BYTES_MAX} bytes"
    return ""


def _folders_of(name: str) -> Iterator[str]:
    end = name.find("/")
    while end >= 0:
        yield name[:end]
        end = name.find("/", end + 1)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
