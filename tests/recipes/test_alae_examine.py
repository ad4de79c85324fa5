"""A model whose figures are known is examined: a linear one that finds each picture of its plane again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.examine import Examination, examined
from fractal_streams.recipes.alae.model import ALAE, Size
from fractal_streams.recipes.alae.yardsticks import YardstickSettings, halves, run, yardsticks
from torch import Tensor, nn

from fractal_streams import Batch, StoredStream, Stream, open_stream
from fractal_streams.errors import InvalidValueError

EDGE, CODES = 8, 4
FORM: dict[str, Any] = {"device": "cpu", "split": "test", "dtype": "float32", "mean": 0.5, "std": 0.5}
QUICK: dict[str, Any] = {"samples": 120, "patches": 4, "projections": 8}


def normal(*shape: int, name: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(name))


def axes() -> Tensor:
    """(CODES, 3 * EDGE * EDGE), orthonormal."""
    return torch.linalg.qr(normal(3 * EDGE * EDGE, CODES))[0].T


class Plane(Stream):
    """Pictures of a plane: latents times orthonormal axes; class 1 where the first latent is above 0."""

    seed, split, device, num_classes = 0, "test", "cpu", 2

    def __init__(self, frames: int | None = None) -> None:
        self.frames = frames

    def codes(self, index: Tensor) -> Tensor:
        """(B, CODES), or (B, T, CODES): a clip goes along a line at a speed of its own."""
        found = torch.stack([normal(CODES, name=int(i)) for i in index]) if len(index) else torch.zeros(0, CODES)
        if self.frames is None:
            return found
        steps = torch.arange(self.frames)[None, :, None] * 0.02 * (1 + index % 7)[:, None, None]
        return found[:, None] + steps * torch.ones(CODES)

    def generate(self, indices: Any) -> Batch:
        index = torch.tensor(list(indices), dtype=torch.int64)
        codes = self.codes(index)
        images = (0.5 * codes @ axes()).reshape(*codes.shape[:-1], 3, EDGE, EDGE)
        first = codes[..., 0] if self.frames is None else codes[:, 0, 0]
        return Batch(index, images.clamp(-1, 1), (first > 0).long(), {f"c{k}": codes[..., k] for k in range(CODES)})

    def digest(self) -> str:
        return f"plane-{self.frames}"


class Linear(nn.Module):
    """G is linear and E its inverse on the plane; F is the identity."""

    code_size = prior_size = CODES

    def __init__(self, gain: float = 1.0, noise: float = 0.0) -> None:
        super().__init__()
        self.axes = nn.Parameter(0.5 * axes())
        self.gain, self.noise, self.modes = gain, noise, set[bool]()

    def project(self, draws: Tensor) -> Tensor:
        return draws

    def decode(self, codes: Tensor, noise: bool = True) -> Tensor:
        self.modes.add(self.training)
        pictures = (codes @ self.axes).reshape(-1, 3, EDGE, EDGE)
        return pictures + self.noise * torch.randn_like(pictures) if noise else pictures

    def encode(self, pictures: Tensor) -> Tensor:
        return self.gain * 4 * pictures.flatten(1) @ self.axes.T


@pytest.fixture(scope="module")
def perfect() -> Examination:
    return examined(Linear(), Plane(), untrained=Linear(), **QUICK)


def test_a_model_that_finds_each_picture_again_has_the_figures_of_one(perfect: Examination) -> None:
    figures = perfect.figures
    assert perfect.samples == 120
    assert figures["psnr"] > 100 and figures["psnr_pca"] > 80  # a few values are clipped, if any
    assert figures["ratio"] < 1e-9 and figures["reciprocity"] < 1e-9
    assert figures["fake_deviation"] == pytest.approx(1.0, abs=0.15)
    assert figures["code_deviation"] == pytest.approx(1.0, abs=0.15) == figures["real_code_deviation"]
    for name in ("code_dimensions", "real_code_dimensions"):
        assert 0.85 * CODES < figures[name] <= CODES
    assert figures["frechet_random_reconstructions"] < 1e-6 * figures["frechet_random_floor"] + 1e-6
    assert figures["frechet_random"] < 3 * figures["frechet_random_floor"]
    assert figures["swd_reconstructions"] < 1e-3 * figures["swd_floor"] and figures["spectrum_reconstructions"] < 1e-3
    assert figures["class_linear_codes"] > 0.85 and figures["r_squared_codes"] > 0.99
    assert figures["class_linear_codes"] == figures["class_linear_untrained"]
    assert all(value > 0.99 for value in perfect.latents["codes"].values()) and len(perfect.latents["codes"]) == CODES
    assert all(math.isfinite(value) for value in figures.values())


def test_what_the_stream_has_nothing_for_is_left_out_with_the_reason(perfect: Examination) -> None:
    assert perfect.left_out["psnr_box"] == "it is infinite: there is no error"  # 8 boxes of 8 pixels
    assert perfect.left_out["ssim"] == "pictures are smaller than its window of 11 pixels"
    assert "no clips" in perfect.left_out["speed"]
    assert "no classifier" in perfect.left_out["frechet_own"] and "no classifier" in perfect.left_out["path_own"]
    assert not any(name.startswith(("ssim", "speed", "frechet_own", "path_own")) for name in perfect.figures)
    table = perfect.table().splitlines()
    assert len(table) == len(perfect.figures) + len(perfect.left_out)
    assert any(line.startswith("ssim ") and "left out: pictures are smaller" in line for line in table)


def test_a_shorter_code_has_its_closed_forms(perfect: Examination) -> None:
    """E gives back g w: reciprocity (1 - g)², squared error (1 - g)² |x|²; a constant one has 1 and 1."""
    half = examined(Linear(gain=0.5), Plane(), **QUICK).figures
    assert half["reciprocity"] == pytest.approx(0.25, rel=0.02)  # over a variance that is not quite |w|²
    images = Plane().generate(range(120, 240)).images
    error = 0.25 * float(images.square().mean())
    assert half["psnr"] == pytest.approx(10 * math.log10(4 / error), abs=1e-4)
    none = examined(Linear(gain=0.0), Plane(), **QUICK).figures
    assert none["ratio"] == 1.0 and none["reciprocity"] == pytest.approx(1.0, rel=0.05)
    assert none["class_linear_codes"] <= none["class_chance"] + 1e-9 and abs(none["r_squared_codes"]) < 0.05
    assert none["frechet_random_reconstructions"] > 20 * perfect.figures["frechet_random_reconstructions"] + 0.01


def test_own_features_are_used_where_they_are_given() -> None:
    """By the pixels themselves, a path of a linear decoder is |A (w' - w)|², 2 * CODES / 4 on average."""
    found = examined(Linear(), Plane(), own=lambda images: images.flatten(1)[:, :40], **QUICK)
    assert {"frechet_own", "frechet_own_floor", "kernel_own_error"} <= set(found.figures)
    whole = examined(Linear(), Plane(), own=lambda images: images.flatten(1), **QUICK).figures
    assert whole["path_own"] == pytest.approx(2 * CODES / 4, rel=0.4)
    assert 0 < found.figures["path_own"] < whole["path_own"]


def test_the_speed_of_codes_follows_the_clip_and_frames_count_singly() -> None:
    found = examined(Linear(), Plane(frames=5), untrained=Linear(gain=2.0), **QUICK)
    assert found.samples == 120
    assert found.figures["speed_codes"] == pytest.approx(1.0, abs=1e-3)
    assert found.figures["speed_untrained"] == pytest.approx(1.0, abs=1e-3)
    assert "speed" not in found.left_out


def test_an_examination_changes_no_draw_and_no_mode_and_is_the_same_again(perfect: Examination) -> None:
    model = Linear(noise=0.01).train()
    torch.manual_seed(0)
    asked = torch.randn(3)
    torch.manual_seed(0)
    first = examined(model, Plane(), **QUICK)
    assert torch.equal(torch.randn(3), asked)
    assert model.training and model.modes == {False}
    assert examined(model, Plane(), **QUICK).figures == first.figures
    assert first.figures["psnr"] == perfect.figures["psnr"]  # reconstructions have no noise
    assert first.figures["frechet_random"] != perfect.figures["frechet_random"]


def test_a_prior_draws_for_the_pictures_of_the_other_half_never_for_one_alone() -> None:
    """Of one there is no other to draw from: 121 pictures are drawn for as 41, 40 and 40."""
    asked: list[int] = []

    class True_:
        def draw(self, batch: Batch, model: Any) -> Tensor:
            asked.append(len(batch))
            return torch.stack([batch.latents[f"c{k}"] for k in range(CODES)], dim=1)

    figures = examined(Linear(), Plane(), prior=True_(), batch_size=60, **{**QUICK, "samples": 121}).figures
    assert asked == [41, 40, 40]
    assert figures["frechet_random"] == pytest.approx(figures["frechet_random_floor"], rel=1e-4)
    assert figures["swd"] == pytest.approx(figures["swd_floor"], rel=1e-3)


def test_stored_pictures_have_no_labels_or_parameters_to_tell_of() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (90, 12, 12, 3), dtype=np.uint8)
    stream = StoredStream(pictures, height=EDGE, flip="both", **{**FORM, "split": "train"})
    known, test = halves(stream, 1000, 1, "cpu")
    assert len(known.images) == len(test.images) == 45  # no picture comes twice
    assert not set(known.latents["item"].tolist()) & set(test.latents["item"].tolist())
    found = examined(Linear(), stream, **QUICK)
    assert found.samples == 45 and not found.latents
    assert not any(name.startswith(("class", "r_squared")) for name in found.figures)
    assert found.left_out["class_linear"] == "these pictures have one class"
    assert "no parameter" in found.left_out["r_squared"]


def test_a_model_that_has_not_grown_up_is_examined_at_its_size() -> None:
    class Wide(Plane):
        def generate(self, indices: Any) -> Batch:
            small = super().generate(indices)
            wide = small.images.repeat_interleave(2, -1).repeat_interleave(2, -2)
            return Batch(small.index, wide, small.labels, small.latents)

    assert examined(Linear(), Wide(), **QUICK).figures["psnr"] > 100


def test_what_cannot_be_examined_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="makes pictures of .*8.*, the stream has .*12"):
        small: dict[str, Any] = {**QUICK, "samples": 20}
        stream = open_stream("fractal-10", height=12, width=12, **FORM)
        broad = Linear()
        broad.encode = lambda pictures: pictures.flatten(1)[:, :CODES]  # type: ignore[method-assign]
        examined(broad, stream, **small)
    broken = Linear(gain=math.nan)
    with pytest.raises(InvalidValueError, match="NaN or infinity: its training diverged"):
        examined(broken, Plane(), **QUICK)
    with pytest.raises(InvalidValueError, match="19 pictures are too few"):
        yardsticks(Plane(), samples=19)
    with pytest.raises(InvalidValueError, match=r"in \[-1, 1\], these go from 0 to 25"):
        yardsticks(open_stream("fractal-10", device="cpu", split="test", height=8, width=8), samples=20)


def test_an_alae_is_examined_from_end_to_end() -> None:
    size = Size(image_size=16, narrow=8, wide=16, code_size=8, projector=2)
    torch.manual_seed(0)
    model, untrained = ALAE(size, (3, 16, 16)), ALAE(size, (3, 16, 16))
    stream = open_stream("fractal-10", height=16, width=16, **FORM)
    figures = examined(model, stream, untrained=untrained, **QUICK).figures
    held = yardsticks(stream, code_size=8, **QUICK).figures
    assert {name: figures[name] for name in held} == pytest.approx(held)  # the same beside any model
    assert 0.5 < figures["ratio"] <= 1.5 and figures["psnr"] < figures["psnr_mean_colour"] + 1
    assert all(math.isfinite(value) for value in figures.values()) and figures["path_random"] > 0


def test_the_command_tells_and_writes_what_a_model_is_held_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = YardstickSettings(
        preset="fractal-10", image_size=16, samples=60, code_size=8, patches=4, projections=8, device="cpu",
        output=tmp_path / "found.json",
    )  # fmt: skip
    found = run(settings)
    told = capsys.readouterr().out
    assert found.table() in told and "R² by pixels: " in told
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["figures"] == found.figures and written["samples"] == 60
    assert found.figures["psnr_box"] > found.figures["psnr_mean_colour"] > 5
