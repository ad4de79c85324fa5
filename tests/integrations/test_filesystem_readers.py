"""Readers that know fsspec and nothing of this package: pandas, pyarrow, `datasets`, each in a process of its own.

The programs never import the package, and say so: their text does not name it, and nothing of it is loaded
before the first address is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from warm import Warm

from fractal_streams import open_stream

HOME = "fractal://fractal-10/train/seed=5/height=8/width=9/samples=10"
BEGIN = """
import hashlib, itertools, json, sys
PACKAGE = "fractal" + "_" + "streams"
said = {}

def unloaded():
    assert PACKAGE not in sys.modules and not any(name.startswith(PACKAGE + ".") for name in sys.modules)

def digest(pictures):
    pictures = [numpy.asarray(picture, "uint8") for picture in pictures]
    assert pictures
    return hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()

def decoded(values):
    return [PIL.Image.open(io.BytesIO(value["bytes"])) for value in values]

import io, numpy, PIL.Image
"""
END = "\nassert PACKAGE in sys.modules\njson.dump(said, sys.stdout)\n"


def run(program: str, cache: Path, warm: Warm) -> Any:
    """What a program said, in a process without this package."""
    text = BEGIN + program + END
    assert "fractal_streams" not in text
    caches = {"HF_HOME": str(cache / "hub"), "HF_DATASETS_CACHE": str(cache / "sets"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = warm.run(["-c", text], cwd=cache, env={**os.environ, **caches})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def expected(indices: range, **settings: Any) -> tuple[str, list[int]]:
    """Digest of the pictures, (H, W, 3), and the labels that the stream itself gives."""
    spec = {"seed": 5, "height": 8, "width": 9, **settings}
    batch = open_stream("fractal-10", device="cpu", **spec).generate(indices)
    pictures = np.ascontiguousarray(batch.images.transpose(0, 2, 3, 1))
    return hashlib.sha256(pictures.tobytes()).hexdigest(), batch.labels.tolist()


def test_pandas_pyarrow_and_fsspec(tmp_path: Path, warm: Warm) -> None:
    said = run(
        f"""
HOME = {HOME!r}
import fsspec, pandas, pyarrow.dataset, pyarrow.parquet, pyarrow.ipc
unloaded()
frame = pandas.read_parquet(HOME + "/shard-000001.parquet")
said["parquet"] = [digest(decoded(frame["image"])), frame["label"].tolist(), frame["index"].tolist()]
frame = pandas.read_json(HOME + "/shard-000001.jsonl", lines=True)
said["jsonl"] = [frame["label"].tolist(), frame["class"].tolist(), [row["alpha"] for row in frame["latents"]]]
filesystem = fsspec.filesystem("fractal")
paths = filesystem.glob(HOME + "/shard-{{000001..000003}}.parquet")
rows = pyarrow.dataset.dataset(paths, filesystem=filesystem, format="parquet")
table = rows.to_table(filter=pyarrow.dataset.field("index") >= 15)
said["dataset"] = [rows.count_rows(), digest(decoded(table["image"].to_pylist())), table["label"].to_pylist()]
one = pyarrow.dataset.dataset(HOME + "/shard-000002.parquet", filesystem=filesystem)
said["one"] = one.to_table()["label"].to_pylist()
with fsspec.open(HOME + "/00000033.png") as file:
    said["open"] = digest([PIL.Image.open(file)])
pictures = []
for opened in fsspec.open_files(HOME + "/shards=2/shard-*.arrow"):
    with opened as file:
        pictures += decoded(pyarrow.ipc.open_stream(file).read_all()["image"].to_pylist())
said["open_files"] = digest(pictures)
with fsspec.open("simplecache::" + HOME + "/00000033.npy") as file:
    said["cached"] = digest([numpy.load(file).transpose(1, 2, 0)])
""",
        tmp_path,
        warm,
    )
    pictures, labels = expected(range(10, 20))
    latents = open_stream("fractal-10", device="cpu", seed=5).generate(range(10, 20)).latents
    assert said["parquet"] == [pictures, labels, [*range(10, 20)]]
    assert said["jsonl"][:2] == [labels, [f"class {label}" for label in labels]]
    assert np.float32(said["jsonl"][2]).tolist() == latents["alpha"].tolist()  # pandas reads the last bit its own way
    assert said["dataset"] == [30, *expected(range(15, 40))]
    assert said["one"] == expected(range(20, 30))[1]
    assert said["open"] == said["cached"] == expected(range(33, 34))[0]
    assert said["open_files"] == expected(range(20))[0]


def test_datasets_streams_every_container(tmp_path: Path, warm: Warm) -> None:
    said = run(
        f"""
HOME = {HOME!r}
import datasets
unloaded()
KINDS = {{"webdataset": "tar", "arrow": "arrow", "parquet": "parquet", "json": "jsonl"}}
for kind, end in KINDS.items():
    for form, files in {{
        "glob": HOME + "/shard-00000[12]." + end,
        "list": [HOME + "/shard-000001." + end, HOME + "/shard-000002." + end],
        "braces": HOME + "/shard-{{000001..000002}}." + end,
        "query": HOME.replace("/samples=10", "") + "/shard-00000[1-2]." + end + "?samples=10",
    }}.items():
        found = datasets.load_dataset(kind, data_files={{"train": files}}, split="train", streaming=True)
        if kind == "json":
            found = found.cast_column("image", datasets.Image())
        rows = list(found)
        image, label = ("png", "cls") if kind == "webdataset" else ("image", "label")
        assert isinstance(found.features[image], datasets.Image)
        said[kind + " " + form] = [digest(row[image] for row in rows), [row[label] for row in rows]]
        if kind in ("arrow", "parquet"):
            assert found.features["label"].names == [f"class {{k}}" for k in range(10)], found.features
said["shards"] = datasets.load_dataset(
    "arrow", data_files={{"train": HOME + "/shard-*.arrow"}}, split="train", streaming=True).num_shards
endless = datasets.load_dataset("arrow", data_files={{"train": HOME + "/start=100/endless.arrow"}}, streaming=True)
said["endless"] = [row["index"] for row in itertools.islice(endless["train"], 600)]
endless = datasets.load_dataset("webdataset", data_files={{"train": HOME + "/endless.tar"}}, streaming=True)
said["endless tar"] = [row["json"]["index"] for row in itertools.islice(endless["train"], 300)]
video = "fractal://fractal-video/train/seed=5/height=8/width=8/frames=3/samples=4/shard-000000."
for kind in ("arrow", "parquet"):
    clips = datasets.load_dataset(kind, data_files={{"train": video + kind}}, split="train", streaming=True)
    assert clips.features["image"] == datasets.Array4D((3, 3, 8, 8), "uint8"), clips.features
    said["clips " + kind] = digest(row["image"] for row in clips)
for wrong in ("/shard-001000.tar", "/shard-*.zip", "/hieght=9/shard-*.tar"):
    try:
        datasets.load_dataset("webdataset", data_files={{"train": HOME + wrong}}, streaming=True)
    except Exception as error:
        said[wrong] = str(error)
""",
        tmp_path,
        warm,
    )
    there = list(expected(range(10, 30)))
    for kind in ("webdataset", "arrow", "parquet", "json"):
        for form in ("glob", "list", "braces", "query"):
            assert said[f"{kind} {form}"] == there, (kind, form)
    assert said["shards"] == 1000
    assert said["endless"] == [*range(100, 700)]
    assert said["endless tar"] == [*range(300)]
    clips = open_stream("fractal-video", device="cpu", seed=5, height=8, width=8, frames=3).generate(range(4)).images
    assert said["clips arrow"] == said["clips parquet"] == hashlib.sha256(clips.tobytes()).hexdigest()
    assert "shard 1000 is out of range" in said["/shard-001000.tar"]
    assert "no name fits 'shard-*.zip'" in said["/shard-*.zip"]
    assert "unknown setting 'hieght'" in said["/hieght=9/shard-*.tar"]


LOADED = """
import datasets, fsspec
datasets.disable_progress_bars()

def loaded(kind, files):
    tags = datasets.DownloadConfig(use_etag=True)
    found = datasets.load_dataset(kind, data_files={"train": files}, split="train", download_config=tags)
    image, label = ("png", "cls") if kind == "webdataset" else ("image", "label")
    return [digest(found[image]), list(found[label])], found.cache_files[0]["filename"]
"""


def test_datasets_loads_a_finite_set_and_its_cache_follows_the_stream(tmp_path: Path, warm: Warm) -> None:
    said = run(
        LOADED
        + f"""
HOME = {HOME!r}
unloaded()
for kind, end in {{"webdataset": "tar", "arrow": "arrow", "parquet": "parquet"}}.items():
    said[kind], _ = loaded(kind, HOME + "/shard-{{000001..000002}}." + end)
said["first"], first = loaded("parquet", HOME + "/shard-000001.parquet")
said["again"], again = loaded("parquet", HOME + "/shard-000001.parquet")
said["other"], other = loaded("parquet", HOME + "/num_classes=7/shard-000001.parquet")
said["kept"] = [first == again, first != other]

# The same address, of a preset that draws something else: the tag alone tells.
presets = sys.modules[PACKAGE + ".presets"].PRESETS
before = fsspec.filesystem("fractal").info(HOME + "/shard-000001.parquet")["ETag"]
presets["fractal-10"] = presets["fractal-10"].replace(num_classes=7)
sys.modules[PACKAGE + ".integrations.address"]._open.cache_clear()
after = fsspec.filesystem("fractal").info(HOME + "/shard-000001.parquet")["ETag"]
said["changed"], changed = loaded("parquet", HOME + "/shard-000001.parquet")
said["told apart"] = [before != after, changed != first]
""",
        tmp_path,
        warm,
    )
    there = list(expected(range(10, 30)))
    assert said["webdataset"] == said["arrow"] == said["parquet"] == there
    assert said["first"] == said["again"] == list(expected(range(10, 20)))
    assert said["other"] == said["changed"] == list(expected(range(10, 20), num_classes=7))
    assert said["other"] != said["first"]
    assert said["kept"] == said["told apart"] == [True, True]


def test_a_set_of_several_formulas_loads_though_each_has_its_own_parameters(tmp_path: Path, warm: Warm) -> None:
    said = run(
        LOADED
        + """
unloaded()
HOME = "fractal://fractal-families/train/seed=0/height=8/width=8/samples=2/shard-000000."
said["webdataset"], _ = loaded("webdataset", HOME + "tar")
found = datasets.load_dataset("json", data_files={"train": HOME + "jsonl"}, split="train")
said["json"] = [latents["anchor"] for latents in found["latents"]]
""",
        tmp_path,
        warm,
    )
    stream = open_stream("fractal-families", device="cpu", height=8, width=8)
    batch = stream.generate(range(2))  # of two formulas
    assert said["webdataset"][1] == batch.labels.tolist()
    anchor = batch.latents["anchor"]
    assert np.isnan(anchor).any()
    assert not np.isnan(anchor).all()
    assert said["json"] == [None if np.isnan(value) else float(value) for value in anchor]
