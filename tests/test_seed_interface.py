"""The original's interface and draws, against data that the original made (`oracles/README.md`)."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fractal_streams import SeedCodeSpec, SeedCodeStream, open_stream
from fractal_streams.errors import IndexRangeError, InvalidValueError, VersionError
from fractal_streams.formulas.polynomial_power import COEFFICIENTS
from fractal_streams.presets import find_preset
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.render.raster import Raster
from fractal_streams.render.reference import ReferenceRenderer
from fractal_streams.seed_code import class_coefficients, sweep
from fractal_streams.spec import StreamSpec

torch = pytest.importorskip("torch")
from fractal_streams import FractalImageDataset, FractalVideoDataset

ORACLES = np.load(Path(__file__).parent / "oracles" / "seed_fractals.npz")

# Share of pixels at which a float32 and a float64 evaluation of the same pictures differ by more than
# 2 levels: of the first four, counted by an evaluation that shares no code with this package; of the
# dataset's, counted with the reference in both precisions.
SHARES = {"free64": 0.00026, "free96_R2": 0.00015, "iter100": 0.0025, "sine64": 0.0104}
DATASET_SHARES = {"classes": 0.00029, "classes_eval": 0.00023}
SLACK = {"reference": 1.25, "numba": 4.0}
RENDERERS: dict[str, Any] = {"reference": ReferenceRenderer(), "numba": NumbaRenderer(threads=1)}
CALM = ("free64", "free96_R2")
"""Cases of 30 iterations of the polynomial map, where no picture may differ at more than 3 %."""


def oracle(case: str) -> dict[str, npt.NDArray[Any]]:
    return {name.partition("/")[2]: ORACLES[name] for name in ORACLES if name.startswith(f"{case}/")}


def raster_and_table(case: dict[str, npt.NDArray[Any]]) -> tuple[Raster, npt.NDArray[np.float32]]:
    formula = "sine" if case["fractal_type"] else "polynomial_power"
    size = int(case["size"])
    spec = StreamSpec(
        formulas=(formula,), height=size, width=size, iterations=int(case["max_iter"]), radius=float(case["R"]),
        counting="visits", orientation="matrix",
    )  # fmt: skip
    raster = Raster.of(spec, spec.parts()[0])
    drawn = {"alpha": case["alpha"], "beta": case["beta"], "power": case["p"], "frequency": case["frequency"]}
    drawn |= dict(zip(COEFFICIENTS, case["poly"].T, strict=True))
    view: dict[str, Any] = {"centre_x": 0.0, "centre_y": 0.0, "half_width": 1.0, "rotation": 0.0}
    values = {**view, **drawn}
    rows = [np.broadcast_to(np.float32(values[name]), case["alpha"].shape) for name in raster.names]
    return raster, np.stack(rows).astype(np.float32)


def shares(images: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(B,) share of each picture's pixels with a channel more than 2 levels away."""
    return (np.abs(images.astype(int) - expected) > 2).any(axis=1).mean(axis=(1, 2))


def dataset_spec(case: dict[str, npt.NDArray[Any]]) -> SeedCodeSpec:
    size = int(case["size"])
    return SeedCodeSpec(
        num_classes=int(case["num_classes"]), samples_per_class=int(case["num_samples_per_class"]),
        height=size, width=size, radius=float(case["R"]),
    )  # fmt: skip


RARE = ("sine64", "iter100")
"""Cases whose kernels no other test has compiled; the reference draws them always, and parity holds kernels to it."""


@pytest.mark.parametrize("case, renderer", [
    pytest.param(case, renderer, marks=pytest.mark.slow if renderer == "numba" and case in RARE else ())
    for case in SHARES for renderer in RENDERERS
])  # fmt: skip
def test_pictures_are_the_originals(case: str, renderer: str) -> None:
    known = oracle(case)
    raster, table = raster_and_table(known)
    found = shares(RENDERERS[renderer].render(raster, table), known["image"])
    assert found.mean() <= SLACK[renderer] * SHARES[case], f"mean share {found.mean():.6f}"
    if case in CALM:
        assert found.max() <= 0.03, f"picture {found.argmax()} differs at {found.max():.4f} of its pixels"


def test_the_measure_sees_what_the_readme_would_have_drawn() -> None:
    known = oracle("free96_R2")
    raster, table = raster_and_table(known)
    escape = Raster.of(StreamSpec(formulas=("polynomial_power",), height=96, width=96, orientation="matrix"), _part())
    assert raster.visits and not escape.visits
    found = shares(RENDERERS["numba"].render(escape, table), known["image"])
    assert found.mean() > 4 * SHARES["free96_R2"], "counting until the first escape must not pass as the original"


def _part() -> Any:
    return StreamSpec(formulas=("polynomial_power",)).parts()[0]


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("case", DATASET_SHARES)
def test_samples_are_the_original_datasets(case: str, renderer: str) -> None:
    known = oracle(case)
    split = "train" if known["train"] else "test"
    stream = SeedCodeStream(dataset_spec(known), split=split, device="cpu", renderer=RENDERERS[renderer])
    batch = stream.generate(known["index"])
    assert np.array_equal(batch.index, known["index"])
    assert np.array_equal(batch.labels, known["label"])
    drawn = np.stack([batch.latents[name] for name in COEFFICIENTS], axis=1)
    assert np.array_equal(drawn, known["coef"][known["label"]])
    found = shares(batch.images, known["image"])
    assert found.mean() <= SLACK[renderer] * DATASET_SHARES[case], f"mean share {found.mean():.6f}"
    assert found.max() <= 0.03


@pytest.mark.parametrize("case", DATASET_SHARES)
def test_the_dataset_class_gives_the_streams_samples(case: str) -> None:
    known = oracle(case)
    spec = dataset_spec(known)
    dataset = FractalImageDataset(
        spec.num_classes, int(known["num_samples_per_class"]), spec.height, R=spec.radius, device="cpu",
        train=bool(known["train"]), seed=7, semantics="code",
    )  # fmt: skip
    image, label = dataset[17]
    assert label == known["label"][17] and type(label) is int
    images, labels = dataset.get_batch(20)
    assert torch.equal(image, images[17]) and images.dtype == torch.float32 and labels.dtype == torch.int64
    levels = np.rint(255 * images.numpy()).astype(int)
    assert shares(levels, known["image"][:20]).mean() <= 2 * SLACK["numba"] * DATASET_SHARES[case]


@pytest.mark.parametrize("case", SHARES)
def test_one_generator_gave_the_free_cases_their_parameters(case: str) -> None:
    from fractal_streams.draw.mersenne import uniforms

    known = oracle(case)
    count = len(known["seeds"])
    drawn = uniforms(np.array([known["seeds"].sum()]), 8 * count)[:, 0].reshape(8, count)
    turn = np.float32(2 * np.pi)
    assert np.array_equal(drawn[0] * turn, known["alpha"])
    assert np.array_equal(drawn[1] * np.float32(3), known["beta"])
    assert np.array_equal(drawn[2] * np.float32(5), known["p"])
    assert np.array_equal(drawn[3:7].T, known["poly"])
    assert np.array_equal(drawn[7] * np.float32(10), known["frequency"])


def test_published_draws() -> None:
    expected = [
        [0.4962566, 0.7682218, 0.0884774, 0.1320305],
        [0.7576316, 0.2793109, 0.4030693, 0.7346845],
        [0.6146951, 0.3810129, 0.6371143, 0.4744611],
    ]
    assert np.allclose(class_coefficients(np.arange(3)).T, expected, rtol=0, atol=6e-8)
    names = ("alpha", "beta", "power", "frequency")
    train, test = (
        open_stream("seed-code", device="cpu", samples_per_class=10, split=split).generate([0, 1]).latents
        for split in ("train", "test")
    )
    found = np.array([[train[name][0], train[name][1], test[name][0]] for name in names]).T
    published = [
        [0.7016075, 2.4475293, 1.3128099, 4.8387760],
        [1.2443816, 1.3508626, 0.4545072, 8.8719594],
        [3.1180721, 2.3046654, 0.4423872, 1.3203049],
    ]
    assert np.allclose(found, published, rtol=1.2e-7, atol=0)


def test_published_sums_of_counts() -> None:
    stream = open_stream("seed-code", device="cpu", samples_per_class=10, height=64, width=64, radius=4.0)
    latents = stream.generate(range(8)).latents
    found = [count_sum({name: float(row[k]) for name, row in latents.items()}, 64, 4.0, 30) for k in range(8)]
    assert found == [28_088, 64_905, 86_168, 111_860, 37_785, 23_056, 57_246, 79_959]


def count_sum(p: dict[str, float], size: int, radius: float, iterations: int) -> int:
    """Steps that ended inside, over all pixels, with complex numbers in place of the formula's parts."""
    line = np.linspace(-1.0, 1.0, size)
    c = (line[:, None] + 1j * line[None, :]) * np.exp(1j * p["beta"])
    z = np.zeros_like(c)
    total = 0
    with np.errstate(all="ignore"):
        for _ in range(iterations):
            x = z.real
            inner = (p["poly0"] + p["poly1"] * x**2 + p["poly2"] * x**3 + p["poly3"] * x**4) + 1j * z.imag
            inner = inner * np.exp(1j * p["alpha"])
            z = np.abs(inner) ** p["power"] * np.exp(1j * p["power"] * np.angle(inner)) + c
            total += int((np.abs(z) ** 2 < radius**2).sum())
    return total


def test_indices_come_round_and_seeds_count_modulo_two_to_the_32() -> None:
    spec = SeedCodeSpec(num_classes=3, samples_per_class=4, height=8, width=8)
    stream = SeedCodeStream(spec, device="cpu")
    assert np.array_equal(stream.generate(range(12)).images, stream.generate(range(12, 24)).images)
    assert np.array_equal(stream.labels([0, 5, 12, 2**63 - 1]), [0, 2, 0, (2**63 - 1) % 12 % 3])
    wide = SeedCodeSpec(num_classes=2, samples_per_class=2**31 - 1, height=8, width=8)  # total = 2**32 - 2
    late = SeedCodeStream(wide, device="cpu").generate([2, 5]).latents["alpha"]
    early = SeedCodeStream(wide, split="test", device="cpu").generate([0, 3]).latents["alpha"]
    assert np.array_equal(late, early)


def test_seed_code_preset_is_a_stream_like_the_others() -> None:
    streams = {split: open_stream("seed-code", split=split, device="cpu") for split in ("train", "validation", "test")}
    drawn = np.concatenate([stream.generate(range(50)).latents["alpha"] for stream in streams.values()])
    assert len(set(drawn.tolist())) == 150
    spec = find_preset("seed-code")
    assert 3 * spec.total <= 2**32 < 3 * spec.total + 3 * spec.num_classes
    assert (spec.radius, spec.iterations, spec.num_classes) == (2.0, 30, 10)
    assert SeedCodeSpec.from_json(spec.to_json()) == spec
    assert spec.replace(radius=2).digest() == spec.digest() != spec.replace(radius=4.0).digest()
    assert len({stream.digest() for stream in streams.values()}) == 3
    assert open_stream("seed-code", seed=9, device="cpu").digest() == streams["train"].digest()
    sample = streams["train"][3]
    assert sample.label == 3 and np.array_equal(sample.image, streams["train"].generate([9, 3]).images[1])


def test_seed_readme_preset_draws_what_the_readme_promises() -> None:
    stream: Any = open_stream("seed-readme", device="cpu", height=8, width=8)
    assert (stream.spec.labels, stream.spec.counting) == ("balanced", "escape")
    assert (stream.rasters[0].radius, stream.rasters[0].iterations) == (2.0, 30)
    plan = stream.plans[0]
    ranges = {name: tuple(plan.numbers[row, 2:]) for row, name in enumerate(plan.names)}
    turn = float(np.float32(2 * np.pi))
    assert {name: ranges[name] for name in ("alpha", "beta", "power", "frequency")} == {
        "alpha": (0.0, turn), "beta": (0.0, turn), "power": (0.0, 5.0), "frequency": (0.0, 10.0),
    }  # fmt: skip
    assert {ranges[name] for name in COEFFICIENTS} == {(-1.0, 1.0)}


def test_readme_semantics_honours_seed_train_and_first_escape() -> None:
    def images(**changes: Any) -> Any:
        arguments = {"seed": 0, "train": True, "R": 2.0, "max_iter": 30, **changes}
        return FractalImageDataset(10, 3, 16, device="cpu", **arguments).get_batch(30)[0]

    assert torch.equal(images(), images())
    assert not torch.equal(images(), images(seed=1))
    assert not torch.equal(images(), images(train=False))
    twice = FractalImageDataset(10, 3, 16, device="cpu")
    assert torch.equal(images(), twice.get_batch(30)[0])
    batch = twice.stream.generate(range(30))
    assert batch.labels.tolist() == [k % 10 for k in range(30)]
    same_class = batch.latents["poly1"].reshape(3, 10)
    assert (same_class == same_class[0]).all() and len(set(same_class[0].tolist())) == 10
    assert same_class.min() < 0 < same_class.max(), "coefficients from U(-1, 1), not U(0, 1)"
    assert batch.latents["beta"].max() > 3.0, "beta from U(0, 2 pi), not U(0, 3)"


@pytest.mark.parametrize("semantics", ["readme", "code"])
def test_finite_dataset_ends_and_batches_come_round(semantics: Any) -> None:
    dataset = FractalImageDataset(3, 2, 8, device="cpu", semantics=semantics)
    samples = list(dataset)  # type: ignore[call-overload]
    assert len(samples) == len(dataset) == 6
    assert [label for _, label in samples] == [0, 1, 2, 0, 1, 2]
    images, labels = dataset.get_batch(4)
    assert torch.equal(images, torch.stack([image for image, _ in samples[:4]]))
    images, labels = dataset.get_batch(4)
    assert labels.tolist() == [1, 2, 0, 1]
    assert torch.equal(images[2], samples[0][0])
    assert dataset.get_batch(1)[1].tolist() == [2], "the third batch starts where the second ended"
    dataset.reset()
    assert dataset.get_batch(13)[1].tolist() == [k % 6 % 3 for k in range(13)]
    for index in (-1, 6, 2**63):
        with pytest.raises(IndexRangeError, match=r"\[0, 6\)"):
            dataset[index]
    with pytest.raises(InvalidValueError, match="batch_size"):
        dataset.get_batch(0)
    with pytest.raises(InvalidValueError, match="whole number"):
        dataset["first"]  # type: ignore[index]


def test_loader_and_pickle_give_the_same_samples() -> None:
    dataset = FractalImageDataset(10, 2, 8, device="cpu", seed=5)
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, dataset.get_batch(20)[0])
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[13][0], images[13])


def test_images_are_levels_over_255() -> None:
    dataset = FractalImageDataset(10, 2, 16, device="cpu", seed=5)
    levels = open_stream("seed-readme", device="cpu", seed=5, height=16, width=16).generate(range(20)).images
    assert np.array_equal(dataset.get_batch(20)[0].numpy(), (levels / 255.0).astype(np.float32))


def test_code_semantics_refuses_what_the_original_got_wrong() -> None:
    with pytest.raises(InvalidValueError, match=r"1 to 127, got 128: the original counted in 8 bits"):
        FractalImageDataset(10, 10, 16, max_iter=128, device="cpu", semantics="code")
    assert FractalImageDataset(10, 10, 16, max_iter=128, device="cpu").stream.spec.iterations == 128  # type: ignore[attr-defined]
    with pytest.raises(InvalidValueError, match="square"):
        open_stream("seed-code", device="cpu", height=16, width=32)
    with pytest.raises(InvalidValueError, match="semantics must be one of 'readme', 'code'"):
        FractalImageDataset(10, 10, 16, device="cpu", semantics="paper")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="num_samples_per_class"):
        FractalImageDataset(10, 0, 16, device="cpu")
    with pytest.raises(InvalidValueError, match="image_size must be a whole number from 8"):
        FractalVideoDataset(10, 1, 7, device="cpu")
    with pytest.raises(InvalidValueError, match="frames"):
        FractalVideoDataset(10, 1, 8, device="cpu", T=0)
    with pytest.raises(VersionError):
        SeedCodeSpec.from_json(SeedCodeSpec().to_json().replace('"spec_version": 1', '"spec_version": 99'))


def test_all_clips_of_the_original_make_the_same_sweep() -> None:
    dataset = FractalVideoDataset(4, 3, 16, device="cpu", T=5, semantics="code")
    clips, labels = dataset.get_batch(12)
    assert clips.shape == (12, 5, 3, 16, 16) and labels.tolist() == [0, 1, 2, 3] * 3
    assert torch.equal(clips[:4], clips[4:8]) and not torch.equal(clips[0], clips[1])
    ends = {
        "alpha": (1.6795, 5.4823), "beta": (1.0059, 1.2090), "power": (3.9356, 2.2880), "frequency": (0.7194, 9.7146),
    }  # fmt: skip
    latents = dataset.stream.generate([7]).latents
    for name, (start, end) in ends.items():
        assert np.allclose(latents[name][0], np.linspace(start, end, 5), rtol=0, atol=6e-5)
        assert np.array_equal(latents[name][0], sweep(5)[name])
    assert np.array_equal(latents["poly2"][0], np.repeat(class_coefficients(np.array([3]))[2], 5))


def test_clips_of_the_readme_each_make_their_own_sweep() -> None:
    dataset = FractalVideoDataset(4, 3, 8, device="cpu", T=4)
    clips, labels = dataset.get_batch(12)
    assert clips.shape == (12, 4, 3, 8, 8) and labels.tolist() == [0, 1, 2, 3] * 3
    latents = dataset.stream.generate(range(12)).latents
    for name in ("alpha", "beta", "power", "frequency"):
        assert len({tuple(path) for path in latents[name].tolist()}) == 12
    clip, label = dataset[5]
    assert torch.equal(clip, clips[5]) and label == 1


def test_without_torch_the_stream_works_and_the_dataset_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import fractal_streams as f\n"
        "print(f.open_stream('seed-code', device='cpu', height=8, width=8).generate([1]).labels)\n"
        "try:\n    f.FractalImageDataset\n"
        "except f.errors.MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "[1]" in done.stdout and "pip install 'fractal-streams[torch]'" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("case", (*SHARES, *DATASET_SHARES))
def test_a_gpu_draws_the_originals_pictures(case: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    known = oracle(case)
    if case in SHARES:
        from fractal_streams.cuda import CudaBackend
        from fractal_streams.render.raster import PixelFormat

        raster, table = raster_and_table(known)
        backend = CudaBackend("cuda:0")
        images = backend.render(raster, backend.upload(table), PixelFormat())
    else:
        split = "train" if known["train"] else "test"
        batch = SeedCodeStream(dataset_spec(known), split=split, device="cuda").generate(known["index"])
        assert np.array_equal(batch.labels.cpu().numpy(), known["label"])
        images = batch.images
    found = shares(images.cpu().numpy(), known["image"])
    assert found.mean() <= SLACK["numba"] * {**SHARES, **DATASET_SHARES}[case], f"mean share {found.mean():.6f}"
    if case in (*CALM, *DATASET_SHARES):
        assert found.max() <= 0.03
