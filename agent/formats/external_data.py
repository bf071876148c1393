"""Bytes that an ONNX model keeps in other files, and whether it may.

Runtimes have read `/etc/passwd` as weights because a model named it. So each location is checked
here, over the names of the pack, before any runtime sees the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.errors import ModelRejected
from agent.formats.bounds import Budget, damaged, shown
from agent.formats.description import ExternalData
from agent.formats.protobuf import Message, read

_EXTERNAL = 1  # TensorProto.DataLocation
_MAX_DIGITS = 18  # below 2^63


def external_data_of(tensor: Message, budget: Budget) -> list[ExternalData]:
    """What a TensorProto (external_data 13, data_location 14) refers to outside its file.

    A tensor with locations but without the flag counts too, and of a location that is said twice
    both count: whichever a runtime picks has been checked.
    """
    entries = [read([view], budget, (1, 2)) for view in tensor.views(13)]
    if not entries and tensor.integer32(14) != _EXTERNAL:
        return []
    values: dict[str, list[str]] = {}
    for entry in entries:
        values.setdefault(entry.name(1), []).append(entry.name(2))
    offset = _number(values.get("offset", ["0"])[-1])
    length = _number(values["length"][-1]) if "length" in values else None
    return [ExternalData(place, offset, length) for place in values.get("location", [""])]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise damaged("ONNX", f"external data has the offset or length {shown(text)}")
    return int(text)


def check_external_data(
    external: Iterable[ExternalData], files: Mapping[str, int]
) -> tuple[str, ...]:
    """Decide whether all external data lies in the pack.

    Args:
        external: as in `OnnxNeeds.external_data`.
        files: the pack's files beside the model: name relative to the model's folder, with "/"
            between parts → size in bytes.

    Returns:
        The files that are used, sorted.

    Raises:
        ModelRejected: a location is not the plain relative name of one of these files, or reaches
            past its end.
    """
    used = set()
    for data in external:
        _check_location(data.location)
        size = files.get(data.location)
        if size is None:
            raise ModelRejected(
                f"the model keeps weights in {shown(data.location)}, which is not in the pack",
                hint="put that file beside the model, or save the model with its weights inside",
            )
        if data.offset + (data.length or 0) > size:
            raise ModelRejected(
                f"the model wants {data.length or 0} bytes from byte {data.offset} of "
                f"{shown(data.location)}, which has only {size}",
                hint="the two files do not belong together, or one is cut short",
            )
        used.add(data.location)
    return tuple(sorted(used))


def _check_location(location: str) -> None:
    parts = location.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and location.isprintable()
    if not plain or any(c in location for c in "\\:*"):
        raise ModelRejected(
            f"the model wants to read weights from {shown(location)}, outside its pack",
            hint="external data may only name a file of the pack; save the model with its weights "
            "inside, and do not trust where it came from",
        )
