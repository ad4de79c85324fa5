"""What trainers do with a loader that its user can't see: read off the stack, since nothing else tells of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from fractal_streams.errors import ShardingError
from fractal_streams.shard import Shard

ACCELERATE = "accelerate.data_loader"
LIGHTNING = ("lightning.pytorch.loops.fit_loop", "pytorch_lightning.loops.fit_loop")


def refuse_resharding(shard: Shard) -> None:
    """A `ShardingError` if accelerate reads this rank's share of a stream, of which it would pass on a share.

    Whatever wraps the dataset and however batches are dispatched, the loaders that `prepare` makes are on the
    stack when iteration begins; a worker process that is forked keeps its parent's stack.

    Args:
        shard: of the dataset that is about to be read.
    """
    if ACCELERATE not in sys.modules or 1 in (shard.world_size, Shard.detect().world_size):
        return
    if any(frame.f_globals.get("__name__") == ACCELERATE for frame in _stack()):
        raise ShardingError(
            f"rank {shard.rank} of {shard.world_size} reads its own share of this stream already, and accelerate, "
            f"which prepared this DataLoader, would hand out shares of that share, so that samples would be lost. "
            f"Don't give it to accelerator.prepare; or use fractal_streams.Loader, which prepare leaves as it is; or "
            f"let accelerate do the sharing, as transformers.Trainer does: StreamDataset(..., shard=Shard(0, 1))"
        )


def batches_read_ahead() -> int:
    """Batches that Lightning's Trainer, which now saves its loops, was handed and has not trained on.

    From a loader without len() it reads one batch ahead, to know the last one.
    """
    if not any(name in sys.modules for name in LIGHTNING):
        return 0
    for frame in _stack():
        if frame.f_globals.get("__name__") in LIGHTNING:
            fetcher = getattr(frame.f_locals.get("self"), "_data_fetcher", None)
            return len(getattr(fetcher, "batches", ()))
    return 0


def _stack() -> Iterator[FrameType]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]
