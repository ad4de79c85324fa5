"""Basin maps as a stream: where chains end that start at the points of a plane, at every scale."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fractal_streams import rng
from fractal_streams.batch import Batch, as_array
from fractal_streams.device import refuse_worker
from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.basin_spec import BasinSpec as BasinSpec
from fractal_streams.kaleidoscope.fitted_stream import FittedStream, relative_cost
from fractal_streams.kaleidoscope.planes import Plane, drawn_plane
from fractal_streams.rng import Int64, checked_indices

if TYPE_CHECKING:
    from fractal_streams.kaleidoscope.basins import BasinMap, Chart

TRIALS = 8
"""Planes that are drawn at most until one has a boundary."""
USUAL_STEPS = 20
"""Of chains of networks that were fitted to come to rest."""
USUAL_EDGES = 0.06
"""Part of the pixels that are beside an edge."""


class BasinStream(FittedStream):
    """Maps of the basins of fitted networks, at random planes, places and depths.

    Args:
        spec: what to draw.
        seed, split, dtype, channels_last, mean, std: as in `StillStream`.
        device: "auto", "cpu", "cuda" or "cuda:N", where networks are applied and samples are handed out. Kinds of
            device differ in rounding, which shows beside boundaries and in very deep pictures.
        fitted: a `Kaleidoscope` in place of the file that the spec names.

    Sample i draws by name: a network of the bank, a plane (again, at most 8 times, while 24 points of it end alike), a
    depth, and a walk to a point of the boundary: two points that end differently, the segment between them cut into 16
    parts, one of those whose ends differ, and so on; the picture lies about that point, moved by half of itself at
    most. Colours belong to the rows of the network's ends, and are the same in all pictures.

    Latents, H x W pixels, row 0 on top: "attractor" (B, H, W) int32, row of the table of ends, -1 at none; "steps"
    (B, H, W) int32, -1 where the chain never rested; "depth" (B,) int32, halvings done; "half_width", "centre_x",
    "centre_y" (B,) float64, in the plane's coordinates; "edge_share" (B,) float32, of cells of four pixels that do not
    all end alike; "unresolved_share" (B,) float32; "ends_in_view" (B,) int32, how many different ones; "model" int64.

    Raises:
        InvalidValueError: a kaleidoscope without attractors where ends="attractors", or of a single value.

    Example:
        >>> from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
        >>> from fractal_streams.kaleidoscope.network import Network
        >>> corners = np.float32([[[0.5, 0.5], [0.5, -0.5], [-0.5, 0.5], [-0.5, -0.5]]])
        >>> points = Sources(data=corners, labels=np.arange(4)[None], titles=("a", "b", "c", "d"))
        >>> network = Network(shape=(2,), hidden=2, n_linear=2, activation="tanh", data_scale=1.0)
        >>> steep, mixed = 9 * np.eye(2, dtype=np.float32)[None], 0.55 * np.eye(2, dtype=np.float32)[None]
        >>> none = np.zeros((1, 2), np.float32)
        >>> weights = {"layers.0.weight": steep, "layers.0.bias": none, "layers.1.weight": mixed, "layers.1.bias": none}
        >>> fitted = Kaleidoscope(network=network, tensors=weights, sources=points)  # to the corner of its quadrant
        >>> spec = BasinSpec(height=16, width=16, ends="sources", min_depth=1)
        >>> batch = BasinStream(spec, fitted=fitted, device="cpu").generate(range(4))
        >>> batch.images.shape, bool((batch.latents["ends_in_view"] > 1).all())
        ((4, 3, 16, 16), True)
    """

    spec: BasinSpec

    def __init__(self, spec: BasinSpec, **settings: Any) -> None:
        if not isinstance(spec, BasinSpec):
            raise InvalidValueError(f"spec must be a BasinSpec, got {type(spec).__name__}; presets open by open_stream")
        super().__init__(spec, **settings)
        from fractal_streams.kaleidoscope.basins import EndRule, end_table

        fitted, titles = self.fitted, self.fitted.sources.titles
        if fitted.network.size < 2:
            raise InvalidValueError(
                f"basin maps are of networks of two values and more, and the kaleidoscope {spec.model or 'given'} has "
                f"shape {fitted.network.shape}: kaleidoscope.profiles draws that of one"
            )
        self.rule = EndRule(most=spec.most, tolerance=spec.rest, within=spec.within, ends=spec.ends)
        self.table = end_table(fitted, spec.ends)
        self.titles = titles
        if spec.label == "model":
            self.titles = tuple(f"network {model}" for model in range(fitted.models))
        elif spec.label == "attractor":
            named = "attractor" if spec.ends == "attractors" else "source"
            self.titles = tuple(f"{named} {row} ({titles[of]})" for row, of in enumerate(self.table.labels))
        self.num_classes = len(self.titles)
        self.cost = self._cost()

    def class_title(self, label: int) -> str:
        return self.titles[label]

    def labels(self, indices: Any) -> Int64:
        if self.spec.label == "model":
            return self.model_of(checked_indices(indices))
        return np.asarray(self._labels(self.maps(indices)), np.int64)

    def depths(self, indices: Any) -> Int64:
        """(B,) int64 halvings that are drawn for each index; its plane may allow fewer."""
        low, high = self.spec.min_depth, self.spec.max_depth
        word = rng.words(checked_indices(indices), self.key("depth"))[0].astype(np.uint64)
        return low + (word * np.uint64(high - low + 1) >> np.uint64(32)).astype(np.int64)

    def planes(self, indices: Any) -> list[Plane]:
        """The plane of each index, at its place and depth."""
        return self._views(checked_indices(indices))[0]

    def maps(self, indices: Any) -> BasinMap:
        """The maps of indices, see `basins.BasinMap`."""
        index = checked_indices(indices)
        return self._maps(self._views(index)[0], self.model_of(index))

    def generate(self, indices: Any) -> Batch:
        refuse_worker(self.device)
        from fractal_streams.kaleidoscope.basin_colours import BasinColours, basin_pictures

        index, spec, put = checked_indices(indices), self.spec, self.uploaded
        models, (planes, depths) = self.model_of(index), self._views(index)
        maps = self._maps(planes, models)
        levels = basin_pictures(
            maps, BasinColours(self.table.ranks, spec.most, self.device), chart=self._chart(planes, models),
            supersample=spec.supersample, nearest=spec.unresolved == "nearest",
        )  # fmt: skip
        held, area = maps.shares(), spec.height * spec.width
        edges = as_array(maps.edges()).mean(axis=(1, 2), dtype=np.float64)
        placed = np.array([(plane.half_width, *plane.centre) for plane in planes], np.float64).reshape(-1, 3)
        latents = {
            "attractor": maps.attractor, "steps": maps.steps, "depth": put(depths.astype(np.int32)),
            **{name: put(placed[:, k].copy()) for k, name in enumerate(("half_width", "centre_x", "centre_y"))},
            "edge_share": put(edges.astype(np.float32)),
            "unresolved_share": put((1.0 - np.rint(held.sum(axis=1) * area) / area).astype(np.float32)),
            "ends_in_view": put((held > 0).sum(axis=1).astype(np.int32)), "model": put(models),
        }  # fmt: skip
        return Batch(put(index), self.formatted(levels), put(self._labels(maps)), latents)

    def _views(self, index: Int64) -> tuple[list[Plane], Int64]:
        """The plane of each index at its place and depth, and (B,) int64 halvings done."""
        from fractal_streams.kaleidoscope.basin_boundary import boundary_points, segments, shifted_views

        spec, models, left = self.spec, self.model_of(index), np.arange(len(index))
        found: dict[int, Plane] = {}
        segment = np.full((len(index), 2, 2), np.nan)
        aspect = spec.height / spec.width
        for trial in range(TRIALS):
            if not len(left):
                break
            key_of = partial(self.key, "plane trial", trial)
            drawn = [
                drawn_plane(spec.plane, self.fitted, int(index[row]), int(models[row]), key_of, extent=spec.extent)
                for row in left
            ]
            found.update(zip(left.tolist(), drawn, strict=True))
            segment[left] = segments(self._chart(drawn, models[left]), index[left], drawn, aspect, key_of)
            left = left[np.isnan(segment[left, 0, 0])]
        planes, depths = [found[row] for row in range(len(index))], self.depths(index)
        for row, plane in enumerate(planes):
            there = not np.isnan(segment[row, 0, 0])
            depths[row] = min(depths[row], plane.deepest(spec.height, spec.width)) if there else 0
        segment[depths == 0] = np.nan
        walk = partial(self.key, "walk")
        points = boundary_points(self._chart(planes, models), index, segment, depths, walk)
        return shifted_views(planes, index, points, depths, aspect, walk), depths

    def _chart(self, planes: list[Plane], models: Int64) -> Chart:
        from fractal_streams.kaleidoscope.basins import Chart

        return Chart(self.engine, self.table, self.rule, planes, models)

    def _maps(self, planes: list[Plane], models: Int64) -> BasinMap:
        from fractal_streams.kaleidoscope.basins import basin_map

        return basin_map(
            self.fitted, planes, self.spec.height, self.spec.width, models=models, rule=self.rule, engine=self.engine,
            table=self.table,
        )  # fmt: skip

    def _labels(self, maps: BasinMap) -> Int64:
        """(B,) int64; a picture in which no chain ended at a known end has the label of the nearest ones."""
        from fractal_streams.kaleidoscope.basins import shares

        if self.spec.label == "model":
            return maps.models
        held = maps.shares()
        if len(held):
            none = held.sum(axis=1) == 0.0
            held = np.where(none[:, None], shares(maps.nearest, len(self.table)), held) if none.any() else held
        row = held.argmax(axis=1).astype(np.int64)
        return row if self.spec.label == "attractor" else self.table.labels[row].astype(np.int64)

    def _cost(self) -> int:
        """In pictures of its size that a formula draws: chains of all pixels, of edges' samples, and of the walk."""
        from fractal_streams.kaleidoscope.basin_boundary import HALVINGS, PARTS, PROBES, SLACK

        spec, pixels = self.spec, self.spec.height * self.spec.width
        walked = PROBES + (PARTS + 1) * -(-(spec.max_depth + SLACK) // HALVINGS)
        samples = 1.0 + walked / pixels
        samples += USUAL_EDGES * spec.supersample**2 if spec.supersample > 1 else 0.0
        shape = self.fitted.network.shape
        own = int(np.prod(shape[1:]))
        return relative_cost(self.fitted, min(spec.most, USUAL_STEPS) * samples * own)
