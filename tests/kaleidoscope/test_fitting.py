"""Fitting: held to the plainest loop, to itself alone and interrupted, and to what it must refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fractal_streams import open_stream
from fractal_streams.errors import InvalidValueError, UnknownNameError, VersionError
from fractal_streams.kaleidoscope import checkpoint as kept_in
from fractal_streams.kaleidoscope.descent import Descent
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, Sources, WeightFileError, open_kaleidoscope
from fractal_streams.kaleidoscope.fitting import FitError, IdentityMapError, IdentityMapWarning, fit
from fractal_streams.kaleidoscope.network import Network
from fractal_streams.kaleidoscope.reference import ReferenceEngine
from fractal_streams.kaleidoscope.sources import of_arrays, of_stream, points, stacked
from fractal_streams.kaleidoscope.training import Training

LINE = Network(shape=(1,), hidden=10, n_linear=7, head="sigmoid", data_scale=1.0)
TWO = points([0.2, 0.8])
PLAIN = Training(steps=120, noise=0.0, decay="constant", evaluate_every=120)
SMALL = Network(shape=(1, 8, 8), hidden=32, n_linear=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def grey() -> Sources:
    """Sixty grey fractals of 8 x 8."""
    return of_stream(open_stream("fractal-10", height=8, width=8, device="cpu"), range(60), grey=True)


@pytest.fixture(scope="module")
def tiny(grey: Sources) -> Sources:
    """The same in 4 x 4."""
    return of_arrays(np.rint(grey.data[0].reshape(60, 1, 4, 2, 4, 2).mean(axis=(3, 5))).astype(np.uint8))


@pytest.fixture(scope="module")
def few(grey: Sources) -> Sources:
    """Twelve of them."""
    return of_arrays(grey.data[0, :12], grey.labels[0, :12], grey.titles)


def same(one: Kaleidoscope, two: Kaleidoscope) -> bool:
    """Whether weights and all that is told of a training are equal to the bit."""
    equal = all(np.array_equal(array, two.tensors[name]) for name, array in one.tensors.items())
    return equal and json.dumps(one.training) == json.dumps(two.training)


def differences(one: Any, two: Any) -> float:
    return max(float(np.abs(array - two[name]).max()) for name, array in one.items())


def plain_adam(network: Network, targets: Any, training: Training) -> dict[str, Any]:
    """One network by Adam as its paper has it, in float64, without an optimiser of torch."""
    tensors = {name: torch.tensor(array[0]).double() for name, array in network.first_weights().items()}
    moments = {name: (torch.zeros_like(tensor), torch.zeros_like(tensor)) for name, tensor in tensors.items()}
    target = torch.from_numpy(targets).double()
    for step in range(training.steps):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        values = target
        for layer in range(network.n_linear):
            values = values @ leaves[f"layers.{layer}.weight"].T + leaves[f"layers.{layer}.bias"]
            values = torch.relu(values) if layer < network.n_linear - 1 else torch.sigmoid(values)
        gradients = torch.autograd.grad(((values - target) ** 2).mean(), list(leaves.values()))
        for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
            first, second = moments[name]
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            scaled = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            tensor.sub_(training.rate(step) * scaled)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_weights_are_those_of_adam_on_the_mean_squared_error(decay: Any) -> None:
    training = PLAIN.replace(decay=decay, dtype="float64", steps=120)
    found = fit(LINE, TWO, training, device="cpu", on_dead="allow")
    assert found.training["best_step"] == [120]
    truth = plain_adam(LINE, np.float64([[np.float32(0.2)], [np.float32(0.8)]]), training)
    assert differences({name: array[0] for name, array in found.tensors.items()}, truth) < 1e-6


def test_the_rate_falls_to_zero_along_a_cosine() -> None:
    training = Training(steps=8, learning_rate=0.5)
    assert [training.rate(step) for step in (0, 2, 4, 8)] == pytest.approx([0.5, 0.25 + 0.125 * 2**0.5, 0.25, 0.0])
    assert Training(steps=8, learning_rate=0.5, decay="constant").rate(7) == 0.5


@pytest.mark.parametrize("batch, noise", [(None, 0.0), (None, 0.3), (5, 0.3)])
def test_a_network_of_a_bank_is_the_same_alone(batch: int | None, noise: float, few: Sources) -> None:
    training = Training(steps=60, noise=noise, batch=batch, learning_rate=1e-3)
    values = SMALL.values_of(few.data)
    bank = Descent(SMALL, training, values, 3, "cpu")
    for model in range(3):
        alone = Descent(SMALL, training, values, 1, "cpu")
        own = {name: array[model : model + 1] for name, array in SMALL.first_weights(3).items()}
        with torch.no_grad():
            for name, array in own.items():
                alone.tensors[name].copy_(torch.from_numpy(array))
        for _ in range(training.steps):
            alone.advance()
            if model == 0:
                bank.advance()
        ends = {name: tensor[model : model + 1].detach().numpy() for name, tensor in bank.tensors.items()}
        assert differences(ends, {name: tensor.detach().numpy() for name, tensor in alone.tensors.items()}) < 1e-5
        assert differences(ends, own) > 1e-2


def test_networks_with_sources_of_their_own_are_the_same_alone(grey: Sources) -> None:
    parts = [of_arrays(grey.data[0, first : first + 6]) for first in (0, 6)]
    training = Training(steps=40, batch=4, learning_rate=1e-3)
    bank = fit(SMALL, stacked(parts), training, device="cpu", on_dead="allow")
    alone = fit(SMALL, parts[0], training, device="cpu", on_dead="allow")
    assert bank.models == 2
    assert differences(bank.one(0).tensors, alone.tensors) < 1e-5
    swapped = fit(SMALL, stacked(parts[::-1]), training, device="cpu", on_dead="allow")
    assert differences(swapped.one(0).tensors, alone.tensors) > 1e-3


def test_what_is_told_is_what_the_weights_do(few: Sources) -> None:
    training = Training(steps=150, learning_rate=3e-3, decay="constant", evaluate_every=10)
    found = fit(SMALL, few, training, models=2, device="cpu")
    for model in range(2):
        values = found.source_values(model)
        outputs = ReferenceEngine(found).apply(values, np.full(len(values), model))
        assert found.training["loss"][model] == pytest.approx(((outputs - values) ** 2).mean() / 4.0, rel=1e-3)
    curve = np.array(found.training["curve"]["score"])
    steps = np.array(found.training["curve"]["steps"])
    assert steps.tolist() == list(range(0, 151, 10))
    assert steps[curve.argmin(axis=0)].tolist() == found.training["best_step"]
    assert curve.min(axis=0) == pytest.approx(found.training["score"], rel=1e-5)


def test_the_best_weights_are_of_the_evaluation_that_chose_them() -> None:
    """At a rate far too high the loss jumps about; what is kept has the loss that is told."""
    wild = Training(steps=200, noise=0.0, learning_rate=0.03, decay="constant", evaluate_every=1)
    found = fit(LINE, TWO, wild, models=4, device="cpu", on_dead="allow")
    assert min(found.training["best_step"]) < 200
    for model in range(4):
        values = found.source_values(model)
        outputs = ReferenceEngine(found).apply(values, np.full(2, model))
        assert found.training["score"][model] == pytest.approx(((outputs - values) ** 2).mean(), rel=1e-3, abs=1e-12)


def test_one_seed_gives_everything(few: Sources) -> None:
    training = Training(steps=30, batch=6)
    one, two = (fit(SMALL, few, training, device="cpu", on_dead="allow") for _ in range(2))
    assert same(one, two)
    other = fit(SMALL, few, training.replace(seed=1), device="cpu", on_dead="allow")
    assert differences(one.tensors, other.tensors) > 1e-2


def test_bfloat16_products_come_near(few: Sources) -> None:
    training = Training(steps=200, learning_rate=3e-3)
    exact, rough = (fit(SMALL, few, training.replace(dtype=dtype), device="cpu") for dtype in ("float32", "bfloat16"))
    assert differences(exact.tensors, rough.tensors) > 0.0
    assert rough.training["score"][0] < 1.5 * exact.training["score"][0]
    assert all(array.dtype == np.float32 for array in rough.tensors.values())


def test_denoising_makes_sources_attractors(bare_pictures: Kaleidoscope) -> None:
    sources = bare_pictures.sources
    network = Network(shape=(1, 8, 8), hidden=64, n_linear=5)
    found = fit(network, sources, Training(steps=900, learning_rate=3e-3, noise=0.3), device="cpu")
    values = found.source_values(0)
    kicked = values + 0.1 * np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    engine = ReferenceEngine(found)
    for _ in range(30):
        kicked = engine.apply(kicked)
    assert np.sqrt(((kicked - values) ** 2).mean(axis=1)).max() / 2.0 < 0.02


# --- interrupted, and gone on ------------------------------------------------------------------------------------

RESUMED = Training(steps=60, batch=7, learning_rate=3e-3, evaluate_every=7)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, error: bool = False) -> None:
    advance = Descent.advance

    def stopped(self: Descent) -> None:
        advance(self)
        if self.done == step:
            if error:
                raise RuntimeError("the power went")
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Descent, "advance", stopped)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_fit_goes_on_to_the_bit(dtype: Any, few: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, path = RESUMED.replace(dtype=dtype), tmp_path / "part.safetensors"
    whole = fit(SMALL, few, training, models=2, device="cpu", on_dead="allow")
    with monkeypatch.context() as patched:
        interrupt_at(patched, 23)
        with pytest.raises(KeyboardInterrupt):
            fit(SMALL, few, training, models=2, device="cpu", checkpoint=path, on_dead="allow")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    seen: list[int] = []
    with monkeypatch.context() as patched:
        advance = Descent.advance
        patched.setattr(Descent, "advance", lambda self: (seen.append(self.done), advance(self)))
        gone_on = fit(SMALL, few, training, models=2, device="cpu", checkpoint=path, on_dead="allow")
        assert seen == list(range(23, 60)) and same(gone_on, whole)
        again = fit(SMALL, few, training, models=2, device="cpu", checkpoint=path, on_dead="allow")
        assert len(seen) == 37 and same(again, whole)


def test_at_an_error_the_last_written_file_stays(few: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.safetensors"
    options: Any = {"device": "cpu", "on_dead": "allow", "checkpoint": path, "checkpoint_seconds": 0.0}
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with monkeypatch.context() as patched:
        interrupt_at(patched, 31, error=True)
        with pytest.raises(RuntimeError, match="the power went"):
            fit(SMALL, few, RESUMED, **options)
    assert signal.getsignal(signal.SIGINT) is before
    card, _ = kept_in.read_tensors(path, kept_in.FORMAT, 1)
    assert card["step"] == 30
    assert same(fit(SMALL, few, RESUMED, **options), fit(SMALL, few, RESUMED, device="cpu", on_dead="allow"))


@pytest.mark.slow
def test_a_killed_fit_goes_on_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    program = (
        "import os, signal, sys, torch\n"
        "from fractal_streams.kaleidoscope.descent import Descent\n"
        "from fractal_streams.kaleidoscope.fitting import fit\n"
        "from fractal_streams.kaleidoscope.network import Network\n"
        "from fractal_streams.kaleidoscope.sources import points\n"
        "from fractal_streams.kaleidoscope.training import Training\n"
        "torch.set_num_threads(1)\n"
        "advance = Descent.advance\n"
        "def killed(self):\n"
        "    advance(self)\n"
        "    if self.done == 57: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Descent.advance = killed\n"
        "network = Network(shape=(1,), hidden=10, n_linear=7, head='sigmoid', data_scale=1.0)\n"
        "training = Training(steps=120, noise=0.1)\n"
        "fit(network, points([0.2, 0.8]), training, models=3, device='cpu', checkpoint=sys.argv[1], "
        "checkpoint_seconds=0.0)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    card, _ = kept_in.read_tensors(path, kept_in.FORMAT, 1)
    assert card["step"] == 56
    training = Training(steps=120, noise=0.1)
    found = fit(LINE, TWO, training, models=3, device="cpu", checkpoint=path, on_dead="allow")
    assert same(found, fit(LINE, TWO, training, models=3, device="cpu", on_dead="allow"))


def test_checkpoints_of_other_fits_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    options: Any = {"device": "cpu", "on_dead": "allow", "checkpoint": path}
    short = PLAIN.replace(steps=3)
    fit(LINE, TWO, short, **options)
    for changes, words in (
        ((LINE, TWO, short.replace(seed=5)), "training.seed is 0 there, 5 here"),
        ((LINE.replace(hidden=11), TWO, short), "network.hidden is 10 there, 11 here"),
        ((LINE, points([0.2, 0.7]), short), "sources is '[0-9a-f]{32}' there"),
    ):
        with pytest.raises(InvalidValueError, match=f"checkpoint of another fit.*{words}.*give another file"):
            fit(*changes, **options)
    with pytest.raises(InvalidValueError, match="models is 1 there, 2 here"):
        fit(LINE, TWO, short, models=2, **options)
    with pytest.raises(InvalidValueError, match=r"kept as \.safetensors, got .*part\.pt"):
        fit(LINE, TWO, short, device="cpu", checkpoint=tmp_path / "part.pt")
    with pytest.raises(WeightFileError, match="something else"):
        open_kaleidoscope(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightFileError, match="damaged"):
        fit(LINE, TWO, short, **options)
    path.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    with pytest.raises(VersionError, match="reads 1 to 1"):
        fit(LINE, TWO, short, **options)
    fit(LINE, TWO, short, device="cpu", on_dead="allow").save(path)
    with pytest.raises(WeightFileError, match="something else"):
        fit(LINE, TWO, short, **options)


# --- refused ------------------------------------------------------------------------------------------------------


def test_constant_maps_are_refused_and_restarts_mend_them() -> None:
    thin, training = LINE.replace(hidden=5), Training(steps=400, noise=0.0, decay="constant", learning_rate=4e-3)
    bank = fit(thin, TWO, training, models=16, device="cpu")
    dead = bank.training["dead"]
    assert 1 <= len(dead) < 16
    for model in range(16):
        outputs = ReferenceEngine(bank).apply(np.float32([[0.2], [0.8]]), np.full(2, model))[:, 0]
        assert (abs(outputs[1] - outputs[0]) < 0.1) == (model in dead)
    best = fit(thin, TWO, training, restarts=16, device="cpu")
    assert best.training["restart"] == [int(np.argmin(bank.training["score"]))] and best.training["dead"] == []
    assert differences(best.tensors, bank.one(best.training["restart"][0]).tensors) == 0.0
    hopeless = thin.replace(hidden=1, n_linear=20)
    with pytest.raises(FitError, match=r"constant map.*restarts=8.*more than 1 hidden units, init='he'.*on_dead"):
        fit(hopeless, TWO, training.replace(steps=20), device="cpu")
    kept = fit(hopeless, TWO, training.replace(steps=20), models=2, device="cpu", on_dead="allow")
    assert kept.training["dead"] == [0, 1]


def test_losses_that_are_no_numbers_are_refused() -> None:
    wild = Training(steps=40, noise=0.0, learning_rate=1.0, decay="constant", evaluate_every=5)
    network = Network(shape=(2,), hidden=20, n_linear=60, activation="identity", head="linear", init="he")
    with pytest.raises(FitError, match="no number any more: use a learning_rate below 1"):
        fit(network, points(np.eye(2) * 0.5), wild, device="cpu")


def test_identity_maps_are_refused_told_or_allowed(tiny: Sources) -> None:
    linear = Network(shape=(1, 4, 4), hidden=20, n_linear=2, activation="identity", head="linear")
    training = Training(steps=600, noise=0.0, learning_rate=1e-2)
    with pytest.raises(IdentityMapError, match=r"identity map.*noise=0\.3\), or use kind='bottleneck'.*on_identity"):
        fit(linear, tiny, training, device="cpu")
    with pytest.warns(IdentityMapWarning, match="nearest sources are 0"):
        fit(linear, tiny, training, device="cpu", on_identity="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit(linear, tiny, training, device="cpu", on_identity="allow")
        assert found.training["identity"] == [0]
        told = found.training["held_out"]
        assert told["rmse"][0] < told["distance"][0] / 3.0
        fit(linear.replace(activation="relu"), tiny, training.replace(noise=0.3), device="cpu")


def test_pictures_held_out_tell_identity_maps_too(tiny: Sources) -> None:
    linear = Network(shape=(1, 4, 4), hidden=20, n_linear=2, activation="identity", head="linear")
    training = Training(steps=600, noise=0.0, learning_rate=1e-2)
    some, rest = of_arrays(tiny.data[0, :40]), tiny.data[0, 40:]
    found = fit(linear, some, training, device="cpu", held_out=rest, on_identity="allow")
    values, unseen = (linear.values_of(data).reshape(-1, 16).astype(np.float16) for data in (some.data[0], rest))
    outputs = ReferenceEngine(found).apply(unseen)
    nearest = np.sqrt(((unseen[:, None] - values[None]) ** 2).mean(axis=2).min(axis=1)) / 2.0
    keep = nearest >= 0.02
    told = found.training["held_out"]
    assert told["distance"][0] == pytest.approx(np.sqrt((nearest[keep] ** 2).mean()), rel=1e-4)
    assert told["rmse"][0] == pytest.approx(np.sqrt(((outputs - unseen)[keep] ** 2).mean()) / 2.0, rel=1e-3)
    with pytest.raises(InvalidValueError, match=r"held_out must be \(H, 1, 4, 4\)"):
        fit(linear, some, training, device="cpu", held_out=rest[:, 0])
    with pytest.raises(InvalidValueError, match=r"held_out must be .* uint8 or floats, got uint16"):
        fit(linear, some, training, device="cpu", held_out=rest.astype(np.uint16))


def test_near_duplicates_are_named(few: Sources) -> None:
    twice = np.concatenate([few.data[0], few.data[0, 3:4]])
    with pytest.warns(UserWarning, match=r"1 pairs.*such as 3 and 12 of network 0 at 0\.000"):
        fit(SMALL, of_arrays(twice), Training(steps=1), device="cpu", on_dead="allow")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"models": 0}, "models must be a whole number from 1"),
        ({"restarts": 5000}, "restarts must be a whole number from 1 to 4096"),
        ({"models": 100, "restarts": 100}, r"models \* restarts must be at most 4096"),
        ({"on_identity": "ask"}, "on_identity must be one of 'refuse', 'warn', 'allow'"),
        ({"on_dead": "ask"}, "on_dead must be one of 'refuse', 'allow'"),
        ({"checkpoint_seconds": "soon"}, r"checkpoint_seconds must lie in \[0, inf\], got 'soon'"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds must lie"), ({"training": {"steps": 3}}, "got dict"),
        ({"network": "mlp"}, "fit takes a Network, Sources and a Training or None, got str"),
        ({"sources": [0.2, 0.8]}, "fit takes a Network, Sources and a Training or None, got list"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: Any, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        fit(**{"network": LINE, "sources": TWO, "training": PLAIN, "device": "cpu", **options})


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path: Path) -> None:
    counts: Any = {"models": np.int64(2), "restarts": np.int64(2), "checkpoint": tmp_path / "part.safetensors"}
    found = fit(LINE, TWO, PLAIN.replace(steps=3), device="cpu", on_dead="allow", **counts)
    assert open_kaleidoscope(found.save(tmp_path / "kept.safetensors")).training["restarts"] == 2


@pytest.mark.parametrize("name", ["weights.layers.0.bias", "best.layers.6.weight", "step"])
def test_checkpoints_of_odd_numbers_are_refused(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "part.safetensors"
    options: Any = {"models": 2, "device": "cpu", "on_dead": "allow", "checkpoint": path}
    fit(LINE, TWO, PLAIN.replace(steps=3), **options)
    card, arrays = kept_in.read_tensors(path, kept_in.FORMAT, 1)
    if name == "step":
        card["step"] = 4
    else:
        arrays[name] = arrays[name][:1]  # which would be taken for both networks
    card["digest"] = kept_in.digest_of([card["facts"], card["step"]], arrays)
    save_file(arrays, path, metadata={"card": json.dumps(card)})
    with pytest.raises(WeightFileError, match=f"damaged.*{name}"):
        fit(LINE, TWO, PLAIN.replace(steps=3), **options)


def test_a_checkpoint_in_which_a_bit_turned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    options: Any = {"device": "cpu", "on_dead": "allow", "checkpoint": path}
    fit(LINE, TWO, PLAIN.replace(steps=3), **options)
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(held)
    with pytest.raises(WeightFileError, match="damaged.*not the digest.*remove it"):
        fit(LINE, TWO, PLAIN.replace(steps=3), **options)


def test_sources_that_do_not_fit_are_refused(few: Sources) -> None:
    with pytest.raises(InvalidValueError, match=r"head='sigmoid' has the range \[0, 1\]"):
        fit(LINE, points([-0.2, 0.8]), PLAIN, device="cpu")
    with pytest.raises(InvalidValueError, match=r"sources have shape \(1, 8, 8\), and the network \(1,\)"):
        fit(LINE, few, PLAIN, device="cpu")
    with pytest.raises(InvalidValueError, match="sources are of 2 networks, got models=3"):
        fit(LINE, stacked([TWO, TWO]), PLAIN, models=3, device="cpu")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"steps": 0}, "steps must be a whole number"), ({"batch": 0}, "batch must be"),
        ({"learning_rate": 0.0}, r"learning_rate must lie in \(0, 1\], got 0"),
        ({"noise": -0.1}, r"noise must lie in \[0, 10\], got -0.1"), ({"noise": float("nan")}, "noise must lie"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got 1"), ({"betas": 0.9}, "two numbers"),
        ({"decay": "linear"}, "'cosine', 'constant'"), ({"dtype": "float16"}, "'float32', 'float64', 'bfloat16'"),
        ({"seed": -1}, "seed must be"), ({"evaluate_every": 0}, "evaluate_every must be"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes: Any, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        Training(**changes)


def test_trainings_are_told_and_read_as_json() -> None:
    training = Training(steps=7, batch=3, betas=(0.5, 0.75), decay="constant", dtype="float64", evaluate_every=2)
    assert Training.from_dict(json.loads(json.dumps(training.to_dict()))) == training
    with pytest.raises(UnknownNameError, match="did you mean 'steps'"):
        Training.from_dict({"step": 5})
    with pytest.raises(InvalidValueError, match="not a training"):
        Training.from_dict([5])
    with pytest.raises(InvalidValueError, match="betas must be two numbers, got 5"):
        Training.from_dict({"betas": 5})


@pytest.mark.gpu
@pytest.mark.parametrize("batch, noise, models", [(None, 0.0, 1), (7, 0.3, 1), (None, 0.3, 4)])
def test_steps_as_a_graph_are_those_without(batch: int | None, noise: float, models: int, few: Sources) -> None:
    training = Training(steps=50, noise=noise, batch=batch)
    values = SMALL.values_of(few.data)
    ends = []
    for graphed in (True, False):
        descent = Descent(SMALL, training, values, models, "cuda:0", graphed)
        first = {name: tensor.detach().cpu().numpy() for name, tensor in descent.tensors.items()}
        assert differences(first, SMALL.first_weights(models)) == 0.0
        for _ in range(training.steps):
            descent.advance()
        descent.evaluate()
        ends.append(descent)
    one, two = ({name: t.detach().cpu().numpy() for name, t in each.tensors.items()} for each in ends)
    assert differences(one, two) < 1e-4
    assert torch.allclose(ends[0].loss, ends[1].loss, rtol=1e-3)


@pytest.mark.gpu
def test_a_gpu_comes_to_what_the_cpu_does(few: Sources) -> None:
    training = PLAIN.replace(steps=50, evaluate_every=50)
    here, there = (fit(SMALL, few, training, models=2, device=device, on_dead="allow") for device in ("cpu", "cuda"))
    assert differences(here.tensors, there.tensors) < 1e-3
    assert here.training["loss"] == pytest.approx(there.training["loss"], rel=1e-2)


def test_the_bar_shows_rate_loss_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    fit(LINE, TWO, PLAIN.replace(steps=600), device="cpu", on_dead="allow", progress=True)
    shown = capsys.readouterr().err
    assert "600/600" in shown and "steps/s" in shown and "loss=" in shown and "<" in shown
