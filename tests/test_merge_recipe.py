"""What a merge refuses before it writes, and what it reads: our own block and mergekit's format."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from scaler_wizard.cli import app
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import AddKvGroups, IdentityBlocks, WidenFfn
from scaler_wizard.merge import METHODS, Breadcrumbs, DareTies, Linear, NuSlerp, Passthrough, Slerp, Ties
from scaler_wizard.merge.recipe import load_merge, read_merge
from scaler_wizard.merge.settings import Filtered, value_at
from scaler_wizard.merging import MERGE, Lineage, merge_models, prepare
from scaler_wizard.oneshot import grow_model
from tiny_models import load, make


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two fine-tunes, by the names of their folders."""
    root = tmp_path_factory.mktemp("family")
    base = make(root / "base")
    return {"base": base, "a": tuned(base, root / "a", 1), "b": tuned(base, root / "b", 2)}


def tuned(source: Path, folder: Path, seed: int) -> Path:
    model = load(source)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += (torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter.dtype)
    model.save_pretrained(folder)
    return folder


def changed(source: Path, folder: Path, **changes: Any) -> Path:
    """The same weights under another configuration."""
    shutil.copytree(source, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def linear(*folders: Path, **general: Any) -> Any:
    models = [{"model": str(folder)} for folder in folders]
    return read_merge({"method": "linear", "models": models, **general}, "recipe", METHODS)


def ties(family: dict[str, Path], **changes: Any) -> dict[str, Any]:
    models = [{"model": str(family[name]), "weight": 0.5, "density": 0.5} for name in "ab"]
    return {"method": "ties", "base": str(family["base"]), "models": models} | changes


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "key", "value", "said"),
    [
        ("model", "densty", 0.2, "did you mean density"),
        ("model", "density", 5.0, "must be from 0 to 1"),
        ("model", "density", [0.1, 1.2], "must be from 0 to 1"),
        ("model", "density", [{"filter": "mlp", "value": -0.1}, {"value": 1}], "must be from 0 to 1"),
        ("model", "weight", float("nan"), "must be from -10 to 10"),
        ("model", "weight", "much", "number"),
        ("merge", "sclae", 2, "did you mean scale"),
        ("merge", "method", "tise", "did you mean ties"),
        ("merge", "base", None, "ties needs `base`"),
        ("merge", "models", [], "at least 1"),
        ("merge", "dtype", "int8", "float32"),
    ],
)
def test_a_slip_in_a_setting_is_refused_by_name(
    family: dict[str, Path], where: str, key: str, value: Any, said: str
) -> None:
    block = ties(family)
    (block["models"][1] if where == "model" else block)[key] = value
    with pytest.raises(ScalerError, match=said):
        read_merge(block, "recipe", METHODS)


def test_every_method_has_a_title_a_paper_and_its_own_name() -> None:
    for name, kind in METHODS.items():
        assert kind.title and kind.paper and kind.model_fields["method"].default == name


def test_gradients_and_filters_give_each_tensor_its_number() -> None:
    assert [value_at((0.0, 1.0, 0.5), "x", depth) for depth in (0, 0.25, 0.5, 1)] == [0.0, 0.5, 1.0, 0.5]
    filters = (Filtered(filter="mlp", value=(0.0, 1.0)), Filtered(value=0.3))
    assert value_at(filters, "model.layers.1.mlp.up_proj.weight", 0.5) == 0.5
    assert value_at(filters, "model.norm.weight", 0.0) == 0.3
    with pytest.raises(ScalerError, match="no filter fits"):
        value_at(filters[:1], "model.norm.weight", 0.0)


def test_weights_that_do_not_add_up_are_refused(family: dict[str, Path]) -> None:
    models = [{"model": str(family[name]), "weight": weight} for name, weight in (("a", 0.5), ("b", 0.4))]
    block = {"method": "linear", "models": models, "normalize": False}
    with pytest.raises(ScalerError, match=r"add up to 0\.9"):
        prepare(read_merge(block, "recipe", METHODS))
    models[1]["weight"] = -0.5
    with pytest.raises(ScalerError, match="add up to 0"):
        prepare(read_merge(block | {"normalize": True}, "recipe", METHODS))


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}}, "rope: "),
        ({"max_position_embeddings": 128}, "max_position_embeddings: 64 in .* 128 in"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_other_settings_are_refused_or_reconciled_by_name(
    family: dict[str, Path], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    other = changed(family["b"], tmp_path / "other", **changes)
    with pytest.raises(ScalerError, match=said) as refused:
        prepare(linear(family["a"], other))
    assert f"configuration: {other}" in refused.value.cure
    done = merge_models(linear(family["a"], other, configuration=str(other)), tmp_path / "out")
    assert len(done.lineage.reconciled) == 1
    key = next(iter(changes))
    assert json.loads((tmp_path / "out/config.json").read_text())[key] == changes[key]


def test_a_tied_and_an_untied_model_merge_only_into_an_untied_one(tmp_path: Path) -> None:
    tied = make(tmp_path / "tied", tie_word_embeddings=True)
    untied = changed(tied, tmp_path / "untied", tie_word_embeddings=False)
    weights = load_file(untied / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 3
    save_file(weights, untied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ScalerError, match="tie_word_embeddings"):
        prepare(linear(tied, untied))
    with pytest.raises(ScalerError, match=r"the head of .*untied would be lost"):
        prepare(linear(tied, untied, configuration=str(tied)))
    merge_models(linear(tied, untied, configuration=str(untied)), tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert torch.allclose(merged["lm_head.weight"], 2 * merged["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 64}, "hidden size: 32 in .* 64 in"),
        ({"num_hidden_layers": 4}, "layers: 3 of .* 4 of"),
        ({"vocab_size": 65}, "vocabulary: 64 in .* 65 in"),
        ({"num_key_value_heads": 4}, "key/value heads"),
    ],
)
def test_other_sizes_are_refused(family: dict[str, Path], tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScalerError, match=said):
        prepare(linear(family["a"], make(tmp_path / "other", **changes)))


def test_other_families_and_stale_lists_are_refused(family: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ScalerError, match=r"llama model, .* mistral model"):
        prepare(linear(family["a"], make(tmp_path / "other", "mistral")))
    qwen = make(tmp_path / "qwen", "qwen2")
    stale = changed(qwen, tmp_path / "stale", layer_types=["full_attention"] * 5)
    with pytest.raises(ScalerError, match="layer_types does not list 3 layers"):
        prepare(linear(qwen, stale))


def test_models_without_a_common_ancestor_are_refused(family: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ScalerError, match="no common ancestor: the cosine of their weights is"):
        prepare(linear(family["a"], make(tmp_path / "stranger", seed=7)))


def test_the_same_model_twice_is_refused(family: dict[str, Path]) -> None:
    with pytest.raises(ScalerError, match="stands twice"):
        prepare(linear(family["a"], family["a"]))


def test_tokens_with_other_numbers_are_refused(family: dict[str, Path], tmp_path: Path) -> None:
    folders = [shutil.copytree(family[name], tmp_path / name) for name in "ab"]
    vocabulary = {f"token{number}": number for number in range(64)}
    for folder in folders:
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary}}))
        vocabulary = {name: 63 - number for name, number in vocabulary.items()}
    for tokenizer in (None, "union", str(folders[0])):
        with pytest.raises(ScalerError, match="number their tokens differently"):
            prepare(linear(*folders, tokenizer=tokenizer))
    shutil.copyfile(folders[0] / "tokenizer.json", folders[1] / "tokenizer.json")
    (folders[1] / "chat_template.jinja").write_text("hello")
    merge_models(linear(*folders, tokenizer=str(folders[1])), tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == "hello"


def test_a_preflight_takes_a_tenth_of_a_second_at_most(family: dict[str, Path]) -> None:
    method = read_merge(ties(family), "recipe", METHODS)
    prepare(method)  # imports
    seconds = []
    for _ in range(5):
        started = time.process_time()
        prepare(method)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.1


# -- what is left -----------------------------------------------------------------------------------------------------


def test_a_merge_says_how_it_was_made(family: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"merge": ties(family, seed=3)}))
    answer = CliRunner().invoke(app, ["merge", str(file), "-o", str(tmp_path / "out")])
    assert answer.exit_code == 0, answer.output
    lineage = Lineage.load(tmp_path / "out" / MERGE)
    assert [model.name for model in lineage.models] == [str(family[name]) for name in ("base", "a", "b")]
    assert len({model.fingerprint for model in lineage.models}) == 3
    assert read_merge(lineage.recipe, "merge.json", METHODS) == load_merge(file, METHODS)
    assert lineage.recipe["seed"] == 3 and lineage.files["model.safetensors"]
    assert not any(file.name.startswith(".") for file in tmp_path.iterdir())


def test_a_folder_that_is_not_a_merge_is_never_replaced(family: dict[str, Path], tmp_path: Path) -> None:
    method = read_merge(ties(family), "recipe", METHODS)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    for force in (False, True):
        with pytest.raises(ScalerError, match="not empty"):
            merge_models(method, precious, force=force)
    merge_models(method, tmp_path / "out")
    with pytest.raises(ScalerError, match="not empty"):
        merge_models(method, tmp_path / "out")
    merge_models(method, tmp_path / "out", force=True)
    assert (precious / "thesis.txt").read_text() == "years"


def test_without_an_output_the_command_only_looks(family: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"merge": ties(family)}))
    answer = CliRunner().invoke(app, ["merge", str(file)])
    assert answer.exit_code == 0 and "Nothing stands in the way" in answer.output
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


# -- mergekit's format ------------------------------------------------------------------------------------------------


def kit(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "kit.yaml"
    file.write_text(text)
    return load_merge(file, METHODS)


def test_its_documented_examples_are_read(tmp_path: Path) -> None:
    slerp = kit(
        tmp_path,
        """
        slices:
          - sources:
              - {model: org/base, layer_range: [0, 32]}
              - {model: org/other, layer_range: [0, 32]}
        merge_method: slerp
        base_model: org/base
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - value: 0.5
        dtype: bfloat16
        """,
    )
    assert isinstance(slerp, Slerp) and slerp.dtype == "bfloat16"
    assert [model.model for model in slerp.models] == ["org/base", "org/other"]
    assert slerp.models[0].layers == (0, 32)
    assert value_at(slerp.t, "model.layers.0.self_attn.q_proj.weight", 1.0) == 1.0
    gradient = kit(
        tmp_path,
        """
        models:
          - model: org/one
            parameters: {density: [1, 0.7, 0.1], weight: 1.0}
          - model: org/two
            parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}
          - model: org/three
            parameters:
              density: 0.33
              weight:
                - {filter: mlp, value: 0.5}
                - value: 0
        merge_method: ties
        base_model: org/base
        parameters: {normalize: true, int8_mask: true}
        dtype: float16
        """,
    )
    assert isinstance(gradient, Ties) and gradient.normalize and gradient.base == "org/base"
    assert gradient.models[2].weight == (Filtered(filter="mlp", value=0.5), Filtered(value=0))
    stacked = kit(
        tmp_path,
        """
        slices:
          - sources: [{model: org/one, layer_range: [0, 24]}]
          - sources: [{model: org/two, layer_range: [8, 32]}]
        merge_method: passthrough
        dtype: bfloat16
        """,
    )
    assert isinstance(stacked, Passthrough)
    assert [slice.layers for slice in stacked.models] == [(0, 24), (8, 32)]
    soup = kit(
        tmp_path,
        """
        models:
          - {model: org/one, parameters: {weight: 1.0}}
          - {model: org/two, parameters: {weight: 0.3}}
        merge_method: linear
        dtype: float16
        """,
    )
    assert isinstance(soup, Linear) and [model.weight for model in soup.models] == [1.0, 0.3]


EXAMPLES = {
    "bio-merge": """
        models:
          - {model: A, parameters: {density: 0.5, weight: 0.5}}
          - {model: B, parameters: {density: 0.5, weight: 0.5}}
        merge_method: ties
        base_model: BASE
        parameters: {normalize: false, int8_mask: true}
        dtype: float16
        """,
    "gradient-slerp": """
        slices:
          - sources: [{model: A, layer_range: [0, 40]}, {model: B, layer_range: [0, 40]}]
        merge_method: slerp
        base_model: A
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - value: 0.5
        dtype: float16
        """,
    "linear": """
        models:
          - {model: A, parameters: {weight: 1.0}}
          - {model: B, parameters: {weight: 0.3}}
          - {model: BASE, parameters: {weight: 0.5}}
        merge_method: linear
        dtype: float16
        """,
    "44 layers": """
        slices:
          - sources: [{model: A, layer_range: [0, 24]}]
          - sources: [{model: B, layer_range: [20, 40]}]
        merge_method: passthrough
        dtype: float16
        """,
    "ties": """
        models:
          - {model: A, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
          - {model: B, parameters: {density: 0.33, weight: [{filter: mlp, value: 0.5}, {value: 0}]}}
        merge_method: ties
        base_model: BASE
        parameters: {normalize: true, int8_mask: true}
        dtype: float16
        """,
}
"""The examples of its documentation, with our models' names."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of 40 layers, as the examples have them."""
    root = tmp_path_factory.mktemp("deep")
    small = {"hidden_size": 8, "intermediate_size": 12, "head_dim": 2, "num_hidden_layers": 40}
    base = make(root / "base", dtype="float16", **small)
    return {"BASE": base} | {name: tuned(base, root / name, number) for number, name in enumerate("AB", 1)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_documented_examples_run(deep: dict[str, Path], tmp_path: Path, name: str) -> None:
    text = re.sub(r"\b(A|B|BASE)\b", lambda found: str(deep[found[1]]), EXAMPLES[name])
    (tmp_path / "kit.yaml").write_text(text)
    merged = merge_models(tmp_path / "kit.yaml", tmp_path / "out").folder
    assert load(merged).config.num_hidden_layers == (44 if name == "44 layers" else 40)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"serch": {}}, "did you mean search"),
        ({"search": {"text": {"a": "kjv"}}}, "did you mean texts"),
        ({"search": 3}, "a group of settings is needed"),
    ],
)
def test_a_slip_beside_the_merge_is_refused_before_anything_is_written(
    family: dict[str, Path], tmp_path: Path, beside: dict[str, Any], said: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"merge": ties(family), **beside}))
    answer = CliRunner().invoke(app, ["merge", str(file)])
    assert isinstance(answer.exception, ScalerError) and said in str(answer.exception)


def test_several_merges_in_one_file_are_refused_in_two_lines(tmp_path: Path) -> None:
    with pytest.raises(ScalerError, match="several documents") as slip:
        kit(tmp_path, f"{dedent(EXAMPLES['linear'])}\n---\n{dedent(EXAMPLES['ties'])}")
    assert "a file of its own" in slip.value.cure


def test_narrow_parameters_come_before_wide_ones_and_the_base_is_not_merged(tmp_path: Path) -> None:
    found = kit(
        tmp_path,
        """
        models:
          - {model: org/base}
          - {model: org/one, parameters: {weight: {filter: mlp, value: 0.2}}}
          - {model: org/two}
        merge_method: dare_ties
        base_model: org/base
        parameters: {weight: 0.7, density: 0.4, lambda: 1.5}
        """,
    )
    assert isinstance(found, DareTies) and found.scale == 1.5
    assert [model.model for model in found.models] == ["org/one", "org/two"]
    assert found.models[0].weight == (Filtered(filter="mlp", value=0.2), Filtered(value=0.7))
    assert found.models[1].weight == 0.7 and found.models[1].density == 0.4


def test_the_one_module_of_a_language_model_is_read_as_if_it_stood_outside(tmp_path: Path) -> None:
    found = kit(
        tmp_path,
        """
        modules:
          default:
            slices:
              - sources: [{model: a, layer_range: [0, 8], parameters: {weight: 0.3}}, {model: b, layer_range: [0, 8]}]
            parameters: {weight: {filter: mlp, value: 0.6}}
        merge_method: linear
        parameters: {weight: 0.9}
        """,
    )
    assert isinstance(found, Linear) and [model.layers for model in found.models] == [(0, 8), (0, 8)]
    assert found.models[0].weight == 0.3
    assert found.models[1].weight == (Filtered(filter="mlp", value=0.6), Filtered(value=0.9))


def test_other_words_for_the_same_are_understood(tmp_path: Path) -> None:
    text = "models: [{model: a}, {model: b}]\nmerge_method: nuslerp\nparameters: {weight: 1, nuslerp_flatten: false}\n"
    rows = kit(tmp_path, text)
    assert isinstance(rows, NuSlerp) and rows.row_wise
    crumbs = kit(
        tmp_path,
        "models: [{model: a, parameters: {gamma: 0.05}}]\nmerge_method: breadcrumbs\nbase_model: c\n"
        "parameters: {density: 0.9, weight: 1}\ntokenizer_source: base\nout_dtype: float32\ndtype: bfloat16\n",
    )
    assert isinstance(crumbs, Breadcrumbs) and crumbs.models[0].gamma == 0.05
    assert crumbs.tokenizer == "base" and crumbs.dtype == "float32"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "models: [{model: a, parameters: {densty: 0.2}}]\nmerge_method: ties\nbase_model: c\n",
            "did you mean density",
        ),
        ("models: [{model: a}]\nmerge_method: ties\nbase_model: c\nparametrs: {}\n", "did you mean parameters"),
        ("models: [{model: a}]\nmerge_method: ties\nbase_model: c\nparameters: {weight: 99}\n", "from -10 to 10"),
        ("models: [{model: a}]\nmerge_method: core_space\n", "core_space is not supported"),
        ("modules: {}\nmerge_method: linear\n", "modules: none: a language model is the one module default"),
        ("modules: {vision_tower: {models: [{model: a}]}}\nmerge_method: linear\n", "modules: vision_tower: "),
        ("modules: {default: {}}\nmerge_method: linear\n", "modules.default: exactly one of models and slices"),
        ("modules: {default: {modles: []}}\nmerge_method: linear\n", "did you mean models"),
        ("modules: {default: 3}\nmerge_method: linear\n", "modules.default: a group of fields: missing"),
        ("modules: {}\nmodels: [{model: a}]\nmerge_method: linear\n", "exactly one of models, slices and modules"),
        ("models: [{model: a}]\nmerge_method: linear\nchat_template: chatml\n", "chat_template"),
        ("models: [{model: a}]\nslices: []\nmerge_method: linear\n", "exactly one of models, slices and modules"),
        ("models: [{model: a}]\nmerge_method: ties\nbase_model: c\nparameters: {rescale: true}\n", "is always False"),
        ("models: [{model: a}]\nmerge_method: linear\ntokenizer: {tokens: {}}\n", "tokenizer.tokens: not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ScalerError, match=said):
        kit(tmp_path, text)


# -- other sizes ------------------------------------------------------------------------------------------------------


def test_a_smaller_model_is_grown_as_the_larger_one_was(family: dict[str, Path], tmp_path: Path) -> None:
    operators = [WidenFfn(size=64, split="pairs"), IdentityBlocks(blocks=2), AddKvGroups(groups=2)]
    grow_model(family["base"], tmp_path / "large", operators, seed=11, prove=False)
    with pytest.raises(ScalerError, match="query heads") as refused:
        prepare(linear(family["base"], tmp_path / "large"))
    assert "grow: true" in refused.value.cure
    done = merge_models(linear(family["base"], tmp_path / "large", grow=True), tmp_path / "out")
    merged, large = load_file(tmp_path / "out/model.safetensors"), load_file(tmp_path / "large/model.safetensors")
    assert all(torch.allclose(merged[name], large[name], atol=1e-6) for name in large)  # the same growth, bit for bit
    assert any("was grown to the size of" in note for note in done.lineage.reconciled)


def test_without_a_record_the_growth_follows_from_the_sizes(family: dict[str, Path], tmp_path: Path) -> None:
    grow_model(family["base"], tmp_path / "large", [IdentityBlocks(blocks=1)], prove=False)
    (tmp_path / "large/growth.json").unlink()
    large = tuned(tmp_path / "large", tmp_path / "trained", 3)
    merge_models(linear(family["a"], large, grow=True), tmp_path / "out")
    assert load(tmp_path / "out").config.num_hidden_layers == 4
    with pytest.raises(ScalerError, match=r"cannot be grown to the size of .*head_dim 8 and 16"):
        other = make(tmp_path / "other", head_dim=16, num_hidden_layers=5)
        prepare(linear(family["a"], other, grow=True))


def test_methods_that_need_whole_matrices_say_their_memory(family: dict[str, Path]) -> None:
    models = [{"model": str(family[name])} for name in "ab"]
    ready = prepare(read_merge({"method": "tsv", "base": str(family["base"]), "models": models}, "r", METHODS))
    assert "MiB for the largest matrix" in dict(ready.rows())["memory"]
    assert "memory" not in dict(prepare(linear(family["a"], family["b"])).rows())
