"""The ladder of isolation: which layers make which level, and what to do about a missing one."""

from __future__ import annotations

from collections.abc import Mapping

from agent.documents.report import Isolation, IsolationLevel
from agent.errors import IsolationUnavailable

LEVELS: tuple[IsolationLevel, ...] = ("none", "basic", "strong", "full")
_FOR_FULL = frozenset({"user", "net", "mnt", "pid", "ipc"})
_FOR_STRONG = frozenset({"user", "net"})

REMEDIES = {
    "user": "allow user namespaces (sysctl user.max_user_namespaces; on Ubuntu an AppArmor profile "
    "with `userns,` for the agent's interpreter; in a container its seccomp profile)",
    "uid": "let the agent change its user (in a container the capabilities SETUID and SETGID), and "
    "the number isolation.uid read the packs",
    "landlock": "add landlock to `lsm=` on the kernel's command line, or use a kernel that has it",
    "syscalls": "use a 64-bit kernel and interpreter with seccomp",
    "root": "allow mounts in user namespaces (Linux 5.12 or newer)",
    "cgroup_memory": "run the agent by its systemd unit, which delegates a control group, and "
    "enable the memory controller (`cgroup_enable=memory` on a Raspberry Pi)",
}


def level_of(layers: Mapping[str, str]) -> IsolationLevel:
    """Return the level that layers make, as `Isolation.layers` names them."""
    spaces = set(layers.get("namespaces", "").split())
    has_root, has_landlock = "root" in layers, "landlock" in layers
    if "network" not in layers:
        return "none"
    if "syscalls" not in layers or not spaces >= _FOR_STRONG or not (has_root or has_landlock):
        return "basic"
    # What the kernel counts for a process leaves room that a control group does not.
    if has_root and has_landlock and spaces >= _FOR_FULL and layers.get("memory") == "cgroup":
        return "full"
    return "strong"


def demand(require: str, isolation: Isolation) -> None:
    """Check that a worker is confined as far as the settings ask.

    Args:
        require: The level below which nothing may be served.
        isolation: What holds it.

    Raises:
        IsolationUnavailable: It is not; says what is missing and what helps.
    """
    if require in LEVELS[: LEVELS.index(isolation.level) + 1]:
        return
    missing = "; ".join(f"{layer}: {reason}" for layer, reason in isolation.missing.items())
    helps = [remedy for layer, remedy in REMEDIES.items() if layer in isolation.missing]
    raise IsolationUnavailable(
        f"the settings require isolation {require!r}, this machine gives a worker "
        f"{isolation.level!r}" + (f" (missing: {missing})" if missing else ""),
        hint="; ".join([*helps, "or lower isolation.require"]),
    )
