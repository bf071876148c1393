"""Whether a pack is taken, by what was found out about its signature."""

from __future__ import annotations

import datetime as dt

import msgspec

from agent.documents.report import SlotTrust
from agent.documents.settings import Trust
from agent.errors import AgentError, KeyUnknown, NotTrusted, Unsigned

# No day before this one can be today: a board without a battery boots in 1970. Moved on with each
# release; never taken from the wall clock, or one boot ten years ahead would stop all later packs.
TIME_FLOOR = dt.datetime(2026, 11, 1, tzinfo=dt.timezone.utc)

# Whoever can alter a pack can also take its signature away, or put another's in its place: these
# are one and the same, and only they may be let through. A bad signature by a trusted key may not.
_BY_NOBODY = (Unsigned, KeyUnknown)


class Signer(msgspec.Struct, frozen=True):
    """Who has signed a pack, and is trusted: the key's id, and the subject of its certificate."""

    key: str
    subject: str = ""


def trusts_anybody(trust: Trust) -> bool:
    """Whether the settings name anybody; where not, no signature makes a difference."""
    return bool(trust.keys or trust.ca or trust.subject)


def unsigned(pack: str, trust: Trust, why: str = "") -> NotTrusted:
    """The error for a pack without a signature.

    Args:
        pack: Its id.
        trust: The settings; where they name nobody, that is what to put right first.
        why: Why none could be had, where its source said so.
    """
    allow = '[trust] unsigned = "allow" takes packs by their digests only'
    if not trusts_anybody(trust):
        return Unsigned(
            f"pack {pack} cannot be taken: this device knows no key whose signature counts",
            hint="make one with `edgeward keygen --out release`, name release.pub in [trust] keys "
            f"on the device, and sign the pack: `edgeward sign DIR --key release`; {allow}",
        )
    return Unsigned(
        f"pack {pack} has no signature" + (f" ({why})" if why else ""),
        hint=f"sign it with `edgeward sign DIR --key release`, and deploy it again; {allow}",
    )


def decide(trust: Trust, found: Signer | AgentError) -> SlotTrust:
    """Take a pack, or refuse it.

    Args:
        trust: The settings.
        found: Who has signed it, or why nobody vouches for it.

    Raises:
        AgentError: What was found: the pack is refused.
    """
    if isinstance(found, Signer):
        return SlotTrust("signed", found.key, found.subject)
    if isinstance(found, _BY_NOBODY) and trust.unsigned == "allow":
        return SlotTrust("unsigned")
    raise found


def judged_at(wall: dt.datetime) -> dt.datetime:
    """The time by which keys and certificates are judged: never before `TIME_FLOOR`."""
    return max(wall, TIME_FLOOR)
