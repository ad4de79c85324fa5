"""Texts and figures of a run as files that are there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fractal_streams.contact_sheet import whole_file


def save_text(path: Path, text: str) -> None:
    """Write a text.

    Raises:
        InvalidValueError: the folder is not there.
    """

    def write(place: Path) -> None:
        place.write_text(text)

    whole_file(path, write)


def write_json(path: Path, values: Any) -> None:
    """Write figures, for programs.

    Raises:
        InvalidValueError: the folder is not there.
    """
    save_text(path, json.dumps(values, indent=2) + "\n")
