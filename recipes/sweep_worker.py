"""One slot of a sweep: a process that trains what it is told to, one run after the other.

It reads a line of JSON with the settings of a ViT, trains it, and answers with a line that says what came of it, until
nothing more comes. A run that fails ends the process, as a GPU may be of no use to it then; one that diverges does not.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from typing import Any

from fractal_streams.errors import DivergedError, missing_extra

try:
    import torch
    from fractal_streams.recipes import vit
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None


def outcome(told: dict[str, Any]) -> dict[str, str]:
    """Trains a ViT; "outcome" is "trained", "diverged" or "failed", "error" what was wrong."""
    try:
        vit.run(vit.ViTSettings(**told))
    except DivergedError as error:
        return {"outcome": "diverged", "error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"outcome": "trained", "error": ""}


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed belongs in the log
    for line in sys.stdin:
        said = outcome(json.loads(line))
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        if said["outcome"] == "failed":
            sys.exit(1)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
