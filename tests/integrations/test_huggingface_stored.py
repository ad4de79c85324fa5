"""Streams as stored datasets, builders and names of `datasets`, and what is refused."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
from typing import Any, ClassVar

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")
torch = pytest.importorskip("torch")

from counted_stream import FORMATS, Counted, first, indices
from fractal_streams.integrations.huggingface import (
    FractalBuilder,
    generator,
    load_dataset,
    register,
    unregister,
)
from PIL import Image
from torch.utils.data import DataLoader
from warm import Warm

from fractal_streams import Shard, Stream, open_stream
from fractal_streams.errors import FractalStreamsError, IndexRangeError, InvalidValueError, UnknownNameError

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # Python 3.12, of fork
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls it
]


# ---- stored datasets, builders, names


def test_a_finite_dataset_is_stored_once(tmp_path: Any) -> None:
    stream = Counted()
    asked = {"streaming": False, "length": 2100, "cache_dir": str(tmp_path)}
    stored = load_dataset(stream, **asked)
    assert isinstance(stored, datasets.Dataset) and len(stored) == 2100 and indices(stored) == list(range(2100))
    stream.made = 0
    again = load_dataset(stream, **asked)
    assert stream.made == 0 and again._fingerprint == stored._fingerprint
    other = load_dataset(stream, **{**asked, "length": 2101})
    assert len(other) == 2101 and other._fingerprint != stored._fingerprint
    assert len(load_dataset(stream, **asked, start=2000)) == 100
    parts = load_dataset(
        "fractal-10", split="train[:3]+test[1:]", device="cpu", height=8, width=8, **{**asked, "length": 4}
    )
    assert parts["index"][:] == [0, 1, 2, 1, 2, 3]


def test_two_names_of_a_source_are_refused() -> None:
    register()
    try:
        for name in ("fractal-100", "defautl"):
            with pytest.raises(InvalidValueError, match=f"'fractal-10' and config_name={name!r}"):
                datasets.load_dataset("fractal/fractal-10", name, split="train", streaming=True)
        for name in (None, "default", "fractal-10"):
            assert datasets.load_dataset_builder("fractal/fractal-10", name, device="cpu").config.source == "fractal-10"
    finally:
        unregister()


def test_splits_may_be_those_of_datasets(tmp_path: Any) -> None:
    asked = {"device": "cpu", "height": 8, "width": 8}
    row = next(iter(load_dataset("fractal-10", split=datasets.Split.TEST, **asked)))
    assert row["label"] == open_stream("fractal-10", split="test", **asked).labels([0])[0]
    finite = {"streaming": False, "length": {"test": 3}, "cache_dir": str(tmp_path)}
    assert len(load_dataset("fractal-10", split=datasets.Split.TEST, **finite, **asked)) == 3


def test_a_spec_in_a_file_is_stored_too(tmp_path: Any) -> None:
    spec = open_stream("fractal-10", device="cpu", height=8, width=8).spec
    (tmp_path / "own.json").write_text(spec.to_json())
    finite = {"streaming": False, "length": 3, "cache_dir": str(tmp_path / "cache"), "device": "cpu"}
    stored = load_dataset(str(tmp_path / "own.json"), **finite)
    assert stored["label"][:] == load_dataset(spec, **finite)["label"][:] == open_stream(spec).labels(range(3)).tolist()


def test_a_builder(tmp_path: Any) -> None:
    asked = {"seed": 3, "device": "cpu", "height": 8, "width": 8, "cache_dir": str(tmp_path)}
    stream = open_stream("fractal-10", split="test", **{k: asked[k] for k in ("seed", "device", "height", "width")})
    streaming = FractalBuilder("fractal-10", **asked)
    assert isinstance(streaming, datasets.DatasetBuilder)
    for row in itertools.islice(streaming.as_streaming_dataset(split="test"), 2):
        assert np.array_equal(np.asarray(row["image"]).transpose(2, 0, 1), stream[row["index"]].image)
    assert set(streaming.as_streaming_dataset()) == {"train", "validation", "test"}
    finite = FractalBuilder("fractal-10", length={"train": 5, "validation": 4, "test": 3}, **asked)
    assert {name: split.num_examples for name, split in finite.info.splits.items()} == {
        "train": 5, "validation": 4, "test": 3,
    }  # fmt: skip
    finite.download_and_prepare()
    stored = finite.as_dataset()
    assert {name: len(part) for name, part in stored.items()} == {"train": 5, "validation": 4, "test": 3}
    assert np.array_equal(np.asarray(stored["test"][2]["image"]).transpose(2, 0, 1), stream[2].image)
    ids = [FractalBuilder(source, **{**asked, **more}).config_id for source, more in (
        ("fractal-10", {}), ("fractal-10", {"seed": 4}), ("fractal-10", {"height": 9}), ("fractal-100", {}),
        ("fractal-10", {"length": 5}), ("fractal-10", {"start": 1}))]  # fmt: skip
    assert len(set(ids)) == 6


NAMED = """
import datasets, json, os, sys
import fractal_streams.integrations.huggingface as ours
before = datasets.load.dataset_module_factory
ours.register(); ours.register()
asked = dict(seed=3, height=8, width=8, device="cpu")
streaming = datasets.load_dataset("fractal/fractal-10", split="train", streaming=True, **asked)
finite = datasets.load_dataset("fractal/fractal-10", split="test", length=2100, num_proc=2, **asked)
formula = datasets.load_dataset("fractal/julia", split="train", streaming=True, **asked)
named = datasets.load_dataset("fractal", "fractal-100", split="train", streaming=True, **asked)
state = streaming.state_dict()
said = [len(finite), finite["index"][2099], next(iter(streaming))["label"], next(iter(formula.skip(9)))["index"],
        named.features["label"].num_classes, state["examples_iterable"]["examples_iterable"]["done"],
        "fractal-10" in datasets.get_dataset_config_names("fractal")]
wrong = []
for name, more in (("fractal/fractal-1O", {}), ("fractal/fractal-10", {"hieght": 8}),
                   ("fractal/fractal-10", {"data_files": "x"}), ("fractal/fractal-10", {"streaming": False})):
    try:
        datasets.load_dataset(name, split="train", **{"streaming": True, **more})
    except Exception as error:
        wrong.append(f"{type(error).__name__}: {error}")
ours.unregister(); ours.unregister()
try:
    datasets.load_dataset("fractal/fractal-10", split="train", streaming=True)
except Exception as error:
    gone = type(error).__name__
print(json.dumps([said, wrong, datasets.load.dataset_module_factory is before, gone, os.listdir(".")]))
"""


def test_a_name_in_datasets_from_an_empty_folder(tmp_path: Any, warm: Warm) -> None:
    (tmp_path / "here").mkdir()
    kernels = {name: value for name, value in os.environ.items() if name == "XDG_CACHE_HOME"}
    own = {"HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    run = warm.run(["-c", NAMED], cwd=tmp_path / "here", env={**own, **kernels})
    assert run.returncode == 0, run.stderr
    said, wrong, undone, gone, left = json.loads(run.stdout)
    label = int(open_stream("fractal-10", seed=3, device="cpu", height=8, width=8).labels([0])[0])
    assert said == [2100, 2099, label, 9, 100, 0, True] and undone and left == []
    assert gone not in ("UnknownNameError", "InvalidValueError")
    assert "did you mean 'fractal-1" in wrong[0] and "did you mean 'height'" in wrong[1]
    assert "a stream has no files" in wrong[2] and "endless on disk" in wrong[3]


@pytest.mark.parametrize("copied", [True, False])
def test_registering_is_undone(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between other libraries that wrap the same lookup, with `functools.wraps` or without."""
    import datasets.load

    def wrapped(factory: Any) -> Any:
        def other(path: str, *arguments: Any, **settings: Any) -> Any:
            return factory(path, *arguments, **settings)

        return functools.wraps(factory)(other) if copied else other

    def found_by_others(path: str, **settings: Any) -> str:
        return f"theirs {path}"

    def known() -> bool:
        return datasets.load.dataset_module_factory("fractal/julia") != "theirs fractal/julia"

    below, plain = wrapped(found_by_others), datasets.inspect.dataset_module_factory
    monkeypatch.setattr(datasets.load, "dataset_module_factory", below)
    monkeypatch.setattr(datasets.inspect, "dataset_module_factory", plain)
    register()
    once = datasets.load.dataset_module_factory
    register()
    assert datasets.load.dataset_module_factory is once and known()
    unregister()
    unregister()
    assert datasets.load.dataset_module_factory is below and datasets.inspect.dataset_module_factory is plain
    register()
    above = datasets.load.dataset_module_factory = wrapped(datasets.load.dataset_module_factory)
    assert known()
    unregister()
    assert datasets.load.dataset_module_factory is above and not known()
    register()
    assert known()
    unregister()
    assert datasets.load.dataset_module_factory is above and not known()


def test_generators_for_datasets(tmp_path: Any) -> None:
    stream = Counted()
    streaming = datasets.IterableDataset.from_generator(**generator(stream, length=2500))
    assert streaming.num_shards == 3 and indices(streaming) == list(range(2500))
    assert sorted(indices(DataLoader(streaming, batch_size=None, num_workers=2))) == list(range(2500))
    batches = datasets.IterableDataset.from_generator(**generator(stream, format="tensor", batch_size=7, length=2500))
    assert indices(batches) == list(range(2500)) and next(iter(batches))["images"].dtype == torch.uint8
    endless = datasets.IterableDataset.from_generator(**generator(stream, start=5))
    assert first(endless, 3) == [5, 6, 7] and endless.num_shards == 1
    stored = datasets.Dataset.from_generator(**generator(stream, length=30), cache_dir=str(tmp_path))
    assert indices(stored) == list(range(30))


def test_caches_of_generators_follow_what_is_drawn_and_the_version(tmp_path: Any, monkeypatch: Any) -> None:
    from datasets.fingerprint import Hasher
    from fractal_streams.integrations import huggingface

    def key(**settings: Any) -> str:
        stream = open_stream("fractal-10", device="cpu", height=8, width=8, **settings)
        return str(Hasher.hash(generator(stream, length=30)["gen_kwargs"]))

    assert key() == key() and len({key(), key(seed=1), key(split="test")}) == 3
    before = key()
    monkeypatch.setattr(huggingface, "__version__", "9.9.9")
    assert key() != before


# ---- refusals


@pytest.mark.parametrize("asked, kind, named", [
    ({"source": "fractal-1O"}, UnknownNameError, "did you mean 'fractal-1"),
    ({"hieght": 8}, UnknownNameError, "did you mean 'height'"),
    ({"split": "trian"}, InvalidValueError, "split must be one of 'train'"),
    ({"split": "train[:5]"}, InvalidValueError, "split must be one of"),
    ({"format": "numpy"}, InvalidValueError, "format must be one of 'image', 'tensor'"),
    ({"length": 0}, InvalidValueError, "length"),
    ({"length": 2**63}, InvalidValueError, "length"),
    ({"length": {"train": 5, "tset": 4}}, InvalidValueError, "tset"),
    ({"length": {"test": 5}}, InvalidValueError, "does not say how many samples 'train' has"),
    ({"start": -1}, InvalidValueError, "start"),
    ({"start": 11, "length": 10}, InvalidValueError, "start must lie in 0 to length = 10, got 11"),
    ({"seed": -1}, InvalidValueError, "seed"),
    ({"batch_size": 4}, InvalidValueError, "format='tensor'"),
    ({"format": "tensor", "batch_size": 0}, InvalidValueError, "batch_size"),
    ({"dtype": "float32"}, InvalidValueError, "dtype='uint8'"),
    ({"shard": (0, 2)}, InvalidValueError, "Shard"),
    ({"num_shards": 0}, InvalidValueError, "num_shards"),
    ({"num_proc": 2}, InvalidValueError, "streaming=False"),
    ({"streaming": False}, InvalidValueError, "give length="),
    ({"streaming": False, "length": 5, "format": "tensor"}, InvalidValueError, "streaming=True"),
    ({"streaming": False, "length": 5, "shard": Shard(0, 2)}, InvalidValueError, r"dataset\.shard"),
    ({"source": Counted(), "seed": 3}, InvalidValueError, "an opened stream has its own"),
    ({"source": Counted(), "split": "test"}, InvalidValueError, "pass split='train'"),
    ({"source": Counted(split="test")}, InvalidValueError, "pass split='test'"),
    ({"source": 7}, InvalidValueError, "preset"),
])  # fmt: skip
def test_bad_input_is_named(asked: dict[str, Any], kind: type[Exception], named: str, tmp_path: Any) -> None:
    where = {"cache_dir": str(tmp_path)} if asked.get("streaming") is False else {}
    with pytest.raises(kind, match=named) as caught:
        load_dataset(
            **{
                "source": "fractal-10",
                **({} if isinstance(asked.get("source"), Stream) else {"device": "cpu"}),
                **where,
                **asked,
            }
        )
    assert isinstance(caught.value, FractalStreamsError)
    assert not any(path.is_file() and path.suffix != ".lock" for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["push_to_hub", "to_parquet", "to_csv", "to_json", "to_list", "to_dict", "to_pandas"])
def test_what_would_never_end_is_refused(name: str) -> None:
    place = [] if name in ("to_list", "to_dict", "to_pandas") else ["somewhere"]
    with pytest.raises(InvalidValueError, match=r"never end: dataset\.take\(n\)"):
        getattr(load_dataset(Counted()), name)(*place)
    with pytest.raises(InvalidValueError, match="format='image'"):
        getattr(load_dataset(Counted(), length=8, **FORMATS["tensor"]), name)(*place)
    with pytest.raises((InvalidValueError, IndexRangeError)):
        load_dataset(Counted()).skip(-1)


class Hub:
    """Takes what `datasets` uploads."""

    files: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, **settings: Any) -> None:
        pass

    def repo_info(self, repo_id: str, **settings: Any) -> Any:
        return type("Repository", (), {"id": repo_id, "sha": "0" * 40, "siblings": []})

    def preupload_lfs_files(self, repo_id: str, additions: list[Any], **settings: Any) -> None:
        import pyarrow.parquet as pq

        self.files += [(each.path_in_repo, pq.read_table(each.path_or_fileobj)) for each in additions]
        raise ConnectionRefusedError("this hub is a test")


def test_a_finite_part_goes_to_the_hub_as_one_file(monkeypatch: Any) -> None:
    import datasets.iterable_dataset as module

    monkeypatch.setattr(module, "HfApi", Hub)
    Hub.files.clear()
    with pytest.raises(ConnectionRefusedError):
        load_dataset(Counted()).take(300).push_to_hub("someone/fractals", token="none")
    [(path, table)] = Hub.files
    assert path == "data/train-00000-of-00001.parquet" and table["index"].to_pylist() == list(range(300))
    pixels = Image.open(io.BytesIO(table["image"][299].as_py()["bytes"]))
    assert indices([{"image": pixels, "label": table["label"][299].as_py(), "index": 299}]) == [299]


def test_a_part_becomes_parquet(tmp_path: Any) -> None:
    load_dataset(Counted(), start=10).take(300).to_parquet(str(tmp_path / "part.parquet"))
    stored = datasets.Dataset.from_parquet(str(tmp_path / "part.parquet"), cache_dir=str(tmp_path))
    assert indices(stored) == list(range(10, 310)) and stored.features["label"].names[3] == "class 3"


def test_an_unsupported_version_of_datasets_says_so(tmp_path: Any, warm: Warm) -> None:
    program = (
        "import datasets.iterable_dataset as module\n"
        "del module._BaseExamplesIterable.shard_data_sources\n"
        "import fractal_streams.integrations.huggingface\n"
    )
    run = warm.run(["-c", program], cwd=tmp_path)
    assert "MissingExtraError: datasets " in run.stderr and "has no shard_data_sources" in run.stderr
