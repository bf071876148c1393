"""The `edgeward` command."""

import sys


def main() -> int:
    """Run the command line; imported lazily so that workers never load it."""
    from agent.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
