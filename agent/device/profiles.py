"""Device profiles from disk: the packaged ones, and the user's own.

A file of the user's that is wrong is told and left out; it never keeps the agent from starting.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from agent.control.profiles import Recognised, recognise
from agent.documents.codec import convert, unknown_keys
from agent.documents.device import Device
from agent.documents.profile import MAX_PROFILE_BYTES, Profile
from agent.errors import DocumentError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Beside the package, in a checkout as in an installation.
PACKAGED = Path(__file__).resolve().parents[2] / "device_profiles"
OWN = Path("/etc/edgeward/profiles")
MAX_PROFILES = 256
_HINT = "docs/profiles.md says what each key may hold"


class Profiles(msgspec.Struct, frozen=True):
    """All profiles that are known.

    Args:
        every: Each name once.
        own: Names of those that the user wrote.
        troubles: A sentence for each file that is left out: which, where, what would be right.
    """

    every: tuple[Profile, ...]
    own: frozenset[str] = frozenset()
    troubles: tuple[str, ...] = ()

    def recognise(self, device: Device) -> Recognised:
        """What a device is, by these profiles."""
        return recognise(self.every, device, self.own)

    def named(self, name: str) -> Profile | None:
        """The profile of this name, if there is one."""
        return next((profile for profile in self.every if profile.name == name), None)


def load(own: Path | None = OWN, packaged: Path = PACKAGED) -> Profiles:
    """Read all profiles.

    Args:
        own: Folder of the user's, which need not exist; one of the same name takes the place of a
            packaged one.
        packaged: Folder of those that come with the agent.
    """
    found: dict[str, Profile] = {}
    troubles: list[str] = []
    _collect(packaged, found, troubles)
    mine: dict[str, Profile] = {}
    if own is not None:
        _collect(own, mine, troubles)
    return Profiles(tuple({**found, **mine}.values()), frozenset(mine), tuple(troubles))


def read(path: Path) -> Profile:
    """Read one profile.

    Raises:
        DocumentError: The file cannot be read, is no TOML, or a value in it does not fit; the
            error names file and key.
    """
    raw = _toml(path)
    if "schema" not in raw:
        raise DocumentError(f"{path}.schema", "1", "none", hint="a profile begins with schema = 1")
    # Of another schema the version is what is wrong.
    for place, known in unknown_keys(raw, Profile, str(path)) if raw["schema"] == 1 else ():
        key = place.rpartition(".")[2]
        raise DocumentError(place, f"one of the keys {', '.join(known)}", f"{key!r}", hint=_HINT)
    try:
        profile = convert(raw, Profile, name=str(path)).value
    except DocumentError as error:
        hint = error.hint or _HINT
        raise DocumentError(error.path, error.expected, error.got, hint=hint) from None
    if profile.match == type(profile.match)():
        raise DocumentError(
            f"{path}.match",
            "what the device is recognised by",
            "nothing",
            hint="`edgeward detect --json` shows what this device says of itself",
        )
    return profile


def _toml(path: Path) -> dict[str, object]:
    if path.exists() and not path.is_file():
        # A pipe would be waited for without end.
        raise DocumentError(str(path), "a file", "something else")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise DocumentError(str(path), "a file that can be read", str(error.strerror)) from None
    if len(data) > MAX_PROFILE_BYTES:
        raise DocumentError(str(path), f"at most {MAX_PROFILE_BYTES} bytes", "more")
    try:
        raw: dict[str, object] = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError(str(path), "a TOML document", str(error)) from None
    return raw


def _collect(folder: Path, found: dict[str, Profile], troubles: list[str]) -> None:
    for path in _files(folder, troubles):
        try:
            profile = read(path)
        except DocumentError as error:
            troubles.append(str(error))
            continue
        if profile.name in found:
            troubles.append(f"{path}: another file of this folder is called {profile.name!r} too")
            continue
        found[profile.name] = profile


def _files(folder: Path, troubles: list[str]) -> Iterable[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except FileNotFoundError:
        return ()
    except OSError as error:
        troubles.append(f"{folder}: {error.strerror}")
        return ()
    if len(paths) > MAX_PROFILES:
        troubles.append(f"{folder}: only the first {MAX_PROFILES} of {len(paths)} files are read")
    return paths[:MAX_PROFILES]
