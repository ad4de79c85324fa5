"""What the state of a reader holds, and which states it takes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fractal_streams.errors import InvalidValueError, VersionError
from fractal_streams.shard import INDEX_END
from fractal_streams.spec import whole

STATE_VERSION, STATE = 1, ("version", "stream", "length", "position")


def check_state(state: Mapping[str, Any], digest: str, length: int | None, *, needs: Sequence[str] = ()) -> None:
    """Refuse what is no state, or one of a newer version, another stream or another length."""
    missing = {*STATE, *needs} - set(state)
    if missing:
        raise InvalidValueError(f"not a state of a reader of a stream: it has no {', '.join(sorted(missing))}")
    if state["version"] != STATE_VERSION:
        raise VersionError(
            f"state version {state['version']!r} is not {STATE_VERSION}: use the fractal-streams version that saved it"
        )
    for name, here in (("stream", digest), ("length", length)):
        if state[name] != here:
            raise InvalidValueError(
                f"this state was saved with {name} {state[name]}, this dataset has {name} {here}: open the same stream "
                f"with the same length, or begin anew with start="
            )
    whole(state.get("epoch", 0), "epoch of the state", 0, INDEX_END, "")
    whole(state["position"], "position of the state", 0, 2**127, "samples consumed")
