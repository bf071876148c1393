"""`edgeward run --check`: what is wrong, where, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.cli import configuration, exits
from agent.cli.configuration import load_settings, problems
from agent.cli.main import run
from agent.documents.settings import bus_of
from agent.errors import DocumentError, UsageError
from tests.trust.signers import KEY, SUBJECT, Issuer, pem_of


def check(path: Path, text: str) -> int:
    path.write_text(text)
    return run(["run", "--check", "--config", str(path)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def test_a_good_file_is_ok(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f'device_id = "press-7"\nstate_dir = "{file.parent}"\n[link]\nurl = "mqtt://broker"\n'
    assert check(file, text) == exits.DONE
    assert capsys.readouterr().out.startswith("ok: device press-7, link mqtt://broker")


def test_a_link_without_a_broker_is_ok_where_the_sensors_have_one(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = file.parent / "state"
    text = f'state_dir = "{state}"\n[link]\nkind = "file"\n[bus]\nurl = "mqtt://127.0.0.1"\n'
    assert check(file, text) == exits.DONE
    assert f"link {state}/link, sensors on mqtt://127.0.0.1," in capsys.readouterr().out


def test_an_agent_without_a_bus_does_not_start(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(f'state_dir = "{file.parent}/state"\n[link]\nkind = "file"\n')
    assert run(["run", "--config", str(file)]) == exits.USAGE
    assert "no [bus] is given" in capsys.readouterr().err
    assert not (file.parent / "state").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limits]\nstore_mb = 'x'", ["agent.toml.limits.store_mb: 'x'", "right would be: int"]),
        ("[limits]\nstore = 1", ["agent.toml.limits.store: unknown key", "store_mb"]),
        ("colour = 1", ["agent.toml.colour: unknown key", "state_dir"]),
        ("[link]\nurl = 'http://x'", ["agent.toml.link.url: 'http://x'", "mqtt"]),
        ("[link\n", ["agent.toml", "right would be: a TOML file"]),
        ("log_level = 'loud'", ["agent.toml.log_level: 'loud'", "one of debug, info"]),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would(
    file: Path, capsys: pytest.CaptureFixture[str], text: str, said: list[str]
) -> None:
    assert check(file, text) == exits.USAGE
    told = capsys.readouterr().err
    assert all(part in told for part in said), told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[link]\nca = '/none/ca.pem'", "link.ca: there is no file /none/ca.pem"),
        ("[link]\npassword_file = '/none/p'\nusername = 'u'", "link.password_file: there is no"),
        ("[bus]\ncert = '/none/c'", "bus.key: is missing; right would be: cert and key together"),
        ("[link]\nurl = 'mqtt://h:99999'", "link.url: Port out of range"),
        ("[link]\nurl = 'mqtt://u:p@h'", "link.url: holds a user name or a password"),
        ("[link]\nprefix = 'a/+/'", "link.prefix: 'a/+/' is no topic"),
        ("[fetch]\nroots = ['models']", "fetch.roots[0]: 'models' is no folder here"),
        ("socket = '/none/there/s'", "socket: there is no folder for /none/there/s"),
        (
            "[link]\nkind = 'file'",
            "bus: no [bus] is given, and a link of kind 'file' carries no sensor messages; right "
            "would be: a section [bus] with the broker of the sensors",
        ),
        ("[link]\nkind = 'file'\ndirectory = '/none'\n[bus]", "link.directory: there is no folder"),
    ],
)
def test_what_does_not_fit_this_machine_is_named(
    file: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    assert check(file, text) == exits.USAGE
    assert said in capsys.readouterr().out


def test_all_problems_are_told_at_once_and_warnings_alone_pass(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f'state_dir = "{file.parent}"\n[trust]\nunsigned = "refuse"\n'
    assert check(file, text) == exits.DONE
    assert "warning: trust.keys" in capsys.readouterr().out
    assert check(file, text + "[link]\nca = '/none'\nkey = '/none'\n") == exits.USAGE
    told = capsys.readouterr().out
    assert "link.ca" in told
    assert "link.cert: is missing" in told
    assert "warning: trust.keys" in told


def test_a_state_folder_below_a_file_is_named(file: Path) -> None:
    file.write_text(f'state_dir = "{file}/state"\n')
    wrong = [problem.wrong for problem in problems(load_settings(file, {}))]
    assert wrong == [f"{file} is not a folder"]


def test_files_of_keys_are_sought_beside_the_configuration(file: Path) -> None:
    (file.parent / "release.pub").write_bytes(pem_of(KEY))
    (file.parent / "ca.pem").write_bytes(Issuer().pem)
    file.write_text(
        f'[trust]\nkeys = ["release.pub"]\nca = "ca.pem"\nsubject = "{SUBJECT}"\n'
        f'[link]\nurl = "mqtt://h"\n'
    )
    settings = load_settings(file, {})
    assert settings.trust.keys == (str(file.parent / "release.pub"),)
    assert not [found for found in problems(settings) if found.where.startswith("trust")]
    both = load_settings(file, {"EDGEWARD_TRUST_KEYS": "release.pub:/etc/other.pub"}).trust
    assert both.keys == (str(file.parent / "release.pub"), "/etc/other.pub")


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ('keys = ["none.pub"]', "trust.keys[0]", "none.pub: No such file"),
        ('keys = ["release.pub", "release"]', "trust.keys[1]", "this is a private key"),
        ('keys = ["ed25519.pub"]', "trust.keys[0]", "Ed25519PublicKey cannot sign packs"),
        ('keys = ["release.pub", "./release.pub"]', "trust.keys[1]", "same key as trust.keys[0]"),
        (
            f'keys = [{{ file = "release.pub", id = "{"0" * 64}" }}]',
            "trust.keys[0]",
            "settings say",
        ),
        ('ca = "ca.pem"', "trust.ca", "no subject is given"),
        ('subject = "CN=x"', "trust.ca", "subject stands without ca"),
        ('ca = "release.pub"\nsubject = "CN=x"', "trust.ca", "holds no certificate"),
    ],
)
def test_a_file_of_trust_that_cannot_be_used_is_named(
    file: Path, text: str, where: str, said: str
) -> None:
    edwards = Ed25519PrivateKey.generate()
    (file.parent / "release.pub").write_bytes(pem_of(KEY))
    (file.parent / "release").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    (file.parent / "ed25519.pub").write_bytes(pem_of(edwards))
    (file.parent / "ca.pem").write_bytes(Issuer().pem)
    file.write_text(f'[trust]\n{text}\n[link]\nurl = "mqtt://h"\n')
    found = [one for one in problems(load_settings(file, {})) if one.where.startswith("trust")]
    assert [one.where for one in found] == [where]
    assert said in found[0].wrong
    assert found[0].right


def test_the_environment_is_laid_over_the_file(file: Path) -> None:
    file.write_text('device_id = "a"\n')
    settings = load_settings(file, {"EDGEWARD_DEVICE_ID": "b", "EDGEWARD_LINK_KEEP_ALIVE_S": "60"})
    assert (settings.device_id, bus_of(settings).keep_alive_s) == ("b", 60)
    with pytest.raises(DocumentError, match="EDGEWARD_LINK_COLOUR"):
        load_settings(file, {"EDGEWARD_LINK_COLOUR": "1"})


def test_a_device_without_a_name_is_called_like_its_host(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "press 7/ä")
    file.write_text("")
    assert load_settings(file, {}).device_id == "press-7--"


def test_a_file_that_is_named_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no configuration file"):
        load_settings(tmp_path / "none.toml", {})
    monkeypatch.setattr(configuration, "DEFAULT_PATH", tmp_path / "none.toml")
    assert load_settings(None, {}).state_dir == "/var/lib/edgeward"
