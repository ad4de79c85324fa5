"""Train a network at every point of a plane of hyperparameters: scans, zooms, dimensions and streams.

from fractal_streams.trainability import PUBLISHED, scan
made = scan(PUBLISHED["single"].experiment, resolution=256)
"""

from fractal_streams.trainability.centre import choose_centre as choose_centre
from fractal_streams.trainability.dimension import (
    Dimension as Dimension,
    least_squares_dimension as least_squares_dimension,
    published_dimension as published_dimension,
)
from fractal_streams.trainability.experiment import Experiment as Experiment
from fractal_streams.trainability.outcome import Outcome as Outcome, Readout as Readout
from fractal_streams.trainability.picture import restretch as restretch, save_picture as save_picture
from fractal_streams.trainability.presets import OVERVIEW as OVERVIEW, PUBLISHED as PUBLISHED
from fractal_streams.trainability.refine import Refinement as Refinement
from fractal_streams.trainability.scan import Scan as Scan, open_scan as open_scan, scan as scan
from fractal_streams.trainability.streams import (
    PointSpec as PointSpec,
    PointStream as PointStream,
    TileSpec as TileSpec,
    TileStream as TileStream,
)
from fractal_streams.trainability.trainer import open_trainer as open_trainer
from fractal_streams.trainability.uncertainty import (
    trained_uncertainty as trained_uncertainty,
    uncertainty_exponent as uncertainty_exponent,
)
from fractal_streams.trainability.video import save_video as save_video, stitch_zoom_to_video as stitch_zoom_to_video
from fractal_streams.trainability.window import Grid as Grid, PrecisionWarning as PrecisionWarning, Window as Window
from fractal_streams.trainability.zoom import (
    Zoom as Zoom,
    open_zoom as open_zoom,
    zoom as zoom,
    zoom_in as zoom_in,
    zoom_windows as zoom_windows,
    zoom_windows_about as zoom_windows_about,
)

__all__ = [
    "OVERVIEW", "PUBLISHED", "Dimension", "Experiment", "Grid", "Outcome", "PointSpec", "PointStream",
    "PrecisionWarning", "Readout", "Refinement", "Scan", "TileSpec", "TileStream", "Window", "Zoom", "choose_centre",
    "least_squares_dimension", "open_scan", "open_trainer", "open_zoom", "published_dimension", "restretch",
    "save_picture", "save_video", "scan", "stitch_zoom_to_video", "trained_uncertainty", "uncertainty_exponent",
    "zoom", "zoom_in", "zoom_windows", "zoom_windows_about",
]  # fmt: skip
