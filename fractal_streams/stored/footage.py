"""Video files, frame by frame, by ffmpeg."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fractal_streams.errors import missing_extra
from fractal_streams.stored.entries import Entry, Skipped, folder_labels, natural
from fractal_streams.stored.files import file_facts

FFMPEG = (
    "-v", "error", "-nostdin", "-xerror", "-i", "{path}", "-map", "0:v:0", "-fps_mode", "passthrough",
    "-sws_flags", "bicubic+accurate_rnd+full_chroma_int+bitexact", "-pix_fmt", "rgb24", "-c:v", "ppm",
    "-f", "image2pipe", "-",
)  # fmt: skip
"""Every frame once, whatever the frame rate does; a damaged one ends it with an error."""


class Footage:
    """The frames of video files; see `Source`. The group of a frame is its video.

    skip: frames left out after each that is taken.
    """

    kind = "video"
    count = None
    ignored = 0
    class_names: tuple[str, ...] | None = None

    def __init__(self, root: Path, names: Sequence[str], skip: int, ignored: int = 0) -> None:
        self.root, self.names, self.skip = root, sorted(names, key=natural), skip
        self.ignored = ignored
        self.title = self.names[0] if len(self.names) == 1 else root.name or str(root)

    def facts(self) -> list[list[Any]]:
        """Name, bytes and time of last change of each file."""
        return [file_facts(self.root / name, name) for name in self.names]

    def entries(self) -> Iterator[Entry | Skipped]:
        """Frames 0, skip + 1, 2 (skip + 1), ... of each video."""
        for name, label in zip(self.names, folder_labels(self.names), strict=True):
            number = -1
            try:
                for number, frame in enumerate(frames_of(self.root / name)):
                    if number % (self.skip + 1) == 0:
                        yield Entry(f"{name}#{number:06d}", name, label, frame)
            except OSError as error:
                yield Skipped(name, f"its frame {number + 1} can't be decoded: {error}")
                continue
            if number < 0:
                yield Skipped(name, "has no frame")


def frames_of(path: Path) -> Iterator[Any]:
    """Each frame of a video as (H, W, 3) uint8.

    Raises:
        OSError: ffmpeg can't decode the file, or a part of it; frames before that part came first.
        MissingExtraError: imageio-ffmpeg is not installed.
    """
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError:
        raise missing_extra("imageio-ffmpeg", "video") from None
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    command = [get_ffmpeg_exe(), *(word.format(path=path.absolute()) for word in FFMPEG)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
        assert process.stdout is not None
        try:
            while (frame := next_ppm(process.stdout)) is not None:
                yield frame
            code = process.wait()
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    if code:
        raise OSError(lines[-1] if lines else f"ffmpeg ended with code {code}")


def next_ppm(pipe: IO[bytes]) -> Any:
    """The next picture of a run of binary PPM files, (H, W, 3) uint8; None behind the last."""
    if not pipe.readline():
        return None
    width, height = map(int, pipe.readline().split())
    pipe.readline()
    data = pipe.read(height * width * 3)
    if len(data) < height * width * 3:
        return None  # cut short: ffmpeg's exit code says why
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)
