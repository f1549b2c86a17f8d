import json
from pathlib import Path

import numpy as np
import pytest

from scaler_wizard.data import Document, load_corpus
from scaler_wizard.errors import ScalerError
from scaler_wizard.sampling import times_read


def documents(*lengths: int, source: str = "a", weight: float = 1.0) -> list[Document]:
    return [Document(str(number), "x" * length, source, weight) for number, length in enumerate(lengths)]


def read(found: list[Document], *, long_share: float | None = None, seed: int = 0) -> list[int]:
    return times_read(found, [len(one.text) for one in found], native=100, long_share=long_share, seed=seed)


def test_every_text_is_read_once_where_nothing_is_said() -> None:
    assert read(documents(10, 500, 20)) == [1, 1, 1]


def test_long_texts_get_their_share_within_each_source_and_sources_keep_theirs() -> None:
    prose, code = documents(*[50] * 800, *[200] * 50), documents(*[25] * 800, *[400] * 10, source="b")
    found = [*prose, *code]
    tokens = np.array([len(one.text) for one in found])
    mean = np.mean([read(found, long_share=0.5, seed=seed) for seed in range(20)], axis=0) * tokens
    for part, total in ((slice(0, 850), 50_000), (slice(850, None), 24_000)):
        assert mean[part].sum() == pytest.approx(total, rel=0.03)
        assert mean[part][800:].sum() == pytest.approx(0.5 * total, rel=0.06)


def test_no_text_is_read_more_than_four_times_as_often_and_enough_long_ones_are_left_alone() -> None:
    few = documents(*[50] * 1000, 200)
    assert read(few, long_share=0.5)[-1] == 4
    assert read(documents(*[200] * 10, 50), long_share=0.5) == [1] * 11
    assert read(documents(50, 50), long_share=0.5) == [1, 1]


def test_weights_come_true_on_average_and_the_same_seed_draws_the_same() -> None:
    found = [*documents(*[10] * 2000, weight=0.25), *documents(10, weight=3.0), *documents(10, weight=0.0)]
    counts = read(found)
    assert sum(counts[:2000]) == pytest.approx(500, rel=0.15)
    assert counts[2000:] == [3, 0]
    assert counts == read(found) != read(found, seed=1)


def test_a_file_may_name_sources_and_weights(tmp_path: Path) -> None:
    rows = [{"text": f"A sentence, number {n}. " * 8, "source": "news", "sampling_weight": n} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus(str(tmp_path / "a.jsonl"))
    assert {one.source for one in corpus.train} == {"news"}
    assert all(one.text.startswith(f"A sentence, number {one.weight:.0f}.") for one in corpus.train)
    rows[3]["sampling_weight"] = -1
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ScalerError, match="line 4: sampling_weight -1: not a number from 0 to 100"):
        load_corpus(str(tmp_path / "a.jsonl"))
