"""What the synthetic town is made of: a closed road, and textured rectangles in space.

World: x east, y north, z up, metres, the ground at z = 0; the road's centre line runs anticlockwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from vmloc_ros.datasets.town_atlas import Atlas, AtlasBuilder
from vmloc_ros.geometry import Array

Tint = tuple[float, float, float]

UP = np.array([0.0, 0.0, 1.0])


class Loop:
    """A closed curve (x, y) by arc length."""

    def __init__(self, rng: np.random.Generator, length_m: float) -> None:
        angle = np.linspace(0.0, 2.0 * np.pi, 721)
        radius = np.ones_like(angle)
        for harmonic, size in ((2, 0.20), (3, 0.055), (4, 0.030), (5, 0.012)):
            phase = rng.uniform(0.0, 2.0 * np.pi)
            radius += size * np.cos(harmonic * angle + phase)
        points = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
        points[-1] = points[0]
        for _ in range(2):  # the second pass evens out what chords cut off
            chords = np.linalg.norm(np.diff(points, axis=0), axis=1)
            along = np.concatenate([[0.0], np.cumsum(chords)])
            points *= length_m / along[-1]
            self._spline = CubicSpline(along * (length_m / along[-1]), points, bc_type="periodic")
            points = self._spline(np.linspace(0.0, length_m, 4001))
            points[-1] = points[0]
        self.length_m = length_m

    def point(self, s: Array | float) -> Array:
        """(..., 2) positions."""
        return np.asarray(self._spline(np.mod(s, self.length_m)), dtype=float)

    def tangent(self, s: Array | float) -> Array:
        """(..., 2) unit directions."""
        derivative = self._spline(np.mod(s, self.length_m), 1)
        return np.asarray(derivative / np.linalg.norm(derivative, axis=-1, keepdims=True), dtype=float)

    def normal(self, s: Array | float) -> Array:
        """(..., 2) unit vectors to the left."""
        tangent = self.tangent(s)
        return np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1)

    def curvature(self, s: float) -> float:
        """Positive in a left turn, 1/m."""
        (x1, y1), (x2, y2) = self._spline(s % self.length_m, 1), self._spline(s % self.length_m, 2)
        return float((x1 * y2 - y1 * x2) / (x1 * x1 + y1 * y1) ** 1.5)


@dataclass(frozen=True, eq=False)
class Scene:
    """Q rectangles `origin + u right + v down`, 0 <= u, v <= 1, and what is drawn on them.

    `origin_Q3`, `right_Q3`, `down_Q3` float64; `texture_Q`; `tint_Q3` multiplies the colours; `lit_Q` is False for what
    gives its own light (the sky); `both_sides_Q` is seen from behind, too. `variant_Q`: -1, or the sky it belongs to.
    """

    origin_Q3: Array
    right_Q3: Array
    down_Q3: Array
    texture_Q: NDArray[np.int32]
    tint_Q3: NDArray[np.float32]
    lit_Q: NDArray[np.bool_]
    both_sides_Q: NDArray[np.bool_]
    variant_Q: NDArray[np.int32]
    atlas: Atlas
    loop: Loop
    facades: int

    def normals(self) -> Array:
        """(Q, 3) unit normals of the sides that the textures are on."""
        normals = np.cross(self.down_Q3, self.right_Q3)
        return np.asarray(normals / np.linalg.norm(normals, axis=1, keepdims=True), dtype=float)


@dataclass
class SceneBuilder:
    """Collects rectangles."""

    atlas: AtlasBuilder = field(default_factory=AtlasBuilder)
    rows: list[tuple[Array, Array, Array, int, Tint, bool, bool, int]] = field(default_factory=list)

    def quad(
        self, origin: Array, right: Array, down: Array, texture: int, tint: Tint = (1.0, 1.0, 1.0),
        lit: bool = True, both_sides: bool = False, variant: int = -1,
    ) -> None:  # fmt: skip
        """One rectangle, `origin` its upper left corner as seen from its front."""
        self.rows.append((origin, right, down, texture, tint, lit, both_sides, variant))

    def upright(
        self, centre_2: Array, direction_2: Array, width: float, height: float, texture: int,
        tint: Tint = (1.0, 1.0, 1.0), bottom: float = 0.0, both_sides: bool = False,
    ) -> None:  # fmt: skip
        """A vertical rectangle on the ground; `direction_2` points to the right for who looks at its front."""
        right = np.array([*direction_2, 0.0]) * width
        origin = np.array([*centre_2, bottom + height]) - 0.5 * right
        self.quad(origin, right, -height * UP, texture, tint, both_sides=both_sides)

    def block(
        self, centre_2: Array, along_2: Array, size_3: tuple[float, float, float], sides: tuple[int, int], top: int,
        tint: Tint = (1.0, 1.0, 1.0), bottom: float = 0.0,
        top_tint: Tint | None = None,
    ) -> None:  # fmt: skip
        """A box: `size_3` along, across, up; textures of the long sides, of the ends, of the top."""
        length, width, height = size_3
        across = np.array([-along_2[1], along_2[0]])
        for sign in (1.0, -1.0):
            self.upright(centre_2 - sign * 0.5 * width * across, sign * along_2, length, height, sides[0], tint, bottom)
            self.upright(centre_2 + sign * 0.5 * length * along_2, sign * across, width, height, sides[1], tint, bottom)
        corner = np.array([*(centre_2 - 0.5 * length * along_2 + 0.5 * width * across), bottom + height])
        self.quad(corner, np.array([*along_2, 0.0]) * length, np.array([*-across, 0.0]) * width, top, top_tint or tint)

    def build(self, loop: Loop, facades: int) -> Scene:
        origin, right, down, texture, tint, lit, both, variant = zip(*self.rows, strict=True)
        return Scene(
            np.array(origin), np.array(right), np.array(down), np.array(texture, dtype=np.int32),
            np.array(tint, dtype=np.float32), np.array(lit), np.array(both), np.array(variant, dtype=np.int32),
            self.atlas.build(), loop, facades,
        )  # fmt: skip
