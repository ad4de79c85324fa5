"""What is seen of an ALAE while it trains: the same held-out pictures, draws and clips at each step, as files.

showing = Showing.of(stream, prior, video=clips)
...
if settings.evaluates(record.step):
    with loop.evaluating():
        showing.save(loop.averaged, folder / "pictures", record.step, journal)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fractal_streams.recipes.alae import explore, pictures
from fractal_streams.recipes.alae.board import encoded, looking
from fractal_streams.recipes.alae.history import loss_history
from fractal_streams.recipes.alae.model import fitted
from fractal_streams.recipes.data import held_out, on_device
from fractal_streams.recipes.loop import seeded

from fractal_streams import Batch, Stream
from fractal_streams.errors import InvalidValueError, missing_extra

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None
if TYPE_CHECKING:
    from fractal_streams.recipes.alae.model import ALAE
    from fractal_streams.recipes.alae.priors import Prior
    from fractal_streams.recipes.journal import Journal

STILLS, CLIPS = 1024, 64
"""Held-out pictures that directions are fitted to, and clips that speeds are told of."""
COLUMNS, PAIRS, MIXED, DRAWS, MOVED, ALONG, ANIMATED = 16, 6, 6, 8, 2, 6, 3
"""Shown: rows of the four columns, pairs between, sources of a mixture, draws nearer to the mean, codes that are moved,
directions of most R² that they are moved along, clips."""
TOLD = 0.02
"""R² from which on a direction is worth a look; where none has it, all are shown."""
HAVE = 0.5
"""Share of the pictures that must have a parameter to be moved along."""


class Showing:
    """Fixed pictures of a run, and all that is drawn of a model with them.

    Args:
        stills: N held-out pictures, (N, 3, H, W), or points (N, n), in [-1, 1] with their latents, 2 at least.
        prior: draws the same z each time; one that is made of the model's own codes follows the model.
        clips: (M, T, 3, H, W), or None.
        title: of every picture, before the step.

    Raises:
        InvalidValueError: fewer than two pictures, or clips that are none.
    """

    def __init__(self, stills: Batch, prior: Prior, *, clips: Batch | None = None, title: str = "ALAE") -> None:
        if len(stills.images) < 2 or stills.images.ndim not in (2, 4):
            raise InvalidValueError(
                f"stills must be (N, 3, H, W) or (N, n) with N at least 2, got {tuple(stills.images.shape)}"
            )
        if clips is not None and (clips.images.ndim != 5 or clips.images.shape[1] < 2):
            raise InvalidValueError(f"clips must be (M, T, 3, H, W), T at least 2, got {tuple(clips.images.shape)}")
        self.stills, self.prior, self.clips, self.title = stills, prior, clips, title

    @classmethod
    def of(
        cls, stream: Stream, prior: Prior, *, video: Stream | None = None, stills: int = STILLS, clips: int = CLIPS,
        val_seed: int = 0, device: torch.device | str | None = None, title: str = "ALAE",
    ) -> Showing:  # fmt: skip
        """Those of held-out streams.

        Args:
            stream: of the test split, in [-1, 1]; of one that makes clips, the first frames of a quarter as many are
                the stills.
            video: of clips in [-1, 1], as large as the stills. stills, clips: how many. val_seed: which.
            device: of the model; None leaves them where the streams make them.
        """
        if stream.generate(range(0)).images.ndim == 5:
            several = [*held_out(stream, max(clips, stills // 4), clips, val_seed)]
            found, moving = first_frames(several), several[0]
        else:
            (found,) = held_out(stream, max(COLUMNS, stills // stream.cost), stills, val_seed)
            moving = None
        if video is not None:
            (moving,) = held_out(video, clips, clips, val_seed)
        if device is not None:
            place = torch.device(device)
            found, moving = on_device(found, place), on_device(moving, place)
        return cls(found, prior, clips=moving, title=title)

    def save(self, model: ALAE, folder: Path, step: int, journal: Journal | None = None) -> dict[str, Path]:
        """Write what there is to see of a step into folder/<step>, and tell the journal's trackers.

        The random state is what it was before, and the model is in the mode in which it was.

        Returns:
            Name to file; what a model or the data can't show is left out.
        """
        place = Path(folder) / f"{step:08d}"
        place.mkdir(parents=True, exist_ok=True)
        written: dict[str, Path] = {}
        words = f"{self.title}, step {step:,}"
        with looking(model), as_before(), torch.autocast(self.stills.images.device.type, enabled=False):
            seeded("showing")
            for name, draw in self.drawn(model).items():
                path = place / f"{name}.png"
                draw(path, f"{words}: {name.replace('_', ' ')}")
                written[name] = path
            if self.clips is not None:
                written |= self.moving(model, place, words)
        if journal is not None and journal.rows:
            written["losses"] = place / "losses.png"
            loss_history(journal.rows, written["losses"], words)
        if journal is not None:
            for name, path in written.items():
                if path.suffix == ".png":
                    journal.picture(name, path)
        return written

    def drawn(self, model: ALAE) -> Mapping[str, Callable[[Path, str], None]]:
        """Name to what draws it, of stills."""
        images = fitted(self.stills.images, model)
        shown = min(COLUMNS, len(images))
        z = self.prior.draw(first_of(self.stills, images, len(images) if images.ndim == 2 else shown), model)
        if images.ndim == 2:
            if images.shape[1] != 2:
                return {}
            return {"points": lambda path, title: pictures.point_cloud(model, images, z, path, title)}
        pairs, mixed = min(PAIRS, len(images) // 2), min(MIXED, len(images) // 2)
        found: dict[str, Callable[[Path, str], None]] = {
            "four_columns": lambda path, title: pictures.four_columns(model, images[:shown], z, path, title),
            "interpolation": lambda path, title: pictures.interpolation(
                model, images[:pairs], images[pairs : 2 * pairs], path, title
            ),
            "truncation": lambda path, title: pictures.truncations(model, z[:DRAWS], path, title),
        }
        if model.num_styles > 1:
            found["style_mixing"] = lambda path, title: pictures.mixing_matrix(
                model, images[:mixed], images[mixed : 2 * mixed], path, title=title
            )
        codes = encoded(model, images)
        known = explore.directions(codes, self.stills.latents, max(explore.FEWEST, int(HAVE * len(images))))
        names = [name for name, each in known.items() if each.r_squared >= TOLD] or [*known]
        if known:
            found["traversal"] = lambda path, title: explore.traversal(
                model, codes[:MOVED], known, names[:ALONG], path, title, images[:MOVED]
            )
        return found

    def moving(self, model: ALAE, place: Path, words: str) -> dict[str, Path]:
        """What is drawn of clips."""
        assert self.clips is not None
        clips = self.clips.images
        images = fitted(clips.flatten(0, 1), model).unflatten(0, tuple(clips.shape[:2]))
        made = explore.remade(model, images[:ANIMATED])
        written = {"clips": place / "clips.png"}
        explore.film(made, written["clips"], f"{words}: clips made again")
        written["animation"] = explore.animated(model, made, place / "clips.mp4", words)
        with suppress(InvalidValueError):  # of clips that no known parameter moves, such as one's own
            explore.speeds(model, images, self.clips.latents, place / "speeds.png", f"{words}: speeds of clips")
            written["speeds"] = place / "speeds.png"
        return written


def first_of(batch: Batch, images: Tensor, count: int) -> Batch:
    """The first samples of a batch, with these pictures in place of its own."""
    latents = {name: values[:count] for name, values in batch.latents.items()}
    return Batch(batch.index[:count], images[:count], batch.labels[:count], latents)


def first_frames(batches: Sequence[Batch]) -> Batch:
    """The first frames of clips, with the parameters that they have then."""
    return Batch(
        torch.cat([batch.index for batch in batches]), torch.cat([batch.images[:, 0] for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        {name: torch.cat([batch.latents[name][:, 0] for batch in batches]) for name in batches[0].latents},
    )  # fmt: skip


@contextmanager
def as_before() -> Iterator[None]:
    """Leaves torch's random state behind as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
