"""What a class is called, where a name is asked for: captions, and torchvision's `.classes`."""

from __future__ import annotations

from typing import Any


def class_title(spec: Any, label: int) -> str:
    """The name of a class: its formula where formulas are the classes, else its number.

    Args:
        spec: of stills or clips; one with several `formulas` has class k of formula k modulo their number. One with
            `class_titles` names its classes itself.
        label: 0 to num_classes - 1.

    Example:
        >>> from fractal_streams import StreamSpec
        >>> class_title(StreamSpec(formulas=("mandelbrot", "sine"), num_classes=2), 1)
        'sine'
        >>> class_title(StreamSpec(formulas="polynomial_power", num_classes=10), 7)
        'class 7'
    """
    if titles := getattr(spec, "class_titles", ()):
        return str(titles[label])
    still = getattr(spec, "still", spec)
    formulas = tuple(getattr(still, "formulas", ()))
    if len(formulas) < 2:
        return f"class {label}"
    name = formulas[label % len(formulas)].rpartition(":")[2]
    return name if still.num_classes <= len(formulas) else f"{name} {label // len(formulas)}"
