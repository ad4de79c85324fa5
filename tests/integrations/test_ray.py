"""Ray: the rows of a datasource, and an export that is the local one byte for byte; on a cluster of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from fractal_streams.integrations.export import export
from numbered_pictures import tree

# Ray warns of what it does itself, so the cluster lives in a process without this suite's filter. Reading before the
# export with two writers leaves them processes that have imported all.
PROGRAM = """
import json, sys
import numpy as np, ray
from numbered_pictures import NumberedPictures
from fractal_streams import open_stream
from fractal_streams.errors import InvalidValueError, UnknownNameError
from fractal_streams.integrations.export import export
from fractal_streams.integrations.ray import FractalDatasource, ray_export

folder, told = sys.argv[1], {}
asked = dict(seed=5, device="cpu", height=16, width=16)
quiet = dict(progress=False)


def refused(call, *arguments, **settings):
    try:
        call(*arguments, **settings)
    except (InvalidValueError, UnknownNameError) as error:
        return str(error)
    return "nothing"


source = FractalDatasource("fractal-10", num=101, start=1000, **asked)
told["bytes"] = source.estimate_inmemory_data_size()
tasks = source.get_read_tasks(7)
told["rows of tasks"] = [task.metadata.num_rows for task in tasks]
told["sum of tasks"] = sum(task.metadata.size_bytes for task in tasks)
limited = FractalDatasource("fractal-10", num=30, **asked).get_read_tasks(1, 12)[0]
told["limited"] = [block.num_rows for block in limited()]
told["more tasks than rows"] = len(FractalDatasource("fractal-10", num=3, **asked).get_read_tasks(50))

streams = {split: open_stream("fractal-10", split=split, **asked) for split in ("train", "test")}
both = dict(num={"train": 40, "test": 9}, shards=2, **quiet)
export(streams, folder + "/begun", rank=1, world=2, **both)
begun = ray_export(streams, folder + "/begun", writers=1, **both)
told["begun"] = [begun.written, begun.kept, begun.missing]

data = ray.data.read_datasource(source, override_num_blocks=7)
told["schema"] = [str(kind) for kind in data.schema().types]
told["names"] = data.schema().names
rows = data.to_numpy_refs()
batches = ray.get(rows)
index = np.concatenate([each["index"] for each in batches])
order = np.argsort(index)
wanted = open_stream("fractal-10", **asked).generate(range(1000, 1101))
told["index"] = index[order].tolist()
images = np.concatenate([np.stack(list(each["image"])) for each in batches])[order]
labels = np.concatenate([each["label"] for each in batches])[order]
told["images equal"] = bool(np.array_equal(images, wanted.images))
told["labels equal"] = bool(np.array_equal(labels, wanted.labels))
clips = FractalDatasource(open_stream("fractal-video", device="cpu", frames=3, height=8, width=8), num=5)
told["clip"] = list(ray.data.read_datasource(clips).take_batch(5)["image"].shape)

tar = dict(format="webdataset", num={"train": 70, "test": 9}, shards=4, **quiet, **asked)
report = ray_export("fractal-10", folder + "/tar", **tar)
told["first"] = [report.written, report.kept, report.images, report.missing]
again = ray_export("fractal-10", folder + "/tar", **tar)
told["again"] = [again.written, again.kept]

told["refused"] = [
    refused(FractalDatasource, "fractal-10", num=0),
    refused(FractalDatasource, "fractal-11", num=5),
    refused(FractalDatasource, "fractal-10", num=5, dtype="float32", device="cpu"),
    refused(FractalDatasource, streams["train"], num=5, seed=1),
    refused(ray_export, "fractal-10", folder + "/gpus", format="npz", num=5, num_gpus=999, **quiet, **asked),
    refused(ray_export, "fractal-10", folder + "/tar", format="npz", num=5, **quiet, **asked),
    refused(ray_export, "fractal-10", folder + "/wide", format="npz", num=5, shards=5, writers=5, num_cpus=64,
            **quiet, **asked),
]

class Broken(NumberedPictures):
    def generate(self, indices):
        if len(indices):
            raise OSError(28, "No space left on device")
        return super().generate(indices)

try:
    ray_export(Broken(), folder + "/broken", format="npz", num=5, **quiet)
except OSError as error:
    told["broken"] = [error.errno, str(error)]
ray.shutdown()
print("TOLD" + json.dumps(told))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder that a program with a local Ray wrote to, and what it told."""
    folder = tmp_path_factory.mktemp("ray")
    program = PROGRAM
    there = {**os.environ, "RAY_worker_niceness": "0"}  # beside other tests, a niceness of 15 waits for minutes
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], env=there,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, json.loads(run.stdout.rpartition("TOLD")[2])


def test_rows_are_the_samples(cluster: Any) -> None:
    _, told = cluster
    assert told["names"] == ["image", "label", "index"]
    assert "16, 16" in told["schema"][0] and "uint8" in told["schema"][0] and told["schema"][1:] == ["int64", "int64"]
    assert told["index"] == list(range(1000, 1101))
    assert told["images equal"] and told["labels equal"]
    assert told["clip"] == [5, 3, 3, 8, 8]


def test_tasks_say_what_they_will_read(cluster: Any) -> None:
    _, told = cluster
    assert told["rows of tasks"] == [14, 14, 15, 14, 15, 14, 15]
    assert told["bytes"] == told["sum of tasks"] == 101 * (3 * 16 * 16 + 16)
    assert told["more tasks than rows"] == 3
    assert max(told["limited"]) <= 12 and sum(told["limited"]) == 12


@pytest.mark.parametrize(
    "name, asked",
    [
        ("tar", {"format": "webdataset", "num": {"train": 70, "test": 9}, "shards": 4}),
        ("begun", {"num": {"train": 40, "test": 9}, "shards": 2}),
    ],
)
def test_an_export_by_ray_is_the_local_one(name: str, asked: Any, cluster: Any, tmp_path: Path) -> None:
    folder, _ = cluster
    export("fractal-10", tmp_path, seed=5, device="cpu", height=16, width=16, progress=False, **asked)
    assert tree(folder / name) == tree(tmp_path)


def test_an_export_by_ray_writes_only_what_is_missing(cluster: Any) -> None:
    _, told = cluster
    assert (told["first"], told["again"], told["begun"]) == ([8, 0, 79, 0], [0, 8], [2, 2, 0])


def test_what_is_wrong_is_said_before_ray_works(cluster: Any) -> None:
    folder, told = cluster
    for message, words in zip(
        told["refused"],
        (
            "num must be a whole",
            "did you mean",
            "dtype='uint8'",
            "open already",
            "num_gpus=999",
            "an export",
            "room for",
        ),
        strict=True,
    ):
        assert words in message
    assert not list((folder / "gpus").rglob("*.npz"))


def test_an_error_of_a_writer_reaches_the_caller(cluster: Any) -> None:
    folder, told = cluster
    assert told["broken"][0] == 28 and "while train/shard-000000.npz was written" in told["broken"][1]
    assert not list((folder / "broken").rglob("*.npz*"))
