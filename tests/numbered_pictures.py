"""Streams whose pixels say which sample they are of, made without a renderer; and exports of them that are killed.

python tests/numbered_pictures.py kill FOLDER FORMAT RANK WORLD     one slow export, to be killed from outside
python tests/numbered_pictures.py crash FOLDER FORMAT               one export for each step that it may die at
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams import Batch, Stream
from fractal_streams.render.raster import PixelFormat
from fractal_streams.rng import checked_indices


class NumberedPictures(Stream):
    """8 x 8 pictures, or clips of 3: the first 8 bytes of each are the index; label = index % num_classes."""

    def __init__(self, *, split: str = "train", seed: int = 0, clips: bool = False, pause: float = 0.0) -> None:
        self.seed, self.split, self.device, self.num_classes = seed, split, "cpu", 10
        self.pixels, self.clips, self.pause = PixelFormat(), clips, pause

    def generate(self, indices: Any) -> Batch:
        index = checked_indices(indices)
        time.sleep(self.pause)
        shape = (3, 3, 8, 8) if self.clips else (3, 8, 8)
        images = np.tile(np.resize(np.arange(251, dtype=np.uint8), shape), (len(index), *[1] * len(shape)))
        images.reshape(len(index), int(np.prod(shape)))[:, :8] = index.astype("<i8").view(np.uint8).reshape(-1, 8)
        latents = {"phase": np.zeros((len(index), 3) if self.clips else len(index), np.float32)}
        return Batch(index, images, index % self.num_classes, latents)

    def digest(self) -> str:
        return f"numbered-{self.seed}-{self.split}-{self.clips}"


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder under a folder, with the digest of what is in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


KILLED: dict[str, Any] = {"num": 1200, "shards": 60, "workers": 1, "progress": False}
"""Exports that are killed from outside: 60 shards, each with a pause of 20 ms."""


def killed_export(folder: str, format: str, rank: str, world: str) -> None:
    from fractal_streams.integrations.export import export

    stream = NumberedPictures(pause=0.02)
    export(stream, folder, format=format, num=KILLED["num"], shards=KILLED["shards"], workers=1, progress=False,
           rank=int(rank), world=int(world))  # fmt: skip


def crashed_exports(folder: str, format: str) -> None:
    """For every change of the file system that an export makes: die there, half of it done, and go on after it."""
    from fractal_streams.integrations.export import export

    root = Path(folder)
    streams = {split: NumberedPictures(split=split) for split in ("train", "test")}
    counts = {"num": {"train": 5, "test": 3}, "shards": {"train": 2, "test": 1}}
    asked: dict[str, Any] = {"format": format, **counts, "progress": False}

    def run(place: Path, die_at: int, **settings: int) -> int:
        child = os.fork()
        if child == 0:
            seen = 0

            def watch(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal seen
                opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
                if (opens or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")) and str(root) in str(
                    arguments[0]
                ):
                    seen += 1
                    if seen == die_at:
                        if opens:
                            os.write(os.open(arguments[0], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), b"half")
                        os._exit(9)

            sys.addaudithook(watch)
            export(streams, place, **asked, **settings)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    whole = root / "whole"
    assert run(whole, 0) == 0
    wanted = tree(whole)
    step = 0
    while True:
        step += 1
        place = root / "crashed"
        code = run(place, step)
        if code == 0:
            break
        assert code == 9, f"step {step} ended with {code}"
        if step % 2:
            assert run(place, 0) == 0
        else:
            assert [run(place, 0, rank=rank, world=2) for rank in (1, 0)] == [0, 0]
        assert tree(place) == wanted, f"step {step}: {set(tree(place).items()) ^ set(wanted.items())}"
        shutil.rmtree(place)
    print(step - 1, len(wanted))


if __name__ == "__main__":
    {"kill": killed_export, "crash": crashed_exports}[sys.argv[1]](*sys.argv[2:])
