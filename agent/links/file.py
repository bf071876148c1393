"""The kind of link `file`, for devices that are managed by whatever can put a file on them.

Ansible, balena, an image of Yocto, a config map, a stick, an editor: no network is needed, ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from agent.documents.settings import LinkSettings, Settings
from agent.errors import LinkError
from agent.links.api import Disk, Kind, Link, Owner, Problem
from agent.links.file_folder import open_folder

# Of events, telemetry and dead letters the present file and the one before it.
_FILES = 6


class FileSettings(LinkSettings, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A folder in place of a connection.

    Attributes:
        kind: What is at the other end.
        directory: Where `desired.json` is placed. It must exist, and not be open to every user.
            Nothing: `link` in `state_dir`, which is made.
        report_directory: Where reports, telemetry and events go, if that is another folder.
        keep_mb: Most that telemetry, events and dead letters may take there.
    """

    kind: Literal["file"] = "file"
    directory: str = ""
    report_directory: str = ""
    keep_mb: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 24


def _settings(settings: Settings) -> FileSettings:
    assert isinstance(settings.link, FileSettings)
    return settings.link


def _folders(settings: Settings) -> tuple[Path, Path]:
    own = _settings(settings)
    folder = Path(own.directory or Path(settings.state_dir) / "link")
    return folder, Path(own.report_directory or folder)


def _problems(settings: Settings) -> Iterator[Problem]:
    own = _settings(settings)
    for key in ("directory", "report_directory"):
        name = getattr(own, key)
        if not name:
            continue
        if not Path(name).is_absolute():
            yield Problem(f"link.{key}", f"{name!r} is not absolute", "the whole path of a folder")
            continue
        try:
            os.close(open_folder(Path(name)))
        except LinkError as error:
            yield Problem(f"link.{key}", error.message, error.hint)
    given = "report_directory" if own.report_directory else "directory"
    folder = getattr(own, given)
    if folder and Path(folder).is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        wrong = f"this user may not write reports to {folder}"
        yield Problem("link.report_directory", wrong, "a folder of the agent's own")


def _make(settings: Settings, owner: Owner, disk: Disk) -> Link:
    # Imported here: every command reads the settings, and only the daemon makes the link.
    from agent.links.file_link import FileLink

    own = _settings(settings)
    folder, report_folder = _folders(settings)
    return FileLink(
        owner,
        disk,
        device=settings.device_id,
        folder=folder,
        report_folder=report_folder,
        makes_folder=not own.directory,
        lines_bytes=(own.keep_mb << 20) // _FILES,
    )


KIND = Kind(FileSettings, lambda settings: str(_folders(settings)[0]), _problems, _make)
