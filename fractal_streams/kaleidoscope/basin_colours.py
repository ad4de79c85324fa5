"""Colours of basins: the hue says where a chain ends, the lightness in how many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.batch import as_array
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.kaleidoscope.basin_spec import MOST_SAMPLES
from fractal_streams.kaleidoscope.basins import BasinMap, Chart
from fractal_streams.kaleidoscope.network import Float64
from fractal_streams.spec import whole

try:
    import torch
except ImportError:
    raise missing_extra("torch", "kaleidoscope") from None

UInt8 = npt.NDArray[np.uint8]
GOLDEN = math.pi * (3.0 - math.sqrt(5.0))
"""Radians from hue to hue: the most even spacing of any number of them."""
FIRST = math.radians(255.0)
LIGHTEST, DARKEST = 0.95, 0.40
"""OKLab lightness of the quickest and the slowest chains."""
CHROMA = (0.145, 0.075, 0.20)
"""OKLab chroma at the middle lightness, in turn: hues that lie near each other then differ in it."""
NOWHERE = 84
"""Level of grey where a chain ends at no known end."""
SHADES = 64
QUICKEST = 2
"""Steps of the quickest chain: one to the end, and one that shows that it rests."""


@lru_cache(maxsize=8)
def palette(count: int) -> UInt8:
    """(count + 1, 64, 3) uint8: colours of the ends of a network, from quick to slow; the first row is of no end.

    Hues turn by the golden angle in OKLab (B. Ottosson, "A perceptual color space for image processing", 2020), chroma
    is brought into the range of sRGB. A row's colours do not depend on count.

    Example:
        >>> palette(3)[0, 0].tolist(), bool((palette(3) == palette(9)[:4]).all())
        ([84, 84, 84], True)
    """
    whole(count, "count", 0, 2**24, "ends")
    ranks, shades = np.arange(count)[:, None], np.linspace(0.0, 1.0, SHADES)[None]
    light = np.broadcast_to(LIGHTEST + (DARKEST - LIGHTEST) * shades, (count, SHADES))
    hue: Float64 = np.asarray(FIRST + GOLDEN * ranks, np.float64)
    wide = np.array(CHROMA)[ranks % len(CHROMA)] * np.minimum(1.0, 2.2 * np.sqrt(light * (1.0 - light) + 0.02))
    low, high = np.zeros((count, SHADES)), wide
    for _ in range(12):  # the most chroma that sRGB has there, by halves
        inside = in_range(linear_light(light, high, hue))
        middle = 0.5 * (low + high)
        fits = in_range(linear_light(light, middle, hue))
        low, high = np.where(inside, high, np.where(fits, middle, low)), np.where(inside | fits, high, middle)
    table = np.full((count + 1, SHADES, 3), NOWHERE, np.uint8)
    table[1:] = levels(linear_light(light, low, hue))
    table.flags.writeable = False
    return table


def linear_light(light: Float64, chroma: Float64, hue: Float64) -> Float64:
    """(..., 3) linear sRGB of OKLab lightness, chroma and hue in radians."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    )


def in_range(light: Float64) -> npt.NDArray[np.bool_]:
    """(...) bool: linear light that sRGB can show."""
    return np.asarray(((light >= -1e-6) & (light <= 1.0 + 1e-6)).all(axis=-1))


def levels(light: Float64) -> UInt8:
    """uint8 sRGB levels of linear light."""
    held = np.clip(light, 0.0, 1.0)
    curved = np.where(held <= 0.0031308, 12.92 * held, 1.055 * held ** (1.0 / 2.4) - 0.055)
    return np.asarray(np.rint(255.0 * curved), np.uint8)


def shades_of_steps(most: int) -> npt.NDArray[np.int64]:
    """(most + 2,) int64: the shade of each number of steps, -1 (the last, slowest shade) first; logarithmic.

    Example:
        >>> shades_of_steps(100)[[0, 1, 3, 12, 101]].tolist()
        [63, 0, 0, 27, 63]
    """
    steps = np.maximum(np.arange(most + 1), QUICKEST)
    share = np.log(steps / QUICKEST) / math.log(max(most, QUICKEST + 1) / QUICKEST)
    return np.concatenate([[SHADES - 1], np.floor(share * (SHADES - 1) + 0.5).astype(np.int64)])


class BasinColours:
    """Paints maps of a table of ends; a network's colours are the same in every picture.

    Args:
        ranks: (T,) int64, of each row of the table: its row among those of its network.
        most: steps of the darkest shade; longer ones are as dark.
        device: where maps are.
    """

    def __init__(self, ranks: npt.NDArray[np.int64], most: int, device: str = "cpu") -> None:
        table, own = palette(int(ranks.max(initial=-1)) + 1), np.concatenate([[0], ranks + 1])
        self.most = most
        self._colours = torch.from_numpy(table[own]).to(device)
        self._shades = torch.from_numpy(shades_of_steps(most)).to(device)

    def __call__(self, rows: Any, steps: Any) -> Any:
        """(..., 3) uint8 tensor of (...) rows of the table, -1 for none, and steps, -1 for never."""
        return self._colours[rows.long() + 1, self._shades[steps.long().clamp(-1, self.most) + 1]]


def basin_pictures(
    maps: BasinMap, colours: BasinColours, *, chart: Chart | None = None, supersample: int = 1, nearest: bool = False
) -> Any:  # fmt: skip
    """(B, 3, H, W) uint8 pictures of maps, NumPy from a CPU and a tensor from a GPU.

    Args:
        chart: of the maps' planes; supersampling asks it for more points.
        supersample: 1 to 8; a pixel with a neighbour (of four) that ends elsewhere is the mean of so many samples along
            each edge, the others are their centre's.
        nearest: paints chains that ended at no known end as those of the nearest one, in place of grey.
    """
    whole(supersample, "supersample", 1, MOST_SAMPLES, "samples along each edge of a pixel")
    rows = torch.as_tensor(maps.nearest if nearest else maps.attractor)
    found = colours(rows, torch.as_tensor(maps.steps))
    if supersample > 1:
        if chart is None:
            raise InvalidValueError("supersampling needs the chart of the maps' planes")
        refine(found, as_array(rows), maps.planes, chart, colours, supersample, nearest)
    pictures = found.movedim(-1, 1).contiguous()
    return pictures if not isinstance(maps.attractor, np.ndarray) else as_array(pictures)


def refine(
    found: Any, rows: npt.NDArray[Any], planes: Sequence[Any], chart: Chart, colours: BasinColours, samples: int,
    nearest: bool,
) -> None:  # fmt: skip
    """Write the means of samples into the (B, H, W, 3) colours of pixels at edges."""
    plane, row, column = np.nonzero(beside_edges(rows))
    if not len(plane):
        return
    height, width = rows.shape[1:]
    axes = [one.axes(height, width) for one in planes]
    x, y = (np.array([each[k] for each in axes]) for k in (0, 1))
    pixel = np.array([2.0 * one.half_width / width for one in planes])[plane]
    offset = (np.arange(samples) + 0.5) / samples - 0.5
    right = x[plane, column][:, None, None] + pixel[:, None, None] * offset[None, None, :]
    high = y[plane, row][:, None, None] - pixel[:, None, None] * offset[None, :, None]
    shape = (len(plane), samples, samples)
    ended = chart.ends(
        np.repeat(plane, samples * samples),
        *(np.broadcast_to(part, shape).reshape(-1) for part in (right, high)),
    )
    drawn = colours(ended.nearest if nearest else ended.row(chart.rule.within), ended.steps)
    total = drawn.reshape(len(plane), samples * samples, 3).int().sum(dim=1)
    mean = (2 * total + samples * samples) // (2 * samples * samples)  # halves upwards, in whole numbers
    places = [torch.from_numpy(place).to(found.device) for place in (plane, row, column)]
    found[tuple(places)] = mean.to(torch.uint8)


def beside_edges(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(B, H, W) bool: pixels with a neighbour, of four, of another number."""
    found = np.zeros(rows.shape, bool)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:, :, :-1], np.s_[:, :, 1:])):
        differ = rows[first] != rows[second]
        found[first] |= differ
        found[second] |= differ
    return found
