"""Trainers as they are: each sees every index once, falls in loss, and goes on exactly where its checkpoint stood.

Each test runs one function of this file in a process of its own, which may fork into the ranks of a gloo world.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

TESTS = Path(__file__).parents[1]


def result_of(warm: Warm, function: Callable[[], Any], *packages: str) -> Any:
    """What a function of this file returns in a process of its own."""
    for package in ("torch", *packages):
        pytest.importorskip(package)
    environment = {**os.environ, "PYTHONPATH": str(TESTS), **QUIET}
    run = warm.run([__file__, function.__name__], cwd=TESTS, env=environment, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1])


QUIET = {
    "ACCELERATE_USE_CPU": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore",
}  # fmt: skip


def in_world(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What each rank of a gloo world on this machine returns, as torchrun would start them."""
    import torch.multiprocessing as processes

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        processes.start_processes(_rank, (world, port, folder, work, args), nprocs=world, start_method="fork")
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(world)]


def _rank(rank: int, world: int, port: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    names = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port,
        "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": 1,
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    torch.distributed.init_process_group("gloo")
    (Path(folder) / str(rank)).write_text(json.dumps(work(*args)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def indices(batches: Any) -> list[int]:
    from digits import indices_of

    return [index for images, _ in batches for index in indices_of(images)]


def joined(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


# torch.distributed


def gloo() -> Any:
    """Samples and states of a world of 2, of one of 3 that goes on, and of a single process that ends the epoch."""
    from digits import Digits

    from fractal_streams import StreamDataset
    from fractal_streams.loader import Loader

    def part(state: Any, batch: int, workers: int, stop: int | None) -> Any:
        loader = Loader(Digits(), batch, length=200, workers=workers)
        if state:
            loader.load_state_dict(state)
        got = indices(islice(loader, stop))
        plain = indices(
            islice(StreamDataset(Digits(), batch, length=200, start=state["position"] if state else 0), stop)
        )
        return got, loader.state_dict(), plain

    first = in_world(2, part, None, 6, 2, 4)
    second = in_world(3, part, first[1][1], 5, 1, 5)
    last = [part(second[2][1], 7, 0, None)]
    return first, second, last


def test_real_worlds_of_two_and_three_share_every_index_once(warm: Warm) -> None:
    begin = 0
    for ranks, end in zip(result_of(warm, gloo), (48, 123, 200), strict=True):
        for which in (0, 2):
            assert sorted(joined(rank[which] for rank in ranks)) == list(range(begin, end))
        assert all(rank[1]["position"] == end for rank in ranks)
        begin = end


# Accelerate


def prepared() -> Any:
    """What comes of accelerator.prepare(DataLoader(StreamDataset)) in a world of 2 and one of 1."""
    import accelerate  # noqa: F401  before the ranks are forked, as all that they would import
    import datasets  # noqa: F401

    def ways(workers: tuple[tuple[int, str | None], ...]) -> Any:
        import gc

        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DataLoaderConfiguration
        from digits import Digits
        from torch.utils.data import DataLoader

        from fractal_streams import Shard, StreamDataset
        from fractal_streams.errors import ShardingError

        gc.disable()  # where an error holds a torch iterator, the collector would wait 5 s for each of its workers
        found = []
        for dispatch in (True, False, None):
            AcceleratorState._reset_state()
            accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
            for batch in (4, None):
                for number, method in workers:
                    for shard in (None, Shard(0, 1)):
                        if method == "spawn" and (shard or dispatch):  # None dispatches as well
                            continue
                        dataset = StreamDataset(Digits(), batch, length=48, shard=shard)
                        size = None if batch else 4
                        loader = DataLoader(dataset, size, num_workers=number, multiprocessing_context=method)
                        try:
                            got: Any = indices(accelerator.prepare(loader))
                        except (ShardingError, TypeError) as error:
                            got = f"{type(error).__name__}: {error}"
                        found.append([dispatch, batch, number, method, shard is None, got])
        return found

    return in_world(2, ways, ((0, None), (2, "fork"), (2, "spawn"))), in_world(1, ways, ((0, None), (2, "fork")))


def test_preparing_a_loader_that_shards_itself_is_refused(warm: Warm) -> None:
    two, one = result_of(warm, prepared, "accelerate")
    assert len(two[0]) == 28 and len(one[0]) == 24
    for case, other in zip(*two, strict=True):
        dispatch, batch, *_, own, got = case
        if own:
            assert got.startswith("ShardingError: rank 0 of 2") and other[-1].startswith("ShardingError: rank 1 of 2")
            assert "Don't give it to accelerator.prepare" in got and "Loader" in got and "shard=Shard(0, 1)" in got
        elif dispatch is False and batch:
            assert got.startswith("TypeError")  # accelerate's own: without dispatching it needs a batch size
        else:
            assert sorted(got + other[-1]) == list(range(48)), case
    # In a world of 1 nothing is lost; worker processes keep the order of ready batches, of samples the set.
    for _, batch, workers, *_, got in one[0]:
        assert (got if batch or not workers else sorted(got)) == list(range(48))


def accelerated() -> Any:
    """A Loader given to prepare, checkpointed by save_state in a world of 2 and resumed in one of 1."""
    import accelerate  # noqa: F401  before the ranks are forked

    def train(folder: str, stop: int | None, resume: bool) -> Any:
        import torch
        from accelerate import Accelerator
        from digits import Digits

        from fractal_streams.loader import Loader

        accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(24, 10)
        loader = Loader(Digits(), 4, length=64, workers=1)
        same, model, optimizer = accelerator.prepare(loader, model, torch.optim.SGD(model.parameters(), 0.01))
        assert same is loader
        accelerator.register_for_checkpointing(loader)
        if resume:
            accelerator.load_state(folder)
        got = []
        for images, labels in islice(loader, stop):
            accelerator.backward(torch.nn.functional.cross_entropy(model(images.flatten(1) / 255), labels))
            optimizer.step()
            got += indices([(images, labels)])
        if stop:
            accelerator.save_state(folder)
        return got

    with tempfile.TemporaryDirectory() as folder:
        return in_world(2, train, folder, 5, False), in_world(1, train, folder, None, True)


def test_accelerate_with_a_loader_sees_every_index_once_over_two_ranks_and_a_resume_on_one(warm: Warm) -> None:
    two, one = result_of(warm, accelerated, "accelerate")
    assert sorted(two[0] + two[1]) == list(range(40)) and set(two[0]).isdisjoint(two[1])
    assert one[0] == list(range(40, 64))


# Lightning


def lightning() -> Any:
    """Indices that Lightning's Trainer trained on before a checkpoint, behind it, and after it was resumed from."""
    import logging
    from multiprocessing import active_children

    import torch
    from digits import Digits
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from fractal_streams import open_stream
    from fractal_streams.loader import Loader

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Tiny(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(24, 10), []

        def training_step(self, batch: Any, step: int) -> Any:
            self.seen.append(indices([batch]))
            return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1) / 255), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    def fit(folder: str, resume: str | None, settings: dict[str, Any], limits: dict[str, Any]) -> Any:
        model = Tiny()
        saves = ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_top_k=-1)
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[saves],
            **{"devices": 1, **limits},
        )  # fmt: skip
        trainer.fit(model, Loader(Digits(), **settings), ckpt_path=resume)
        assert not active_children(), "the trainer leaves no process to be waited for"
        return model.seen

    found = {}
    for name, settings, limits in (
        ("endless", {"batch_size": 4}, {"max_steps": 12}),
        ("workers", {"batch_size": 4, "workers": 2}, {"max_steps": 12}),
        ("limited", {"batch_size": 4}, {"max_steps": 12, "limit_train_batches": 7}),
        ("epochs", {"batch_size": 4, "length": 30}, {"max_epochs": 3}),
        ("uneven", {"batch_size": 4, "length": 30, "workers": 1}, {"max_epochs": 3}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            whole = fit(folder, None, settings, limits)
            again = fit(folder, f"{folder}/step=5.ckpt", {**settings, "workers": 0}, limits)
            later = fit(folder, f"{folder}/step=10.ckpt", settings, limits)
        found[name] = [whole, again, later]

    class Learner(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []
            self.network = torch.nn.Sequential(
                torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
                torch.nn.Conv2d(16, 32, 3, 2, 1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
                torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 4),
            )  # fmt: skip

        def training_step(self, batch: Any, step: int) -> Any:
            loss = torch.nn.functional.cross_entropy(self.network(batch[0] / 255), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 0.01)

    torch.manual_seed(0)
    learner, stream = Learner(), open_stream("fractal-10", device="cpu", height=16, width=16, num_classes=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_checkpointing=False, **quiet)
    trainer.fit(learner, Loader(stream, 64, length=60 * 64))
    with tempfile.TemporaryDirectory() as folder:
        both = {"devices": 2, "strategy": "ddp", "max_steps": 7}
        first = in_world(2, fit, folder, None, {"batch_size": 4}, both)
        alone = fit(folder, f"{folder}/step=5.ckpt", {"batch_size": 8}, {"max_steps": 7})
    return found, first, alone, learner.losses


def test_lightning_learns_and_goes_on_with_the_very_next_sample(warm: Warm) -> None:
    found, ranks, alone, losses = result_of(warm, lightning, "lightning")
    assert len(losses) == 60 and sum(losses[-10:]) < 0.75 * sum(losses[:10])
    for name, (whole, again, later) in found.items():
        epochs = name in ("epochs", "uneven")
        assert len(whole) == (24 if epochs else 12), name
        flat = [joined(steps) for steps in (whole, whole[5:], whole[10:])]
        assert flat[0] == (list(range(30)) * 3 if epochs else list(range(48))), name
        assert joined(again) == flat[1], name
        assert joined(later) == flat[2], name
    assert [sorted(joined(rank[step] for rank in ranks)) for step in range(7)] == [
        list(range(8 * step, 8 * step + 8)) for step in range(7)
    ]
    assert joined(alone) == list(range(40, 56))


# transformers


def huggingface() -> Any:
    """Runs of transformers' Trainer: a ready-batched dataset, a Loader, and both in a world of 2."""
    import torch
    from transformers import Trainer, TrainingArguments

    from fractal_streams import Shard, StreamDataset, open_stream
    from fractal_streams.errors import ShardingError
    from fractal_streams.loader import Loader

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(3 * 8 * 8, 10), []

        def forward(self, images: Any, labels: Any, index: Any, latents: Any = None) -> Any:
            self.seen += index.tolist()
            scores = self.layer(images.flatten(1) / 255)
            return {"loss": torch.nn.functional.cross_entropy(scores, labels), "logits": scores}

    def only(samples: list[Any]) -> Any:
        return {name: samples[0][name] for name in ("index", "images", "labels")}

    def train(way: str, steps: int, batch: int, done: int = 0, folder: str | None = None) -> Any:
        torch.manual_seed(0)
        stream = open_stream("fractal-10", device="cpu", height=8, width=8, num_classes=2)
        model = Tiny()

        class WithLoader(Trainer):
            def get_train_dataloader(self) -> Any:
                return Loader(stream, batch, fields="dict", start=done * batch)

        with tempfile.TemporaryDirectory() as own:
            arguments = TrainingArguments(
                folder or own, max_steps=steps, per_device_train_batch_size=1, learning_rate=0.01, logging_steps=10,
                report_to=[], save_strategy="steps" if folder else "no", save_steps=3, disable_tqdm=True, use_cpu=True,
                remove_unused_columns=False, dataloader_pin_memory=False, ignore_data_skip=True,
            )  # fmt: skip
            dataset = StreamDataset(stream, batch, fields="dict", shard=Shard(0, 1) if way == "shared" else None)
            kind = WithLoader if way == "loader" else Trainer
            trainer = kind(model, arguments, train_dataset=dataset, data_collator=only)
            try:
                trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-{done}" if done else None)
            except ShardingError as error:
                return str(error), []
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, model.seen

    alone = {way: train(way, 60, 32) for way in ("plain", "loader")}
    with tempfile.TemporaryDirectory() as folder:
        resumed = [train("loader", 5, 4, done, folder)[1] for done in (0, 3)]
    return alone, resumed, {way: in_world(2, train, way, 4, 8) for way in ("plain", "shared", "loader")}


def test_transformers_trainer_learns_and_never_loses_samples_in_silence(warm: Warm) -> None:
    alone, resumed, two = result_of(warm, huggingface, "transformers", "accelerate")
    for losses, seen in alone.values():
        assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
        assert seen[: 60 * 32] == list(range(60 * 32))
    assert resumed == [list(range(20)), list(range(12, 20))]
    for message, _ in two["plain"]:
        assert "transformers.Trainer" in message and "shard=Shard(0, 1)" in message
    for way in ("shared", "loader"):
        assert sorted(two[way][0][1] + two[way][1][1]) == list(range(4 * 8 * 2)), way
        assert len(two[way][0][1]) == 4 * 8


# torchdata


def stateful() -> Any:
    """The batch behind 10 million samples, from a loader of torchdata that was resumed there, with 0 and 2 workers."""
    from digits import Digits
    from torchdata.stateful_dataloader import StatefulDataLoader

    from fractal_streams import StreamDataset

    found = []
    for workers in (0, 2):
        loader = StatefulDataLoader(StreamDataset(Digits(), 50, start=9_999_900), None, num_workers=workers)
        walk = iter(loader)
        next(walk), next(walk)
        state = loader.state_dict()
        stream = Digits()
        resumed = StatefulDataLoader(StreamDataset(stream, 50), None, num_workers=workers)
        resumed.load_state_dict(state)
        batch = next(iter(resumed))
        found.append(([len(asked) for asked in stream.calls], indices([batch])))
    return found


def test_torchdata_resumes_behind_ten_million_samples_at_once(warm: Warm) -> None:
    plain, forked = result_of(warm, stateful, "torchdata")
    assert plain[1] == forked[1] == list(range(10_000_000, 10_000_050))
    assert plain[0] == [50]  # and nothing before it


if __name__ == "__main__":
    print("\n" + json.dumps(globals()[sys.argv[1]]()))
