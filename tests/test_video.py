from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from fractal_streams import StillStream, StreamSpec, VideoSpec, VideoStream, open_stream
from fractal_streams.errors import IndexRangeError, InvalidValueError, UnknownNameError, VersionError
from fractal_streams.presets import find_preset
from fractal_streams.priors import Choice, Constant, LogUniform, Uniform
from fractal_streams.render.numba_backend import NumbaRenderer
from fractal_streams.video import cosine_of_turns, directions

STILL = StreamSpec(formulas=("polynomial_power",), num_classes=4, height=8, width=8)
MOVING = {"alpha": 2 * np.pi, "beta": 2 * np.pi, "power": 5.0, "frequency": 10.0}
ZOOM = StreamSpec(
    formulas=("mandelbrot",), height=8, width=8,
    priors={"half_width": LogUniform(0.01, 2.0), "centre_x": Uniform(-1.5, 0.5)},
)  # fmt: skip
PATHS: dict[str, dict[str, Any]] = {
    "linear": {"path": "linear"},
    "loop": {"path": "loop"},
    "constant_speed": {"path": "constant_speed", "speed": 0.1},
}


def clips(
    still: StreamSpec = STILL, *, frames: int = 6, seed: int = 0, split: str = "train", **path: Any
) -> VideoStream:
    return VideoStream(VideoSpec(still=still, frames=frames, **path), seed=seed, split=split, device="cpu")


def moved(stream: VideoStream, count: int, names: dict[str, float] = MOVING) -> npt.NDArray[np.float64]:
    """(names, B, T) latents in widths of their priors."""
    latents = stream.generate(range(count)).latents
    return np.stack([latents[name].astype(np.float64) / width for name, width in names.items()])


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=10, deadline=None)
@given(index=st.integers(0, 2**63 - 1), time=st.integers(0, 5), seed=st.integers(0, 2**64 - 1))
def test_a_frame_alone_is_the_clips_frame(path: str, index: int, time: int, seed: int) -> None:
    stream = clips(seed=seed, **PATHS[path])
    clip = stream[index]
    frame = stream.frames([0, index], [0, time])
    assert np.array_equal(frame.images[1], clip.image[time])
    assert frame.labels[1] == clip.label and frame.index[1] == index
    assert {name: row[1] for name, row in frame.latents.items()} == {
        name: row[time] for name, row in clip.latents.items()
    }


@pytest.mark.parametrize("path", PATHS)
def test_a_clip_does_not_depend_on_its_batch(path: str) -> None:
    stream = clips(**PATHS[path])
    together = stream.generate([7, 3, 2**40, 7, 0])
    for place, index in enumerate([7, 3, 2**40, 7, 0]):
        alone = stream.generate([index])
        assert np.array_equal(alone.images[0], together.images[place])
        for name, row in together.latents.items():
            assert np.array_equal(alone.latents[name][0], row[place])


@pytest.mark.parametrize("path", PATHS)
def test_pictures_are_those_of_the_reported_path(path: str) -> None:
    stream = clips(**PATHS[path])
    batch = stream.generate(range(3))
    raster = stream.still.rasters[0]
    for k in range(3):
        table = np.stack([batch.latents[name][k] for name in raster.names])
        assert np.array_equal(NumbaRenderer(threads=1).render(raster, table), batch.images[k])
    assert all((clip[0] != clip[1]).any() for clip in batch.images)


@pytest.mark.parametrize("path", PATHS)
def test_only_the_samples_own_parameters_move_and_stay_inside_their_priors(path: str) -> None:
    stream = clips(frames=9, **PATHS[path])
    batch = stream.generate(range(400))
    for name, row in batch.latents.items():
        constant = bool((row == row[:, :1]).all())
        assert constant != (name in MOVING), name
        if name in MOVING:
            assert 0.0 <= row.min() < 0.1 * MOVING[name] and 0.9 * MOVING[name] < row.max() <= np.float32(MOVING[name])
    first = {label: batch.latents["poly1"][place, 0] for place, label in enumerate(batch.labels)}
    assert len(first) == 4
    assert all(batch.latents["poly1"][place, 0] == first[label] for place, label in enumerate(batch.labels))


@pytest.mark.parametrize("path", PATHS)
def test_seeds_and_splits_share_no_path(path: str) -> None:
    streams = [clips(seed=seed, split=split, **PATHS[path]) for seed in (0, 1) for split in ("train", "test")]
    values = np.concatenate([stream.generate(range(20)).latents["alpha"].ravel() for stream in streams])
    assert len(set(values.tolist())) == values.size
    assert len({stream.digest() for stream in streams}) == 4


def test_linear_paths_start_at_the_still_and_go_straight_to_a_second_draw() -> None:
    stream = clips(frames=7)
    still = StillStream(STILL, device="cpu").generate(range(300))
    batch = stream.generate(range(300))
    assert np.array_equal(batch.images[:, 0], still.images) and np.array_equal(batch.labels, still.labels)
    for name in MOVING:
        assert np.array_equal(batch.latents[name][:, 0], still.latents[name])
    places = moved(stream, 300)
    assert np.abs(np.diff(places, n=2, axis=2)).max() < 4 * 2**-24
    start, end = places[:, :, 0], places[:, :, -1]
    for row in (*start, *end):  # 300 uniforms: mean within 4.5 standard errors, and their order statistics
        assert abs(row.mean() - 0.5) < 4.5 / np.sqrt(12 * 300)
        assert np.abs(np.sort(row) - (np.arange(300) + 0.5) / 300).max() < 2.2 / np.sqrt(300)
    every = np.concatenate([start, end])
    together = np.corrcoef(every) - np.eye(len(every))
    assert np.abs(together).max() < 5 / np.sqrt(300), "starts and ends are drawn independently"


def test_a_linear_path_of_a_logarithmic_prior_is_straight_in_the_logarithm() -> None:
    batch = clips(ZOOM, frames=5).generate(range(50))
    width = np.log2(batch.latents["half_width"].astype(np.float64))
    assert np.abs(np.diff(width, n=2, axis=1)).max() < 4 * 2**-22
    assert batch.latents["half_width"].min() >= np.float32(0.01) and batch.latents["half_width"].max() <= 2.0
    still = StillStream(ZOOM, device="cpu").generate(range(50))
    assert np.array_equal(batch.latents["half_width"][:, 0], still.latents["half_width"])


def test_a_loop_closes_and_is_a_cosine_between_its_ends() -> None:
    stream = clips(frames=8, path="loop")
    index = np.arange(40)
    path = stream.paths[0]
    around = np.stack([np.zeros(40, np.int64), np.full(40, 8)], axis=1)
    table = path.table(index, around)[1]
    assert np.array_equal(table[:, :, 0], table[:, :, 1]), "frame T is frame 0"
    ends = clips(frames=2).generate(index).latents
    for name, width in MOVING.items():
        row = stream.generate(index).latents[name].astype(np.float64)
        start, end = ends[name].astype(np.float64).T
        assert np.abs(row.mean(axis=1) - (start + end) / 2).max() < width * 2**-23
        half = (end - start) / 2
        square = ((row - row.mean(axis=1, keepdims=True)) ** 2).mean(axis=1)
        assert np.allclose(square, half**2 / 2, rtol=0, atol=width**2 * 2**-22)
        steps = np.abs(np.diff(np.concatenate([row, row[:, :1]], axis=1), axis=1))
        longest = 2 * np.abs(half)[:, None] * np.sin(np.pi / 8) + width * 2**-22
        assert (steps <= longest).all(), "a jump, at the seam or elsewhere"


def test_constant_speed_is_constant_and_is_the_speed_asked_for() -> None:
    for frames, speed in ((6, 0.2), (16, 0.03), (100, 1 / 99)):
        places = moved(clips(frames=frames, path="constant_speed", speed=speed), 100)
        steps = np.sqrt((np.diff(places, axis=2) ** 2).sum(axis=0))
        assert np.abs(steps - speed).max() < 4 * 2**-23
        whole = np.sqrt(((places[:, :, -1] - places[:, :, 0]) ** 2).sum(axis=0))
        assert np.allclose(whole, speed * (frames - 1), rtol=0, atol=4 * 2**-23), "a straight line"


def test_constant_speed_of_a_logarithmic_prior_counts_octaves() -> None:
    stream = clips(ZOOM, frames=5, path="constant_speed", speed=0.2, moving=("half_width",))
    latents = stream.generate(range(30)).latents
    steps = np.diff(np.log2(latents["half_width"].astype(np.float64)), axis=1)
    assert np.abs(np.abs(steps) - 0.2 * np.log2(200)).max() < 2**-20
    assert (latents["centre_x"] == latents["centre_x"][:, :1]).all()


def test_directions_are_unit_vectors_without_a_preference() -> None:
    keys = np.array([(1, 2), (3, 4), (5, 6)], np.uint32)
    parts = np.concatenate(directions(np.arange(20_000), keys), axis=1)
    assert np.abs((parts**2).sum(axis=1) - 1.0).max() < 1e-15
    assert np.abs(parts.mean(axis=0)).max() < 4.5 / np.sqrt(3 * 20_000)
    assert np.abs(parts.T @ parts / 20_000 - np.eye(3) / 3).max() < 0.012
    signs = np.bincount((parts > 0) @ [4, 2, 1], minlength=8)
    assert np.abs(signs - 2500).max() < 4.5 * np.sqrt(2500)


def test_cosine_of_turns_is_the_cosine() -> None:
    turns = np.concatenate([np.linspace(0.0, 2.0, 4001), [0.25, 0.5, 0.75, 1.0]])
    assert np.abs(cosine_of_turns(turns) - np.cos(2 * np.pi * turns)).max() < 2e-15
    assert cosine_of_turns(np.array([0.0, 0.25, 0.5, 0.75, 1.0])).round(15).tolist() == [1.0, 0.0, -1.0, 0.0, 1.0]
    assert np.abs(cosine_of_turns(turns)).max() <= 1.0


def test_formulas_as_classes_move_each_in_its_own_way() -> None:
    still = StreamSpec(
        formulas=("mandelbrot", "polynomial_power"), num_classes=2, height=8, width=8,
        priors={"mandelbrot.centre_x": Uniform(-1.5, 0.5)},
    )  # fmt: skip
    stream = clips(still, frames=3)
    batch = stream.generate(range(12))
    assert set(batch.labels.tolist()) == {0, 1}
    for place in range(12):
        path, raster = stream.paths[batch.labels[place]], stream.still.rasters[batch.labels[place]]
        table = np.stack([batch.latents[name][place] for name in path.plan.names])
        assert np.array_equal(NumbaRenderer(threads=1).render(raster, table), batch.images[place])
        has_alpha = batch.labels[place] == 1
        assert np.isnan(batch.latents["alpha"][place]).all() != has_alpha
        assert (np.ptp(batch.latents["centre_x"][place]) > 0) != has_alpha
    frame = stream.frames([5, 4, 5], [2, 0, 1])
    assert np.array_equal(frame.images, batch.images[[5, 4, 5], [2, 0, 1]])
    assert len(stream.generate([])) == 0


def test_frames_in_memory_as_asked() -> None:
    spec = VideoSpec(still=STILL.replace(height=8, width=16), frames=3)
    levels = VideoStream(spec, device="cpu").generate(range(4)).images
    last = VideoStream(spec, device="cpu", channels_last=True, dtype="float32").generate(range(4)).images
    assert levels.shape == (4, 3, 3, 8, 16) and levels.dtype == np.uint8
    assert np.array_equal(last, (levels / 255.0).astype(np.float32).transpose(0, 1, 3, 4, 2))
    assert VideoStream(spec, device="cpu").generate([]).images.shape == (0, 3, 3, 8, 16)


def test_spec_is_json_and_back_with_a_digest_of_its_own() -> None:
    specs = [VideoSpec(still=STILL, frames=6, **path) for path in PATHS.values()]
    specs += [VideoSpec(still=ZOOM, moving=("half_width",)), find_preset("fractal-video")]
    for spec in specs:
        assert VideoSpec.from_json(spec.to_json()) == spec
        assert VideoSpec.from_json(spec.to_json()).to_json() == spec.to_json()
    assert len({spec.digest() for spec in specs}) == len(specs)
    assert specs[0].replace(height=64, frames=4) == VideoSpec(still=STILL.replace(height=64), frames=4)
    with pytest.raises(VersionError):
        VideoSpec.from_json(specs[0].to_json().replace('"spec_version": 1', '"spec_version": 2'))
    with pytest.raises(InvalidValueError, match="kind 'stills'"):
        VideoSpec.from_json(STILL.to_json())
    with pytest.raises(UnknownNameError, match="did you mean 'frames'"):
        VideoSpec.from_json(specs[0].to_json().replace('"frames"', '"framse"'))


def test_preset_opens_with_settings_of_spec_still_and_stream() -> None:
    stream = open_stream("fractal-video", device="cpu", height=8, width=8, frames=3, seed=4, split="test")
    assert isinstance(stream, VideoStream) and stream.num_classes == 10
    assert (stream.seed, stream.split, stream.spec.frames, stream.spec.still.height) == (4, "test", 3, 8)
    assert stream[0].image.shape == (3, 3, 8, 8)
    assert np.array_equal(stream.labels(range(20)), stream.generate(range(20)).labels)
    plain = find_preset("fractal-video")
    assert (plain.frames, plain.still.height, plain.num_classes) == (16, 64, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames must be a whole number from 1 to 4096 frames, got 0"),
        ({"frames": 4097}, "4097"),
        ({"path": "spiral"}, "'linear', 'loop', 'constant_speed', got 'spiral'"),
        ({"speed": 0.1}, "speed is of path='constant_speed'"),
        ({"path": "constant_speed"}, "got None"),
        ({"path": "constant_speed", "speed": float("nan")}, "got nan"),
        ({"path": "constant_speed", "speed": 0.3, "frames": 6}, r"\(0, 0.2\], so that 6 frames"),
        ({"moving": ("poly1",)}, "'poly1' belongs to the class"),
        ({"moving": ("centre_x",)}, "can move: alpha, beta, power, frequency"),
        ({"moving": ()}, "nothing moves"),
        ({"still": STILL.replace(priors=dict.fromkeys(MOVING, Constant(1.0)))}, "nothing moves"),
        ({"still": STILL.replace(priors={"power": Choice((2.0, 3.0))}), "moving": ("power",)}, "neither Uniform"),
        ({"still": "fractal-10"}, "still must be a StreamSpec, got str"),
    ],
)
def test_refuses_with_the_value_and_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        VideoSpec(**{"still": STILL, **changes})


def test_refuses_unknown_names_frames_and_indices() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'alpha'"):
        VideoSpec(still=STILL, moving=("alpa",))
    stream = clips()
    with pytest.raises(IndexRangeError, match=r"\[0, 6\), got 6"):
        stream.frames([0], [6])
    with pytest.raises(IndexRangeError):
        stream.frames([0], [-1])
    with pytest.raises(IndexRangeError):
        stream.generate([2**63])
    with pytest.raises(InvalidValueError, match="got 2 for 1"):
        stream.frames([0], [1, 2])
    with pytest.raises(InvalidValueError, match="presets open by open_stream"):
        VideoStream("fractal-video")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="StreamSpec, VideoSpec, SeedCodeSpec"):
        open_stream(42)


@pytest.mark.gpu
@pytest.mark.parametrize("path", PATHS)
def test_a_gpu_draws_the_same_paths(path: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    spec = VideoSpec(still=STILL.replace(height=32, width=32), frames=6, **PATHS[path])
    here = VideoStream(spec, device="cpu").generate(range(64))
    stream = VideoStream(spec, device="cuda")
    there = stream.generate(range(64))
    assert there.images.is_cuda and there.images.shape == here.images.shape
    far = (np.abs(there.images.cpu().numpy().astype(int) - here.images) > 2).any(axis=2).mean()
    assert far < 0.01
    assert np.array_equal(there.labels.cpu().numpy(), here.labels)
    for name, row in here.latents.items():
        assert np.array_equal(there.latents[name].cpu().numpy(), row)
    frames = stream.frames([9, 63, 0], [5, 0, 2])
    assert torch.equal(frames.images, there.images[[9, 63, 0], [5, 0, 2]])
