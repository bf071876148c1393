"""Whether a pack is taken: the policy alone."""

from __future__ import annotations

import datetime as dt

import pytest

from agent import errors
from agent.control.trusting import TIME_FLOOR, Signer, decide, judged_at, unsigned
from agent.documents.report import SlotTrust
from agent.documents.settings import Trust

PACK = f"sha256:{'0' * 64}"
REFUSE = Trust(keys=("release.pub",), unsigned="refuse")
ALLOW = Trust(keys=("release.pub",), unsigned="allow")
BY_NOBODY = (errors.Unsigned("x"), errors.KeyUnknown("x"))
BAD = (
    errors.BundleMalformed("x"),
    errors.SignatureInvalid("x"),
    errors.KeyNotYetValid("x"),
    errors.KeyExpired("x"),
    errors.CertificateRefused("x"),
    errors.PackInconsistent("x"),
    errors.VouchingFailed("x"),
)


@pytest.mark.parametrize("trust", [REFUSE, ALLOW])
def test_what_somebody_trusted_has_signed_is_taken(trust: Trust) -> None:
    assert decide(trust, Signer("ab", "CN=x")) == SlotTrust("signed", "ab", "CN=x")


@pytest.mark.parametrize("found", BY_NOBODY, ids=lambda error: error.code)
def test_what_nobody_trusted_has_signed_is_taken_only_where_that_is_allowed(
    found: errors.AgentError,
) -> None:
    assert decide(ALLOW, found) == SlotTrust("unsigned")
    with pytest.raises(type(found)):
        decide(REFUSE, found)


@pytest.mark.parametrize("found", BAD, ids=lambda error: error.code)
@pytest.mark.parametrize("trust", [REFUSE, ALLOW])
def test_a_bad_signature_is_refused_also_where_none_would_be_allowed(
    trust: Trust, found: errors.AgentError
) -> None:
    with pytest.raises(type(found)):
        decide(trust, found)


def test_a_device_that_knows_no_key_says_how_to_give_it_one() -> None:
    nobody = unsigned(PACK, Trust(unsigned="refuse"))
    assert "knows no key" in nobody.message
    assert "edgeward keygen" in nobody.hint
    somebody = unsigned(PACK, REFUSE)
    assert "has no signature" in somebody.message
    assert "edgeward sign" in somebody.hint


def test_a_clock_that_stands_in_1970_is_not_believed_and_one_that_is_ahead_is() -> None:
    begin = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    later = TIME_FLOOR + dt.timedelta(days=3650)
    assert judged_at(begin) == TIME_FLOOR
    assert judged_at(later) == later
