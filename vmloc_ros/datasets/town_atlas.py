"""All textures of the town in one picture, with smaller copies (mip levels): one look-up colours a whole frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.datasets.town_textures import Image

LEVELS = 6
BORDER_PX = 1
WIDTH_PX = 4096


@dataclass
class AtlasBuilder:
    """Collects textures; `add` gives a texture's number."""

    images: list[Image] = field(default_factory=list)
    alphas: dict[int, Image] = field(default_factory=dict)

    def add(self, image: Image) -> int:
        """Registers a texture, (H, W, 3) or with a fourth channel for its holes."""
        number = len(self.images)
        if image.shape[2] == 4:
            self.alphas[number] = np.ascontiguousarray(image[:, :, 3])
        self.images.append(np.ascontiguousarray(image[:, :, :3]))
        return number

    def build(self) -> Atlas:
        """Packs all levels on shelves, tallest first."""
        pieces: list[tuple[int, int, Image]] = []
        for number, image in enumerate(self.images):
            level_image = image
            for level in range(LEVELS):
                pieces.append((number, level, level_image))
                size = (max(level_image.shape[1] // 2, 1), max(level_image.shape[0] // 2, 1))
                level_image = np.asarray(cv2.resize(level_image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        pieces.sort(key=lambda piece: (-piece[2].shape[0], piece[0], piece[1]))
        width = max(WIDTH_PX, max(image.shape[1] for _, _, image in pieces) + 2 * BORDER_PX)
        places, x, y, shelf = [], 0, 0, 0
        for _, _, image in pieces:
            h, w = image.shape[0] + 2 * BORDER_PX, image.shape[1] + 2 * BORDER_PX
            if x + w > width:
                x, y, shelf = 0, y + shelf, 0
            places.append((x, y))
            x, shelf = x + w, max(shelf, h)
        picture = np.zeros((y + shelf, width, 3), dtype=np.uint8)
        windows = np.zeros((len(self.images), LEVELS, 4), dtype=np.float32)
        for (number, level, image), (left, top) in zip(pieces, places, strict=True):
            b = BORDER_PX
            bordered = cv2.copyMakeBorder(image, b, b, b, b, cv2.BORDER_REPLICATE)
            picture[top : top + bordered.shape[0], left : left + bordered.shape[1]] = bordered
            windows[number, level] = left + b - 0.5, top + b - 0.5, image.shape[1], image.shape[0]
        means = np.array([image.mean(axis=(0, 1)) for image in self.images], dtype=np.float32)
        return Atlas(picture, windows, dict(self.alphas), means)


@dataclass(frozen=True, eq=False)
class Atlas:
    """`windows[texture, level]` is (x, y, width, height): the point (u, v) of a texture is at `x + u width`."""

    picture: Image
    windows: NDArray[np.float32]
    alphas: dict[int, Image]
    mean_colours: NDArray[np.float32]

    def solid(self, texture: int, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether the points of a texture are not holes."""
        alpha = self.alphas[texture]
        height, width = alpha.shape
        x = np.clip((u * width).astype(np.int32), 0, width - 1)
        y = np.clip((v * height).astype(np.int32), 0, height - 1)
        return np.asarray(alpha[y, x] > 127)

    def sample(
        self, texture: NDArray[np.int32], u: NDArray[np.float32], v: NDArray[np.float32], level: NDArray[np.int32]
    ) -> Image:
        """Colours (H, W, 3) of texture points, each from its own level, linear within it."""
        window = self.windows[texture, level]
        x = window[..., 0] + u * window[..., 2]
        y = window[..., 1] + v * window[..., 3]
        return np.asarray(cv2.remap(self.picture, x, y, cv2.INTER_LINEAR), dtype=np.uint8)
