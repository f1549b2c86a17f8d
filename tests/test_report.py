from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from scaler_wizard.charts import DARK, LIGHT, pictures
from scaler_wizard.report import page, write_report
from scaler_wizard.run import Run
from scaler_wizard.story import Story
from told_runs import HOSTILE, measured, with_final

VOID = {"meta", "img", "source"}


class Reader(HTMLParser):
    """Refuses tags that do not nest; remembers tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_export_phase_writes_report_and_pictures(told_run: Run) -> None:
    names = {file.name for file in (told_run.folder / "report").iterdir()}
    assert names == {
        "report.md",
        "report.html",
        "nll_by_position.png",
        "needles.png",
        "training.png",
        "parameters.png",
    }
    assert (told_run.folder / "report" / "needles.png").read_bytes().startswith(b"\x89PNG")


def test_the_markdown_names_only_pictures_that_lie_beside_it(told_run: Run) -> None:
    text = (told_run.folder / "report" / "report.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(([^)]*\.png)\)", text)
    assert len(named) == 4 and all((told_run.folder / "report" / name).is_file() for name in named)


def test_the_page_nests_and_asks_for_nothing_from_outside(story: Story) -> None:
    reader = read(page(story, pictures(story)))
    links = [value for _, attrs in reader.tags for name, value in attrs.items() if name in ("src", "srcset", "href")]
    assert len(links) == 8 and all(link is not None and link.startswith("data:image/svg+xml") for link in links)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in reader.tags}
    assert all(attrs["alt"] for tag, attrs in reader.tags if tag == "img")
    svg = base64.b64decode((links[0] or "").split(",")[1]).decode()
    assert not re.search(r"(?:href|src)=\"(?!#)", svg)


def test_hostile_text_stays_text(story: Story, tmp_path: Path) -> None:
    base = story.plan.base.model_copy(update={"name": HOSTILE, "licence": HOSTILE})
    hostile = replace(story, plan=story.plan.model_copy(update={"base": base}), run_id=HOSTILE)
    reader = read(page(hostile, pictures(hostile)))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert HOSTILE in reader.text
    write_report(hostile, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    outside = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(javascript", outside)


def test_the_verdict_stands_before_everything_else(story: Story) -> None:
    text = read(page(story, pictures(story))).text
    order = [text.index(word) for word in ("Growth paid", "Gained", "Lost", "Not measured", "Gates")]
    assert order == sorted(order)


def test_every_gate_stands_in_the_report_with_its_sentence(story: Story) -> None:
    text = read(page(story, pictures(story))).text
    assert all(one.sentence in text for one in story.timeline)


def test_numbers_that_are_none_or_not_finite_survive(story: Story, tmp_path: Path) -> None:
    broken = measured(short=float("nan"), long=float("inf"), truncated=float("nan"))
    write_report(with_final(story, broken), tmp_path)
    assert "not a finite number" in (tmp_path / "report.md").read_text(encoding="utf-8")
    nothing = replace(story, phases=tuple(replace(one, measurement=None, training=None) for one in story.phases))
    write_report(replace(nothing, curves={}), tmp_path / "empty")
    assert "any quality" in (tmp_path / "empty" / "report.md").read_text(encoding="utf-8")
    assert [file.name for file in (tmp_path / "empty").glob("*.png")] == ["parameters.png"]


def test_pictures_are_the_same_bytes_each_time_and_differ_between_light_and_dark(story: Story) -> None:
    for picture in pictures(story):
        assert picture.bytes(LIGHT, "svg") == picture.bytes(LIGHT, "svg") != picture.bytes(DARK, "svg")
