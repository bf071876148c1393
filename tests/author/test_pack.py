"""Packs made of tiny models: what gets in, what is refused, and that the same goes in again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.author import predict
from agent.author.folder import open_pack, verify
from agent.author.golden import as_array
from agent.author.pack import Packed, pack
from agent.author.spec import Spec
from agent.documents.manifest import SelfTestCase
from agent.errors import (
    AgentError,
    BadOutput,
    DocumentError,
    ModelRejected,
    SelfTestFailed,
    UsageError,
    WorkerTimedOut,
)
from tests.author.models import BOOL, FLOAT, FLOAT16, INT64, STRING, Shape, model, spec

pytest.importorskip("onnxruntime")


def cases(packed: Packed) -> list[SelfTestCase]:
    return [
        msgspec.json.decode((packed.directory / name).read_bytes(), type=SelfTestCase)
        for name in packed.manifest.selftest
    ]


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# What gets in.


def test_the_same_model_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = pack(model(tmp_path / "pump.onnx"), tmp_path / "one")
    other = pack(model(tmp_path / "other" / "pump.onnx"), tmp_path / "other" / "two")
    assert one.pack == other.pack
    assert all_bytes(one.directory) == all_bytes(other.directory)
    assert str(tmp_path) not in repr(all_bytes(one.directory))


def test_a_pack_is_whole_named_and_proven(tmp_path: Path) -> None:
    packed = pack(model(tmp_path / "Pump (v2).onnx"), tmp_path / "pack")
    opened = open_pack(packed.directory)
    assert opened.pack == packed.pack
    assert verify(opened) == []
    assert (opened.manifest.name, opened.manifest.version) == ("pump-v2", "1")
    assert opened.manifest.variants[0].file == "Pump_v2_.onnx"
    assert packed.tried[0].probed is not None
    assert packed.tried[0].probed.cases == len(opened.manifest.selftest) == 3
    for case in cases(packed):
        (golden,) = case.outputs
        (given,) = json.loads(case.payloads[0])["inputs"]
        np.testing.assert_array_equal(
            as_array(golden), np.maximum(np.array(given["data"], np.float32), 0).reshape(1, 4)
        )


def test_the_folder_can_be_read_by_others_as_umask_says(tmp_path: Path) -> None:
    packed = pack(model(tmp_path / "m.onnx"), tmp_path / "pack")
    umask = os.umask(0)
    os.umask(umask)
    assert packed.directory.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize(
    ("operator", "kind"),
    [("Identity", STRING), ("Not", BOOL), ("Relu", FLOAT16), ("Identity", INT64)],
)
def test_tensors_of_every_plain_type_work(tmp_path: Path, operator: str, kind: int) -> None:
    file = model(
        tmp_path / "m.onnx", operator, inputs={"x": (kind, [2, 2])}, outputs={"y": (kind, [2, 2])}
    )
    packed = pack(file, tmp_path / "pack")
    assert packed.tried[0].probed is not None


def test_a_model_without_inputs_works(tmp_path: Path) -> None:
    file = model(
        tmp_path / "m.onnx",
        "Constant",
        inputs={},
        outputs={"y": (FLOAT, [2])},
        value_floats=[1.0, 2.0],
    )
    packed = pack(file, tmp_path / "pack")
    assert as_array(cases(packed)[0].outputs[0]).tolist() == [1, 2]
    assert any("no input" in note for note in packed.notes)


def test_an_output_whose_rank_the_file_does_not_say_is_found_by_running(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", outputs={"y": (FLOAT, None)})
    assert pack(file, tmp_path / "pack").manifest.outputs[0].shape == (-1, -1)


@pytest.mark.parametrize("stated", ["", '[[outputs]]\nname = "y"\nshape = [-1, 3]\n'])
def test_an_input_whose_rank_only_the_author_says_is_packed_and_served(
    tmp_path: Path, stated: str
) -> None:
    file = model(tmp_path / "m.onnx", inputs={"x": (FLOAT, None)}, outputs={"y": (FLOAT, None)})
    text = '[[inputs]]\nname = "x"\nshape = [-1, 3]\n' + stated
    packed = pack(file, tmp_path / "pack", spec=spec(text, tmp_path))
    assert packed.manifest.inputs[0].shape == (-1, 3)
    request = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [-1, 2, -3, 4, -5, 6]}
    with predict.serve(packed.directory) as worker:
        answer = predict.ask(worker, json.dumps({"inputs": [request]}).encode())
    assert answer is not None
    (given,) = json.loads(answer)["outputs"]
    assert (given["shape"], given["data"]) == ([2, 3], [0, 2, 0, 4, 0, 6])


def test_numbers_are_drawn_from_the_declared_range(tmp_path: Path) -> None:
    text = '[[inputs]]\nname = "x"\nlow = 5\nhigh = 6\nunit = "mm/s"\n'
    packed = pack(model(tmp_path / "m.onnx", "Log"), tmp_path / "pack", spec=spec(text, tmp_path))
    assert packed.manifest.inputs[0].unit == "mm/s"
    for case in cases(packed):
        values = json.loads(case.payloads[0])["inputs"][0]["data"]
        assert all(5 <= value <= 6 for value in values)


def test_a_window_steps_and_labels_make_the_public_signature(tmp_path: Path) -> None:
    text = """
        name = "gesture"
        version = "2.0.0"
        labels = ["still", "shaken", "turned", "dropped"]
        [pipeline]
        decode = {codec = "csv"}
        window = {kind = "sliding", size = 3}
        pre = [{step = "reorder", shape = [3, 4]}]
        post = [{step = "softmax"}, {step = "argmax"}]
        [[inputs]]
        name = "accel"
        datatype = "FP32"
        shape = [4]
        unit = "g"
        [card]
        licence = "Apache-2.0"
    """
    packed = pack(model(tmp_path / "m.onnx"), tmp_path / "pack", spec=spec(text, tmp_path))
    manifest = packed.manifest
    assert [t.name for t in manifest.inputs] == ["accel"]
    assert [t.name for t in manifest.outputs] == ["index", "score", "label"]
    assert len(cases(packed)[0].payloads) == 3
    with predict.serve(packed.directory) as worker:
        assert predict.ask(worker, b"0,0,0,1") is None
        assert predict.ask(worker, b"0,0,0,1") is None
        answer = predict.ask(worker, b"0,0,9,1")
        assert answer is not None
        label = json.loads(answer)["outputs"][2]
        assert label["data"][-1] == "turned"


@pytest.mark.parametrize("kind", ["sliding", "tumbling"])
def test_a_window_of_time_is_completed_by_the_readings_own_times(tmp_path: Path, kind: str) -> None:
    shape: Shape = [1, "readings", 2]
    file = model(tmp_path / "m.onnx", inputs={"x": (FLOAT, shape)}, outputs={"y": (FLOAT, shape)})
    text = f"""
        [pipeline]
        decode = {{codec = "features", fields = ["a", "b"]}}
        window = {{kind = "{kind}", span_ms = 1000, time_field = "t"}}
        [[inputs]]
        name = "x"
        shape = [2]
    """
    assert len(cases(pack(file, tmp_path / "pack", spec=spec(text, tmp_path)))[0].payloads) == 9


def test_weights_beside_the_model_get_into_the_pack(tmp_path: Path) -> None:
    packed = pack(with_weights(tmp_path, "parts/w.bin"), tmp_path / "pack")
    assert (packed.directory / "parts/w.bin").is_file()
    assert set(packed.manifest.files) > {"m.onnx", "parts/w.bin"}


def with_weights(folder: Path, location: str) -> Path:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    place = folder / location
    if ".." not in location:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    return model(folder / "m.onnx", "Add", weights=[tensor])


def test_the_authors_samples_and_answers_become_the_self_test(tmp_path: Path) -> None:
    packed = pack(model(tmp_path / "m.onnx"), tmp_path / "pack", samples=golden(tmp_path, 2.0))
    (case,) = cases(packed)
    # The author's answer is kept, not what this machine computed.
    assert as_array(case.outputs[0])[0, 0] == np.float32(2.0)


def golden(folder: Path, answer: float) -> Path:
    x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [2.0001, -1, 0, 1]}
    y = {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [answer, 0, 0, 1]}
    file = folder / "golden.json"
    file.write_text(json.dumps({"samples": [{"inputs": [x], "outputs": [y]}]}))
    return file


def test_two_variants_are_held_to_the_same_answers(tmp_path: Path) -> None:
    model(tmp_path / "b.onnx", "Relu")
    both = spec('[[variants]]\nfile = "b.onnx"\nname = "again"\n', tmp_path)
    packed = pack(model(tmp_path / "a.onnx"), tmp_path / "pack", spec=both)
    assert [v.name for v in packed.manifest.variants] == ["onnx-fp32", "again"]
    assert all(one.probed is not None for one in packed.tried)
    model(tmp_path / "b.onnx", "Neg")
    with pytest.raises(SelfTestFailed, match="variant again: self-test case 1"):
        pack(tmp_path / "a.onnx", tmp_path / "other", spec=both)


def test_a_second_variant_may_have_a_tolerance_of_its_own(tmp_path: Path) -> None:
    model(tmp_path / "b.onnx", "Softplus")
    text = '[[variants]]\nfile = "b.onnx"\ntolerance = {absolute = 1.0}\n'
    packed = pack(model(tmp_path / "a.onnx"), tmp_path / "pack", spec=spec(text, tmp_path))
    assert [v.tolerance.absolute for v in packed.manifest.variants] == [1e-3, 1.0]


# What is refused.


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("name = 'A B'", DocumentError, "manifest.name"),
        ("[pipeline]\npost = [{step = 'argmx'}]", DocumentError, r"post\[0\].step"),
        ("[pipeline]\ndecode = {codec = 'xml'}", DocumentError, "decode.codec"),
        ("[[outputs]]\nname = 'z'", DocumentError, r"outputs\[0\].name"),
        ("[[state]]\ninput = 'x'\noutput = 'z'", DocumentError, r"state\[0\].output"),
        ("labels_file = 'gone.txt'", UsageError, "gone.txt"),
        ("[[variants]]\nfile = 'gone.onnx'", UsageError, "gone.onnx"),
        (
            "[pipeline]\ndecode = {codec = 'csv'}\nwindow = {kind = 'tumbling', span_ms = 9}\n"
            "[[inputs]]\nname = 'x'\nshape = [4]",
            UsageError,
            "time of arrival",
        ),
    ],
)
def test_a_specification_that_does_not_fit_is_refused_and_nothing_is_left(
    tmp_path: Path, text: str, error: type[AgentError], message: str
) -> None:
    file = model(tmp_path / "m.onnx")
    with pytest.raises(error, match=message):
        pack(file, tmp_path / "pack", spec=spec(text, tmp_path))
    assert list(tmp_path.iterdir()) == [file]


def test_an_input_whose_rank_nobody_says_is_refused_by_name(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", inputs={"x": (FLOAT, None)})
    with pytest.raises(ModelRejected, match="how many dimensions input 'x' has") as caught:
        pack(file, tmp_path / "pack")
    assert "state its shape under [[inputs]]" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "shape", "error", "message"),
    [
        ("inputs", "[3]", ModelRejected, "does not run on random numbers"),
        ("outputs", "[2, 4]", BadOutput, "shape"),
    ],
)
def test_a_stated_rank_that_the_model_does_not_have_is_refused_while_packing(
    tmp_path: Path, kind: str, shape: str, error: type[AgentError], message: str
) -> None:
    file = model(
        tmp_path / "m.onnx",
        "Transpose",
        inputs={"x": (FLOAT, None)},
        outputs={"y": (FLOAT, None)},
        perm=[1, 0],
    )
    stated = {"inputs": "[3, 2]", "outputs": "[2, 3]", kind: shape}
    text = "".join(
        f"[[{role}]]\nname = {name!r}\nshape = {stated[role]}\n"
        for role, name in (("inputs", "x"), ("outputs", "y"))
    )
    with pytest.raises(error, match=message):
        pack(file, tmp_path / "pack", spec=spec(text, tmp_path))


def test_nan_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadOutput, match=r"NaN.*allow_nan"):
        pack(model(tmp_path / "m.onnx", "Log"), tmp_path / "pack")


def test_nan_that_is_meant_is_part_of_the_self_test(tmp_path: Path) -> None:
    text = '[[outputs]]\nname = "y"\nallow_nan = true\n'
    packed = pack(model(tmp_path / "m.onnx", "Log"), tmp_path / "pack", spec=spec(text, tmp_path))
    assert np.isnan(as_array(cases(packed)[0].outputs[0])).any()


def test_answers_that_are_not_the_authors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SelfTestFailed, match=r"expected 3, got 2\.0001"):
        pack(model(tmp_path / "m.onnx"), tmp_path / "pack", samples=golden(tmp_path, 3.0))


def test_a_sample_that_does_not_fit_is_named(tmp_path: Path) -> None:
    shape = ["batch", "length"]
    kinds: dict[str, tuple[int, Any]] = {"x": (FLOAT, shape), "b": (FLOAT, shape)}
    file = model(tmp_path / "m.onnx", "Add", inputs=kinds, outputs={"y": (FLOAT, shape)})
    np.savez(tmp_path / "s.npz", x=np.ones((1, 3)), b=np.ones((1, 4)))
    with pytest.raises(AgentError, match=r"sample 1: .*shape"):
        pack(file, tmp_path / "pack", samples=tmp_path / "s.npz")


def test_random_answers_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SelfTestFailed, match="draws random numbers"):
        pack(model(tmp_path / "m.onnx", "RandomNormalLike"), tmp_path / "pack")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "gone.bin"])
def test_weights_from_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    file = with_weights(tmp_path, "w.bin")
    onnx = pytest.importorskip("onnx")
    made = onnx.load_model(str(file), load_external_data=False)
    made.graph.initializer[0].external_data[0].value = location
    file.write_bytes(made.SerializeToString())
    with pytest.raises(ModelRejected):
        pack(file, tmp_path / "pack")


def test_weights_behind_a_symbolic_link_are_refused(tmp_path: Path) -> None:
    file = with_weights(tmp_path, "w.bin")
    (tmp_path / "w.bin").rename(tmp_path / "real.bin")
    (tmp_path / "w.bin").symlink_to(tmp_path / "real.bin")
    with pytest.raises(ModelRejected, match=r"w\.bin"):
        pack(file, tmp_path / "pack")


def test_a_missing_model_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.onnx"):
        pack(tmp_path / "gone.onnx", tmp_path / "pack")


# Where it goes.


def test_another_pack_is_replaced_only_by_force(tmp_path: Path) -> None:
    file, out = model(tmp_path / "m.onnx"), tmp_path / "pack"
    first = pack(file, out)
    assert pack(file, out).pack == first.pack
    with pytest.raises(UsageError, match="holds another pack"):
        pack(file, out, version="2")
    assert open_pack(out).pack == first.pack
    second = pack(file, out, version="2", force=True)
    assert open_pack(out).pack == second.pack != first.pack
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "pack"]


def test_a_folder_that_is_no_pack_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="holds no pack"):
        pack(model(tmp_path / "m.onnx"), out, force=True)
    assert (out / "thesis.txt").read_text() == "years"


def test_a_damaged_copy_of_the_same_pack_is_made_whole(tmp_path: Path) -> None:
    file, out = model(tmp_path / "m.onnx"), tmp_path / "pack"
    pack(file, out)
    (out / "m.onnx").write_bytes(b"cut")
    pack(file, out)
    assert verify(open_pack(out)) == []


# Unchecked.


def test_an_unchecked_pack_of_a_good_model_fails_its_self_test(tmp_path: Path) -> None:
    packed = pack(model(tmp_path / "m.onnx", "Neg"), tmp_path / "pack", unchecked=True)
    assert verify(open_pack(packed.directory)) == []
    assert packed.tried == ()
    from agent.links.worker import BlockingWorker
    from agent.wire.worker import Load

    load = Load(str(packed.directory), packed.pack, packed.manifest.variants[0].name)
    with BlockingWorker("onnx", load) as worker, pytest.raises(SelfTestFailed):
        worker.probe()


def test_an_unchecked_pack_of_garbage_is_a_pack(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"garbage")
    packed = pack(tmp_path / "m.tflite", tmp_path / "pack", unchecked=True)
    assert packed.manifest.variants[0].format == "tflite"
    assert verify(open_pack(packed.directory)) == []


def test_a_model_that_never_answers_is_given_up(tmp_path: Path) -> None:
    file = endless(tmp_path / "m.onnx")
    with pytest.raises(WorkerTimedOut, match="no answer within 1 s"):
        pack(file, tmp_path / "pack", deadline_s=1)
    assert list(tmp_path.iterdir()) == [file]


def endless(path: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Neg", ["in"], ["out"]),
        ],
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("in", FLOAT, [4])],
        [value("on", BOOL, []), value("out", FLOAT, [4])],
    )
    yes = helper.make_tensor("yes", BOOL, [], [True])
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)],
        "graph",
        [value("x", FLOAT, [4])],
        [value("y", FLOAT, [4])],
        [yes],
    )
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(made.SerializeToString())
    return path


def test_a_spec_in_code_is_as_good_as_one_in_a_file(tmp_path: Path) -> None:
    packed = pack(model(tmp_path / "m.onnx"), tmp_path / "pack", spec=Spec(name="a", task="t"))
    assert (packed.manifest.name, packed.manifest.task) == ("a", "t")
