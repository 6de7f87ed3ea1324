"""Images from installed packages and folders; nothing is fetched.

Images are uint8 until `normalise`: arrays ``(h, w, 3)`` as read, tensors ``(n, 3, size, size)`` as
cut. Images are cut before they are resized (bicubic, antialiased).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.errors import KeyFiltersError, MissingExtraError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = ["centre_crop", "image_folder", "normalise", "photographs", "random_crops"]

# Without greyscale photographs and those that show no natural scene.
SHIPPED = {
    "skimage/data": (
        *("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png"),
        "rocket.jpg",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}
Failed: TypeAlias = list[tuple[str, str]]  # name and reason of images that could not be read
REGIONS = {"all": (0.0, 1.0), "left": (0.0, 0.5), "right": (0.5, 1.0)}  # of the width
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


def photographs() -> dict[str, NDArray[np.uint8]]:
    """Return the seven natural colour photographs that scikit-image and scikit-learn ship.

    Each is ``(h, w, 3)`` with sides of 300 to 741 pixels.

    Raises:
        MissingExtraError: scikit-image is not installed.
        KeyFiltersError: the installed version lacks one of the files.

    >>> photographs()["chelsea"].shape
    (300, 451, 3)
    """
    found = {}
    for folder, files in SHIPPED.items():
        package, _, inside = folder.partition("/")
        if (spec := find_spec(package)) is None or spec.origin is None:
            raise MissingExtraError(f"reading the photographs of {package}", "train")
        for path in (Path(spec.origin).parent / inside / file for file in files):
            if not path.is_file():
                command = "pip install -U scikit-image scikit-learn"
                raise KeyFiltersError(f"{package} lacks {inside}/{path.name}; type: {command}")
            found[path.stem] = np.array(open_image(path))
    return found


def random_crops(
    photographs: Mapping[str, NDArray[np.uint8]],
    count: int,
    size: int = 224,
    *,
    scale: tuple[float, float] = (0.35, 1.0),
    region: str = "all",
    seed: int = 0,
) -> Tensor:
    """Cut random squares, half of them mirrored, evenly from all photographs.

    Crop i comes from photograph ``i % len(photographs)``, and the first crops are the same for
    every `count`. Crops of one photograph overlap: they are no independent images.

    Args:
        photographs: name → ``(h, w, 3)`` uint8.
        count: number of crops.
        size: side of a crop after resizing, in pixels.
        scale: smallest and largest side before resizing, uniform between, as fractions of the
            shorter side of the region.
        region: "all", or the "left" or "right" half of every photograph, which share no pixel.
        seed: the crops are a function of it.

    Returns:
        ``(count, 3, size, size)`` uint8.

    Raises:
        KeyFiltersError: no photographs, one that is no such array, or an option out of its range.

    >>> ramp = np.arange(64, dtype=np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    >>> random_crops({"ramp": ramp}, 5, 16, region="left").shape
    torch.Size([5, 3, 16, 16])
    """
    if region not in REGIONS:
        known = f"region is {region!r}; {', '.join(REGIONS)} are known"
        raise KeyFiltersError(known + nearest(region, REGIONS))
    if not photographs or count < 1 or not 0 < scale[0] <= scale[1] <= 1:
        got = f"{len(photographs)} photographs, count {count}, scale {scale}"
        raise KeyFiltersError(f"{got}; 1 or more, 1 or more and 0 < low ≤ high ≤ 1 are expected")
    images, (start, stop) = list(photographs.values()), REGIONS[region]
    generator = np.random.default_rng(seed)
    crops = []
    for i in range(count):
        image = _checked(images[i % len(images)])
        image = _checked(image[:, int(start * image.shape[1]) : int(stop * image.shape[1])])
        height, width = image.shape[:2]
        side = max(1, round(min(height, width) * generator.uniform(*scale)))
        top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
        crop = image[top : top + side, left : left + side]
        crops.append(centre_crop(crop[:, ::-1] if generator.integers(2) else crop, size))
    return torch.stack(crops)


def centre_crop(image: NDArray[np.uint8], size: int = 224) -> Tensor:
    """Cut the largest square from the middle of ``(h, w, 3)`` and resize it: ``(3, size, size)``.

    >>> centre_crop(np.zeros((30, 45, 3), np.uint8), 8).shape
    torch.Size([3, 8, 8])
    """
    from PIL import Image

    return pixels(square(Image.fromarray(np.ascontiguousarray(_checked(image))), size))


def pixels(image: PillowImage) -> Tensor:
    """Return an image as uint8 ``(channels, h, w)``."""
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)


def square(image: PillowImage, size: int, how: str = "bicubic") -> PillowImage:
    """Cut the largest square from the middle and resize it to so many pixels."""
    from PIL.Image import Resampling

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = image.crop((left, top, left + side, top + side))
    return cut.resize((size, size), Resampling[how.upper()])


def image_folder(
    path: str | os.PathLike[str], *, size: int = 224, limit: int | None = None
) -> tuple[Tensor, list[tuple[str, str]]]:
    """Read the images of a folder and its subfolders, without labels.

    Each is turned as its camera says, laid over white where it is transparent, and cut as by
    `centre_crop`. All are held at once: 150 kB an image at 224 pixels.

    Args:
        path: the folder, with .jpg, .jpeg, .png, .webp and .bmp files.
        size: side of the images in pixels.
        limit: stop after so many readable images; None reads all.

    Returns:
        ``(n, 3, size, size)`` uint8 in the order of the sorted paths, and (name, reason) of every
        file that was seen and not taken.

    Raises:
        KeyFiltersError: no such folder, or no image in it can be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise KeyFiltersError(f"{path} is no folder; a folder of images is expected")
    images: list[Tensor] = []
    skipped: Failed = []
    for file in sorted(x for x in folder.rglob("*") if x.is_file()):
        if limit is not None and len(images) >= limit:
            break
        try:
            images.append(pixels(square(open_image(file), size)))
        except Exception as error:  # damaged files make decoders raise nearly anything
            skipped.append((file.relative_to(folder).as_posix(), why(error)))
    if not images:
        seen = "; ".join(map(": ".join, skipped[:3])) or "no file"
        raise KeyFiltersError(f"no image of {path} can be read ({seen})")
    return torch.stack(images), skipped


def normalise(
    images: Tensor, mean: float | Sequence[float], std: float | Sequence[float]
) -> Tensor:
    """Return ``(images / 255 − mean) / std`` in float32.

    Args:
        images: ``(..., channels, h, w)`` uint8.
        mean: one number, or one a channel, on the scale from 0 to 1.
        std: likewise. EfficientNet-Lite's (x − 127)/128 is mean 127/255 and std 128/255.

    Raises:
        KeyFiltersError: images of another type, numbers that do not fit, or a std not above 0.

    >>> normalise(torch.tensor([[[0, 255]]], dtype=torch.uint8), 0.5, 0.25)
    tensor([[[-2.,  2.]]])
    """
    if images.dtype != torch.uint8 or images.ndim < 3:
        got = f"{images.dtype} of shape {tuple(images.shape)}"
        raise KeyFiltersError(f"images are {got}; uint8 of shape (..., channels, h, w) expected")
    shift, spread = (
        torch.tensor(x, dtype=torch.float32, device=images.device).reshape(-1, 1, 1)
        for x in (mean, std)
    )
    if not {len(shift), len(spread)} <= {1, images.shape[-3]} or not bool((spread > 0).all()):
        got = f"mean {mean}, std {std} for {images.shape[-3]} channels"
        raise KeyFiltersError(f"{got}; one number, or one a channel, and std > 0 expected")
    return (images.float() / 255 - shift) / spread


def open_image(path: Path) -> PillowImage:
    """Read a file as `in_rgb` does."""
    from PIL import Image

    if reason := refusal(path.suffix):
        raise KeyFiltersError(reason)
    with path.open("rb") as file, Image.open(file) as stored:
        return in_rgb(stored)


def in_rgb(stored: PillowImage) -> PillowImage:
    """Return an image in RGB, turned as its camera says, over white where it is transparent.

    Raises:
        KeyFiltersError: it has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    if stored.mode.startswith(("I", "F")):  # converting would clip 16 bits to white
        raise KeyFiltersError(f"mode {stored.mode} has more than 8 bits a channel")
    image = ImageOps.exif_transpose(stored)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def refusal(suffix: str) -> str:
    """Return why a file of such a name is not read, or nothing."""
    return "" if suffix.lower() in SUFFIXES else f"not a {' '.join(SUFFIXES)} file"


def why(error: Exception) -> str:
    """Return why an image could not be read."""
    return f"{error}" if isinstance(error, KeyFiltersError) else f"{type(error).__name__}: {error}"


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        got = f"{image.dtype} of shape {image.shape}"
        raise KeyFiltersError(f"an image is {got}; uint8 of shape (h, w, 3) is expected")
    return image
