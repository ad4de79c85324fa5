"""Rows of figures, a row for each fitted network: their means, and files of them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fractal_streams.errors import missing_extra
from fractal_streams.kaleidoscope.network import Float64
from fractal_streams.kaleidoscope.plots import save_text, with_ending

Row = dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """Rows with the same names.

    Example:
        >>> table = Table(rows=({"depth": 3, "model": 0, "reached": 4.0}, {"depth": 3, "model": 1, "reached": 2.0}))
        >>> table.means(("depth",), ("reached",))
        [{'depth': 3, 'networks': 2, 'reached': 3.0, 'reached_sd': 1.0}]
    """

    rows: tuple[Row, ...]

    def values(self, name: str, **where: Any) -> Float64:
        """(K,) float64 of one column, of the rows that have the values asked for."""
        chosen = [row[name] for row in self.rows if all(row[key] == value for key, value in where.items())]
        return np.asarray([np.nan if value is None else value for value in chosen], np.float64)

    def means(self, keys: Sequence[str], names: Sequence[str]) -> list[Row]:
        """A row for each set of keys: mean and standard deviation ("NAME_sd") over its networks."""
        groups = list(dict.fromkeys(tuple(row[key] for key in keys) for row in self.rows))
        found = []
        for group in groups:
            where = dict(zip(keys, group, strict=True))
            columns = {name: self.values(name, **where) for name in names}
            row: Row = {**where, "networks": len(next(iter(columns.values())))}
            for name, column in columns.items():
                row[name], row[f"{name}_sd"] = rounded(column.mean()), rounded(column.std())
            found.append(row)
        return found

    def save_csv(self, path: str | Path) -> Path:
        """Write all rows as CSV; the file appears whole or not at all."""
        return save_csv(path, self.rows)

    def save_json(self, path: str | Path) -> Path:
        """Write all rows as JSON; the file appears whole or not at all."""
        return save_text(with_ending(path, ".json"), json.dumps({"rows": list(self.rows)}, indent=1) + "\n")


def save_csv(path: str | Path, rows: Sequence[Row]) -> Path:
    """Write rows as CSV, the names first."""
    place, text = with_ending(path, ".csv"), io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return save_text(place, text.getvalue())


def rounded(value: Any) -> float:
    """A float of six digits."""
    return float(f"{float(value):.6g}")


@contextlib.contextmanager
def progress_bar(total: int, title: str, unit: str, shown: bool) -> Iterator[Any]:
    """A bar with rate and time left, or one that shows nothing.

    Raises:
        MissingExtraError: one is asked for and tqdm is not installed.
    """
    if not shown:
        yield Silent()
        return
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise missing_extra("tqdm", "cli") from None
    with tqdm(total=total, desc=title, unit=f" {unit}", dynamic_ncols=True) as bar:
        yield bar


class Silent:
    """A bar that shows nothing."""

    def update(self, count: int) -> None:
        pass
