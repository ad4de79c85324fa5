"""The diffusion recipe: what it trains on, that it learns, that it resumes to the last bit, what it leaves behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
pytest.importorskip("timm")

from fractal_streams.recipes import checkpoint, diffusion
from fractal_streams.recipes.diffusion import (
    DenoisingLoss,
    DiffusionSettings,
    Result,
    Studio,
    distances,
    errors,
    run,
    sampled,
    trained,
)
from fractal_streams.recipes.journal import read_records
from fractal_streams.recipes.judge import opened_judge
from fractal_streams.recipes.loop import open_accelerator
from fractal_streams.recipes.models.denoisers import DENOISERS, dit, unet
from fractal_streams.recipes.sampling import noise_schedule
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fractal_streams import open_stream
from fractal_streams.errors import InvalidValueError
from fractal_streams.normalisation import channel_statistics

SMALL: dict[str, Any] = {
    "image_size": 8, "num_classes": 3, "denoiser": "dit", "size": "tiny", "num_steps": 40, "batch_size": 32,
    "warmup_steps": 3, "lr": 5e-3, "prediction": "epsilon", "ema": 0.9, "record_every": 5, "eval_once_every": 20,
    "checkpoint_every": 25, "test_samples": 64, "sampler_steps": 4, "columns": 2, "distance_samples": 0,
    "device": "cpu", "quiet": True,
}  # fmt: skip


def small(folder: Path, **others: Any) -> DiffusionSettings:
    return DiffusionSettings(**{**SMALL, "folder": folder, **others})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run with everything in it."""
    folder = tmp_path_factory.mktemp("diffusion")
    return folder, run(small(folder, distance_samples=60, vit_steps=10, sampler_batch_size=25))


def test_the_loss_falls(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    rows = read_records(folder)
    assert rows[0]["step"] == 5 and rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    tests = [row["test_loss"] for row in rows if "test_loss" in row]
    assert len(tests) == 2 and tests[1] < tests[0]
    assert result.test_loss == tests[1]  # held-out pictures, their noise and times stay the same
    assert result.steps == 40 and result.weights == sum(each.numel() for each in trained(folder)[0].parameters())


def test_a_run_leaves_its_records_its_pictures_and_its_result(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(asdict(result)))
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"step-{step:09d}.png" for step in (20, 40)]
    sheet, pair = (
        np.asarray(Image.open(folder / name)) for name in ("samples/step-000000040.png", "real_and_generated.png")
    )
    assert pair.shape == (sheet.shape[0], 2 * sheet.shape[1], 3)
    body = slice(50, None)  # below the titles
    assert np.array_equal(pair[body, sheet.shape[1] :], sheet[body])  # drawn from the same noise
    assert not np.array_equal(pair[body, : sheet.shape[1]], sheet[body])
    assert (folder / "vit" / "model.safetensors").is_file()


def test_distances_are_told_beside_that_of_two_real_halves(finished: tuple[Path, Result]) -> None:
    _, result = finished
    assert [each.guidance for each in result.drawn] == [1.0, 1.5]
    assert result.halves is not None and result.halves.samples == 60
    for each in result.drawn:
        assert each.distance.samples == 60 and each.distance.frechet > result.halves.frechet > 0.0
    assert result.drawn[0].distance != result.drawn[1].distance


def test_pictures_as_good_as_real_ones_are_as_near_as_those_are(finished: tuple[Path, Result]) -> None:
    """A model that draws the second half of the real pictures, given their classes, is told the halves' distance."""
    settings = small(finished[0], distance_samples=60)
    asked: list[Tensor] = []

    class Perfect(Studio):
        def draw(self, model: Any, labels: Tensor, *_: Any) -> Tensor:
            asked.append(labels)
            pictures: Tensor = self.real("test").generate(range(60, 120)).torch().images
            return pictures

    studio = Perfect(settings=settings, accelerator=open_accelerator(settings), size=8)
    halves, rows = distances(trained(finished[0])[0], studio, opened_judge(finished[0] / "vit", 8, "cpu"))
    assert halves == finished[1].halves == rows[0].distance == rows[1].distance
    assert asked[0].tolist() == studio.real("test").labels(range(60, 120)).tolist()


def test_a_run_that_is_stopped_and_resumed_is_one_that_is_not(finished: tuple[Path, Result], tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(settings: DiffusionSettings, step: int) -> bool:
        if step > 30:
            raise Stopped
        return settings.at(step, settings.eval_once_every)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionSettings, "evaluates", stop)
        with pytest.raises(Stopped):
            run(small(tmp_path))
    assert checkpoint.latest(tmp_path / "checkpoint") == tmp_path / "checkpoint" / "step-000000025"
    result = run(small(tmp_path))
    assert result.test_loss == finished[1].test_loss
    kept, asked = (checkpoint.load(checkpoint.latest(each / "checkpoint")) for each in (tmp_path, finished[0]))
    for name in ("network", "average"):
        assert all(torch.equal(kept[name][each], asked[name][each]) for each in asked[name])
    assert [(row["step"], row["loss"]) for row in read_records(tmp_path) if row["step"] % 5 == 0] == [
        (row["step"], row["loss"]) for row in read_records(finished[0])
    ]


def test_pictures_are_drawn_from_a_trained_run(finished: tuple[Path, Result], tmp_path: Path) -> None:
    how: dict[str, Any] = {"sample_only": finished[0], "folder": tmp_path, "device": "cpu", "quiet": True, "columns": 2}
    first = sampled(DiffusionSettings(**how, sampler="ddim", sampler_steps=4, guidance=(2.0,)))
    told = np.load(tmp_path / "samples.npz")
    assert np.array_equal(told["images"], first.numpy()) and told["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (tmp_path / "samples.png").is_file()
    again = sampled(DiffusionSettings(**how, sampler="ddim", sampler_steps=4, guidance=(2.0,), sampler_batch_size=1))
    assert (first.int() - again.int()).abs().max() <= 1
    for other in ({"sampler": "dpm"}, {"seed": 1}, {"guidance": (1.0,)}):
        asked = {"sampler": "ddim", "sampler_steps": 4, "guidance": (2.0,), **other}
        assert not torch.equal(first, sampled(DiffusionSettings(**how, **asked)))
    with pytest.raises(InvalidValueError, match="no trained diffusion model"):
        sampled(DiffusionSettings(**{**how, "sample_only": tmp_path}))


def test_the_average_of_weights_is_what_draws(finished: tuple[Path, Result]) -> None:
    model, settings = trained(finished[0])
    values = checkpoint.load(checkpoint.latest(finished[0] / "checkpoint"))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, values["average"][f"module.{name}"])
    assert settings.prediction == "epsilon" and settings.num_steps == 40 and not model.training


class Seen(nn.Module):
    """A denoiser that predicts 0 and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        self.asked.append((noisy, timesteps, labels))
        return torch.zeros_like(noisy)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_class_of_so_many_pictures_is_not_told(share: float) -> None:
    torch.manual_seed(0)
    model, labels = Seen(), torch.arange(20000) % 10
    DenoisingLoss(schedule=noise_schedule(), none=10, unlabelled=share)(model, (torch.zeros(20000, 3, 1, 1), labels))
    _, times, asked = model.asked[0]
    hidden = asked == 10
    assert float(hidden.float().mean()) == pytest.approx(share, abs=5 * (share * (1 - share) / 20000) ** 0.5)
    assert torch.equal(asked[~hidden], labels[~hidden])
    assert int(times.min()) == 0 and int(times.max()) == 999
    assert abs(float(times.float().mean()) - 499.5) < 5 * 1000 / (12 * 20000) ** 0.5


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_loss_is_the_mean_square_of_what_is_to_be_told(prediction: str) -> None:
    """Of a model that tells 0: noise, or sqrt(a) noise - sqrt(1 - a) picture, pictures in bfloat16 as on a GPU."""
    schedule, images = noise_schedule(prediction=prediction), torch.rand(6, 3, 4, 4).bfloat16()
    noise, times, model = torch.randn(6, 3, 4, 4), torch.tensor([0, 10, 300, 600, 990, 999]), Seen()
    found = errors(model, schedule, images, torch.zeros(6, dtype=torch.long), noise, times)
    left = schedule.alphas_cumprod[times].reshape(-1, 1, 1, 1)
    told = noise if prediction == "epsilon" else left.sqrt() * noise - (1 - left).sqrt() * images.float()
    assert torch.allclose(found, told.square().mean((1, 2, 3)), rtol=1e-4)
    assert torch.allclose(model.asked[0][0], left.sqrt() * images.float() + (1 - left).sqrt() * noise, atol=1e-5)


@pytest.mark.parametrize("kind", list(DENOISERS))
def test_denoisers_begin_at_0_and_know_time_and_class(kind: str) -> None:
    torch.manual_seed(0)
    model = DENOISERS[kind](size="tiny", num_classes=3, image_size=8)
    noisy, times, labels = torch.randn(4, 3, 8, 8), torch.tensor([5, 5, 900, 5]), torch.tensor([0, 1, 0, model.none])
    assert float(model(noisy, times, labels).detach().abs().max()) == 0.0
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)
    same = noisy[:1].expand(4, -1, -1, -1)
    model.train()
    found = model(same, times, labels)
    assert torch.equal(found, model(same, times, labels))  # drops no label by itself
    apart = (found[:1] - found[1:]).flatten(1).abs().mean(1)
    assert float(apart.detach().min()) > 1e-3
    with pytest.raises(IndexError):
        model(same, times, labels + 1)


def test_the_unet_is_bfloat16_between_its_convolutions_too() -> None:
    """A GPU's autocast makes float32 of what GroupNorm gives, and of all up to the next convolution; not of these."""
    norms = [
        each for each in unet(size="tiny", num_classes=3, image_size=8).modules() if isinstance(each, nn.GroupNorm)
    ]
    assert len(norms) > 10
    for norm in norms:
        taken = torch.randn(2, norm.num_channels, 4, 4)
        assert torch.equal(norm(taken), nn.GroupNorm.forward(norm, taken))  # in float32 to the last bit
    if not torch.cuda.is_available() and torch.__version__ < "2.9":
        pytest.skip("torch 2.8 aborts when told of a GPU that is not there under autocast")
    try:
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        with FakeTensorMode(), torch.device("cuda"):  # whose types are told without a GPU
            taken = torch.empty(2, 8, 4, 4, dtype=torch.bfloat16)
            assert nn.GroupNorm(2, 8)(taken).dtype == torch.float32
            assert {type(norm)(2, 8)(taken).dtype for norm in norms} == {torch.bfloat16}
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_pictures_that_a_denoiser_can_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="multiple of 4"):
        unet(size="base", num_classes=3, image_size=30)
    with pytest.raises(InvalidValueError, match="multiple of 2"):
        dit(size="tiny", num_classes=3, image_size=9)
    with pytest.raises(InvalidValueError, match="must divide"):
        run(small(tmp_path, sampler="ddim", sampler_steps=3))
    with pytest.raises(InvalidValueError, match="prediction"):
        run(small(tmp_path, zero_terminal_snr=True))


def test_what_would_fail_behind_a_training_is_refused_before(finished: tuple[Path, Result], tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="distance_samples=19 must be 0, or at least 20"):
        run(small(tmp_path, distance_samples=19))
    with pytest.raises(InvalidValueError, match="pictures of 8 pixels, these have 16"):
        run(small(tmp_path, distance_samples=20, image_size=16, vit=finished[0] / "vit"))
    with pytest.raises(InvalidValueError, match="image_size=10 must be a multiple of 4"):
        run(small(tmp_path, distance_samples=20, image_size=10, denoiser="unet", size="small", vit_steps=1))
    assert not any(tmp_path.iterdir())  # no ViT was trained either
    with pytest.raises(InvalidValueError, match="of another recipe"):
        sampled(small(tmp_path, sample_only=finished[0] / "vit"))


@pytest.mark.slow
def test_pictures_are_compared_in_the_form_that_the_vit_was_trained_on(
    finished: tuple[Path, Result], tmp_path: Path
) -> None:
    """Also if it was trained on another preset."""
    shutil.copytree(finished[0] / "vit", tmp_path, dirs_exist_ok=True)
    told = json.loads((tmp_path / "result.json").read_text())
    for preset in ("fractal-10", "fractal-families"):
        told["settings"]["preset"] = preset
        (tmp_path / "result.json").write_text(json.dumps(told))
        knows, (mean, std) = opened_judge(tmp_path, 8, "cpu"), channel_statistics(preset)
        stream = open_stream(preset, device="cpu", height=8, width=8)
        shown = open_stream(preset, device="cpu", height=8, width=8, dtype="float32", mean=mean, std=std)
        asked = knows.network(shown.generate(range(4)).torch().images)
        assert torch.allclose(knows(stream.generate(range(4)).torch().images).float(), asked, atol=1e-5)


def test_sheets_have_a_row_for_each_class_of_few(tmp_path: Path) -> None:
    from fractal_streams.recipes.data import BLOCK, opened

    few = small(tmp_path, columns=3, val_seed=2)
    stream = opened(few, "validation", "cpu")
    assert stream.labels(diffusion.chosen(stream, few)).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert min(diffusion.chosen(stream, few)) >= 2 * BLOCK
    many = small(tmp_path, num_classes=11, columns=3)
    assert diffusion.chosen(opened(many, "validation", "cpu"), many) == list(range(30))


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    options = [
        part for name, value in SMALL.items() if not isinstance(value, bool)
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]  # fmt: skip
    command = [sys.executable, "-m", "fractal_streams.recipes.diffusion", *options, "--quiet", "--num-steps", "120"]
    killed = subprocess.Popen([*command, "--folder", str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 240
    while checkpoint.latest(tmp_path / "killed" / "checkpoint") is None and time.monotonic() < limit:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    for name in ("killed", "whole"):
        subprocess.run([*command, "--folder", str(tmp_path / name)], check=True, capture_output=True)
    kept, asked = (checkpoint.load(checkpoint.latest(tmp_path / each / "checkpoint")) for each in ("killed", "whole"))
    assert kept["loop"]["step"] == 120
    assert all(torch.equal(kept["average"][each], asked["average"][each]) for each in asked["average"])


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_unet_learns(prediction: str, tmp_path: Path) -> None:
    others = {"denoiser": "unet", "prediction": prediction, "num_steps": 50}
    run(small(tmp_path, **others))
    rows = read_records(tmp_path)
    assert rows[-1]["loss"] < {"v": 0.85, "epsilon": 0.6}[prediction] * rows[0]["loss"]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(DENOISERS))
def test_a_gpu_trains_compiled_in_bfloat16(kind: str, tmp_path: Path) -> None:
    others = {"denoiser": kind, "device": "cuda", "compile": True, "distance_samples": 60, "vit_steps": 10}
    result = run(small(tmp_path, **others))
    rows = read_records(tmp_path)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert result.halves is not None and all(each.distance.frechet > 0.0 for each in result.drawn)
