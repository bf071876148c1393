"""`edgeward keygen`, `sign` and `verify`: who vouches for a pack."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from agent.author.inspect import signed_by
from agent.cli import exits, options
from agent.cli.commands import HELP_SETTINGS
from agent.errors import UsageError

_PATH = click.Path(path_type=Path)


@click.command(
    context_settings=HELP_SETTINGS,
    epilog="\b\nExamples:\n"
    "  edgeward keygen --out release\n"
    "  edgeward keygen --out release --password-file secret.txt --json\n\n"
    + exits.epilog(exits.DONE, exits.USAGE),
)
@click.option("--out", type=_PATH, required=True, help="NAME: makes NAME and NAME.pub.")
@click.option(
    "--curve",
    type=click.Choice(["P-256", "P-384", "P-521"]),
    default="P-256",
    show_default=True,
    help="The elliptic curve.",
)
@options.key_password_file
@options.as_json
def keygen(out: Path, curve: str, password_file: Path | None, as_json: bool) -> int:
    """Make a pair of keys: NAME signs packs and stays with you, NAME.pub goes onto devices."""
    from agent.author import sign as author

    password = author.read_password(password_file)
    made = author.make_key(out, password=password, curve=curve)
    if as_json:
        _json(made)
        return exits.DONE
    print(f"{made.private}: the private key; keep it, and give it to nobody")
    print(f'{made.public}: the public key, for devices: [trust] keys = ["{made.public.name}"]')
    print(made.id)
    return exits.DONE


@click.command(
    context_settings=HELP_SETTINGS,
    epilog="\b\nExamples:\n"
    "  edgeward sign build/vibration --key release\n"
    "  edgeward sign build/vibration --key release --certificate release.pem\n\n"
    + exits.epilog(exits.DONE, exits.USAGE, exits.BAD_PACK),
)
@click.argument("directory", type=_PATH)
@click.option("--key", type=_PATH, required=True, help="The private key.")
@options.key_password_file
@click.option(
    "--certificate",
    type=_PATH,
    help="The key's certificate, PEM, for devices that trust an authority.",
)
@click.option("--out", type=_PATH, help="Default: model.sig in DIRECTORY.")
@options.as_json
def sign(
    directory: Path,
    key: Path,
    password_file: Path | None,
    certificate: Path | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Sign the pack in DIRECTORY: every file, in the form of OpenSSF Model Signing."""
    from agent.author import sign as author

    signed = author.sign_pack(
        directory,
        author.read_key(key, author.read_password(password_file)),
        certificates=author.read_certificates(certificate) if certificate else (),
        out=out,
    )
    if as_json:
        _json(signed)
        return exits.DONE
    print(f"{signed.signature}: {signed.files} files, {signed_by(signed.key_id, signed.subject)}")
    print(signed.pack)
    return exits.DONE


@click.command(
    context_settings=HELP_SETTINGS,
    epilog="\b\nExamples:\n"
    "  edgeward verify build/vibration --key release.pub\n"
    '  edgeward verify build/vibration --ca ca.pem --subject "CN=Model release,O=Example"\n\n'
    + exits.epilog(exits.DONE, exits.USAGE, exits.BAD_PACK),
)
@click.argument("directory", type=_PATH)
@click.option("--key", "keys", type=_PATH, multiple=True, help="A public key. Can be repeated.")
@click.option("--ca", type=_PATH, help="Certificates of the authority that issued the signer's.")
@click.option("--subject", default="", help="The signer's subject, with --ca.")
@click.option("--signature", type=_PATH, help="Default: model.sig in DIRECTORY.")
@options.as_json
def verify(
    directory: Path,
    keys: tuple[Path, ...],
    ca: Path | None,
    subject: str,
    signature: Path | None,
    as_json: bool,
) -> int:
    """Verify that the pack in DIRECTORY is signed by one of these keys, or by this subject.

    Every file must be there as it was signed, and nothing else: no link, no other file.
    """
    from agent.author.sign import verify_pack
    from agent.documents.settings import Trust
    from agent.store.trust_files import read_trust

    if not keys and ca is None:
        raise UsageError("nobody is named whose signature counts", hint="give --key or --ca")
    trust = Trust(keys=tuple(map(str, keys)), ca=str(ca) if ca else "", subject=subject)
    verified = verify_pack(directory, read_trust(trust), signature=signature)
    signed, wrong = verified.signed, verified.wrong
    if as_json:
        _json(
            {
                "pack": signed.pack,
                "key_id": signed.key_id,
                "subject": signed.subject,
                "files": len(signed.files),
                "verified": not wrong,
                "wrong": wrong,
            }
        )
    elif not wrong:
        print(f"verified: {len(signed.files)} files, {signed_by(signed.key_id, signed.subject)}")
        print(signed.pack)
    for sentence in wrong:
        print(f"edgeward: {directory}: {sentence}", file=sys.stderr)
    return exits.BAD_PACK if wrong else exits.DONE


def _json(document: object) -> None:
    sys.stdout.write(msgspec.json.encode(document, enc_hook=str).decode() + "\n")
