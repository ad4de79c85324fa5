"""Stored pictures as a stream: purity, crops, splits, devices, and every adapter unchanged."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams import Mixture, open_stream
from fractal_streams.errors import DeviceError, IndexRangeError, InvalidValueError, PictureError, UnknownNameError
from fractal_streams.stored import Pack, StoredStream, open_stored, pack, packing
from fractal_streams.stored.crops import take, take_torch


def ragged(count: int = 9) -> Pack:
    """Pictures of several sizes, two frames to a group, three classes."""
    rng = np.random.default_rng(7)
    sizes = [(8 + n % 3, 11 - n % 4) for n in range(count)]
    pixels = rng.integers(0, 256, (sum(h * w for h, w in sizes), 3), np.uint8)
    return Pack(
        pixels=pixels, names=tuple(f"{n}.png" for n in range(count)), groups=tuple(f"g{n // 2}" for n in range(count)),
        labels=np.arange(count) % 3, heights=np.array([h for h, _ in sizes]), widths=np.array([w for _, w in sizes]),
        classes=("a", "b", "c"), digest="test",
    )  # fmt: skip


def stored(source=None, **changes) -> StoredStream:
    return StoredStream(source or ragged(), **{"height": 6, "width": 5, "flip": "both", "device": "cpu", **changes})


def shown(stream: StoredStream, item: int, top: float, left: float, flip: float) -> np.ndarray:
    """(3, H, W) by slices of the whole picture, and by numpy's own flips."""
    height, width = stream.size
    part = stream.pack.picture(int(item))[int(top) : int(top) + height, int(left) : int(left) + width]
    part = part[:, ::-1] if int(flip) & 1 else part
    return (part[::-1] if int(flip) & 2 else part).transpose(2, 0, 1)


FORMS = pytest.mark.parametrize(
    "dtype, last", [*itertools.product(["uint8", "float16", "bfloat16", "float32"], [False, True])]
)
ORDERS, CROPS = st.sampled_from(["shuffled", "sequential"]), st.sampled_from(["random", "centre"])
INDICES = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(
    INDICES,
    st.sampled_from(["random", "centre"]),
    st.sampled_from(["shuffled", "sequential"]),
    st.integers(0, 2**64 - 1),
)
def test_a_sample_is_a_crop_of_its_picture_and_depends_on_its_index_alone(indices, crop, order, seed) -> None:
    stream = stored(crop=crop, order=order, seed=seed)
    batch = stream.generate(indices)
    rows = zip(*(batch.latents[name] for name in ("item", "top", "left", "flip")), strict=True)
    for k, row in enumerate(rows):
        assert np.array_equal(batch.images[k], shown(stream, *row))
        assert batch.labels[k] == stream.pack.labels[int(row[0])] == stream.labels([indices[k]])[0]
        alone = stream[indices[k]]
        assert np.array_equal(alone.image, batch.images[k]) and alone.label == batch.labels[k]
    assert batch.index.tolist() == indices
    back = stored(crop=crop, order=order, seed=seed).generate(indices[::-1])
    assert np.array_equal(back.images[::-1], batch.images)


@settings(max_examples=30, deadline=None)
@given(INDICES, st.sampled_from(["none", "horizontal", "vertical", "both"]), st.integers(1, 400))
def test_the_compiled_placement_is_the_references(indices, flip, count) -> None:
    stream = stored(ragged(count), flip=flip, seed=count)
    index = np.array(indices)
    assert np.array_equal(stream.placement.place(index), stream.placement.reference(index))


def test_each_pass_shows_every_picture_once_in_another_order() -> None:
    stream = stored(seed=4)
    items = stream.generate(range(90)).latents["item"].reshape(10, 9)
    assert (np.sort(items, axis=1) == np.arange(9)).all()
    assert len({tuple(row) for row in items}) == 10
    plain = stored(order="sequential").generate(range(27)).latents["item"]
    assert plain.tolist() == list(range(9)) * 3


def test_crops_and_flips_are_even() -> None:
    stream = StoredStream(np.zeros((1, 9, 12, 3), np.uint8), height=6, width=8, flip="both", device="cpu")
    latents = stream.generate(range(20_000)).latents
    for name, values in (("top", 4), ("left", 5), ("flip", 4)):
        counts = np.bincount(latents[name].astype(int), minlength=values)
        assert len(counts) == values
        assert ((counts - 20_000 / values) ** 2).sum() / (20_000 / values) < values - 1 + 6 * math.sqrt(2 * values)
    pairs = np.bincount((latents["top"] * 5 + latents["left"]).astype(int), minlength=20)
    assert ((pairs - 1000) ** 2).sum() / 1000 < 19 + 6 * math.sqrt(40)


def test_a_setting_changes_no_other_draw() -> None:
    reference = stored().generate(range(50)).latents
    plain = stored(flip="none").generate(range(50)).latents
    assert not plain["flip"].any()
    for name in ("item", "top", "left"):
        assert np.array_equal(plain[name], reference[name])
    for crop, flip in itertools.product(("random", "centre"), ("horizontal", "vertical")):
        other = stored(crop=crop, flip=flip).generate(range(50)).latents
        assert np.array_equal(other["item"], reference["item"])
        assert np.array_equal(other["flip"], reference["flip"].astype(int) & (1 if flip == "horizontal" else 2))
    centre = stored(crop="centre").generate(range(9)).latents
    sizes = [(stored().pack.heights[int(item)], stored().pack.widths[int(item)]) for item in centre["item"]]
    assert [*zip(centre["top"], centre["left"], strict=True)] == [((h - 6) // 2, (w - 5) // 2) for h, w in sizes]


def test_another_resolution_of_the_same_pictures_shows_them_in_the_same_order(pets: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    orders = []
    for height in (10, 20):
        stream = StoredStream(pack(pets, tmp_path / str(height), height=height), height=height, device="cpu", seed=2)
        orders.append(stream.generate(range(40)).latents["item"])
    assert np.array_equal(*orders)


def test_digests_name_contents_settings_seed_and_split() -> None:
    settings_ = [
        {}, {"height": 5}, {"crop": "centre"}, {"flip": "none"}, {"order": "sequential"}, {"seed": 1}, {"test": 0.3},
        {"test": 0.3, "split": "test"}, {"validation": 0.2}, {"clip_length": 1},
        {"source": Pack.of(np.zeros((3, 8, 8, 3), np.uint8))},
    ]  # fmt: skip
    digests = [stored(**each).digest() for each in settings_]
    assert len(set(digests)) == len(digests) and stored().digest() == digests[0]
    assert stored(channels_last=True, dtype="float32").digest() == digests[0]


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 0.4), st.floats(0.1, 0.4), st.integers(0, 5))
def test_splits_are_disjoint_whole_groups_for_every_seed(validation: float, test: float, seed: int) -> None:
    source = ragged(200)
    items = {}
    for split in ("train", "validation", "test"):
        stream = stored(source, validation=validation, test=test, split=split, seed=seed)
        items[split] = set(stream.generate(range(stream.count)).latents["item"].astype(int).tolist())
        assert len(items[split]) == stream.count
        assert items[split] == set(stored(source, validation=validation, test=test, split=split).placement.first)
    assert sorted(itertools.chain(*items.values())) == list(range(200))
    groups = {split: {source.groups[item] for item in found} for split, found in items.items()}
    assert not groups["train"] & groups["test"] | groups["train"] & groups["validation"]
    assert not groups["test"] & groups["validation"]


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("last", [False, True])
def test_pixels_are_the_levels_by_the_formats_table(dtype: str, last: bool) -> None:
    scale = {} if dtype == "uint8" else {"mean": (0.4, 0.5, 0.6), "std": 0.25}
    levels = stored().generate(range(30)).images
    stream = stored(dtype=dtype, channels_last=last, **scale)
    got = stream.generate(range(30)).images
    bits = np.stack([stream.pixels.table()[c][levels[:, c]] for c in range(3)], axis=-1 if last else 1)
    assert got.shape == ((30, 6, 5, 3) if last else (30, 3, 6, 5)) and np.array_equal(got.view(bits.dtype), bits)


@FORMS
def test_torchs_crops_are_the_same_bytes(dtype: str, last: bool) -> None:
    torch = pytest.importorskip("torch")
    from fractal_streams.stored.shelf import torch_lookup

    stream = stored(dtype=dtype, channels_last=last)
    placed = stream.placement.place(np.arange(60))
    starts, widths = stream.pack.starts[placed[0]], stream.pack.widths[placed[0]]
    here = take(stream.pack.pixels, starts, widths, placed[1:], (6, 5), stream.pixels.table(), last, lambda: None)
    tensors = [torch.from_numpy(values) for values in (stream.pack.pixels, starts, widths, placed[1:])]
    there = take_torch(*tensors, (6, 5), None if dtype == "uint8" else torch_lookup(stream.pixels), last)
    assert there.is_contiguous() and there.numpy().tobytes() == here.tobytes()


@pytest.mark.parametrize("clips", [None, 2])
def test_the_way_over_a_gpu_by_torch_on_a_cpu(clips: int | None, monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    from fractal_streams.stored import shelf

    class Elsewhere(shelf.Shelf):
        def take(self, index, labels, placed, *rest):
            item = placed[0]
            table = np.stack([self.pack.starts[item], self.pack.widths[item], *placed])
            return self._on_gpu(index, labels, table, *rest)

    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(shelf, "CHUNK", 100)
    changes = {"dtype": "float16", "clip_length": clips, "on_error": "skip"}
    here, there = (stored(ragged() if clips is None else pairs(), **changes) for _ in range(2))
    there.shelf = Elsewhere(there.pack, "cpu")
    one, two = here.generate([2**63 - 1, *range(50)]), there.generate([2**63 - 1, *range(50)])
    assert all(isinstance(part, torch.Tensor) for part in (two.index, two.images, two.labels, *two.latents.values()))
    two = two.numpy()
    assert one.images.tobytes() == two.images.tobytes() and one.images.shape == two.images.shape
    assert np.array_equal(one.index, two.index) and np.array_equal(one.labels, two.labels)
    assert one.latents.keys() == two.latents.keys()
    assert all(np.array_equal(values, two.latents[name]) for name, values in one.latents.items())
    assert shelf.uploaded(there.pack, "cpu") is shelf.uploaded(there.pack, "cpu")

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(DeviceError, match="don't fit the free memory.*device='cpu'"):
        shelf.uploaded(ragged(), "cpu")


def test_many_crops_are_shared_between_threads(monkeypatch) -> None:
    from fractal_streams.stored import crops, shelf

    expected = stored().generate(range(300)).images
    monkeypatch.setattr(crops, "BLOCK", 1000)
    assert shelf.own_pool() is None or np.array_equal(stored().generate(range(300)).images, expected)
    with shelf.ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(shelf, "own_pool", lambda: pool)
        assert np.array_equal(stored().generate(range(300)).images, expected)


@pytest.mark.gpu
@FORMS
@pytest.mark.parametrize("clips", [None, 2])
def test_a_gpu_gives_the_same_bytes(dtype: str, last: bool, clips: int | None) -> None:
    changes = {"dtype": dtype, "channels_last": last, "clip_length": clips, "on_error": "skip"}
    source = ragged() if clips is None else pairs()
    here, there = stored(source, **changes), stored(source, device="cuda", **changes)
    index = [0, 5, 2**40, 2**63 - 1, *range(100)]
    one, two = here.generate(index), there.generate(index)
    assert two.images.is_cuda and two.images.is_contiguous() and two.labels.is_cuda and two.index.is_cuda
    two = two.numpy()
    assert one.images.tobytes() == two.images.tobytes() and one.images.shape == two.images.shape
    assert np.array_equal(one.labels, two.labels) and np.array_equal(one.index, two.index)
    for name, values in one.latents.items():
        assert two.latents[name].dtype == np.float32 and np.array_equal(values, two.latents[name])
    assert len(there.generate(range(0))) == 0 and there.digest() == here.digest()


@pytest.mark.gpu
def test_a_gpus_loader_and_mixture_read_it_ahead_on_their_own_cuda_stream() -> None:
    from fractal_streams.torch_data import StreamDataset

    there, here = stored(device="cuda"), stored()
    for source, expected in ((there, here), (Mixture([there, there]), Mixture([here, here]))):
        batches = itertools.islice(StreamDataset(source, batch_size=16), 6)
        for step, (images, labels) in enumerate(batches):
            right = expected.generate(range(16 * step, 16 * step + 16))
            assert np.array_equal(images.cpu().numpy(), right.images) and np.array_equal(
                labels.cpu().numpy(), right.labels
            )


def test_without_a_gpu_cuda_is_refused() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError):
            stored(device="cuda")


def pairs() -> Pack:
    """Four groups of 5, 2, 1 and 4 frames; a group's frames have one size."""
    sizes = [(8, 9)] * 5 + [(7, 8)] * 2 + [(6, 6)] + [(10, 7)] * 4
    pixels = np.random.default_rng(1).integers(0, 256, (sum(h * w for h, w in sizes), 3), np.uint8)
    groups = ("a",) * 5 + ("b",) * 2 + ("c",) + ("d",) * 4
    return Pack(
        pixels=pixels, names=tuple(f"{group}{n}" for n, group in enumerate(groups)), groups=groups,
        labels=np.array([0] * 5 + [1] * 7), heights=np.array([h for h, _ in sizes]),
        widths=np.array([w for _, w in sizes]), classes=("x", "y"), digest="pairs",
    )  # fmt: skip


def test_clips_are_consecutive_frames_of_a_group_under_one_crop() -> None:
    stream = stored(pairs(), clip_length=2, on_error="skip", seed=3)
    assert stream.short_groups == ("c",) == tuple(stream.describe()["stored"]["short_groups"])
    assert stream.placement.first.tolist() == [0, 2, 5, 8, 10]
    batch = stream.generate(range(40))
    assert batch.images.shape == (40, 2, 3, 6, 5) and batch.labels.shape == (40,)
    for k in range(40):
        rows = [[batch.latents[name][k, t] for name in ("item", "top", "left", "flip")] for t in range(2)]
        assert rows[1] == [rows[0][0] + 1, *rows[0][1:]]
        assert all(np.array_equal(batch.images[k, t], shown(stream, *rows[t])) for t in range(2))
        assert batch.labels[k] == stream.pack.labels[int(rows[0][0])]
    assert (np.sort(batch.latents["item"][:5, 0]) == [0, 2, 5, 8, 10]).all()
    every = stored(pairs(), clip_length=2, clip_stride=1, on_error="skip")
    assert every.placement.first.tolist() == [0, 1, 2, 3, 5, 8, 9, 10]
    assert stored(pairs(), clip_length=1).generate([0]).images.shape == (1, 1, 3, 6, 5)
    last = stored(pairs(), clip_length=2, on_error="skip", channels_last=True)
    assert last.generate([3, 4]).images.shape == (2, 2, 6, 5, 3)
    assert last.generate(range(0)).images.shape == (0, 2, 6, 5, 3)


def test_a_group_too_short_for_a_clip_is_named() -> None:
    with pytest.raises(PictureError, match="clip_length=4 is more than the frames kept of b and 1 other groups of 4"):
        stored(pairs(), clip_length=4)
    assert stored(pairs(), clip_length=4, on_error="skip").short_groups == ("b", "c")
    with pytest.raises(InvalidValueError, match="no clip of 6 frames"):
        stored(pairs(), clip_length=6, on_error="skip")
    with pytest.raises(InvalidValueError, match="differ in size"):
        stored(ragged(), clip_length=2)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"height": 9}, r"9 x 5 is larger than 3 of 9 pictures, such as 3.png of 8 x 8: ask for at most 8 x 8"),
        ({"height": 0}, "height"), ({"width": 1.5}, "width"), ({"crop": "center"}, "crop"), ({"flip": True}, "flip"),
        ({"order": "random"}, "order"), ({"seed": -1}, "seed"), ({"split": "dev"}, "split"),
        ({"validation": math.nan}, r"validation must be a share .*nan"), ({"test": 1.0}, "test"),
        ({"split": "test"}, r"split='test' has no picture .*test=0.1"), ({"clip_stride": 2}, "clip_length"),
        ({"clip_length": 0}, "clip_length"), ({"device": "gpu"}, "device"), ({"dtype": "int8"}, "dtype"),
        ({"mean": 0.5}, "float"), ({"on_error": "ignore"}, "on_error"),
    ],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        stored(**changes)


def test_indices_and_sources_out_of_range_are_refused(tmp_path: Path) -> None:
    for wrong in ([-1], [2**63], range(-2, 3)):
        with pytest.raises(IndexRangeError):
            stored().generate(wrong)
    with pytest.raises(InvalidValueError, match="holds no pack"):
        stored(tmp_path)
    with pytest.raises(InvalidValueError, match="source must be a Pack"):
        stored([1, 2])


def test_it_describes_itself() -> None:
    stream = stored(seed=9)
    told = json.loads(json.dumps(stream.describe()))
    assert told["digest"] == stream.digest() and told["seed"] == 9 and told["stored"]["classes"] == ["a", "b", "c"]
    assert [stream.class_title(label) for label in range(stream.num_classes)] == ["a", "b", "c"]
    assert told["stored"]["contents"] == "test" and told["stored"]["count"] == stream.count == 9


def test_it_is_carried_into_other_processes(pets: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    for source in (ragged(), pack(pets, tmp_path / "pack", height=12)):
        stream = stored(source)
        again = pickle.loads(pickle.dumps(stream))
        assert np.array_equal(again.generate([3, 99]).images, stream.generate([3, 99]).images)
    assert len(pickle.dumps(stream)) < 3000


def test_sources_that_agree_in_names_sizes_and_times_are_two(tmp_path: Path, picture) -> None:
    image = pytest.importorskip("PIL.Image")
    for number in (1, 2):
        path = tmp_path / str(number) / "set" / "0.bmp"
        path.parent.mkdir(parents=True)
        image.fromarray(picture(number, 8, 8)).save(path)
        os.utime(path, (0, 0))  # as they come out of an archive that is made to be the same every time
    asked = {"height": 8, "cache": tmp_path / "cache", "device": "cpu", "channels_last": True}
    shown = [open_stored(tmp_path / str(number) / "set", **asked) for number in (1, 2, 2)]
    assert [stream.pack.decoded for stream in shown] == [1, 1, 0]
    for stream, number in zip(shown, (1, 2, 2), strict=True):
        assert np.array_equal(stream[0].image, picture(number, 8, 8))


def test_opening_packs_once_into_the_cache(pets: Path, tmp_path: Path, fresh_cache: Path, monkeypatch) -> None:
    pytest.importorskip("PIL")
    stream = open_stored(pets, height=12, width=10, flip="horizontal", seed=5, device="cpu", label="none")
    assert stream.pack.decoded == 12 and stream.num_classes == 1 and stream.pack.folder.parent == fresh_cache / "stored"
    assert (stream.pack.heights.min(), stream.pack.widths.min()) == (12, 10)
    monkeypatch.setattr(packing, "decoded", None)
    again = open_stored(str(pets), height=12, width=10, flip="horizontal", seed=5, device="cpu", label="none")
    assert again.pack.decoded == 0 and again.digest() == stream.digest()
    assert np.array_equal(again.generate(range(20)).images, stream.generate(range(20)).images)
    monkeypatch.undo()
    roomy = open_stored(pets, height=12, pack_height=20, cache=tmp_path / "own", device="cpu")
    assert roomy.pack.heights.min() == 20 and roomy.pack.folder.parent == tmp_path / "own"
    assert open_stored(roomy.pack.folder, height=12, device="cpu").digest() == roomy.digest()
    with pytest.raises(InvalidValueError, match="reduction: this source is packed already"):
        open_stored(roomy.pack, height=12, reduction=2)
    with pytest.raises(UnknownNameError, match="did you mean 'flip'"):
        open_stored(pets, height=12, flips="both")


class TestAdapters:
    """Each takes a stored stream as any other."""

    def test_torchs_datasets(self) -> None:
        pytest.importorskip("torch")
        from torch.utils.data import DataLoader

        from fractal_streams.torch_data import IndexedStream, StreamDataset

        stream = stored()
        expected = stream.generate(range(24))
        loader = DataLoader(StreamDataset(stream, batch_size=4), batch_size=None, num_workers=2)
        got = list(itertools.islice(loader, 6))
        assert np.array_equal(np.concatenate([images.numpy() for images, _ in got]), expected.images)
        assert np.array_equal(np.concatenate([labels.numpy() for _, labels in got]), expected.labels)
        image, label = IndexedStream(stream, length=24)[17]
        assert np.array_equal(image.numpy(), expected.images[17]) and label == expected.labels[17]

    def test_a_loader_goes_on_where_it_stood(self) -> None:
        pytest.importorskip("torch")
        from fractal_streams.loader import Loader

        stream = stored()
        loader = Loader(stream, batch_size=5, start=10**12)
        next(iter(loader))
        images, _ = next(iter(Loader(stream, batch_size=3, start=loader.position)))
        assert np.array_equal(images.numpy(), stream.generate(range(10**12 + 5, 10**12 + 8)).images)

    def test_a_mixture_with_fractals(self) -> None:
        fractal = open_stream("fractal-10", device="cpu", height=8, width=8)
        own_part = stored(height=8, width=8)
        mixture = Mixture([own_part, fractal], weights=(1, 2))
        batch = mixture.generate(range(60))
        own = mixture.components(range(60)) == 0
        assert 8 < own.sum() < 35 and mixture.num_classes == 13
        index = np.flatnonzero(own)
        assert np.array_equal(batch.images[index], own_part.generate(index).images)
        assert np.isnan(batch.latents["top"][~own]).all() and not np.isnan(batch.latents["top"][own]).any()
        assert mixture.class_title(1) == "b of stream 0"

    def test_an_export_is_read_back(self, tmp_path: Path) -> None:
        export = pytest.importorskip("fractal_streams.integrations.export").export
        stream = stored(flip="none")
        export(stream, tmp_path / "out", format="webdataset", num=20, shards=2, progress=False)
        shards = sorted((tmp_path / "out").rglob("*.tar"))
        again = pack(shards, tmp_path / "again", height=5, reduction=1)
        expected = stream.generate(range(20))
        assert np.array_equal(again.pixels.reshape(20, 6, 5, 3), expected.images.transpose(0, 2, 3, 1))
        assert np.array_equal(again.labels, expected.labels)
