"""The queue of pixels: what a lane does next changes no pixel, and nothing is lost or counted twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from fractal_streams.draw import make_plan, reference
from fractal_streams.render import queue_launch
from fractal_streams.render.queue_launch import layout, suits
from fractal_streams.render.raster import PixelFormat, Raster
from fractal_streams.render.triton_backend import TritonRenderer
from fractal_streams.spec import StreamSpec

# an orbit may overflow; NumPy, which the interpreter computes with, warns where a GPU is silent
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def drawn(count: int = 2, **fields: object) -> tuple[Raster, torch.Tensor]:
    """A raster and its table on the device."""
    spec = StreamSpec(**{"formulas": "polynomial_power", "height": 16, "width": 16, **fields})
    part = spec.parts()[0]
    _, table = reference.draw(make_plan(spec, part, seed=5, split="train"), np.arange(count))
    return Raster.of(spec, part), torch.from_numpy(table).to(DEVICE)


@pytest.mark.parametrize(
    "fields, fits",
    [
        ({}, True),
        ({"counting": "visits"}, True),
        ({"iterations": 32767}, True),
        ({"iterations": 32768}, False),  # a count no longer fits 16 bits
        ({"supersample": 2}, False),
        ({"colouring": "smooth"}, False),  # asks for z
        ({"formulas": "mandelbrot", "colouring": "three_phase_sine"}, True),
        ({"formulas": "phoenix", "colouring": "three_phase_sine"}, False),  # the next z follows from two
        ({"formulas": "newton", "colouring": "three_phase_sine"}, False),  # ends where it converges
        ({"formulas": "kali", "colouring": "three_phase_sine"}, True),
    ],
)
def test_which_rasters_have_a_queue(fields: dict[str, object], fits: bool) -> None:
    assert suits(drawn(1, **fields)[0]) is fits


@settings(max_examples=3, deadline=None)
@given(
    height=st.integers(8, 20), width=st.integers(8, 20), idle=st.integers(1, 64), vote=st.integers(1, 7),
    side=st.sampled_from([8, 16, 32]),
)  # fmt: skip
def test_neither_region_nor_queue_changes_a_pixel(height: int, width: int, idle: int, vote: int, side: int) -> None:
    raster, table = drawn(1, height=height, width=width, iterations=12)
    usual = TritonRenderer(DEVICE, (8, 8)).render(raster, table)
    plan = replace(layout(raster), tall=side, wide=side, idle=idle, vote=vote, block=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue_launch, "layout", lambda raster, tile=None: plan)
        assert torch.equal(TritonRenderer(DEVICE).render(raster, table), usual)


@pytest.mark.parametrize("iterations", [255, 256, 300])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_count_above_a_byte_is_kept_in_two(iterations: int, channels_last: bool) -> None:
    """A constant orbit inside is counted to the end; one that leaves at once, never: black, and the first colour."""
    raster, table = drawn(
        1, formulas="mandelbrot", colouring="three_phase_sine", iterations=iterations, height=8, width=8
    )
    names = raster.names
    table[names.index("centre_x")], table[names.index("centre_y")] = -0.1, 0.0
    table[names.index("half_width")] = 1e-3
    form = PixelFormat("uint8", channels_last)
    assert TritonRenderer(DEVICE, (8, 8)).render(raster, table, form).cpu().numpy().max() == 0
    table[names.index("centre_x")] = 150.0
    outside = TritonRenderer(DEVICE, (8, 8)).render(raster, table, form).cpu().numpy()
    waves = 0.5 + 0.5 * np.sin(float(table[names.index("frequency")]) + np.arange(3) * 2 * np.pi / 3)
    shown = outside[0, 0, 0] if channels_last else outside[0, :, 0, 0]
    assert np.abs(shown - np.floor(255 * waves)).max() <= 1 and len(np.unique(outside)) <= 3


def test_visits_and_first_escape_agree_where_no_orbit_returns() -> None:
    """Mandelbrot orbits beyond a radius of 2 never come back: both ways of counting give the same levels."""
    fields = {"formulas": "mandelbrot", "colouring": "three_phase_sine", "iterations": 24}
    first, table = drawn(2, **fields)
    visits, _ = drawn(2, counting="visits", **fields)
    pictures = [TritonRenderer(DEVICE, (8, 8)).render(raster, table) for raster in (first, visits)]
    assert torch.equal(*pictures) and pictures[0].float().std() > 20


def test_registers_are_tried_until_nothing_spills(monkeypatch: pytest.MonkeyPatch) -> None:
    raster, table = drawn(1)
    asked: list[int | None] = []

    class Compiled:
        def __init__(self, registers: int | None) -> None:
            self.n_spills = 4 if registers == 40 else 0

    class Kernel:
        def __getitem__(self, grid: object) -> object:
            return lambda *given, maxnreg, **options: asked.append(maxnreg) or Compiled(maxnreg)

    module = type("module", (), {"queue": Kernel()})
    monkeypatch.setattr(queue_launch, "compiled", lambda raster: module)
    launcher = queue_launch.QueueLauncher()
    for _ in range(2):
        launcher.launch(raster, table, table, table, PixelFormat())
    assert asked == [40, 56, 56]
