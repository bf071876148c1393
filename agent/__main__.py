"""The `edgeward` command."""

import gc
import sys


def main() -> int:
    """Run the command line; imported lazily so that workers never load it.

    What a device needs longest comes first: see `agent.daemon.early`.
    """
    try:
        if sys.argv[1:2] == ["run"]:
            from agent.daemon import early

            early.start(sys.argv[2:])
            # Importing makes many objects and next to no garbage; the daemon lets it go on.
            gc.disable()
        from agent.cli.main import run
    except KeyboardInterrupt:  # before there is anything that could say so
        return 130
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
