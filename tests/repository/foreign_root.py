"""A fresh root file system of another release than this machine's, to install into for real.

Needs root, debootstrap and Debian's packages; whoever lacks one of them is told which.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

# What is taken where: not the release of this machine, so that Python and systemd are others too.
_OTHER = {"bookworm": "trixie", "trixie": "bookworm"}
# What a minimal device has before anybody thinks of us: no pip, no venv.
_PACKAGES = "ca-certificates,python3,systemd"
_SHELL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOTSTRAP_WITHIN_S = 240.0


@dataclass(frozen=True)
class ForeignRoot:
    """A folder that can be entered as if it were a machine; only the network is ours."""

    path: Path

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` inside, in namespaces that end with it."""
        # The shell stays: it ends with us, and all inside ends with it. A program that changes its
        # user would no longer be told of our end.
        enter = (
            'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" || exit 125\n'
            'chroot "$0" "$@"; exit $?'
        )
        isolate = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        variables = [f"PATH={_SHELL_PATH}", "HOME=/root", "LANG=C.UTF-8", *_passed_on()]
        inside = ["/usr/bin/env", "-i", *variables, *words]
        return [*isolate, "--propagation", "private", "sh", "-c", enter, str(self.path), *inside]

    def run(self, *words: str, within_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=within_s
        )

    def check(self, *words: str, within_s: float = 60.0) -> str:
        """Run it, and fail the test with everything that was said where it fails."""
        done = self.run(*words, within_s=within_s)
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def copy(self, path: Path) -> ForeignRoot:
        subprocess.run(["cp", "-a", str(self.path), str(path)], check=True)
        return ForeignRoot(path)


def bootstrap(path: Path) -> ForeignRoot:
    """Make a fresh root, or skip the test and say what is missing."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a root file system")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed (apt install debootstrap)")
    release = _release()
    mirror = _mirror(release.get("VERSION_CODENAME", ""))
    suite = _OTHER.get(release["VERSION_CODENAME"], release["VERSION_CODENAME"])
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, str(path), mirror],
        capture_output=True,
        text=True,
        timeout=BOOTSTRAP_WITHIN_S,
    )
    if done.returncode != 0:
        pytest.skip(f"debootstrap could not make {suite}: {done.stdout[-300:]}{done.stderr[-300:]}")
    root = ForeignRoot(path)
    _trust_what_we_trust(root)
    entered = root.run("true")
    if entered.returncode != 0:
        pytest.skip(f"a root file system cannot be entered here: {entered.stderr[-300:]}")
    return root


def _release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def _mirror(codename: str) -> str:
    """Where this machine's own packages come from."""
    form = "$(REPO_URI) $(CODENAME)"
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Identifier: Packages"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    pairs = [line.split() for line in asked.stdout.splitlines()]
    found = [uri for uri, name in pairs if codename and name == codename]
    if not found:
        pytest.skip("where this machine's packages come from is not known (apt-get update)")
    return found[0]


def _passed_on() -> list[str]:
    """How pip and apt reach their indices from here."""
    ours = {"PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"}
    names = [n for n in os.environ if n in ours or n.lower().endswith("_proxy")]
    return [f"{name}={os.environ[name]}" for name in sorted(names)]


def _trust_what_we_trust(root: ForeignRoot) -> None:
    """Certificates that this machine trusts, for a network that ends TLS on the way."""
    bundle = Path(os.environ.get("PIP_CERT", ""))
    if bundle.is_file():
        inside = root.path / bundle.relative_to("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle, inside)
