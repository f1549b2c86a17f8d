from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands import scaler
from scaler_wizard.errors import ScalerError
from scaler_wizard.export import card, write_card
from scaler_wizard.models import EMBEDDED
from scaler_wizard.run import Run, export_adapter
from scaler_wizard.story import Story
from told_runs import HOSTILE


def front(text: str) -> dict[str, object]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def licensed(story: Story, licence: str | None, name: str = "embedded") -> Story:
    base = story.plan.base.model_copy(update={"licence": licence, "name": name})
    return replace(story, plan=story.plan.model_copy(update={"base": base}))


def test_the_exported_folder_loads_in_plain_transformers_and_speaks_as_the_base(told_run: Run) -> None:
    folder = told_run.checkpoints / str(told_run.current)
    grown = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
    base.config.rope_parameters = grown.config.rope_parameters
    longer = type(base)(
        grown.config.__class__(**{**base.config.to_dict(), "rope_parameters": grown.config.rope_parameters})
    )
    longer.load_state_dict(base.state_dict())
    ids = AutoTokenizer.from_pretrained(folder)("And it came to pass", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.allclose(grown(ids).logits, longer.eval()(ids).logits, atol=1e-3)
    assert grown.config.max_position_embeddings == 512


def test_the_exported_folder_holds_what_stock_folders_hold(told_run: Run) -> None:
    names = {file.name for file in (told_run.checkpoints / str(told_run.current)).iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "training.jsonl" not in names
    assert not any(name.endswith((".py", ".bin", ".pt")) for name in names)


def test_the_card_tells_hubs_what_they_ask_for(story: Story) -> None:
    found = front(card(story))
    assert found["license"] == "apache-2.0" and found["base_model"] == "embedded"
    assert found["library_name"] == "transformers"
    assert found["tags"] == ["scaler-wizard", "llama", "grown", "long-context", "trained"]


def test_an_unknown_licence_is_said_to_be_unknown(story: Story) -> None:
    text = card(licensed(story, None))
    assert front(text)["license"] == "other" and front(text)["license_name"] == "unknown"
    assert "name no licence" in text and "find it out" in text


def test_a_licence_with_terms_of_its_own_comes_with_a_warning(story: Story) -> None:
    usual, special = card(licensed(story, "apache-2.0")), card(licensed(story, "llama3.2"))
    assert usual.split("## Licence")[1].strip() == "The base is under apache-2.0. Its licence holds for this model too."
    assert "https://" in special.split("## Licence")[1]


def test_hostile_names_neither_break_the_front_matter_nor_become_links(story: Story) -> None:
    text = card(licensed(story, f"evil\n---\n{HOSTILE}", name=f"a: b\n---\n{HOSTILE}"))
    found = front(text)
    assert found["license"] == "other" and str(found["base_model"]).startswith("a: b")
    assert not re.search(r"(?<!\\)\]\(javascript|(?<!\\)<script", text.split("---\n", 2)[2])


def test_the_card_has_lineage_measurements_proof_recipe_and_costs(story: Story) -> None:
    text = card(story)
    for part in (
        "Growth paid",
        "identity blocks",
        "LLaMA-Pro",
        "256 by yarn",
        "512 by searched, found by search (beta fast 14.5)",
        "3.000",
        "2.900",
        "It holds",
        "peak memory",
    ):
        assert part in text
    assert "    parameters: 2x" in text


def test_the_card_does_not_tell_where_files_lie_on_this_machine(story: Story) -> None:
    recipe = {**story.plan.recipe, "model": "/home/ada/models/mine", "data": "/home/ada/texts"}
    base = story.plan.base.model_copy(update={"source": "/home/ada/models/mine"})
    text = card(replace(story, plan=story.plan.model_copy(update={"recipe": recipe, "base": base})))
    assert "/home/ada" not in text and "model: mine" in text


def test_writing_the_card_leaves_a_hard_link_alone(story: Story, tmp_path: Path) -> None:
    (tmp_path / "theirs.md").write_text("theirs")
    (tmp_path / "README.md").hardlink_to(tmp_path / "theirs.md")
    write_card(story, tmp_path)
    assert (tmp_path / "theirs.md").read_text() == "theirs"


def test_the_base_in_the_package_is_not_changed(told_run: Run) -> None:
    assert json.loads((EMBEDDED / "config.json").read_text())["max_position_embeddings"] == 128
    assert (EMBEDDED / "README.md").read_text(encoding="utf-8").count("# The embedded model") == 1


def test_a_run_without_adapters_says_so_when_they_are_asked_for(told_run: Run, tmp_path: Path) -> None:
    with pytest.raises(ScalerError) as refused:
        export_adapter(told_run, tmp_path / "adapter")
    assert refused.value.wrong.endswith("no checkpoint with adapters of its own")
    assert refused.value.cure == "train some: heal.train: lora"


@pytest.mark.slow
@pytest.mark.thorough
def test_adapters_that_a_run_has_trained_can_be_taken_out_alone(tmp_path: Path) -> None:
    recipe = "model: embedded\ncontext: 2x\nheal: {tokens: 8192, window: 128, train: lora, control: false}\n"
    (tmp_path / "r.yaml").write_text(recipe + "measure: {windows: 4, needles: 8}\nlimits: {threads: 1}\n")
    runs = ("--runs", tmp_path / "runs")
    ran = scaler("run", tmp_path / "r.yaml", "--sign", "me", "--approve-within-limits", *runs)
    said = scaler("export", tmp_path / "adapter", "--format", "adapter", *runs)
    assert said.returncode == 0, ran.stdout + said.stderr
    assert {file.name for file in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = scaler("export", tmp_path / "adapter", "--format", "adapter", *runs)
    assert again.returncode == 2 and "is there already" in again.stderr
