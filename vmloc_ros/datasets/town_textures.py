"""Facades of the synthetic town, drawn with a few strokes: walls, windows, doors, shop fronts, roofs, trees, cars.

All textures are (height, width, 3) uint8 RGB at `PIXELS_PER_M`, those with holes (height, width, 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

PIXELS_PER_M = 40
FLOOR_M = 3.0
PARAPET_M = 0.6


@dataclass(frozen=True)
class Style:
    """How one kind of house looks. Several houses of the town share each."""

    wall: str
    colour: Colour
    window: str
    frame: Colour
    door: Colour
    roof: Colour
    bays: int
    floors: int
    bay_m: float
    gabled: bool = True
    sign: str = ""
    sign_colour: Colour = (40, 60, 90)

    @property
    def width_m(self) -> float:
        return self.bays * self.bay_m

    @property
    def height_m(self) -> float:
        return self.floors * FLOOR_M + PARAPET_M


STYLES = (
    Style("brick", (158, 84, 62), "sash", (238, 236, 228), (30, 70, 60), (92, 78, 78), 3, 2, 2.3),
    Style("brick", (190, 152, 104), "sash", (245, 244, 238), (120, 30, 34), (110, 74, 60), 3, 3, 2.2),
    Style("stone", (202, 184, 148), "arch", (90, 84, 74), (66, 48, 34), (84, 88, 96), 4, 3, 2.4),
    Style("plaster", (226, 202, 158), "shutter", (70, 110, 96), (92, 60, 40), (168, 92, 62), 3, 2, 2.6),
    Style("plaster", (166, 190, 204), "sash", (250, 250, 248), (196, 160, 40), (80, 84, 92), 3, 2, 2.2),
    Style("timber", (232, 222, 198), "small", (62, 46, 36), (70, 50, 38), (120, 70, 52), 3, 2, 2.5),
    Style("brick", (128, 66, 56), "wide", (52, 54, 60), (210, 208, 200), (70, 70, 74), 4, 4, 2.3, gabled=False),
    Style("glass", (96, 116, 128), "curtain", (66, 74, 82), (50, 60, 70), (70, 70, 74), 5, 4, 2.2, gabled=False),
    Style("plaster", (214, 130, 112), "shop", (244, 240, 230), (50, 50, 60), (130, 82, 64), 3, 3, 2.4,
          sign="BAKERY", sign_colour=(44, 74, 60)),
    Style("brick", (176, 128, 96), "shop", (232, 226, 210), (60, 40, 40), (88, 80, 80), 4, 3, 2.3,
          sign="BOOKS", sign_colour=(120, 30, 40)),
    Style("plaster", (236, 232, 222), "shop", (60, 64, 70), (40, 44, 60), (96, 96, 100), 3, 2, 2.6,
          sign="CAFE", sign_colour=(196, 120, 30)),
    Style("stone", (176, 172, 164), "sash", (236, 236, 232), (24, 42, 78), (76, 80, 86), 3, 3, 2.3),
    Style("board", (132, 160, 138), "sash", (248, 248, 244), (150, 40, 36), (104, 96, 92), 3, 2, 2.4),
    Style("board", (220, 196, 120), "wide", (250, 250, 248), (60, 80, 110), (112, 80, 66), 3, 2, 2.5),
    Style("plaster", (190, 196, 186), "wide", (60, 60, 64), (190, 80, 40), (70, 70, 74), 4, 3, 2.4, gabled=False),
    Style("stone", (214, 200, 172), "shop", (240, 236, 226), (40, 60, 50), (90, 92, 98), 4, 2, 2.3,
          sign="PHARMACY", sign_colour=(30, 110, 70)),
)  # fmt: skip


def _soft_noise(
    rng: np.random.Generator, height: int, width: int, cell_px: int, deviation: float
) -> NDArray[np.float32]:
    """Smooth blotches (height, width, 1)."""
    small = rng.normal(0.0, deviation, (height // cell_px + 2, width // cell_px + 2)).astype(np.float32)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, dtype=np.float32)[:, :, None]


def _clip(image: Any) -> Image:
    return np.clip(image, 0, 255).astype(np.uint8)


def _bricks(
    rng: np.random.Generator, height: int, width: int, colour: Colour, course_px: int, brick_px: int, spread: float
) -> Image:
    """Courses of bricks or stones, each with its own shade, and mortar between them."""
    rows, columns = np.arange(height) // course_px, np.arange(width)
    shift = (rows % 2) * (brick_px // 2)
    bricks = (columns[None, :] + shift[:, None]) // brick_px
    shades = rng.normal(1.0, spread, (rows.max() + 1, bricks.max() + 1, 1))
    shades = shades * (1.0 + rng.normal(0.0, spread * 0.35, (*shades.shape[:2], 3)))
    image = np.asarray(colour) * shades[rows[:, None], bricks]
    mortar = ((np.arange(height) % course_px == 0)[:, None]) | ((columns[None, :] + shift[:, None]) % brick_px == 0)
    image[mortar] = 0.55 * image[mortar] + 0.45 * np.array([168.0, 160.0, 150.0])
    return _clip(image)


def wall(rng: np.random.Generator, kind: str, colour: Colour, height: int, width: int) -> Image:
    """A bare wall of a kind (brick, stone, timber, board, glass, plaster), weathered towards the ground."""
    if kind == "brick":
        image = _bricks(rng, height, width, colour, 4, 10, 0.13)
    elif kind == "stone":
        image = _bricks(rng, height, width, colour, 14, 30, 0.07)
    else:
        image = np.full((height, width, 3), colour, dtype=np.uint8)
        if kind == "board":
            image[::8] = (np.asarray(colour) * 0.62).astype(np.uint8)
            image[1::8] = (np.asarray(colour) * 0.85).astype(np.uint8)
        if kind == "glass":
            image[:: int(0.5 * FLOOR_M * PIXELS_PER_M)] = 70
    weathered = image * (1.0 + _soft_noise(rng, height, width, 24, 0.05) + _soft_noise(rng, height, width, 6, 0.02))
    dirt = np.clip((np.arange(height) - (height - 30)) / 30.0, 0.0, 1.0)[:, None, None]
    return _clip(weathered * (1.0 - 0.25 * dirt) + rng.normal(0.0, 3.0, (height, width, 1)))


def _timber(image: Image, style: Style) -> None:
    height, width = image.shape[:2]
    beam = (70, 52, 42)
    floor = int(FLOOR_M * PIXELS_PER_M)
    for y in range(height - floor, 0, -floor):
        cv2.rectangle(image, (0, y - 5), (width, y + 5), beam, -1)
    step = int(style.bay_m * PIXELS_PER_M)
    for x in range(0, width + 1, step // 2):
        cv2.rectangle(image, (x - 4, 0), (x + 4, height - floor), beam, -1)
    for x in range(0, width, step):
        cv2.line(image, (x, height - floor), (x + step // 2, height - 2 * floor), beam, 7, cv2.LINE_AA)


def _glass(rng: np.random.Generator, image: Image, x: int, y: int, w: int, h: int) -> None:
    """A pane: a reflection of the sky above, dark below, sometimes a curtain."""
    tone = rng.uniform(0.7, 1.15)
    fall = np.linspace(1.0, 0.45, h)[:, None, None]
    pane = np.array([112.0, 132.0, 150.0]) * fall * tone + np.array([16.0, 18.0, 22.0])
    pane = np.repeat(pane, w, axis=1)
    if rng.random() < 0.4:
        side = int(w * rng.uniform(0.2, 0.4))
        curtain = np.array(rng.uniform(120, 220, 3))
        pane[:, :side] = 0.4 * pane[:, :side] + 0.6 * curtain
        pane[:, w - side :] = 0.4 * pane[:, w - side :] + 0.6 * curtain
    image[y : y + h, x : x + w] = _clip(pane)


def _window(rng: np.random.Generator, image: Image, kind: str, frame: Colour, x: int, y: int, w: int, h: int) -> None:
    """One window with its frame, bars, sill and what else its kind has, upper left corner at (x, y)."""
    sill = tuple(int(0.8 * c) for c in frame)
    cv2.rectangle(image, (x - 4, y - 4), (x + w + 3, y + h + 3), frame, -1)
    cv2.rectangle(image, (x - 7, y + h + 3), (x + w + 6, y + h + 8), sill, -1)
    _glass(rng, image, x, y, w, h)
    if kind == "arch":
        cv2.ellipse(image, (x + w // 2, y), (w // 2 + 5, w // 2 + 3), 0, 180, 360, frame, -1, cv2.LINE_AA)
        cv2.ellipse(image, (x + w // 2, y), (w // 2 - 1, w // 2 - 4), 0, 180, 360, (70, 84, 96), -1, cv2.LINE_AA)
    if kind in ("sash", "shop", "shutter", "arch"):
        cv2.line(image, (x, y + h // 2), (x + w, y + h // 2), frame, 3)
        cv2.line(image, (x + w // 2, y), (x + w // 2, y + h), frame, 2)
    elif kind == "small":
        for k in (1, 2):
            cv2.line(image, (x + k * w // 3, y), (x + k * w // 3, y + h), frame, 2)
            cv2.line(image, (x, y + k * h // 3), (x + w, y + k * h // 3), frame, 2)
    elif kind == "wide":
        cv2.line(image, (x + 2 * w // 3, y), (x + 2 * w // 3, y + h), frame, 3)
    if kind == "shutter":
        dark = tuple(int(0.75 * c) for c in frame)
        for left in (x - 6 - w // 3, x + w + 6):
            cv2.rectangle(image, (left, y - 2), (left + w // 3, y + h + 2), frame, -1)
            for line in range(y, y + h, 5):
                cv2.line(image, (left + 2, line), (left + w // 3 - 2, line), dark, 1)


def _door(image: Image, style: Style, x: int, ground: int, w: int) -> None:
    h = int(2.2 * PIXELS_PER_M)
    cv2.rectangle(image, (x - 5, ground - h - 5), (x + w + 5, ground), style.frame, -1)
    cv2.rectangle(image, (x, ground - h), (x + w, ground), style.door, -1)
    light = tuple(min(255, int(1.35 * c) + 12) for c in style.door)
    for top in (ground - h + 30, ground - h + 58):
        cv2.rectangle(image, (x + 5, top), (x + w - 5, top + 22), light, 2)
    cv2.rectangle(image, (x + 4, ground - h + 4), (x + w - 4, ground - h + 20), (120, 138, 150), -1)
    cv2.rectangle(image, (x - 10, ground - 5), (x + w + 10, ground), (150, 146, 140), -1)


def _shop(rng: np.random.Generator, image: Image, style: Style) -> None:
    """A shop's ground floor: a sign, a striped awning, panes."""
    height, width = image.shape[:2]
    top = height - int(FLOOR_M * PIXELS_PER_M)
    cv2.rectangle(image, (6, top + 4), (width - 7, top + 32), style.sign_colour, -1)
    scale = min(0.85, (width - 40) / (19.0 * len(style.sign)))
    size = cv2.getTextSize(style.sign, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)[0]
    place = ((width - size[0]) // 2, top + 18 + size[1] // 2)
    cv2.putText(image, style.sign, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (250, 244, 220), 2, cv2.LINE_AA)
    for k, x in enumerate(range(6, width - 6, 16)):
        colour = style.sign_colour if k % 2 else (240, 236, 226)
        cv2.rectangle(image, (x, top + 33), (min(x + 15, width - 7), top + 48), colour, -1)
    door_px = int(1.0 * PIXELS_PER_M)
    pane_end = width - door_px - 30
    step = (pane_end - 14) // 2
    for x in (14, 14 + step):
        cv2.rectangle(image, (x - 3, top + 52), (x + step - 5, height - 14), style.frame, -1)
        _glass(rng, image, x, top + 55, step - 8, height - 72 - top)
        for _ in range(5):
            at = (int(rng.integers(x + 6, x + step - 18)), height - int(rng.integers(26, 40)))
            cv2.circle(image, at, int(rng.integers(4, 8)), rng.integers(60, 240, 3).tolist(), -1, cv2.LINE_AA)
    _door(image, style, width - door_px - 14, height, door_px)


def facade(rng: np.random.Generator, style: Style) -> Image:
    """The street side of a house."""
    height, width = int(style.height_m * PIXELS_PER_M), int(style.width_m * PIXELS_PER_M)
    image = wall(rng, style.wall, style.colour, height, width)
    if style.wall == "timber":
        _timber(image, style)
    bay, floor = style.bay_m * PIXELS_PER_M, FLOOR_M * PIXELS_PER_M
    w = int(bay * {"wide": 0.66, "curtain": 0.86, "shutter": 0.36, "small": 0.34}.get(style.window, 0.42))
    h = int(floor * {"wide": 0.48, "curtain": 0.72, "small": 0.38}.get(style.window, 0.52))
    door_bay = int(rng.integers(style.bays))
    for level in range(style.floors):
        ground = height - level * floor
        if level == 0 and style.window == "shop":
            _shop(rng, image, style)
            continue
        for column in range(style.bays):
            x = int((column + 0.5) * bay - w / 2)
            if level == 0 and column == door_bay:
                _door(image, style, int((column + 0.5) * bay) - 20, height, 40)
            else:
                _window(rng, image, style.window, style.frame, x, int(ground - 0.28 * floor - h), w, h)
    cornice = tuple(int(0.5 * c + 90) for c in style.colour)
    cv2.rectangle(image, (0, 0), (width, 9), cornice, -1)
    cv2.line(image, (0, 11), (width, 11), tuple(int(0.5 * c) for c in style.colour), 2)
    return image


def side(rng: np.random.Generator, style: Style, width_m: float) -> Image:
    """A gable wall: the same masonry, a window or two, a drain pipe."""
    height, width = int(style.height_m * PIXELS_PER_M), int(width_m * PIXELS_PER_M)
    image = wall(rng, style.wall, style.colour, height, width)
    for level in range(style.floors):
        if rng.random() < 0.75:
            x = int(width * rng.uniform(0.2, 0.65))
            y = int(height - (level + 0.28) * FLOOR_M * PIXELS_PER_M - 50)
            _window(rng, image, "sash", style.frame, x, y, 34, 50)
    cv2.rectangle(image, (width - 14, 0), (width - 10, height), (70, 70, 72), -1)
    return image


def tiles(rng: np.random.Generator, colour: Colour) -> Image:
    """A roof slope."""
    image = _bricks(rng, 160, 280, colour, 8, 11, 0.10)
    image[::8] = (image[::8] * 0.6).astype(np.uint8)
    return _clip(image * (1.0 + _soft_noise(rng, 160, 280, 20, 0.06)))


def triangle(image: Image) -> Image:
    """The same wall as a gable: transparent beside the slopes."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    corners = np.array([[0, height], [width // 2, 0], [width, height]], dtype=np.int32)
    cv2.fillPoly(mask, [corners], (255,))
    return np.dstack([image, mask])


def tree(rng: np.random.Generator, leaves: Colour) -> Image:
    """A tree of 4 m by 6 m, transparent around its leaves."""
    size, height = 128, 192
    rgb = np.full((height, size, 3), leaves, dtype=np.uint8)
    mask = np.zeros((height, size), np.uint8)
    cv2.rectangle(mask, (size // 2 - 5, 110), (size // 2 + 4, height), (255,), -1)
    cv2.rectangle(rgb, (size // 2 - 6, 112), (size // 2 + 5, height), (92, 74, 58), -1)
    for k in range(140):
        angle, radius = rng.uniform(0, 2 * np.pi), 46.0 * np.sqrt(rng.uniform())
        at = (int(size / 2 + radius * np.cos(angle)), int(66 + 1.2 * radius * np.sin(angle)))
        blob = int(rng.integers(7, 15))
        light = 0.55 + 0.55 * k / 140.0 + 0.25 * (66 - at[1]) / 66.0 + rng.normal(0.0, 0.08)
        cv2.circle(rgb, at, blob, _clip(np.asarray(leaves) * light).tolist(), -1, cv2.LINE_AA)
        cv2.circle(mask, at, blob, (255,), -1)
    return np.dstack([_clip(rgb * (1.0 + _soft_noise(rng, height, size, 3, 0.12))), mask])


def hedge(rng: np.random.Generator, colour: Colour) -> Image:
    """Leaves without holes."""
    noise = _soft_noise(rng, 64, 192, 3, 0.22) + _soft_noise(rng, 64, 192, 9, 0.12)
    return _clip(np.asarray(colour) * (1.0 + noise) * np.linspace(1.15, 0.7, 64)[:, None, None])


def car_side(colour: Colour, front: bool) -> Image:
    """A car seen from the side (4.2 m) or from front and back (1.7 m): body, windows, wheels or lamps."""
    height, width = 56, 68 if front else 168
    image = np.full((height, width, 3), colour, dtype=np.uint8)
    cv2.rectangle(image, (0, height - 16), (width, height), tuple(int(0.5 * c) for c in colour), -1)
    cv2.line(image, (0, 26), (width, 26), tuple(min(255, int(1.2 * c) + 20) for c in colour), 2)
    if front:
        for x in (4, width - 18):
            cv2.rectangle(image, (x, 28), (x + 14, 36), (232, 210, 190), -1)
        cv2.rectangle(image, (width // 2 - 13, 40), (width // 2 + 13, 48), (238, 216, 90), -1)
    else:
        for x in (32, width - 32):
            cv2.circle(image, (x, height - 14), 14, (24, 24, 26), -1, cv2.LINE_AA)
            cv2.circle(image, (x, height - 14), 7, (150, 152, 156), -1, cv2.LINE_AA)
        cv2.line(image, (width // 2, 4), (width // 2, 44), tuple(int(0.7 * c) for c in colour), 1)
    return image


def car_cabin(colour: Colour) -> Image:
    """The upper half of a car: glass with pillars."""
    image = np.full((26, 96, 3), colour, dtype=np.uint8)
    for x in (8, 52):
        cv2.rectangle(image, (x, 4), (x + 36, 24), (52, 62, 72), -1)
        cv2.line(image, (x + 4, 22), (x + 14, 6), (120, 134, 146), 2, cv2.LINE_AA)
    return image
