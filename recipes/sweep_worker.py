"""One slot of a sweep: a process that trains what it is told to, one run after the other.

    python -m fractal_streams.recipes.sweep_worker [vit | alae.train]

It reads a line of JSON with the settings of a run, trains it, and answers with a line that says what came of it. Once
nothing more can come it ends, at once. A run that fails ends it too, as a GPU may be of no use to it then; one that
diverges does not.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import queue
import sys
import threading
import traceback
from typing import Any

from fractal_streams.errors import DivergedError, missing_extra

try:
    import torch
except ImportError as error:
    raise missing_extra(str(error.name), "recipes") from None

RECIPES = {"vit": "ViTSettings", "alae.train": "ALAESettings"}
"""Those that are swept, and the class of their settings."""


def outcome(told: dict[str, Any], recipe: str = "vit") -> dict[str, str]:
    """Trains a run of a recipe; "outcome" is "trained", "diverged" or "failed", "error" what was wrong."""
    try:
        module = importlib.import_module(f"fractal_streams.recipes.{recipe}")
        module.run(getattr(module, RECIPES[recipe])(**told))
    except DivergedError as error:
        return {"outcome": "diverged", "error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"outcome": "trained", "error": ""}


def read(lines: queue.SimpleQueue[str]) -> None:
    """Ends the process once the sweep is over or was killed: nobody is to train in a folder behind another's back."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def main(recipe: str = "vit") -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed belongs in the log
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=read, args=(lines,), daemon=True).start()
    while True:
        said = outcome(json.loads(lines.get()), recipe)
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        if said["outcome"] == "failed":
            sys.exit(1)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(*sys.argv[1:])
