"""Kaleidoscopes through every loader: each sample once, in order, with exact resume, latents and all."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from torch.utils.data import DataLoader

from fractal_streams import IndexedStream, Loader, Mixture, Shard, StreamDataset, open_stream
from fractal_streams.errors import AddressError, InvalidValueError
from fractal_streams.kaleidoscope.fitted import Kaleidoscope, WeightFileError
from fractal_streams.kaleidoscope.streams import KaleidoscopeSpec, KaleidoscopeStream
from fractal_streams.presets import PRESETS

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # Python 3.12, of fork
SPECS = {
    "early": KaleidoscopeSpec(mode="early", iterate=1, last_iterate=3, start="pink"),
    "pairs": KaleidoscopeSpec(mode="pairs", stratified=True, label="attractor"),
    "clips": KaleidoscopeSpec(mode="clips", frames=3, stride=2),
}
COUNT = 24
per_stream = pytest.mark.parametrize("name", SPECS)
stills = pytest.mark.parametrize("name", ["early", "pairs"])


@pytest.fixture(scope="module")
def streams(pictures: Kaleidoscope, tmp_path_factory: pytest.TempPathFactory) -> dict[str, KaleidoscopeStream]:
    """A stream of each kind, of a file."""
    path = pictures.save(tmp_path_factory.mktemp("fitted") / "pictures.safetensors")
    return {
        name: KaleidoscopeStream(spec.replace(model=str(path)), device="cpu", seed=1) for name, spec in SPECS.items()
    }


@pytest.fixture(scope="module")
def truth(streams: dict[str, KaleidoscopeStream]) -> dict[str, Any]:
    """The first samples of each stream, in one call."""
    return {name: stream.generate(range(COUNT)) for name, stream in streams.items()}


def assert_samples(found: Any, truth: Any) -> list[int]:
    """Whether batches with all fields are what the stream gives; their indices."""
    indices: list[int] = []
    for item in found:
        rows = item["index"].tolist()
        for name, values in {"images": item["images"], "labels": item["labels"], **item["latents"]}.items():
            expected = getattr(truth, name) if name in ("images", "labels") else truth.latents[name]
            np.testing.assert_array_equal(values.numpy(), expected[rows], err_msg=name)
            assert values.numpy().dtype == expected.dtype
        indices += rows
    return indices


@per_stream
def test_a_loader_goes_on_where_it_stood(name: str, streams: Any, truth: Any) -> None:
    loader = Loader(streams[name], batch_size=4, length=COUNT, fields="dict")
    read = list(itertools.islice(loader, 2))
    resumed = Loader(streams[name], batch_size=8, length=COUNT, fields="dict")  # another batch size too
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert assert_samples([*read, *resumed], truth[name]) == list(range(COUNT))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_share_every_sample(start: str, streams: Any, truth: Any) -> None:
    """Also where the parent's torch has threads, which a forked process has not and must not wait for."""
    torch.set_num_threads(2)
    assert float((torch.ones(4096, 512) @ torch.ones(512, 512))[0, 0]) == 512.0
    try:
        data = StreamDataset(streams["early"], 3, length=COUNT, fields="dict")
        read = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=60)
        assert assert_samples(read, truth["early"]) == list(range(COUNT))
    finally:
        torch.set_num_threads(1)


def test_a_forked_process_of_any_kind_does_not_hang(streams: Any, truth: Any) -> None:
    """A DataLoader sets one thread for its workers; others do not."""
    torch.set_num_threads(2)
    assert float((torch.ones(4096, 512) @ torch.ones(512, 512))[0, 0]) == 512.0
    try:
        assert streams["clips"].labels(range(2)).tolist() == truth["clips"].labels[:2].tolist()
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            parts = pool.map_async(streams["clips"].labels, [range(12), range(12, 24)]).get(timeout=60)
        assert np.concatenate(parts).tolist() == truth["clips"].labels.tolist()
    finally:
        torch.set_num_threads(1)


def test_ranks_share_every_sample(streams: Any, truth: Any) -> None:
    seen = []
    for rank in range(2):
        data = StreamDataset(streams["pairs"], 3, length=COUNT, shard=Shard(rank, 2), fields="dict")
        seen.append(assert_samples(DataLoader(data, batch_size=None), truth["pairs"]))
    assert sorted(seen[0] + seen[1]) == list(range(COUNT)) and seen[1][:3] == [3, 4, 5]
    batch = next(iter(DataLoader(IndexedStream(streams["pairs"], COUNT, fields="dict"), batch_size=5)))
    renamed = {"images": batch["image"], "labels": batch["label"], **{k: batch[k] for k in ("index", "latents")}}
    assert assert_samples([renamed], truth["pairs"]) == list(range(5))


@per_stream
@pytest.mark.parametrize("form", ["image", "tensor"])
def test_hugging_face_goes_on_where_it_stood(name: str, form: Any, streams: Any, truth: Any) -> None:
    pytest.importorskip("datasets")
    from fractal_streams.integrations.huggingface import load_dataset

    settings = {"format": "tensor", "batch_size": 4} if form == "tensor" else {}

    def opened() -> Any:
        return load_dataset(streams[name], length=COUNT, latents=True, **settings)

    dataset = opened()
    found = list(itertools.islice(dataset, 3))
    again = opened()
    again.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    found += list(again)
    if form == "tensor":
        images = np.concatenate([item["images"].numpy() for item in found])
        labels, index = (np.concatenate([item[key].numpy() for item in found]) for key in ("labels", "index"))
    else:
        images = np.moveaxis(np.stack([np.asarray(item["image"]) for item in found]), -1, -3)
        labels, index = ([item[key] for item in found] for key in ("label", "index"))
        assert dataset.features["label"].names == list(streams[name].titles)
    assert list(index) == list(range(COUNT))
    np.testing.assert_array_equal(images, truth[name].images)
    np.testing.assert_array_equal(labels, truth[name].labels)
    for column, values in truth[name].latents.items():
        told = np.concatenate([item[column] for item in found]) if form == "tensor" else [row[column] for row in found]
        np.testing.assert_array_equal(np.asarray(told, values.dtype), values, err_msg=column)


def assert_json(facts: dict[str, Any], truth: Any, row: int) -> None:
    """Whether the JSON of a sample says its latents, pictures as nested lists."""
    for name, values in truth.latents.items():
        told = np.array(facts["latents"][name], np.float64)
        np.testing.assert_array_equal(told, values[row].astype(np.float64), err_msg=name)


@stills
def test_webdataset_goes_on_where_it_stood(name: str, streams: Any, truth: Any) -> None:
    pytest.importorskip("webdataset")
    from fractal_streams.integrations.webdataset import StreamSource

    source = StreamSource(streams[name], length=COUNT, image="png")
    found = list(itertools.islice(source, 7))
    found += list(StreamSource(streams[name], length=COUNT, start=source.position, image="png"))
    assert [int(sample["__key__"]) for sample in found] == list(range(COUNT))
    for row, sample in enumerate(found):
        assert int(sample["cls"]) == truth[name].labels[row]
        assert_json(json.loads(sample["json"]), truth[name], row)


@stills
def test_a_tar_holds_pictures_labels_and_latents(name: str, streams: Any, truth: Any, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    pillow = pytest.importorskip("PIL.Image")
    from fractal_streams.integrations.export import export

    export(streams[name], tmp_path / "out", format="webdataset", num=5, progress=False)
    (path,) = (tmp_path / "out").rglob("*.tar")
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    for row in range(5):
        shown = np.asarray(pillow.open(io.BytesIO(files[f"{row:08d}.png"]))).transpose(2, 0, 1)
        np.testing.assert_array_equal(shown, truth[name].images[row])
        assert int(files[f"{row:08d}.cls"]) == truth[name].labels[row]
        facts = json.loads(files[f"{row:08d}.json"])
        assert facts["class"] == streams[name].class_title(truth[name].labels[row])
        assert_json(facts, truth[name], row)


def test_mixtures_take_kaleidoscopes(streams: Any) -> None:
    early = streams["early"]
    other = KaleidoscopeStream(early.spec.replace(iterate=5, last_iterate=5), device="cpu", seed=1)
    fractals = open_stream("fractal-10", device="cpu", height=8, width=8, seed=1)
    mixed = Mixture([early, other, fractals], labels="component")
    batch, of = mixed.generate(range(18)), mixed.components(range(18))
    assert set(of) == {0, 1, 2} and mixed.cost == early.cost > 1
    for row in range(18):
        assert (batch.images[row] == (early, other, fractals)[of[row]].generate([row]).images[0]).all()
    np.testing.assert_array_equal(np.isnan(batch.latents["attractor"]), of == 2)
    assert (batch.latents["iteration"][of == 1] == 5).all()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder of the user's."""
    from fractal_streams.integrations import address

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address._open.cache_clear()
    yield tmp_path
    address._open.cache_clear()


NAMES = sorted(name for name, spec in PRESETS.items() if isinstance(spec, KaleidoscopeSpec))


@pytest.mark.parametrize("name", NAMES)
def test_presets_open_by_name_everywhere(name: str, pictures: Kaleidoscope, home: Path) -> None:
    pytest.importorskip("datasets")
    import fsspec
    from fractal_streams.integrations.huggingface import load_dataset

    from fractal_streams.kaleidoscope.presets import model_path

    made = pictures.save(model_path(PRESETS[name].model))
    assert home in made.parents
    stream = open_stream(name, seed=3, split="test", device="cpu", most=40)
    truth = stream.generate(range(4))
    found = list(load_dataset(name, split="test", seed=3, device="cpu", length=4, most=40))
    for row in range(4):
        shown = np.moveaxis(np.asarray(found[row]["image"]), -1, -3)
        np.testing.assert_array_equal(shown, truth.images[row])
        assert found[row]["label"] == truth.labels[row]
    fingerprint = pictures.fingerprint
    address = f"fractal://{name}/test/seed=3/most=40,fingerprint={fingerprint}/samples=4/shard-000000.jsonl"
    with fsspec.open(address, "rt") as lines:
        for row, line in enumerate(lines):
            assert_json(json.loads(line), truth, row)


def test_a_stub_names_the_fingerprint(pictures: Kaleidoscope, home: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from fractal_streams.integrations.stub import write_stub

    from fractal_streams.kaleidoscope.presets import model_path

    path = pictures.save(model_path("kaleidoscope-10"))
    spec = open_stream("kaleidoscope-10-early", device="cpu").spec  # type: ignore[attr-defined]
    card = write_stub(tmp_path / "stub", spec, splits={"train": 5})
    assert f"fingerprint={pictures.fingerprint}" in card.read_text()
    loaded = datasets.load_dataset(str(card.parent), split="train", streaming=True)
    truth = open_stream("kaleidoscope-10-early", device="cpu").generate(range(5))
    for row, sample in enumerate(loaded):
        np.testing.assert_array_equal(np.asarray(sample["image"]).transpose(2, 0, 1), truth.images[row])
    with pytest.raises(InvalidValueError, match="can't say model"):
        write_stub(tmp_path / "other", spec.replace(model=str(path)), splits={"train": 5})


def test_an_address_reads_no_file_of_the_users(home: Path) -> None:
    from fractal_streams.integrations.address import Address

    with pytest.raises(AddressError, match="unknown setting 'model'"):
        Address.parse("kaleidoscope-10/train/seed=0/model=mine.safetensors/shard-000000.tar")


def test_what_is_not_fitted_yet_names_the_command_and_breaks_no_list(home: Path) -> None:
    import fsspec

    remedy = "fractal-streams kaleidoscope fit kaleidoscope-10"
    with pytest.raises(WeightFileError, match=f"kaleidoscope-10 is not fitted yet.*`{remedy}` makes it"):
        open_stream("kaleidoscope-10", device="cpu")
    assert PRESETS["kaleidoscope-10-clips"].needs == remedy
    filesystem = fsspec.filesystem("fractal")
    assert {*NAMES} <= {*filesystem.ls("", detail=False)} and len(filesystem.ls("")) == len(PRESETS)
    assert filesystem.ls("kaleidoscope-10/test", detail=False) == ["kaleidoscope-10/test/seed=0"]
    with pytest.raises(AddressError, match=remedy):
        filesystem.ls("kaleidoscope-10/test/seed=0")
    with pytest.raises(FileNotFoundError, match=remedy):
        filesystem.open("kaleidoscope-10/test/seed=0/00000000.png")
    found = filesystem.glob("*/test/seed=0/shard-000007.tar")
    assert "fractal-10/test/seed=0/shard-000007.tar" in found and not [path for path in found if "kal" in path]
    assert filesystem.glob("fractal-10*/test/seed=0/*7.tar") == [
        f"fractal-10{more}/test/seed=0/shard-000007.tar" for more in ("", "0", "k")
    ]
    with pytest.raises(InvalidValueError, match=remedy):
        filesystem.glob("kaleidoscope-10*/test/seed=0/*7.tar")
    assert not [path for path in filesystem.glob("kal*/**") if "seed" in path]


def test_the_list_says_what_is_needed(home: Path, pictures: Kaleidoscope) -> None:
    pytest.importorskip("typer")
    from fractal_streams.cli import spec_line
    from fractal_streams.kaleidoscope.presets import model_path

    spec = PRESETS["kaleidoscope-10"]
    assert spec_line(spec).endswith("; needs: fractal-streams kaleidoscope fit kaleidoscope-10")
    pictures.save(model_path("kaleidoscope-10"))
    assert spec_line(spec) == spec.line and "equal shares" in spec.line


@pytest.mark.parametrize("name, kind", [("kaleidoscope-10", "pictures"), ("kaleidoscope-10-clips", "clips")])
def test_show_draws_what_is_fitted(name: str, kind: str, home: Path, pictures: Kaleidoscope) -> None:
    pytest.importorskip("typer")
    pillow = pytest.importorskip("PIL.Image")
    from commands import refused, run

    from fractal_streams.kaleidoscope.presets import model_path

    out = home / ("sheet.gif" if kind == "clips" else "sheet.png")
    asked = ("show", name, "--indices", "0:4", "--scale", "2", "--no-labels", "--device", "cpu", "--out", str(out))
    assert "fractal-streams kaleidoscope fit kaleidoscope-10" in refused(*asked)
    pictures.save(model_path("kaleidoscope-10"))
    assert f"4 {kind} of {name}" in run(*asked).output
    with pillow.open(out) as shown:
        assert getattr(shown, "n_frames", 1) == (8 if kind == "clips" else 1) and min(shown.size) >= 16
