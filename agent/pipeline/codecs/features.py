"""A sensor's own JSON: one object of features, one array of them, or an array of either.

    {"id": "r-17", "temperature": 71.2, "vibration": 0.031}      [71.2, 0.031]

Fields that are no features are skipped. `id` (text or a whole number) and, where the slot allows
it, `reply_to` are taken from an object unless they are features themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from agent.errors import BadInput
from agent.pipeline.codecs.api import Codec, Decode, DecoderContext, payload_bound
from agent.pipeline.codecs.json_text import (
    JSON_ERRORS,
    element_type,
    explain,
    find_id,
    leading_id,
)
from agent.pipeline.codecs.rows import RowPlan, plan_rows
from agent.pipeline.message import (
    MAX_ID_CHARACTERS,
    Decoded,
    RejectedMessage,
    check_id,
    check_reply_to,
)
from agent.pipeline.tensors import FLOAT_MAX

# A number, its name as long as a manifest allows, and room for fields that are skipped.
BYTES_PER_ELEMENT = 512
_FORMS = {
    b"{": "an object of features",
    b"[": "an array of features",
    b"[[": "an array of arrays",
    b"[{": "an array of objects",
}


class Options(msgspec.Struct, frozen=True):
    """`fields`: the features of the one input in order; default: the inputs' own names."""

    fields: Annotated[tuple[str, ...], msgspec.Meta(max_length=65536)] = ()


def compile_decoder(options: Options, context: DecoderContext) -> Decode:
    """Return what reads one payload."""
    plan = plan_rows(context.inputs, options.fields, path=context.path)
    decoders = _decoders(plan, context)
    width = len(plan.names)
    finish = _compile_finish(plan, context)
    bound = payload_bound(context.inputs, BYTES_PER_ELEMENT)

    def decode(payload: bytes | memoryview) -> Decoded:
        if len(payload) > bound:
            raise RejectedMessage(
                f"payload: expected at most {bound} bytes, got {len(payload)}",
                id=leading_id(payload),
            )
        form = _form(payload)
        decoder = decoders.get(form)
        if decoder is None:
            raise BadInput(f"payload: expected {' or '.join(_FORMS[form] for form in decoders)}")
        try:
            found = decoder.decode(payload)
        except JSON_ERRORS as error:
            raise RejectedMessage(explain(error), id=find_id(payload)) from None
        if form == b"{":
            return finish(found)
        if context.time_field:
            raise BadInput(f"payload: expected an object with a field {context.time_field!r}")
        if form == b"[":
            found = [found]
        elif form == b"[{":
            found = [msgspec.structs.astuple(row)[:width] for row in found]
        return Decoded(plan.assemble(found))

    return decode


def _form(payload: bytes | memoryview) -> bytes:
    """Return the brackets that a payload starts with, two where they tell rows from values."""
    start = bytes(payload[:64]).lstrip()
    if start[:1] != b"[":
        return start[:1]
    inner = start[1:].lstrip()[:1]
    return b"[" + inner if inner in (b"[", b"{") else b"["


def _decoders(plan: RowPlan, context: DecoderContext) -> dict[bytes, msgspec.json.Decoder[Any]]:
    if plan.names and len({tensor.name for tensor in plan.fields}) > 1:
        row: Any = tuple[tuple(element_type(tensor) for tensor in plan.fields)]  # type: ignore[misc]
    else:
        row = list[element_type(plan.fields[0])]  # type: ignore[misc]
    kinds: dict[bytes, Any] = {b"[": row, b"[[": list[row]}
    if plan.names:
        item = _object_type(plan, context)
        kinds = {b"{": item, **kinds, b"[{": list[item]}  # type: ignore[valid-type]
    return {form: msgspec.json.Decoder(kind) for form, kind in kinds.items()}


def _object_type(plan: RowPlan, context: DecoderContext) -> type[msgspec.Struct]:
    """Return the type of an object: the features first, then what else is read of it."""
    fields: list[Any] = []
    names: dict[str, str] = {}
    for index, (name, tensor) in enumerate(zip(plan.names, plan.fields, strict=True)):
        optional = (None,) if tensor.datatype in FLOAT_MAX and tensor.allow_nan else ()
        fields.append((f"f{index}", element_type(tensor), *optional))
        names[f"f{index}"] = name
    extras: list[tuple[str, str, Any]] = [("id", "message_id", str | int | None)]
    if context.reply_to:
        extras.append(("reply_to", "reply_to", str | None))
    if context.time_field:
        extras.append((context.time_field, "time_ms", float | None))
    for name, attribute, kind in extras:
        if name not in plan.names:
            fields.append((attribute, kind, None))
            names[attribute] = name
    return msgspec.defstruct("Features", fields, rename=names, kw_only=True, gc=False)


def _compile_finish(plan: RowPlan, context: DecoderContext) -> Callable[[Any], Decoded]:
    """Return what makes the rest of an object."""
    width = len(plan.names)
    takes_id = "id" not in plan.names
    takes_reply = context.reply_to and "reply_to" not in plan.names
    field = context.time_field
    time_index = plan.names.index(field) if field in plan.names else None

    def finish(found: Any) -> Decoded:
        values = msgspec.structs.astuple(found)[:width]
        message_id = str(found.message_id) if takes_id and found.message_id is not None else None
        reply_to = found.reply_to or "" if takes_reply else ""
        try:
            if message_id is not None:
                check_id(message_id)
            if reply_to:
                check_reply_to(reply_to)
            time_ms = None
            if field:
                time_ms = found.time_ms if time_index is None else values[time_index]
                if time_ms is None:
                    raise BadInput(f"{field}: expected a time in ms, got none")
            return Decoded(plan.assemble([values]), message_id, reply_to, time_ms)
        except BadInput as error:
            short = message_id if message_id and len(message_id) <= MAX_ID_CHARACTERS else None
            raise RejectedMessage(error.message, id=short) from None

    return finish


CODEC = Codec(Options, compile_decoder)
