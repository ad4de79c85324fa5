"""What a trained ALAE is given: the run that it is of, and pictures, of files, archives, videos or a stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from fractal_streams.recipes.alae.sources import HALF, SourceSettings, opened_source

from fractal_streams import Stream, open_stored
from fractal_streams.device import resolve_device
from fractal_streams.errors import FractalStreamsError, InvalidValueError, PictureError, missing_extra
from fractal_streams.stored import Pack, StoredStream
from fractal_streams.stored.entries import PICTURE_ENDINGS, ending
from fractal_streams.stored.picture import Size, decoded

try:
    from fractal_streams.recipes.alae.keeping import load_model
    from fractal_streams.recipes.alae.model import ALAE
    from fractal_streams.recipes.alae.priors import Prior, make_prior
    from fractal_streams.recipes.alae.train import ALAESettings
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

STORED: dict[str, Any] = {
    "crop": "centre", "order": "sequential", "device": "cpu", "dtype": "float32", "mean": HALF, "std": HALF,
}  # fmt: skip
"""Pictures as they are, one after the other, as the model reads them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """A trained model, in evaluation mode, and the settings of its run; None where they are not beside it."""

    folder: Path
    model: ALAE
    device: str
    settings: ALAESettings | None

    @property
    def edge(self) -> int:
        """Pixels of a side of the pictures it was made for.

        Raises:
            InvalidValueError: a model of points.
        """
        if len(self.model.shape) != 3:
            raise InvalidValueError(
                f"{self.folder} holds a model of points {self.model.shape}, and pictures are asked for"
            )
        return self.model.shape[-1]


def opened_run(folder: str | Path, device: str = "auto") -> Run:
    """The model and the settings of a folder that `train alae` wrote.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InvalidValueError: no model there, or settings that can't be read. DeviceError: no such device.
    """
    place, where = Path(folder), resolve_device(device)
    model, settings = load_model(place, where), None
    if (place / "result.json").is_file():
        try:
            settings = ALAESettings(**json.loads((place / "result.json").read_text())["settings"])
        except (KeyError, TypeError, ValueError, FractalStreamsError) as error:
            raise InvalidValueError(f"{place / 'result.json'} holds no settings of a run ({error})") from error
    return Run(folder=place, model=model, device=where, settings=settings)


def stored_pictures(
    places: Sequence[str | Path],
    edge: int,
    *,
    skip: int = 0,
    on_error: str = "raise",
    cache: Path | None = None,
    quiet: bool = False,
) -> StoredStream:
    """Every picture of files, or of one folder, zip, pack, video or "hub:NAME", in order, in [-1, 1].

    The middle square of each, reduced to edge x edge pixels by areas; what is smaller is refused, and never enlarged.

    Args:
        places: picture files, or a single address as `open_stored` takes it; that is decoded once, and kept in the
            cache. skip: of a video, frames left out after each. on_error: "raise", or "skip" what can't be read.

    Raises:
        PictureError: a picture that can't be read, or is too small. InvalidValueError: nothing there.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> place = Path(tempfile.mkdtemp()) / "white.png"
        >>> Image.new("RGB", (40, 30), "white").save(place)
        >>> batch = stored_pictures([place], 16).generate([0])
        >>> batch.images.shape, float(batch.images.min())
        ((1, 3, 16, 16), 1.0)
    """
    files = [Path(place).expanduser() for place in places]
    if files and all(ending(path.name) in PICTURE_ENDINGS and not path.is_dir() for path in files):
        if skip:
            raise InvalidValueError(f"skip={skip} is of videos, and picture files are given: leave it out")
        names = [path.name for path in files]
        if len({*names}) < len(names):
            names = list(map(str, files))
        return StoredStream(
            Pack.of(np.stack([square(path, edge) for path in files]), names=names), height=edge, **STORED
        )
    if len(places) != 1:
        raise InvalidValueError(
            f"give picture files ({', '.join(PICTURE_ENDINGS)}), or one folder, zip, video or pack, got {len(places)}: "
            f"{', '.join(map(str, places)):.200}"
        )
    asked: dict[str, Any] = {"skip": skip} if skip else {}
    return open_stored(
        places[0], height=edge, cache=cache, on_error=on_error, progress=not quiet, **asked, **STORED  # type: ignore[arg-type]
    )  # fmt: skip


def square(path: Path, edge: int) -> Any:
    """(edge, edge, 3) uint8: the middle of a picture file, reduced until its shorter side has so many pixels."""
    try:
        small = Size(height=edge, width=edge).fit(decoded(path))
    except Exception as error:  # decoders raise what they like
        if isinstance(error, FractalStreamsError):
            raise
        raise PictureError(f"{path}: {error}") from error
    top, left = ((side - edge) // 2 for side in small.shape[:2])
    return small[top : top + edge, left : left + edge]


def run_stream(
    run: Run, *, preset: str = "", split: str = "test", seed: int | None = None, cache: Path | None = None
) -> Stream:
    """A stream of pictures in [-1, 1], as large as the model's.

    Args:
        preset: or formula, or a spec's JSON file; "" is what the run was trained on.
        split: "train", "validation" or "test". seed: of the stream; None is the run's own, 0 of another preset.
        cache: of the decoded data that the run was trained on; None is the user's.

    Raises:
        InvalidValueError: no preset, of a model without the settings of its run. Others as `opened_source`.
    """
    if preset:
        own = run.settings is not None and run.settings.preset == preset and not run.settings.data
        if not own:
            return opened_source(
                SourceSettings(preset=preset, image_size=run.edge, data_seed=seed or 0), split, run.device
            )
    if run.settings is None:
        raise InvalidValueError(f"{run.folder} has no result.json that says what it was trained on: name a preset")
    kept = {item.name: getattr(run.settings, item.name) for item in fields(SourceSettings)}
    changed = {"image_size": run.edge, "cache": cache, **({} if seed is None else {"data_seed": seed})}
    return opened_source(SourceSettings(**{**kept, **changed}), split, run.device)


def run_prior(run: Run) -> tuple[Prior | None, Stream | None]:
    """What z of the run is drawn from, and the held-out samples that it needs; normal numbers need none.

    Raises:
        InvalidValueError: a prior that is none of the model's.
    """
    if run.settings is None or run.settings.prior == "gaussian":
        return None, None
    validation = run_stream(run, split="validation")
    prior = make_prior(run.settings.prior, validation, run.model.code_size)
    return prior.to(run.device), run_stream(run, split="test")
