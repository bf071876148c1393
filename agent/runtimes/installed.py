"""What is wrong with an inference library as it is installed here, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

from agent.errors import RuntimeUnavailable

_VERSION = re.compile(r"\d+")
# What a library's import died of → what to do.
_CURES = (
    (
        re.compile(r"numpy\.core\.multiarray|_ARRAY_API|compiled using NumPy 1|numpy\.dtype size"),
        "the library was built for another NumPy: pip install 'numpy<2', or a newer library",
    ),
    (
        re.compile(r"libgomp\.so\.1"),
        "install the system's package with libgomp.so.1 (Debian: libgomp1)",
    ),
    (
        re.compile(r"`?GLIBC(?:XX)?_[\d.]+'? not found"),
        "the library was built for a newer system: update the system, or install an older version "
        "of the library",
    ),
    (
        re.compile(r"static TLS block"),
        "it must be loaded before other libraries: set LD_PRELOAD to the file that is named",
    ),
    (
        re.compile(r"wrong ELF class|invalid ELF header|cannot execute binary"),
        "the library was built for another processor or word size: install the one for this system",
    ),
    (
        re.compile(r"(?P<file>lib[\w.+-]+\.so[.\d]*): cannot open shared object"),
        "install the system's package with {file}",
    ),
    (
        re.compile(r"has no attribute '__version__'|cannot import name|partially initialized"),
        "files of it are missing, as after one of two packages that share a folder was removed: "
        "pip install --force-reinstall it",
    ),
)


def cure_for(failure: str) -> str:
    """Say what helps against a failed import; nothing where that is not known.

    Args:
        failure: The words of what was raised.
    """
    for pattern, cure in _CURES:
        if found := pattern.search(failure):
            return cure.format(**found.groupdict())
    return ""


def require_version(title: str, version: str, least: str) -> None:
    """Refuse a library that is older than the oldest whose behaviour is known here.

    Raises:
        RuntimeUnavailable: It is; says what to do.
    """
    if numbers(version) < numbers(least):
        raise RuntimeUnavailable(
            f"{title} {version} is too old: {least} is the oldest that is supported",
            hint=f"pip install --upgrade '{title}>={least}'",
        )


def numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, to compare it by."""
    return tuple(int(number) for number in _VERSION.findall(version)[:2])


def distributions(module_file: str) -> tuple[str, ...]:
    """Name the installed distributions that a package's files came from.

    More than one: they were installed over each other. `importlib.metadata` would look through the
    whole path, and costs each template process 2 MB.

    Args:
        module_file: `__file__` of the package.

    Returns:
        Names as pip writes them, sorted; none where its files came without an installation.
    """
    package = Path(module_file).parent
    folder, name = package.parent, package.name
    stems = sorted(
        {
            info.name.partition("-")[0]
            for pattern in ("*.dist-info", "*.egg-info")
            for info in folder.glob(pattern)
            if _owns(info, name)
        }
    )
    return tuple(stem.replace("_", "-") for stem in stems)


def _owns(info: Path, package: str) -> bool:
    """Whether the files of a distribution, told by its metadata folder, include a package."""
    # Reading the list of every distribution's files would take long on a slow disk.
    if info.name.partition("_")[0].partition("-")[0] != package.partition("_")[0]:
        return False
    for listing in ("RECORD", "installed-files.txt"):
        try:
            text = (info / listing).read_text(errors="replace")
        except OSError:
            continue
        return re.search(rf"(?m)^(?:\.\./)?{re.escape(package)}/__init__\.py\b", text) is not None
    # A distribution of the system's package manager lists no files.
    return info.name.partition("-")[0] == package


def refuse_mixture(title: str, found: tuple[str, ...]) -> None:
    """Refuse a library that two of its distributions have written over each other.

    Raises:
        RuntimeUnavailable: There is more than one.
    """
    if len(found) < 2:
        return
    raise RuntimeUnavailable(
        f"{' and '.join(found)} are installed over each other in one folder, so {title} is a "
        "mixture of them and lacks what one of them had",
        hint=f"pip uninstall -y {' '.join(found)}, then install the one that is meant",
    )
