# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from hf_unlearn.report.plots import pareto
from hf_unlearn.report.styles import COLOURS, IN_DARK, styles, turn_dark
from hf_unlearn.report.vocabulary import TofuVocabulary
from tests.support.reports import TOFU_ROWS


PAGES = {"light": "#ffffff", "dark": "#14181d"}
# What an eye without one kind of cones sees, of linear RGB (Machado et al. 2009, severity 1).
BLIND = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    colour = np.array(to_rgb(colour))
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def lab(light):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(to_xyz @ light / np.array([0.9505, 1, 1.089]), 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(first, second):
    """The ratio of WCAG."""
    low, high = sorted(float(np.dot([0.2126, 0.7152, 0.0722], linear(colour))) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


def test_nine_lines_have_nine_colours_and_markers():
    looks = list(styles([f"method {number}" for number in range(9)], ["original", "retrained"]).values())
    for key in ("color", "marker"):
        assert len({look[key] for look in looks[:9]}) == 9
    assert {look["color"] for look in looks[9:]} == {"black"} and len({look["marker"] for look in looks}) == 11
    many = styles([f"method {number}" for number in range(396)]).values()
    assert len({(look["color"], look["marker"], look["linestyle"]) for look in many}) == 396


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("eye", BLIND)
def test_colours_are_told_apart_by_every_eye(page, eye):
    colours = [IN_DARK.get(colour, colour) for colour in COLOURS] if page == "dark" else COLOURS
    seen = [lab(np.clip(np.array(BLIND[eye]) @ linear(colour), 0, 1)) for colour in colours]
    # The least distance within Okabe and Ito's own eight colours is 16.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15.5
    assert min(contrast(colour, PAGES[page]) for colour in colours) > (3 if page == "dark" else 2.2)


def test_a_figure_turns_dark():
    figure = pareto(TOFU_ROWS, TOFU_ROWS[2:4], TofuVocabulary())
    turn_dark(figure)
    ax = figure.axes[0]
    assert contrast(ax.xaxis.label.get_color(), PAGES["dark"]) > 7
    assert contrast(ax.collections[0].get_facecolor()[0], PAGES["dark"]) > 7  # the original, black on a light page
    assert to_rgb(ax.collections[2].get_facecolor()[0]) == to_rgb(COLOURS[0])
    assert figure.patch.get_alpha() == 0 and ax.patch.get_alpha() == 0
