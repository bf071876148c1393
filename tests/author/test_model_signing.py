"""Our signatures against the field's standard tool, in both directions.

PYTHON_WITH_MODEL_SIGNING names the Python of an environment that has it, such as the one that
`requirements/model_signing.sh` prepares.
"""

from __future__ import annotations

import datetime as dt
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from agent.author.sign import make_key, read_certificates, read_key, sign_pack, verify_pack
from agent.documents.settings import Trust
from agent.errors import AgentError, KeyExpired
from agent.store.trust_files import read_trust
from agent.trust.keys import load_private_key
from tests.author.signing import write_pack
from tests.trust.signers import SUBJECT, Issuer

TOOL = os.environ.get("PYTHON_WITH_MODEL_SIGNING", "")
pytestmark = pytest.mark.skipif(
    not TOOL,
    reason="PYTHON_WITH_MODEL_SIGNING names no Python with model-signing; "
    "requirements/model_signing.sh makes one",
)
DAY = dt.timedelta(days=1)
SIGN = ("--no-ignore-git-paths",)


class Bench:
    """A pack, a key, and certificates for it, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pack = write_pack(folder / "pack")
        self.signature = self.pack / "model.sig"
        self.key = make_key(folder / "release")
        make_key(folder / "other")
        now = dt.datetime.now(dt.timezone.utc)
        self.issuer = Issuer(begin=now - 3650 * DAY, end=now + DAY, signs=True)
        (folder / "ca.pem").write_bytes(self.issuer.pem)
        self.certify(now - DAY, now + DAY)

    def certify(self, begin: dt.datetime, end: dt.datetime) -> None:
        """Have a certificate issued for the key."""
        key = load_private_key(self.key.private.read_bytes(), None)
        leaf = load_der_x509_certificate(self.issuer.issue(key, begin=begin, end=end))
        (self.folder / "release.pem").write_bytes(leaf.public_bytes(Encoding.PEM))

    def tool(self, *words: str, signature: Path | None = None) -> bool:
        """Run the standard tool on the pack; whether it was content."""
        command = [TOOL, "-m", "model_signing", *words[:2], str(self.pack)]
        command += ["--signature", str(signature or self.signature), *words[2:]]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=50
        )
        said = done.stdout + done.stderr
        assert ("succeeded" in said) == (done.returncode == 0), said
        return done.returncode == 0

    def tool_signs(self, *words: str) -> None:
        assert self.tool("sign", "key", "--private_key", "release", *words)

    def tool_verifies(self, public: str = "release.pub", signature: Path | None = None) -> bool:
        return self.tool("verify", "key", "--public_key", public, signature=signature)

    def sign(self) -> None:
        sign_pack(self.pack, read_key(self.key.private))

    def verifies(self, public: str = "release.pub", signature: Path | None = None) -> bool:
        trust = read_trust(Trust(keys=(str(self.folder / public),)))
        try:
            return not verify_pack(self.pack, trust, signature=signature).wrong
        except AgentError:
            return False


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_tool_verifies_what_we_sign(bench: Bench) -> None:
    bench.sign()
    assert bench.tool_verifies()
    assert not bench.tool_verifies("other.pub")


@pytest.mark.parametrize("curve", ["P-384", "P-521"])
def test_the_larger_curves_are_the_same_to_both(bench: Bench, curve: str) -> None:
    make_key(bench.folder / "large", curve=curve)
    sign_pack(bench.pack, read_key(bench.folder / "large"))
    assert bench.tool_verifies("large.pub")
    assert bench.tool("sign", "key", "--private_key", "large", *SIGN)
    assert bench.verifies("large.pub")


@pytest.mark.parametrize("words", [(), SIGN], ids=["as it is", "with git's names"])
def test_we_verify_what_the_tool_signs(bench: Bench, words: tuple[str, ...]) -> None:
    bench.tool_signs(*words)
    assert bench.verifies()
    assert not bench.verifies("other.pub")


def test_both_list_the_same_files_in_the_same_order(bench: Bench) -> None:
    trust = read_trust(Trust(keys=(str(bench.folder / "release.pub"),)))
    bench.sign()
    ours = verify_pack(bench.pack, trust).signed
    bench.tool_signs(*SIGN)
    theirs = verify_pack(bench.pack, trust).signed
    assert list(ours.files.items()) == list(theirs.files.items())
    assert (ours.pack, ours.key_id) == (theirs.pack, theirs.key_id)


def test_what_the_tool_leaves_out_of_the_signature_we_refuse(bench: Bench) -> None:
    bench.tool_signs("--ignore-paths", str(bench.pack / "selftest"), *SIGN)
    assert bench.tool_verifies()
    assert not bench.verifies()


# Certificates.

BY_CA = ("certificate", "--certificate_chain", "ca.pem")


def _ours(bench: Bench, now: dt.datetime | None = None) -> str:
    trust = read_trust(Trust(ca=str(bench.folder / "ca.pem"), subject=SUBJECT))
    return verify_pack(bench.pack, trust, now=now).signed.subject


def _sign_with_certificate(bench: Bench) -> None:
    certificates = read_certificates(bench.folder / "release.pem")
    sign_pack(bench.pack, read_key(bench.key.private), certificates=certificates)


def _tool_signs_with_certificate(bench: Bench) -> None:
    words = ("--private_key", "release", "--signing_certificate", "release.pem")
    assert bench.tool("sign", *BY_CA, *words, *SIGN)


def test_the_tool_verifies_what_we_sign_with_a_certificate(bench: Bench) -> None:
    _sign_with_certificate(bench)
    assert bench.tool("verify", *BY_CA)
    assert _ours(bench) == SUBJECT


def test_we_verify_what_the_tool_signs_with_a_certificate(bench: Bench) -> None:
    _tool_signs_with_certificate(bench)
    assert _ours(bench) == SUBJECT
    assert bench.tool("verify", *BY_CA)


def test_an_expired_certificate_is_good_to_the_tool_and_not_to_us(bench: Bench) -> None:
    now = dt.datetime.now(dt.timezone.utc)
    bench.certify(now - 300 * DAY, now - 200 * DAY)
    _sign_with_certificate(bench)
    assert bench.tool("verify", *BY_CA)
    with pytest.raises(KeyExpired):
        _ours(bench)


# What may become of a folder: accepted by (the tool, us). docs/trust.md shows this table.


def _altered(pack: Path) -> None:
    whole = (pack / "model.onnx").read_bytes()
    (pack / "model.onnx").write_bytes(whole[:-1] + b"x")


def _linked(pack: Path) -> None:
    elsewhere = pack.parent / "elsewhere"
    (pack / "model.onnx").rename(elsewhere)
    (pack / "model.onnx").symlink_to(elsewhere)


def _hidden_in(folder: str) -> Callable[[Path], None]:
    def hide(pack: Path) -> None:
        (pack / folder).mkdir()
        (pack / folder / "evil.so").touch()

    return hide


def _folder_as_signature(pack: Path) -> None:
    (pack / "model.sig").rename(pack.parent / "kept.sig")
    _hidden_in("model.sig")(pack)


CHANGES: list[tuple[str, Callable[[Path], object], bool, bool]] = [
    ("nothing", lambda p: None, True, True),
    ("a byte", _altered, False, False),
    ("a file gone", lambda p: (p / "model.onnx").unlink(), False, False),
    ("a file more", lambda p: (p / "evil.so").touch(), False, False),
    ("another name", lambda p: (p / "model.onnx").rename(p / "m.onnx"), False, False),
    ("a link", _linked, False, False),
    ("a pipe", lambda p: os.mkfifo(p / "pipe"), False, False),
    (".git", _hidden_in(".git"), True, False),
    (".github", _hidden_in(".github"), True, False),
    ("model.sig", _folder_as_signature, True, False),
    ("a mode", lambda p: (p / "model.onnx").chmod(0o4777), True, True),
    ("an empty folder", lambda p: (p / "empty").mkdir(), True, True),
]


@pytest.mark.parametrize(
    ("change", "tool", "own"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES]
)
def test_what_changed_is_seen_by_the_tool_and_by_us_as_the_table_says(
    bench: Bench, change: Callable[[Path], object], tool: bool, own: bool
) -> None:
    # As the tool signs by itself: git's names are left out of what is signed.
    bench.tool_signs()
    change(bench.pack)
    kept = bench.folder / "kept.sig"
    signature = kept if kept.exists() else None
    assert bench.tool_verifies(signature=signature) is tool
    assert bench.verifies(signature=signature) is own
