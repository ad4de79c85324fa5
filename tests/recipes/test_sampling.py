"""Samplers: data whose best denoiser is known in closed form, guidance, and pictures that no batch changes."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from fractal_streams.recipes import distance, sampling
from fractal_streams.recipes.loop import seed_named
from fractal_streams.recipes.models.denoisers import Denoiser, unet
from fractal_streams.recipes.sampling import (
    Schedule,
    blocks,
    clean_picture,
    guided,
    noise_schedule,
    quadratic_times,
    sample,
    solver_of,
)
from torch import Tensor, nn

from fractal_streams.errors import InvalidValueError

EDGE = 4
MEANS, DEVIATION = (0.25, -0.2, 0.0), 0.12


class Gaussian(Denoiser):
    """The best denoiser of pictures whose pixels are normal, with a mean for each class: E[clean | noisy]."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(nn.Identity(), len(MEANS) - 1)
        self.schedule, self.calls = schedule, []
        self.register_buffer("means", torch.tensor(MEANS))

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        self.calls.append(len(noisy))
        left = self.schedule.alphas_cumprod.double()[timesteps].reshape(-1, 1, 1, 1)
        mean = self.means[labels].reshape(-1, 1, 1, 1)
        share = left.sqrt() * DEVIATION**2 / (left * DEVIATION**2 + 1 - left)
        clean = mean + share * (noisy - left.sqrt() * mean)
        noise = (noisy - left.sqrt() * clean) / (1 - left).sqrt()
        velocity = self.schedule.config.prediction_type == "v_prediction"
        return (left.sqrt() * noise - (1 - left).sqrt() * clean if velocity else noise).float()


def noise(seed: int, number: int) -> Tensor:
    """What picture `number` starts from."""
    return torch.randn(1, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(seed_named("sample", seed, number)))


def pictures(schedule: Schedule, labels: Tensor, **how: Any) -> Tensor:
    return sample(Gaussian(schedule), schedule, labels, image_size=EDGE, **how)


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
@pytest.mark.parametrize("sampler, steps, most", [("ddim", 250, 0.012), ("dpm", 50, 2e-3)])
def test_the_flow_of_normal_pictures_is_the_one_in_closed_form(
    sampler: str, steps: int, most: float, prediction: str
) -> None:
    """Its probability flow takes noise z to mean + deviation * z."""
    schedule = noise_schedule(prediction=prediction)
    labels = torch.tensor([0, 1] * 8)
    found = pictures(schedule, labels, sampler=sampler, steps=steps, seed=3)
    start = torch.cat([noise(3, number) for number in range(16)])
    asked = torch.tensor(MEANS)[labels].reshape(-1, 1, 1, 1) + DEVIATION * start
    assert (found - asked).abs().max() < most


def test_more_steps_are_nearer_and_the_second_order_needs_fewer() -> None:
    schedule, labels = noise_schedule(), torch.zeros(16, dtype=torch.long)
    asked = MEANS[0] + DEVIATION * torch.cat([noise(0, number) for number in range(16)])
    wrong = {
        (sampler, steps): float((pictures(schedule, labels, sampler=sampler, steps=steps) - asked).abs().mean())
        for sampler in ("ddim", "dpm") for steps in (25, 50, 100)
    }  # fmt: skip
    for sampler, factor in (("ddim", 0.6), ("dpm", 0.3)):
        assert wrong[sampler, 100] < factor * wrong[sampler, 50] < factor**2 * wrong[sampler, 25]
    assert wrong["dpm", 25] < wrong["ddim", 100]


@pytest.mark.parametrize("most", [2, 7, 100, 1000])
def test_times_are_different_and_go_from_the_last_towards_the_first(most: int) -> None:
    for steps in range(1, most + 1):
        times = quadratic_times(steps, most)
        assert len(times) == steps and times[0] == most - 1 and times[-1] >= 0
        assert all(one > other for one, other in zip(times, times[1:], strict=False))
    assert quadratic_times(most, most) == list(range(most))[::-1]


def test_ddpm_draws_the_distribution() -> None:
    """Its steps are linear for normal pictures, so their variance can be followed (Ho et al. 2020, algorithm 2)."""
    schedule = noise_schedule(timesteps=100)
    found = pictures(schedule, torch.ones(200, dtype=torch.long), sampler="ddpm", steps=100)
    variance, left = 1.0, [*schedule.alphas_cumprod.double().tolist(), 1.0]
    for time in range(99, -1, -1):
        now, then = left[time], left[time - 1]
        beta, share = 1 - now / then, now**0.5 * DEVIATION**2 / (now * DEVIATION**2 + 1 - now)
        slope = then**0.5 * beta / (1 - now) * share + (now / then) ** 0.5 * (1 - then) / (1 - now)
        variance = slope**2 * variance + (beta * (1 - then) / (1 - now) if time else 0.0)
    count = found.numel()
    assert float(found.std()) == pytest.approx(variance**0.5, rel=5 / (2 * count) ** 0.5)
    assert abs(float(found.mean()) - MEANS[1]) < 5 * DEVIATION / count**0.5 + 1e-3
    apart = torch.corrcoef(found.reshape(200, -1)).fill_diagonal_(0.0)
    assert float(apart.abs().max()) < 6 / (3 * EDGE**2) ** 0.5  # each picture has noise of its own


@pytest.mark.parametrize("sampler, steps", [("dpm", 8), ("ddim", 8), ("ddpm", 8)])
def test_a_picture_is_that_of_its_number_in_any_batch(sampler: str, steps: int) -> None:
    torch.manual_seed(0)
    model = unet(size="tiny", num_classes=3, image_size=8).eval()
    nn.init.normal_(model.network.conv_out.weight, std=0.05)
    schedule = noise_schedule(timesteps=200)
    form: dict[str, Any] = {"image_size": 8, "sampler": sampler, "steps": steps, "guidance": 1.5, "seed": 4}
    labels = torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        whole = sample(model, schedule, labels, **form)
        part = sample(model, schedule, labels[[3, 1]], numbers=[3, 1], **form)
        other = sample(model, schedule, labels[[3, 1]], numbers=[3, 1], **{**form, "seed": 5})
    assert torch.allclose(part, whole[[3, 1]], atol=1e-5)
    assert float((other - part).abs().mean()) > 0.05
    assert float((whole[0] - whole[3]).abs().mean()) > 0.05


def test_what_torch_drew_before_changes_nothing() -> None:
    schedule, labels = noise_schedule(), torch.tensor([0, 1])
    first = pictures(schedule, labels, sampler="ddpm", steps=5)
    torch.randn(7)
    assert torch.equal(first, pictures(schedule, labels, sampler="ddpm", steps=5))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance_goes_on_from_no_class_through_the_class_in_one_call(guidance: float) -> None:
    schedule = noise_schedule()
    model, noisy, labels = Gaussian(schedule), torch.randn(4, 3, EDGE, EDGE), torch.tensor([0, 1, 1, 0])
    times = torch.full((4,), 300)
    told, untold = model(noisy, times, labels), model(noisy, times, torch.full_like(labels, model.none))
    model.calls.clear()
    found = guided(model, noisy, 300, labels, guidance)
    assert torch.allclose(found, untold + guidance * (told - untold), atol=1e-6)
    assert model.calls == [4 if guidance in (0.0, 1.0) else 8]


def test_guidance_moves_normal_pictures_as_far_as_it_says() -> None:
    """With one deviation for all, weights g of the class and 1 - g of none are a normal distribution between them."""
    found = pictures(noise_schedule(), torch.zeros(64, dtype=torch.long), steps=50, guidance=2.0)
    start = torch.cat([noise(0, number) for number in range(64)])
    assert (found - (2 * MEANS[0] - MEANS[2] + DEVIATION * start)).abs().max() < 5e-3


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_a_prediction_means_the_picture_that_it_was_made_from(prediction: str) -> None:
    schedule = noise_schedule(prediction=prediction)
    clean, drawn = torch.rand(2, 3, EDGE, EDGE) * 2 - 1, torch.randn(2, 3, EDGE, EDGE)
    for time in (0, 400, 900):
        times = torch.full((2,), time)
        noisy = schedule.add_noise(clean, drawn, times)
        told = schedule.get_velocity(clean, drawn, times) if prediction == "v" else drawn
        assert torch.allclose(clean_picture(schedule, told, noisy, time), clean, atol=1e-4)
        assert clean_picture(schedule, -50 * told, noisy, time).abs().max() <= 1.0


def test_schedules_are_the_published_ones() -> None:
    cosine, linear = noise_schedule().alphas_cumprod, noise_schedule(betas="linear").alphas_cumprod
    times = torch.arange(1, 991, dtype=torch.float64) / 1000
    phase = [torch.cos((at + 0.008) / 1.008 * torch.pi / 2) ** 2 for at in (times, torch.zeros(1))]
    assert torch.allclose(cosine[:990].double(), phase[0] / phase[1], rtol=1e-3)
    assert torch.allclose(linear.log(), torch.log1p(-torch.linspace(1e-4, 0.02, 1000)).cumsum(0), atol=1e-4)


def test_no_signal_is_left_at_the_last_time_where_none_is_asked_for() -> None:
    schedule = noise_schedule(betas="linear", zero_terminal_snr=True)
    assert float(schedule.alphas_cumprod[-1]) == 0.0 < float(noise_schedule(betas="linear").alphas_cumprod[-1])
    assert solver_of("dpm", schedule, 20).timesteps[0] == 999
    with pytest.raises(InvalidValueError, match="prediction='epsilon'"):
        noise_schedule(zero_terminal_snr=True, prediction="epsilon")


@pytest.mark.parametrize(
    "how, said",
    [
        ({"sampler": "euler"}, "sampler"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "1000"),
        ({"sampler": "ddim", "steps": 30}, "must divide"),
        ({"numbers": [1, 2, 3]}, "one for each of 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        pictures(noise_schedule(), torch.tensor([0, 1]), **how)


@pytest.mark.parametrize("count, size, ranks", [(7, 2, 2), (1, 5, 3), (12, 4, 1), (30, 7, 4)])
def test_ranks_share_out_every_number_once(count: int, size: int, ranks: int) -> None:
    shares = [[number for block in blocks(count, size, rank, ranks) for number in block] for rank in range(ranks)]
    assert sorted(number for share in shares for number in share) == list(range(count))
    assert [list(block) for block in blocks(count, size)] == [
        list(range(start, min(start + size, count))) for start in range(0, count, size)
    ]


@pytest.mark.parametrize("module", [sampling, distance])
def test_examples_run(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted >= 2 and not found.failed
