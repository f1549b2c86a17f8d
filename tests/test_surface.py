"""A surface through scores goes through them, says where it knows nothing, and is not bent by noise."""

import numpy as np

from scaler_wizard.context.surface import surface

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-1, 1, (40, 2))


def bowl(points: np.ndarray) -> np.ndarray:
    return (points**2).sum(axis=1) + 5


def test_it_expects_what_was_not_tried() -> None:
    found = surface(POINTS, bowl(POINTS), lengths=np.array([0.7, 0.7]))
    new = RNG.uniform(-0.8, 0.8, (50, 2))
    expected, deviation = found(new)
    assert np.abs(expected - bowl(new)).max() < 0.05
    assert deviation.max() < 0.1


def test_it_is_unsure_far_from_everything_that_was_tried() -> None:
    found = surface(POINTS, bowl(POINTS), lengths=np.array([0.7, 0.7]))
    (_, near), (_, far) = found(POINTS[:1]), found(np.array([[9.0, 9.0]]))
    assert far[0] > 5 * near[0]


def test_noise_does_not_move_its_lowest_point_far() -> None:
    noisy = bowl(POINTS) + 0.1 * RNG.standard_normal(40)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 2), -1).reshape(-1, 2)
    expected, _ = surface(POINTS, noisy, lengths=np.array([0.7, 0.7]))(grid)
    lowest = grid[int(expected.argmin())]
    assert bowl(lowest[None])[0] < 5.05
