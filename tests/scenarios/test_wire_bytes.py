"""What each kind of model change sends, with a small model: the ways are those of the large one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.wire_bytes import MODEL, changes, fetched, packed_as

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LAYERS, OTHERS = (64, 384, 768, 10), (64, 512, 640, 10)
# Of the new model's bytes, what comes with the manifest, and the way it comes.
EXPECTED = {
    "last layer retrained": ("chunks", 0.25),
    "fine-tuned, rate 1e-5": ("delta", 0.75),
    "fine-tuned, rate 1e-3": ("delta", 0.8),
    "exported again, other names and order": ("chunks", 0.6),
    "quantised: FP32 to INT8": ("whole", 1.1),
    "INT8, fine-tuned, rate 1e-5": ("delta", 0.25),
    "new architecture": ("whole", 1.1),
}


@pytest.mark.slow
def test_each_kind_of_change_comes_by_the_way_that_suits_it(tmp_path: Path) -> None:
    found = {}
    for number, (name, old, new) in enumerate(changes(2, LAYERS, OTHERS)):
        folder = tmp_path / str(number)
        before = packed_as(folder / "old", old, "1")
        after = packed_as(folder / "new", new, "2", before.directory)
        fetched(before, folder / "store")
        taken = fetched(after, folder / "store")
        most = EXPECTED[name][1]
        assert taken.wire_bytes < most * after.manifest.files[MODEL].size + 20_000, name
        found[name] = taken.way
    assert found == {name: way for name, (way, _) in EXPECTED.items()}
