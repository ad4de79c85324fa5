"""Finite sets as streams: each epoch has every sample once, in an order of its own; a sample follows from its index."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams import FiniteStream, Mixture, open_stream
from fractal_streams.batch import Batch
from fractal_streams.errors import IndexRangeError, InvalidValueError
from fractal_streams.finite import MAX_SAMPLES
from fractal_streams.render.raster import PixelFormat
from fractal_streams.rng import checked_indices
from fractal_streams.stream import Stream

SAMPLES, EPOCHS = st.integers(1, 70), st.integers(0, 2**50)
SEEDS = st.integers(0, 2**64 - 1)
LAWS = settings(max_examples=40, deadline=None)


class Numbered(Stream):
    """Sample i has i as its label, its latent, and the first bytes of its picture."""

    def __init__(self, name: str = "numbered") -> None:
        self.seed, self.split, self.device, self.num_classes = 4, "test", "cpu", 2**40
        self.pixels, self.cost, self.name = PixelFormat(), 3, name

    def generate(self, indices: Any) -> Batch:
        index = checked_indices(indices)
        images = np.zeros((len(index), 3, 2, 2), np.uint8)
        images.reshape(len(index), 12)[:, :8] = index.astype("<i8").view(np.uint8).reshape(-1, 8)
        return Batch(index, images, index.copy(), {"number": index.astype(np.float32)})

    def class_title(self, label: int) -> str:
        return f"the {label}th"

    def digest(self) -> str:
        return self.name


def written(images: Any) -> list[int]:
    """The numbers in the pictures."""
    rows = np.ascontiguousarray(np.asarray(images).reshape(len(images), 12)[:, :8])
    return [int(number) for number in rows.view("<i8").ravel()]


@given(SAMPLES, EPOCHS, SEEDS, st.booleans())
@LAWS
def test_an_epoch_has_each_sample_once(samples: int, epoch: int, seed: int, shuffled: bool) -> None:
    finite = FiniteStream(Numbered(), samples, shuffled=shuffled, seed=seed)
    chosen = finite.chosen(range(samples * epoch, samples * (epoch + 1))).tolist()
    assert sorted(chosen) == list(range(samples)) and chosen == finite.order(epoch).tolist()
    assert shuffled or chosen == list(range(samples))


@given(SAMPLES, SEEDS, st.lists(st.integers(0, 2**63 - 1), max_size=9), st.booleans())
@LAWS
def test_a_sample_is_a_function_of_its_index_alone(samples: int, seed: int, indices: list[int], shuffled: bool) -> None:
    finite = FiniteStream(Numbered(), samples, shuffled=shuffled, seed=seed)
    batch, alone = finite.generate(indices), [finite.generate([index]) for index in indices]
    chosen = [int(finite.order(index // samples)[index % samples]) for index in indices]
    assert batch.index.tolist() == indices
    assert chosen == written(batch.images) == batch.labels.tolist() == finite.labels(indices).tolist()
    assert chosen == [int(each.labels[0]) for each in alone] and finite.chosen(indices).tolist() == chosen
    assert batch.latents["number"].tolist() == [float(np.float32(index)) for index in chosen]


@given(st.integers(20, 70), st.integers(0, 2**50), SEEDS, SEEDS)
@LAWS
def test_orders_differ_by_epoch_and_seed(samples: int, epoch: int, seed: int, other: int) -> None:
    finite = FiniteStream(Numbered(), samples, seed=seed)
    orders = [finite.order(epoch).tolist(), finite.order(epoch + 1).tolist()]
    if seed != other:
        orders.append(FiniteStream(Numbered(), samples, seed=other).order(epoch).tolist())
    assert len(set(map(tuple, orders))) == len(orders)


def test_each_place_of_an_epoch_has_each_sample_as_often() -> None:
    """Chi-square of 5 samples in 5 places over 4,000 epochs; 1 in 1e6 would have more."""
    finite = FiniteStream(Numbered(), 5)
    chosen = finite.chosen(range(20_000)).reshape(4000, 5)
    counts = np.stack([np.bincount(chosen[:, place], minlength=5) for place in range(5)])
    assert ((counts - 800) ** 2 / 800).sum() < 60.0
    orders, seen = np.unique(chosen, axis=0, return_counts=True)
    assert len(orders) == 120 and ((seen - 4000 / 120) ** 2 / (4000 / 120)).sum() < 210.0


def test_a_large_set_is_a_permutation_and_orders_stay_as_they_were() -> None:
    finite = FiniteStream(Numbered(), 100_000)
    order = finite.order(3)
    assert np.array_equal(np.sort(order), np.arange(100_000)) and not order.flags.writeable
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert FiniteStream(Numbered(), 8).chosen(range(16)).tolist() == PINNED


PINNED = [3, 1, 7, 6, 0, 2, 5, 4, 0, 6, 3, 2, 1, 5, 4, 7]


@pytest.mark.parametrize("shuffled", [True, False])
def test_an_order_that_is_kept_can_t_be_written_to(shuffled: bool) -> None:
    with pytest.raises(ValueError, match="read-only"):
        FiniteStream(Numbered(), 5, shuffled=shuffled).order(0)[0] = 3


def test_digests_name_what_differs() -> None:
    forms = [
        FiniteStream(Numbered(), 5), FiniteStream(Numbered(), 6), FiniteStream(Numbered(), 5, seed=1),
        FiniteStream(Numbered(), 5, shuffled=False), FiniteStream(Numbered("other"), 5),
        FiniteStream(FiniteStream(Numbered(), 5), 5), Numbered(),
    ]  # fmt: skip
    assert len({each.digest() for each in forms}) == len(forms)
    assert FiniteStream(Numbered(), 5).digest() == forms[0].digest()
    ordered = [FiniteStream(Numbered(), 5, shuffled=False, seed=seed).digest() for seed in (0, 1)]
    assert ordered[0] == ordered[1]
    told = forms[2].describe()
    assert told["digest"] == forms[2].digest()
    own = {"samples": 5, "shuffled": True, "order_seed": 1, "stream": Numbered().describe()}
    assert told["finite"] == own


def test_it_is_as_its_stream_otherwise() -> None:
    finite = FiniteStream(Numbered(), 5)
    told = (finite.seed, finite.split, finite.device, finite.num_classes, finite.cost, finite.class_title(7))
    assert told == (4, "test", "cpu", 2**40, 3, "the 7th")
    again = pickle.loads(pickle.dumps(finite))
    assert again.digest() == finite.digest() and again.chosen(range(9)).tolist() == finite.chosen(range(9)).tolist()


def test_a_finite_mixture_inside_a_mixture_is_drawn_by_other_words() -> None:
    parts = [open_stream("fractal-10", seed=seed, height=8, width=8, device="cpu") for seed in (0, 1)]
    inner = Mixture(parts, labels="component")
    whole = FiniteStream(inner, 2**40, shuffled=False)
    outer = Mixture([whole, whole], labels="component")
    assert outer.mixture_depth == 2
    drawn = outer.components(range(4000)) * 2 + inner.components(whole.chosen(range(4000)))
    assert np.bincount(drawn, minlength=4).min() > 880


def test_real_samples_are_the_streams_to_the_bit() -> None:
    stream = open_stream("fractal-10", height=8, width=8, device="cpu", dtype="float32", mean=0.5, std=0.25)
    finite = FiniteStream(stream, 7, seed=3)
    batch, chosen = finite.generate(range(5, 19)), finite.chosen(range(5, 19))
    expected = stream.generate(chosen)
    assert np.array_equal(batch.images, expected.images) and batch.images.dtype == np.float32
    assert np.array_equal(batch.labels, expected.labels) and batch.index.tolist() == list(range(5, 19))
    assert set(batch.latents) == set(expected.latents)
    assert finite[9].label == int(stream[int(finite.chosen([9])[0])].label)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"samples": 0}, "samples must"), ({"samples": MAX_SAMPLES + 1}, "samples must"), ({"samples": 2.5}, "samples"),
        ({"seed": -1}, "seed must"), ({"seed": 2**64}, "seed must"), ({"shuffled": 1}, "shuffled must be True"),
        ({"stream": [1, 2]}, "stream must be a Stream, got list"),
    ],
)  # fmt: skip
def test_other_values_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        FiniteStream(**{"stream": Numbered(), "samples": 5, **values})


def test_indices_that_are_none_are_refused() -> None:
    finite = FiniteStream(Numbered(), 5)
    for wrong in ([-1], [2**63]):
        with pytest.raises(IndexRangeError):
            finite.generate(wrong)
    assert FiniteStream(Numbered(), 2**62, shuffled=False).chosen([2**62 + 3]).tolist() == [3]
    assert len(finite.generate([])) == 0


class TestInLoaders:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_every_epoch_of_a_loader_has_the_whole_set(self, workers: int) -> None:
        torch_data = pytest.importorskip("fractal_streams.loader")
        finite = FiniteStream(Numbered(), 12)
        loader, found = torch_data.Loader(finite, batch_size=5, workers=workers), []
        for images, labels in loader:
            assert written(images) == labels.tolist()
            found += labels.tolist()
            if len(found) >= 60:
                break
        assert [sorted(found[12 * epoch : 12 * epoch + 12]) for epoch in range(5)] == [list(range(12))] * 5
        assert found == finite.chosen(range(60)).tolist()

    def test_a_loader_resumes_inside_an_epoch_on_other_ranks(self) -> None:
        torch_data = pytest.importorskip("fractal_streams.loader")
        shards = pytest.importorskip("fractal_streams.shard")
        finite = FiniteStream(Numbered(), 12)
        loader = torch_data.Loader(finite, batch_size=4)
        batches = iter(loader)
        found = [label for _ in range(4) for label in next(batches)[1].tolist()]
        state = loader.state_dict()
        for rank in range(2):
            later = torch_data.Loader(FiniteStream(Numbered(), 12), batch_size=4, shard=shards.Shard(rank, 2))
            later.load_state_dict(state)
            found += next(iter(later))[1].tolist()
        assert found == finite.chosen(range(24)).tolist()
        other = torch_data.Loader(FiniteStream(Numbered(), 13), batch_size=4)
        with pytest.raises(InvalidValueError, match="stream"):
            other.load_state_dict(state)

    def test_a_map_style_dataset_of_it_is_the_set(self) -> None:
        torch_data = pytest.importorskip("fractal_streams.torch_data")
        finite = FiniteStream(Numbered(), 6, shuffled=False)
        dataset = torch_data.IndexedStream(finite, length=12)
        assert [dataset[place][1] for place in range(12)] == [0, 1, 2, 3, 4, 5] * 2
