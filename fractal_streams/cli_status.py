"""Arrays of labels by the names that fractalML gives them, with a sidecar of all that determines them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams.errors import InvalidValueError, VersionError
from fractal_streams.trainability.boxes import edges
from fractal_streams.trainability.experiment import Experiment
from fractal_streams.trainability.scan import Scan
from fractal_streams.trainability.store import put, read_facts
from fractal_streams.trainability.window import Window

STATUS_VERSION = 1
BATCH_SIZE = 16
"""Rows of a minibatch where none are asked for, as in fractalML."""
ACTIVATIONS = {
    "tanh": "tanh",
    "relu": "relu",
    "linear": "identity",
    "identity": "identity",
    "sin": "sin",
    "gelu": "gelu",
}
"""Names on the command line and in files, and what they are called here."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Labels of a plane that were read.

    experiment, window: what was trained, and where. labels: (W, H) uint8, [i, j] with i along the horizontal and j
    along the vertical axis; 0 converged, 1 diverged.
    """

    experiment: Experiment
    window: Window
    labels: npt.NDArray[np.uint8]


def batches_of(experiment: Experiment, batch_size: int | None, replacement: bool | None) -> Experiment:
    """The experiment with fractalML's minibatches: 16 rows without replacement, all rows if there are no more."""
    size = BATCH_SIZE if batch_size is None else batch_size
    if size == 0 or size >= experiment.rows:
        return experiment.replace(batch_size=None)
    return experiment.replace(batch_size=size, replacement=bool(replacement))


def save_status(scan: Scan, path: Path, folder: Path) -> None:
    """Write labels as `.npy`, and beside it a `.json` of what determines them, with the values of both axes.

    Args:
        scan: a finished one. folder: where its tiles are. path: of the .npy.
    """
    horizontal, vertical = scan.experiment.axes
    facts = {
        "status_version": STATUS_VERSION,
        **read_facts(folder),
        "layout": f"[i, j]: i along {horizontal}, j along {vertical}; 0 converged, 1 diverged",
        "scan": folder.name,
        "values": {horizontal: scan.grid.x.tolist(), vertical: scan.grid.y.tolist()},
    }
    labels = io.BytesIO()
    np.save(labels, np.ascontiguousarray(scan.status.T))
    put(path, lambda file: file.write(labels.getvalue()))
    put(path.with_suffix(".json"), lambda file: file.write((json.dumps(facts, indent=1) + "\n").encode()))


def read_status(path: Path) -> Status:
    """The labels of a file that `save_status` wrote.

    Raises:
        InvalidValueError: not labels, or without the sidecar that says of what.
        VersionError: of another version.
    """
    sidecar = path.with_suffix(".json")
    if not path.exists():
        raise InvalidValueError(
            f"--status_npy {str(path)!r}: no such file; fractal-streams scan --activations makes one"
        )
    try:
        facts: dict[str, Any] = json.loads(sidecar.read_text())
        labels = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except FileNotFoundError:
        raise InvalidValueError(
            f"{path} has no {sidecar.name} beside it that says what was trained, so its windows can't be trained "
            f"again; fractal-streams scan --activations writes both"
        ) from None
    except ValueError as error:
        raise InvalidValueError(f"{path} or its {sidecar.name} is damaged: {error}") from None
    version = facts.get("status_version") if isinstance(facts, dict) else None
    if version != STATUS_VERSION:
        raise VersionError(f"{sidecar} has the version {version!r}, this package reads {STATUS_VERSION}")
    try:
        experiment = Experiment.from_json(json.dumps(facts["experiment"]))
        window, shape = Window.from_dict(facts["window"]), tuple(facts["resolution"])
    except KeyError as error:
        raise InvalidValueError(f"{sidecar} says nothing of {error}") from None
    except TypeError as error:
        raise InvalidValueError(f"{sidecar} is damaged: {error}") from None
    if labels.dtype != np.uint8 or labels.T.shape != shape:
        raise InvalidValueError(
            f"{path} holds {labels.dtype} of the shape {labels.shape}, its {sidecar.name} is of uint8 {shape[::-1]}"
        )
    return Status(experiment=experiment, window=window, labels=labels)


def far_from_boundary(status: Status, centre: tuple[float, float], windows: Sequence[Window]) -> str | None:
    """What to say, before anything is trained, of windows about a centre without a boundary; None if all have one.

    Args:
        centre: (x, y), decimal logarithms. windows: of each level, outermost first.
    """
    edge = edges(status.labels.T)
    if not edge.any():
        return "the status array has one label alone, so that no boundary is known to zoom into: scan a wider window"
    rows, columns = np.nonzero(edge)
    places, pitch = [], 0.0
    for axis, found in enumerate((columns, rows)):
        steps = status.labels.shape[axis] - 1
        size, offset = status.window.size[axis], status.window.offset[axis]
        places.append(np.log10(status.window.centre[axis]) + offset + size * ((found + 0.5) / steps - 0.5))
        pitch = max(pitch, size / steps)
    ways = abs(places[0] - centre[0]), abs(places[1] - centre[1])
    apart = np.maximum(*ways)  # of a square window's middle
    nearest = int(np.lexsort((np.hypot(*ways), apart))[0])
    bare = [level for level, window in enumerate(windows) if window.size[0] / 2 < apart[nearest] - pitch]
    if not bare:
        return None
    return (
        f"the nearest boundary in the status array is {apart[nearest]:.2g} decades from the centre ({centre[0]:g}, "
        f"{centre[1]:g}): from level {bare[0]} on, windows will show one label alone; there is a boundary near "
        f"--center_lr0 {places[0][nearest]:.4g} --center_lr1 {places[1][nearest]:.4g}, and --inwards in place of a "
        f"centre follows one"
    )
