"""The training loop: what a step trains on and draws, what a record tells, and runs that are stopped and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("safetensors")

from fractal_streams.recipes import loop as loops, timing
from fractal_streams.recipes.data import on_device
from fractal_streams.recipes.loop import Loop, LoopSettings, image_type, open_accelerator, seeded
from small_training import Seen, adam, noisy, pictures, plain, same, small_loop, weights
from torch import Tensor, nn

from fractal_streams import open_stream
from fractal_streams.errors import DeviceError, DivergedError, InvalidValueError
from fractal_streams.stream import Stream


def descent(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), 0.5)


def finished(loop: Loop) -> Loop:
    for _ in loop:
        pass
    return loop


def seen(loop: Loop) -> list[list[int]]:
    return loop.loss.indices  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def whole() -> Loop:
    """The noisy network, trained without a stop."""
    return finished(small_loop(noisy, ema=0.9))


def test_a_step_trains_on_the_samples_that_follow(whole: Loop) -> None:
    assert seen(whole) == [list(range(8 * step, 8 * step + 8)) for step in range(12)]


def test_the_loss_falls() -> None:
    first, *_, last = small_loop(num_steps=150, batch_size=32, record_every=25, warmup_steps=10)
    assert last.loss < 0.8 * first.loss and last.terms["accuracy"] > first.terms["accuracy"] + 0.1


def test_records_are_means_of_what_the_loss_told() -> None:
    told: list[float] = []

    def loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        value = model(batch.images).square().mean()
        told.append(value.item())
        return {"loss": value, "count": torch.tensor(float(len(told)))}

    records = list(small_loop(loss=loss, num_steps=10, record_every=4, checkpoint_every=3))
    ends = [3, 4, 6, 8, 9, 10]
    assert [record.step for record in records] == ends
    assert [record.samples for record in records] == [8 * end for end in ends]
    for begun, record in zip([0, *ends], records, strict=False):
        part = told[begun : record.step]
        assert record.loss == pytest.approx(sum(part) / len(part), rel=1e-12)
        assert record.terms == {"count": (begun + 1 + record.step) / 2}
        assert record.rate == LoopSettings(num_steps=10, warmup_steps=3).rate(record.step - 1)
        assert 0.0 <= record.waiting <= 1.0 and record.memory > 2**24


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The loop's clock, which only a test moves."""
    hand = SimpleNamespace(now=100.0)
    faked = SimpleNamespace(perf_counter=lambda: hand.now)
    monkeypatch.setattr(loops, "time", faked)
    monkeypatch.setattr(timing, "time", faked)
    yield hand


class Slow(Stream):
    """A stream that takes a quarter of a second for a batch."""

    def __init__(self, stream: Stream, clock: SimpleNamespace) -> None:
        self.stream, self.clock = stream, clock
        self.seed, self.split, self.device, self.num_classes = stream.seed, stream.split, stream.device, 10
        self.pixels, self.cost = stream.pixels, stream.cost

    def digest(self) -> str:
        return "slow"

    def generate(self, indices: Any) -> Any:
        self.clock.now += 0.25
        return self.stream.generate(indices)


def test_the_callers_time_is_left_out_and_waiting_is_the_streams(clock: SimpleNamespace, tmp_path: Path) -> None:
    class Working(Seen):
        def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            clock.now += 0.5
            return super().__call__(model, batch)

    loop = small_loop(loss=Working(), stream=Slow(pictures(), clock))
    for count, record in enumerate(loop, 1):
        assert record.images_per_second == pytest.approx(8 / 0.75) and record.waiting == pytest.approx(1 / 3)
        assert record.seconds == pytest.approx(3.0 * count)
        clock.now += 1000.0
        if record.step == 8:
            loop.save(tmp_path)
    again = small_loop(loss=Working(), stream=Slow(pictures(), clock))
    assert again.resume(tmp_path) and [record.seconds for record in again] == [pytest.approx(9.0)]


def test_a_window_of_many_steps_is_folded() -> None:
    window = timing.Window()
    for step in range(2 * timing.BLOCK + 7):
        window.add([{"loss": torch.tensor(float(step)), "odd": torch.tensor(step % 2, dtype=torch.float16)}] * 2)
    assert len(window.rows) == 7 and len(window.blocks) == 2
    accelerator = open_accelerator(LoopSettings(device="cpu"))
    count = 2 * timing.BLOCK + 7
    assert window.means(accelerator) == {"loss": (count - 1) / 2, "odd": pytest.approx((count // 2) / count)}
    assert window.losses(accelerator) == list(map(float, range(count)))


def test_looking_more_often_changes_no_bit(whole: Loop) -> None:
    loop = small_loop(noisy, ema=0.9, record_every=1, eval_once_every=1)
    for _ in loop:
        with loop.evaluating() as model:
            assert not model.training and not torch.is_grad_enabled()
            model(torch.randn(3, 3, 8, 8))
        assert torch.is_grad_enabled()
    assert same(weights(loop), weights(whole)) and same(loop.average.state_dict(), whole.average.state_dict())


def test_leaving_the_loop_and_going_on_changes_no_bit(whole: Loop) -> None:
    loop = small_loop(noisy, ema=0.9, record_every=1)
    for stop in (1, 5, 6):
        for record in loop:
            if record.step >= stop:
                break
        assert loop.step == stop
    assert same(weights(finished(loop)), weights(whole)) and seen(loop) == seen(whole)
    assert list(loop) == []


def test_workers_change_no_bit(whole: Loop) -> None:
    loop = finished(small_loop(noisy, ema=0.9, workers=2))
    assert seen(loop) == seen(whole) and same(weights(loop), weights(whole))


def optimizers() -> dict[str, Any]:
    extra = pytest.importorskip("pytorch_optimizer")
    return {
        "adamw": adam,
        "momentum": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True),
        "groups": lambda model: torch.optim.Adam(
            [{"params": [each], "lr": 0.01 * place} for place, each in enumerate(model.parameters())], amsgrad=True
        ),
        "muon": lambda model: extra.Muon(
            [
                {"params": [each for each in model.parameters() if each.ndim >= 2], "use_muon": True},
                {"params": [each for each in model.parameters() if each.ndim < 2], "use_muon": False},
            ]
        ),
        "soap": lambda model: extra.SOAP(model.parameters(), precondition_frequency=2),
        "shampoo": lambda model: extra.Shampoo(model.parameters(), preconditioning_compute_steps=2),
    }


@pytest.mark.parametrize("name", ["adamw", "momentum", "groups", "muon", "soap", "shampoo"])
def test_a_resumed_run_equals_the_whole_bit_for_bit(name: str, tmp_path: Path) -> None:
    optimizer = optimizers()[name]
    settings: dict[str, Any] = {"model": noisy, "optimizer": optimizer, "ema": 0.9, "clip": 1.0, "accumulation": 2}
    straight = finished(small_loop(**settings))
    loop = small_loop(**settings, record_every=1)
    assert not loop.resume(tmp_path)
    for record in loop:
        if record.step == 5:
            loop.save(tmp_path)
            break
    torch.manual_seed(99)
    later = small_loop(**settings, record_every=3)
    assert later.resume(tmp_path) and later.step == 5 and not same(weights(later), weights(straight))
    finished(later)
    assert seen(later) == seen(straight)[10:]
    assert same(weights(later), weights(straight))
    assert same(later.average.state_dict(), straight.average.state_dict())
    kept = [json.dumps(each.optimizer.state_dict(), default=Tensor.tolist) for each in (later, straight)]
    assert kept[0] == kept[1]


def test_parts_of_a_batch_give_its_gradient() -> None:
    one = finished(small_loop(plain, descent, num_steps=1, warmup_steps=0))
    parts = finished(small_loop(plain, descent, num_steps=1, warmup_steps=0, accumulation=4))
    assert [index for part in seen(parts) for index in part] == seen(one)[0] and len(seen(parts)) == 4
    start = weights(small_loop())
    for name, value in weights(one).items():
        assert (value - start[name]).abs().max() > 1e-4
        assert torch.allclose(weights(parts)[name], value, rtol=0, atol=1e-6)


def test_the_average_is_its_closed_form() -> None:
    loop = small_loop(ema=0.6, record_every=1, num_steps=9)
    expected: dict[str, Tensor] = {}
    shares = []
    for record in loop:
        before = record.step - 1
        share = min(0.6, (1 + before) / (10 + before)) if before else 0.0
        shares.append(share)
        for name, value in weights(loop).items():
            expected[name] = share * expected.get(name, value).double() + (1 - share) * value.double()
        with loop.evaluating() as model:
            for name, value in model.state_dict().items():
                assert torch.allclose(value.double(), expected[name], rtol=0, atol=1e-6)
    assert shares[1] == 2 / 11 and max(shares) < 0.6
    assert not same(dict(model.state_dict()), weights(loop))


def test_whole_numbers_are_not_averaged(whole: Loop) -> None:
    found = whole.average.state_dict()
    assert int(found["module.1.num_batches_tracked"]) == 12 == int(found["n_averaged"])
    assert not torch.equal(found["module.1.running_mean"], weights(whole)["1.running_mean"])


def test_without_an_average_the_weights_are_looked_at() -> None:
    loop = small_loop(ema=0.0)
    with loop.evaluating() as model:
        assert model is loop.network
    fresh = small_loop(ema=0.5)
    with fresh.evaluating() as model:
        assert model is fresh.network


def test_a_clipped_step_is_as_long_as_asked() -> None:
    start = weights(small_loop())
    lengths = []
    for clip in (1e-3, 2e-3):
        moved = weights(finished(small_loop(plain, descent, num_steps=1, warmup_steps=0, clip=clip)))
        lengths.append(torch.cat([(moved[name] - start[name]).flatten() for name in start]).norm().item())
    assert lengths == [pytest.approx(0.5e-3, rel=1e-2), pytest.approx(1e-3, rel=1e-2)]


def test_rates_rise_and_fall_as_told() -> None:
    rates = []
    loop = small_loop(record_every=1, num_steps=6, warmup_steps=2)
    for record in loop:
        (group,) = loop.optimizer.param_groups
        rates.append(group["lr"])
        assert group["lr"] == pytest.approx(1e-2 * record.rate) and group["initial_lr"] == 1e-2
    assert rates == [pytest.approx(1e-2 * share) for share in (0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466)]
    steady = LoopSettings(num_steps=6, warmup_steps=2, schedule="constant")
    assert [steady.rate(step) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_bfloat16_products_keep_the_weights_whole() -> None:
    scores: list[Any] = []

    def loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        found = model(batch.images.bfloat16())
        scores.append(found.dtype)
        return {"loss": nn.functional.cross_entropy(found, batch.labels)}

    loop = small_loop(loss=loss, precision="bf16", num_steps=4)
    assert image_type(loop.accelerator) == "bfloat16"
    (half,) = loop
    (full,) = small_loop(precision="no", num_steps=4)
    assert half.loss == pytest.approx(full.loss, rel=0.02) and half.loss != full.loss
    assert set(scores) == {torch.float32}
    assert {value.dtype for value in weights(loop).values()} == {torch.float32}
    assert image_type(small_loop().accelerator) == "float32"


def test_devices_that_are_refused() -> None:
    with pytest.raises(DeviceError, match="'no' or 'bf16'"):
        open_accelerator(LoopSettings(device="cpu", precision="fp16"))
    with pytest.raises(DeviceError, match="CUDA_VISIBLE_DEVICES"):
        open_accelerator(LoopSettings(device="cuda:1"))


def test_a_batch_that_parts_cannot_share_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="batch_size=8 can't be shared evenly by 1 ranks in 3 parts"):
        small_loop(accumulation=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(value: float, tmp_path: Path) -> None:
    class Broken(Seen):
        def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            told = super().__call__(model, batch)
            return {**told, "loss": told["loss"] * (value if len(self.indices) == 7 else 1.0)}

    loop = small_loop(loss=Broken())
    with pytest.raises(DivergedError, match=f"loss of step 7 is {value}: lower the .*warmup_steps=3.*clip=None"):
        for _ in loop:
            loop.save(tmp_path)
    again = small_loop()
    assert again.resume(tmp_path) and again.step == 4 and [each.step for each in again] == [8, 12]


def test_a_step_that_was_interrupted_is_neither_saved_nor_continued(tmp_path: Path) -> None:
    class Interrupted(Seen):
        def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            if len(self.indices) == 6:
                raise KeyboardInterrupt
            return super().__call__(model, batch)

    loop = small_loop(loss=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        for _ in loop:
            loop.save(tmp_path)
    with pytest.raises(InvalidValueError, match="step 7 was interrupted"):
        loop.save(tmp_path)
    with pytest.raises(InvalidValueError, match="step 7 was interrupted"):
        next(iter(loop))
    assert loop.resume(tmp_path) and loop.step == 4
    loop.loss = Seen()
    assert same(weights(finished(loop)), weights(finished(small_loop())))


@pytest.mark.parametrize(
    "told, said",
    [
        ({"accuracy": 0}, "got {'accuracy': '\\(\\)'}"),
        ({"loss": 8}, "got {'loss': '\\(8,\\)'}"),
        ({"loss": 0, "scale": None}, "'scale': 'NoneType'"),
        (None, "got NoneType"),
    ],
)
def test_a_loss_that_returns_something_else_is_refused(told: Any, said: str) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        score = model(batch.images).mean()
        forms = {None: None, 0: score, 8: score.expand(8)}
        return None if told is None else {name: forms[form] for name, form in told.items()}

    with pytest.raises(InvalidValueError, match=said):
        finished(small_loop(loss=loss))


def test_a_loss_that_changes_its_names_is_refused() -> None:
    def loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        value = model(batch.images).mean()
        return {"loss": value, f"term{int(batch.index[0]) // 16}": value}

    with pytest.raises(InvalidValueError, match="same names each time"):
        finished(small_loop(loss=loss))


@pytest.mark.parametrize("fields", ["pair", "dict", "batch"])
def test_batches_are_moved_whole(fields: Any) -> None:
    batch = pictures()[0:3].torch()
    forms = {
        "pair": (batch.images, batch.labels), "batch": batch,
        "dict": {"images": batch.images, "latents": dict(batch.latents), "note": "kept"},
    }  # fmt: skip
    moved = on_device(forms[fields], torch.device("meta"))
    found = {"pair": lambda: list(moved), "dict": lambda: [moved["images"], *moved["latents"].values()]}.get(
        fields, lambda: [moved.index, moved.images, moved.labels, *moved.latents.values()]
    )()
    assert {each.device.type for each in found} == {"meta"} and (fields != "dict" or moved["note"] == "kept")


def test_names_make_seeds() -> None:
    assert seeded("step", 0, 1, 0) == torch.initial_seed() != seeded("step", 1, 0, 0)
    drawn = torch.randn(3)
    torch.manual_seed(seeded("step", 0, 1, 0))
    assert not torch.equal(drawn, first := torch.randn(3)) and seeded("step", 0, 1, 0) == torch.initial_seed()
    assert torch.equal(torch.randn(3), first)
    assert len({seeded("step", 0, step, rank) for step in range(50) for rank in range(4)}) == 200


@pytest.mark.gpu
def test_half_precision_scales_its_gradient_and_resumes(tmp_path: Path) -> None:
    loop = small_loop(device="cuda", precision="fp16", record_every=1, stream=pictures())
    for record in loop:
        if record.step == 6:
            loop.save(tmp_path)
            break
    later = small_loop(device="cuda", precision="fp16", record_every=1, stream=pictures())
    assert later.resume(tmp_path)
    assert later.accelerator.scaler.state_dict() == loop.accelerator.scaler.state_dict()
    assert list(later)[-1].loss == pytest.approx(list(loop)[-1].loss, rel=1e-2)


@pytest.mark.gpu
def test_many_steps_of_a_gpu_are_read_from_its_own_clock(tmp_path: Path) -> None:
    steps = 2 * timing.BLOCK + 80
    stream = open_stream("fractal-10", height=8, width=8, dtype="bfloat16", device="cuda")
    loop = small_loop(device="cuda", num_steps=steps, record_every=steps, stream=stream, ema=0.9)
    (record,) = loop
    assert record.step == steps and 0.0 <= record.waiting <= 1.0 and record.images_per_second > 0
    assert 0 < record.memory < 2**30 and image_type(loop.accelerator) == "bfloat16"
    loop.save(tmp_path)
    later = small_loop(device="cuda", num_steps=steps, stream=stream, ema=0.9)
    assert later.resume(tmp_path) and same(weights(later), weights(loop)) and list(later) == []


def test_a_run_goes_on_in_the_precision_that_auto_came_to(tmp_path: Path) -> None:
    loop = small_loop(num_steps=4)
    list(loop)
    loop.save(tmp_path)
    assert small_loop(num_steps=4, precision="no").resume(tmp_path)
    with pytest.raises(InvalidValueError, match="precision='no', not 'bf16'"):
        small_loop(num_steps=4, precision="bf16").resume(tmp_path)
