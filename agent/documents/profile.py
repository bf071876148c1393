"""A device profile: how to recognise a kind of device, what to prefer on it, and what is wrong with
it. One TOML file each, data and nothing else.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.documents.device import Device, Words
from agent.documents.names import Key, Natural, Positive, ShortText, Text

MAX_PROFILE_BYTES = 64 * 1024

# How many threads a candidate gets: so many, or as many as may be used, or half of those.
Threads = Annotated[int, msgspec.Meta(ge=1, le=256)] | Literal["all", "half"]


class Match(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a device must be. All that is given must hold; of the words in one list, one.

    Attributes:
        compatible: Of the device tree, whole entries.
        soc: The chip, as the device tree names it.
        model: What the board's model begins with.
        model_contains: What stands anywhere in the board's model, large and small letters alike.
        vendor: The board's vendor, as the firmware spells it.
        module: Of the board.
        architecture: Of user space.
        features: Of the processor; every one of them.
        cpu_model: What the processor's model contains.
        accelerators: Kinds that are there, ready or not; an add-on is recognised by its own.
        bus: What one of these accelerators sits on.
        family: Of a Jetson.
    """

    compatible: Words = ()
    soc: Words = ()
    model: Words = ()
    model_contains: Words = ()
    vendor: Words = ()
    module: Words = ()
    architecture: Words = ()
    features: Words = ()
    cpu_model: Words = ()
    accelerators: Words = ()
    bus: Words = ()
    family: Words = ()


class Preference(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One way to run a model that is worth measuring here.

    Attributes:
        runtime: The adapter.
        provider: What it shall compute on; nothing: its CPU kernels.
        threads: How many, one candidate each.
        options: For the provider, by its own names.
        because: Why, for people.
    """

    runtime: ShortText
    provider: ShortText = ""
    threads: Annotated[tuple[Threads, ...], msgspec.Meta(max_length=4)] = (1,)
    options: Annotated[dict[ShortText, ShortText], msgspec.Meta(max_length=32)] = {}
    because: Text = ""


class ProfileLimits(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What this kind of device can stand.

    Attributes:
        measure_s: Seconds that measuring the candidates of one pack may take.
        worker_memory_mb: Most private writable memory of one worker; nothing: the settings'.
        hot_c: From this temperature on the device counts as hot.
        threads: For all slots together; nothing: as many as may be used.
    """

    measure_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    worker_memory_mb: Positive | None = None
    hot_c: Annotated[float, msgspec.Meta(ge=20, le=150)] = 80.0
    threads: Positive | None = None


class Condition(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """When a fault concerns a device. All that is given must hold; nothing given: always.

    Attributes:
        accelerators: One of these kinds is there.
        bus: It sits on this bus.
        not_ready: It is not ready.
        page_bytes_not: Memory pages have another size.
        architecture: Of user space, one of these.
        kernel_architecture: Of the kernel, one of these.
        kernel_from: The kernel's version or a newer one, such as `6.12`.
        python_from: The interpreter's version or a newer one.
        python_below: An older one than this.
        runtime: This runtime is not usable.
        l4t: What L4T's version begins with.
        storage: The state directory lies on one of these kinds.
        memory_not_limited: The kernel's memory controller is absent.
    """

    accelerators: Words = ()
    bus: ShortText = ""
    not_ready: bool = False
    page_bytes_not: Natural | None = None
    architecture: Words = ()
    kernel_architecture: Words = ()
    kernel_from: ShortText = ""
    python_from: ShortText = ""
    python_below: ShortText = ""
    runtime: ShortText = ""
    l4t: Words = ()
    storage: Words = ()
    memory_not_limited: bool = False


class Fault(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Something that is known to go wrong on this kind of device.

    Attributes:
        id: A short name.
        says: What goes wrong, in a sentence.
        do: What to do about it.
        link: Where more stands.
        when: Whom it concerns.
    """

    id: Key
    says: Text
    do: Text
    link: Text = ""
    when: Condition = Condition()


class Profile(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One kind of device.

    Attributes:
        schema: The version of this format.
        name: As reports call it.
        title: As people call it.
        kind: `board`: at most one holds, the most specific. `addon`: it comes on top, such as an
            accelerator in a USB port.
        basis: What the profile rests on: `facts`: public documentation; `recorded`: a recording
            of a real device (`edgeward detect --record`).
        match: How it is recognised.
        prefer: What is worth measuring, the likeliest first. An add-on's come before its board's.
        limits: What it can stand.
        faults: What is known to go wrong.
        typical: The device as it usually comes, for planning without one at hand. An add-on's is
            only what it adds: its accelerators and runtimes.
        notes: What else a person should know.
    """

    schema: Literal[1]
    name: Key
    title: ShortText
    match: Match
    kind: Literal["board", "addon"] = "board"
    basis: Literal["facts", "recorded"] = "facts"
    prefer: Annotated[tuple[Preference, ...], msgspec.Meta(max_length=16)] = ()
    limits: ProfileLimits = ProfileLimits()
    faults: Annotated[tuple[Fault, ...], msgspec.Meta(max_length=32)] = ()
    typical: Device | None = None
    notes: Text = ""
