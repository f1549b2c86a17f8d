"""Loss by token: what transformers computes, for every architecture, whole or piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scaler_wizard.evals import perplexity
from scaler_wizard.evals.onward import onward
from scaler_wizard.evals.perplexity import block_means, token_nll, truncated_nll
from scaler_wizard.intervals import paired_gain
from scaler_wizard.models import load_model
from tiny_models import CONFIGS, load, make

WINDOWS = np.random.default_rng(0).integers(0, 64, (2, 40)).astype(np.int32)


def reference(folder: Path, windows: np.ndarray) -> np.ndarray:
    ids = torch.from_numpy(windows.astype(np.int64))
    with torch.inference_mode():
        logits = load(folder, "float32")(ids).logits.double()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return loss.reshape(len(windows), -1).numpy()


@pytest.mark.parametrize("family", CONFIGS)
def test_the_loss_of_every_token_is_what_transformers_computes(tmp_path: Path, family: str) -> None:
    folder = make(tmp_path / "model", family)
    ours = token_nll(load_model(folder, dtype="float32"), WINDOWS)
    assert np.abs(ours - reference(folder, WINDOWS)).max() < 1e-4


@pytest.mark.parametrize("family", CONFIGS)
def test_a_window_read_in_pieces_scores_as_one_pass(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model", family)
    monkeypatch.setattr(perplexity, "CHUNK", 7)
    seen: list[int] = []
    ours = token_nll(
        load_model(folder, dtype="float32"), WINDOWS, visit=lambda read, cache: seen.append(read), stops=(9,)
    )
    assert np.abs(ours - reference(folder, WINDOWS)).max() < 1e-4
    assert 9 in seen and seen[-1] == 40


def test_truncation_scores_the_end_with_the_last_native_window_alone(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    ours = truncated_nll(load_model(folder, dtype="float32"), WINDOWS, 16)
    assert ours.shape == (2, 8)
    assert np.abs(ours - reference(folder, WINDOWS[:, -16:])[:, -8:]).max() < 1e-4


def test_planted_sentences_do_not_count_and_gain_is_paired() -> None:
    nll = np.ones((1, 128))
    nll[0, 100:] = 9.0
    keep = nll < 5
    assert np.nanmax(block_means(nll, keep)) == 1.0
    rng = np.random.default_rng(0)
    worse = rng.normal(3.0, 1.0, 400)
    gain = paired_gain(worse, worse - 0.01, seed=0)
    assert gain.low == pytest.approx(0.01) == gain.high


def test_the_softmax_over_slices_of_the_vocabulary_is_that_over_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model")
    monkeypatch.setattr(perplexity, "WORDS_AT_ONCE", 7)
    monkeypatch.setattr(perplexity, "ROWS_AT_ONCE", 11)
    ours = token_nll(load_model(folder, dtype="float32"), WINDOWS)
    assert np.abs(ours - reference(folder, WINDOWS)).max() < 1e-4


def test_pieces_are_read_without_a_mask_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = load_model(make(tmp_path / "model"), dtype="float32")
    before = model.config._attn_implementation
    with onward(model):
        assert model.config._attn_implementation == "onward" != before
    assert model.config._attn_implementation == before
    slides = load_model(make(tmp_path / "slides", "gemma2"), dtype="float32")
    with onward(slides):
        assert slides.config._attn_implementation != "onward"


def test_in_bfloat16_pieces_are_read_by_tiles_as_exactly_as_by_torchs_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model", max_position_embeddings=512)
    text = np.random.default_rng(0).integers(0, 64, (1, 300)).astype(np.int32)
    exact = reference(folder, text)
    monkeypatch.setattr(perplexity, "CHUNK", 70)
    tiles = token_nll(load_model(folder, dtype="bfloat16"), text)
    monkeypatch.setattr("scaler_wizard.evals.onward.FEW", 1000)
    kernel = token_nll(load_model(folder, dtype="bfloat16"), text)
    assert not np.array_equal(tiles, kernel)
    assert np.abs(tiles - exact).mean() < 1.2 * np.abs(kernel - exact).mean()
