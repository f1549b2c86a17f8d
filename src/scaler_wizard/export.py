"""The model card of an exported model: what it is, what was measured, where it comes from, how to load it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from scaler_wizard import __version__
from scaler_wizard.catalogue import licence_warning
from scaler_wizard.conclusion import conclude
from scaler_wizard.gate import tokens
from scaler_wizard.run import write_whole
from scaler_wizard.story import Story, named_only
from scaler_wizard.tables import control, lineage, measurements, plain
from scaler_wizard.wording import duration, gibibytes, size

HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def write_card(story: Story, folder: Path) -> None:
    """Write README.md, beside and renamed: an older one may be a hard link into another checkpoint."""
    write_whole(folder / "README.md", card(story))


def card(story: Story) -> str:
    """The model card."""
    front = yaml.safe_dump(front_matter(story), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", f"# {plain(title(story))}", plain(conclude(story).paragraph())]
    parts += [f"## {name}\n\n{text}" for name, text in _sections(story)]
    return "\n\n".join(parts) + "\n"


def title(story: Story) -> str:
    """The base's name with its new size and window."""
    grown = f", {size(story.parameters)} parameters" if story.grew else ""
    return f"{story.plan.base.name}{grown}, {tokens(story.window)} tokens"


def front_matter(story: Story) -> dict[str, Any]:
    """What model hubs read; a licence that nobody knows is said to be unknown."""
    base = story.plan.base
    known = base.licence is not None and HUB_LICENCE.fullmatch(base.licence) is not None
    licence = {"license": base.licence} if known else {"license": "other", "license_name": _line(base.licence)}
    kinds = (
        ("grown", story.grew),
        ("long-context", story.extended),
        ("trained", story.training is not None),
        ("merge", story.fusion is not None),
    )
    return {
        **licence,
        "base_model": _line(base.name),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["scaler-wizard", base.family, *(name for name, true in kinds if true)],
    }


def _line(text: str | None) -> str:
    """Text on one line: a line of dashes inside would end the front matter."""
    return " ".join((text or "unknown").split())


def _sections(story: Story) -> list[tuple[str, str]]:
    found = [("Load it", _load(story)), ("Measured", _measured(story))]
    if story.proof is not None:
        found.append(("Proof that growth kept the function", _proof(story)))
    found += [
        ("Lineage", _lineage(story)),
        ("Recipe", "\n".join(f"    {line}" for line in recipe(story).splitlines())),
        ("Licence", _licence(story)),
    ]
    return found


def _load(story: Story) -> str:
    return (
        "Stock transformers, no custom code:\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n'
        "```"
    )


def _measured(story: Story) -> str:
    parts = [f"On held-out text ({plain(story.corpus)}). Intervals are 95 %.", measurements(story).markdown()]
    trained = control(story)
    if trained is not None:
        note = "The control is the base with the same window settings, trained on the same tokens."
        parts += [trained.markdown(), note]
    return "\n\n".join(parts)


def _proof(story: Story) -> str:
    assert story.proof is not None
    return (
        f"{plain(story.proof.reason)}. Compared were the logits in fp32 before and after, on real text, right after "
        f"growth; the operators promised: {plain(str(story.proof.promised))}."
    )


def _lineage(story: Story) -> str:
    base = story.plan.base
    rope = ", ".join(f"{name} {value}" for name, value in story.rope.items())
    return "\n\n".join(
        [
            f"Base: {plain(base.name)} ({plain(base.family)}, {base.parameters:,} parameters, window "
            f"{base.native_context:,}).",
            lineage(story).markdown(),
            f"Now: {story.parameters:,} parameters, window {story.window:,}, rotary settings: {plain(rope)}.",
            f"Made by Scaler Wizard {__version__}, run {plain(story.run_id)}, {story.told:%Y-%m-%d}; "
            f"{duration(story.costs.seconds)} of work, peak memory {gibibytes(story.costs.peak_memory_bytes)}.",
        ]
    )


def recipe(story: Story) -> str:
    """The recipe as YAML, with the values that the plan was free to choose left out."""
    found = _said(story.plan.recipe)
    named = {key: named_only(str(found[key])) for key in ("model", "data") if key in found}
    return str(yaml.safe_dump(found | named, sort_keys=False, allow_unicode=True))


def _said(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    found = {name: _said(value) for name, value in settings.items() if value is not None}
    return {name: value for name, value in found.items() if value != {}}


def _licence(story: Story) -> str:
    licence, warning = story.plan.base.licence, licence_warning(story.plan.base.licence)
    known = "The base's files name no licence." if licence is None else f"The base is under {plain(licence)}."
    return f"{known} Its licence holds for this model too." + (f" {plain(warning)}" if warning else "")
