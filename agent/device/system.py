"""The operating system, and the container around the agent where there is one."""

from __future__ import annotations

import re

from agent.device.machine import Machine
from agent.device.tree import Tree, short
from agent.documents.device import System

_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
# Whose files or cgroups show a container → its name.
_MARKS = {"/.dockerenv": "docker", "/run/.containerenv": "podman"}
_GROUPS = {
    "kubepods": "kubernetes",
    "docker": "docker",
    "libpod": "podman",
    "lxc": "lxc",
    "containerd": "containerd",
}


def probe(tree: Tree, machine: Machine) -> System:
    """Say which operating system it is."""
    return System(
        architecture=machine.architecture,
        kernel_architecture=machine.kernel_architecture,
        kernel=machine.kernel or tree.line("/proc/sys/kernel/osrelease"),
        os=_os(tree),
        libc=machine.libc,
        python=machine.python,
        page_bytes=machine.page_bytes,
        container=_container(tree),
    )


def _os(tree: Tree) -> str:
    for path in _OS_RELEASE:
        text = tree.text(path)
        names = [_assigned(text, name) for name in ("ID", "VERSION_ID")]
        if any(names):
            return short(" ".join(filter(None, names)))
    return ""


def _assigned(text: str, name: str) -> str:
    """A value as os-release(5) writes it."""
    found = re.search(rf"^{name}=(.{{0,200}})$", text, re.MULTILINE)
    return found[1].strip().strip("\"'") if found else ""


def _container(tree: Tree) -> str:
    # systemd-nspawn and Podman write their name here.
    named = tree.line("/run/systemd/container")
    if named:
        return named
    for path, name in _MARKS.items():
        if tree.has(path):
            return name
    groups = tree.text("/proc/self/cgroup")
    return next((name for mark, name in _GROUPS.items() if mark in groups), "")
