"""Where z come from: their statistics against what streams draw, never a picture's own, nothing read on the host."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("typer")

from fractal_streams.recipes.alae.priors import (
    Codes,
    Gaussian,
    Parameters,
    Prior,
    far_apart,
    make_prior,
    measured,
    others,
    ranked,
)
from fractal_streams.recipes.alae.sources import SourceSettings, opened_source
from fractal_streams.recipes.data import held_out
from fractal_streams.recipes.probe import PERIODS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fractal_streams import Batch, KaleidoscopeSpec, KaleidoscopeStream, Mixture, StoredStream, open_stream
from fractal_streams.errors import InvalidValueError, UnknownNameError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.presets import find_preset

MEASURED = 2048
TESTED = 1500


class Mirror:
    """An encoder whose code of a picture is its first pixel and what it was asked to encode."""

    flat = False

    def __init__(self, image_size: int = 8) -> None:
        self.weight, self.image_size = torch.ones((), requires_grad=True), image_size

    def encode(self, pictures: Tensor) -> Tensor:
        assert pictures.shape[1:] == (3, self.image_size, self.image_size)
        return pictures[:, :, 0, 0] * self.weight


def numbered(count: int, frames: int = 0, device: str = "cpu", **latents: Tensor) -> Batch:
    """A batch whose pictures say their own number and their clip's in their first two channels."""
    total = count * max(1, frames)
    number = torch.arange(total, dtype=torch.float32)
    images = torch.zeros(total, 3, 8, 8)
    images[:, 0], images[:, 1] = number[:, None, None], (number // max(1, frames))[:, None, None]
    shape = (count, frames, 3, 8, 8) if frames else (count, 3, 8, 8)
    parts = (torch.arange(count), images.reshape(shape), torch.arange(count) % 3)
    return Batch(*(part.to(device) for part in parts), {name: each.to(device) for name, each in latents.items()})


def held(preset: str, samples: int = TESTED, **settings: Any) -> tuple[Parameters, Batch]:
    """The prior of a preset, measured on the validation split, and one batch of the test split."""
    chosen = SourceSettings(preset=preset, image_size=8, **settings)
    prior = make_prior("parameters", opened_source(chosen, "validation", "cpu"), 4, samples=MEASURED)
    assert isinstance(prior, Parameters)
    return prior, next(held_out(opened_source(chosen, "test", "cpu"), samples, samples))


FEW = ("polynomial_power", "mandelbrot", "kali_julia", "newton", "phoenix")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parameters, Batch]:
    """Formulas with different parameters, in the colourings whose kernels the tests of parity compile."""
    path = tmp_path_factory.mktemp("spec") / "families.json"
    few = {"formulas": FEW, "num_classes": len(FEW), "colouring": None}
    spec = find_preset("fractal-families")
    priors = {name: each for name, each in spec.priors.items() if "." not in name or name.split(".")[0] in FEW}
    path.write_text(spec.replace(**few, priors=priors).to_json())
    return held(str(path))


def column(prior: Parameters, batch: Batch, name: str) -> Tensor:
    return prior.own(batch)[:, prior.columns.names.index(name)]


def test_numbers_are_standardised_on_samples_that_were_not_measured(families: Any) -> None:
    """Both samples err: the mean by sqrt(1 / N + 1 / n), the deviation by at most as much for tails this short."""
    prior, batch = families
    for name in prior.columns.numbers:
        has = ~batch.latents[name].isnan()
        values = column(prior, batch, name)[has].double()
        error = math.sqrt(1 / len(values) + TESTED / MEASURED / len(values))
        assert abs(float(values.mean())) < 5 * error and abs(float(values.std()) - 1) < 5 * error, name
        given = batch.latents[name][has].double()
        assert float(torch.corrcoef(torch.stack([values, given]))[0, 1]) > 1 - 1e-6  # affine, and rising
        assert (column(prior, batch, name)[~has] == 0).all()


def test_angles_stand_on_the_unit_circle_and_come_round(families: Any) -> None:
    prior, batch = families
    assert {"rotation", "alpha", "anchor_angle", "red_phase"} <= {*prior.columns.angles}
    for name in prior.columns.angles:
        has, angle = ~batch.latents[name].isnan(), batch.latents[name].double() * math.tau / PERIODS[name]
        sine, cosine = (column(prior, batch, f"{word} of {name}").double() for word in ("sine", "cosine"))
        assert ((sine**2 + cosine**2)[has] - 1).abs().max() < 1e-6 and (sine[~has] == 0).all()
        assert (torch.atan2(sine, cosine) - torch.atan2(angle.sin(), angle.cos()))[has].abs().max() < 1e-5
        turned = {**batch.latents, name: batch.latents[name] + PERIODS[name]}
        again = prior.own(Batch(batch.index, batch.images, batch.labels, turned))
        assert (again - prior.own(batch)).abs().max() < 1e-4


def test_what_a_formula_has_not_is_0_and_said_to_be_missing(families: Any) -> None:
    prior, batch = families
    partial = {name for name, values in batch.latents.items() if values.isnan().any()}
    masks = {batch.latents[name].isnan().numpy().tobytes() for name in partial}
    assert len(prior.columns.partial) == len(masks) > 5
    for name in prior.columns.partial:
        assert torch.equal(column(prior, batch, f"has {name}"), (~batch.latents[name].isnan()).float())
    assert prior.own(batch).isfinite().all()


def test_few_classes_have_a_column_each(families: Any) -> None:
    prior, batch = families
    shown = prior.own(batch)[:, -len(FEW) :]
    assert torch.equal(shown.sum(1), torch.ones(TESTED)) and torch.equal(shown.argmax(1), batch.labels)
    assert prior.columns.names[-len(FEW) :] == tuple(f"class {label}" for label in range(len(FEW)))


def test_a_class_stands_for_its_parameters_or_they_for_it() -> None:
    few, batch = held("fractal-10")
    assert few.columns.classes == 10 and not [name for name in few.columns.names if "poly" in name]
    many, _ = held("fractal-100")
    assert many.columns.classes == 0 and {"poly0", "poly1", "poly2", "poly3"} <= {*many.columns.numbers}
    constant = {"centre_x", "centre_y", "half_width", "rotation"}
    assert all((batch.latents[name] == batch.latents[name][0]).all() for name in constant)
    assert not [name for name in few.columns.names if any(word in name for word in constant)]


@pytest.mark.parametrize(
    "preset, settings",
    [
        ("fractal-1k", {}), ("fractal-10k", {}), ("fractal-mnist", {}), ("seed-readme", {}), ("seed-code", {}),
        ("kali", {}), ("kali_julia", {}), ("fractal-video", {}), ("seed-code", {"clip_length": 3}),
        ("trainability-points", {}),
        pytest.param("fractal-families", {"clip_length": 2}, marks=pytest.mark.slow),  # sixteen kernels to compile
    ],
)  # fmt: skip
def test_every_preset_has_one(preset: str, settings: dict[str, Any]) -> None:
    samples = 24 if preset.startswith("trainability") else 200
    source = SourceSettings(preset=preset, image_size=8, **settings)
    prior = make_prior("parameters", opened_source(source, "validation", "cpu"), 4, samples=samples)
    batch = opened_source(source, "train", "cpu").generate(range(7)).torch()
    draw = prior.draw(batch, Mirror())
    pictures = 7 * (batch.images.shape[1] if batch.images.dim() == 5 else 1)
    assert draw.shape == (pictures, prior.size) and draw.dtype == torch.float32 and draw.isfinite().all()
    assert draw.std(0).gt(0).sum() > 3 and draw.abs().max() < 30


def test_tiles_of_maps_leave_the_maps_out() -> None:
    """Latents of a stream of tiles: maps of pixels beside numbers, some of them decades apart."""
    rows, scale = torch.arange(300), torch.logspace(-4, 4, 300, dtype=torch.float64)
    latents = {
        "measure": torch.zeros(300, 8, 8),
        "depth": rows.int() % 11,
        "centre_x": scale,
        "pair": torch.rand(300, 2),
    }
    batch = Batch(rows, torch.zeros(300, 3, 8, 8), rows % 3, latents)

    class Tiles(StoredStream):
        def generate(self, indices: Any) -> Batch:
            return batch

    stream = Tiles(np.zeros((1, 8, 8, 3), np.uint8), height=8, device="cpu")
    prior = Parameters.of(stream, 300)
    assert prior.columns.numbers == ("depth", "pair[0]", "pair[1]") and prior.columns.ranks == ("centre_x",)
    ranks = column(prior, batch, "centre_x")
    assert (ranks.diff() > 0).all() and abs(float(ranks.std(correction=0)) - 1) < 1e-6
    # ranks of 300 values are uniform: their deviation is 1 / sqrt(12) of their range
    assert float(ranks.max() - ranks.min()) == pytest.approx(math.sqrt(12), rel=0.02)


def test_ranks_hold_what_floats_hold_and_numbers_stay_numbers() -> None:
    wide = torch.cat(
        [torch.logspace(-6, 6, 500, dtype=torch.float64), torch.full((5,), 1.797e308, dtype=torch.float64)]
    )
    assert far_apart(wide) and far_apart(-wide) and far_apart(torch.logspace(0, 3, 100, dtype=torch.float64))
    even = torch.linspace(-1, 1, 100, dtype=torch.float64)
    assert not any(map(far_apart, (even, even.abs() + 1, torch.erfinv(0.99 * even))))
    columns, shift, spread, knots = measured({"loss": wide}, torch.zeros(505, dtype=torch.int64), 1)
    assert columns.ranks == ("loss",) and shift.isfinite().all() and spread.isfinite().all()
    shares = ranked(torch.tensor([[-1.0, 1e-6, 1.0, 1.797e308, math.inf, math.nan]]).double(), knots)[0]
    assert shares[[0, 1]].tolist() == [0, 0] and shares[[3, 4]].tolist() == pytest.approx([1, 1], abs=0.02)
    assert float(shares[2]) == pytest.approx(250 / 505, abs=0.01) and shares[5].isnan()


@pytest.mark.parametrize("frames", [0, 3])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_no_picture_gets_its_own_or_its_clip_s(count: int, frames: int) -> None:
    batch, seen = numbered(count, frames), set()
    clip = torch.arange(count).repeat_interleave(max(1, frames))
    for number in range(60):
        torch.manual_seed(number)
        drawn = others(batch)
        assert (clip[drawn] != clip).all() and sorted(drawn.tolist()) == list(range(len(clip)))
        assert frames == 0 or torch.equal(drawn % frames, torch.arange(len(clip)) % frames)
        torch.manual_seed(number)
        codes = Codes(3).draw(batch, Mirror())
        assert torch.equal(codes[:, 0].long(), drawn) and torch.equal(codes[:, 1].long(), clip[drawn])
        seen.add(int(drawn[0]) // max(1, frames))
    # each of at most 7 places is missed by 60 even draws with a chance below (6 / 7)^60 = 1e-4
    assert seen == {*range(1, count)}


def test_codes_carry_no_gradient_and_are_those_of_the_model() -> None:
    model, batch = Mirror(), numbered(4)
    drawn = Codes(3).draw(batch, model)
    assert not drawn.requires_grad and sorted(drawn[:, 0].tolist()) == [0, 1, 2, 3]
    assert model.encode(batch.images).requires_grad


class Linear(Mirror):
    """An encoder with weights of its own."""

    def __init__(self) -> None:
        super().__init__(4)
        self.layer = nn.Linear(48, 5)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.layer(pictures.flatten(1))


def test_codes_are_of_pictures_as_large_as_the_model_has_grown() -> None:
    torch.manual_seed(0)
    batch, model = Batch(torch.arange(3), torch.randn(3, 3, 16, 16), torch.arange(3), {}), Linear()
    drawn = Codes(5).draw(batch, model)
    small = nn.functional.avg_pool2d(batch.images, 4)
    nearest = torch.cdist(drawn, model.encode(small)).min(1)
    assert nearest.values.max() < 1e-5 and (nearest.indices != torch.arange(3)).all()


def test_codes_in_half_precision_leave_the_encoder_its_gradient() -> None:
    """Autocast keeps casts of weights; one that was made without gradient would serve the update behind it."""
    batch, model = Batch(torch.arange(4), torch.randn(4, 3, 4, 4).bfloat16(), torch.arange(4), {}), Linear()
    with torch.autocast("cpu", torch.bfloat16):
        drawn = Codes(5).draw(batch, model)
        model.encode(batch.images).sum().backward()
    assert drawn.dtype == torch.float32 and torch.equal(drawn, drawn.bfloat16().float())
    assert model.layer.weight.grad is not None and model.layer.weight.grad.abs().max() > 0


def test_draws_of_parameters_are_rows_of_other_pictures() -> None:
    prior, batch = held("fractal-video", 6, clip_length=4)
    own = prior.own(batch)
    torch.manual_seed(5)
    places = others(batch)
    torch.manual_seed(5)
    assert torch.equal(prior.draw(batch, Mirror()), own[places])
    assert own.shape == (24, prior.size)
    power = column(prior, batch, "power").reshape(6, 4).double()
    line = (power[:, :1] + (power[:, 3:] - power[:, :1]) * torch.arange(4) / 3 - power).abs().max()
    assert line < 1e-5 < power.diff(dim=1).abs().min()  # along a clip the power moves straight, and moves


@pytest.mark.parametrize("frames", [0, 2])
def test_the_normal_distribution_is_that(frames: int) -> None:
    torch.manual_seed(0)
    drawn = Gaussian(16).draw(numbered(512, frames), Mirror())
    count = drawn.numel()
    assert drawn.shape == (512 * max(1, frames), 16)
    assert abs(float(drawn.mean())) < 5 / math.sqrt(count)
    assert abs(float(drawn.square().mean()) - 1) < 5 * math.sqrt(2 / count)
    assert abs(float(drawn.pow(4).mean()) - 3) < 5 * math.sqrt(96 / count)


def test_draws_follow_torch_s_seed_and_nothing_else(families: Any) -> None:
    prior, batch = families
    priors: list[Prior] = [Gaussian(8), Codes(3), prior]
    for each in priors:
        torch.manual_seed(11)
        first = each.draw(batch, Mirror())
        np.random.seed(1)  # noqa: NPY002  another generator
        second = each.draw(batch, Mirror())
        torch.manual_seed(11)
        assert torch.equal(each.draw(batch, Mirror()), first) and not torch.equal(first, second)


def test_draws_look_at_no_value(families: Any) -> None:
    """Tensors without values: whatever reads one on the host fails."""
    prior, batch = families
    model = Mirror()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        empty = Batch(*(mode.from_tensor(part) for part in (batch.index, batch.images, batch.labels)),
                      {name: mode.from_tensor(values) for name, values in batch.latents.items()})  # fmt: skip
        with pytest.raises(DataDependentOutputException):
            float(empty.images.mean())
        for each, width in ((Gaussian(8), 8), (Codes(3), 3), (prior, prior.size)):
            assert each.draw(empty, model).shape == (TESTED, width)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_on_a_gpu_draws_never_wait_and_a_graph_of_them_draws_anew() -> None:
    source = SourceSettings(preset="fractal-families", image_size=16)
    stream = opened_source(source, "validation", "cuda", "bfloat16")
    prior, batch = make_prior("parameters", stream, 4, samples=MEASURED), stream.generate(range(64)).torch()
    assert isinstance(prior, Parameters)
    host = opened_source(source, "validation", "cpu").generate(range(64)).torch()
    same = Parameters(prior.columns, prior.shift.cpu(), prior.spread.cpu(), prior.knots.cpu())
    torch.testing.assert_close(prior.own(batch).cpu(), same.own(host), rtol=1e-3, atol=1e-3)
    for each in (Gaussian(8), Codes(3), prior):
        each.draw(batch, Mirror(16))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            each.draw(batch, Mirror(16))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            drawn = each.draw(batch, Mirror(16))
        seen = set()
        for _ in range(8):
            graph.replay()
            seen.add(drawn.cpu().numpy().tobytes())
        assert len(seen) > 1  # that 8 shifts of 63 agree has a chance of 63^-7


def test_constants_go_with_the_weights(families: Any) -> None:
    prior, batch = families
    other = Parameters(prior.columns, prior.shift * 0, prior.spread * 0 + 1, prior.knots)
    assert not torch.equal(other.own(batch), prior.own(batch))
    other.load_state_dict(prior.state_dict())
    assert {*prior.state_dict()} == {"shift", "spread", "knots"} and torch.equal(other.own(batch), prior.own(batch))


def test_mixtures_say_which_parameters_they_have() -> None:
    parts = [open_stream(name, split="validation", device="cpu", height=8, width=8) for name in ("kali", "fractal-10")]
    mixture = Mixture(parts, labels="component")
    prior = make_prior("parameters", mixture, 4, samples=400)
    assert isinstance(prior, Parameters) and prior.columns.classes == 2
    batch = mixture.generate(range(40)).torch()
    assert {"shift_x", "power"} <= {*prior.columns.numbers} and len(prior.columns.partial) == 2
    kali = column(prior, batch, f"has {prior.columns.partial[0]}")
    assert torch.equal(kali, 1 - column(prior, batch, f"has {prior.columns.partial[1]}")) and 0 < kali.sum() < 40
    assert (column(prior, batch, "power")[batch.labels == 0] == 0).all()


@pytest.mark.parametrize("mode, frames, moves", [("early", None, set()), ("clips", 3, {"iteration"})])
def test_kaleidoscopes_have_one_without_the_number_of_a_chain(mode: Any, frames: Any, moves: set[str]) -> None:
    network = Network(shape=(1, 8, 8), hidden=16, n_linear=3)
    dots = Sources(data=np.zeros((1, 2, 1, 8, 8), np.uint8), labels=np.int64([[0, 1]]), titles=("a", "b"))
    unfitted = Kaleidoscope(network=network, tensors=network.first_weights(), sources=dots)
    stream = KaleidoscopeStream(KaleidoscopeSpec(mode=mode, frames=frames), fitted=unfitted, device="cpu")
    prior = Parameters.of(stream, 128)
    first, late = (prior.own(stream.generate(range(begin, begin + 50)).torch()) for begin in (0, 10**9))
    assert len(first) == 50 * (frames or 1) and moves <= {*prior.columns.numbers} and prior.columns.classes == 2
    assert late.abs().max() < 20  # a number that counts on would be far outside


def test_refusals() -> None:
    pictures = StoredStream(np.zeros((4, 8, 8, 3), np.uint8), height=8, device="cpu")
    with pytest.raises(
        InvalidValueError, match=r"have none that vary \(no latents\): choose prior='codes' or 'gaussian'"
    ):
        make_prior("parameters", pictures, 64)
    with pytest.raises(InvalidValueError, match="prior='parameters' is measured on a stream: give one of the valid"):
        make_prior("parameters", None, 64)
    with pytest.raises(UnknownNameError, match="unknown prior 'normal'.*known are codes, gaussian, parameters"):
        make_prior("normal", None, 64)
    for count, frames in ((1, 0), (1, 5)):
        with pytest.raises(InvalidValueError, match="a batch of one sample holds no other to draw from"):
            Codes(3).draw(numbered(count, frames), Mirror())
