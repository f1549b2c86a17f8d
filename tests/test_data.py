import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from scaler_wizard.data import Corpus, Document, Tokens, encode, load_corpus, training_windows, windows
from scaler_wizard.errors import ScalerError

PROSE = "It was a small house on the edge of a long and quiet road. " * 40


def sized(*lengths: int) -> list[Tokens]:
    """Documents of these lengths; every token is different, and a document's tokens follow each other."""
    starts = np.cumsum([0, *lengths])
    return [np.arange(a, b, dtype=np.int32) for a, b in itertools.pairwise(starts)]


def names(documents: tuple[Document, ...]) -> set[str]:
    return {document.name for document in documents}


@pytest.fixture(scope="module")
def kjv() -> Corpus:
    return load_corpus("kjv")


def test_the_bible_comes_as_66_books_in_three_disjoint_parts(kjv: Corpus) -> None:
    assert kjv.licence == "public domain"
    parts = [names(kjv.train), names(kjv.calibration), names(kjv.heldout)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 66


def test_the_bible_is_split_about_80_8_12_with_two_long_books_held_out(kjv: Corpus) -> None:
    words = [[len(book.text.split()) for book in part] for part in (kjv.train, kjv.calibration, kjv.heldout)]
    total = sum(map(sum, words))
    assert [round(sum(part) / total, 2) for part in words] == [0.80, 0.08, 0.12]
    assert sum(count > 25_000 for count in words[2]) >= 2
    assert max(words[1]) > 25_000
    assert total == pytest.approx(789_630, abs=10)


def test_the_bible_has_no_verse_numbers(kjv: Corpus) -> None:
    genesis = kjv.train[0].text
    assert genesis.startswith("In the beginning God created the heavens and the earth.\nAnd the earth was")
    assert not any(sign.isdigit() for book in kjv.train + kjv.calibration + kjv.heldout for sign in book.text)


def test_a_single_file_is_cut_into_three_stretches_in_order(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(PROSE)
    corpus = load_corpus(str(tmp_path / "book.txt"))
    parts = [corpus.train, corpus.calibration, corpus.heldout]
    assert "".join(part[0].text for part in parts) == PROSE
    assert [round(len(part[0].text) / len(PROSE), 2) for part in parts] == [0.80, 0.08, 0.12]
    assert corpus.licence is None


def test_many_documents_are_split_whole_by_their_content(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{PROSE} {number}"}) for number in range(400)]
    (tmp_path / "many.jsonl").write_text("\n".join([*lines, *lines[:50]]))
    corpus = load_corpus(str(tmp_path / "many.jsonl"))
    parts = [{document.text for document in part} for part in (corpus.train, corpus.calibration, corpus.heldout)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 400
    assert len(parts[0]) / 400 == pytest.approx(0.80, abs=0.06)
    assert len(parts[2]) / 400 == pytest.approx(0.12, abs=0.05)


def test_a_folder_is_read_with_its_subfolders_and_other_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "one.md").write_text(PROSE)
    (tmp_path / "deep" / "two.txt").write_bytes(b"\xef\xbb\xbf" + PROSE.encode())
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\x00")
    corpus = load_corpus(str(tmp_path))
    assert names(corpus.train) == {"deep/two.txt (train)", "one.md (train)"}
    assert corpus.train[0].text.startswith("It was")


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("a.txt", b"", "a.txt: empty"),
        ("a.txt", b"too short", "too short"),
        ("a.txt", b"\xff\xfe broken", "not UTF-8"),
        ("a.txt", b"zero \x00 byte", "binary"),
        ("a.png", b"PNG", "not a kind of text"),
        ("a.pdf", b"%PDF", "a.pdf: damaged PDF"),
        ("a.jsonl", b'{"text": 1}', "a.jsonl: no text column"),
        ("a.jsonl", b'{"text": "fine"}\n{', "a.jsonl: line 2: not valid JSON"),
        ("a.jsonl", b'{"text": " "}', "a.jsonl, line 1: empty"),
    ],
)
def test_unusable_text_is_refused_in_two_lines(tmp_path: Path, name: str, content: bytes, wrong: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScalerError, match=wrong) as caught:
        load_corpus(str(tmp_path / name))
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScalerError, match="no such text"):
        load_corpus(str(tmp_path / "absent.txt"))
    with pytest.raises(ScalerError, match="no text in this folder"):
        load_corpus(str(tmp_path))


def test_encoding_keeps_one_array_a_document() -> None:
    def letters(text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    encoded = encode([Document("a", "abc"), Document("b", "")], letters)
    assert [ids.tolist() for ids in encoded] == [[97, 98, 99], []]
    assert encoded[0].dtype == np.int32


def test_windows_stay_inside_a_document_and_take_turns() -> None:
    cut = windows(sized(25, 5, 31), 10)
    assert cut[:, 0].tolist() == [30, 0, 40, 10, 50]  # the longest document first, then the other, again and again
    assert (np.diff(cut, axis=1) == 1).all()
    assert windows(sized(25, 5, 31), 10, limit=2)[:, 0].tolist() == [30, 0]


def test_too_little_text_says_how_many_tokens_are_missing() -> None:
    with pytest.raises(ScalerError, match="a window of 10 lacks 2"):
        windows(sized(8, 5), 10)
    with pytest.raises(ScalerError, match="one window of 10 lacks 3"):
        training_windows(sized(4, 3), 10, 0)


def test_training_windows_use_every_token_at_most_once_and_lose_less_than_a_window() -> None:
    made = training_windows(sized(95, 7, 3, 52, 0, 12), 10, 0)
    used = made.ids.ravel()
    assert len(set(used.tolist())) == len(used) > 169 - 10


def test_document_ids_change_exactly_where_the_text_is_not_continuous() -> None:
    made = training_windows(sized(95, 7, 3, 52, 4, 12), 10, 0)
    same = np.diff(made.document_ids, axis=1) == 0
    assert (np.diff(made.ids, axis=1)[same] == 1).all()
    assert not same.all()
    whole = same.all(axis=1).sum()
    assert whole >= 13  # 9 windows of 95 tokens, 5 of 52 and 1 of 12; at most one of each is lost to the random start


def test_only_pieces_shorter_than_a_window_are_packed() -> None:
    made = training_windows(sized(40), 10, 0)
    assert (made.document_ids == made.document_ids[:, :1]).all()
    assert sorted(made.ids[:, 0].tolist()) == [0, 10, 20, 30]


def test_training_windows_are_the_same_for_the_same_seed_only() -> None:
    one, same, other = (training_windows(sized(205, 33), 10, seed).ids for seed in (5, 5, 6))
    assert (one == same).all()
    assert {row[0] for row in one.tolist()} != {row[0] for row in other.tolist()}  # other cuts, not only another order
    assert one[:, 0].tolist() != sorted(one[:, 0].tolist())


def test_a_document_id_belongs_to_one_piece_of_text() -> None:
    made = training_windows(sized(95, 7, 3, 52, 4, 12), 10, 0)
    for number in np.unique(made.document_ids):
        tokens = made.ids[made.document_ids == number]
        assert np.ptp(tokens) < 10  # one piece, shorter than a window


def test_a_line_separator_inside_a_json_text_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028' + PROSE + '"}\n', encoding="utf-8")
    assert load_corpus(str(tmp_path / "a.jsonl")).train[0].text.startswith("one\u2028It")
