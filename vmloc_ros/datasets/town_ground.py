"""The town's ground from above (road, markings, pavements, grass) and the skies around it."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.datasets.town_textures import Image
from vmloc_ros.geometry import Array

METRES_PER_PIXEL = 0.06
ROAD_HALF_M = 3.6
PAVEMENT_M = 5.6


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell_px: int, deviation: float) -> NDArray[np.float32]:
    small = rng.normal(0.0, deviation, (shape[0] // cell_px + 2, shape[1] // cell_px + 2)).astype(np.float32)
    return np.asarray(cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR))


def ground(
    rng: np.random.Generator,
    corner_2: Array,
    size_2: Array,
    line_N2: Array,
    normals_N2: Array,
    footprints: list[Array],
    shadows: list[Array],
) -> Image:
    """The ground's picture: row 0 is its largest y, column 0 its smallest x.

    Args:
        corner_2: smallest x and y, metres. size_2: extent, metres.
        line_N2: the road's closed centre line, evenly spaced; normals_N2: to its left.
        footprints: (4, 2) corners of houses, which darken the ground around them; shadows: of smaller things.
    """
    width, height = (int(np.ceil(extent / METRES_PER_PIXEL)) for extent in size_2)
    scale = 1.0 / METRES_PER_PIXEL

    def pixels(points: Array) -> NDArray[np.int32]:
        x = (points[:, 0] - corner_2[0]) * scale
        y = height - (points[:, 1] - corner_2[1]) * scale
        return np.round(np.column_stack([x, y]) * 8.0).astype(np.int32)  # three bits of a pixel

    image = np.empty((height, width, 3), dtype=np.uint8)
    image[:] = (104, 122, 70)
    loop = pixels(line_N2)

    def band(half_width_m: float, colour: tuple[int, int, int], offset_m: float = 0.0) -> None:
        points = loop if offset_m == 0.0 else pixels(line_N2 + offset_m * normals_N2)
        cv2.polylines(image, [points], True, colour, max(1, round(2.0 * half_width_m * scale)), cv2.LINE_AA, 3)

    band(PAVEMENT_M + 2.6, (128, 122, 108))
    band(PAVEMENT_M, (168, 162, 154))
    band(ROAD_HALF_M + 0.15, (200, 196, 188))
    band(ROAD_HALF_M, (84, 84, 88))
    for edge in (-1.0, 1.0):  # joints of the pavement's slabs, yellow lines at the kerb
        outer, inner = pixels(line_N2 + edge * PAVEMENT_M * normals_N2), pixels(line_N2 + edge * 3.8 * normals_N2)
        for k in range(0, len(line_N2), max(1, len(line_N2) // 360)):
            cv2.line(image, outer[k].tolist(), inner[k].tolist(), (140, 134, 126), 1, cv2.LINE_8, 3)
        band(0.06, (206, 178, 60), edge * (ROAD_HALF_M - 0.35))
    step = max(1, round(len(line_N2) * 3.0 / _length(line_N2)))
    for k in range(0, len(line_N2) - step, 2 * step):
        cv2.polylines(image, [loop[k : k + step]], False, (226, 226, 220), 3, cv2.LINE_8, 3)
    _details(rng, image, line_N2, normals_N2, pixels)
    texture = _noise(rng, (height, width), 1, 0.05) + _noise(rng, (height, width), 9, 0.04)
    texture += _noise(rng, (height, width), 80, 0.05) + 1.0
    for outlines, blur_px, strength in ((footprints, 41, 0.45), (shadows, 11, 0.55)):
        shadow = np.zeros((height, width), np.uint8)
        for outline in outlines:
            cv2.fillPoly(shadow, [pixels(outline)], (255,), cv2.LINE_8, 3)
        texture *= 1.0 - np.asarray(cv2.blur(shadow, (blur_px, blur_px))) * np.float32(strength / 255.0)
    for rows in range(0, height, 256):  # in strips: the float copy of the whole would be large
        part = image[rows : rows + 256] * texture[rows : rows + 256, :, None]
        image[rows : rows + 256] = np.clip(part, 0, 255).astype(np.uint8)
    return image


def _length(line_N2: Array) -> float:
    return float(np.linalg.norm(np.diff(line_N2, axis=0, append=line_N2[:1]), axis=1).sum())


def _details(
    rng: np.random.Generator, image: Image, line: Array, normals: Array, pixels: Callable[[Array], NDArray[np.int32]]
) -> None:
    """What tells one piece of road from another: patches of new asphalt, manholes, crossings, arrows."""
    count = len(line)
    tangents = np.column_stack([normals[:, 1], -normals[:, 0]])
    for _ in range(46):
        k, across = int(rng.integers(count)), rng.uniform(-2.6, 2.6)
        length, width = rng.uniform(1.0, 6.0), rng.uniform(0.5, 1.4)
        centre = line[k] + across * normals[k]
        along, side = 0.5 * length * tangents[k], 0.5 * width * normals[k]
        corners = [centre + along + side, centre + along - side, centre - along - side, centre - along + side]
        shade = int(rng.integers(58, 112))
        cv2.fillPoly(image, [pixels(np.array(corners))], (shade, shade, shade + 3), cv2.LINE_8, 3)
    for _ in range(40):
        k = int(rng.integers(count))
        centre = pixels((line[k] + rng.uniform(-2.8, 2.8) * normals[k])[None])[0]
        cv2.circle(image, centre.tolist(), int(0.35 / METRES_PER_PIXEL * 8), (58, 56, 56), -1, cv2.LINE_8, 3)
    for k in rng.choice(count, 5, replace=False):  # zebra crossings
        for across in np.arange(-3.2, 3.3, 0.9):
            centre = line[k] + across * normals[k]
            along, side = 1.3 * tangents[k], 0.24 * normals[k]
            corners = [centre + along + side, centre + along - side, centre - along - side, centre - along + side]
            cv2.fillPoly(image, [pixels(np.array(corners))], (226, 226, 220), cv2.LINE_8, 3)


def sky(rng: np.random.Generator, top: tuple[int, int, int], horizon: tuple[int, int, int], cloud: float) -> Image:
    """A panorama of 360 degrees, (320, 2048): clouds over the distant hills, which are the same in every sky."""
    height, width = 320, 2048
    fall = (np.linspace(0.0, 1.0, height) ** 1.5)[:, None, None]
    image = np.asarray(top) * (1.0 - fall) + np.asarray(horizon) * fall + np.zeros((1, width, 1))
    field = np.zeros((height, width), dtype=np.float32)
    for size, cell_px in ((1.0, 120), (0.5, 50), (0.25, 20), (0.125, 8)):
        field += _noise(rng, (height, width), cell_px, size)
    fade = np.linspace(1.0, 0.0, 160, dtype=np.float32)  # so that the panorama closes
    field[:, -160:] = field[:, -160:] * fade + field[:, :160][:, ::-1] * (1.0 - fade)
    share = np.clip(field * 0.5 + cloud, 0.0, 1.0)[:, :, None]
    image = image * (1.0 - share) + np.array([238.0, 238.0, 240.0]) * share
    angle = np.linspace(0.0, 2.0 * np.pi, width, endpoint=False)
    hills = 14.0 + 5.0 * np.sin(2.0 * angle + 0.5) + 4.0 * np.sin(5.0 * angle) + 2.0 * np.sin(11.0 * angle + 1.0)
    below = (height - np.arange(height))[:, None] < hills[None, :]
    image[below] = 0.45 * image[below] + 0.55 * np.array([96.0, 116.0, 104.0])
    return np.clip(image, 0, 255).astype(np.uint8)
