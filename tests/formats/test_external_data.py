"""Which locations of external data a pack may have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelRejected
from agent.formats.description import ExternalData
from agent.formats.external_data import check_external_data
from agent.formats.registry import describe
from tests.formats.building import external_tensor, onnx_model

FILES = {"weights.bin": 100, "sub/more.data": 10}


def test_files_of_the_pack_are_listed_once() -> None:
    external = [
        ExternalData("weights.bin", 0, 50),
        ExternalData("weights.bin", 50, 50),
        ExternalData("sub/more.data"),
    ]
    assert check_external_data(external, FILES) == ("sub/more.data", "weights.bin")
    assert check_external_data([], FILES) == ()


@pytest.mark.parametrize(
    "location",
    [
        *("", ".", "..", "/etc/passwd", "../weights.bin", "sub/../weights.bin", "./weights.bin"),
        *("sub//more.data", "sub/", "\\\\host\\share", "C:weights.bin", "file:///etc/passwd"),
        *("weights.bin\x00", "*/_ORT_MEM_ADDR_/*", "sub/../../x", "weights.bin\n"),
    ],
)
def test_a_location_that_is_no_plain_relative_name_is_refused(location: str) -> None:
    with pytest.raises(ModelRejected, match="outside its pack"):
        check_external_data([ExternalData(location)], {**FILES, location: 1000})


def test_a_file_that_is_missing_or_too_short_is_named() -> None:
    with pytest.raises(ModelRejected, match=r"'other.bin', which is not in the pack"):
        check_external_data([ExternalData("other.bin")], FILES)
    with pytest.raises(ModelRejected, match=r"51 bytes from byte 50 .* has only 100"):
        check_external_data([ExternalData("weights.bin", 50, 51)], FILES)
    with pytest.raises(ModelRejected, match="has only 100"):
        check_external_data([ExternalData("weights.bin", 101)], FILES)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_nothing_but_a_name_of_the_pack_passes(location: str) -> None:
    try:
        used = check_external_data([ExternalData(location)], FILES)
    except ModelRejected:
        return
    assert used == (location,)
    assert location in FILES


@pytest.mark.parametrize("number", ["-1", "1e3", " 1", "0x10", "", "9" * 19, "١"])
def test_an_offset_that_parsers_could_read_differently_is_refused(number: str) -> None:
    model = onnx_model(initializers=[external_tensor("w.bin", offset=number)])
    with pytest.raises(ModelRejected, match="offset or length"):
        describe(model.SerializeToString())
