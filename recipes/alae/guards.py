"""What ends a run that can't come to anything, with the reason: collapse, a discriminator that has won, NaN.

    guards = Guards()
    for record in loop:
        guards.watch(record.step, losses, discriminator=..., fakes=..., reals=...)

All is told by plain numbers of records, so a step has to wait for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fractal_streams.recipes.settings import Settings, option

from fractal_streams.errors import DivergedError, missing_extra

try:
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


class CollapseError(DivergedError):
    """A generator that makes one picture of all draws."""


class DiscriminatorWonError(DivergedError):
    """A discriminator that is right of every picture, so that the generator learns nothing more."""


@dataclass(frozen=True, kw_only=True)
class GuardSettings(Settings):
    """When a run is given up."""

    panel: ClassVar[str] = "Guards"
    least_deviation: float = option(
        0.2, "Share of real pictures' deviation that fakes must keep.", low=0.0, high=1.0, changes_nothing=True
    )
    collapsed_records: int = option(
        5, "Records in a row below it that end the run; 0 for none.", low=0, changes_nothing=True
    )
    least_loss: float = option(0.05, "Of the discriminator, nats, without penalties.", low=0.0, changes_nothing=True)
    won_steps: int = option(2000, "Steps in a row below it that end the run; 0 for none.", low=0, changes_nothing=True)
    grace_steps: int = option(500, "First steps, in which fakes may be all alike.", low=0, changes_nothing=True)


@dataclass(kw_only=True)
class Guards:
    """Watches a run's records; each problem ends it by an error of its own.

    settings: when. collapsed: records in a row with too little deviation. won_since: the first step, or the last step
    from which on the discriminator's loss was too low. A run that is resumed begins to count anew, or watches the
    records from before once more.

    Example:
        >>> guards = Guards(settings=GuardSettings(won_steps=100))
        >>> guards.watch(50, {"generator": 7.0}, discriminator=0.01)
        >>> guards.watch(150, {"generator": 9.0}, discriminator=0.01)
        Traceback (most recent call last):
        ...
        fractal_streams.recipes.alae.guards.DiscriminatorWonError: step 150: the discriminator's loss has been below...
    """

    settings: GuardSettings = field(default_factory=GuardSettings)
    collapsed: int = 0
    won_since: int | None = None

    def watch(
        self,
        step: int,
        losses: Mapping[str, float],
        *,
        discriminator: float | None = None,
        fakes: float | None = None,
        reals: float | None = None,
    ) -> None:
        """Look at a record.

        Args:
            step: of the record. losses: whatever must stay a number, by name.
            discriminator: its loss without penalties, nats, mean since the last record.
            fakes, reals: `batch_deviation` of made and of real pictures.

        Raises:
            DivergedError: something is no longer a finite number.
            CollapseError: `collapsed_records` in a row, behind the first `grace_steps`, with fakes too much alike.
            DiscriminatorWonError: a discriminator's loss below `least_loss` for `won_steps`.
        """
        told = {**losses, "discriminator": discriminator, "deviation of fakes": fakes, "deviation of reals": reals}
        broken = {name: value for name, value in told.items() if value is not None and not math.isfinite(value)}
        if broken:
            said = ", ".join(f"{name} is {value}" for name, value in broken.items())
            raise DivergedError(
                f"step {step}: {said}: lower the learning rate, raise the weight of R1, or drop the last slot added"
            )
        self._watch_deviation(step, fakes, reals)
        self._watch_discriminator(step, discriminator)

    def _watch_deviation(self, step: int, fakes: float | None, reals: float | None) -> None:
        most, share = self.settings.collapsed_records, self.settings.least_deviation
        if fakes is None or reals is None or step <= self.settings.grace_steps:
            return
        self.collapsed = self.collapsed + 1 if fakes < share * reals else 0
        if most and self.collapsed >= most:
            raise CollapseError(
                f"step {step}: fakes differ from each other by {fakes:.3g}, less than {share:.0%} of the {reals:.3g} "
                f"of real pictures, in {self.collapsed} records in a row: the generator makes one picture of all "
                f"draws; raise the weight of R1, or lower the generator's learning rate"
            )

    def _watch_discriminator(self, step: int, loss: float | None) -> None:
        most, least = self.settings.won_steps, self.settings.least_loss
        if loss is None or loss >= least or self.won_since is None:
            self.won_since = step
        elif most and step - self.won_since >= most:
            raise DiscriminatorWonError(
                f"step {step}: the discriminator's loss has been below {least:g} since step {self.won_since}, it is "
                f"{loss:.3g}: the generator learns nothing from it; raise the weight of R1 or give it more pictures"
            )


def batch_deviation(images: Tensor) -> Tensor:
    """() float32: the mean over pixels of their deviation over a batch (B, ...); 0 of pictures that are all the same.

    Nothing waits for it: it may be a step's own.

    Example:
        >>> import torch
        >>> float(batch_deviation(torch.tensor([[0.0, 5.0], [2.0, 5.0]])))
        0.5
    """
    return images.float().std(0, correction=0).mean()
