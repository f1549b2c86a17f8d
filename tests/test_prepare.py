import json
import random
from pathlib import Path

import pytest

from scaler_wizard.clean import flaw, masked
from scaler_wizard.data import load_corpus
from scaler_wizard.errors import ScalerError
from scaler_wizard.prepare import DataCard, Preparation, prepare
from scaler_wizard.sketch import NearDuplicates, Reserved, normal
from test_readers import BROKEN

WORDS = """house road stone river tree light morning summer winter window garden letter mother brother teacher music
bread water mountain valley silver copper paper number answer question reason measure pattern sentence""".split()

ENGLISH = "The old man went over the bridge every morning to see his grandchildren, who lived over there. "
GERMAN = (
    "Der Müller wohnt am Bach, und seine Tochter geht jeden Morgen über die Brücke in die kleine Schule nebenan, "
    "wo sie lesen lernt. "
)


def prose(seed: int, words: int = 200) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) + ("." if chance.random() < 0.1 else "") for _ in range(words))


def kept(folder: Path, how: Preparation | None = None) -> tuple[list[str], DataCard]:
    card = prepare(folder, folder.parent / "out.jsonl", how or Preparation())
    lines = (folder.parent / "out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["name"] for line in lines], card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    for number in range(3):
        (made / f"{number}.txt").write_text(prose(number))
    return made


def test_a_hundred_broken_files_are_each_named_and_the_rest_is_kept(folder: Path) -> None:
    broken = [name for name in BROKEN if Path(name).suffix not in ("", ".png")]
    names = [f"{number}-{broken[number % len(broken)]}" for number in range(100)]
    for name in names:
        (folder / name).write_bytes(BROKEN[name.split("-", 1)[1]][0])
    found, card = kept(folder)
    assert card.unreadable.keys() == set(names)
    assert all(BROKEN[name.split("-", 1)[1]][1] in reason for name, reason in card.unreadable.items())
    assert found == ["0.txt", "1.txt", "2.txt"]


def test_what_stood_before_the_damage_is_kept(folder: Path) -> None:
    (folder / "a.jsonl").write_text(json.dumps({"text": prose(9)}) + "\n{")
    found, card = kept(folder)
    assert "a.jsonl line 1" in found
    assert "line 2" in card.unreadable["a.jsonl"]


def test_repetitions_go_exact_ones_and_near_ones_and_the_first_stays(folder: Path) -> None:
    text = prose(0, 400)
    (folder / "4.txt").write_text(prose(1))
    (folder / "5.txt").write_text(text)
    (folder / "6.txt").write_text(text.replace("house", "barn", 2).upper())
    found, card = kept(folder)
    assert {why: dropped.count for why, dropped in card.dropped.items()} == {
        "the same as an earlier text": 1,
        "nearly the same as an earlier text": 1,
    }
    assert found == ["0.txt", "1.txt", "2.txt", "5.txt"]
    assert "6.txt" in kept(folder, Preparation(near_duplicates=False))[0]


def test_near_duplicates_are_found_and_unlike_texts_are_not() -> None:
    base = [prose(seed, 300) for seed in range(200)]
    index = NearDuplicates()
    assert [index.seen(str(number), normal(text)) for number, text in enumerate(base)] == [None] * 200
    changed = [text.replace("stone", "rock", 1) for text in base]
    found = [index.seen("x", normal(text)) for text in changed]
    right = sum(one == str(number) for number, one in enumerate(found))
    assert right >= 190
    assert index.seen("other", normal(prose(999, 300))) is None


def test_texts_that_overlap_the_measuring_texts_are_dropped(folder: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    leak = " THIS LONG  SENTENCE about eleven blue elephants in a lighthouse. "
    held.write_text("Nobody else ever wrote this long sentence about eleven blue elephants in a lighthouse.")
    (folder / "leak.txt").write_text(prose(7) + leak + prose(8))
    (folder / "safe.txt").write_text(prose(7) + " eleven blue elephants " + prose(8))
    found, card = kept(folder, Preparation(against=(held,)))
    assert "safe.txt" in found and "leak.txt" not in found
    assert card.dropped["overlaps a text that is kept for measuring"].examples == ("leak.txt",)
    assert not Reserved([]).overlaps(b"anything")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("A few words only.", "fewer than 20 words"),
        ("a b c d e f g h i j " * 5, "words too short"),
        ("12345 67890 11111 " * 20, "hardly any letters"),
        ("the same line\n" * 30, "mostly repeated lines"),
        ("word " * 100, "one word over and over"),
    ],
)
def test_what_is_not_running_text_breaks_a_rule(text: str, wrong: str) -> None:
    assert wrong in str(flaw(text))


def test_running_text_of_several_kinds_breaks_no_rule() -> None:
    books = load_corpus("kjv")
    assert [flaw(book.text) for book in books.train + books.heldout] == [None] * 60
    assert flaw(GERMAN) is None


def test_personal_data_is_masked_and_look_alikes_are_not() -> None:
    text = (
        "Write to jane.doe+x@mail.example.org or call +44 20 7946 0958, card 4111 1111 1111 1111, from 192.168.10.7, "
        "account DE89 3704 0044 0532 0130 00. "
        "Not these: 4111 1111 1111 1112, version 1.2.3, 1914-1918, GB00 1234 5678 9012."
    )
    clean, found = masked(text)
    assert found == {"EMAIL": 1, "PHONE": 1, "CARD": 1, "IP": 1, "IBAN": 1}
    assert clean.startswith("Write to <EMAIL> or call <PHONE>, card <CARD>, from <IP>, account <IBAN>.")
    assert clean.endswith("Not these: 4111 1111 1111 1112, version 1.2.3, 1914-1918, GB00 1234 5678 9012.")


def test_masking_happens_in_what_is_written(folder: Path) -> None:
    (folder / "mail.txt").write_text(prose(5) + " Write to me@here.example today. " + prose(6))
    _, card = kept(folder, Preparation(mask_personal=True))
    assert card.masked == {"EMAIL": 1}
    written = (folder.parent / "out.jsonl").read_text()
    assert "<EMAIL>" in written and "me@here" not in written


def test_only_the_wished_languages_are_kept(folder: Path) -> None:
    for name, text in (
        ("de.txt", GERMAN * 3),
        (
            "en.txt",
            ENGLISH * 3,
        ),
    ):
        (folder / name).write_text(text)
    found, card = kept(folder, Preparation(languages=("de",)))
    assert found == ["de.txt"]
    assert card.languages == {"de": 1}
    assert card.dropped["another language"].count == 4
    assert card.dropped["another language"].examples[0] == "0.txt: en"


def test_where_nothing_is_left_nothing_is_written_and_the_reasons_are_said(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("short")
    with pytest.raises(ScalerError, match="no text is left of 1 in 1 files: 1 fewer than 20 words"):
        kept(tmp_path / "files")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_the_card_counts_what_happened_and_the_result_is_a_corpus(folder: Path) -> None:
    for number in range(3, 60):
        (folder / f"{number}.txt").write_text(prose(number))
    _, card = kept(folder)
    assert (card.files, card.texts, card.kept) == (60, 60, 60)
    assert sum(card.lengths.values()) == 60
    assert DataCard.load(folder.parent / "out.jsonl.card.json") == card
    assert len(load_corpus(str(folder.parent / "out.jsonl")).train) > 40
