"""The GPU's groups of steps: what a replay finds is what freezing every lane at every step gives.

In Triton's interpreter no product and sum are fused, so that both give the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from fractal_streams.colouring.definition import colouring
from fractal_streams.draw import make_plan, reference
from fractal_streams.formulas import CATALOGUE, Formula, find_formula
from fractal_streams.formulas.mandelbrot import cardioid_or_disk
from fractal_streams.priors import Uniform
from fractal_streams.render import bind, triton_backend
from fractal_streams.render.raster import Raster
from fractal_streams.render.reference import ReferenceRenderer, call, plane
from fractal_streams.render.triton_backend import TritonRenderer
from fractal_streams.spec import StreamSpec

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@colouring(source="where an orbit ends, for tests (2000)")
def ends(count, inside, zr, zi, pr, pi, iterations):  # type: ignore[no-untyped-def]
    """Every digit that a kernel hands on, of orbits inside too."""
    return 0.5 + 0.3 * zr - 0.2 * pi, 0.5 + 0.3 * zi - 0.2 * pr, 0.3 * inside + 0.7 * count / iterations


def drawn(count: int, **fields: Any) -> tuple[Raster, np.ndarray]:
    spec = StreamSpec(**{"height": 16, "width": 16, "colouring": "ends", **fields})
    (part,) = spec.parts()
    return Raster.of(spec, part), reference.draw(make_plan(spec, part, seed=5, split="train"), np.arange(count))[1]


def rendered(raster: Raster, table: np.ndarray) -> np.ndarray:
    triton_backend.compiled.cache_clear()
    return TritonRenderer(DEVICE, (16, 16)).render(raster, torch.from_numpy(table).to(DEVICE)).cpu().numpy()


def both_ways(raster: Raster, table: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """In groups, and lane by lane frozen."""
    grouped = rendered(raster, table)
    assert "SPAN = tl.constexpr(0)" not in triton_backend.source(raster)
    monkeypatch.setattr(triton_backend, "GROUP", 0)
    assert "SPAN = tl.constexpr(0)" in triton_backend.source(raster)
    return grouped, rendered(raster, table)


ESCAPING = [name for name in CATALOGUE if find_formula(name).stop == "escape"]
OUTWARD = {"mandelbrot": 1, "julia": 2, "burning_ship": 1, "tricorn": 1, "celtic": 1, "phoenix": 2, "lambda": 1}


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU fuses products and sums, otherwise in each kernel")
@pytest.mark.parametrize(
    "fields",
    [
        {"iterations": 28}, {"iterations": 28, "radius": 2.0}, {"iterations": 13}, {"iterations": 10, "supersample": 2},
        pytest.param({}, marks=pytest.mark.slow), pytest.param({"radius": 2.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ESCAPING)
def test_a_replay_ends_where_a_frozen_lane_did(
    name: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raster, table = drawn(2, formulas=name, **fields)
    assert bind.outward(raster) == (
        0 if fields.get("radius") and name not in ("julia", "phoenix") else OUTWARD.get(name, 0)
    )
    grouped, frozen = both_ways(raster, table, monkeypatch)
    assert np.array_equal(grouped, frozen)
    assert len(np.unique(grouped)) > 20


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU fuses products and sums, otherwise in each kernel")
@pytest.mark.parametrize("iterations", [1, 2, 3, 7, 8, 9, 15, 16, 17])
@pytest.mark.parametrize("radius", [2.0, 100.0])
def test_every_number_of_steps_is_groups_and_a_rest(
    iterations: int, radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    raster, table = drawn(2, formulas="mandelbrot", iterations=iterations, radius=radius)
    assert np.array_equal(*both_ways(raster, table, monkeypatch))


@pytest.mark.parametrize(
    "fields",
    [
        {"formulas": "julia", "priors": {"multiplier": Uniform(0.5, 60.0), "half_width": Uniform(0.5, 40.0)}},
        {"formulas": "phoenix", "priors": {"memory": Uniform(-90.0, 90.0), "half_width": Uniform(0.5, 40.0)}},
        {"formulas": "mandelbrot", "priors": {"half_width": Uniform(100.0, 400.0)}},
        {"formulas": "burning_ship", "priors": {"half_width": Uniform(1e15, 1e25)}},
        {"formulas": "lambda", "priors": {"half_width": Uniform(0.01, 300.0), "centre_y": Uniform(-0.1, 0.1)}},
    ],
    ids=str,
)
def test_numbers_far_from_a_formula_s_own_are_rendered_as_the_reference_does(fields: dict[str, Any]) -> None:
    """Also where orbits that have left come back: there each step is asked."""
    raster, table = drawn(24, colouring="smooth", **fields)
    found, truth = rendered(raster, table), ReferenceRenderer().render(raster, table)
    assert (np.abs(found.astype(int) - truth).max(axis=1) > 2).mean() < 0.004
    holds = raster.formula.stays_out
    parameters = dict(zip(raster.names, table, strict=True))
    told = np.broadcast_to(call(holds, parameters, radius=raster.radius), 24)
    assert told.any() and (told.all() or "priors" in fields and raster.formula.name in ("julia", "phoenix"))


def orbits(formula: Formula, radius: float, seed: int, **ranges: tuple[float, float]) -> np.ndarray:
    """(steps, orbits) |z| of random orbits in float64, where the formula says that they stay out."""
    draw = np.random.default_rng(seed)
    count = 20_000
    q = {n: draw.uniform(*ranges.get(n, (p.low, p.high)), count) for n, p in formula.parameters.items()}
    x, y = draw.normal(size=(2, count)) * 10.0 ** draw.uniform(-2, 2.5, count)
    keep = np.broadcast_to(call(formula.stays_out, q, radius=radius), count)
    zr, zi, cr, ci = (part[keep] + 0 * x[keep] for part in call(formula.start, q, x=x, y=y))
    q = {n: v[keep] for n, v in q.items()}
    pr, pi, sizes = zr, zi, []
    for n in range(40):
        new = call(formula.step, q, zr=zr, zi=zi, cr=cr, ci=ci, pr=pr, pi=pi, n=float(n))
        pr, pi, (zr, zi) = zr, zi, new
        sizes.append(np.hypot(zr, zi))
    return np.array(sizes)


@pytest.mark.parametrize("name", OUTWARD)
@pytest.mark.parametrize("radius", [2.5, 4.0, 7.0, 100.0])
def test_an_orbit_that_is_said_to_stay_out_grows(name: str, radius: float) -> None:
    formula = find_formula(name)
    far = {"multiplier": (-20.0, 20.0), "memory": (-8.0, 8.0)}
    sizes = orbits(formula, radius, 7, **far)
    if not sizes.size:
        assert name in ("lambda", "phoenix") and radius < 4.0
        return
    outside = ~(sizes < radius)
    assert outside.any() and not outside.all()
    assert (outside[1:] | ~outside[:-1]).all(), "none comes back"
    out = outside[:-1] & np.isfinite(sizes[1:])
    assert (sizes[1:][out] > 1.4 * sizes[:-1][out]).all(), "with room for a rounding"


def test_what_is_said_to_be_interior_never_escapes() -> None:
    """Random c near the two rims and everywhere, in float32 and float64; and nearly all of the area is found."""
    draw = np.random.default_rng(1)
    angle, near = draw.uniform(0, 2 * np.pi, (2, 40_000)), 1.0 - 10.0 ** draw.uniform(-6, 0, (2, 40_000))
    mu = near[0] * np.exp(1j * angle[0])
    c = np.concatenate([mu / 2 * (1 - mu / 2), -1 + near[1] / 4 * np.exp(1j * angle[1])])
    assert cardioid_or_disk(c.real, c.imag)[np.concatenate(list(near)) < 0.98].mean() > 0.97  # all but the cusp's
    for precision in (np.float32, np.float64):
        cr, ci = c.real.astype(precision), c.imag.astype(precision)
        cr, ci = (part[cardioid_or_disk(cr, ci)] for part in (cr, ci))
        assert cr.size > 50_000
        zr, zi = cr, ci
        for _ in range(3000):
            zr, zi = zr * zr - zi * zi + cr, precision(2.0) * zr * zi + ci
        assert (zr * zr + zi * zi < 4.0).all()
    x, y = draw.uniform(-2, 1, 400_000), draw.uniform(-1.5, 1.5, 400_000)
    area = cardioid_or_disk(x, y).mean() * 9.0
    assert area == pytest.approx(np.pi * (3 / 8 + 1 / 16), abs=0.02)  # of the cardioid and of the disk
    assert not cardioid_or_disk(np.array([np.nan, np.inf, 3e38]), np.zeros(3)).any()


@pytest.mark.parametrize(("fields", "known"), [
    ({}, True), ({"colouring": "interior"}, False), ({"colouring": "ends"}, False), ({"counting": "visits"}, False),
])  # fmt: skip
def test_the_interior_is_skipped_only_where_it_has_one_colour(fields: dict[str, Any], known: bool) -> None:
    raster, table = drawn(6, **{"formulas": "mandelbrot", "colouring": "smooth", **fields})
    assert bind.flags(raster)["INTERIOR"] is known
    truth = ReferenceRenderer().render(raster, table)
    assert (np.abs(rendered(raster, table).astype(int) - truth).max(axis=1) > 2).mean() < 0.004


def test_the_plane_of_a_matrix_is_the_reference_s() -> None:
    raster, table = drawn(2, formulas="mandelbrot", colouring="smooth", orientation="matrix", height=12, width=20)
    x, y = plane(raster, dict(zip(raster.names, table[:, 0], strict=True)), 0.0, 0.0, np.float64, np.float64)
    assert np.ptp(x, axis=1).max() < 1e-12 < np.ptp(x, axis=0).min()
    truth = ReferenceRenderer().render(raster, table)
    assert (np.abs(rendered(raster, table).astype(int) - truth).max(axis=1) > 2).mean() < 0.004
