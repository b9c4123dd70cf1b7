"""An image encoder, wherever it comes from: numbers for decoding, and a function from pixels to vectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.features.image.decode import VERSION, Geometry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Vision:
    """facts: what a manifest says of the encoder. mean, std: of pixels in 0..1, per channel. unit: vectors have
    length 1, as they share a space with texts.

    network: normalised pixels [B, 3, H, W] to vectors [B, F]; where the geometry is "patches", it takes patches
    [B, N, pixels of a patch], their mask [B, N], and the pictures' sides in patches [B, 2].
    states: takes what `network` takes, to the last states [B, P + H * W, F] of P prefix tokens (a class token, say) and
    of the picture's square places, H = W; None where an encoder has no such.
    """

    facts: Mapping[str, Any]
    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: Callable[..., "Tensor"]
    unit: bool = False
    states: Callable[..., "Tensor"] | None = None

    def identity(self) -> dict[str, Any]:
        preprocessing = self.geometry.facts() | {
            "mean": list(self.mean),
            "std": list(self.std),
            "decode": VERSION,
        }
        return dict(self.facts) | {"preprocessing": preprocessing, "normalised": self.unit}

    def __call__(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [H, W, 3] each, as `decode` gives them, to float32 [n, F]."""
        import torch

        with torch.inference_mode():
            vectors = self.network(*self._prepared(pixels)).float()
            if self.unit:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.numpy()

    @cached_property
    def width(self) -> int:
        """Values of a vector, found by encoding a black picture."""
        side = self.geometry.patch or self.geometry.crop
        black = np.zeros((side, side, 3) if isinstance(side, int) else (*side, 3), np.uint8)
        return self([black]).shape[1]

    def _prepared(self, pixels: Sequence[np.ndarray]) -> tuple["Tensor", ...]:
        import torch

        if self.geometry.fit != "patches":
            # the channels stay last in memory: convolutions are the quicker for it
            return (self._normalised(np.stack(pixels)).permute(0, 3, 1, 2),)
        patch, most = self.geometry.patch, self.geometry.max_patches
        patches_BNP = torch.zeros(len(pixels), most, patch * patch * 3)
        mask_BN = torch.zeros(len(pixels), most, dtype=torch.int32)
        shapes_B2 = torch.tensor([[side // patch for side in picture.shape[:2]] for picture in pixels])
        for row, picture in enumerate(pixels):
            rows, columns = shapes_B2[row].tolist()
            cut = self._normalised(picture).reshape(rows, patch, columns, patch, 3)
            patches_BNP[row, : rows * columns] = cut.transpose(1, 2).reshape(rows * columns, -1)
            mask_BN[row, : rows * columns] = 1
        return patches_BNP, mask_BN, shapes_B2

    def _normalised(self, pixels: np.ndarray) -> "Tensor":
        """uint8 [..., W, 3] to float32 of the same shape; a line at a time, which is quicker than a pixel at a time."""
        import torch

        width = pixels.shape[-2]
        lines = torch.from_numpy(pixels.reshape(-1, width * 3).astype(np.float32)).div_(255)
        lines.sub_(torch.tensor(self.mean).repeat(width)).div_(torch.tensor(self.std).repeat(width))
        return lines.reshape(pixels.shape)
