"""Takes from a worker what it does not need, before it reads the first byte of a model.

Everything here happens while the process has one thread: a namespace, a Landlock domain or a filter
of this kind covers the calling thread and those that it starts. The order is the one in which each
step can still be made: namespaces, private root, Landlock, system calls.

A process that gets only half-way is of no use: it ends, and its template forks another one without
the layer that failed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

import msgspec
from msgspec.structs import replace

from agent.documents.report import WORKER_UID, Isolation
from agent.errors import IsolationUnavailable
from agent.worker import identity, kernel, landlock, namespaces, root, seccomp
from agent.worker.ladder import level_of
from agent.worker.policies import POLICIES, STAND_ALLOW_LIST, STRICT, Policy
from agent.worker.view import View

OOM_SCORE_ADJ = 500
OPEN_FILES = 64
# Threads; the kernel counts them for each user namespace since 5.14, before that for each user.
PROCESSES = 256
# Of the processor, until a model is loaded: a backstop behind the deadlines of who waits for it.
LOAD_CPU_S = 900
# The same for one that compiles, and the largest file that it may write.
COMPILE_CPU_S, COMPILED_FILE_BYTES = 7200, 1 << 30
# Behind everything else for the processor, and only when nobody else uses the disk
# (IOPRIO_CLASS_IDLE of ioprio_set(2)).
_NICE, _WHO_PROCESS, _IDLE_CLASS = 19, 1, 3 << 13
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "armv7l": 314}
LAST_WORDS_BYTES = 8 * 1024 * 1024
# What can be left out where it cannot be had. Without `user` none of the others of OWN.
LAYERS = (*namespaces.FLAGS, "root", identity.LAYER, "landlock", "syscalls", "allow_list")


class Plan(msgspec.Struct, frozen=True):
    """Which layers a worker is to have.

    Attributes:
        layers: Of `LAYERS`.
        missing: Why it is to have no other.
        user: Number of the user and group that it becomes where it would be root.
    """

    layers: frozenset[str] = frozenset(LAYERS)
    missing: dict[str, str] = msgspec.field(default_factory=dict)
    user: int = WORKER_UID

    def without(self, layer: str, reason: str) -> Plan:
        """Return the plan for who cannot have a layer, nor those that build on it."""
        gone = {layer}
        gone |= {*namespaces.FLAGS, "root"} if layer == "user" else set()
        gone |= {"root"} if layer == "mnt" else set()
        gone |= {"allow_list"} if layer == "syscalls" else set()
        return replace(self, layers=self.layers - gone, missing={**self.missing, layer: reason})

    @property
    def leaves_root(self) -> bool:
        """Whether a worker becomes another user: in a user namespace it needs none."""
        return identity.LAYER in self.layers and "user" not in self.layers and os.geteuid() == 0

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that a worker enters itself."""
        return [name for name in namespaces.OWN if name in self.layers]


class Held(msgspec.Struct):
    """What holds this process, and what does not; see `agent.documents.report.Isolation`."""

    policy: str
    layers: dict[str, str]
    missing: dict[str, str]
    allow_list: bool = False

    def report(self) -> Isolation:
        """Return it as the document says it."""
        layers = dict(self.layers)
        return Isolation(level_of(layers), self.policy, layers, dict(self.missing))


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the kernel was asked. One that is outside of this process
    # namespace has no number in it; then the namespace ends with it.
    if os.getppid() not in (parent, 0):
        os._exit(0)


def thread_count() -> int:
    """Return how many threads this process has, native ones included."""
    return len(list(Path("/proc/self/task").iterdir()))


def close_all_but(kept: set[int]) -> None:
    """Close every inherited descriptor that is not in `kept`."""
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor not in kept:
            # The one that listed the folder is closed already.
            with contextlib.suppress(OSError):
                os.close(descriptor)


def confine(plan: Plan, view: View, policy_name: str = STRICT) -> Held:
    """Give up the network, other processes, files, writing and privileges.

    Args:
        plan: What this machine was seen to give.
        view: What of its files the worker needs, its pack included.
        policy_name: One of `POLICIES`.

    Raises:
        LayerUnavailable: A layer of the plan cannot be had after all. End the process.
    """
    policy = POLICIES[policy_name]
    held = Held(policy_name, {}, dict(plan.missing))
    be_the_first_to_go()
    _stand_back(policy)
    os.umask(0o077)
    for step in _STEPS:
        step(plan, view, policy, held)
    return held


def check_compiles(held: Held) -> None:
    """Refuse to write files in a process that could write anywhere.

    Raises:
        IsolationUnavailable: Neither layer that confines writing to one folder holds.
    """
    if POLICIES[held.policy].compiles and not held.layers.keys() & {"root", "landlock"}:
        raise IsolationUnavailable(
            "nothing confines what a model's compiler writes to one folder: there is neither a "
            "private root nor Landlock",
            hint="docs/isolation.md says what brings them; without them nothing is compiled ahead",
        )


def join_group(descriptors: list[int]) -> str:
    """Enter the control group that limits this process; return why there is none.

    Args:
        descriptors: Nothing, or an open `cgroup.procs`, which is closed.
    """
    if not descriptors:
        return "no control group was delegated to the agent"
    try:
        os.write(descriptors[0], b"0")
    except OSError as error:
        return f"cgroup.procs: {error.strerror}"
    finally:
        os.close(descriptors[0])
    return ""


def narrow(held: Held, runtime: str) -> None:
    """Once the model is loaded, let this process call only what running it is known to take.

    Raises:
        LayerUnavailable: There is no filter.
    """
    if not held.allow_list:
        return
    if runtime not in STAND_ALLOW_LIST:
        held.missing["allow_list"] = f"not known to be enough for the runtime {runtime}"
        return
    seccomp.allow_only_known()
    held.layers["syscalls"] = "allow-list"


def limit_memory(megabytes: int) -> str:
    """Limit private writable memory; return what holds the limit.

    Not the address space: mapped models, arenas and thread stacks reserve far more of it than they
    use.
    """
    size = megabytes * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (size, size + LAST_WORDS_BYTES))
    return "rlimit_data"


def allow_last_words() -> None:
    """Give a process that ran into its limit the little memory that it takes to say so."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def limit_cpu(held: Held) -> None:
    """Have the kernel end this process (SIGXCPU) should a load never end."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = COMPILE_CPU_S if POLICIES[held.policy].compiles else LOAD_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


def allow_cpu() -> None:
    """Lift that limit: serving goes on for ever, and each message has its own deadline."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def be_the_first_to_go() -> None:
    """Let the kernel, when memory runs out, take this process before any other."""
    # Before the process stops being dumpable: after that the file belongs to root.
    score = Path("/proc/self/oom_score_adj")
    try:
        if int(score.read_text()) < OOM_SCORE_ADJ:
            score.write_text(str(OOM_SCORE_ADJ))
    except OSError:
        return


def _limit(plan: Plan, view: View, policy: Policy, held: Held) -> None:
    # Within the new user namespace, where no other process counts.
    limits = {
        resource.RLIMIT_FSIZE: COMPILED_FILE_BYTES if policy.compiles else 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
    }
    if "user" in plan.layers and _kernel_release() >= (5, 14):
        limits[resource.RLIMIT_NPROC] = PROCESSES
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _kernel_release() -> tuple[int, ...]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor[:3])) or 0)


def _enter_namespaces(plan: Plan, view: View, policy: Policy, held: Held) -> None:
    if plan.namespaces:
        namespaces.enter(plan.namespaces)
        names = [name for name in namespaces.FLAGS if name in plan.layers]
        held.layers["namespaces"] = " ".join(names)
    if "net" in plan.layers:
        held.layers["network"] = "namespace"


def _enter_root(plan: Plan, view: View, policy: Policy, held: Held) -> None:
    if "root" in plan.layers:
        root.enter(view.binds, view.links)
        held.layers["root"] = "private"


def _leave_root(plan: Plan, view: View, policy: Policy, held: Held) -> None:
    if not plan.leaves_root:
        return
    if policy.devices or policy.compiles:
        held.missing[identity.LAYER] = "what the policy opens may be root's"
        return
    identity.leave_root(plan.user, view.readable())
    held.layers[identity.LAYER] = str(plan.user)


def _give_up_rights(plan: Plan, view: View, policy: Policy, held: Held) -> None:
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    # A change of rights can take it back.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


def _use_landlock(plan: Plan, view: View, policy: Policy, held: Held) -> None:
    if "landlock" in plan.layers:
        # The host's /proc changes under a rule for a part of it; secrets in it have other guards.
        extra = [] if "root" in plan.layers else ["/proc"]
        version = landlock.restrict([*view.readable(), *extra], view.devices(), view.filled())
        held.layers["landlock"] = f"ABI {version}"


def _stand_back(policy: Policy) -> None:
    """Let everybody else go first. Threads that are started later do so too."""
    if not policy.compiles:
        return
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with contextlib.suppress(OSError, KeyError):
        number = _IOPRIO_SET[kernel.machine()]
        kernel.syscall(number, "ioprio_set", _WHO_PROCESS, 0, _IDLE_CLASS)


def _deny(plan: Plan, view: View, policy: Policy, held: Held) -> None:
    if "syscalls" in plan.layers:
        seccomp.deny(policy.calls)
        held.layers["syscalls"] = "deny-list"
        held.layers.setdefault("network", "syscalls")
        held.allow_list = policy.allow_list and "allow_list" in plan.layers


# In the order in which each can still be made.
_STEPS = (
    *(_enter_namespaces, _enter_root, _limit, _leave_root),
    *(_give_up_rights, _use_landlock, _deny),
)
