"""The smallest difference that a study finds, against studies that are judged as a report judges them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beni.analysis.inference import holm, interval, largest, step_down, t_test
from beni.analysis.power import Noise, detectable, noise_of, pooled


def supported(sums: np.ndarray) -> bool:
    """(arms, seeds, pictures) differences -> whether the first arm is supported, as ``stats.corrected`` says it."""
    counts = np.ones(sums.shape[1:])
    flips = step_down([dict(enumerate(one.mean(1).tolist())) for one in sums])
    p = largest(flips[0], holm([t_test(one, counts) for one in sums])[0])
    low, high = interval(sums[0], counts) or (0.0, 0.0)
    return p is not None and p <= 0.05 and not low <= 0 <= high


def drawn(rng: np.random.Generator, arms: int, seeds: int, effect: float, picture: float) -> np.ndarray:
    """Differences of several arms to one baseline, the first with an effect."""

    def arm() -> np.ndarray:
        return 0.02 * rng.normal(size=(seeds, 1)) + picture * rng.normal(size=40) + 0.1 * rng.normal(size=(seeds, 40))

    baseline = arm()
    return np.stack([arm() - baseline + (effect if n == 0 else 0.0) for n in range(arms)])


@pytest.mark.parametrize(
    ("arms", "seeds", "picture"), [(1, 6, 0.0), (5, 6, 0.0), (5, 10, 0.0), (5, 10, 0.05), (3, 20, 0.02)]
)
def test_four_of_five_studies_support_what_can_be_detected(arms: int, seeds: int, picture: float) -> None:
    rng = np.random.default_rng(arms)
    true = Noise(2 * (0.02**2 + 0.1**2 / 40), 2 * picture**2 / 40, 40, 2 * 0.1**2 / 40)
    effect = detectable(true, seeds, arms)
    assert effect is not None
    found = np.mean([supported(drawn(rng, arms, seeds, effect, picture)) for _ in range(250)])
    assert found == pytest.approx(0.8, abs=0.09)  # 3.5 standard errors


def test_the_noise_of_a_study_is_found_in_it() -> None:
    rng = np.random.default_rng(0)
    counts = np.ones((6, 40))
    many = [noise_of(drawn(rng, 1, 6, 0.3, 0.05)[0], counts) for _ in range(300)]
    mean = pooled([one for one in many if one is not None])
    assert mean is not None
    assert mean.seed == pytest.approx(2 * (0.02**2 + 0.1**2 / 40), rel=0.15)
    assert mean.shared == pytest.approx(2 * 0.05**2 / 40, rel=0.15)
    assert mean.within == pytest.approx(2 * 0.1**2 / 40, rel=0.15)
    assert noise_of(np.array([[0.1], [0.3]]), np.ones((2, 1))) == Noise(pytest.approx(0.02))
    assert noise_of(np.ones((1, 5)), np.ones((1, 5))) is None
    assert pooled([]) is None


def test_below_six_seeds_nothing_can_be_detected() -> None:
    assert detectable(Noise(1.0), 5, 1) is None
    assert detectable(Noise(0.0), 6, 3) == 0.0
    one, twice = detectable(Noise(1.0), 6, 3), detectable(Noise(4.0), 6, 3)
    assert one is not None
    assert twice == pytest.approx(2 * one)


def test_more_seeds_detect_less_and_more_arms_need_more() -> None:
    noise = Noise(1.0, 0.02, 100, 0.3)
    by_seeds = [detectable(noise, seeds, 5) or 0.0 for seeds in (6, 8, 10, 16, 24)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    by_arms = [detectable(noise, 8, arms) or 0.0 for arms in (1, 2, 5, 20, 60)]
    assert by_arms == sorted(by_arms)
    assert by_arms[0] < by_arms[-1]


def test_the_factors_of_the_page_on_studies_are_those_of_a_report() -> None:
    page = (Path(__file__).parents[3] / "docs" / "studies.md").read_text(encoding="utf-8")
    table = [line.strip("| ").split(" | ") for line in map(str.strip, page.splitlines()) if line.startswith("| ")]
    shown = {cells[0]: cells[1:] for cells in table if cells[0].isdigit()}
    assert list(shown) == ["6", "8", "10", "12", "16", "24"]
    for seeds, factors in shown.items():
        found = [detectable(Noise(1.0, 0.0, 1000, 0.5), int(seeds), arms) for arms in (1, 3, 5, 10)]
        assert [f"{one:.1f}" for one in found] == factors
