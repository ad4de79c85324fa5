"""Pictures from a denoiser: DDPM, DDIM and DPM-Solver++ of diffusers, with classifier-free guidance.

Picture number k of a seed starts from noise of its own generator, on the CPU: it is the same in any batch, on any
device and any number of ranks, up to the rounding of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from fractal_streams.errors import InvalidValueError, missing_extra
from fractal_streams.spec import one_of, whole

try:
    import torch
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
    from fractal_streams.recipes.loop import seed_named
    from fractal_streams.recipes.models.denoisers import Denoiser
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

Schedule = Any
"""A scheduler of diffusers, whose types don't tell what it has."""
SAMPLERS: dict[str, Any] = {"dpm": DPMSolverMultistepScheduler, "ddim": DDIMScheduler, "ddpm": DDPMScheduler}
"""Lu et al. (2022), second order; Song et al. (2021), without noise; Ho et al. (2020)."""
BETAS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
PREDICTIONS = {"v": "v_prediction", "epsilon": "epsilon"}


def noise_schedule(
    *, timesteps: int = 1000, betas: str = "cosine", prediction: str = "v", zero_terminal_snr: bool = False
) -> Schedule:
    """How much noise each timestep has, and what a denoiser predicts there.

    Args:
        betas: "cosine" (Nichol & Dhariwal 2021) or "linear" (Ho et al. 2020).
        prediction: "v" (Salimans & Ho 2022, appendix D) or "epsilon".
        zero_terminal_snr: nothing of the picture is left at the last timestep (Lin et al. 2024, algorithm 1).

    Raises:
        InvalidValueError: a noise prediction at a timestep that has nothing but noise.
    """
    if zero_terminal_snr and prediction == "epsilon":
        raise InvalidValueError(
            "prediction='epsilon' says nothing of a picture under pure noise: use prediction='v' with zero_terminal_snr"
        )
    return DDPMScheduler(
        num_train_timesteps=timesteps, beta_schedule=BETAS[betas], prediction_type=PREDICTIONS[prediction],
        rescale_betas_zero_snr=zero_terminal_snr,
    )  # fmt: skip


def sample(
    model: Denoiser,
    schedule: Schedule,
    labels: Tensor,
    *,
    image_size: int,
    sampler: str = "dpm",
    steps: int = 25,
    guidance: float = 1.0,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """(B, 3, image_size, image_size) float32 pictures in [-1, 1] of (B,) labels, on their device.

    Args:
        schedule: that the model was trained with.
        sampler: of `SAMPLERS`. steps: calls of the model; "ddpm" draws noise in each.
        guidance: 1 follows the class, 0 no class, above 1 overstates what sets the class apart (Ho & Salimans 2022).
        seed, numbers: name each picture's noise; 0 to B - 1 without numbers.

    Raises:
        InvalidValueError: another sampler, steps that the schedule does not have or that DDIM can't space evenly.
    """
    numbers = range(len(labels)) if numbers is None else numbers
    if len(numbers) != len(labels):
        raise InvalidValueError(f"numbers must be one for each of {len(labels)} labels, got {len(numbers)}")
    solver = solver_of(sampler, schedule, steps)
    shape = (1, 3, image_size, image_size)
    generators = [torch.Generator().manual_seed(seed_named("sample", seed, int(number))) for number in numbers]
    noisy = torch.cat([torch.randn(shape, generator=each) for each in generators]).to(labels.device)
    drawn = {"generator": generators} if sampler == "ddpm" else {}
    for time in solver.timesteps.tolist():
        clean = clean_picture(schedule, guided(model, noisy, time, labels, guidance), noisy, time)
        noisy = solver.step(clean, time, noisy, return_dict=False, **drawn)[0]
    return noisy.clamp(-1.0, 1.0)


def blocks(count: int, block_size: int, rank: int = 0, ranks: int = 1) -> Iterator[range]:
    """The numbers of a rank's share of `count` pictures, in blocks: every ranks-th block is its own.

    Example:
        >>> [list(block) for block in blocks(7, 2, rank=1, ranks=2)]
        [[2, 3], [6]]
    """
    for start in range(rank * block_size, count, ranks * block_size):
        yield range(start, min(start + block_size, count))


def solver_of(name: str, schedule: Schedule, steps: int) -> Schedule:
    """diffusers' scheduler of a name, that is given clean pictures: evenly spaced for DDIM, else quadratically."""
    one_of(name, "sampler", tuple(SAMPLERS))
    most = schedule.config.num_train_timesteps
    whole(steps, "steps", 1, most, "of the sampler")
    if name == "ddim" and most % steps:
        raise InvalidValueError(f"steps={steps} must divide the schedule's {most} timesteps for DDIM")
    solver = SAMPLERS[name].from_config(schedule.config, timestep_spacing="trailing", prediction_type="sample")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # diffusers' own
        if name == "ddim":
            solver.set_timesteps(steps)
        else:
            solver.set_timesteps(timesteps=quadratic_times(steps, most))
    return solver


def quadratic_times(steps: int, most: int) -> list[int]:
    """Different timesteps from the last on, closer and closer: quadratic (Song et al. 2021, appendix D).

    In as many even ones the last leap is so long that it wipes out fine detail.

    Example:
        >>> quadratic_times(5, 1000)
        [999, 639, 359, 159, 39]
    """
    return [max(-(-most * left**2 // steps**2), left) - 1 for left in range(steps, 0, -1)]


def guided(model: Denoiser, noisy: Tensor, time: int, labels: Tensor, guidance: float) -> Tensor:
    """The model's prediction away from that of no class, in one call; float32."""
    if guidance in (0.0, 1.0):
        asked = labels if guidance else torch.full_like(labels, model.none)
        return model(noisy, torch.full_like(labels, time), asked).float()
    both = torch.cat([labels, torch.full_like(labels, model.none)])
    told, untold = model(torch.cat([noisy, noisy]), torch.full_like(both, time), both).float().chunk(2)
    return untold + guidance * (told - untold)


def clean_picture(schedule: Schedule, prediction: Tensor, noisy: Tensor, time: int) -> Tensor:
    """The picture in [-1, 1] that a prediction means."""
    left = float(schedule.alphas_cumprod[time])
    signal, noise = left**0.5, (1.0 - left) ** 0.5
    if schedule.config.prediction_type == "v_prediction":
        return (signal * noisy - noise * prediction).clamp(-1.0, 1.0)
    return ((noisy - noise * prediction) / signal).clamp(-1.0, 1.0)
