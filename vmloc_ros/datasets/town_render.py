"""Casts rays at the town: camera images with depth, and lidar sweeps, from the same rectangles.

For a ray `c + t d` and a rectangle `o + u r + v w` with normal n: `1/t = n.d / n.(o - c)`, which for a pinhole camera
(d with unit depth, so t is the depth) is an affine function of the pixel; u and v are such functions times t. So each
rectangle costs a few sums over the pixels of its bounding box, and the inverse depth is the z-buffer.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.datasets.town_scene import Scene
from vmloc_ros.datasets.town_textures import Image
from vmloc_ros.geometry import Array
from vmloc_ros.types import PinholeIntrinsics

NEAR_M = 0.05
HAZE = np.array([206.0, 212.0, 220.0], dtype=np.float32)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Light:
    """A traversal's weather: where the sun stands, how strong it is, and what the camera makes of it."""

    sun_azimuth_rad: float
    sun_elevation_rad: float
    sun: float
    ambient: float
    gain: float
    contrast: float
    white_3: tuple[float, float, float]
    haze_m: float
    sky: int
    noise: float

    def direction(self) -> Array:
        """Unit vector to the sun."""
        flat = np.cos(self.sun_elevation_rad)
        azimuth = self.sun_azimuth_rad
        return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(self.sun_elevation_rad)])


class Renderer:
    """One town under one light, ready to be looked at."""

    def __init__(self, scene: Scene, light: Light) -> None:
        self.scene = scene
        self.light = light
        self._normals = scene.normals()
        self._right = scene.right_Q3 / np.sum(scene.right_Q3**2, axis=1, keepdims=True)
        self._down = scene.down_Q3 / np.sum(scene.down_Q3**2, axis=1, keepdims=True)
        self._corners = scene.origin_Q3[:, None] + np.stack(
            [np.zeros_like(scene.right_Q3), scene.right_Q3, scene.right_Q3 + scene.down_Q3, scene.down_Q3], axis=1
        )
        self._wanted = (scene.variant_Q < 0) | (scene.variant_Q == light.sky)
        facing = np.where(scene.both_sides_Q, 0.6, np.maximum(self._normals @ light.direction(), 0.0))
        shade = np.where(scene.lit_Q, light.ambient + light.sun * facing, 1.0)
        self._paint = (scene.tint_Q3 * shade[:, None]).astype(np.float32)
        pixels = scene.atlas.windows[scene.texture_Q, 0, 2:]
        sizes = np.column_stack([np.linalg.norm(scene.right_Q3, axis=1), np.linalg.norm(scene.down_Q3, axis=1)])
        self._radius = 0.5 * np.linalg.norm(scene.right_Q3 + scene.down_Q3, axis=1)
        self._holed = np.isin(scene.texture_Q, list(scene.atlas.alphas))
        self._grey = (scene.atlas.mean_colours[scene.texture_Q] * scene.tint_Q3).mean(axis=1)
        self._texels_per_m = np.sqrt((pixels / sizes).prod(axis=1)).astype(np.float32)

    # ----------------------------------------------------------------------------------------------------- camera

    def image(self, T_world_camera: Array, camera: PinholeIntrinsics) -> tuple[Image, Floats]:
        """What the camera (optical axes) sees: (H, W, 3) RGB without sensor noise, and depth (H, W), 0 = sky."""
        index, u, v, inverse_depth = self._rasterise(T_world_camera, camera)
        with np.errstate(divide="ignore"):
            depth = np.where(index >= 0, 1.0 / inverse_depth, 0.0).astype(np.float32)
        colours = self._colours(T_world_camera, camera, index, u, v, depth)
        depth[~self.scene.lit_Q[index]] = 0.0
        return colours, depth

    def _rasterise(
        self, T_world_camera: Array, camera: PinholeIntrinsics
    ) -> tuple[NDArray[np.int32], Floats, Floats, Floats]:
        R, centre = T_world_camera[:3, :3], T_world_camera[:3, 3]
        shape = (camera.height, camera.width)
        x_rays = ((np.arange(camera.width) - camera.cx) / camera.fx).astype(np.float32)
        y_rays = ((np.arange(camera.height) - camera.cy) / camera.fy).astype(np.float32)[:, None]
        relative = self.scene.origin_Q3 - centre
        distance = np.einsum("qk,qk->q", self._normals, relative)
        boxes, nearest = self._boxes(R, centre, camera)
        seen = self._wanted & (np.abs(distance) > 1e-6) & (self.scene.both_sides_Q | (distance < 0.0))
        seen &= (boxes[:, 1] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 2])
        chosen = np.flatnonzero(seen)
        chosen = chosen[np.argsort(nearest[chosen], kind="stable")]
        plane = ((self._normals @ R) / distance[:, None]).astype(np.float32)
        right, down = (self._right @ R).astype(np.float32), (self._down @ R).astype(np.float32)
        u_0 = -np.einsum("qk,qk->q", self._right, relative).astype(np.float32)
        v_0 = -np.einsum("qk,qk->q", self._down, relative).astype(np.float32)
        index = np.full(shape, -1, dtype=np.int32)
        u_map, v_map = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        nearness = np.full(shape, 1e-5, dtype=np.float32)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for q in chosen.tolist():
                x0, x1, y0, y1 = boxes[q].tolist()
                x, y = x_rays[x0:x1], y_rays[y0:y1]
                window = (slice(y0, y1), slice(x0, x1))
                w = (plane[q, 0] * x + plane[q, 2]) + plane[q, 1] * y
                mask = w > nearness[window]
                if not mask.any():
                    continue
                t = 1.0 / w
                u = ((right[q, 0] * x + right[q, 2]) + right[q, 1] * y) * t + u_0[q]
                v = ((down[q, 0] * x + down[q, 2]) + down[q, 1] * y) * t + v_0[q]
                mask &= (np.abs(u - 0.5) <= 0.5) & (np.abs(v - 0.5) <= 0.5)
                texture = int(self.scene.texture_Q[q])
                if texture in self.scene.atlas.alphas:
                    mask &= self.scene.atlas.solid(texture, np.where(mask, u, 0.0), np.where(mask, v, 0.0))
                np.copyto(nearness[window], w, where=mask)
                np.copyto(u_map[window], u, where=mask)
                np.copyto(v_map[window], v, where=mask)
                index[window][mask] = q
        return index, u_map, v_map, nearness

    def _boxes(self, R: Array, centre: Array, camera: PinholeIntrinsics) -> tuple[NDArray[np.int64], Array]:
        """Pixel bounds (Q, 4: x0, x1, y0, y1) of the parts before the near plane, and their nearest depths (Q,)."""
        corners = (self._corners - centre) @ R
        following = np.roll(corners, -1, axis=1)
        z, z_next = corners[..., 2], following[..., 2]
        crosses = (z < NEAR_M) != (z_next < NEAR_M)
        share = np.where(crosses, (NEAR_M - z) / np.where(crosses, z_next - z, 1.0), 0.0)
        points = np.concatenate([corners, corners + share[..., None] * (following - corners)], axis=1)
        valid = np.concatenate([z >= NEAR_M, crosses], axis=1)
        depth = np.where(valid, points[..., 2], 1.0)
        x = camera.fx * points[..., 0] / depth + camera.cx
        y = camera.fy * points[..., 1] / depth + camera.cy
        bounds = np.stack(
            [np.where(valid, x, np.inf).min(axis=1), np.where(valid, x, -np.inf).max(axis=1) + 1.0,
             np.where(valid, y, np.inf).min(axis=1), np.where(valid, y, -np.inf).max(axis=1) + 1.0], axis=1
        )  # fmt: skip
        limits = np.array([camera.width, camera.width, camera.height, camera.height], dtype=float)
        return np.ceil(np.clip(bounds, 0.0, limits)).astype(np.int64), np.where(valid, depth, np.inf).min(axis=1)

    def _colours(
        self,
        T_world_camera: Array,
        camera: PinholeIntrinsics,
        index: NDArray[np.int32],
        u: Floats,
        v: Floats,
        depth: Floats,
    ) -> Image:
        x_rays = ((np.arange(camera.width) - camera.cx) / camera.fx).astype(np.float32)
        y_rays = ((np.arange(camera.height) - camera.cy) / camera.fy).astype(np.float32)[:, None]
        normals = (self._normals @ T_world_camera[:3, :3]).astype(np.float32)[index]
        cosine = np.abs(normals[..., 0] * x_rays + normals[..., 1] * y_rays + normals[..., 2])
        texels = depth * self._texels_per_m[index] / (camera.fx * np.sqrt(np.maximum(cosine, 0.05)))
        level = np.clip(np.log2(np.maximum(texels, 1e-3)) + 0.35, 0.0, 5.0).astype(np.int32)
        colours = self.scene.atlas.sample(self.scene.texture_Q[index], u, v, level).astype(np.float32)
        colours *= self._paint[index]
        clear = np.exp(-depth / np.float32(self.light.haze_m))[..., None]
        clear[~self.scene.lit_Q[index]] = 1.0
        colours = HAZE + (colours - HAZE) * clear
        tone = np.float32(self.light.gain) * np.asarray(self.light.white_3, dtype=np.float32)
        colours = (colours * tone - 110.0) * np.float32(self.light.contrast) + 110.0
        soft = cv2.GaussianBlur(np.clip(colours, 0.0, 255.0), (3, 3), 0.5)
        return np.asarray(np.round(soft), dtype=np.uint8)

    # ------------------------------------------------------------------------------------------------------ lidar

    def ranges(self, origin_3: Array, rays_N3: Array, max_range_m: float, groups: int = 1) -> tuple[Floats, Floats]:
        """Distances (N,) along unit rays (world axes), infinite without return, and reflectances 0-255.

        Rays are looked at in so many groups of neighbours: each only meets the rectangles around its own direction.
        """
        relative = self.scene.origin_Q3 - origin_3
        distance = np.einsum("qk,qk->q", self._normals, relative)
        middle = relative + 0.5 * (self.scene.right_Q3 + self.scene.down_Q3)
        near = self._wanted & self.scene.lit_Q & (np.abs(distance) > 1e-6)
        near &= np.linalg.norm(middle, axis=1) < max_range_m + self._radius
        candidates = np.flatnonzero(near & (self.scene.both_sides_Q | (distance < 0.0)))
        parts = []
        for rays in np.array_split(rays_N3, groups):
            chosen = candidates[_meets(middle[candidates], self._radius[candidates], rays)]
            parts.append(self._cast(chosen, relative[chosen], distance[chosen], rays, max_range_m))
        return np.concatenate([ranges for ranges, _ in parts]), np.concatenate([grey for _, grey in parts])

    def _cast(
        self, chosen: NDArray[np.int64], relative: Array, distance: Array, rays_N3: Array, max_range_m: float
    ) -> tuple[Floats, Floats]:
        """`ranges` against the chosen rectangles, whose origins and planes stand so far from the sensor."""
        if not len(chosen):
            return np.full(len(rays_N3), np.inf, dtype=np.float32), np.zeros(len(rays_N3), dtype=np.float32)
        rays = rays_N3.astype(np.float32).T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            t = distance[:, None].astype(np.float32) / (self._normals[chosen].astype(np.float32) @ rays)
            hit = (t > 0.0) & (t < max_range_m)
            for edges in (self._right[chosen], self._down[chosen]):
                offset = np.einsum("qk,qk->q", edges, relative).astype(np.float32)
                inside = (edges.astype(np.float32) @ rays) * t - offset[:, None]
                hit &= np.abs(inside - 0.5) <= 0.5
        for row in np.flatnonzero(self._holed[chosen] & hit.any(axis=1)).tolist():
            q, columns = chosen[row], np.flatnonzero(hit[row])
            points = t[row, columns, None] * rays_N3[columns] - relative[row]
            u, v = (points @ self._right[q]).astype(np.float32), (points @ self._down[q]).astype(np.float32)
            hit[row, columns] &= self.scene.atlas.solid(int(self.scene.texture_Q[q]), u, v)
        t = np.where(hit, t, np.float32(np.inf))
        first = t.argmin(axis=0)
        ranges = t[first, np.arange(len(rays_N3))]
        return ranges, np.where(np.isfinite(ranges), self._grey[chosen[first]], 0.0).astype(np.float32)


def _meets(middle_Q3: Array, radius_Q: Array, rays_N3: Array) -> NDArray[np.bool_]:
    """Which spheres reach into the cone around the rays: nothing else can be hit."""
    away = np.linalg.norm(middle_Q3, axis=1)
    axis = rays_N3.mean(axis=0)
    if np.linalg.norm(axis) < 0.3:  # the rays look everywhere
        return np.ones(len(away), dtype=bool)
    axis /= np.linalg.norm(axis)
    opening = float(np.arccos(np.clip((rays_N3 @ axis).min(), -1.0, 1.0)))
    angle = np.arccos(np.clip((middle_Q3 @ axis) / np.maximum(away, 1e-9), -1.0, 1.0))
    margin = np.arcsin(np.clip(radius_Q / np.maximum(away, 1e-9), 0.0, 1.0))
    return np.asarray((angle < opening + margin + 1e-6) | (away < radius_Q))
