"""Attention by tiles against exact attention and against torch's own kernel for bfloat16."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from scaler_wizard import attention, tiles
from scaler_wizard.attention import by_piece
from scaler_wizard.tiles import attend_by_tiles
from tiny_models import load, make

SHAPES = [
    # pieces, heads, kv_heads, tokens, dim, window
    (1, 1, 1, 1, 8, None),
    (3, 4, 4, 5, 16, None),
    (2, 6, 2, 64, 32, None),
    (1, 6, 2, 65, 32, None),
    (1, 4, 1, 600, 80, None),
    (1, 9, 3, 1100, 64, None),
    (2, 4, 2, 130, 16, 1),
    (1, 4, 2, 300, 16, 17),
    (1, 2, 2, 1100, 16, 200),
    (1, 2, 1, 700, 16, 699),
]
Sides = tuple[torch.Tensor, ...]
Attend = Callable[[Sides, int | None], torch.Tensor]


def draw(
    pieces: int, heads: int, kv_heads: int, tokens: int, dim: int, *, peaks: float = 3.0
) -> tuple[Sides, torch.Tensor]:
    """Query, key and value in bfloat16, and what pulls at what is found. Keys share a direction, as a model's do."""
    random = torch.Generator().manual_seed(tokens)
    query = torch.randn(pieces, heads, tokens, dim, generator=random) * peaks
    key = torch.randn(pieces, kv_heads, tokens, dim, generator=random)
    key += 2 * torch.randn(pieces, kv_heads, 1, dim, generator=random)
    value = torch.randn(pieces, kv_heads, tokens, dim, generator=random)
    pull = torch.randn(pieces, heads, tokens, dim, generator=random)
    return tuple(one.bfloat16() for one in (query, key, value)), pull.bfloat16()


def seen(tokens: int, window: int | None) -> torch.Tensor:
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    return (distance >= 0) & (distance < (window or tokens))


def torchs(sides: Sides, window: int | None) -> torch.Tensor:
    query, key, value = sides
    mask = seen(query.shape[2], window) if window else None
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def by_tiles(sides: Sides, window: int | None) -> torch.Tensor:
    query, key, value = sides
    return attend_by_tiles(query, key, value, scaling=query.shape[-1] ** -0.5, window=window)


def with_slopes(attend: Attend, sides: Sides, pull: torch.Tensor, window: int | None, dtype: torch.dtype) -> Sides:
    """What is found, and the slopes of query, key and value."""
    leaves = [one.to(dtype).requires_grad_() for one in sides]
    found = attend(leaves, window)
    return found.detach(), *torch.autograd.grad(found, leaves, pull.to(dtype))


def errors(found: Sides, exact: Sides) -> list[float]:
    return [
        float((one.double() - other).norm() / (other.norm() + 1e-9)) for one, other in zip(found, exact, strict=True)
    ]


@pytest.mark.parametrize(("pieces", "heads", "kv_heads", "tokens", "dim", "window"), SHAPES)
def test_tiles_are_as_near_to_exact_attention_as_bfloat16_allows(
    pieces: int, heads: int, kv_heads: int, tokens: int, dim: int, window: int | None
) -> None:
    sides, pull = draw(pieces, heads, kv_heads, tokens, dim)
    exact = with_slopes(torchs, sides, pull, window, torch.float64)
    assert max(errors(with_slopes(by_tiles, sides, pull, window, torch.bfloat16), exact)) < 6e-3


def test_slopes_are_nearer_than_those_of_torchs_kernel_also_where_scores_are_large() -> None:
    sides, pull = draw(1, 9, 3, 512, 64, peaks=8.0)
    exact = with_slopes(torchs, sides, pull, None, torch.float64)
    ours = errors(with_slopes(by_tiles, sides, pull, None, torch.bfloat16), exact)
    theirs = errors(with_slopes(torchs, sides, pull, None, torch.bfloat16), exact)
    assert ours[0] < 1.6 * theirs[0]
    assert all(mine < other for mine, other in zip(ours[1:], theirs[1:], strict=True)), (ours, theirs)


def test_the_same_is_found_in_float32_up_to_its_rounding() -> None:
    sides, pull = draw(2, 6, 2, 300, 32)
    exact = with_slopes(torchs, sides, pull, 100, torch.float64)
    assert max(errors(with_slopes(by_tiles, sides, pull, 100, torch.float32), exact)) < 1e-5


@pytest.mark.parametrize("window", [None, 90])
@pytest.mark.parametrize("tokens", [1, 17, 64, 100, 299])
def test_the_end_of_a_text_sees_what_stands_before_it(tokens: int, window: int | None) -> None:
    (query, key, value), pull = draw(2, 6, 2, 300, 32)
    whole = by_tiles((query, key, value), window)[:, :, -tokens:]
    sides, pull = (query[:, :, -tokens:], key, value), pull[:, :, -tokens:]
    assert errors((by_tiles(sides, window),), (whole.double(),))[0] < 4e-3

    def piecewise(leaves: Sides, window: int | None) -> torch.Tensor:
        mask = seen(300, window)[-tokens:]
        return scaled_dot_product_attention(*leaves, attn_mask=mask, enable_gqa=True)

    exact = with_slopes(piecewise, sides, pull, window, torch.float64)
    assert max(errors(with_slopes(by_tiles, sides, pull, window, torch.bfloat16), exact)) < 8e-3


def test_nobody_sees_what_comes_later_or_lies_before_the_window() -> None:
    (query, key, value), _ = draw(1, 2, 1, 200, 16)
    before = attend_by_tiles(query, key, value, scaling=0.25, window=50)
    key[:, :, 120:], value[:, :, 120:] = 30.0, 1e4
    key[:, :, :20], value[:, :, :20] = 30.0, -1e4
    after = attend_by_tiles(query, key, value, scaling=0.25, window=50)
    assert torch.equal(after[:, :, 69:120], before[:, :, 69:120])
    assert not torch.equal(after[:, :, 68], before[:, :, 68])


def test_a_tile_of_its_own_for_each_head_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sides, pull = draw(2, 6, 2, 300, 32)
    together = with_slopes(by_tiles, sides, pull, None, torch.bfloat16)
    monkeypatch.setattr(tiles, "ELEMENTS", 1)
    for one, other in zip(with_slopes(by_tiles, sides, pull, None, torch.bfloat16), together, strict=True):
        assert torch.equal(one, other)


def test_few_shapes_serve_every_length() -> None:
    shapes = {
        (layout.rows, tile.keys.shape[1])
        for tokens in range(1, 1025)
        for empty in [torch.empty(1, 1, tokens, 8)]
        for layout in [tiles._Layout.of(empty, empty, None)]
        for *_, tile in layout.tiles(layout.queries(empty), layout.keys(empty), 1.0)
    }
    assert len(shapes) <= 14


@pytest.mark.parametrize(("family", "window"), [("llama", None), ("mistral", 20)])
def test_a_model_in_bfloat16_attends_by_tiles(
    tmp_path: Path, family: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(make(tmp_path, family, **({"sliding_window": window} if window else {})))
    pieces = (70, 70, 9)
    ids = torch.randint(0, 64, (1, sum(pieces)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in pieces])[None]

    def read(dtype: torch.dtype = torch.bfloat16) -> Sides:
        with torch.no_grad(), by_piece(model), torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            return (model(input_ids=ids, position_ids=positions, pieces=pieces, use_cache=False).logits[0],)

    exact, ours = read(torch.float32), read()
    monkeypatch.setattr(attention, "computes_bfloat16", lambda _: False)
    theirs = read()
    assert not torch.equal(ours[0], theirs[0])
    assert errors(ours, exact)[0] < 1.3 * errors(theirs, exact)[0]
