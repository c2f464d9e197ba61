"""Thumbnails of a picture, made in a process of their own: `python -m app.core.image_work ... CONTENT_TYPE`."""

import copy
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO, Final

# All that opening a picture would otherwise import when no file can be opened any more.
from PIL import AvifImagePlugin, Image, ImageCms, ImageOps, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin

from app.core.file_work import Answer, Fault, UnworkableError, serve

SIZES: Final = (1024, 256, 64)
MAX_PIXELS: Final = 50_000_000
FORMATS: Final = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/gif": "GIF",
    "image/webp": "WEBP",
    "image/avif": "AVIF",
}
_LOADED: Final = (copy, AvifImagePlugin, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)
_QUALITY: Final = 80
_SWAPS_SIDES: Final = range(5, 9)  # of the eight ways in which a camera may have been held
_ORIENTATION: Final = 0x0112
_DIRECT_MODES: Final = ("RGB", "RGBA", "L", "CMYK")  # of which a part of the pixels makes sense


def make_thumbnails(file: BinaryIO, arguments: Sequence[str]) -> Answer:
    """One for each size, as WebP without metadata: upright, in sRGB, of the first frame, never enlarged."""
    image = _open(file, FORMATS[arguments[0]])
    width, height = image.size
    try:
        if image.getexif().get(_ORIENTATION) in _SWAPS_SIDES:
            width, height = height, width
        picture = _upright(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnworkableError(Fault.DAMAGED, "The picture is damaged or cut off.") from error
    parts, made = [], []
    for size in SIZES:
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        parts.append(_webp(picture))
        made.append({"size": size, "width": picture.width, "height": picture.height})
    return Answer({"width": width, "height": height, "thumbnails": made[::-1]}, parts[::-1])


def _open(file: BinaryIO, kind: str) -> Image.Image:
    """Read the header only, of this format only, and refuse what would be too large when unpacked."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        image = Image.open(file, formats=[kind])
    except Image.DecompressionBombError as error:
        raise _too_many_pixels() from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UnworkableError(Fault.DAMAGED, "The picture is damaged: its header can't be read.") from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels()
    return image


def _too_many_pixels() -> UnworkableError:
    return UnworkableError(Fault.REFUSED, f"The picture has more than {MAX_PIXELS // 1_000_000} million pixels.")


def _upright(image: Image.Image) -> Image.Image:
    """The picture at the largest size. A JPEG is decoded at little more than that, the metadata is read before."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16 bits of grey
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    elif image.mode not in _DIRECT_MODES:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((SIZES[0], SIZES[0]), Image.Resampling.LANCZOS, reducing_gap=2.0)
    image = ImageOps.exif_transpose(image)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if profile:
        image = _in_srgb(image, profile, mode)
    return image.convert(mode)


def _in_srgb(image: Image.Image, profile: bytes, mode: str) -> Image.Image:
    """The colours as they were meant. A profile that is broken, or of another kind of picture, is left aside."""
    try:
        meant = ImageCms.ImageCmsProfile(BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, meant, target, outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _webp(picture: Image.Image) -> bytes:
    picture.info.clear()
    out = BytesIO()
    picture.save(out, "WEBP", quality=_QUALITY, method=4)
    return out.getvalue()


Image.MAX_IMAGE_PIXELS = MAX_PIXELS
Image.preinit()
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

if __name__ == "__main__":
    serve(make_thumbnails)
