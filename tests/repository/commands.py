"""Command lines in documentation, looked up without being run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# Ordinary programs that a page may tell a person to type; anything else is a slip of the pen.
ORDINARY = frozenset(
    word
    for line in (
        "apt-get base64 cat cd chmod cp curl cut df du echo git hostnamectl install journalctl jq",
        "ln ls mkdir mosquitto mosquitto_pub mosquitto_rr mosquitto_sub mv nano python3 rm scp sed",
        "ssh systemctl tail tar test useradd usermod",
    )
    for word in line.split()
)
_ENDS = {"&&", "||", ";", "|", "&"}
_VARIABLE = re.compile(r"^\w+=")


def command_lines(script: str) -> Iterator[list[str]]:
    """The simple commands of a script, each as its words, without `sudo -u USER` and variables."""
    whole = script.replace("\\\n", " ")
    for line in _without_heredocs(whole.splitlines()):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _ENDS:
                if command := _bare(words):
                    yield command
                words = []
            else:
                words.append(word)


def complaint(words: list[str]) -> str:
    """Say what is wrong with one command, or nothing."""
    program, arguments = words[0], words[1:]
    if program == "sh" and arguments:
        program, arguments = arguments[0], arguments[1:]
    if program == "edgeward" or program.endswith("/bin/edgeward"):
        return _edgeward(arguments)
    if program == "make":
        return _make(arguments)
    if program.endswith("install.sh"):
        return _unknown(arguments, _help(("sh", "systemd/install.sh", "--help")), "install.sh")
    if "/" in program:
        return _missing_file(program)
    known = program in ORDINARY
    return "" if known else f"{program}: neither ours nor among the ordinary programs"


def _edgeward(arguments: list[str]) -> str:
    if not arguments or arguments[0].startswith("-"):
        text = _help((sys.executable, "-m", "agent", "--help"))
        return _unknown(arguments, text, "edgeward")
    name = arguments[0]
    text = _help((sys.executable, "-m", "agent", name, "--help"))
    if not text:
        return f"edgeward has no command {name}"
    if "\nCommands:" in text and arguments[1:] and not arguments[1].startswith("-"):
        # A command of commands: the next word names the one that is meant.
        name, arguments = f"{name} {arguments[1]}", arguments[1:]
        text = _help((sys.executable, "-m", "agent", *name.split(), "--help"))
        if not text:
            return f"edgeward has no command {name}"
    return _unknown(arguments[1:], text, f"edgeward {name}")


def _make(arguments: list[str]) -> str:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    wanted = {word for word in arguments if re.fullmatch(r"[a-z-]+", word)}
    unknown = wanted - targets
    return f"make has no target {', '.join(sorted(unknown))}" if unknown else ""


def _unknown(arguments: list[str], help_text: str, program: str) -> str:
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", help_text)) | {"--help"}
    used = [word.split("=")[0] for word in arguments if re.match(r"--?[a-zA-Z]", word)]
    unknown = [word for word in used if word not in known]
    return f"{program} has no option {', '.join(unknown)}" if unknown else ""


def _missing_file(program: str) -> str:
    known = program.startswith(("/", ".venv/", "$")) or (REPOSITORY / program).exists()
    return "" if known else f"{program} is not in the repository"


@cache
def _help(command: tuple[str, ...]) -> str:
    """What a program says of itself; nothing where it does not know what is asked."""
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else ""


def _bare(words: list[str]) -> list[str]:
    while words and (words[0] in {"sudo", "env", "exec", "-u"} or _VARIABLE.match(words[0])):
        words = words[2:] if words[0] == "-u" else words[1:]
    return words


def _without_heredocs(lines: list[str]) -> Iterator[str]:
    end = ""
    for line in lines:
        if end:
            end = "" if line.strip() == end else end
            continue
        begins = re.search(r"<<-?\s*['\"]?(\w+)['\"]?", line)
        end = begins[1] if begins else ""
        yield line
