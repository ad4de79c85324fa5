"""Linear probes and principal components are what they say, held to closed forms and NumPy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes import probe

from fractal_streams import open_stream
from fractal_streams.colouring import CATALOGUE as COLOURINGS, find_colouring
from fractal_streams.errors import InvalidValueError
from fractal_streams.formulas import CATALOGUE as FORMULAS, find_formula
from fractal_streams.formulas.definition import VIEW


def normal(*shape: int, name: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(name), dtype=torch.float64)


def look(samples: int, name: int = 0, **latents: torch.Tensor) -> probe.Look:
    return probe.Look(normal(samples, 3, 8, 8, name=name).float(), torch.arange(samples) % 2, latents)


def test_a_linear_map_is_found() -> None:
    x, weights = normal(500, 6), normal(6, 2, name=1)
    model = probe.Ridge(100.0 * x + 7.0).fitted(x @ weights - 3.0)
    fresh = normal(400, 6, name=2)
    # the smallest ridge, 1e-8, shrinks each direction by at most 1e-8 / (its variance, above 0.5 of 1)
    assert model.ridge == 1e-8
    assert probe.r_squared(model(100.0 * fresh + 7.0), fresh @ weights - 3.0) >= 1.0 - 1e-12


def test_noise_is_not_found() -> None:
    """The fit's variance is at most chi²(k) / n; R² = (2 cov(fit, y) - variance) / var(y), and cov is 0 on average."""
    samples, size = 3000, 8
    for name in range(5):
        model = probe.Ridge(normal(samples, size, name=name)).fitted(normal(samples, 1, name=100 + name))
        fresh, other = normal(samples, size, name=200 + name), normal(samples, 1, name=300 + name)
        variance = (size + 1 + 5 * math.sqrt(2 * size + 2)) / (0.8 * samples)
        bound = (variance + 2 * 5 * math.sqrt(variance / samples)) / (1 - 5 * math.sqrt(2 / samples))
        assert abs(probe.r_squared(model(fresh), other)) < bound < 0.05


@pytest.mark.parametrize("size", [5, 70], ids=["many samples", "many features"])
def test_the_ridge_is_that_of_least_squares_with_rows_for_its_penalty(size: int) -> None:
    x, y = normal(60, size) * torch.linspace(0.1, 10.0, size), normal(60, 2, name=1)
    model = probe.Ridge(x).fitted(y, ridges=(0.3,))
    first = x[:48].numpy()
    scaled = (first - first.mean(0)) / first.std(0)
    rows = np.concatenate([scaled, math.sqrt(0.3 * 48) * np.eye(size)])
    aims = np.concatenate([y[:48].numpy() - y[:48].numpy().mean(0), np.zeros((size, 2))])
    expected = np.linalg.lstsq(rows, aims, rcond=None)[0]
    np.testing.assert_allclose(model.weights.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_the_ridge_is_chosen_by_samples_that_it_is_not_fitted_to() -> None:
    """40 features and 40 samples: without a ridge the fit is through noise; the chosen one does best on the last."""
    x = normal(50, 40)
    y = x[:, :1] + normal(50, 1, name=1)
    ridge = probe.Ridge(x)
    chosen = ridge.fitted(y)
    errors = {each: float((ridge.fitted(y, (each,))(x[40:]) - y[40:]).square().sum()) for each in probe.RIDGES}
    assert chosen.ridge == min(errors, key=lambda each: errors[each])
    assert errors[chosen.ridge] < 0.5 * errors[1e-8]


def test_a_constant_feature_counts_nothing() -> None:
    x = torch.cat([normal(100, 2), torch.full((100, 1), 3.7, dtype=torch.float64)], dim=1)
    model = probe.Ridge(x).fitted(x[:, :1])
    moved = x.clone()
    moved[:, 2] = 1e6
    assert bool(model.weights.isfinite().all())
    assert torch.equal(model(moved), model(x))


@pytest.mark.parametrize("samples, size", [(200, 30), (20, 50)], ids=["many samples", "many values"])
def test_pca_is_the_singular_value_decomposition(samples: int, size: int) -> None:
    rows = normal(samples, size) @ torch.diag(torch.linspace(3.0, 0.1, size, dtype=torch.float64)) + 5.0
    pca = probe.principal_components(rows, 4)
    centred = rows.numpy() - rows.numpy().mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(
        pca.variances.numpy(), singular[: len(pca.variances)] ** 2 / samples, rtol=1e-8, atol=1e-10
    )
    np.testing.assert_allclose(np.abs(right[:4] @ pca.components.numpy()), np.eye(4), atol=1e-8)
    np.testing.assert_allclose(pca.components.numpy().T @ pca.components.numpy(), np.eye(4), atol=1e-10)
    left = centred - pca(rows).numpy() @ pca.components.numpy().T
    assert math.isclose((left**2).sum() / samples, pca.rest, rel_tol=1e-8)


def test_more_components_than_there_are_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="at most 4 principal components, asked for 5"):
        probe.principal_components(normal(5, 9), 5)


def test_every_angle_and_phase_of_the_catalogues_comes_round() -> None:
    found = {}
    for each in [*(find_formula(name) for name in FORMULAS), *(find_colouring(name) for name in COLOURINGS)]:
        for name, parameter in {**VIEW, **each.parameters}.items():
            turns = not name.endswith("frequency")  # which tells how often colours change
            if parameter.unit in ("radians", "turns") and turns:
                found[name] = math.tau if parameter.unit == "radians" else 1.0
    assert found.keys() <= probe.PERIODS.keys()
    assert all(probe.PERIODS[name] == period for name, period in found.items())
    for name, period in probe.PERIODS.items():
        values = torch.tensor([0.25, 0.25 + period])
        first, second = probe.target(name, values)
        assert torch.allclose(first, second, atol=1e-6) and math.isclose(float(first.square().sum()), 1.0)


def test_constant_and_missing_latents_are_left_out() -> None:
    half = torch.cat([normal(40), torch.full((60,), torch.nan, dtype=torch.float64)])
    few = torch.cat([normal(20), torch.full((80,), torch.nan, dtype=torch.float64)])
    both = [look(100, name, centre_x=torch.zeros(100), power=normal(100, name=name), multiplier=half, memory=few)
            for name in (1, 2)]  # fmt: skip
    found = probe.informative(*both)
    assert found.keys() == {"power", "multiplier"}
    assert [int(rows.sum()) for rows in found["multiplier"]] == [40, 40]
    features = [torch.stack([each.latents["power"], half.nan_to_num(0.0)], dim=1) for each in both]
    told = probe.probed(features[0], both[0], features[1], both[1])
    assert min(told.r_squared.values()) > 1 - 1e-9


def test_a_latent_that_does_not_vary_in_the_test_has_no_score(tmp_path: Path) -> None:
    """Else its R² would be minus infinity; of a stream without any other there is only the class."""
    rare = torch.zeros(100, dtype=torch.float64)
    known, test = look(100, 1, power=rare.index_fill(0, torch.tensor([3]), 1.0)), look(100, 2, power=rare)
    told = probe.probed(known.pixels(), known, test.pixels(), test)
    assert told.r_squared == {} and told.mean == 0.0
    probe.draw_probes(tmp_path / "probes.png", {"all pixels": told}, "test")
    assert (tmp_path / "probes.png").is_file()


def test_the_true_latents_know_themselves_and_the_class() -> None:
    """Features that are the latents themselves: R² is 1 for each of them, on samples of another split."""
    streams = [open_stream("fractal-10", split=split, device="cpu", height=8, width=8, dtype="float32")
               for split in ("validation", "test")]  # fmt: skip
    known, test = (probe.looked_at(stream, 200) for stream in streams)
    names = ("alpha", "beta", "power", "frequency", "poly0", "poly1", "poly2", "poly3")
    sides = [torch.cat([probe.target(name, each.latents[name]) for name in names], dim=1) for each in (known, test)]
    told = probe.probed(sides[0], known, sides[1], test)
    assert told.r_squared.keys() == set(names) and told.features == 10
    assert min(told.r_squared.values()) > 1 - 1e-6
    assert told.accuracy > 0.5  # ten classes on four coefficients: some lie between others on a line
    by_class = [torch.nn.functional.one_hot(each.labels, 10) for each in (known, test)]
    assert probe.probed(by_class[0], known, by_class[1], test).accuracy == 1.0
    assert not bool((known.images[:, None] == test.images[None, :20]).flatten(2).all(2).any())


def test_large_pictures_are_averaged_for_pixel_baselines() -> None:
    small, large = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 64, 48)
    labels = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(probe.Look(small, labels, {}).pixels(), small.flatten(1))
    averaged = probe.Look(large, labels, {}).pixels().unflatten(1, (3, 32, 32))
    assert torch.allclose(averaged[:, :, 0, 0], large[:, :, :2, :2].mean((2, 3)), atol=1e-6)


def test_r_squared_of_the_mean_is_zero_and_of_harm_is_below() -> None:
    true = normal(50, 2)
    assert abs(probe.r_squared(true.mean(0).expand_as(true), true)) < 1e-12
    assert math.isclose(probe.r_squared(-true + 2 * true.mean(0), true), -3.0)


def test_features_come_batch_by_batch() -> None:
    one = look(10)
    sizes: list[int] = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images[:, 0]

    assert torch.equal(one.through(encode, batch_size=4), one.images[:, 0].flatten(1))
    assert sizes == [4, 4, 2]


def test_bars_are_drawn(tmp_path: Path) -> None:
    told = {
        "VAE": probe.Told(r_squared={"alpha": 0.9, "power": -3.0}, accuracy=0.5, features=4),
        "PCA": probe.Told(r_squared={"alpha": 0.1, "power": 0.2}, accuracy=0.3, features=4),
    }
    assert math.isclose(told["VAE"].mean, -1.05)
    probe.draw_probes(tmp_path / "probes.png", told, "test")
    from PIL import Image

    colours = np.asarray(Image.open(tmp_path / "probes.png").convert("RGB")).reshape(-1, 3)
    first, second = ((colours == colour).all(1).sum() for colour in ((31, 119, 180), (255, 127, 14)))
    assert first > 2 * second > 0  # bars as long as their values: 0.9 + 0.5 and more, against 0.1 + 0.2 + 0.3
