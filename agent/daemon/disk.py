"""What the daemon keeps in its state directory, and how it starts when that directory is not well.

A device must serve what it has: a disk that is full, read-only or damaged costs what would be
written there, never what is served.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.control.state import DeviceState
from agent.documents.settings import Settings
from agent.errors import StoreCorrupt, StoreError
from agent.store.ballast import Ballast
from agent.store.compiled import CompiledStore
from agent.store.evidence import EvidenceLog
from agent.store.files import Files
from agent.store.packs import PackStore
from agent.store.spool import Spool
from agent.store.state import StateFile

log = logging.getLogger(__name__)

# How often a disk that was full is asked whether it can spare the ballast again.
REFILL_AGAIN_S = 60.0


class Disk:
    """The stores of one device.

    Args:
        files: The layer to use.
        settings: Where, and within which limits.
        boot: Identifies this start of the agent.
    """

    def __init__(self, files: Files, settings: Settings, boot: str) -> None:
        self._files = files
        self._root = Path(settings.state_dir)
        self._spool_bytes = settings.limits.spool_mb << 20
        self._boot = boot
        self._ballast = Ballast(files, self._root / "ballast", on_release=self._fill_ballast_later)
        self.state_file = StateFile(files, self._root / "state", self._ballast)
        # What `load_state` found damaged, and what that means.
        self.damage: StoreCorrupt | None = None
        self.packs = PackStore(files, self._root, settings.limits.store_mb << 20)
        self.compiled = CompiledStore(files, self._root, settings.limits.compiled_mb << 20)
        self.evidence = EvidenceLog(files, self._root / "evidence")

    def tidy(self) -> None:
        """Remove what an interrupted start left, and put by what a full disk will need."""
        try:
            self.packs.sweep()
            self.compiled.sweep()
        except StoreError as error:
            log.error("the store was not tidied: %s", error)
        self._fill_ballast()

    def _fill_ballast(self) -> None:
        if not self._ballast.fill():
            self._fill_ballast_later()

    def _fill_ballast_later(self) -> None:
        # Not at once: what it was given up for is still being saved.
        with suppress(RuntimeError):  # without a loop, at the next start
            asyncio.get_running_loop().call_later(REFILL_AGAIN_S, self._fill_ballast)

    def open_spool(self) -> Spool:
        """Return an open spool.

        Raises:
            StoreError: The disk takes none now.
        """
        spool = Spool(
            self._files,
            self._root / "spool",
            self._spool_bytes,
            boot=self._boot,
            machine_boot=_machine_boot(),
        )
        try:
            spool.open()
        except StoreError:
            with suppress(StoreError):
                spool.abandon()
            raise
        return spool

    def load_state(self) -> DeviceState:
        """Return what was saved last; `lost` where that is damaged or of another version.

        What cannot be read is kept beside it, for a person to look at.
        """
        loaded = self.state_file.load()
        if loaded.corrupt:
            self._damaged(f"{len(loaded.corrupt)} of two generations of the state are damaged")
        if loaded.document is not None:
            try:
                return msgspec.json.decode(loaded.document, type=DeviceState)
            except (msgspec.DecodeError, RecursionError) as error:
                # Another version wrote it: what it says cannot be trusted to serve.
                self._damaged(f"the saved state is not readable by this version: {error}")
        elif not loaded.corrupt and not self.state_file.kept:
            return DeviceState()  # a new device
        self.state_file.keep()
        return DeviceState(lost=True)

    def _damaged(self, what: str) -> None:
        log.error("%s", what)
        self.damage = StoreCorrupt(what, hint="see dmesg; the storage medium may be worn out")


def _machine_boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
