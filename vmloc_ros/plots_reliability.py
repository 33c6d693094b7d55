"""Whether stated covariances are true: the share of frames inside the stated ellipsoids, against what is due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter
from scipy.stats import chi2

from vmloc_ros.evaluation import Answers
from vmloc_ros.geometry import Array
from vmloc_ros.metrics import binomial_band

PARTS = {"whole pose": slice(0, 6), "position": slice(0, 3), "rotation": slice(3, 6)}
"""Of the right perturbation (translation, rotation); the others are marginalised."""
LEVELS = np.linspace(0.0, 1.0, 201)
BAND: dict[str, Any] = {"color": "#bdbdbd", "alpha": 0.5, "lw": 0}
DIAGONAL: dict[str, Any] = {"color": "#7a7a7a", "lw": 0.9, "ls": (0, (4, 2))}


def probabilities(answers: Answers, part: slice) -> tuple[Array, float]:
    """Per frame the probability of an error no larger than the one made, by its own covariance; and mean NEES per dof.

    Where the covariances are true the probabilities are spread evenly over 0 to 1 (probability integral transform of
    the chi-square distribution).
    """
    d = answers.errors().tangent_N6[:, part]
    S = np.array(answers.covariances)[:, part, part]
    nees_N = np.einsum("ni,ni->n", d, np.linalg.solve(S, d[..., None])[..., 0])
    return np.asarray(chi2.cdf(nees_N, d.shape[1])), float(nees_N.mean() / d.shape[1])


def draw_reliability(
    figure: Figure, methods: Mapping[str, Answers], colours: Mapping[str, str], labels: Mapping[str, str]
) -> None:
    """Three panels, whole pose, position and rotation: nominal against empirical coverage of each mode.

    The band holds 95 % of what that many independent frames with true covariances would show. Frames of one drive are
    not independent, so a curve may leave it by a little for that reason alone.

    Args:
        methods: answers with covariances, by name.
        colours, labels: by name.
    """
    panels = figure.subplots(1, len(PARTS), sharex=True, sharey=True)
    fewest = min(len(answers.frames) for answers in methods.values())
    for axes, (title, part) in zip(panels, PARTS.items(), strict=True):
        _draw_band(axes, fewest)
        lines = []
        for name, answers in methods.items():
            values, nees = probabilities(answers, part)
            share = np.searchsorted(np.sort(values), LEVELS, side="right") / len(values)
            (line,) = axes.plot(LEVELS, share, lw=1.7, color=colours[name], label=f"{labels[name]}: {nees:.2f}")
            lines.append(line)
        axes.legend(
            handles=lines,
            title=f"mean NEES / {part.stop - part.start}",
            loc="lower right",
            fontsize=8,
            title_fontsize=8,
        )
        axes.set_title(title)
        axes.set_xlabel("stated probability (%)")
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator([0.0, 0.25, 0.5, 0.75, 1.0]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
    panels[0].set_xlim(0.0, 1.0)
    panels[0].set_ylim(0.0, 1.0)
    panels[0].set_ylabel("share of frames inside (%)")
    handles = [
        Line2D([], [], **DIAGONAL, label="true covariances (below: errors are larger than stated)"),
        Patch(**BAND, label=f"95 % of what {fewest} independent frames would show"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5)


def _draw_band(axes: Axes, count: int) -> None:
    low, high = binomial_band(LEVELS, count)
    axes.fill_between(LEVELS, low, high, zorder=1, **BAND)
    axes.plot([0, 1], [0, 1], zorder=1, **DIAGONAL)
