"""Where everything in the synthetic town stands: houses on both sides of the road, trees, lamps, cars, hedges, sky.

World: x east, y north, z up, metres, the ground at z = 0; the road's centre line runs anticlockwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmloc_ros.datasets import town_textures as textures
from vmloc_ros.datasets.town_atlas import AtlasBuilder
from vmloc_ros.datasets.town_ground import PAVEMENT_M, ROAD_HALF_M, ground, sky
from vmloc_ros.datasets.town_scene import UP, Loop, Scene, SceneBuilder
from vmloc_ros.datasets.town_textures import STYLES, Style
from vmloc_ros.geometry import Array

HOUSE_DEPTH_M = 8.0
SKY_M = 1500.0
SKIES = (
    ((92, 142, 206), (206, 218, 228), 0.12),
    ((120, 154, 200), (214, 220, 226), 0.42),
    ((176, 182, 190), (212, 214, 218), 0.85),
)


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
    shadows = _furniture(rng, builder, loop)
    _ground_and_sky(rng, builder, loop, footprints, shadows)
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
    (168, 34, 34), (36, 62, 120), (226, 226, 226), (60, 62, 66), (150, 156, 160), (30, 96, 72), (214, 164, 40)
)  # fmt: skip
LEAVES = ((74, 104, 48), (96, 116, 56), (122, 96, 52), (62, 92, 66), (150, 92, 60))
BOX_COLOURS = ((178, 26, 30), (34, 40, 44), (40, 96, 60))


def _share(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    """A colour as a tint of white."""
    return colour[0] / 255.0, colour[1] / 255.0, colour[2] / 255.0


def _furniture(rng: np.random.Generator, builder: SceneBuilder, loop: Loop) -> list[Array]:
    """Trees, lamps, pillar boxes, parked cars, at places of their own; gives the ground that they darken."""
    plain = builder.atlas.add(np.full((16, 16, 3), 255, dtype=np.uint8))
    shadows = _trees(rng, builder, loop)
    for k in range(int(loop.length_m / 24.0)):
        s, side = 24.0 * k + rng.uniform(-5.0, 5.0), 1.0 if k % 2 else -1.0
        foot, inward = loop.point(s) + side * 4.0 * loop.normal(s), -side * loop.normal(s)
        builder.block(foot, loop.tangent(s), (0.14, 0.14, 5.2), (plain, plain), plain, _share((86, 94, 92)))
        builder.block(
            foot + 0.6 * inward, inward, (1.3, 0.2, 0.12), (plain, plain), plain, _share((200, 200, 190)), 5.2
        )
        shadows.append(_corners(foot, loop.tangent(s), 0.5, 0.5))
    for _ in range(int(loop.length_m / 32.0)):
        s, side = rng.uniform(0.0, loop.length_m), float(rng.choice([-1.0, 1.0]))
        foot = loop.point(s) + side * 4.3 * loop.normal(s)
        colour = BOX_COLOURS[int(rng.integers(len(BOX_COLOURS)))]
        builder.block(foot, loop.tangent(s), (0.5, 0.5, 1.4), (plain, plain), plain, _share(colour))
        shadows.append(_corners(foot, loop.tangent(s), 0.9, 0.9))
    return shadows + _cars(rng, builder, loop, plain)


def _trees(rng: np.random.Generator, builder: SceneBuilder, loop: Loop) -> list[Array]:
    trees = [builder.atlas.add(textures.tree(rng, colour)) for colour in LEAVES]
    shadows = []
    for _ in range(int(loop.length_m / 11.0)):
        s, side = rng.uniform(0.0, loop.length_m), float(rng.choice([-1.0, 1.0]))
        foot = loop.point(s) + side * (PAVEMENT_M - 0.5) * loop.normal(s)
        texture, size, turn = trees[int(rng.integers(len(trees)))], rng.uniform(0.75, 1.25), rng.uniform(0.0, np.pi)
        for angle in (turn, turn + 0.5 * np.pi):
            direction = np.array([np.cos(angle), np.sin(angle)])
            builder.upright(foot, direction, 4.0 * size, 6.0 * size, texture, _tint(rng), both_sides=True)
        shadows.append(_corners(foot, loop.tangent(s), 2.2 * size, 2.2 * size))
    return shadows


def _cars(rng: np.random.Generator, builder: SceneBuilder, loop: Loop, plain: int) -> list[Array]:
    """Parked on the right, at least a car's length apart."""
    add = builder.atlas.add
    kinds = [
        (add(textures.car_side(c, False)), add(textures.car_side(c, True)), add(textures.car_cabin(c)), c)
        for c in CAR_COLOURS
    ]
    parked: list[float] = []
    shadows = []
    for _ in range(int(loop.length_m / 9.0)):
        s, half = rng.uniform(0.0, loop.length_m), 0.5 * loop.length_m
        if any(abs((s - other + half) % loop.length_m - half) < 5.2 for other in parked):
            continue
        parked.append(s)
        body, end, cabin, colour = kinds[int(rng.integers(len(kinds)))]
        centre, along = loop.point(s) - (ROAD_HALF_M - 0.2) * loop.normal(s), loop.tangent(s)
        paint = _share(colour)
        builder.block(centre, along, (4.2, 1.7, 0.85), (body, end), plain, bottom=0.2, top_tint=paint)
        builder.block(centre - 0.2 * along, along, (2.3, 1.5, 0.6), (cabin, cabin), plain, bottom=1.05, top_tint=paint)
        shadows.append(_corners(centre, along, 4.3, 1.9))
    return shadows


def _corners(centre_2: Array, along_2: Array, length: float, width: float) -> Array:
    """(4, 2) corners of a rectangle on the ground."""
    across = np.array([-along_2[1], along_2[0]])
    a, b = 0.5 * length * along_2, 0.5 * width * across
    return np.array([centre_2 + a + b, centre_2 - a + b, centre_2 - a - b, centre_2 + a - b])


def _ground_and_sky(
    rng: np.random.Generator, builder: SceneBuilder, loop: Loop, footprints: list[Array], shadows: list[Array]
) -> None:
    s = np.linspace(0.0, loop.length_m, int(loop.length_m / 0.5), endpoint=False)
    line, normals = loop.point(s), loop.normal(s)
    corner, extent = line.min(axis=0) - 32.0, np.ptp(line, axis=0) + 64.0
    texture = builder.atlas.add(ground(rng, corner, extent, line, normals, footprints, shadows))
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
