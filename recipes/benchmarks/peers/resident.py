"""A CIFAR-shaped set that lives on the device: no file, no worker, no copy.

Source: K. Jordan, 94 % on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024 (airbench), whose loader keeps the normalised
set on the GPU and augments a whole epoch at once. `gathered` does the same in fewer passes than it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from fractal_streams.recipes.benchmarks.peers.contestant import Contestant, Delivery, Item
from fractal_streams.recipes.benchmarks.peers.pictures import Pictures


def contestants(delivery: Delivery, pictures: Pictures) -> list[Contestant]:
    """The set on the device, augmented in two ways; without a GPU in the faster one."""
    place = "on the GPU" if delivery.on_gpu else "in memory"
    ways = {"shift by shift": shifted} if delivery.on_gpu else {}
    ways["one gather"] = gathered
    return [
        Contestant(
            name=f"CIFAR {place}, {name}", batch=delivery.batch, prepare=lambda: pictures.images,
            read=partial(resident, delivery, pictures, augment),
        )
        for name, augment in ways.items()
    ]  # fmt: skip


def resident(delivery: Delivery, pictures: Pictures, augment: Callable[..., Iterator[Item]]) -> Iterator[Item]:
    """The normalised, padded set on the device; each epoch cropped, flipped and shuffled there."""
    images = torch.from_numpy(pictures.images).to(delivery.device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(pictures.labels).to(delivery.device)
    mean, std = (torch.tensor(part, device=images.device).view(3, 1, 1) for part in (pictures.mean, pictures.std))
    pad = delivery.padding
    chunks = [(chunk.float() / 255.0 - mean) / std for chunk in images.split(4096)]
    padded = torch.cat([
        torch.nn.functional.pad(chunk, (pad,) * 4, mode="reflect").to(delivery.dtype) for chunk in chunks
    ])  # fmt: skip
    del chunks, images
    while True:
        yield from augment(padded, labels, delivery)


def shifted(padded: torch.Tensor, labels: torch.Tensor, delivery: Delivery) -> Iterator[Item]:
    """An epoch as airbench makes it: rows, then columns, all pictures of one shift at a time; batches by index."""
    count, size, pad = len(padded), delivery.size, delivery.padding
    down, across = torch.randint(0, 2 * pad + 1, (2, count), device=padded.device)
    rows = padded.new_empty(count, 3, size, size + 2 * pad)
    crops = padded.new_empty(count, 3, size, size)
    for shift in range(2 * pad + 1):
        chosen = down == shift
        rows[chosen] = padded[chosen, :, shift : shift + size]
    for shift in range(2 * pad + 1):
        chosen = across == shift
        crops[chosen] = rows[chosen, :, :, shift : shift + size]
    mirrored = torch.rand(count, 1, 1, 1, device=padded.device) < 0.5
    crops = torch.where(mirrored, crops.flip(-1), crops)
    order = torch.randperm(count, device=padded.device)
    for first in range(0, count - delivery.batch + 1, delivery.batch):
        chosen = order[first : first + delivery.batch]
        yield crops[chosen], labels[chosen]


def gathered(padded: torch.Tensor, labels: torch.Tensor, delivery: Delivery) -> Iterator[Item]:
    """An epoch in one gather: shuffle, crop and flip are its index, and batches are slices."""
    count, size, pad, device = len(padded), delivery.size, delivery.padding, padded.device
    order = torch.randperm(count, device=device)
    edge = torch.arange(size, device=device)
    down, across = torch.randint(0, 2 * pad + 1, (2, count, 1), device=device)
    mirrored = torch.rand(count, 1, device=device) < 0.5
    columns = across + torch.where(mirrored, size - 1 - edge, edge)
    channels = torch.arange(3, device=device)[:, None, None]
    crops = padded[order[:, None, None, None], channels, (down + edge)[:, None, :, None], columns[:, None, None, :]]
    shuffled = labels[order]
    for first in range(0, count - delivery.batch + 1, delivery.batch):
        yield crops[first : first + delivery.batch], shuffled[first : first + delivery.batch]
