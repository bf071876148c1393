"""The `edgeward` command."""

import sys


def main() -> int:
    """Run the command line; imported lazily so that workers never load it."""
    try:
        from agent.cli.main import run
    except KeyboardInterrupt:  # before there is anything that could say so
        return 130
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
