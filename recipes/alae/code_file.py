"""Codes of pictures with all that is known of them, as a file: .npz, arrays by name, which NumPy alone reads.

codes (N, d) or (N, num_styles, d) float32; index, labels (N,) int64; names (N,); latent_NAME (N, ...); of clips, whose
frames are rows, one after the other, frames: how many a clip has; and figures of each row, such as psnr (N,).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_streams import Batch, Stream
from fractal_streams.contact_sheet import DOT, whole_file
from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.stored import StoredStream

try:
    import torch
    from fractal_streams.recipes.alae.codes import stills
    from fractal_streams.recipes.alae.model import ALAE
    from fractal_streams.recipes.alae.using import bar, encode
    from fractal_streams.recipes.probe import Look
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

LATENT = "latent_"
OWN = ("codes", "index", "names", "labels", "frames")


@dataclass(frozen=True, eq=False, kw_only=True)
class Coded:
    """N codes.

    codes: (N, d) or (N, num_styles, d) float32. index: (N,) int64, of the sample in its stream. names: a line on each.
    labels: (N,) int64, None where nothing has a class. latents: name to (N, ...). frames: T of clips, whose frames are
    T rows each; None of stills. figures: name to (N,), what was measured of each.

    Raises:
        InvalidValueError: codes of another shape, arrays of other lengths, a clip that is not whole.
    """

    codes: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]
    names: Sequence[str]
    labels: npt.NDArray[np.int64] | None = None
    latents: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    frames: int | None = None
    figures: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.codes.ndim not in (2, 3) or self.codes.dtype != np.float32 or not self.codes.size:
            raise InvalidValueError(
                f"codes must be (N, d) or (N, num_styles, d) float32, got {self.codes.shape} {self.codes.dtype}"
            )
        others = {"index": self.index, "names": self.names, **self.latents, **self.figures}
        for name, values in {**others, **({} if self.labels is None else {"labels": self.labels})}.items():
            if len(values) != len(self.codes):
                raise InvalidValueError(f"{name} must be one for each of {len(self.codes)} codes, got {len(values)}")
        if self.frames is not None and (self.frames < 1 or len(self.codes) % self.frames):
            raise InvalidValueError(
                f"frames={self.frames} must divide the {len(self.codes)} codes: a clip is not whole"
            )

    def __len__(self) -> int:
        return len(self.codes)

    def tensor(self) -> Tensor:
        """The codes for torch."""
        return torch.from_numpy(self.codes)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As the file holds them."""
        found: dict[str, Any] = {"codes": self.codes, "index": self.index, "names": np.array(self.names, np.str_)}
        if self.labels is not None:
            found["labels"] = self.labels
        if self.frames is not None:
            found["frames"] = np.array(self.frames)
        return {**found, **{f"{LATENT}{name}": values for name, values in self.latents.items()}, **self.figures}


def save_codes(path: str | Path, coded: Coded, **others: npt.NDArray[Any]) -> None:
    """Write codes, and other arrays beside them; the file is there whole or not at all, equal codes give equal bytes.

    Raises:
        InvalidValueError: a path that does not end in .npz, or whose folder is not there.
    """
    if Path(path).suffix != ".npz":
        raise InvalidValueError(f"codes are written as .npz, got {str(path)!r}")
    held: dict[str, Any] = {**coded.arrays(), **others}
    whole_file(path, lambda name: np.savez(name, **held))


def load_codes(path: str | Path) -> Coded:
    """Codes of a file; of an .npz of one's own, "codes" is all that must be there.

    Raises:
        InvalidValueError: no file, none that NumPy reads, no codes in it, or arrays that don't fit together.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "codes.npz"
        >>> save_codes(place, Coded(codes=np.ones((2, 4), np.float32), index=np.arange(2), names=("one", "two")))
        >>> load_codes(place).codes.shape, load_codes(place).names
        ((2, 4), ('one', 'two'))
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held: dict[str, Any] = {name: file[name] for name in file.files if name != "images"}
    except FileNotFoundError:
        raise InvalidValueError(f"there are no codes at {path}: fractal-streams alae encode writes them") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InvalidValueError(f"{path} is no .npz of codes that can be read ({error})") from error
    if "codes" not in held:
        raise InvalidValueError(f"{path} holds no codes, only {', '.join(held) or 'nothing'}")
    codes = held["codes"].astype(np.float32) if held["codes"].dtype.kind in "fiu" else held["codes"]
    rows = len(codes) if codes.ndim else 0
    index = held.get("index", np.arange(rows))
    frames = held.get("frames")
    others = {name: values for name, values in held.items() if name not in OWN and not name.startswith(LATENT)}
    return Coded(
        codes=codes, index=index, names=tuple(map(str, held.get("names", [f"#{number}" for number in index]))),
        labels=held.get("labels"), frames=None if frames is None else int(frames),
        latents={name.removeprefix(LATENT): values for name, values in held.items() if name.startswith(LATENT)},
        figures={name: values for name, values in others.items() if np.shape(values) == (rows,)},
    )  # fmt: skip


def coded(model: ALAE, stream: Stream, indices: Sequence[int], *, batch_size: int = 256, quiet: bool = True) -> Coded:
    """E's codes of samples of a stream, of clips a row for each frame.

    Args:
        stream: of pictures in [-1, 1], as large as the model's. indices: 0 and up. quiet: no progress bar.

    Raises:
        InvalidValueError: pictures of another size, no index or one below 0.

    Example:
        >>> from fractal_streams import open_stream
        >>> from fractal_streams.recipes.alae.model import ALAE, SIZES
        >>> stream = open_stream("kali", device="cpu", dtype="float32", mean=0.5, std=0.5, height=8, width=8)
        >>> coded(ALAE(SIZES["tiny"], (3, 8, 8)), stream, range(3)).codes.shape
        (3, 64)
    """
    if not len(indices):
        raise InvalidValueError("indices must hold at least one sample, got none")
    codes: list[Tensor] = []
    labels: list[Tensor] = []
    latents: dict[str, list[Tensor]] = {}
    names: list[str] = []
    frames = None
    with bar("encoding", len(indices), quiet) as ahead:
        for start in range(0, len(indices), batch_size):
            seen = stream.generate(indices[start : start + batch_size]).torch()
            frames = int(seen.images.shape[1]) if seen.images.dim() == 5 else None
            look = stills(Look(seen.images.float(), seen.labels, seen.latents))
            codes.append(encode(model, look.images, batch_size).cpu())
            labels.append(look.labels.cpu())
            names += named(stream, seen)
            for name, values in look.latents.items():
                latents.setdefault(name, []).append(values.cpu())
            ahead(len(seen))
    return Coded(
        codes=torch.cat(codes).numpy(), index=np.repeat(np.array(list(indices), np.int64), frames or 1), names=names,
        labels=torch.cat(labels).numpy(), latents={name: torch.cat(each).numpy() for name, each in latents.items()},
        frames=frames,
    )  # fmt: skip


def named(stream: Stream, batch: Batch) -> list[str]:
    """A line on each picture of a batch of tensors, of clips on each frame: its file, or its class and index."""
    frames = batch.images.shape[1] if batch.images.dim() == 5 else None
    if isinstance(stream, StoredStream):
        return [stream.pack.names[int(item)] for item in batch.latents["item"].flatten().tolist()]
    several = stream.num_classes > 1
    lines = [
        f"{stream.class_title(label)}{DOT}#{index}" if several else f"#{index}"
        for index, label in zip(batch.index.tolist(), batch.labels.tolist(), strict=True)
    ]
    return lines if frames is None else [f"{line}, frame {time}" for line in lines for time in range(frames)]
