"""The Triton renderer: on a GPU where there is one, else in Triton's interpreter on CPU tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from fractal_streams.draw import make_plan, reference
from fractal_streams.errors import InvalidValueError
from fractal_streams.render.raster import PixelFormat, Raster
from fractal_streams.render.reference import ReferenceRenderer
from fractal_streams.render.triton_backend import TritonRenderer
from fractal_streams.spec import StreamSpec

# an orbit may overflow; NumPy, which the interpreter computes with, warns where a GPU is silent
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = None if DEVICE == "cuda" else (16, 16)


def drawn(count: int, **fields: object) -> tuple[Raster, np.ndarray]:
    """A raster and a table of `count` samples."""
    spec = StreamSpec(**{"formulas": "polynomial_power", "height": 16, "width": 16, **fields})
    part = spec.parts()[0]
    _, table = reference.draw(make_plan(spec, part, seed=11, split="train"), np.arange(count))
    return Raster.of(spec, part), table


def rendered(raster: Raster, table: np.ndarray, pixels: PixelFormat | None = None) -> torch.Tensor:
    return TritonRenderer(DEVICE, TILE).render(raster, torch.from_numpy(table).to(DEVICE), pixels).cpu()


def differing(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels that differ by more than 2 levels in a channel."""
    return float((np.abs(a.astype(int) - b.astype(int)).max(axis=1) > 2).mean())


@pytest.mark.parametrize("height, width", [(8, 8), (9, 31), (33, 17)])
def test_any_size_equals_the_reference_but_for_chaos(height: int, width: int) -> None:
    raster, table = drawn(3, height=height, width=width)
    assert differing(rendered(raster, table).numpy(), ReferenceRenderer().render(raster, table)) < 0.01


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    raster, table = drawn(2, height=9, width=19)
    clean = rendered(raster, table)
    empty = torch.empty

    def poisoned(*shape: object, **settings: object) -> torch.Tensor:
        made = empty(*shape, **settings)
        return made.fill_(171) if made.dtype == torch.uint8 else made

    monkeypatch.setattr(torch, "empty", poisoned)
    assert torch.equal(rendered(raster, table), clean)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_floats_are_the_normalised_levels_exactly(dtype: str, channels_last: bool) -> None:
    raster, table = drawn(2)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    levels = rendered(raster, table).numpy()
    shape = (1, 3, 1, 1)
    wanted = (levels / 255.0 - np.reshape(mean, shape)) / np.reshape(std, shape)
    wanted = torch.from_numpy(wanted.astype(np.float32)).to(getattr(torch, dtype))
    got = rendered(raster, table, PixelFormat(dtype, channels_last, mean, std))
    assert torch.equal(got.permute(0, 3, 1, 2) if channels_last else got, wanted)


def test_supersampling_is_the_reference_s() -> None:
    raster, table = drawn(2, supersample=3, formulas="mandelbrot")
    assert differing(rendered(raster, table).numpy(), ReferenceRenderer().render(raster, table)) < 0.02


@pytest.mark.parametrize("iterations", [1, 7, 128, 300])
def test_counts_do_not_overflow(iterations: int) -> None:
    """An orbit that never leaves is counted to the end: its pixel is black, whatever the count."""
    raster, table = drawn(1, formulas="mandelbrot", iterations=iterations, colouring="three_phase_sine")
    table[raster.names.index("centre_x")] = -0.1
    table[raster.names.index("centre_y")] = 0.0
    table[raster.names.index("half_width")] = 0.1
    assert rendered(raster, table).sum() == 0


def test_visits_are_counted_to_the_end() -> None:
    raster, table = drawn(4, counting="visits", orientation="matrix")
    assert differing(rendered(raster, table).numpy(), ReferenceRenderer().render(raster, table)) < 0.02


def test_a_picture_does_not_depend_on_its_batch() -> None:
    raster, table = drawn(5)
    whole = rendered(raster, table)
    assert torch.equal(rendered(raster, np.ascontiguousarray(table[:, 3:4]))[0], whole[3])


def test_a_wrong_table_is_refused() -> None:
    raster, table = drawn(2)
    with pytest.raises(InvalidValueError, match="float32"):
        TritonRenderer(DEVICE).render(raster, torch.from_numpy(table.astype(np.float64)))


@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_without_a_gpu(capability: int) -> None:
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(script), str(capability)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.split("\n")[:-1]
    assert [line.split()[1] for line in lines].count("queue") == [line.split()[1] for line in lines].count("draw") == 2
    assert all(int(line.split()[-1]) > 1000 for line in lines)
