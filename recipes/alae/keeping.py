"""A trained ALAE as two files: model.safetensors, model.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fractal_streams.recipes.alae.model import ALAE, Size
from fractal_streams.recipes.results import write_json

from fractal_streams.contact_sheet import whole_file
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


def save_model(folder: Path, model: ALAE, size: Size) -> None:
    """Write a model, at the level that it has grown to, into a folder; made if it is not there.

    Args:
        size: that it was made with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    whole_file(folder / "model.safetensors", lambda path: save_file(weights, path))
    shape = {
        "size": asdict(size), "shape": list(model.shape), "prior_size": model.prior_size, "flat": model.flat,
        "activation": model.discriminator.activation, "rate": model.projector.rate, "first_level": model.first_level,
        "level": model.level, "blend": float(model.blend), "dense": model.dense,
    }  # fmt: skip
    write_json(folder / "model.json", shape)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> ALAE:
    """The model of a folder, in evaluation mode.

    Raises:
        InvalidValueError: there is none, or one that is damaged.
    """
    place = Path(folder)
    try:
        told: dict[str, Any] = json.loads((place / "model.json").read_text())
        level, blend, flat = told.pop("level"), told.pop("blend"), told["flat"]
        first = told.pop("first_level")
        size, shape = Size(**told.pop("size")), tuple(told.pop("shape"))
        model = ALAE(size, shape, first_level=None if flat else first, **told)
        model.load_state_dict(load_file(place / "model.safetensors", device="cpu"))
    except FileNotFoundError as error:
        raise InvalidValueError(
            f"{place} holds no trained ALAE ({error.filename} is missing): train one there first, "
            f"fractal-streams train alae --folder {place}"
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InvalidValueError(f"{place} holds no ALAE that can be read ({error}): train it anew") from error
    if not flat:
        model.grow(level, blend)
    return model.to(device).eval()
