"""One agent per state directory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from agent.errors import StoreError
from agent.store.files import Files, OpenFile

_PID_BYTES = 32


class StateLock:
    """Holds a state directory until closed or until the process ends, however it ends."""

    def __init__(self, files: Files, file: OpenFile) -> None:
        self._files = files
        self._file: OpenFile | None = file

    def close(self) -> None:
        """Let the directory go. Safe to call twice."""
        if self._file is not None:
            file, self._file = self._file, None
            self._files.close(file)

    def __enter__(self) -> StateLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lock_state_dir(path: Path, files: Files | None = None) -> StateLock:
    """Take a state directory for this process, making it when absent.

    On a disk that is full or read-only, the lock is taken all the same: there is something to
    serve.

    Args:
        path: The directory.
        files: The layer to use; the plain one by default.

    Raises:
        StoreError: Another process has it, or it cannot be made.
    """
    files = files or Files()
    try:
        files.make_folder(path, 0o700)
    except StoreError:
        if not files.is_folder(path):
            raise
    name = path / "lock"
    file = _open(files, name)
    try:
        if not files.lock(file):
            pid = (files.read(name, _PID_BYTES) or b"").strip(b"\n ").decode("ascii", "replace")
            raise StoreError(
                f"another edgeward (pid {pid or 'unknown'}) uses {path}",
                hint="stop it, or give this one a state_dir of its own",
            )
        with suppress(StoreError):  # only to be told who has it
            files.write(file, str(os.getpid()).encode().ljust(_PID_BYTES - 1) + b"\n", 0)
    except BaseException:
        files.close(file)
        raise
    return StateLock(files, file)


def _open(files: Files, path: Path) -> OpenFile:
    # flock, not lockf: those locks vanish when any descriptor of the file is closed.
    try:
        if files.stat(path) is None:
            with suppress(StoreError):  # another process made it in between
                return files.create(path)
        return files.open(path)
    except StoreError:
        return files.open_to_lock(path if files.stat(path) is not None else path.parent)
