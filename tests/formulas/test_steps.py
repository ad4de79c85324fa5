"""Every step and start against complex arithmetic, written a second time from the papers."""

from __future__ import annotations

import cmath
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fractal_streams.dialect import csquare, csquare_plus
from fractal_streams.formulas import CATALOGUE, find_formula
from fractal_streams.render.reference import call

Complex = np.ndarray[Any, np.dtype[np.complex128]]


def folded(z: Complex) -> Complex:
    return np.abs(z.real) + 1j * np.abs(z.imag)


def turned(q: dict[str, Any], angle: str) -> complex:
    return cmath.exp(1j * float(q[angle]))


def newton(z: Complex, a: complex, p: float) -> Complex:
    return z - a * (z**p - 1) / (p * z ** (p - 1))


def kali(z: Complex, q: dict[str, Any]) -> Complex:
    return folded(z) / np.abs(z) ** 2 + q["shift_x"] + 1j * q["shift_y"]


def kali_julia(z: Complex, c: Complex, p: Complex, n: int, q: dict[str, Any]) -> Complex:
    if (n + 1) % int(q["period"]):
        return z**2 + c
    return q["blend"] * kali(z, q) + (1 - q["blend"]) * (z**2 + c)


def polynomial(x: Any, q: dict[str, Any]) -> Any:
    return q["poly0"] + q["poly1"] * x**2 + q["poly2"] * x**3 + q["poly3"] * x**4


STEPS: dict[str, Callable[[Complex, Complex, Complex, int, dict[str, Any]], Complex]] = {
    "polynomial_power": lambda z, c, p, n, q: (
        ((polynomial(z.real, q) + 1j * z.imag) * turned(q, "alpha")) ** q["power"] + c
    ),
    "sine": lambda z, c, p, n, q: ((np.sin(z.real) + 1j * np.sin(z.imag)) * turned(q, "alpha")) ** q["power"] + c,
    "mandelbrot": lambda z, c, p, n, q: z**2 + c,
    "multibrot": lambda z, c, p, n, q: z ** q["power"] + c,
    "julia": lambda z, c, p, n, q: z**2 + c,
    "burning_ship": lambda z, c, p, n, q: folded(z) ** 2 + c,
    "tricorn": lambda z, c, p, n, q: np.conj(z) ** 2 + c,
    "celtic": lambda z, c, p, n, q: np.abs((z**2).real) + 1j * (z**2).imag + c,
    "phoenix": lambda z, c, p, n, q: z**2 + c + (q["memory"] * p if n else 0.0),
    "newton": lambda z, c, p, n, q: newton(z, q["relaxation"] + 1j * q["relaxation_im"], q["roots"]),
    "nova": lambda z, c, p, n, q: newton(z, q["relaxation"], q["roots"]) + c,
    "lambda": lambda z, c, p, n, q: c * z * (1 - z),
    "magnet_1": lambda z, c, p, n, q: ((z**2 + c - 1) / (2 * z + c - 2)) ** 2,
    "magnet_2": lambda z, c, p, n, q: (
        ((z**3 + 3 * (c - 1) * z + (c - 1) * (c - 2)) / (3 * z**2 + 3 * (c - 2) * z + (c - 1) * (c - 2) + 1)) ** 2
    ),
    "kali": lambda z, c, p, n, q: kali(z, q),
    "kali_julia": kali_julia,
}


def rim(mu: complex) -> complex:
    """The c whose fixed point z = z**2 + c has the multiplier 2 z = mu."""
    z = mu / 2
    return z - z**2


def multibrot_rim(q: dict[str, Any]) -> complex:
    mu, d = q["anchor"] * turned(q, "anchor_angle"), q["power"]
    if not q["anchor"]:
        return 0.0
    z = cmath.rect((q["anchor"] / d) ** (1 / (d - 1)), q["anchor_angle"] / (d - 1))
    assert cmath.isclose(d * z ** (d - 1), mu, rel_tol=1e-6)
    return z - z**d


def phoenix_rim(q: dict[str, Any]) -> complex:
    """The c for which [[2 w, memory], [1, 0]] at the fixed point w has the eigenvalue mu."""
    mu, memory = q["multiplier"] * turned(q, "angle"), q["memory"]
    w = (mu - memory / mu) / 2
    assert np.min(np.abs(np.linalg.eigvals(np.array([[2 * w, memory], [1, 0]])) - mu)) < 1e-12
    return w - w**2 - memory * w


STARTS: dict[str, Callable[[Complex, dict[str, Any]], tuple[Any, Any]]] = {
    "polynomial_power": lambda x, q: (0, x * turned(q, "beta")),
    "sine": lambda x, q: (0, x * turned(q, "beta")),
    "mandelbrot": lambda x, q: (0, x + rim(q["anchor"] * turned(q, "anchor_angle"))),
    "multibrot": lambda x, q: (0, x + multibrot_rim(q)),
    "julia": lambda x, q: (x, rim(q["multiplier"] * turned(q, "angle"))),
    "burning_ship": lambda x, q: (0, x),
    "tricorn": lambda x, q: (0, x),
    "celtic": lambda x, q: (0, x),
    "phoenix": lambda x, q: (x, phoenix_rim(q)),
    "newton": lambda x, q: (x, 0),
    "nova": lambda x, q: (1, x),
    "lambda": lambda x, q: (0.5, x + q["anchor"] * turned(q, "anchor_angle")),
    "magnet_1": lambda x, q: (0, x),
    "magnet_2": lambda x, q: (0, x),
    "kali": lambda x, q: (x, 0),
    "kali_julia": lambda x, q: (x, rim(q["multiplier"] * turned(q, "angle"))),
}
ANCHORS = {"anchor": (0.2, 1.2), "anchor_angle": (-3.0, 3.0)}


def drawn(name: str, seed: int) -> dict[str, float]:
    """Parameters of a formula within their ranges, anchors at any place."""
    random = np.random.default_rng(seed)
    values = {}
    for title, parameter in find_formula(name).parameters.items():
        low, high = ANCHORS.get(title, (parameter.low, parameter.high))
        whole = parameter.scale == "integer"
        values[title] = float(random.integers(int(low), int(high) + 1) if whole else random.uniform(low, high))
    return values


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 11])
def test_a_step_is_its_formula_in_complex_arithmetic(name: str, n: int) -> None:
    random = np.random.default_rng(n)
    z, c, p = (random.normal(size=300) + 1j * random.normal(size=300) for _ in range(3))
    for seed in range(5):
        q = drawn(name, seed)
        re, im = call(
            find_formula(name).step, q,
            zr=z.real, zi=z.imag, cr=c.real, ci=c.imag, pr=p.real, pi=p.imag, n=float(n),
        )  # fmt: skip
        np.testing.assert_allclose(re + 1j * im, STEPS[name](z, c, p, n, q), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_start_is_its_formula_in_complex_arithmetic(name: str) -> None:
    random = np.random.default_rng(1)
    x, y = random.uniform(-2, 2, (2, 20))
    for seed in range(8):
        q = drawn(name, seed)
        zr, zi, cr, ci = call(find_formula(name).start, q, x=x, y=y)
        z, c = (np.broadcast_to(value, 20) for value in STARTS[name](x + 1j * y, q))
        np.testing.assert_allclose(zr + 1j * zi, z, atol=1e-12)
        np.testing.assert_allclose(cr + 1j * ci, c, atol=1e-9)


@pytest.mark.parametrize("name", ["mandelbrot", "multibrot", "lambda"])
def test_an_anchor_of_0_leaves_the_plane_alone(name: str) -> None:
    q = {**drawn(name, 0), "anchor": 0.0}
    _, _, cr, ci = call(find_formula(name).start, q, x=np.array([0.25]), y=np.array([-0.5]))
    np.testing.assert_allclose([cr[0], ci[0]], [0.25, -0.5], atol=1e-15)


def test_a_square_and_a_number_are_added_as_they_are_written() -> None:
    """The same bytes as the sum of the two: backends may order it otherwise, the reference must not."""
    parts = np.random.default_rng(2).normal(size=(4, 1000))
    square, plus = csquare(*parts[:2]), csquare_plus(*parts)
    assert np.array_equal(plus[0], square[0] + parts[2]) and np.array_equal(plus[1], square[1] + parts[3])
