import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import docx
import pyarrow
import pyarrow.parquet
import pytest

from scaler_wizard import readers
from scaler_wizard.readers import READERS, Unreadable, texts

PAGE = "<head><style>p {}</style></head><h1>One</h1><p>Two  <b>words</b></p><script>x()</script>"
CONTAINER = '<container><rootfiles><rootfile full-path="b/p.opf"/></rootfiles></container>'
PACKAGE = (
    '<package><manifest><item id="x" href="2.html"/><item id="y" href="1.html"/></manifest>'
    '<spine><itemref idref="y"/><itemref idref="x"/></spine></package>'
)


def read(path: Path) -> list[str]:
    return [passage.text for passage in texts(path)]


def pdf(words: str) -> bytes:
    """A PDF of one page, written out by hand."""
    stream = f"BT /F1 12 Tf 72 720 Td ({words}) Tj ET".encode()
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(out)
    return (
        out
        + b"xref\n0 6\n0000000000 65535 f \n"
        + table
        + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % start
    )


def archive(**files: str | bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, content in files.items():
            made.writestr(name.replace("__", "/").replace("_", "."), content)
    return out.getvalue()


def word(path: Path) -> None:
    made = docx.Document()
    made.add_paragraph("One")
    made.add_table(1, 1).cell(0, 0).text = "Two"
    made.save(str(path))


def parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["One", "Two"]}), path)


MADE: dict[str, tuple[bytes | str | Callable[[Path], None], list[str]]] = {
    "a.txt": ("\ufeffOne\r\nTwo", ["One\nTwo"]),
    "a.md": ("# One", ["# One"]),
    "a.html": (PAGE, ["One\nTwo\nwords"]),
    "a.htm": (PAGE, ["One\nTwo\nwords"]),
    "a.pdf": (pdf("One Two"), ["One Two"]),
    "a.docx": (word, ["One\nTwo"]),
    "a.epub": (
        archive(
            **{"META-INF/container.xml": CONTAINER, "b/p.opf": PACKAGE, "b/1.html": "<p>One", "b/2.html": "<p>Two"}
        ),
        ["One", "Two"],
    ),
    "a.csv": ('id,text\n1,"One, two"\n2,Three', ["One, two", "Three"]),
    "a.tsv": ("content\tid\nOne\t1", ["One"]),
    "a.json": ('[{"text": "One"}, "Two"]', ["One", "Two"]),
    "a.jsonl": ('{"body": "One"}\n\n{"text": "Two\u2028x"}', ["One", "Two\u2028x"]),
    "a.parquet": (parquet, ["One", "Two"]),
    "a.zip": (archive(one_txt="One", deep__two_html="<p>Two", picture_png=b"\x89PNG"), ["One", "Two"]),
}


@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_file_gives_its_texts(tmp_path: Path, name: str) -> None:
    content, expected = MADE[name]
    if callable(content):
        content(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read(tmp_path / name) == expected


def test_every_kind_that_is_offered_is_tried_above() -> None:
    assert {Path(name).suffix for name in MADE} == READERS.keys()


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            "user: Hi\nassistant: Ho",
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            "user: Hi\nassistant: Ho",
        ),
        ({"instruction": "Add", "input": "1 1", "output": "2"}, "Add\n1 1\n2"),
        ({"prompt": "Add", "completion": "2"}, "Add\n2"),
        ({"question": "Who?", "answer": "I"}, "Who?\nI"),
    ],
)
def test_chats_and_instructions_become_text(tmp_path: Path, row: object, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert read(tmp_path / "a.jsonl") == [text]


def test_a_long_text_comes_in_parts_between_paragraphs_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PART_CHARACTERS", 1000)
    whole = "\n\n".join(f"Paragraph {number} of several words." for number in range(200))
    (tmp_path / "a.txt").write_text(whole)
    parts = read(tmp_path / "a.txt")
    assert "".join(parts) == whole
    assert len(parts) > 5
    assert max(map(len, parts)) < 2100
    assert all(part.startswith("\n\nParagraph") for part in parts[1:])


BROKEN: dict[str, tuple[bytes, str]] = {
    "zero.txt": (b"zero \x00 byte", "zero byte"),
    "latin.txt": (b"caf\xe9 and more", "not UTF-8"),
    "cut.pdf": (pdf("One")[:60], "damaged PDF"),
    "scan.pdf": (pdf(""), "no text in this PDF"),
    "cut.docx": (b"PK\x03\x04 cut", "damaged Word"),
    "zip.docx": (archive(a_txt="no Word"), "damaged Word"),
    "cut.epub": (b"PK", "damaged archive"),
    "bare.epub": (archive(a_txt="no book"), "damaged EPUB"),
    "quote.csv": (b'text\n"never closed', "not a valid table"),
    "plain.csv": (b"a,b\n1,2", "no text column"),
    "cut.json": (b'[{"text": "One"', "not valid JSON"),
    "deep.json": (b"[" * 100_000, "JSON"),
    "number.jsonl": (b'{"text": "One"}\n7', "a int, not a text"),
    "turn.jsonl": (b'{"messages": [{"role": "user"}]}', "lacks its role or its content"),
    "cut.parquet": (b"PAR1 cut", "damaged Parquet"),
    "cut.zip": (archive(a_txt="One")[:40], "damaged archive"),
    "image.png": (b"\x89PNG", "not a kind of text"),
    "bare": (b"text", "no suffix"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_says_what_is_wrong_with_it(tmp_path: Path, name: str) -> None:
    content, wrong = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable, match=wrong):
        read(tmp_path / name)


def test_an_archive_that_unpacks_to_far_too_much_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MEMBER_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.txt", "x" * 1_000_000)
    with pytest.raises(Unreadable, match="unpacked"):
        read(tmp_path / "bomb.zip")
    for name, member in (("bomb.docx", "word/document.xml"), ("bomb.epub", "META-INF/container.xml")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr(member, "x" * 1_000_000)
        with pytest.raises(Unreadable, match="unpack"):
            read(tmp_path / name)
    monkeypatch.setattr(readers, "ARCHIVE_BYTES", 1000)
    with pytest.raises(Unreadable, match="would unpack"):
        read(tmp_path / "bomb.zip")
