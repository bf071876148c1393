"""`python -I -m agent.worker.names`: the names of all declared runtimes, as one JSON list.

A process of its own, because reading the metadata of installed packages and NumPy, which the
registry's types bring along, would stay in whoever asks. `agent.links.runtime_probe` runs it.
"""

from __future__ import annotations

import json

_GROUP = "edgeward.runtimes"


def main() -> None:
    print(json.dumps(_names()))


def _names() -> list[str]:
    try:
        from agent.runtimes import registry
    except ImportError:
        # Without NumPy no runtime is usable, and each is to say so by its name.
        from importlib import metadata

        return sorted({point.name for point in metadata.entry_points(group=_GROUP)})
    return list(registry.names())


if __name__ == "__main__":
    main()
