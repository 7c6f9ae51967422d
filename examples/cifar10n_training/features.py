"""Image features without labels and without training: whitened patches as filters.

After Coates, Lee and Ng (2011): patches of training images are normalised in contrast and
whitened, some of them become filters, the rectified responses are averaged over the four quarters
of the image. The first principal components of the result, on one common scale, are the features.
No label takes part, so the features are the same for every method and every kind of label noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 6
THRESHOLD = 0.25
WHITENING = 0.1  # added to the variances of normalised patches
CONTRAST = 1e-4  # added to the variance of a patch, for pixels in [0, 1]


class PatchFeatures:
    """Fitted on training images; then maps uint8 images [N, 3, H, W] to float32 [N, size]."""

    def __init__(self, images: Tensor, filters: int = 256, size: int = 512) -> None:
        generator = torch.Generator().manual_seed(0)
        self.kernel, self.offset = _filters(images, filters, generator)
        responses = self._responses(images)
        self.mean = responses.mean(0)
        centred = responses - self.mean
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        variances, directions = variances.flip(0)[:size], directions.flip(1)[:, :size]
        # Not full whitening: directions of little variance are mostly noise.
        self.projection = directions / variances.mean().sqrt()
        self.of_train = centred @ self.projection

    def __call__(self, images: Tensor) -> Tensor:
        return (self._responses(images) - self.mean) @ self.projection

    def _responses(self, images: Tensor) -> Tensor:
        # Small batches stay in the processor's cache.
        parts = [self._batch(batch.float() / 255) for batch in images.split(16)]
        return torch.cat(parts) if parts else torch.empty(0, 8 * len(self.kernel))

    def _batch(self, pixels: Tensor) -> Tensor:
        variance = _patch_means(pixels.square())
        variance -= _patch_means(pixels).square()
        response = F.conv2d(pixels, self.kernel)
        response *= (variance.clamp_min_(0) + CONTRAST).rsqrt_()
        response += self.offset[:, None, None]
        high = F.relu(response - THRESHOLD)
        low = response.neg_().sub_(THRESHOLD).relu_()
        return torch.cat([_quarters(part) for part in (high, low)], 1)


def _quarters(responses: Tensor) -> Tensor:
    """Averages over the four quarters, which share the middle row or column of an odd size."""
    size = tuple((side + 1) // 2 for side in responses.shape[2:])
    step = tuple(side // 2 for side in responses.shape[2:])
    return F.avg_pool2d(responses, size, step).flatten(1)


def _patch_means(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels.mean(1, keepdim=True), PATCH, stride=1)


def _filters(images: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Filters that act on raw pixels, and the offset that whitening adds."""
    samples = 20_000
    patches = torch.empty(samples, images.shape[1] * PATCH**2)
    which = torch.randint(len(images), (samples,), generator=generator)
    high, wide = (size - PATCH + 1 for size in images.shape[2:])
    tops = torch.randint(high, (samples,), generator=generator)
    lefts = torch.randint(wide, (samples,), generator=generator)
    places = zip(which.tolist(), tops.tolist(), lefts.tolist(), strict=True)
    for row, (image, top, left) in enumerate(places):
        patches[row] = images[image, :, top : top + PATCH, left : left + PATCH].flatten() / 255
    patches -= patches.mean(1, keepdim=True)
    patches /= (patches.square().mean(1, keepdim=True) + CONTRAST).sqrt()
    mean = patches.mean(0)
    centred = patches - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / samples)
    whiten = directions * (variances.clamp_min(0) + WHITENING).rsqrt() @ directions.T
    chosen = (centred @ whiten)[torch.randperm(samples, generator=generator)[:count]]
    filters = F.normalize(chosen, dim=1) @ whiten
    offset = -filters @ mean
    # Subtracting the mean of each patch is linear, so the filters can do it.
    filters = filters - filters.mean(1, keepdim=True)
    return filters.reshape(count, images.shape[1], PATCH, PATCH), offset
