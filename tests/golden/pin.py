"""Pin the golden values of new presets; never overwrites one that is pinned."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SENTENCE = "change only with a version bump"


def main(names: list[str]) -> None:
    sys.path[:0] = [str(HERE.parent)]
    from test_determinism import FITTED, OTHERS, first_draws, first_latents, mean_levels, parameter_digests

    from fractal_streams.presets import PRESETS

    kinds: dict[str, Any] = {
        "parameters": parameter_digests, "pictures": mean_levels, "latents": first_latents, "draws": first_draws,
    }  # fmt: skip
    for kind, measure in kinds.items():
        path = HERE / f"{kind}.json"
        pinned = json.loads(path.read_text()) if path.is_file() else {"": SENTENCE}
        for name in names:
            own = ("draws",) if name in FITTED else ("latents",) if name in OTHERS else ("parameters", "pictures")
            if kind not in own:
                continue
            if name in pinned:
                raise SystemExit(f"{name} is pinned already: {SENTENCE}")
            pinned[name] = measure(PRESETS[name])
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(pinned.items()))
        path.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
