"""install.sh: what it makes; that it can be repeated, updated and undone; that it stops in time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.documents.settings import Settings, bus_of, settings_from
from tests.repository import stand_in
from tests.repository.commands import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPT = REPOSITORY / "systemd/install.sh"


def _install(prefix: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(SCRIPT), "--prefix", str(prefix), "--python", sys.executable, *options]
    # A strict mask, as careful administrators have it: the agent's user must still read it all.
    return subprocess.run(command, capture_output=True, text=True, timeout=55, umask=0o077)


def _fill(prefix: Path, wheel: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return _install(prefix, "--extras", "", "--wheel", str(wheel), *options)


def _program(prefix: Path) -> str:
    command = [prefix / "opt/edgeward/bin/edgeward"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()


def _settings(prefix: Path) -> Settings:
    text = (prefix / "etc/edgeward/agent.toml").read_text()
    return settings_from(tomllib.loads(text), {}, name="agent.toml")


def _listing(folder: Path) -> dict[str, int]:
    """Every path below a folder, with the time of its last change."""
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in.wheel(tmp_path_factory.mktemp("wheels"), "1.0")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A prefix into which version 1.0 was installed; nobody may change it."""
    folder = tmp_path_factory.mktemp("root")
    done = _fill(folder, wheel, "--device-id", "press-7", "--broker", "mqtts://b.example:8883")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def prefix(installed: Path, tmp_path: Path) -> Path:
    """The same, to do with as one likes."""
    return shutil.copytree(installed, tmp_path / "root", symlinks=True)


def test_it_makes_program_settings_and_service_and_can_be_run_again(
    prefix: Path, wheel: Path
) -> None:
    assert _program(prefix) == "edgeward stand-in 1.0"
    assert (prefix / "usr/local/bin/edgeward").readlink() == Path("/opt/edgeward/bin/edgeward")
    settings = _settings(prefix)
    assert bus_of(settings).url == "mqtts://b.example:8883"
    assert settings.device_id == "press-7"
    unit = prefix / "etc/systemd/system/edgeward.service"
    assert unit.read_bytes() == (REPOSITORY / "systemd/edgeward.service").read_bytes()
    assert (prefix / "etc/edgeward/secrets").stat().st_mode & 0o777 == 0o700
    assert (prefix / "opt/edgeward/bin/edgeward").stat().st_mode & 0o005 == 0o005
    assert (prefix / "etc/edgeward/agent.toml").stat().st_mode & 0o004

    mine = prefix / "etc/edgeward/agent.toml"
    mine.write_text('device_id = "mine"\n')
    before = _listing(prefix)
    again = _fill(prefix, wheel, "--device-id", "other")
    assert again.returncode == 0, again.stderr
    assert "already there" in again.stdout
    assert _listing(prefix) == before
    assert _settings(prefix).device_id == "mine"


def test_with_a_key_the_device_takes_only_what_that_key_signs(tmp_path: Path, wheel: Path) -> None:
    key, prefix = tmp_path / "team.pub", tmp_path / "root"
    key.write_text("-----BEGIN PUBLIC KEY-----\n")
    prefix.mkdir()
    done = _fill(prefix, wheel, "--key", str(key))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (prefix / "etc/edgeward/release.pub").read_bytes() == key.read_bytes()
    assert (prefix / "etc/edgeward/release.pub").stat().st_mode & 0o777 == 0o644
    trust = _settings(prefix).trust
    assert (trust.keys, trust.unsigned) == (("release.pub",), "refuse")


def test_a_key_given_later_is_put_there_and_the_settings_are_left_alone(
    prefix: Path, tmp_path: Path, wheel: Path
) -> None:
    key, mine = tmp_path / "team.pub", prefix / "etc/edgeward/agent.toml"
    key.write_text("-----BEGIN PUBLIC KEY-----\n")
    before = mine.read_bytes()
    assert _settings(prefix).trust.keys == ()
    done = _fill(prefix, wheel, "--key", str(key))
    assert (done.returncode, mine.read_bytes()) == (0, before)
    assert "does not name the key yet" in done.stdout
    assert (prefix / "etc/edgeward/release.pub").exists()


def test_an_update_switches_in_one_step_and_keeps_one_step_back(
    prefix: Path, tmp_path: Path
) -> None:
    for version in ("2.0", "3.0"):
        assert _fill(prefix, stand_in.wheel(tmp_path, version)).returncode == 0
        assert _program(prefix) == f"edgeward stand-in {version}"
    kept = sorted(path.name for path in (prefix / "opt").iterdir())
    assert len(kept) == 3, "the link, the program and the one before it"
    assert str((prefix / "opt/edgeward").readlink()) in kept


@pytest.mark.parametrize("how", ["refuses the settings", "is no wheel"])
def test_an_update_that_fails_leaves_what_runs(how: str, prefix: Path, tmp_path: Path) -> None:
    update = stand_in.wheel(tmp_path, "2.0", checks=False)
    if how == "is no wheel":
        update.write_bytes(b"not a zip archive")
    before = sorted((prefix / "opt").iterdir())
    done = _fill(prefix, update)
    assert done.returncode != 0
    assert "untouched" in done.stderr
    assert sorted((prefix / "opt").iterdir()) == before
    assert _program(prefix) == "edgeward stand-in 1.0"


def test_it_can_be_undone_with_and_without_what_is_yours(prefix: Path) -> None:
    state = prefix / "var/lib/edgeward"
    assert state.stat().st_mode & 0o777 == 0o700
    (state / "kept").touch()
    assert _install(prefix, "--uninstall").returncode == 0
    assert not list((prefix / "opt").iterdir())
    assert not (prefix / "etc/systemd/system/edgeward.service").exists()
    assert not (prefix / "usr/local/bin/edgeward").is_symlink()
    assert _settings(prefix).device_id == "press-7"
    assert (state / "kept").exists()

    assert _install(prefix, "--purge").returncode == 0
    assert [path for path in prefix.rglob("*") if "edgeward" in path.name] == []
    assert _install(prefix, "--uninstall").returncode == 0, "undoing nothing is no error"


def test_a_dry_run_says_all_and_does_nothing(tmp_path: Path, wheel: Path) -> None:
    done = _fill(tmp_path, wheel, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "agent.toml" in done.stdout
    assert "edgeward.service" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--device-id", "a b"), "--device-id"),
        (("--device-id", "../../x"), "--device-id"),
        (("--broker", "broker.example"), "mqtt://"),
        (("--broker", 'mqtt://x"\nstate_dir="/'), "characters"),
        (("--extras", "onnx; rm"), "characters"),
        (("--wheel", "absent.whl"), "absent.whl"),
        (("--key", "absent.pub"), "absent.pub"),
        (("--key", __file__), "no public key"),
        (("--python", "/bin/false"), "/bin/false"),
        (("--wheel",), "needs a value"),
        (("--colour",), "--colour"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_made(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = _install(tmp_path, *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "opt").exists()


def test_a_program_made_by_hand_is_not_taken_over(tmp_path: Path, wheel: Path) -> None:
    (tmp_path / "opt/edgeward").mkdir(parents=True)
    done = _fill(tmp_path, wheel)
    assert done.returncode == 1
    assert "move it away" in done.stderr
    assert _install(tmp_path, "--purge").returncode == 0
    assert (tmp_path / "opt/edgeward").is_dir()


def test_the_settings_that_it_brings_are_the_defaults() -> None:
    text = (REPOSITORY / "systemd/agent.toml").read_text()
    assert settings_from(tomllib.loads(text), {}, name="agent.toml") == Settings()
