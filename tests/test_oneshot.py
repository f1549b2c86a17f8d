"""Growing in one step: proved before it is kept, nothing left where it fails; looking at a model."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scaler_wizard.architecture import Blueprint, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import OPERATORS, IdentityBlocks, Preserves, StackLayers, WidenFfn
from scaler_wizard.inspection import applies, inspect_model, trials
from scaler_wizard.oneshot import GROWTH, Growth, grow_model, prompts
from tiny_models import FAMILIES, SMALL, logits, make


class Liar(StackLayers):
    """Promises what it does not keep."""

    @property
    def preserves(self) -> Preserves:
        return "exact"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_model_grows_to_a_size_is_proved_and_says_how_it_was_made(tmp_path: Path) -> None:
    source = make(tmp_path / "base")
    before = inspect_model(source)

    grown = grow_model(source, tmp_path / "out", "1.6x", seed=3)

    growth = Growth.load(tmp_path / "out" / GROWTH)
    assert growth == grown.growth
    assert growth.proof is not None and growth.proof.passed
    assert growth.parameters == read_architecture(tmp_path / "out").parameters
    assert abs(growth.parameters / (1.6 * before.parameters) - 1) <= 0.02
    assert growth.seed == 3 and growth.parameters_before == before.parameters
    assert grown.reasons and dict(grown.rows())["proof"] == growth.proof.reason
    assert names(tmp_path) == ["base", "out"]
    assert torch.allclose(logits(source), logits(tmp_path / "out"), atol=1e-4)


def test_a_growth_that_fails_its_proof_leaves_nothing(tmp_path: Path) -> None:
    source = make(tmp_path / "base")
    with pytest.raises(ScalerError, match="largest change of a logit"):
        grow_model(source, tmp_path / "out", [Liar(layers=5)])
    assert names(tmp_path) == ["base"]


def test_without_a_proof_the_record_says_that_there_is_none(tmp_path: Path) -> None:
    source = make(tmp_path / "base")
    grown = grow_model(source, tmp_path / "out", [IdentityBlocks(blocks=1)], prove=False)
    assert grown.growth.proof is None
    assert dict(grown.rows())["proof"] == "not proved, as asked"
    assert torch.equal(logits(source), logits(tmp_path / "out"))


def test_a_folder_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    source = make(tmp_path / "base")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(ScalerError, match="not empty"):
            grow_model(source, tmp_path / "out", "1.5x", force=force, prove=False)
    assert names(tmp_path / "out") == ["thesis.txt"]


def test_force_replaces_a_grown_model_and_nothing_stays_of_the_old_one(tmp_path: Path) -> None:
    source = make(tmp_path / "base")
    grow_model(source, tmp_path / "out", [IdentityBlocks(blocks=1)], prove=False, shard_bytes=4096)
    assert len(names(tmp_path / "out")) > 4
    grow_model(source, tmp_path / "out", [IdentityBlocks(blocks=2)], prove=False, force=True)
    assert read_architecture(tmp_path / "out").layers == 5
    assert "model.safetensors.index.json" not in names(tmp_path / "out")
    assert names(tmp_path) == ["base", "out"]


def test_broken_weights_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = make(tmp_path / "base")
    tensor = read_architecture(source).tensors["model.layers.1.mlp.up_proj.weight"]
    with tensor.file.open("r+b") as stream:
        stream.seek(tensor.start)
        stream.write(struct.pack("<f", float("nan")))
    with pytest.raises(ScalerError, match=r"layers\.1\.mlp\.up_proj.*NaN"):
        grow_model(source, tmp_path / "out", "1.5x", prove=False)
    assert names(tmp_path) == ["base"]


@pytest.mark.parametrize("target", ["0.5x", "100x", "many", []])
def test_sizes_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path, target: str | list[WidenFfn]
) -> None:
    source = make(tmp_path / "base")
    with pytest.raises(ScalerError):
        grow_model(source, tmp_path / "out", target, prove=False)
    assert names(tmp_path) == ["base"]


def test_a_disk_that_cannot_hold_the_model_is_known_before_a_weight_is_read(tmp_path: Path) -> None:
    rows = 2**42 // 64
    (tmp_path / "base").mkdir()
    blueprint = Blueprint({"model_type": "llama", **SMALL, "vocab_size": rows})
    place, entries = 0, {}
    for tensor in blueprint.places():
        end = place + math.prod(tensor.shape) * 2
        entries[tensor.name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    header = json.dumps(entries).encode()
    with (tmp_path / "base/model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + place)  # a hole of 9 TB
    (tmp_path / "base/config.json").write_text(json.dumps(dict(blueprint.config)))
    with pytest.raises(ScalerError, match="GB are free"):
        grow_model(tmp_path / "base", tmp_path / "out", [IdentityBlocks(blocks=1)], prove=False)
    assert names(tmp_path) == ["base"]


FULL = """
import resource, sys
from pathlib import Path
from scaler_wizard.errors import ScalerError
from scaler_wizard.oneshot import grow_model
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    grow_model(Path(sys.argv[1]), Path(sys.argv[2]), "1.5x", prove=False, shard_bytes=int(sys.argv[3]))
except ScalerError as error:
    print(error.wrong)
"""


@pytest.mark.faults
@pytest.mark.parametrize("shard_bytes", [10**9, 10_000])
def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path, shard_bytes: int) -> None:
    source = make(tmp_path / "base", vocab_size=1024)
    command = [sys.executable, "-c", FULL, str(source), str(tmp_path / "out"), str(shard_bytes)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the disk is full" in said.stdout
    assert names(tmp_path) == ["base"]


def test_the_fingerprint_follows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    source = make(tmp_path / "base")
    shutil.copytree(source, tmp_path / "copy")
    other = make(tmp_path / "other", seed=1)
    prints = [
        grow_model(
            folder, tmp_path / f"out-{folder.name}", [IdentityBlocks(blocks=1)], prove=False
        ).growth.parent_fingerprint
        for folder in (source, tmp_path / "copy", other)
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_inspection_accounts_for_every_parameter_and_every_operator(tmp_path: Path, family: str) -> None:
    found = inspect_model(make(tmp_path / "model", family))
    assert sum(part.parameters for part in found.parts) == found.parameters
    assert sum(part.share for part in found.parts) == pytest.approx(1)
    assert [one.op for one in found.operators] == list(OPERATORS)
    assert all((one.preserves is None) != (one.reason is None) for one in found.operators)
    assert len(found.rows()) == 7 + len(found.parts) + len(OPERATORS)


def test_every_operator_has_a_trial_and_every_refusal_a_reason(tmp_path: Path) -> None:
    dense = read_architecture(make(tmp_path / "dense"))
    mixture = read_architecture(make(tmp_path / "mixture", "mixtral"))
    for name in OPERATORS:
        assert next(iter(trials(name, dense)), None) is not None
        assert applies(name, dense).preserves or applies(name, mixture).preserves
    assert applies("duplicate_experts", dense).reason == "llama has no experts"


def test_prompts_are_the_models_own_tokens(tmp_path: Path) -> None:
    source = make(tmp_path / "base")
    found = prompts(source)
    assert len(found) > 1 and all(5 < len(row) <= 32 and max(row) < 64 for row in found)
    assert found == prompts(source)


def test_growing_and_looking_load_no_torch() -> None:
    code = "import sys, scaler_wizard.oneshot, scaler_wizard.inspection\n"
    code += "sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
