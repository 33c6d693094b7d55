"""The synthetic town as textured rectangles in space: a closed road, houses on both sides, trees, cars, hedges.

World: x east, y north, z up, metres, the ground at z = 0; the road's centre line runs anticlockwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from vmloc_ros.datasets import town_textures as textures
from vmloc_ros.datasets.town_atlas import Atlas, AtlasBuilder
from vmloc_ros.datasets.town_ground import PAVEMENT_M, ROAD_HALF_M, ground, sky
from vmloc_ros.datasets.town_textures import STYLES, Style
from vmloc_ros.geometry import Array

UP = np.array([0.0, 0.0, 1.0])
HOUSE_DEPTH_M = 8.0
SKY_M = 1500.0
SKIES = (
    ((92, 142, 206), (206, 218, 228), 0.12),
    ((120, 154, 200), (214, 220, 226), 0.42),
    ((176, 182, 190), (212, 214, 218), 0.85),
)


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
    rows: list[tuple[Array, Array, Array, int, tuple[float, float, float], bool, bool, int]] = field(
        default_factory=list
    )

    def quad(
        self, origin: Array, right: Array, down: Array, texture: int, tint: tuple[float, float, float] = (1.0, 1.0, 1.0),
        lit: bool = True, both_sides: bool = False, variant: int = -1,
    ) -> None:  # fmt: skip
        """One rectangle, `origin` its upper left corner as seen from its front."""
        self.rows.append((origin, right, down, texture, tint, lit, both_sides, variant))

    def upright(
        self, centre_2: Array, direction_2: Array, width: float, height: float, texture: int,
        tint: tuple[float, float, float] = (1.0, 1.0, 1.0), bottom: float = 0.0, both_sides: bool = False,
    ) -> None:  # fmt: skip
        """A vertical rectangle on the ground; `direction_2` points to the right for who looks at its front."""
        right = np.array([*direction_2, 0.0]) * width
        origin = np.array([*centre_2, bottom + height]) - 0.5 * right
        self.quad(origin, right, -height * UP, texture, tint, both_sides=both_sides)

    def block(
        self, centre_2: Array, along_2: Array, size_3: tuple[float, float, float], sides: tuple[int, int], top: int,
        tint: tuple[float, float, float] = (1.0, 1.0, 1.0), bottom: float = 0.0,
    ) -> None:  # fmt: skip
        """A box: `size_3` along, across, up; textures of the long sides, of the ends, of the top."""
        length, width, height = size_3
        across = np.array([-along_2[1], along_2[0]])
        for sign in (1.0, -1.0):
            self.upright(centre_2 - sign * 0.5 * width * across, sign * along_2, length, height, sides[0], tint, bottom)
            self.upright(centre_2 + sign * 0.5 * length * along_2, sign * across, width, height, sides[1], tint, bottom)
        corner = np.array([*(centre_2 - 0.5 * length * along_2 + 0.5 * width * across), bottom + height])
        self.quad(corner, np.array([*along_2, 0.0]) * length, np.array([*-across, 0.0]) * width, top, tint)

    def build(self, loop: Loop, facades: int) -> Scene:
        origin, right, down, texture, tint, lit, both, variant = zip(*self.rows, strict=True)
        return Scene(
            np.array(origin), np.array(right), np.array(down), np.array(texture, dtype=np.int32),
            np.array(tint, dtype=np.float32), np.array(lit), np.array(both), np.array(variant, dtype=np.int32),
            self.atlas.build(), loop, facades,
        )  # fmt: skip


def build_scene(seed: int, loop_m: float) -> Scene:
    """The town of a seed: the same, to the byte, whenever it is asked for."""
    rng = np.random.default_rng([seed, 1])
    loop = Loop(rng, loop_m)
    builder = SceneBuilder()
    kinds = [_house_textures(np.random.default_rng([2, k]), builder.atlas, style) for k, style in enumerate(STYLES)]
    footprints: list[Array] = []
    facades = 0
    for side in (1.0, -1.0):
        facades += _row_of_houses(rng, builder, loop, side, kinds, footprints)
    _furniture(rng, builder, loop)
    _ground_and_sky(rng, builder, loop, footprints)
    return builder.build(loop, facades)


@dataclass(frozen=True)
class _HouseTextures:
    style: Style
    front: int
    side: int
    gable: int
    roof: int


def _house_textures(rng: np.random.Generator, atlas: AtlasBuilder, style: Style) -> _HouseTextures:
    rise_px = int(2.6 * textures.PIXELS_PER_M)
    gable = textures.triangle(
        textures.wall(rng, style.wall, style.colour, rise_px, int(HOUSE_DEPTH_M * textures.PIXELS_PER_M))
    )
    return _HouseTextures(
        style, atlas.add(textures.facade(rng, style)), atlas.add(textures.side(rng, style, HOUSE_DEPTH_M)),
        atlas.add(gable), atlas.add(textures.tiles(rng, style.roof)),
    )  # fmt: skip


def _row_of_houses(
    rng: np.random.Generator, builder: SceneBuilder, loop: Loop, side: float, kinds: list[_HouseTextures],
    footprints: list[Array],
) -> int:  # fmt: skip
    """Houses along one side of the road (+1 left, -1 right), drawn from the shared kinds; how many."""
    hedges = [builder.atlas.add(textures.hedge(rng, c)) for c in ((62, 92, 46), (84, 104, 52), (50, 78, 50))]
    stones = builder.atlas.add(textures.wall(rng, "brick", (150, 96, 76), 40, 160))
    s, count, last = rng.uniform(0.0, 4.0), 0, -1
    end = s + loop.length_m
    while True:
        kind = kinds[int(rng.integers(len(kinds)))]
        if kind.style is kinds[last].style:
            continue
        setback = float(rng.choice([0.3, 0.3, 1.6, 3.0]))
        offset = side * (PAVEMENT_M + 0.3 + setback)
        squeeze = 1.0 - loop.curvature(s) * offset  # the row's length per metre of centre line
        gap = float(rng.choice([0.15, 0.15, 0.8, 3.4]))
        step = (kind.style.width_m + gap) / max(squeeze, 0.3)
        if s + step > end:
            return count
        middle = s + 0.5 * step
        along = side * loop.tangent(middle)
        front = loop.point(middle) + offset * loop.normal(middle)
        away = side * loop.normal(middle)
        tint = _tint(rng)
        footprints.append(_house(builder, kind, front, along, away, tint))
        if setback > 1.0:
            texture = stones if rng.random() < 0.4 else hedges[int(rng.integers(3))]
            centre = loop.point(middle) + side * (PAVEMENT_M + 0.5) * loop.normal(middle)
            size = (kind.style.width_m - 1.6, 0.4, 0.8 if texture == stones else float(rng.uniform(0.9, 1.5)))
            builder.block(centre + 0.8 * along, along, size, (texture, texture), texture)
        s, count, last = s + step, count + 1, kinds.index(kind)


def _tint(rng: np.random.Generator) -> tuple[float, float, float]:
    """A house's own shade of the shared texture."""
    light = rng.uniform(0.78, 1.12)
    red, green, blue = light * (1.0 + rng.normal(0.0, 0.03, 3))
    return float(red), float(green), float(blue)


def _house(
    builder: SceneBuilder, kind: _HouseTextures, front_2: Array, along_2: Array, away_2: Array,
    tint: tuple[float, float, float],
) -> Array:  # fmt: skip
    """A house whose facade's foot is centred at `front_2`; `along_2` runs to the right for who stands before it."""
    width, height, depth = kind.style.width_m, kind.style.height_m, HOUSE_DEPTH_M
    back = front_2 + depth * away_2
    middle = front_2 + 0.5 * depth * away_2
    builder.upright(front_2, along_2, width, height, kind.front, tint)
    builder.upright(back, -along_2, width, height, kind.side, tint)
    ends = ((middle + 0.5 * width * along_2, away_2), (middle - 0.5 * width * along_2, -away_2))
    for centre, right in ends:
        builder.upright(centre, right, depth, height, kind.side, tint)
    if kind.style.gabled:
        rise = 2.6
        slope = np.array([*(0.5 * depth * away_2), rise])
        for foot, direction, climb in (
            (front_2, along_2, slope), (back, -along_2, slope * np.array([-1.0, -1.0, 1.0]))
        ):  # fmt: skip
            right = np.array([*direction, 0.0]) * (width + 0.5)
            eave = np.array([*foot, height]) - 0.12 * climb
            builder.quad(eave + 1.12 * climb - 0.5 * right, right, -1.12 * climb, kind.roof, tint)
        for centre, right in ends:
            builder.upright(centre, right, depth, rise, kind.gable, tint, bottom=height, both_sides=True)
        chimney = middle + 0.3 * width * along_2 + 0.15 * depth * away_2
        builder.block(
            chimney, along_2, (0.9, 0.6, 2.2), (kind.side, kind.side), kind.roof, (0.6, 0.5, 0.5), height + 1.0
        )
    corners = [front_2 - 0.5 * width * along_2, front_2 + 0.5 * width * along_2]
    corners += [back + 0.5 * width * along_2, back - 0.5 * width * along_2]
    return np.array(corners)


CAR_COLOURS = (
    (168, 34, 34),
    (36, 62, 120),
    (226, 226, 226),
    (60, 62, 66),
    (150, 156, 160),
    (30, 96, 72),
    (214, 164, 40),
)


def _furniture(rng: np.random.Generator, builder: SceneBuilder, loop: Loop) -> None:
    """Trees, lamps, parked cars, pillar boxes: what stands between road and houses, at places of its own."""
    add = builder.atlas.add
    trees = [
        add(textures.tree(rng, c)) for c in ((74, 104, 48), (96, 116, 56), (122, 96, 52), (62, 92, 66), (150, 92, 60))
    ]
    cars = [
        (add(textures.car_side(c, False)), add(textures.car_side(c, True)), add(textures.car_cabin(c)), c)
        for c in CAR_COLOURS
    ]
    plain = add(np.full((16, 16, 3), 255, dtype=np.uint8))

    def grey(colour: tuple[int, int, int]) -> tuple[float, float, float]:
        return colour[0] / 255.0, colour[1] / 255.0, colour[2] / 255.0

    for _ in range(int(loop.length_m / 11.0)):
        s, side = rng.uniform(0.0, loop.length_m), float(rng.choice([-1.0, 1.0]))
        foot = loop.point(s) + side * (PAVEMENT_M - 0.5) * loop.normal(s)
        texture, size, turn = trees[int(rng.integers(len(trees)))], rng.uniform(0.75, 1.25), rng.uniform(0.0, np.pi)
        for angle in (turn, turn + 0.5 * np.pi):
            direction = np.array([np.cos(angle), np.sin(angle)])
            builder.upright(foot, direction, 4.0 * size, 6.0 * size, texture, _tint(rng), both_sides=True)
    for k in range(int(loop.length_m / 24.0)):
        s, side = 24.0 * k + rng.uniform(-5.0, 5.0), 1.0 if k % 2 else -1.0
        foot, inward = loop.point(s) + side * 4.0 * loop.normal(s), -side * loop.normal(s)
        builder.block(foot, loop.tangent(s), (0.14, 0.14, 5.2), (plain, plain), plain, grey((86, 94, 92)))
        builder.block(foot + 0.6 * inward, inward, (1.3, 0.2, 0.12), (plain, plain), plain, grey((200, 200, 190)), 5.2)
    parked: list[float] = []
    for _ in range(int(loop.length_m / 9.0)):
        s, side = rng.uniform(0.0, loop.length_m), -1.0
        if any(abs((s - other + 0.5 * loop.length_m) % loop.length_m - 0.5 * loop.length_m) < 5.2 for other in parked):
            continue
        parked.append(s)
        body, end, cabin, colour = cars[int(rng.integers(len(cars)))]
        centre, along = loop.point(s) + side * (ROAD_HALF_M - 0.2) * loop.normal(s), loop.tangent(s)
        builder.block(centre, along, (4.2, 1.7, 0.85), (body, end), plain, bottom=0.2)
        builder.block(centre - 0.2 * along, along, (2.3, 1.5, 0.6), (cabin, cabin), plain, bottom=1.05)
        builder.rows[-1] = (*builder.rows[-1][:4], grey(colour), True, False, -1)  # the roof in the car's paint
        bonnet = builder.rows[-6]
        builder.rows[-6] = (*bonnet[:4], grey(colour), True, False, -1)
    for _ in range(int(loop.length_m / 32.0)):
        s, side = rng.uniform(0.0, loop.length_m), float(rng.choice([-1.0, 1.0]))
        foot = loop.point(s) + side * 4.3 * loop.normal(s)
        colour = ((178, 26, 30), (34, 40, 44), (40, 96, 60))[int(rng.integers(3))]
        builder.block(foot, loop.tangent(s), (0.5, 0.5, 1.4), (plain, plain), plain, grey(colour))


def _ground_and_sky(rng: np.random.Generator, builder: SceneBuilder, loop: Loop, footprints: list[Array]) -> None:
    s = np.linspace(0.0, loop.length_m, int(loop.length_m / 0.5), endpoint=False)
    line, normals = loop.point(s), loop.normal(s)
    corner, extent = line.min(axis=0) - 32.0, np.ptp(line, axis=0) + 64.0
    texture = builder.atlas.add(ground(rng, corner, extent, line, normals, footprints))
    origin = np.array([corner[0], corner[1] + extent[1], 0.0])
    builder.quad(origin, np.array([extent[0], 0.0, 0.0]), np.array([0.0, -extent[1], 0.0]), texture)
    far = builder.atlas.add(np.full((8, 8, 3), (100, 116, 72), dtype=np.uint8))
    builder.quad(
        np.array([-SKY_M, SKY_M, -0.3]), np.array([2.0 * SKY_M, 0.0, 0.0]), np.array([0.0, -2.0 * SKY_M, 0.0]), far
    )
    height = 1.25 * SKY_M
    for variant, (top, horizon, cloud) in enumerate(SKIES):
        panorama = sky(rng, top, horizon, cloud)
        quarter = panorama.shape[1] // 4
        for k in range(4):
            direction = np.array([np.cos(0.5 * np.pi * k), np.sin(0.5 * np.pi * k), 0.0])
            right = np.array([direction[1], -direction[0], 0.0])
            picture = builder.atlas.add(np.ascontiguousarray(panorama[:, (3 - k) * quarter : (4 - k) * quarter]))
            corner_3 = SKY_M * (direction - right) + height * UP
            builder.quad(corner_3, 2.0 * SKY_M * right, -(height + 1.0) * UP, picture, lit=False, variant=variant)
