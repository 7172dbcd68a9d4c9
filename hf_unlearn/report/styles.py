# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Colours, markers and lines of the pictures of a report, on a light page and on a dark one."""

from collections.abc import Sequence

import numpy as np

from .formats import visible


# Okabe and Ito's palette without yellow and black, and three dark ones: told apart under every colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#332288", "#5C4000")
# On a dark page the dark ones would drown.
IN_DARK = {"#882255": "#A8F0A8", "#332288": "#A848F0", "#5C4000": "#C0A860"}
MARKERS = ("o", "^", "D", "v", "P", "X", "<", "p", ">", "h", "d")
LINES = ("-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
REFERENCE_MARKERS = ("s", "*", "8")
LONGEST = 48  # characters of a name in a picture


def styles(methods: Sequence[str], references: Sequence[str] = ()) -> dict[str, dict]:
    """matplotlib's colour, marker and line of each method, in order; the reference models are black.

    Nine methods share neither colour nor marker, and no two of the first 396 share all three.
    """
    tried = [method for method in dict.fromkeys(methods) if method not in references]
    # Nine colours, eleven markers and four lines: they come round again at different places.
    chosen = {
        method: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i % len(LINES)],
        }
        for i, method in enumerate(tried)
    }
    return chosen | {
        method: {"color": "black", "marker": marker, "linestyle": "--"}
        for method, marker in zip(references, REFERENCE_MARKERS, strict=False)
    }


def plain(text: str) -> str:
    """A name as matplotlib shows it: "$" begins no formula, "_" hides it from no legend, and its length has an end."""
    shown = " ".join(visible(text).split())
    shown = (shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…").replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def turn_dark(figure):
    """Change the colours of a figure to those of a dark page: greys and black turn light, and it has no background."""
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    names = {
        Line2D: ("color", "markerfacecolor", "markeredgecolor"),
        Patch: ("facecolor", "edgecolor"),
        Collection: ("facecolor", "edgecolor"),
        Text: ("color",),
    }
    for kind, properties in names.items():
        for artist in figure.findobj(kind):
            # All are read before one is set: some follow others.
            found = {name: getattr(artist, f"get_{name}")() for name in properties}
            for name, colour in found.items():
                getattr(artist, f"set_{name}")(_in_dark(colour))
    figure.patch.set_alpha(0)
    for ax in figure.axes:
        ax.patch.set_alpha(0)


def _in_dark(colour):
    """One colour, or an array of them, on a dark page."""
    from matplotlib.colors import to_hex, to_rgba, to_rgba_array

    if isinstance(colour, np.ndarray) and colour.ndim == 2:
        return [_in_dark(tuple(one)) for one in colour]
    if isinstance(colour, str) and colour == "none":
        return colour
    red, green, blue, alpha = to_rgba(colour)
    if red == green == blue:
        level = 0.93 - 0.78 * red
        return level, level, level, alpha
    swapped = IN_DARK.get(to_hex(colour).upper())
    return colour if swapped is None else (*to_rgba_array(swapped)[0][:3], alpha)
