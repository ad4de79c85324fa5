"""What is seen of an ALAE: each picture shows what it says, to the level of a pixel."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae import board, explore, history, pictures, showing
from fractal_streams.recipes.alae.model import ALAE, SIZES, Size
from fractal_streams.recipes.alae.priors import Gaussian
from PIL import Image
from torch import Tensor, nn

from fractal_streams import Batch, open_stream
from fractal_streams.contact_sheet import MARGIN, tile_scale
from fractal_streams.errors import InvalidValueError

EDGE = 8
SCALE = tile_scale(EDGE, EDGE)
STYLES = 4


class Turned(nn.Module):
    """A model whose codes are pictures in turned coordinates: decode undoes encode, but for what noise adds.

    Style k has the k-th part of the coordinates.
    """

    num_styles, flat, image_size, prior_size = STYLES, False, EDGE, 3 * EDGE * EDGE
    turn: Tensor
    mean_code: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        size = self.prior_size
        self.register_buffer("turn", torch.linalg.qr(torch.randn(size, size, generator=generator)).Q)
        self.register_buffer("mean_code", torch.zeros(size))
        self.forwards = 0

    def project(self, z: Tensor) -> Tensor:
        return z

    def encode(self, images: Tensor) -> Tensor:
        self.forwards += 1
        return images.flatten(1) @ self.turn

    def styles(self, w: Tensor) -> Tensor:
        return w[:, None].expand(-1, STYLES, -1)

    def decode(self, w: Tensor, noise: bool = True) -> Tensor:
        self.forwards += 1
        if w.dim() == 3:
            parts = torch.arange(self.prior_size) * STYLES // self.prior_size
            w = w[:, parts, torch.arange(self.prior_size)]
        made = (w @ self.turn.T).unflatten(1, (3, EDGE, EDGE))
        return made + torch.rand_like(made) if noise or self.training else made

    def truncated(self, w: Tensor, psi: float, cutoff: int) -> Tensor:
        assert cutoff == STYLES
        return self.styles(torch.lerp(self.mean_code.expand_as(w), w, psi))


def images(count: int, name: str = "fractal-10", **form: Any) -> Batch:
    stream = open_stream(
        name, split="test", device="cpu", height=EDGE, width=EDGE, dtype="float32", mean=(0.5,) * 3, std=(0.5,) * 3,
        **form,
    )  # fmt: skip
    return stream.generate(range(count)).torch()


def levels(pictures: Tensor) -> np.ndarray:
    """(..., 3, H, W) uint8, by NumPy in float64."""
    return np.clip(np.rint((pictures.double().numpy() + 1.0) * 127.5), 0, 255).astype(np.uint8)


def same(found: np.ndarray, pictures: Tensor, within: int = 0) -> bool:
    """Whether a tile is a picture, to a number of levels."""
    return bool((np.abs(found.astype(int) - levels(pictures).astype(int)) <= within).all())


def tiles(path: Path, rows: int, columns: int, groups: Any = (), row_groups: Any = (), words: int = 0) -> np.ndarray:
    """(rows, columns, 3, EDGE, EDGE) of a board: its tiles end a margin before its lower right corner.

    Args:
        words: rows and columns at whose crossing, in the upper left corner, there are words.
    """
    sheet = np.asarray(Image.open(path).convert("RGB"))
    size = EDGE * SCALE
    xs, ys = board.places(columns, size, groups), board.places(rows, size, row_groups)
    left, top = sheet.shape[1] - MARGIN - xs[-1] - size, sheet.shape[0] - MARGIN - ys[-1] - size
    found = np.empty((rows, columns, 3, EDGE, EDGE), np.uint8)
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            tile = sheet[top + y : top + y + size, left + x : left + x + size]
            found[row, column] = tile[::SCALE, ::SCALE].transpose(2, 0, 1)
            enlarged = found[row, column].repeat(SCALE, 1).repeat(SCALE, 2)
            assert max(row, column) < words or (enlarged == tile.transpose(2, 0, 1)).all()
    return found


@pytest.fixture(scope="module")
def model() -> Turned:
    return Turned()


@pytest.fixture(scope="module")
def reals() -> Tensor:
    return images(16).images


def draws(count: int) -> Tensor:
    return torch.randn(count, Turned.prior_size, generator=torch.Generator().manual_seed(2))


def test_the_grid_shows_reals_fakes_and_both_made_again(model: Turned, reals: Tensor, tmp_path: Path) -> None:
    z = 0.2 * draws(10)
    pictures.four_columns(model, reals[:10], z, tmp_path / "grid.png", "words")
    found = tiles(tmp_path / "grid.png", 8, 8, groups=(2, 4, 6))
    fakes = model.eval().decode(z, noise=False).clamp(-1, 1)
    model.train()
    for row in range(10):
        real, again, fake, fake_again = found[row % 8, 4 * (row // 8) :][:4]
        assert same(real, reals[row]) and same(again, reals[row], 1)
        assert same(fake, fakes[row]) and same(fake_again, fakes[row], 1)
    assert (
        found[2:, 4:] == np.array(board.BACKGROUND, np.uint8)[:, None, None]
    ).all()  # two rows are beside the others
    assert model.training  # as it was before


def test_what_lies_outside_is_clipped_and_nothing_is_stretched() -> None:
    dull = torch.full((3, EDGE, EDGE), -0.5)
    dull[:, 0, 0] = -0.6
    assert np.unique(board.levels(dull)).tolist() == [51, 64]
    assert np.unique(board.levels(4 * dull)).tolist() == [0]
    assert (board.levels(dull[:1]) == board.levels(dull)).all()
    with pytest.raises(InvalidValueError, match=r"\(2, 8, 8\)"):
        board.levels(dull[:2])


def test_equal_ends_have_themselves_between(model: Turned, reals: Tensor, tmp_path: Path) -> None:
    first, second = reals[[0, 1]], reals[[0, 2]]
    pictures.interpolation(model, first, second, tmp_path / "between.png")
    found = tiles(tmp_path / "between.png", 2, 9, groups=(1, 8))
    assert all(same(tile, reals[0], 1) for tile in found[0])
    assert same(found[1, 0], reals[1]) and same(found[1, 1], reals[1], 1)
    assert same(found[1, 4], (reals[1] + reals[2]) / 2, 1)  # the codes are linear in the pictures
    assert same(found[1, 8], reals[2]) and same(found[1, 7], reals[2], 1)


def test_a_mixture_has_coarse_styles_of_its_row_and_fine_ones_of_its_column(
    model: Turned, reals: Tensor, tmp_path: Path
) -> None:
    pictures.mixing_matrix(model, reals[:3], reals[2:4], tmp_path / "mixed.png", cutoff=1)
    found = tiles(tmp_path / "mixed.png", 5, 4, groups=(2,), row_groups=(2,), words=2)
    assert all(same(found[0, 2 + column], reals[2 + column]) for column in range(2))
    assert all(same(found[1, 2 + column], reals[2 + column], 1) for column in range(2))
    assert all(same(found[2 + row, 0], reals[row]) and same(found[2 + row, 1], reals[row], 1) for row in range(3))
    assert same(found[4, 2], reals[2], 1)  # one source for both: its reconstruction
    codes = model.encode(reals)
    own = torch.arange(model.prior_size) < model.prior_size // STYLES
    expected = (torch.where(own, codes[0], codes[3]) @ model.turn.T).view(3, EDGE, EDGE)
    assert same(found[2, 3], expected, 1) and not same(found[2, 3], reals[0], 1)
    for wrong in (0, STYLES):
        with pytest.raises(InvalidValueError, match=r"cutoff must lie in \[1, 3\]"):
            pictures.mixing_matrix(model, reals[:1], reals[:1], tmp_path / "no.png", cutoff=wrong)
    assert not (tmp_path / "no.png").exists()


def test_truncation_goes_from_the_mean_code_to_the_draw(model: Turned, tmp_path: Path) -> None:
    z = 0.3 * draws(2)
    pictures.truncations(model, z, tmp_path / "psi.png")
    found = tiles(tmp_path / "psi.png", 2, len(pictures.NEARNESS))
    whole = (z @ model.turn.T).view(2, 3, EDGE, EDGE)
    for row in range(2):
        assert (found[row, 0] == 128).all()
        assert same(found[row, -1], whole[row], 1) and same(found[row, 2], whole[row] / 2, 1)


def test_a_planted_direction_is_found_among_correlated_codes() -> None:
    generator = torch.Generator().manual_seed(3)
    true = torch.randn(1200, generator=generator)
    angle = math.tau * torch.rand(1200, generator=generator)
    planted = torch.nn.functional.normalize(torch.randn(3, 12, generator=generator), dim=1)
    noise = torch.randn(1200, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    codes = 40 * (true[:, None] * planted[0] + angle.sin()[:, None] * planted[1] + angle.cos()[:, None] * planted[2])
    partial = torch.where(torch.arange(1200) % 2 == 0, true, torch.nan)
    latents = {
        "power": 3 * true + 5, "alpha": angle, "none": torch.randn(1200, generator=generator),
        "half": partial, "constant": torch.ones(1200), "rare": torch.where(torch.arange(1200) < 20, true, torch.nan),
        "item": true,
    }  # fmt: skip
    found = explore.directions(codes + 2 * noise, latents)
    assert set(found) == {"power", "alpha, sine", "alpha, cosine", "none", "half"}
    for name, way in {"power": 0, "half": 0, "alpha, sine": 1, "alpha, cosine": 2}.items():
        assert float(found[name].vector @ planted[way]) > 0.99, name
        assert float(found[name].vector.norm()) == pytest.approx(1.0, abs=1e-5)
        assert 0.9 < found[name].r_squared < 1.0
    assert found["none"].r_squared < 0.05 and [*found][-1] == "none"
    assert found["power"].deviation == pytest.approx(40 * float(true.std()), rel=0.05)


def test_codes_that_collapsed_or_are_no_numbers_have_no_direction_to_tell() -> None:
    latents = {"power": torch.linspace(-1, 1, 200)[torch.arange(200) * 7 % 200]}
    still = explore.directions(torch.ones(200, 4), latents)["power"]
    assert still.r_squared < 0.05 and float(still.step.abs().max()) == 0.0
    assert explore.directions(torch.full((200, 4), torch.nan), latents) == {}


def test_a_traversal_moves_codes_by_deviations(model: Turned, reals: Tensor, tmp_path: Path) -> None:
    codes = model.encode(reals[:2])
    way = model.encode(torch.ones(1, 3, EDGE, EDGE))[0]  # of brightness
    known = {"brightness": explore.Direction(way / way.norm(), 0.1 * float(way.norm()), 0.7)}
    explore.traversal(model, codes, known, ["brightness"], tmp_path / "alone.png")
    explore.traversal(model, codes, known, ["brightness"], tmp_path / "moved.png", reals=reals[:2])
    found = tiles(tmp_path / "moved.png", 2, 8, groups=(1,))
    assert all(same(found[row, 0], reals[row]) for row in range(2))
    found = found[:, 1:]
    assert (tiles(tmp_path / "alone.png", 2, 7) == found).all()
    for row in range(2):
        for column, amount in enumerate(explore.STEPS):
            assert same(found[row, column], reals[row] + 0.1 * amount, 1)
    with pytest.raises(InvalidValueError, match=r"some of brightness, got \['hue'\]"):
        explore.traversal(model, codes, known, ["hue"], tmp_path / "no.png")


def clips(count: int = 3, frames: int = 5) -> Batch:
    return images(count, "fractal-video", frames=frames)


def test_an_animation_has_every_frame_and_what_was_made_of_it(model: Turned, tmp_path: Path) -> None:
    real = clips().images
    made = explore.remade(model, real)
    assert torch.allclose(made.again, real, atol=1e-5)
    assert torch.allclose(made.between[:, [0, -1]], real[:, [0, -1]], atol=1e-5)
    assert torch.allclose(made.between[:, 2], (real[:, 0] + real[:, -1]) / 2, atol=1e-5)
    explore.film(made, tmp_path / "film.png")
    found = tiles(tmp_path / "film.png", 9, 5, row_groups=(3, 6))
    assert all(same(found[3 * clip, time], real[clip, time]) for clip in range(3) for time in range(5))
    assert all(same(found[3 * clip + 1, time], real[clip, time], 1) for clip in range(3) for time in range(5))
    with pytest.raises(InvalidValueError, match="two frames or more"):
        explore.remade(model, real[:, :1])


def test_an_animation_is_a_video_or_where_none_can_be_written_a_gif(
    model: Turned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = clips(1).images[0]
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v2 as imageio

    written = explore.animated(model, real, tmp_path / "clip.mp4")
    assert written == tmp_path / "clip.mp4"
    with imageio.get_reader(written) as reader:
        assert reader.count_frames() == 5
    monkeypatch.setattr(explore, "find_spec", lambda name: None)
    written = explore.animated(model, real, tmp_path / "clip.mp4")
    assert written == tmp_path / "clip.gif"
    with Image.open(written) as film:
        assert film.n_frames == 5
        film.seek(3)
        shown = np.asarray(film.convert("RGB"))
    size = EDGE * SCALE
    tile = shown[-MARGIN - size : -MARGIN, MARGIN : MARGIN + size][::SCALE, ::SCALE].transpose(2, 0, 1).astype(int)
    assert np.abs(tile - levels(real[3])).mean() < 8  # 256 colours


def test_speeds_that_follow_are_told_and_those_that_do_not(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    start, pace = torch.randn(2, 40, 1, 2, generator=generator)
    track = start + pace * torch.arange(6.0)[:, None]
    latents = {"power": track[..., 0], "frequency": track[..., 1], "still": torch.ones(40, 6)}
    own = {name: values / float(values.std()) for name, values in latents.items() if name != "still"}
    code = torch.stack([*own.values()], -1).diff(dim=1).norm(dim=2)
    found = explore.followed(7 * code, latents)
    assert found.steps == pytest.approx(1.0) and found.clips == pytest.approx(1.0) and set(found.each) == set(own)
    assert found.ranks > 0.99  # steps of one clip are equal but for rounding
    assert explore.followed(-code, latents).steps == pytest.approx(-1.0)
    assert 0.2 < found.each["power"] < 0.95
    assert abs(explore.followed(torch.rand(40, 5, generator=generator), latents).steps) < 0.3
    assert math.isnan(explore.followed(torch.ones(40, 5), latents).steps)
    moving = clips(12)
    drawn = explore.speeds(Turned(), moving.images, moving.latents, tmp_path / "speeds.png")
    assert -1.0 <= drawn.steps <= 1.0 and (tmp_path / "speeds.png").stat().st_size > 10_000
    with pytest.raises(InvalidValueError, match="no parameter moves"):
        explore.followed(code, {"still": torch.ones(40, 6)})


def rows(count: int, spike: float = 900.0) -> list[dict[str, float]]:
    """Records with one loss out of bounds, and one slot that begins late."""
    return [
        {
            "step": step, "samples": 128 * step, "loss": 1.0, "rate": 1.0, "discriminator": 1.2 + 0.01 * math.sin(step),
            "generator": spike if step == 20 else 0.8 + 0.1 * math.cos(step), "reciprocity": 0.9**step,
            "real_score": 0.5, "fake_deviation": 0.3, "infonce": math.nan if step < 5 else 4.0 / step,
            "gradient_encoder": 1.0, **({"psnr": 17.0} if step % 10 == 0 else {}),
        }
        for step in range(1, count + 1)
    ]  # fmt: skip


def test_the_history_clips_to_robust_limits_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}

    def kept(axes: Any, panel: history.Panel, names: list[str], *rest: Any) -> None:
        draw_panel(axes, panel, names, *rest)
        drawn[panel.title] = (axes, names)

    draw_panel = history.draw_panel
    monkeypatch.setattr(history, "draw_panel", kept)
    history.loss_history(rows(150), tmp_path / "losses.png", "words")
    assert (tmp_path / "losses.png").stat().st_size > 10_000
    assert {title: names for title, (_, names) in drawn.items()} == {
        "adversarial losses": ["discriminator", "generator"], "reciprocity": ["reciprocity"],
        "scores of D": ["real_score"], "deviations": ["fake_deviation"], "slots": ["infonce"],
        "norms of gradients": ["gradient_encoder"],
    }  # fmt: skip
    axes = drawn["adversarial losses"][0]
    low, high = axes.get_ylim()
    assert 0.5 < low < 0.7 and 2 * math.log(2) < high < 1.6
    assert axes.get_title(loc="left") == "adversarial losses (clipped: 1 of 300 values outside)"
    assert any(np.allclose(line.get_ydata(), 2 * math.log(2)) for line in axes.lines)
    assert drawn["reciprocity"][0].get_yscale() == "log" and "log scale" in drawn["reciprocity"][0].get_title(
        loc="left"
    )
    slot = drawn["slots"][0]
    assert len(slot.lines[0].get_xdata()) == 146 and "not finite" not in slot.get_title(loc="left")
    with pytest.raises(InvalidValueError, match="2 records hold no loss"):
        history.loss_history([{"samples": 1, "loss": 1.0}] * 2, tmp_path / "no.png")


def test_a_running_median_is_that_of_its_window() -> None:
    values = np.array([5.0, 1.0, 4.0, 100.0, 2.0, 3.0])
    assert history.running_median(values, 3).tolist() == [3.0, 4.0, 4.0, 4.0, 3.0, 2.5]


def test_points_of_a_plane(tmp_path: Path) -> None:
    ring = torch.stack([torch.arange(64.0).cos(), torch.arange(64.0).sin()], 1)
    flat = Size(image_size=1, narrow=8, wide=8, code_size=4, projector=2)
    model = ALAE(flat, (2,), flat=True)
    pictures.point_cloud(model, ring, torch.randn(32, 4), tmp_path / "points.png")
    assert (tmp_path / "points.png").stat().st_size > 10_000
    with pytest.raises(InvalidValueError, match=r"got \(64, 3\)"):
        pictures.point_cloud(model, torch.ones(64, 3), torch.randn(32, 4), tmp_path / "no.png")


def test_a_board_wraps_long_headings_and_refuses_what_does_not_fit() -> None:
    tile = np.zeros((3, EDGE, EDGE), np.uint8)
    short, long = board.board([[tile, "words"]], ["a", "b"]), board.board([[tile, None]], ["a", "b " * 60])
    assert long.shape[0] > short.shape[0] and long.shape[1] == short.shape[1]
    for wrong in ([], [[None, None]], [[tile]]):
        with pytest.raises(InvalidValueError, match="rows of 2 tiles"):
            board.board(wrong, ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="one for each of 1 rows"):
        board.board([[tile]], ["a"], names=["x", "y"])


class Told:
    """A journal that remembers which pictures it was told."""

    def __init__(self) -> None:
        self.rows, self.pictures = rows(30), list[tuple[str, Path]]()

    def picture(self, name: str, path: Path) -> None:
        with Image.open(path) as image:
            image.verify()
        self.pictures.append((name, path))


def test_all_of_a_step_is_written_alike_each_time_and_draws_nothing(tmp_path: Path) -> None:
    stream = open_stream(
        "fractal-video", split="test", device="cpu", height=EDGE, width=EDGE, frames=5, dtype="float32",
        mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    model, told = Turned(), Told()
    shown = showing.Showing.of(stream, Gaussian(model.prior_size), stills=400, clips=8)
    assert shown.stills.images.shape == (100, 3, EDGE, EDGE) and shown.clips is not None
    assert (shown.stills.images[:8] == shown.clips.images[:, 0]).all()
    assert (shown.stills.latents["power"][:8] == shown.clips.latents["power"][:, 0]).all()
    random.seed(5)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = shown.save(model, tmp_path / "one", 1200, told)  # type: ignore[arg-type]
    assert (torch.get_rng_state() == before).all() and model.training
    forwards = model.forwards
    assert forwards < 30
    torch.manual_seed(6)
    second = shown.save(model, tmp_path / "two", 1200, told)  # type: ignore[arg-type]
    assert [*first] == [
        "four_columns", "interpolation", "truncation", "style_mixing", "traversal", "clips", "animation", "speeds",
        "losses",
    ]  # fmt: skip
    for name, path in first.items():
        assert path.parent == tmp_path / "one" / "00001200"
        assert path.read_bytes() == second[name].read_bytes(), name
    assert sorted(path.name for path in (tmp_path / "one").rglob("*.*")) == sorted(path.name for path in first.values())
    assert [name for name, _ in told.pictures[:8]] == [name for name in first if name != "animation"]


def test_an_alae_that_still_grows_is_shown_at_its_size(tmp_path: Path) -> None:
    own = Size(image_size=16, narrow=8, wide=8, code_size=8, projector=2)
    torch.manual_seed(0)
    model = ALAE(own, (3, 16, 16), first_level=1)
    model.grow(1)
    stream = open_stream(
        "fractal-10", split="test", device="cpu", height=16, width=16, dtype="float32", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    shown = showing.Showing.of(stream, Gaussian(8), stills=64)
    written = shown.save(model, tmp_path, 3)
    assert {"four_columns", "style_mixing", "traversal"} <= written.keys() and "clips" not in written
    found = tiles(written["four_columns"], 8, 8, groups=(2, 4, 6))
    halves = torch.nn.functional.avg_pool2d(shown.stills.images, 2)
    assert all(same(found[row % 8, 4 * (row // 8)], halves[row], 1) for row in range(16))


@pytest.mark.slow
def test_what_a_compiler_made_is_not_compiled_for_every_picture(reals: Tensor, tmp_path: Path) -> None:
    made: list[Any] = []

    def counted(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    model = ALAE(Size(image_size=8, narrow=8, wide=8, code_size=4, projector=2), (3, 8, 8))
    for network in (model.projector, model.generator, model.encoder):
        network.compile(backend=counted)
    model.encode(reals)
    compiled = len(made)
    pictures.truncations(model, torch.randn(3, 4), tmp_path / "psi.png")
    pictures.interpolation(model, reals[:2], reals[2:4], tmp_path / "between.png")
    assert len(made) == compiled > 0
    model.project(torch.randn(3, 4))
    assert len(made) > compiled  # and behind the pictures it compiles again


def test_a_failed_picture_leaves_the_last_one(
    model: Turned, reals: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grid.png"
    pictures.four_columns(model, reals, draws(16), path)
    bytes_of_first = path.read_bytes()
    save = Image.Image.save

    def broken(self: Image.Image, name: Any, **options: Any) -> None:
        save(self, name, **options)
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="no space"):
        pictures.four_columns(model, reals, draws(16) / 2, path)
    assert path.read_bytes() == bytes_of_first and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "draw",
    [
        lambda model, path: pictures.four_columns(model, torch.zeros(2, 3, 8, 8), torch.zeros(3, 192), path),
        lambda model, path: pictures.four_columns(model, torch.zeros(0, 3, 8, 8), torch.zeros(0, 192), path),
        lambda model, path: pictures.interpolation(model, torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, 8), path),
        lambda model, path: pictures.mixing_matrix(model, torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8), path),
    ],
)
def test_what_does_not_fit_together_is_refused(
    draw: Callable[[Turned, Path], None], model: Turned, tmp_path: Path
) -> None:
    with pytest.raises(InvalidValueError):
        draw(model, tmp_path / "no.png")


def test_the_flat_variant_has_no_styles_to_mix(tmp_path: Path) -> None:
    assert SIZES["mlp"].image_size == 28
    model = ALAE(Size(image_size=8, narrow=8, wide=8, code_size=4, projector=2), (3, 8, 8), flat=True)
    with pytest.raises(InvalidValueError, match="model of 1 style has none to mix"):
        pictures.mixing_matrix(model, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), tmp_path / "no.png")
