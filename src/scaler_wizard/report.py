"""The report of a run: report.md, and report.html in one file without outside requests, with their pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaler_wizard import __version__
from scaler_wizard.charts import THEMES, Picture, pictures
from scaler_wizard.conclusion import Conclusion, conclude
from scaler_wizard.export import recipe, title
from scaler_wizard.gate import tokens
from scaler_wizard.run import write_whole
from scaler_wizard.story import Story
from scaler_wizard.tables import Table, control, gates, lineage, measurements, plain
from scaler_wizard.wording import duration, gibibytes

LISTS = {"gained": "Gained", "lost": "Lost", "unchanged": "Within chance", "unmeasured": "Not measured"}
NOTHING = "Nothing that was measured."


def write_report(story: Story, folder: Path) -> None:
    """Write report.md, report.html and a PNG of every picture into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures(story)
    for picture in drawn:
        (folder / f"{picture.name}.png").write_bytes(picture.bytes(THEMES["light"], "png"))
    write_whole(folder / "report.md", markdown(story, drawn))
    write_whole(folder / "report.html", page(story, drawn))


# -- what stands in it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Verbatim:
    """Text that keeps its lines: a recipe, a command."""

    text: str


Block = str | Bullets | Verbatim | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


def sections(story: Story, drawn: Sequence[Picture]) -> Iterator[Section]:
    """The report, in the order in which a person asks."""
    by_name = {picture.name: picture for picture in drawn}
    yield from _verdict(conclude(story))
    if "nll_by_position" in by_name:
        yield Section("Does the window hold?", (by_name["nll_by_position"], _positions(story)))
    yield Section("Base and grown model", tuple(_figures(story)))
    if "needles" in by_name:
        yield Section("Are needles found?", (by_name["needles"], NEEDLES))
    if "training" in by_name:
        yield Section("Training", (by_name["training"],))
    if "parameters" in by_name:
        yield Section("What grew", (by_name["parameters"], *_proof(story)))
    yield Section("Gates", (_costs(story), gates(story), OWN_GATE))
    yield Section("Lineage", (lineage(story),))
    yield from _notes(story)
    yield Section("Recipe", (Verbatim(recipe(story)),))
    yield Section("What you can do now", (Verbatim(NEXT.format(run=story.run_id)),))


NEEDLES = (
    "A needle is a made-up fact, hidden in held-out text and asked for at its end. It is found where every token of "
    "the answer is the model's first choice. Each cell: found of asked."
)
OWN_GATE = "The gate of the export itself comes after this report; the run's log has it."
NEXT = """\
scaler export OUT {run}     put the model into a folder of your choice
scaler rollback {run}       make an earlier phase the current one; scaler undo takes it back
scaler diff {run}           what changed between two phases
"""


def _verdict(found: Conclusion) -> Iterator[Section]:
    yield Section("", (found.headline,))
    for name, heading in LISTS.items():
        items = getattr(found, name)
        if items or name in ("gained", "lost"):
            yield Section(heading, (Bullets(items) if items else NOTHING,))


def _positions(story: Story) -> str:
    base = story.plan.base
    return (
        f"Mean loss of the tokens at each position of held-out text. The base was made for "
        f"{tokens(base.native_context)} tokens (shaded). The dashed line is the base when it reads only that many "
        "tokens before the end: what a longer window has to beat."
    )


def _figures(story: Story) -> Iterator[Block]:
    yield measurements(story)
    trained = control(story)
    if trained is not None:
        yield trained
        yield "The control is the base with the same window settings, trained on the same tokens in the same order."


def _proof(story: Story) -> Iterator[Block]:
    if story.proof is not None:
        yield f"Proved on this model, before anything was trained: {story.proof.reason}."


def _costs(story: Story) -> str:
    signature = story.signed.signature
    return (
        f"{duration(story.costs.seconds)} of work without waiting at gates, peak memory "
        f"{gibibytes(story.costs.peak_memory_bytes)}. Human contract {story.signed.contract.version}, signed by "
        f"{signature.name} on {signature.time:%Y-%m-%d %H:%M}."
    )


def _notes(story: Story) -> Iterator[Section]:
    said = None if story.proof is None else story.proof.reason
    notes = tuple(note for note in story.notes if note.rstrip(".") != said)
    if notes:
        yield Section("Notes", (Bullets(notes),))


# -- Markdown ----------------------------------------------------------------------------------------------------------


def markdown(story: Story, drawn: Sequence[Picture]) -> str:
    """The report as Markdown, with the pictures beside it."""
    parts = [f"# {plain(title(story))}", plain(_subtitle(story))]
    for section in sections(story, drawn):
        parts += [f"## {section.title}"] if section.title else []
        parts += [_in_markdown(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _in_markdown(block: Block) -> str:
    match block:
        case Bullets():
            return "\n".join(f"- {plain(item)}" for item in block.items)
        case Verbatim():
            return "\n".join(f"    {line}" for line in block.text.splitlines())
        case Table():
            return block.markdown()
        case Picture():
            return f"![{plain(block.alt)}]({block.name}.png)"
    return plain(block)


def _subtitle(story: Story) -> str:
    return f"Run {story.run_id}, {story.told:%Y-%m-%d %H:%M} UTC, Scaler Wizard {__version__}"


# -- HTML --------------------------------------------------------------------------------------------------------------


STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def page(story: Story, drawn: Sequence[Picture]) -> str:
    """The report as one HTML file that asks for nothing from outside."""
    name = html.escape(title(story))
    body = "".join(_section(section) for section in sections(story, drawn))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{name}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{name}</h1><p>{html.escape(_subtitle(story))}</p></header>{body}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    name = section.title.lower().split()[0] if section.title in LISTS.values() else ""
    heading = f"<h2>{html.escape(section.title)}</h2>" if section.title else ""
    return f'<section class="{name or "plain"}">{heading}{"".join(map(_in_html, section.blocks))}</section>\n'


def _in_html(block: Block) -> str:
    match block:
        case Bullets():
            return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in block.items)}</ul>"
        case Verbatim():
            return f"<pre>{html.escape(block.text)}</pre>"
        case Table():
            return block.html()
        case Picture():
            return _figure(block)
    return f"<p>{html.escape(block)}</p>"


def _figure(picture: Picture) -> str:
    light, dark = (base64.b64encode(picture.bytes(THEMES[name], "svg")).decode() for name in ("light", "dark"))
    data = "data:image/svg+xml;base64,"
    return (
        f"<figure><figcaption>{html.escape(picture.title)}</figcaption><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{data}{dark}">'
        f'<img alt="{html.escape(picture.alt)}" src="{data}{light}"></picture></figure>'
    )
