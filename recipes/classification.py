"""What classification recipes share: the loss, and the accuracy on held-out samples."""

from __future__ import annotations

from typing import Any

from fractal_streams.recipes.data import held_out

from fractal_streams import Stream
from fractal_streams.errors import missing_extra

try:
    import torch
    from fractal_streams.recipes.loop import Loop
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


def classification_loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Cross-entropy in nats, and the share of a batch (images, labels) that is right."""
    images, labels = batch
    scores = model(images)
    right = (scores.argmax(1) == labels).float().mean()
    return {"loss": functional.cross_entropy(scores.float(), labels), "accuracy": right}


def tested(loop: Loop, stream: Stream, samples: int, val_seed: int = 0, batch_size: int = 512) -> dict[str, float]:
    """Accuracy and cross-entropy on held-out samples, shared out over the ranks.

    Args:
        stream: of the validation or test split, in the loop's form.

    Returns:
        "test_loss", nats; "test_accuracy", a share; the same on all ranks.
    """
    accelerator = loop.accelerator
    sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    with loop.evaluating() as model:
        for place, batch in enumerate(held_out(stream, samples, batch_size, val_seed)):
            if place % accelerator.num_processes == accelerator.process_index:
                scores = model(batch.images).float()
                right = (scores.argmax(1) == batch.labels).sum().double()
                loss = functional.cross_entropy(scores, batch.labels, reduction="sum").double()
                sums += torch.stack([loss, right, right.new_tensor(len(batch.labels))])
    loss_sum, right_sum, count = accelerator.reduce(sums, reduction="sum").tolist()
    return {"test_loss": loss_sum / count, "test_accuracy": right_sum / count}
