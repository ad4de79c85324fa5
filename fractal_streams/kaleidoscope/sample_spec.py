"""What a stream of kaleidoscope samples draws: which iterates of which chains, and what they are labelled with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fractal_streams.errors import InvalidValueError
from fractal_streams.kaleidoscope.chain import MAX_STEPS, Schedule
from fractal_streams.kaleidoscope.fitted_spec import FittedSpec
from fractal_streams.kaleidoscope.starts import Jitter
from fractal_streams.spec import one_of, whole

MODES = ("samples", "early", "pairs", "clips")
MAX_FRAMES = 1024
MAX_ITERATES = 256
"""Most different iterates that pictures of one stream may be drawn from: all of them are kept while chains run."""
MAX_TRIALS = 64


@dataclass(frozen=True, kw_only=True)
class KaleidoscopeSpec(FittedSpec):
    """What a stream of samples draws: pictures that a network has made of noise; see `FittedSpec` for the rest.

    mode: what is shown. "samples", the state at rest, or behind step `most`; "early", an earlier iterate, labelled
        with where its chain ends; "pairs", the same with the end as latent "target"; "clips", several iterates.
    label: "class", of the source nearest to the end; or "attractor", its row in the table of attractors, with one more
        class for ends at none.
    iterate: which one is shown, 0 (the start) to `most`; the first one of clips. None is 1, and 0 of clips.
    last_iterate: where it is above `iterate`, the iterate shown is drawn between both, each with equal chances; not of
        clips. None is `iterate`.
    frames, stride: of clips; frame t is iterate + stride * t. None is 8 and 1.
    stratified: whether classes come with equal chances, as far as the networks have attractors of them; see
        `KaleidoscopeStream`.
    trials: chains at most for a stratified sample, 1 to 64.
    jitter, jitter_kind: size and kind of noise behind each step, see `Jitter`; with it chains don't rest.

    Raises:
        InvalidValueError: names the field, the value and the allowed range.

    Example:
        >>> spec = KaleidoscopeSpec(model="kaleidoscope-10", mode="clips", frames=4)
        >>> KaleidoscopeSpec.from_json(spec.to_json()) == spec, spec.iterates
        (True, (0, 1, 2, 3))
    """

    mode: Literal["samples", "early", "pairs", "clips"] = "samples"
    label: Literal["class", "attractor"] = "class"
    iterate: int | None = None
    last_iterate: int | None = None
    frames: int | None = None
    stride: int | None = None
    stratified: bool = False
    trials: int = 8
    jitter: float = 0.0
    jitter_kind: str = "normal"

    kind: ClassVar[str] = "kaleidoscope"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.mode, "mode", MODES)
        one_of(self.label, "label", ("class", "attractor"))
        if not isinstance(self.stratified, bool):
            raise InvalidValueError(f"stratified must be true or false, got {self.stratified!r}")
        made: dict[str, Any] = {
            "trials": whole(self.trials, "trials", 1, MAX_TRIALS, "chains"),
            "jitter": Jitter(kind=self.jitter_kind, size=self.jitter).size,
        }
        shown, clips = self.mode != "samples", self.mode == "clips"
        self._only("iterate", shown, "early, pairs or clips")
        self._only("last_iterate", shown and not clips, "early or pairs")
        self._only("frames", clips, "clips")
        self._only("stride", clips, "clips")
        if shown:
            first = (0 if clips else 1) if self.iterate is None else self.iterate
            made["iterate"] = first = whole(first, "iterate", 0, self.most, "steps")
        if shown and not clips:
            last = first if self.last_iterate is None else self.last_iterate
            most = min(self.most, first + MAX_ITERATES - 1)
            made["last_iterate"] = whole(last, "last_iterate", first, most, "steps")
        if clips:
            made["frames"] = whole(8 if self.frames is None else self.frames, "frames", 1, MAX_FRAMES, "frames")
            made["stride"] = whole(1 if self.stride is None else self.stride, "stride", 1, MAX_STEPS, "steps")
        for name, value in made.items():
            object.__setattr__(self, name, value)
        if shown and self.iterates[-1] > self.most:
            raise InvalidValueError(
                f"the last of {self.frames} frames is iterate {self.iterates[-1]}, and chains have most={self.most} "
                f"steps: raise most, or lower frames or stride"
            )
        self.schedule  # noqa: B018  refuses jitter of chains that rest

    def _only(self, name: str, allowed: bool, modes: str) -> None:
        if getattr(self, name) is not None and not allowed:
            raise InvalidValueError(
                f"{name}={getattr(self, name)!r} is of mode {modes}, and mode is {self.mode!r}: leave it out"
            )

    @property
    def iterates(self) -> tuple[int, ...]:
        """Those that may be shown, increasing; none of "samples"."""
        if self.iterate is None:
            return ()
        if self.frames is not None and self.stride is not None:
            return tuple(self.iterate + self.stride * frame for frame in range(self.frames))
        return tuple(range(self.iterate, (self.last_iterate or self.iterate) + 1))

    @property
    def rest(self) -> float:
        """The tolerance; of chains with jitter 0."""
        return 0.0 if self.jitter and self.tolerance is None else super().rest

    @property
    def schedule(self) -> Schedule:
        """How long chains run, and what is kept of them."""
        noise = Jitter(kind=self.jitter_kind, size=self.jitter) if self.jitter else None
        return Schedule(most=self.most, tolerance=self.rest, keep=self.iterates, jitter=noise)

    @property
    def line(self) -> str:
        """What is drawn, in a line."""
        span = "" if not self.iterates else f"{self.iterates[0]}"
        span += f" to {self.iterates[-1]}" if len(self.iterates) > 1 else ""
        one = f"iterate{'s' * (len(self.iterates) > 1)} {span}"
        what = {"samples": "ends", "early": one, "pairs": one, "clips": f"{self.frames} iterates"}[self.mode]
        more = {"early": ", labelled with their ends", "pairs": ", with their ends"}.get(self.mode, "")
        even = ", in equal shares" if self.stratified else ""
        return f"{what} of chains of {self.model or 'a kaleidoscope'} from {self.start} noise{more}{even}"
