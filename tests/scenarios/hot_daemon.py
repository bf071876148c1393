"""`edgeward run` on a machine whose sensors are files: `--config FILE`, EDGE_MACHINE=FOLDER.

It looks ten times a second, and conditions end at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from agent.cli.configuration import load_settings
from agent.control.heat import Rules
from agent.daemon import app
from agent.daemon.climate import Outlook
from agent.device.tree import Folder


def main() -> int:
    settings = load_settings(Path(sys.argv[sys.argv.index("--config") + 1]))
    machine = Folder(Path(os.environ["EDGE_MACHINE"]))
    rules = Rules(enter_s=0.0, leave_s=0.3)
    return app.main(settings, outlook=Outlook(machine, calm_s=0.1, strained_s=0.1, rules=rules))


if __name__ == "__main__":
    sys.exit(main())
