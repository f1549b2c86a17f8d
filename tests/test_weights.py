"""A checkpoint program writes the same bytes whatever the machine does, and what it writes is what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from scaler_wizard.architecture import read_architecture, read_header
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import IdentityBlocks, WidenFfn, grow_program
from scaler_wizard.weights import (
    Expression,
    Input,
    Mean,
    Program,
    Random,
    Scaled,
    Share,
    Spread,
    Sum,
    broken_numbers,
    columns,
    copy_companions,
    identity,
    join,
    negate,
    repeat,
    rows,
    tile,
    write,
    zeros,
)
from scaler_wizard.weights.evaluate import from_float, to_float
from tiny_models import logits, make

Array = npt.NDArray[Any]


def program(folder: Path, tensors: dict[str, torch.Tensor], **outputs: Any) -> Program:
    """A program over one file of tensors; each output is made from the inputs by a function."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "in.safetensors")
    inputs = {name: Input(tensor) for name, tensor in read_header(folder / "in.safetensors").items()}
    return Program({"model_type": "llama"}, {name: make(inputs) for name, make in outputs.items()})


def written(folder: Path, of: Program, **options: Any) -> dict[str, torch.Tensor]:
    write(of, folder / "out", **options)
    return {name: value for file in (folder / "out").glob("*.safetensors") for name, value in load_file(file).items()}


def matrix(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_written_as_it_is_keeps_every_byte(tmp_path: Path, dtype: str) -> None:
    source = read_architecture(make(tmp_path / "a", dtype=dtype))
    write(identity(source), tmp_path / "b")
    old, new = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype for name in old)
    assert torch.equal(logits(tmp_path / "a"), logits(tmp_path / "b"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_expressions_say_what_torch_says(tmp_path: Path, dtype: torch.dtype) -> None:
    a, v = matrix(6, 4, dtype=dtype), matrix(5, dtype=dtype)
    wide = a.float()
    cases: dict[str, tuple[Any, torch.Tensor]] = {
        "tile": (lambda t: tile(t["a"], 0, 3), a.repeat(3, 1)),
        "tile_columns": (lambda t: tile(t["a"], 1, 2), a.repeat(1, 2)),
        "repeat": (lambda t: repeat(t["a"], 0, block=2, times=2), a.view(3, 1, 2, 4).repeat(1, 2, 1, 1).view(12, 4)),
        "rows": (lambda t: rows(t["a"], 2, 5), a[2:5]),
        "columns": (lambda t: columns(t["a"], 1, 3), a[:, 1:3]),
        "join": (
            lambda t: join([t["a"], zeros((2, 4), t["a"].dtype), rows(t["a"], 5, 6)], 0),
            torch.cat([a, a.new_zeros(2, 4), a[5:]]),
        ),
        "widen": (lambda t: join([t["a"], zeros((6, 3), t["a"].dtype)], 1), torch.cat([a, a.new_zeros(6, 3)], 1)),
        "scaled": (lambda t: Scaled(t["a"], 0.3, 1.0), (wide * 0.3 + 1.0).to(dtype)),
        "negated": (lambda t: negate(t["a"]), -a),
        "sum": (lambda t: Sum((t["a"], Scaled(t["a"], 0.5))), (wide + wide * 0.5).to(dtype)),
        "mean": (lambda t: Mean(t["a"], 2), wide.double().mean(0).float().to(dtype).repeat(2, 1)),
        "vector": (lambda t: join([rows(t["v"], 3, 5), t["v"]], 0), torch.cat([v[3:], v])),
    }
    found = written(tmp_path, program(tmp_path, {"a": a, "v": v}, **{name: make for name, (make, _) in cases.items()}))
    for name, (_, expected) in cases.items():
        assert torch.equal(found[name], expected), name


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=64))
@settings(max_examples=200, deadline=None)
def test_rounding_to_bf16_is_that_of_torch(values: list[float]) -> None:
    array = np.array(values, np.float32)
    ours = to_float(from_float(array, "BF16"), "BF16")
    theirs = torch.from_numpy(array.copy()).bfloat16().float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_shares_of_a_split_add_up(tmp_path: Path) -> None:
    def part(*, rest: bool) -> Any:
        return lambda t: Share(t["a"], 1, 0.25, 0.75, "key", rest=rest)

    a = torch.ones(3, 50)
    found = written(tmp_path, program(tmp_path, {"a": a}, kept=part(rest=False), left=part(rest=True)))
    assert torch.allclose(found["kept"] + found["left"], a)
    assert found["kept"].min() >= 0.25 and found["kept"].max() <= 0.75 and found["kept"].std() > 0.05


def test_random_numbers_have_the_spread_that_was_asked_for(tmp_path: Path) -> None:
    a = matrix(300, 500) * 0.02
    found = written(
        tmp_path, program(tmp_path, {"a": a}, n=lambda t: Random((300, 500), "F32", Spread(t["a"], 0.5), "n"))
    )
    assert abs(found["n"].std() / a.std() - 0.5) < 0.01 and abs(found["n"].mean()) < 1e-3
    assert len(found["n"].unique()) > 50_000


def test_shards_processes_and_pieces_never_change_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler_wizard.weights.stream.SHARED_BYTES", 0)
    source = read_architecture(make(tmp_path / "a", dtype="bfloat16", hidden_size=64))
    grown = grow_program(source, [WidenFfn(size=96), IdentityBlocks(blocks=2)], seed=3)
    one = written(tmp_path / "1", grown)
    many = written(tmp_path / "2", grown, shard_bytes=40_000, processes=3)
    assert len(list((tmp_path / "2/out").glob("*.safetensors"))) > 3
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)
    assert torch.equal(logits(tmp_path / "1/out"), logits(tmp_path / "2/out"))
    other = written(tmp_path / "3", grown, seed=4)
    assert not torch.equal(one["model.layers.0.mlp.up_proj.weight"], other["model.layers.0.mlp.up_proj.weight"])


SCRIPT = """
import sys
from pathlib import Path
from scaler_wizard.architecture import read_architecture
from scaler_wizard.grow import WidenFfn, IdentityBlocks, grow_program
from scaler_wizard.weights import write
program = grow_program(read_architecture(Path(sys.argv[1])), [IdentityBlocks(blocks=1), WidenFfn(size=64)], seed=1)
print(sorted(write(program, Path(sys.argv[2])).files.items()))
print({"torch", "transformers", "peft"} & set(sys.modules))
"""


def test_the_hash_seed_changes_nothing_and_no_torch_is_loaded(tmp_path: Path) -> None:
    make(tmp_path / "a")
    said = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, tmp_path / "a", tmp_path / seed],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and said[0].endswith("set()\n")


def test_the_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    source = read_architecture(make(tmp_path / "a"))
    done = write(grow_program(source, [IdentityBlocks(blocks=1)]), tmp_path / "b", shard_bytes=50_000)
    on_disk = {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    assert done.files == {name: (len(data), blake3(data).hexdigest()) for name, data in on_disk.items()}
    assert "config.json" in done.files and "model.safetensors.index.json" in done.files


def test_an_interrupted_write_goes_on_after_the_last_whole_shard(tmp_path: Path) -> None:
    source = read_architecture(make(tmp_path / "a"))
    grown = grow_program(source, [IdentityBlocks(blocks=2)], seed=1)

    def stop(done: int, total: int) -> None:
        if len(list((tmp_path / "b").glob("*.safetensors"))) == 2:
            raise KeyboardInterrupt

    whole = write(grown, tmp_path / "whole", shard_bytes=40_000)
    with pytest.raises(KeyboardInterrupt):
        write(grown, tmp_path / "b", shard_bytes=40_000, progress=stop)
    again = write(grown, tmp_path / "b", shard_bytes=40_000)
    assert again.kept == tuple(sorted(whole.files))[1:3]
    assert again.files == whole.files
    assert not [file.name for file in (tmp_path / "b").iterdir() if file.name not in whole.files]


def test_a_changed_input_is_not_continued(tmp_path: Path) -> None:
    source = read_architecture(make(tmp_path / "a"))
    write(identity(source), tmp_path / "b", shard_bytes=40_000)
    (tmp_path / "b/.written.json").write_text(json.dumps({"fingerprint": "old", "files": {"x": None}}))
    assert write(identity(source), tmp_path / "b", shard_bytes=40_000).kept == ()


def test_a_disk_that_cannot_hold_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def huge(t: dict[str, Expression]) -> Expression:
        return zeros((10**9, 10**6), "F32")

    with pytest.raises(ScalerError, match="are free"):
        write(program(tmp_path, {"a": matrix(2, 2)}, huge=huge), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_numbers_that_are_not_finite_are_found(tmp_path: Path) -> None:
    folder = make(tmp_path, dtype="bfloat16")
    assert broken_numbers(read_architecture(folder).tensors) is None
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert broken_numbers(read_architecture(folder).tensors) == "model.norm.weight"


def test_companions_are_copied_and_code_is_not(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "LICENSE", "chat_template.jinja", "tokenizer_evil.py", "training_args.bin", "x.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "out").mkdir()
    assert copy_companions(tmp_path, tmp_path / "out") == ("LICENSE", "chat_template.jinja", "tokenizer.json")
    assert (tmp_path / "out/tokenizer.json").read_text() == "tokenizer.json"


def test_hashing_a_large_file_needs_little_memory_and_gives_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(300_000_003)
        stream.seek(20_000_001)
        stream.write(b"here")
    code = (
        "import sys; from pathlib import Path; from scaler_wizard.files import file_hash\n"
        "print(file_hash(Path(sys.argv[1])), Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    said = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True).stdout
    assert said.split()[0] == blake3(file.read_bytes()).hexdigest() and int(said.split()[1]) < 60_000
