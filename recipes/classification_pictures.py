"""Pictures of what a classifier gets right and wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fractal_streams.recipes.data import DataSettings, held_out

from fractal_streams import Stream
from fractal_streams.contact_sheet import DOT, contact_sheet, save_png, tile_scale, whole_file
from fractal_streams.errors import missing_extra
from fractal_streams.normalisation import channel_statistics

try:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor, nn
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

RIGHT, WRONG = (46, 160, 67), (207, 34, 46)
ANSWERS = 40
"""Pictures of a sheet."""
FRAME = 4
"""Pixels around each, of a sheet."""
NUMBERED = 20
"""Classes up to which each cell tells its share."""


def draw_confusion(path: Path, confusion: Tensor, title: str) -> None:
    """Write a table of classes against answers, shares of each class."""
    shares = (confusion / confusion.sum(1, keepdim=True).clamp(min=1)).numpy()
    classes, accuracy = len(shares), float(confusion.trace() / confusion.sum())
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axes.set(xlabel="answer", ylabel="class", title=f"{title}: {accuracy:.1%} of {int(confusion.sum()):,} right")
    if classes <= NUMBERED:
        axes.set(xticks=range(classes), yticks=range(classes))
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                ink = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(drawn, label="share of the class", format=lambda share, _: f"{share:.0%}")
    whole_file(path, lambda written: figure.savefig(written, format="png", dpi=120))


def save_answers(path: Path, model: nn.Module, stream: Stream, data: DataSettings, title: str) -> None:
    """Write a sheet of held-out pictures in green frames where the model is right, in red ones where it is wrong.

    Args:
        model: in evaluation mode. stream: of the test split, in the model's form.
    """
    (batch,) = held_out(stream, ANSWERS, ANSWERS, data.val_seed)
    sure, answers = (part.tolist() for part in model(batch.images).float().softmax(1).max(1))
    labels = batch.labels.tolist()
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in channel_statistics(data.preset))
    levels = (batch.images.float().cpu() * std + mean).clamp(0, 1)
    images = (levels * 255).round().to(torch.uint8).numpy()
    factor = tile_scale(*images.shape[2:])
    large = images.repeat(factor, 2).repeat(factor, 3)
    frames = np.stack([
        framed(tile, RIGHT if answer == label else WRONG)
        for tile, answer, label in zip(large, answers, labels, strict=True)
    ])  # fmt: skip
    captions = [
        f"is {label}{DOT}said {answer} ({share:.0%})"
        for label, answer, share in zip(labels, answers, sure, strict=True)
    ]
    right = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    save_png(path, contact_sheet(frames, captions, title=f"{title}: {right} of {ANSWERS} right", columns=8, scale=1))


def framed(tile: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(3, H + 2 * FRAME, W + 2 * FRAME): a picture in a frame.

    Example:
        >>> framed(np.zeros((3, 2, 2), np.uint8), RIGHT).shape
        (3, 10, 10)
    """
    height, width = tile.shape[1:]
    canvas = np.empty((3, height + 2 * FRAME, width + 2 * FRAME), np.uint8)
    canvas[:] = np.array(colour, np.uint8).reshape(3, 1, 1)
    canvas[:, FRAME:-FRAME, FRAME:-FRAME] = tile
    return canvas
