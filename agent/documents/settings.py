"""The agent's own configuration: one TOML file, every key also as EDGEWARD_SECTION_KEY."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from agent.documents.codec import convert
from agent.documents.names import Natural, Positive
from agent.documents.report import WORKER_UID
from agent.errors import DocumentError, UsageError

DeviceId = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9_:.-]{1,128}$",
        extra={"words": "1 to 128 letters, digits and `_:.-`"},
    ),
]
MqttUrl = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(mqtt|mqtts|ws|wss)://[^/\s]+(/\S*)?$",
        extra={"words": "`mqtt://`, `mqtts://`, `ws://` or `wss://`, host, port"},
    ),
]

KeyId = Annotated[
    str,
    msgspec.Meta(pattern=r"^([0-9a-f]{64})?$", extra={"words": "64 hex digits"}),
]


class LinkSettings(msgspec.Struct, frozen=True):
    """What stands in `[link]`; each kind adds keys of its own.

    Attributes:
        kind: What is at the other end.
    """

    kind: str = "mqtt"


class Connection(LinkSettings, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One MQTT connection. Secrets are named by the path of the file that holds them.

    Attributes:
        url: The broker. Ports, where none is given: 1883, 8883, 80 and 443. `ws` and `wss` need
            the extra `websocket`; their path is `/mqtt` where none is given.
        version: Of MQTT; `auto` tries 5, then 3.1.1 where the broker does not know 5.
        client_id: Unique on the broker. Nothing: `edgeward-` and the device's id. Each slot's
            bus puts `-bus-` and the slot's name behind either.
        username: For a broker that asks for it.
        password_file: A file that holds only the password, read at each attempt to connect.
        ca: Certificates to trust in place of the system's; PEM.
        cert: Our own certificate, for mutual TLS; PEM.
        key: Its private key; PEM.
        keep_alive_s: Longest silence before the broker counts us as gone.
        prefix: The agent's own topics stand below it; `{device_id}` is replaced. Of the link only.
        proxy: `http://host:port` of a proxy that knows CONNECT; none from the environment is used.
    """

    kind: Literal["mqtt"] = "mqtt"
    url: MqttUrl = "mqtt://127.0.0.1:1883"
    version: Literal["auto", "5", "3.1.1"] = "auto"
    client_id: str = ""
    username: str = ""
    password_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    keep_alive_s: Annotated[int, msgspec.Meta(ge=5, le=65535)] = 30
    prefix: str = "edgeward/{device_id}/"
    proxy: str = ""


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key whose signatures count, with what is known of it.

    Attributes:
        file: Its file; PEM.
        id: Its id, so that an exchanged file is noticed: 64 hex digits, as `edgeward keygen` says.
        not_before: The first day, in UTC, on which new packs signed by it are taken.
        not_after: The last such day. What serves goes on serving.
    """

    file: str
    id: KeyId = ""
    not_before: dt.date | None = None
    not_after: dt.date | None = None


class Trust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose packs are served.

    Attributes:
        keys: Public keys whose signatures count: files (in the environment with `:` between them),
            or tables of `file`, `id`, `not_before` and `not_after`. Relative paths begin at the
            folder of the configuration file.
        ca: Certificates of the authority whose signers' signatures count as well; PEM.
        subject: The one signer: the subject of its certificate as `CN=Model release,O=Example`.
        unsigned: What becomes of a new pack that none of those has signed. `refuse`: it does not
            serve. `allow`: its digests are checked and no more, and the report says so. A bad
            signature by one of them is refused in any case.
    """

    keys: tuple[str | KeyFile, ...] = ()
    ca: str = ""
    subject: str = ""
    unsigned: Literal["allow", "refuse"] = "allow"


class Isolation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a worker must be confined.

    Attributes:
        require: Below this nothing is served; what can be had is always used. `full`: namespaces, a
            private root, Landlock, a filter of system calls, memory limited by a control group.
            `strong`: without Landlock or without the private root, memory limited by the process's
            own limit. `basic`: no network, no new privileges, limits of memory and files. `none`:
            the limits only.
        uid: Number of the user, and group, that a worker becomes where the agent is root and there
            are no user namespaces. It must be nobody else's.
    """

    require: Literal["full", "strong", "basic", "none"] = "basic"
    uid: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = WORKER_UID


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the device the agent may take.

    Attributes:
        store_mb: Most that packs may take on disk.
        spool_mb: Most that telemetry, events and dead letters may take on disk.
        worker_memory_mb: Most private writable memory of one worker.
        worker_deadline_s: Longest time for one message in a worker, which is then replaced.
        probe_deadline_s: Longest time for loading a pack, and for qualifying it.
        compiled_mb: Most that models which runtimes compiled on this device may take on disk; 0:
            nothing is compiled ahead.
        compile_deadline_s: Longest time for compiling one.
        accelerator_retry_s: How long after an accelerator failed it is tried again; twice as long
            each time it fails anew, up to ten minutes.
    """

    store_mb: Positive = 2048
    spool_mb: Positive = 64
    worker_memory_mb: Annotated[int, msgspec.Meta(ge=64)] = 512
    worker_deadline_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    probe_deadline_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    compiled_mb: Natural = 512
    compile_deadline_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 1800.0
    accelerator_retry_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 5.0


_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]"
Window = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^({_TIME}-{_TIME})?$", extra={"words": "a time of day like `01:00-05:00`"}
    ),
]

Proxy = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(none|https?://[^/\s]+/?)?$", extra={"words": "`http://host:port`, or `none`"}
    ),
]


class FetchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where packs may come from, when, and how fast; docs/delivery.md has the whole of it.

    Attributes:
        roots: Folders below which `file:` sources may lie; none: no such source is taken. In the
            environment with `:` between them.
        max_kib_s: Most that all fetches over HTTP(S) take together; 0: no limit.
        window: When packs may come over a network, by local time, over midnight too. Nothing: at
            any time, as while the clock is unset.
        metered: What becomes of fetches over a network while the topic `metered` says `true`.
            `slow`: at most 32 KiB a second over HTTP(S).
        connections: Most that one file above 32 MiB is fetched by at once; more than 1 helps where
            a server is slow for each of them.
        proxy: `http://host:port` for HTTP(S), or `none`. Nothing: as `http_proxy`, `https_proxy`
            and `no_proxy` in the environment say.
    """

    roots: tuple[str, ...] = ()
    max_kib_s: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    window: Window = ""
    metered: Literal["refuse", "slow", "allow"] = "allow"
    connections: Annotated[int, msgspec.Meta(ge=1, le=4)] = 1
    proxy: Proxy = ""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The agent's own configuration. Every key may be left out.

    Attributes:
        device_id: The name under which consoles know the device. Nothing: the host's name.
        state_dir: The folder for all that survives a restart. One agent at a time may use it.
        socket: The local socket. Nothing: `agent.sock` in `$RUNTIME_DIRECTORY`, else in
            `state_dir`.
        log_level: What goes to standard error and to `log/agent.log` in `state_dir`.
        link: Where deployments come from and reports go to.
        bus: Where sensor messages come from and predictions go to, with a connection for each slot.
            Nothing: the link's broker.
        trust: Whose packs are served.
        isolation: How far a worker must be confined.
        limits: How much of the device the agent may take.
        fetch: Where packs may come from, when, and how fast.
    """

    device_id: DeviceId = ""
    state_dir: str = "/var/lib/edgeward"
    socket: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    link: LinkSettings = Connection()
    bus: Connection | None = None
    trust: Trust = Trust()
    isolation: Isolation = Isolation()
    limits: LimitSettings = LimitSettings()
    fetch: FetchSettings = FetchSettings()


# A kind of link and the path of its name → what stands in `[link]` for it; raises `DocumentError`.
Kinds = Callable[[object, str], type[LinkSettings]]


def settings_from(
    raw: Mapping[str, Any], environment: Mapping[str, str], *, name: str, kinds: Kinds | None = None
) -> Settings:
    """Check a parsed TOML file, with the environment laid over it.

    Args:
        raw: What the TOML parser returned.
        environment: `EDGEWARD_LIMITS_STORE_MB=512` overrides `[limits] store_mb`.
        name: The file's name, for errors.
        kinds: Asked for kinds of link other than the default's; None: there are none.

    Raises:
        DocumentError: A key is unknown or its value does not fit; says which and what would.
    """
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
    link = _link_settings(merged, environment, f"{name}.link.kind", kinds)
    for variable, text in sorted(environment.items()):
        if variable.startswith("EDGEWARD_"):
            _lay_over(merged, variable, text, link)
    section = merged.pop("link", {})
    _refuse_unknown(merged, Settings, name)
    if isinstance(section, Mapping):
        _refuse_unknown(section, link, f"{name}.link")
    checked = convert(section, link, name=f"{name}.link").value
    return msgspec.structs.replace(convert(merged, Settings, name=name).value, link=checked)


def _link_settings(
    merged: Mapping[str, Any], environment: Mapping[str, str], where: str, kinds: Kinds | None
) -> type[LinkSettings]:
    section, default = merged.get("link"), Settings().link
    named = section.get("kind", default.kind) if isinstance(section, Mapping) else default.kind
    kind = environment.get("EDGEWARD_LINK_KIND", named)
    if kind == default.kind:
        return type(default)
    if kinds is None:
        raise DocumentError(where, default.kind, repr(kind))
    return kinds(kind, where)


def _lay_over(merged: dict[str, Any], variable: str, text: str, link: type[msgspec.Struct]) -> None:
    words = variable.removeprefix("EDGEWARD_").lower()
    for section, fields in _sections(link).items():
        key = words.removeprefix(f"{section}_") if section else words
        if key in fields and (not section or words.startswith(f"{section}_")):
            target = merged.setdefault(section, {}) if section else merged
            target[key] = _parse(text, fields[key])
            return
    raise DocumentError(f"environment variable {variable}", "the name of a setting", "no such key")


def _sections(link: type[msgspec.Struct]) -> dict[str, dict[str, Any]]:
    """Settings by section; the keys outside any section come last, under the empty name."""
    top = {f.name: f.type for f in msgspec.structs.fields(Settings)}
    structs = {name: _struct_in(kind) for name, kind in top.items()} | {"link": link}
    inner = {
        name: {f.name: f.type for f in msgspec.structs.fields(kind)}
        for name, kind in structs.items()
        if kind is not None
    }
    return {**inner, "": {name: top[name] for name, kind in structs.items() if kind is None}}


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    options = get_args(kind) if get_origin(kind) is Union or get_args(kind) else (kind,)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _parse(text: str, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        return [part for part in text.split(":") if part]
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        return text  # the check of the whole names the key and what it expects


def _refuse_unknown(raw: Mapping[str, Any], kind: type[msgspec.Struct], name: str) -> None:
    known = {f.encode_name: f.type for f in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key not in known:
            raise DocumentError(
                f"{name}.{key}", f"one of {', '.join(sorted(known))}", f"unknown key {key!r}"
            )
        inner = _struct_in(known[key])
        if inner is not None and isinstance(value, Mapping):
            _refuse_unknown(value, inner, f"{name}.{key}")


_PLACEHOLDER = re.compile(r"\{device_id\}")


def _prefix(settings: Settings) -> str:
    # Also where the link has no topics: other agents may have theirs on the bus's broker.
    link = settings.link
    return link.prefix if isinstance(link, Connection) else Connection().prefix


def prefix_of(settings: Settings) -> str:
    """The topic prefix of this device, ending in a slash."""
    prefix = _PLACEHOLDER.sub(settings.device_id, _prefix(settings))
    return prefix if prefix.endswith("/") else prefix + "/"


def shared_prefix_of(settings: Settings) -> str:
    """What the topics of all agents begin with: the prefix up to where it names the device."""
    return _prefix(settings).partition("{device_id}")[0] or prefix_of(settings)


def bus_of(settings: Settings) -> Connection:
    """Where sensor messages come from and predictions go to.

    Raises:
        UsageError: Nothing says so, and the link is no broker.
    """
    if settings.bus is not None:
        return settings.bus
    if isinstance(settings.link, Connection):
        return settings.link
    raise UsageError(
        f"no [bus] is given, and a link of kind {settings.link.kind!r} carries no sensor messages",
        hint='a section [bus] with the broker of the sensors, such as url = "mqtt://127.0.0.1"',
    )
