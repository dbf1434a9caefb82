"""Pictures that clients send are read as viewers show them: a test for each row of the table in docs/api.md."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from cynosure.metadata import encoded_picture
from cynosure.pictures import on_black, on_white, opened

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
PHOTO = Image.fromarray(COLOURS)


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return encoded_picture(buffer.getvalue())


def read(picture: Image.Image, form: str = "PNG", **options: object) -> np.ndarray:
    return np.asarray(on_white(opened(encoded(picture, form, **options), "init_image"), "init_image"))


def read_mask(picture: Image.Image, form: str = "PNG", **options: object) -> np.ndarray:
    return np.asarray(on_black(opened(encoded(picture, form, **options), "mask_image"), "mask_image"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_by_exif(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    PHOTO.save(buffer, "PNG", exif=exif)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue())))
    assert np.array_equal(read(PHOTO, exif=exif), np.asarray(shown))


def test_sixteen_bits_of_grey_are_scaled() -> None:
    grey = np.linspace(0, 65535, 96).reshape(8, 12).astype(np.uint16)
    assert np.array_equal(read(Image.fromarray(grey))[..., 0], (grey / 257).round().astype(np.uint8))
    assert np.array_equal(read_mask(Image.fromarray(grey)), (grey / 257).round().astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_modes_with_less_or_more_than_colours(mode: str) -> None:
    picture = PHOTO.convert(mode)
    assert np.array_equal(read(picture), np.asarray(picture.convert("RGB")))


def test_cmyk_jpegs() -> None:
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    assert np.abs(read(flat.convert("CMYK"), "JPEG", quality=100).astype(int) - (200, 40, 90)).max() <= 3


def transparent(colour: tuple[int, int, int]) -> Image.Image:
    """Half opaque, half transparent."""
    pixels = np.zeros((8, 12, 4), np.uint8)
    pixels[:, :6] = (*colour, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_white_in_pictures_and_black_in_masks(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    picture = read(transparent((10, 20, 30)), form, **options)
    assert (picture[:, :6] == (10, 20, 30)).all()
    assert (picture[:, 6:] == 255).all()
    mask = read_mask(transparent((255, 255, 255)), form, **options)
    assert (mask[:, :6] == 255).all()
    assert (mask[:, 6:] == 0).all()


def test_a_palettes_transparent_colour() -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert (read(palette, transparency=0) == 255).all()
    assert (read_mask(palette, transparency=0) == 0).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_the_first_frame_of_animations(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    shown = read(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (shown == (255, 0, 0)).all()


def test_a_colour_profile_is_converted_to_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert np.array_equal(read(PHOTO, icc_profile=lab.tobytes()), COLOURS), "sRGB's own changes nothing"
    swapped = adobe_like()
    shown = read(PHOTO, icc_profile=swapped)
    assert not np.array_equal(shown, COLOURS)
    expected = ImageCms.profileToProfile(PHOTO, ImageCms.getOpenProfile(io.BytesIO(swapped)), lab)
    assert np.array_equal(shown, np.asarray(expected))


def adobe_like() -> bytes:
    """sRGB's profile with red's and green's colours changed places, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    name = "sRGB".encode("utf-16-be")
    while name in profile:
        at = profile.index(name)
        profile[at : at + len(name)] = "Swap".encode("utf-16-be")
    return bytes(profile).replace(b"sRGB", b"Swap")


def test_a_broken_profile_is_left_out() -> None:
    assert np.array_equal(read(PHOTO, icc_profile=b"no profile at all"), COLOURS)


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: f"data:image/png;base64,{text}"])
def test_data_urls(wrap: Callable[[str], str]) -> None:
    assert np.array_equal(np.asarray(on_white(opened(wrap(encoded(PHOTO)), "f"), "f")), COLOURS)
