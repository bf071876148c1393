"""Bring thousands of damaged model files to a device: `make campaign-models`.

Every file is made from a valid model by its seed and number, and takes the way that a real one
takes: read in a child, proven in a probe, served by a worker. Nothing may hang or die but the
worker, and each file must end in a reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.campaign import table
from tests.campaign.lane import Order
from tests.campaign.outcome import Outcome
from tests.campaign.run import LANES, REPOSITORY, Campaign, replay
from tests.campaign.sources import make_sources, shared_files

SHARED_MODELS = REPOSITORY.parent / "shared" / "models"
_SAY_EACH_S = 5.0


def main() -> int:
    """Run a campaign, or take single files of one their way again.

    Returns:
        0 where every file ended as it may, 1 where one did not, 2 where nothing could be run.
    """
    options = _options()
    if not (options.models / "index.json").is_file():
        print(f"campaign: there are no models in {options.models}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"campaign: packing the models of {options.models} into {options.out}", flush=True)
    sources = make_sources(shared_files(options.models), options.out / "packs")
    progress = Progress(options.files)
    campaign = Campaign(sources, options.out, print_whole if options.replay else progress)
    started = time.monotonic()
    if options.replay:
        campaign.run([replay(options.out, name) for name in options.replay], lanes=1)
    else:
        orders = [Order(options.seed, number) for number in range(options.files)]
        until = started + options.seconds if options.seconds else 0.0
        campaign.run(orders, lanes=options.lanes, until=until)
    offenders = [one for one in campaign.outcomes if one.offences]
    if not options.replay:
        took_s = time.monotonic() - started
        names = [source.name for source in sources]
        figures = table.result(campaign.outcomes, seed=options.seed, seconds=took_s, sources=names)
        text = json.dumps(figures, indent=1)
        (options.json or options.out / "result.json").write_text(text)
        lines = [msgspec.json.encode(one) + b"\n" for one in campaign.outcomes]
        (options.out / "outcomes.jsonl").write_bytes(b"".join(lines))
        print(table.markdown(figures))
        for one in offenders:
            print(f"{one.id} ({one.source}, {one.mutation}): {'; '.join(one.offences)}")
        if offenders:
            print(f"campaign: kept in {campaign.kept}; --replay ID takes one its way again")
    return 1 if offenders else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--files", type=int, default=5000, help="how many (default: 5000)")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same files (default: 1)")
    parser.add_argument("--seconds", type=float, default=0.0, help="begin no file after so long")
    parser.add_argument("--lanes", type=int, default=LANES, help=f"at once (default: {LANES})")
    parser.add_argument("--models", type=Path, default=SHARED_MODELS, help="with an index.json")
    parser.add_argument("--json", type=Path, help="where the figures go (default: in --out)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(tempfile.gettempdir()) / "edgeward-campaign",
        help="for packs and offenders (default: %(default)s)",
    )
    parser.add_argument(
        "--replay", nargs="+", metavar="ID", help="take files of a campaign their way again"
    )
    return parser.parse_args()


class Progress:
    """Says every few seconds how far it is."""

    def __init__(self, files: int) -> None:
        self._files = files
        self._done = self._offences = 0
        self._started = self._said = time.monotonic()

    def __call__(self, found: Outcome) -> None:
        self._done += 1
        self._offences += bool(found.offences)
        now = time.monotonic()
        if now - self._said < _SAY_EACH_S:
            return
        self._said = now
        rate = self._done / (now - self._started)
        print(
            f"campaign: {self._done} of {self._files}, {rate:.1f} files/s, "
            f"{self._offences} offences",
            flush=True,
        )


def print_whole(found: Outcome) -> None:
    """Print all that is known of one file."""
    print(json.dumps(msgspec.to_builtins(found), indent=1))


if __name__ == "__main__":
    sys.exit(main())
