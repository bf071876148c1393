"""Exit codes: public, and the same for every command."""

from __future__ import annotations

from collections.abc import Mapping

DONE = 0
FAILED = 1
USAGE = 2
REFUSED_BY_DEVICE = 3
ROLLED_BACK = 4
TIMED_OUT = 5
LINK = 6
BAD_PACK = 7
WILL_NOT_RUN = 8
INTERRUPTED = 130

MEANINGS: Mapping[int, str] = {
    DONE: "done",
    FAILED: "failed otherwise; the sentence says how",
    USAGE: "the command line, a document or a configuration is not right",
    REFUSED_BY_DEVICE: "the device refused or failed the deployment, or it was overtaken",
    ROLLED_BACK: "the new pack served and was rolled back",
    TIMED_OUT: "no verdict or no answer in time",
    LINK: "no connection to the broker or to the agent",
    BAD_PACK: "the pack or the model file is not good, or nobody trusted has signed it",
    WILL_NOT_RUN: "nothing of the pack runs on that device",
    INTERRUPTED: "ended by Ctrl-C",
}

# By the code of an error; whatever is not here is FAILED.
_BY_ERROR: Mapping[str, int] = {
    "usage": USAGE,
    "bad_document": USAGE,
    "link_failed": LINK,
    "link_refused": LINK,
    "link_unreachable": LINK,
    "bad_pack": BAD_PACK,
    "digest_mismatch": BAD_PACK,
    "pack_inconsistent": BAD_PACK,
    "not_trusted": BAD_PACK,
    "unsigned": BAD_PACK,
    "bundle_malformed": BAD_PACK,
    "signature_invalid": BAD_PACK,
    "key_unknown": BAD_PACK,
    "key_not_yet_valid": BAD_PACK,
    "key_expired": BAD_PACK,
    "certificate_refused": BAD_PACK,
    "vouching_failed": BAD_PACK,
    "model_rejected": BAD_PACK,
    "self_test_failed": BAD_PACK,
}

BY_VERDICT: Mapping[str, int] = {
    "active": DONE,
    "published": DONE,
    "failed": REFUSED_BY_DEVICE,
    "refused": REFUSED_BY_DEVICE,
    "overtaken": REFUSED_BY_DEVICE,
    "rolled_back": ROLLED_BACK,
    "timed_out": TIMED_OUT,
}


def of_verdict(state: str, *, hindered: bool) -> int:
    """The exit code for a device's verdict.

    Args:
        state: Of `publish.Verdict`.
        hindered: An error stands beside it: an `active` slot that cannot get its messages is no
            success to a script.
    """
    code = BY_VERDICT[state]
    return FAILED if hindered and code == DONE else code


def of_error(code: str) -> int:
    """The exit code for an error's code."""
    return _BY_ERROR.get(code, FAILED)


def epilog(*codes: int) -> str:
    """The lines of `--help` that list exit codes; all of them when none is named."""
    listed = "\n".join(f"  {code:>3}  {MEANINGS[code]}" for code in codes or MEANINGS)
    return f"\b\nExit codes:\n{listed}"
