"""Picture files to pixels.

Only the decoders of common picture formats are open to a file: some of the others run programs or
read further files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedsprig.errors import UnreadablePictureError

EXTENSIONS: Final = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm")
)
FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
MAX_PIXELS: Final = 80_000_000
"""More are refused before they are decoded: a small file can claim a huge picture."""

_WHITE: Final = (255, 255, 255, 255)


def decode(path: Path, size: int | None) -> NDArray[np.uint8]:
    """Read one picture: upright by its EXIF orientation, transparency on white, 8 bits a colour.

    Args:
        path: The file.
        size: Side of the square to fit, or ``None``.

    Returns:
        ``uint8 [h, w, 3]``.

    Raises:
        UnreadablePictureError: Names the file and what is wrong with it.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width}x{picture.height} pixels are too many")
            if size is not None:
                # A JPEG decoder can leave detail out that the resize would drop; much faster.
                picture.draft("RGB", (2 * size, 2 * size))
            upright = ImageOps.exif_transpose(picture)
            return np.asarray(fit_square(to_rgb(upright), size))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadablePictureError(
            f"cannot read the picture {str(path)!r} ({reason}): replace or remove it"
        ) from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any picture in 8-bit red, green and blue. 16-bit greys keep their upper 8 bits.

    Raises:
        ValueError: Pixels without a known range (floating point, 32 bits).
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels have more than 16 bits, convert it to 8 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("its pixels are floating point, convert it to 8 bits")
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, _WHITE), over).convert("RGB")
    return picture.convert("RGB")


def fit_square(picture: Image.Image, size: int | None) -> Image.Image:
    """The largest central square, resized (bilinear, antialiased); ``None`` leaves the picture."""
    if size is None or picture.size == (size, size):
        return picture
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def fit_squares(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """``fit_square`` of every picture: ``[n, h, w, 3]`` to ``[n, size, size, 3]``."""
    if size is None or images.shape[1:3] == (size, size):
        return images
    out = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for target, pixels in zip(out, images, strict=True):
        target[...] = np.asarray(fit_square(Image.fromarray(pixels), size))
    return out
