"""What a trained ALAE is used for: codes, pictures, ways between codes, projections; laws, files and commands."""

from __future__ import annotations

import doctest
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("typer")
pytest.importorskip("safetensors")
image = pytest.importorskip("PIL.Image")

from fractal_streams.recipes.alae import code_file, given, parts, using
from fractal_streams.recipes.alae.code_file import Coded, coded, load_codes, save_codes
from fractal_streams.recipes.alae.keeping import load_model, save_model
from fractal_streams.recipes.alae.model import ALAE, Size
from fractal_streams.recipes.alae.sources import opened_source
from fractal_streams.recipes.alae.train import ALAESettings
from fractal_streams.recipes.alae.using import decode, draws, encode, interpolate, nearer, project
from fractal_streams.recipes.data import held_out
from torch import Tensor

from fractal_streams.errors import InvalidValueError, PictureError
from fractal_streams.stored.reduction import reduced

EDGE, CODE, STYLES = 16, 16, 6
SIZE = Size(image_size=EDGE, narrow=8, wide=16, code_size=CODE, projector=2)


def noisy(model: ALAE) -> ALAE:
    """With noise in every block and a mean code away from 0, as after training."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("strength"):
                weight.fill_(0.3)
        model.mean_code.copy_(torch.linspace(-0.5, 0.5, CODE))
    return model


def made(prior_size: int = CODE) -> ALAE:
    torch.manual_seed(5)
    return noisy(ALAE(SIZE, (3, EDGE, EDGE), prior_size=prior_size))


def settings(**changes: Any) -> ALAESettings:
    return ALAESettings(**{"size": "tiny", "preset": "kali_julia", "image_size": EDGE, "data_seed": 3, **changes})


def kept(folder: Path, model: ALAE, told: ALAESettings | None) -> Path:
    """The folder of a run."""
    save_model(folder, model, SIZE)
    if told is not None:
        (folder / "result.json").write_text(json.dumps({"steps": 0, "settings": told.decisive()}))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; three pictures of 40 x 56, 36 x 24 and 16 x 16 in a folder, and a zip of the same."""
    root = tmp_path_factory.mktemp("using")
    kept(root / "run", made(), settings())
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for number, shape in enumerate(((40, 56), (36, 24), (16, 16))):
            path = root / "photos" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            image.fromarray(levels_of_noise(number, *shape)).save(path)
            archive.write(path, path.name)
    return root


def levels_of_noise(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def model(place: Path) -> ALAE:
    return load_model(place / "run")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return opened_source(settings(), "test", "cpu").generate(range(6)).torch().images


@torch.no_grad()
def test_codes_and_pictures_are_the_models_own(model: ALAE, images: Tensor) -> None:
    model.train()
    codes = encode(model, images)
    assert torch.equal(codes, model.encode(images)) and not codes.requires_grad
    again = decode(model, codes)
    assert torch.equal(again, model.decode(codes, noise=False)) and not torch.equal(again, model.decode(codes))
    assert torch.equal(decode(model, model.styles(codes)), again)
    assert torch.allclose(encode(model, images, batch_size=4), codes, atol=1e-5)
    assert torch.allclose(decode(model, codes, batch_size=1), again, atol=1e-5)
    assert model.training  # as it was
    model.eval()


@torch.no_grad()
def test_a_model_that_has_not_grown_up_reads_reduced_pictures(images: Tensor) -> None:
    torch.manual_seed(0)
    small = ALAE(SIZE, (3, EDGE, EDGE), first_level=1)
    small.grow(1)
    halves = torch.nn.functional.avg_pool2d(images, 2)
    assert torch.equal(encode(small, images), small.encode(halves))
    assert torch.equal(encode(small, halves), small.encode(halves))
    assert decode(small, encode(small, images)).shape == (6, 3, EDGE // 2, EDGE // 2)
    found = project(small, images, steps=2)
    assert (found.psnr >= found.first_psnr).all()


def test_psi_goes_from_the_mean_code_to_the_code(model: ALAE) -> None:
    codes = torch.randn(3, CODE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(nearer(model, codes, 1.0), codes)
    assert torch.equal(nearer(model, codes, 0.0), model.mean_code.expand(3, -1))
    assert torch.allclose(nearer(model, codes, 0.3), 0.7 * model.mean_code + 0.3 * codes, atol=1e-6)
    for given_codes in (codes, model.styles(codes)):
        assert torch.equal(nearer(model, given_codes, 0.3, 2), model.truncated(codes, 0.3, 2))
    assert torch.equal(decode(model, codes, psi=0.0)[0], decode(model, codes, psi=0.0)[2])
    for psi, cutoff in ((-0.1, None), (1.1, None), (math.nan, None), (0.5, 0), (0.5, STYLES + 1)):
        with pytest.raises(InvalidValueError, match=r"psi must lie|cutoff must lie in \[1, 6\]"):
            nearer(model, codes, psi, cutoff)


def test_a_way_between_codes_has_them_at_its_ends(model: ALAE) -> None:
    first, second = torch.randn(2, 3, CODE, generator=torch.Generator().manual_seed(2))
    line = interpolate(model, first, second, 5)
    assert line.shape == (3, 5, 3, EDGE, EDGE)
    assert torch.allclose(line[:, 0], decode(model, first), atol=1e-5)
    assert torch.allclose(line[:, -1], decode(model, second), atol=1e-5)
    assert torch.allclose(line[:, 1], decode(model, 0.75 * first + 0.25 * second), atol=1e-4)
    assert torch.allclose(interpolate(model, model.styles(first), model.styles(second), 5), line, atol=1e-5)
    with pytest.raises(InvalidValueError, match="one shape"):
        interpolate(model, first, second[:2])
    with pytest.raises(InvalidValueError, match="steps must"):
        interpolate(model, first, second, 1)


def test_draws_follow_their_seed_and_leave_the_random_state(model: ALAE) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    codes = draws(model, 5, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(codes, draws(model, 5, seed=1)) and codes.shape == (5, CODE)
    assert not torch.equal(codes, draws(model, 5, seed=2)) and not torch.equal(codes[0], codes[1])
    assert torch.equal(draws(model, 5, seed=1, psi=0.5), nearer(model, codes, 0.5))
    assert draws(model, 1).shape == (1, CODE) and draws(model, 7, batch_size=3).shape == (7, CODE)


def test_draws_of_other_priors_are_of_held_out_samples(tmp_path: Path) -> None:
    told = settings(prior="codes")
    opened = given.opened_run(kept(tmp_path / "codes", made(), told), "cpu")
    prior, stream = given.run_prior(opened)
    assert prior is not None and stream is not None and stream.split == "test"
    found = draws(opened.model, 4, prior=prior, stream=stream, seed=2)
    (batch,) = held_out(stream, 4, 4)
    every = opened.model.project(encode(opened.model, batch.images)).detach()
    rows = torch.cdist(found, every).argmin(1)
    assert torch.allclose(found, every[rows], atol=1e-5) and sorted(rows.tolist()) == [0, 1, 2, 3]
    with pytest.raises(InvalidValueError, match="draws from samples of a stream"):
        draws(opened.model, 4, prior=prior)
    told = settings(prior="parameters")
    wide = given.run_prior(given.opened_run(kept(tmp_path / "narrow", made(), told), "cpu"))[0]
    assert wide is not None and wide.size != CODE
    opened = given.opened_run(kept(tmp_path / "wide", made(wide.size), told), "cpu")
    prior, stream = given.run_prior(opened)
    assert draws(opened.model, 3, prior=prior, stream=stream).shape == (3, CODE)
    with pytest.raises(InvalidValueError, match=f"takes z of {wide.size}"):
        draws(opened.model, 3, prior=prior and using.Gaussian(CODE))


@pytest.mark.parametrize("styles, features, gain", [("w", 0.0, 3.0), ("w", 0.1, 1.0), ("w+", 0.0, 4.0)])
def test_a_projection_comes_nearer_to_a_planted_code(model: ALAE, styles: str, features: float, gain: float) -> None:
    planted = decode(model, draws(model, 4, seed=3)).clamp(-1.0, 1.0)
    wanted = [weight.requires_grad for weight in model.parameters()]
    found = project(model, planted, steps=40, lr=0.1, styles=styles, features=features)
    assert float((found.psnr - found.first_psnr).mean()) > gain
    assert found.codes.shape == ((4, CODE) if styles == "w" else (4, STYLES, CODE))
    assert torch.equal(found.first_codes, encode(model, planted))
    for codes, told in ((found.first_codes, found.first_psnr), (found.codes, found.psnr)):
        error = (decode(model, codes).clamp(-1, 1) - planted).double().square().mean((1, 2, 3))
        assert torch.allclose(10 * torch.log10(4 / error), told, atol=0.01)
    assert [weight.requires_grad for weight in model.parameters()] == wanted
    assert all(weight.grad is None for weight in model.parameters())


def test_a_projection_never_ends_worse_and_each_picture_is_alone(model: ALAE, images: Tensor) -> None:
    wild = project(model, images[:3], steps=4, lr=300.0)
    assert (wild.psnr >= wild.first_psnr).all()
    still = project(model, images[:3], steps=2, lr=0.0)
    assert torch.equal(still.codes, still.first_codes) and torch.equal(still.psnr, still.first_psnr)
    alone, together = project(model, images[1:2], steps=6), project(model, images[:3], steps=6, batch_size=2)
    assert torch.allclose(alone.codes[0], together.codes[1], atol=1e-3)
    assert torch.equal(project(model, images[1:2], steps=6).codes, alone.codes)


def test_the_mlp_variant_has_one_style_and_no_maps() -> None:
    torch.manual_seed(0)
    flat = ALAE(SIZE, (3, 8, 8), flat=True)
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    found = project(flat, pictures, steps=5, styles="w+")
    assert found.codes.shape == (2, 1, CODE) and (found.psnr >= found.first_psnr).all()
    assert decode(flat, found.codes).shape == pictures.shape
    points = ALAE(SIZE, (2,), flat=True)
    assert project(points, torch.rand(4, 2), steps=2).codes.shape == (4, CODE)


def test_what_does_not_fit_is_refused(model: ALAE, images: Tensor) -> None:
    for wrong in (images[..., :8], images[:0], images[0]):
        with pytest.raises(InvalidValueError, match=r"images must be \(N, 3, 16, 16\)"):
            encode(model, wrong)
    for wrong in (torch.zeros(2, CODE + 1), torch.zeros(2, 4, CODE), torch.zeros(0, CODE)):
        with pytest.raises(InvalidValueError, match=r"codes must be \(N, 16\), or \(N, 6, 16\)"):
            decode(model, wrong)
    for change in ({"styles": "z"}, {"steps": 0}, {"lr": -1.0}, {"lr": math.inf}, {"features": math.nan}):
        with pytest.raises(InvalidValueError, match=next(iter(change))):
            project(model, images, **change)
    broken = made()
    with torch.no_grad():
        broken.generator.begin.fill_(torch.nan)
    with pytest.raises(InvalidValueError, match="NaN"):
        project(broken, images[:1], steps=1)


def test_codes_of_a_stream_stand_beside_its_labels_and_parameters(model: ALAE, tmp_path: Path) -> None:
    stream = opened_source(settings(preset="fractal-10"), "test", "cpu")
    found = coded(model, stream, [4, 0, 9], batch_size=2)
    batch = stream.generate([4, 0, 9]).torch()
    with torch.no_grad():
        expected = torch.cat([model.encode(batch.images[:2]), model.encode(batch.images[2:])])
    assert torch.equal(found.tensor(), expected)
    assert found.index.tolist() == [4, 0, 9] and (found.labels == batch.labels.numpy()).all() and found.frames is None
    assert found.names[0] == f"class {found.labels[0]} · #4"
    assert set(found.latents) == {*batch.latents}
    save_codes(tmp_path / "codes.npz", found)
    same = load_codes(tmp_path / "codes.npz")
    for name, values in found.arrays().items():
        assert np.array_equal(same.arrays()[name], values, equal_nan=values.dtype.kind == "f"), name
    written = (tmp_path / "codes.npz").read_bytes()
    save_codes(tmp_path / "codes.npz", same)
    assert (tmp_path / "codes.npz").read_bytes() == written and [*tmp_path.iterdir()] == [tmp_path / "codes.npz"]


def test_frames_of_clips_are_rows(model: ALAE) -> None:
    stream = opened_source(settings(clip_length=3), "test", "cpu")
    found = coded(model, stream, range(2))
    clips = stream.generate(range(2)).torch()
    assert found.frames == 3 and found.index.tolist() == [0, 0, 0, 1, 1, 1] and len(found) == 6
    assert torch.equal(found.tensor(), encode(model, clips.images.flatten(0, 1)))
    moving = next(name for name, values in clips.latents.items() if values.shape == (2, 3))
    assert np.array_equal(found.latents[moving], clips.latents[moving].flatten().numpy(), equal_nan=True)
    assert found.names[4].endswith("#1, frame 1")


def test_a_file_of_codes_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    with pytest.raises(InvalidValueError, match="no codes at"):
        load_codes(path)
    for content in (b"", b"words", b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        with pytest.raises(InvalidValueError, match=r"no \.npz of codes that can be read"):
            load_codes(path)
    np.savez(path, images=np.zeros(3), z=np.zeros(3))
    with pytest.raises(InvalidValueError, match="holds no codes, only z"):
        load_codes(path)
    np.savez(path, codes=np.zeros((4, 2)), frames=3)
    with pytest.raises(InvalidValueError, match="frames=3 must divide"):
        load_codes(path)
    np.savez(path, codes=np.zeros((4, 2)), labels=np.zeros(3))
    with pytest.raises(InvalidValueError, match="labels must be one for each of 4"):
        load_codes(path)
    np.savez(path, codes=np.ones((4, 2), np.float64))
    assert load_codes(path).codes.dtype == np.float32 and load_codes(path).names[3] == "#3"
    with pytest.raises(InvalidValueError, match=r"written as \.npz"):
        save_codes(tmp_path / "codes.npy", load_codes(path))
    with pytest.raises(InvalidValueError, match=r"got \(4,\)"):
        Coded(codes=np.ones(4, np.float32), index=np.arange(4), names=("",) * 4)


def squared(levels: np.ndarray) -> Tensor:
    """A picture as the model reads it: reduced until its shorter side is 16 pixels, and the middle square of that."""
    tall, wide = levels.shape[:2]
    scale = EDGE / min(tall, wide)
    small = reduced(levels, round(tall * scale), round(wide * scale))
    top, left = (small.shape[0] - EDGE) // 2, (small.shape[1] - EDGE) // 2
    cut = small[top : top + EDGE, left : left + EDGE]
    return torch.from_numpy(cut.astype(np.float64).transpose(2, 0, 1) * 2 / 255 - 1)


def test_a_run_on_ones_own_pictures_gives_its_held_out_ones(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(20):
        image.fromarray(levels_of_noise(number, EDGE, EDGE)).save(tmp_path / "photos" / f"{number}.png")
    told = settings(data=str(tmp_path / "photos"), held_out_share=0.3, flip="none")
    opened = given.opened_run(kept(tmp_path / "run", made(), told), "cpu")
    assert opened.settings is not None and opened.settings.decisive() == told.decisive()
    stream = given.run_stream(opened, cache=tmp_path / "cache")
    found = coded(opened.model, stream, range(3))
    numbers = [int(Path(name).stem) for name in found.names]
    expected = torch.stack([squared(levels_of_noise(number, EDGE, EDGE)) for number in numbers]).float()
    assert np.allclose(found.codes, encode(opened.model, expected).numpy(), atol=1e-4)
    training = given.run_stream(opened, split="train", cache=tmp_path / "cache")
    assert not {*numbers} & {int(Path(name).stem) for name in coded(opened.model, training, range(20)).names}


@pytest.mark.parametrize(
    "module", [using, code_file, given, parts], ids=lambda module: module.__name__.rpartition(".")[2]
)
def test_the_examples_run(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted >= 3 and found.failed == 0


def test_pictures_of_files_folders_and_zips_are_one_and_the_same(place: Path, tmp_path: Path) -> None:
    files = [place / "photos" / f"{number}.png" for number in range(3)]
    streams = [
        given.stored_pictures(places, EDGE, cache=tmp_path, quiet=True)
        for places in (files, [place / "photos"], [place / "photos.zip"])
    ]
    expected = torch.stack([squared(levels_of_noise(n, *s)) for n, s in enumerate(((40, 56), (36, 24), (16, 16)))])
    for stream in streams:
        batch = stream.generate(range(3)).torch()
        assert stream.count == 3 and torch.allclose(batch.images.double(), expected, atol=1e-6)
        assert code_file.named(stream, batch) == ["0.png", "1.png", "2.png"]
    with pytest.raises(PictureError, match=r"0\.png: its 40 x 56 pixels don't cover 64 x 64"):
        given.stored_pictures(files[:1], 64)
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"no\.png"):
        given.stored_pictures([tmp_path / "no.png"], EDGE)
    with pytest.raises(InvalidValueError, match="give picture files"):
        given.stored_pictures([place / "photos", files[0]], EDGE)
    with pytest.raises(InvalidValueError, match="skip=2 is of videos"):
        given.stored_pictures(files, EDGE, skip=2)


@pytest.mark.gpu
def test_results_lie_where_what_is_given_lies(place: Path, images: Tensor) -> None:
    there, here = (given.opened_run(place / "run", device).model for device in ("cuda", "cpu"))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        codes = encode(there, images)
        assert codes.device.type == "cpu" and torch.allclose(codes, encode(here, images), atol=1e-3)
        assert encode(there, images.cuda()).is_cuda
        assert torch.allclose(decode(there, codes, psi=0.5), decode(here, codes, psi=0.5), atol=1e-2)
        drawn = draws(there, 4, seed=2)
        assert drawn.is_cuda and torch.allclose(drawn.cpu(), draws(here, 4, seed=2), atol=1e-4)
        assert interpolate(there, drawn, drawn.flip(0), 3).is_cuda
        found = project(there, images, steps=10, lr=0.1, batch_size=4)
    assert found.codes.device.type == "cpu" and (found.psnr > found.first_psnr).all()
    stream = given.run_stream(given.opened_run(place / "run", "cuda"))
    assert stream.generate(range(1)).images.is_cuda
    assert coded(there, stream, range(5), batch_size=3).names == coded(here, stream, range(5)).names
