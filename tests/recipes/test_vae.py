"""The VAE recipe: its terms against closed forms, its networks, and a run that is stopped and resumed."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes import vae, vae_pictures
from fractal_streams.recipes.journal import Journal
from fractal_streams.recipes.loop import open_accelerator
from fractal_streams.recipes.models.autoencoders import Coded, autoencoder
from PIL import Image
from torch import distributions as laws

from fractal_streams.contact_sheet import CAPTION_HEIGHT, GAP, MARGIN, TITLE_HEIGHT
from fractal_streams.errors import InvalidValueError

SMALL: dict[str, Any] = {
    "device": "cpu", "image_size": 8, "halvings": 1, "width": 8, "latent_size": 8, "batch_size": 16, "num_steps": 60,
    "warmup_steps": 5, "kl_warmup_steps": 20, "record_every": 10, "eval_once_every": 30, "checkpoint_every": 20,
    "eval_samples": 64, "probe_samples": 200, "quiet": True,
}  # fmt: skip


def settings(**others: Any) -> vae.VAESettings:
    return vae.VAESettings(**{**SMALL, **others})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, curves: Any) -> tuple[vae.Result, Path]:
    """Two βs of the plain one, their curves drawn."""
    folder = tmp_path_factory.mktemp("vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fractal_streams.recipes.journal.draw_curves", curves)
        return vae.run(settings(betas=(0.05, 20.0), folder=folder)), folder


def test_the_divergence_is_that_of_normal_distributions() -> None:
    torch.manual_seed(0)
    mean, log_variance = 3.0 * torch.randn(5, 7), 2.0 * torch.randn(5, 7)
    expected = laws.kl_divergence(laws.Normal(mean, (0.5 * log_variance).exp()), laws.Normal(0.0, 1.0))
    torch.testing.assert_close(vae.kl_to_prior(mean, log_variance), expected, rtol=1e-5, atol=1e-5)
    assert vae.kl_to_prior(torch.zeros(1, 1), torch.zeros(1, 1)).item() == 0.0


def test_the_likelihood_is_that_of_a_normal_distribution() -> None:
    torch.manual_seed(0)
    images, reconstruction, log_scale = torch.rand(4, 3, 5, 6), torch.rand(4, 3, 5, 6), torch.tensor(-1.3)
    expected = laws.Normal(reconstruction, log_scale.exp()).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(vae.log_likelihood(images, reconstruction, log_scale), expected, rtol=1e-5, atol=1e-4)


def test_the_best_deviation_is_the_root_of_the_mean_squared_error() -> None:
    torch.manual_seed(0)
    images, reconstruction = torch.rand(4, 3, 5, 6), torch.rand(4, 3, 5, 6)
    log_scale = torch.tensor(0.5 * math.log(float((images - reconstruction).square().mean())), requires_grad=True)
    (slope,) = torch.autograd.grad(vae.log_likelihood(images, reconstruction, log_scale).sum(), log_scale)
    assert abs(float(slope)) < 1e-4 * images.numel()


class Exact(torch.nn.Module):
    """x = a z + s e with z, e normal: the encoder is the exact posterior, N(a x / (a² + s²), s² / (a² + s²))."""

    gain, deviation = 1.5, 0.7

    def forward(self, images: torch.Tensor) -> Coded:
        whole = self.gain**2 + self.deviation**2
        mean = images.flatten(1) * self.gain / whole
        log_variance = torch.full_like(mean, math.log(self.deviation**2 / whole))
        codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        log_scale = torch.tensor(math.log(self.deviation))
        return Coded((self.gain * codes).view_as(images), mean, log_variance, log_scale)


def test_the_elbo_of_an_exact_posterior_is_the_evidence() -> None:
    """log p(x) of N(0, a² + s²): with the true posterior the bound is tight, but for the noise of the draws."""
    torch.manual_seed(0)
    images = torch.randn(20_000, 3, 1, 2) * math.hypot(Exact.gain, Exact.deviation)
    terms = vae.negative_elbo(Exact(), (images, None), 1.0)
    evidence = laws.Normal(0.0, math.hypot(Exact.gain, Exact.deviation)).log_prob(images).flatten(1).sum(1)
    # of a value, the draw's part is (a sqrt(v) e + c)² / 2s², whose deviation is below that of e² + 2 |c| e with c < 4
    assert abs(float(terms["elbo"] - evidence.mean())) < 5 * 10 * math.sqrt(6 / 20_000)
    assert float(terms["elbo"]) == pytest.approx(float(terms["log_likelihood"] - terms["kl"]))
    heavier = vae.negative_elbo(Exact(), (images, None), 4.0)
    assert float(heavier["loss"]) == pytest.approx(float(4.0 * heavier["kl"] - heavier["log_likelihood"]), rel=1e-6)


def test_the_weight_of_the_divergence_rises_to_beta() -> None:
    rising = settings(betas=(2.0,), kl_warmup_steps=4)
    assert [rising.weight(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert settings(betas=(2.0,), kl_warmup_steps=0).weight(0) == 2.0


@pytest.mark.parametrize("kind", ["plain", "kl"])
def test_networks_keep_the_interface(kind: str) -> None:
    torch.manual_seed(0)
    network = autoencoder(kind, (3, 8, 8), latent_size=8, width=8, halvings=1 if kind == "plain" else 2)
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    terms = vae.negative_elbo(network, (images, None), 1.0)
    terms["loss"].backward()
    assert all(bool(weight.grad.abs().sum() > 0) for weight in network.parameters())  # one forward reaches them all
    mean, log_variance = network.encode(images)
    assert mean.shape == log_variance.shape == (3, network.latent_size) == (3, 8)
    alone = network.encode(images[1:2])[0]
    torch.testing.assert_close(alone, mean[1:2], rtol=1e-4, atol=1e-5)  # a code is of its own picture
    torch.manual_seed(1)
    drawn = network(images)
    torch.manual_seed(1)
    codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    torch.testing.assert_close(drawn.reconstruction, network.decode(codes))


def test_a_fixed_deviation_stays(tmp_path: Path) -> None:
    network = autoencoder("plain", (3, 8, 8), latent_size=4, width=8, halvings=1, scale=0.25)
    assert "log_scale" not in dict(network.named_parameters())
    assert math.isclose(float(network.log_scale.exp()), 0.25, rel_tol=1e-6)
    assert len(vae.optimizer_of(network, settings(scale=0.25), torch.device("cpu")).param_groups) == 1


@pytest.mark.parametrize(
    "kind, shape, size, message",
    [
        ("plain", (3, 12, 8), 4, "12 x 8 can't be halved 3 times"),
        ("kl", (3, 16, 16), 6, "latent_size=6 must be a multiple of the code's 2 x 2 places"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kind: str, shape: Any, size: int, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        autoencoder(kind, shape, latent_size=size, width=8, halvings=3)


def test_a_run_learns_and_tells(finished: tuple[vae.Result, Path]) -> None:
    result, folder = finished
    light, heavy = result.runs
    assert (light.beta, heavy.beta) == (0.05, 20.0) and light.steps == 60
    for each in result.runs:
        with (folder / f"beta-{each.beta:g}" / "records.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50, 60]
        assert float(rows[-1]["loss"]) < 0.75 * float(rows[0]["loss"])
        for row in rows:
            assert float(row["elbo"]) == pytest.approx(float(row["log_likelihood"]) - float(row["kl"]), abs=1e-3)
        assert each.elbo == pytest.approx(each.log_likelihood - each.kl)
        assert each.kl == pytest.approx(sum(each.kl_of_latents))
        assert each.rate == pytest.approx(each.kl / math.log(2) / 64)
        assert len(each.trail) == 2 and each.trail[-1][0] > 0
        assert each.probes.keys() == {"VAE", "PCA", "untrained encoder", "all pixels"}
        assert each.probes["VAE"].features == each.probes["PCA"].features == 8
    assert light.kl > 3.0 * heavy.kl  # a heavier weight leaves less information in the code
    assert light.psnr_of_means > light.psnr - 0.05 and light.psnr_of_pca == heavy.psnr_of_pca
    assert light.probes["PCA"] == heavy.probes["PCA"]
    written = json.loads((folder / "result.json").read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(result)))
    names = ("curves", "reconstructions", "samples", "traversals", "probes")
    pictures = [folder / f"beta-{each.beta:g}/{name}.png" for each in result.runs for name in names]
    for picture in [folder / "rate_distortion.png", *pictures]:
        with Image.open(picture) as opened:
            assert len(np.unique(np.asarray(opened))) > 20  # something is drawn


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_weights(
    finished: tuple[vae.Result, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left at step 30, resumed from the checkpoint of step 20: equal bit for bit."""
    _, folder = finished
    write = Journal.write

    def stopping(journal: Journal, record: Any, figures: Any = None) -> None:
        write(journal, record, figures)
        if record.step == 30:
            raise Stopped

    own = settings(betas=(20.0,), folder=tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Journal, "write", stopping)
        vae.trained(own, open_accelerator(own))
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-000000020"]
    vae.trained(own, open_accelerator(own))
    name = "checkpoint/step-000000060/network.safetensors"
    assert (tmp_path / name).read_bytes() == (folder / "beta-20" / name).read_bytes()


def test_a_finished_run_is_only_looked_at_again(finished: tuple[vae.Result, Path], tmp_path: Path) -> None:
    result, folder = finished
    shutil.copytree(folder / "beta-20", tmp_path / "beta-20")
    again = vae.run(settings(betas=(20.0,), probe_samples=0, folder=tmp_path)).runs[0]
    assert (tmp_path / "beta-20/records.csv").read_bytes() == (folder / "beta-20/records.csv").read_bytes()
    assert again.probes == {} and again.psnr_of_means is None
    others = {name: getattr(result.runs[1], name) for name in ("probes", "psnr_of_means", "psnr_of_pca")}
    assert dataclasses.replace(again, **others) == result.runs[1]


def test_other_settings_do_not_resume(finished: tuple[vae.Result, Path]) -> None:
    with pytest.raises(InvalidValueError, match="kl_warmup_steps=20, not 10"):
        vae.run(settings(betas=(20.0,), kl_warmup_steps=10, folder=finished[1]))


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"preset": "fractal-video"}, "clips.* stills"),
        ({"probe_samples": 8}, "probe_samples=8 must be more than latent_size=8"),
        ({"probe_samples": 63}, "probe_samples=63 must be more than latent_size=8 and at least 64"),
        ({"probe_samples": 400, "latent_size": 193}, "latent_size=193 is more than the 192 values"),
        ({"betas": (1.0, -1.0)}, "betas must be a finite number in \\[0, inf\\], got -1.0"),
    ],
)
def test_what_can_not_be_run_is_refused_before_it_trains(asked: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=message):
        vae.run(settings(folder=tmp_path, **asked))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.slow
def test_larger_pictures_have_no_linear_codes_beside_them(tmp_path: Path) -> None:
    """Above 32 pixels the principal components are of smaller pictures: they make none again, and have no PSNR."""
    own = settings(image_size=40, num_steps=1, eval_samples=4, probe_samples=64, batch_size=2, width=4, folder=tmp_path)
    (found,) = vae.run(own).runs
    assert found.psnr_of_pca is None and found.psnr_of_means is not None
    assert found.probes["PCA"].features == 8 and found.probes["all pixels"].features == 3 * 32 * 32


def test_originals_lie_above_reconstructions(tmp_path: Path) -> None:
    """Each tile of a second row is the mirror image of that above."""
    images = torch.rand(20, 3, 96, 96) * 2 - 1
    vae_pictures.save_rows(tmp_path / "grid.png", {"original": images, "mirror": images.flip(-1)}, "mirrored")
    sheet, tall = np.asarray(Image.open(tmp_path / "grid.png")), 96 + CAPTION_HEIGHT
    shown = vae_pictures.levels(images)
    for place in range(20):
        x, y = MARGIN + place % 10 * (96 + GAP), MARGIN + TITLE_HEIGHT + 2 * (place // 10) * tall
        original = shown[place].transpose(1, 2, 0)
        np.testing.assert_array_equal(sheet[y : y + 96, x : x + 96], original)
        np.testing.assert_array_equal(sheet[y + tall : y + tall + 96, x : x + 96], original[:, ::-1])


def test_principal_components_bring_pictures_back() -> None:
    """What 192 - 12 components leave out of 8 x 8 pictures is their variance; all 192 leave nothing."""
    own = settings(latent_size=180, probe_samples=400)
    others = vae.held(dataclasses.replace(own, width=8), "cpu")
    left = (others.from_components(others.known.images) - others.known.images).double().square().flatten(1).sum(1)
    assert others.whole
    error = float(left.mean()) / 192
    assert vae.psnr_of(others.known.images, others.from_components) == pytest.approx(vae_pictures.psnr(error))
    assert math.isclose(float(left.mean()), others.pca.rest, rel_tol=1e-3)
    assert others.told.keys() == {"PCA", "untrained encoder", "all pixels"}


def test_a_traversal_changes_one_latent_at_a_time(tmp_path: Path) -> None:
    asked: list[torch.Tensor] = []

    class Seen:
        latent_shape = (12,)

        def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.full((len(images), 12), 0.1), torch.zeros(len(images), 12)

        def decode(self, codes: torch.Tensor) -> torch.Tensor:
            asked.append(codes)
            return torch.zeros(len(codes), 3, 8, 8)

    information = torch.arange(12.0).roll(5)
    vae_pictures.save_traversals(tmp_path / "rows.png", Seen(), torch.zeros(3, 8, 8), information, "rows")  # type: ignore[arg-type]
    for row, codes in enumerate(asked[0].split(len(vae_pictures.STEPS))):
        latent = (4 - row) % 12  # latent 4 has the most information, 11 nats; those before it less and less
        assert torch.equal(codes[:, latent], vae_pictures.STEPS)
        others = torch.cat([codes[:, :latent], codes[:, latent + 1 :]], dim=1)
        assert bool((others == 0.1).all())


@pytest.mark.parametrize("rate", [0.0, 0.3, 2.0, 9.0])
@pytest.mark.parametrize("kept", [2, 5])
def test_the_best_linear_code_fills_water(rate: float, kept: int) -> None:
    """Against a search for the water level: rate(w) = sum of log(variance / w) / 2 over those above it."""
    variances = np.array([9.0, 4.0, 1.0, 0.5, 0.25])
    low, high = 1e-12, variances[0]
    for _ in range(200):
        water = math.sqrt(low * high)
        needed = sum(0.5 * math.log(each / water) for each in variances[:kept] if each > water)
        low, high = (water, high) if needed > rate else (low, water)
    expected = (sum(min(each, water) for each in variances[:kept]) + variances[kept:].sum()) / 5
    assert vae_pictures.linear_code(variances, kept, rate, 5) == pytest.approx(expected, rel=1e-9)


def test_levels_and_their_noise() -> None:
    images = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert vae_pictures.levels(images)[0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    assert vae_pictures.psnr(4.0) == 0.0 and math.isclose(vae_pictures.psnr(4.0 / 1000), 30.0)


def test_both_kinds_of_spatial_codes_run(tmp_path: Path) -> None:
    """diffusers' network for a few steps: its loss falls, and its code has places."""
    own = settings(
        architecture="kl", num_steps=24, batch_size=8, record_every=8, checkpoint_every=24, probe_samples=64,
        eval_samples=16, eval_once_every=24, folder=tmp_path, latent_size=16,
    )  # fmt: skip
    loop, _ = vae.trained(own, open_accelerator(own))
    assert loop.network.latent_shape == (1, 4, 4)
    with (tmp_path / "records.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.9 * losses[0]


COMMAND = [word for name, value in SMALL.items() if name != "quiet" for word in
           (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(finished: tuple[vae.Result, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fractal_streams.recipes.vae", *COMMAND, "--quiet", "--betas", "20"]
    first = subprocess.Popen([*command, "--folder", str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list((tmp_path / "beta-20").glob("checkpoint/step-*/values.json")):
        assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    subprocess.run([*command, "--folder", str(tmp_path)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    name = "beta-20/checkpoint/step-000000060/network.safetensors"
    assert (tmp_path / name).read_bytes() == (finished[1] / name).read_bytes()


@pytest.mark.slow
def test_two_ranks_train_as_one(finished: tuple[vae.Result, Path], tmp_path: Path) -> None:
    """The same global batches: the likelihood of the first record differs only by what each rank draws for itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    own = ["-m", "fractal_streams.recipes.vae", *COMMAND, "--quiet", "--betas", "20", "--folder", str(tmp_path)]
    subprocess.run([*command, *own], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    told = json.loads((tmp_path / "result.json").read_text())["runs"][0]
    one = finished[0].runs[1]
    assert told["elbo"] == pytest.approx(one.elbo, rel=0.05)
    assert told["steps"] == one.steps
