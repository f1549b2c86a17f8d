"""Files and folders from others are refused in time and in two lines, and nothing of them runs."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf as gguf_library
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import malice
import tiny_models
from scaler_wizard.architecture import read_architecture
from scaler_wizard.architecture.header import read_header
from scaler_wizard.errors import ScalerError
from scaler_wizard.models import load_model, load_tokenizer, resolve
from scaler_wizard.recipe import load_recipe
from scaler_wizard.untrusted.confine import Bounds, run_confined
from scaler_wizard.untrusted.folder import cleaned, inert, stage
from scaler_wizard.untrusted.gguf import check_gguf
from scaler_wizard.untrusted.pickled import check_pickle, convert_pickled, weight_files
from scaler_wizard.weights import copy_companions

REFUSAL_SECONDS = 0.05
LARGEST_PEAK = 80 * 2**20


def refused(check: Callable[[Path], object], file: Path) -> ScalerError:
    """The refusal: in time (of this process alone, since others use the machine), in two plain lines."""
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        with pytest.raises(ScalerError) as caught:
            check(file)
        seconds.append(time.process_time() - begun)
        if seconds[-1] < REFUSAL_SECONDS:
            break
    assert min(seconds) < REFUSAL_SECONDS
    said = str(caught.value)
    assert len(said.splitlines()) == 2
    assert len(said) < 500
    assert said.replace("\n", "").isprintable()
    return caught.value


@pytest.mark.parametrize("name", malice.SAFETENSORS)
def test_a_malicious_safetensors_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(malice.SAFETENSORS[name]())
    refused(read_header, file)


@pytest.mark.parametrize("name", malice.GGUF)
def test_a_malicious_gguf_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(malice.GGUF[name]())
    refused(check_gguf, file)


def test_a_header_bomb_costs_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for name in ("a million names twice", "250,000 tensors", "a shape of a million numbers", "length of 2^64-1"):
        file.write_bytes(malice.SAFETENSORS[name]())
        tracemalloc.start()
        with pytest.raises(ScalerError):
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < LARGEST_PEAK
        tracemalloc.stop()


def test_good_files_pass(tmp_path: Path) -> None:
    save_file({f"w{n}": np.ones((2, 3), np.float32) for n in range(50)}, tmp_path / "model.safetensors")
    assert len(read_header(tmp_path / "model.safetensors")) == 50
    writer = gguf_library.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list(["<s>", "a", "b"])
    writer.add_array("scores", [0.5, 0.25])
    writer.add_tensor("a", np.ones((4, 32), np.float32))
    writer.add_tensor("b", np.ones((3,), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = check_gguf(tmp_path / "model.gguf")
    assert (facts.tensors, facts.version) == (2, 3)


def test_every_cut_of_a_gguf_header_is_refused(tmp_path: Path) -> None:
    whole, file = malice.gguf(**malice.GOOD), tmp_path / "cut.gguf"
    file.write_bytes(whole)
    check_gguf(file)
    for at in range(len(whole)):
        file.write_bytes(whole[:at])
        with pytest.raises(ScalerError):
            check_gguf(file)


def test_a_bad_gguf_file_never_reaches_the_library(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(malice.GGUF["2^63 tensors"]())
    with pytest.raises(ScalerError, match="at most 200000"):
        resolve(str(file), cache=tmp_path / "cache")


# -- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A good tiny model in a folder that offers code in every way, and the canary that the code would touch."""
    folder, canary = tmp_path / "evil", tmp_path / "canary"
    tiny_models.make(folder, vocab_size=1024)
    embedded = resolve("embedded").folder
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded / name, folder / name)
    malice.code_folder(folder, canary)
    yield folder, canary
    assert not canary.exists()


EXECUTED: list[str] = []
WATCHED: list[str] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    """Every code object that Python runs from a file, and every import, passes here."""
    if WATCHED and event == "exec":
        where = getattr(arguments[0], "co_filename", "")
        EXECUTED.extend(where for place in WATCHED if where.startswith(place))


sys.addaudithook(_hook)


def test_no_file_of_a_model_folder_is_ever_executed(evil: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = evil
    EXECUTED.clear()
    WATCHED[:] = [str(tmp_path), str(Path.home() / ".cache/huggingface/modules")]
    staged, copied = tmp_path / "staged", tmp_path / "copied"
    for place in (staged, copied):
        place.mkdir()
    stage(folder, staged, link=True)
    copy_companions(folder, copied)
    for place in (folder, staged):
        read_architecture(place)
        load_model(place, dtype="float32")
        load_tokenizer(place)
    WATCHED.clear()
    assert EXECUTED == []
    kept = {file.name for file in (*staged.iterdir(), *copied.iterdir())}
    assert not [name for name in kept if name.endswith((".py", ".bin")) or name.startswith("adapter")]


def test_the_folder_would_bite_whoever_trusts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, the test above could pass because the code is dead."""
    from transformers import AutoConfig, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, canary = tiny_models.make(tmp_path / "evil"), tmp_path / "canary"
    malice.code_folder(folder, canary)
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert canary.exists()


def test_settings_lose_code_at_any_depth_and_nothing_else() -> None:
    dirty = {"a": [{"auto_map": {"AutoConfig": "x.Y"}, "b": 1}], "trust_remote_code": True, "c": {"d": None}}
    assert cleaned(dirty) == {"a": [{"b": 1}], "c": {"d": None}}
    deep: object = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ScalerError, match="nested deeper"):
        cleaned(deep)


def test_a_clean_folder_is_loaded_as_it_is(tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "good")
    with inert(folder) as view:
        assert view == folder


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tiny_models.make(tmp_path / "model")
    secret.write_text("key", encoding="utf-8")
    (folder / "tokenizer.json").symlink_to(secret)
    (tmp_path / "out").mkdir()
    for use in (lambda: stage(folder, tmp_path / "out", link=True), lambda: copy_companions(folder, tmp_path / "out")):
        with pytest.raises(ScalerError, match="leaves the model folder"):
            use()
    with pytest.raises(ScalerError, match="leaves the model folder"):
        resolve(str(folder))
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_the_hubs_own_links_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    tiny_models.make(blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    (tmp_path / "out").mkdir()
    stage(snapshot, tmp_path / "out", link=True)
    assert not (tmp_path / "out" / "config.json").is_symlink()
    assert read_architecture(tmp_path / "out").parameters == read_architecture(blobs).parameters


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_settings_that_are_bombs_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    for bomb in (
        "[" * 100_000,
        '{"a":' * 500 + "1" + "}" * 500,
        "\ud800".encode("utf-8", "surrogatepass").decode("latin1"),
    ):
        (folder / name).write_text(bomb, encoding="utf-8")
        with pytest.raises(ScalerError):
            stage(folder, tmp_path / "out", link=True)
    with (folder / name).open("wb") as giant:
        giant.truncate(2**40)
    refused(lambda place: stage(place, tmp_path / "out", link=True), folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)  # reading this would wait for ever
    stage(folder, tmp_path / "out", link=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_chat_template_stays_text(tmp_path: Path) -> None:
    bomb = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for a in range(10**12) %}{% endfor %}"
    folder = tiny_models.make(tmp_path / "model")
    shutil.copy(resolve("embedded").folder / "tokenizer.json", folder)
    shutil.copy(resolve("embedded").folder / "tokenizer_config.json", folder)
    (folder / "chat_template.jinja").write_text(bomb, encoding="utf-8")
    (tmp_path / "out").mkdir()
    stage(folder, tmp_path / "out", link=True)
    assert load_tokenizer(tmp_path / "out").chat_template == bomb


def test_nothing_in_the_product_renders_a_template() -> None:
    source = Path(read_header.__code__.co_filename).parents[1]
    named = [file for file in source.rglob("*.py") if "apply_chat_template" in file.read_text(encoding="utf-8")]
    assert named == []


# -- pickles ---------------------------------------------------------------------------------------------------------


def test_pickled_weights_are_refused_with_the_cure(tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ScalerError, match="scaler unpickle"):
        read_architecture(folder)
    with pytest.raises(OSError, match="safetensors"):
        load_model(folder, dtype="float32")


def test_no_pickle_that_is_a_program_passes(tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "pytorch_model.bin"
    count = 0
    for name, raw in malice.pickles(canary):
        file.write_bytes(raw)
        error = refused(check_pickle, file)
        assert not canary.exists(), name
        assert "safetensors" in error.cure
        count += 1
    assert count >= 15
    pickle.loads(pickle.dumps(malice.Payload(canary)))  # noqa: S301 - the corpus bites
    assert canary.exists()


def test_honest_pickles_become_safetensors_only_on_consent(tmp_path: Path) -> None:
    folder, out = tiny_models.make(tmp_path / "model", tie_word_embeddings=True), tmp_path / "out"
    expected = tiny_models.logits(folder)
    torch.save(tiny_models.load(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert [file.name for file in weight_files(folder)] == ["pytorch_model.bin"]
    with pytest.raises(ScalerError, match="a pickle is a program"):
        convert_pickled(folder, out, consent=False)
    assert not out.exists()
    convert_pickled(folder, out, consent=True)
    assert torch.equal(tiny_models.logits(out), expected)


def test_a_confined_child_reaches_no_network_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # from here it answers
        program = f"import os, socket; print('HF_TOKEN' in os.environ); socket.create_connection(('127.0.0.1', {port}))"
        answer = run_confined([sys.executable, "-c", program], Bounds(10, 2**30, 2**20))
    assert answer.returncode == 1
    assert answer.stdout.strip() == "False"
    assert "unreachable" in answer.stderr or "refused" in answer.stderr


@pytest.mark.parametrize(
    "program", ["b = b'a' * 2**31", "open('big', 'wb').write(b'a' * 2**22)", "while True: pass"], ids=str.split
)
def test_a_confined_child_has_limits(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_confined([sys.executable, "-c", program], Bounds(1, 2**30, 2**20)).returncode != 0


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", malice.recipes())
def test_a_malicious_recipe_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_bytes(malice.recipes()[name].encode("utf-8", "surrogateescape"))
    with pytest.raises(ScalerError) as caught:
        load_recipe(file)
    assert len(str(caught.value).splitlines()) == 2
    assert not (tmp_path / "canary").exists()


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(malice.SAFETENSORS) + len(malice.GGUF) >= 60
