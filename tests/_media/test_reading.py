"""Reading rules, reasons for refusal, and content keys."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from skclip._media import PictureError, SharedPicture, content_key, load_item, read_picture
from skclip._media._reading import SizedPicture, _lock_of


def pattern(height=7, width=11, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that promises width x height pixels and holds none."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@contextmanager
def unprivileged():
    """Give up the rights of root for a while, so that file permissions count."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_picture_in_every_form(tmp_path, channels):
    pixels = pattern(channels=channels)
    image = Image.fromarray(pixels)
    data = encoded(image)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    forms = [str(path), path, data, bytearray(data), memoryview(data), image, Image.open(path), pixels]
    if channels == 1:
        forms.append(pixels[:, :, None])
    for form in forms:
        picture = read_picture(form)
        assert picture.mode == {1: "L", 3: "RGB"}[channels]
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_pixels_need_not_be_contiguous():
    pixels = pattern(12, 12)[::2, ::-1]
    np.testing.assert_array_equal(np.asarray(read_picture(pixels)), pixels)
    assert content_key(pixels) == content_key(pixels.copy())


def test_an_upright_picture_is_not_copied():
    image = Image.fromarray(pattern())
    assert read_picture(image) is image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("TIFF", "RGB")])
def test_exif_orientation(orientation, format, mode):
    image = Image.fromarray(pattern()).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, format, exif=exif)
    plain = Image.open(io.BytesIO(encoded(image, format)))
    plain.getexif()[0x0112] = orientation
    picture = read_picture(data)
    assert picture.mode == mode
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(ImageOps.exif_transpose(plain)))
    again = read_picture(picture)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(picture))
    opened = read_picture(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(picture))


def test_orientation_in_xmp():
    image = Image.fromarray(pattern())
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    picture = read_picture(encoded(image, "WEBP", lossless=True, xmp=xmp))
    np.testing.assert_array_equal(np.asarray(picture), np.rot90(np.asarray(image), -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_counts_as_none():
    data = encoded(Image.fromarray(pattern()), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\x00\x00\xff\xff\x00")
    assert read_picture(data).size == (11, 7)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opacity_is_laid_over_white(mode):
    channels = len(mode)
    values = pattern(16, 16, channels)
    values[:4, :, -1], values[4:8, :, -1] = 0, 255
    colours, opacity = values[..., :-1].astype(float), values[..., -1:] / 255
    expected = np.squeeze(opacity * colours + (1 - opacity) * 255)
    for item in (Image.fromarray(values, mode=mode), encoded(Image.fromarray(values, mode=mode))):
        picture = read_picture(item)
        assert picture.mode == mode[:-1]
        result = np.asarray(picture)
        assert np.abs(result - expected).max() <= 1
        assert (result[:4] == 255).all()
        np.testing.assert_array_equal(result[4:8], np.squeeze(values[4:8, :, :-1]))


def test_opacity_in_arrays():
    values = pattern(5, 6, 4)
    expected = np.asarray(read_picture(Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(read_picture(values)), expected)


def test_premultiplied_opacity():
    rgba = Image.fromarray(np.dstack([pattern(5, 6), np.full((5, 6), 255, np.uint8)]))
    np.testing.assert_array_equal(np.asarray(read_picture(rgba.convert("RGBa"))), np.asarray(rgba)[..., :3])


def palette_image(**info):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 4)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    image.info.update(info)
    return image


COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], np.uint8)


def test_palette():
    expected = COLOURS[np.arange(12).reshape(3, 4) % 4]
    for item in (palette_image(), encoded(palette_image()), encoded(palette_image(), "GIF")):
        picture = read_picture(item)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255, 255])])
def test_transparent_palette_entry_is_white_and_nothing_warns(transparency):
    colours = COLOURS.copy()
    colours[1] = 255
    image = palette_image(transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for item in (image, encoded(image, transparency=transparency)):
            result = np.asarray(read_picture(item))
            np.testing.assert_array_equal(result, colours[np.arange(12).reshape(3, 4) % 4])


def test_palette_with_opacity():
    picture = read_picture(palette_image().convert("PA"))
    np.testing.assert_array_equal(np.asarray(picture), COLOURS[np.arange(12).reshape(3, 4) % 4])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_transparent_colour(mode):
    image = Image.new(mode, (3, 2), 0)
    image.putpixel((1, 1), 7 if mode == "L" else (7, 7, 7))
    result = np.asarray(read_picture(encoded(image, transparency=7 if mode == "L" else (7, 7, 7))))
    assert (result[1, 1] == 255).all()
    assert result.sum() == 255 * result[1, 1].size


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_other_colour_spaces(mode):
    image = Image.fromarray(pattern())
    other = image.convert(mode)
    picture = read_picture(other)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(other.convert("RGB")))


def test_cmyk_jpeg_has_the_right_sign():
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    result = np.asarray(read_picture(encoded(red, "JPEG", quality=95))).astype(int)
    assert np.abs(result - [250, 10, 10]).max() < 12


def test_bilevel():
    values = pattern(5, 9, 1) > 127
    picture = read_picture(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(picture.convert("L")), values * np.uint8(255))


def test_sixteen_bit_grey_gives_the_high_byte():
    values = np.array([[0, 255, 256, 257], [32767, 32768, 65279, 65535]], np.uint16)
    expected = [[0, 0, 1, 1], [127, 128, 254, 255]]
    big_endian = Image.frombytes("I;16B", (4, 2), values.astype(">u2").tobytes())
    integers = Image.fromarray(values.astype(np.int32))
    for item in (Image.fromarray(values), encoded(Image.fromarray(values)), big_endian, integers):
        picture = read_picture(item)
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), expected)
    tiff = encoded(Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(np.asarray(read_picture(tiff)), expected)


def test_sixteen_bit_colour_agrees_with_sixteen_bit_grey():
    values = np.array([[0, 255, 256, 300], [32767, 32768, 65279, 65535]], np.uint16)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in values)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    grey = np.asarray(read_picture(Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(read_picture(data)), np.repeat(grey[..., None], 3, axis=2))


def test_sixteen_bit_transparent_value():
    values = np.array([[0, 1000, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), transparency=1000)
    np.testing.assert_array_equal(np.asarray(read_picture(data)), [[0, 255, 255]])


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_counts(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(np.asarray(read_picture(data)), np.asarray(frames[0]))
    opened = Image.open(io.BytesIO(data))
    opened.seek(1)
    np.testing.assert_array_equal(np.asarray(read_picture(opened)), np.asarray(frames[1]))


def test_one_pixel():
    for mode in ("RGB", "L", "RGBA", "P", "CMYK", "I;16", "1"):
        assert read_picture(Image.new(mode, (1, 1))).size == (1, 1)


# Refusals


def bad_files(folder):
    jpeg = encoded(Image.fromarray(pattern(64, 64)), "JPEG")
    png = encoded(Image.fromarray(pattern(64, 64)))
    (folder / "folder.jpg").mkdir()
    (folder / "text.jpg").write_text("not a picture at all")
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "header.png").write_bytes(png[:20])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (folder / "large.png").write_bytes(png_header(10_000, 10_000))
    damaged = bytearray(png)
    damaged[60:200] = bytes(140)
    (folder / "damaged.png").write_bytes(damaged)


def read_reduced(item):
    return SizedPicture(item).at(2)[0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("read", [read_picture, read_reduced])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.jpg", "^no such file$"),
        ("text.jpg/under-a-file.jpg", "^no such file$"),
        ("https://example.org/picture.jpg", "web address"),
        ("folder.jpg", "is a directory"),
        ("text.jpg", "not a picture in any format"),
        ("truncated.jpg", "cut off before the picture ends"),
        ("truncated.png", "cut off before the picture ends"),
        ("header.png", "not a picture|cannot be opened|cut off"),
        ("empty.jpg", r"is empty \(0 bytes\)"),
        ("bomb.png", "pixels.*MAX_IMAGE_PIXELS"),
        ("large.png", "has 10000 x 10000 pixels.*MAX_IMAGE_PIXELS"),
        ("damaged.png", "is damaged|cannot be opened"),
        ("nul\0byte.jpg", "not a valid path"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_reasons_for_files(tmp_path, monkeypatch, read, name, reason):
    bad_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PictureError, match=reason):
        read(name)
    if os.path.isfile(name.split("\0")[0]):
        with pytest.raises(PictureError, match=reason):
            read((tmp_path / name).read_bytes())


def test_warnings_as_errors_do_not_change_the_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError, match="MAX_IMAGE_PIXELS"):
            read_picture(png_header(10_000, 10_000))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_is_the_users(monkeypatch):
    data = encoded(Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
    with pytest.raises(PictureError, match="100 x 100"):
        read_picture(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_picture(data).size == (100, 100)


def test_a_file_too_large_for_a_picture_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "film.jpg"
    with open(path, "wb") as file:
        file.truncate(10_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match="too much for one picture"):
        read_picture(path)


def test_no_permission(tmp_path):
    path = tmp_path / "locked.png"
    path.write_bytes(encoded(Image.fromarray(pattern())))
    path.chmod(0)
    with unprivileged(), pytest.raises(PictureError, match="no permission"):
        read_picture(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="not a regular file"):
        read_picture(tmp_path / "pipe.jpg")


def test_floats_are_refused():
    with pytest.raises(PictureError, match="floating-point pixels"):
        read_picture(Image.new("F", (2, 2)))
    with pytest.raises(PictureError, match="floating-point pixels"):
        read_picture(encoded(Image.new("F", (2, 2)), "TIFF"))


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(PictureError, match="from -1 to 70000"):
        read_picture(Image.fromarray(np.array([[-1, 70000]], np.int32)))


def test_vector_drawings_are_refused():
    drawing = encoded(Image.fromarray(pattern()), "EPS")
    with pytest.raises(PictureError, match=r"vector drawing \(EPS\)"):
        read_picture(drawing)


def test_a_picture_without_pixels():
    with pytest.raises(PictureError, match="no pixels"):
        read_picture(Image.new("RGB", (0, 4)))


def test_a_closed_image():
    image = Image.open(io.BytesIO(encoded(Image.fromarray(pattern()))))
    image.close()
    with pytest.raises(PictureError, match=r"damaged|closed"):
        read_picture(image)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO"])
@pytest.mark.filterwarnings("ignore")
def test_whatever_the_damage_only_picture_errors_get_out(format):
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(pattern(32, 32)), format)
    for _ in range(60):
        broken = bytearray(data[: rng.integers(1, len(data) + 1)])
        for place in rng.integers(0, len(broken), 4):
            broken[place] = rng.integers(256)
        try:
            picture = read_picture(bytes(broken))
        except PictureError:
            continue
        assert picture.mode in ("RGB", "L")


def test_pillows_global_settings_stay(tmp_path):
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    jpeg = encoded(Image.fromarray(pattern(64, 64)), "JPEG")
    read_picture(jpeg)
    with pytest.raises(PictureError):
        read_picture(jpeg[:500])
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_threads_do_not_wait_for_other_images():
    images = [Image.open(io.BytesIO(encoded(Image.new("L", (3, 3))))) for _ in range(200)]
    assert len({id(_lock_of(image)) for image in images}) > 20


def test_threads_may_share_one_lazily_opened_image():
    pixels = pattern(400, 400)
    data = encoded(Image.fromarray(pixels))
    for _ in range(5):
        shared = Image.open(io.BytesIO(data))
        with ThreadPoolExecutor(8) as pool:
            for picture in pool.map(read_picture, [shared] * 16):
                np.testing.assert_array_equal(np.asarray(picture), pixels)


# Smaller than they are


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_upright_and_knows_its_size(orientation):
    coarse = Image.fromarray(pattern(4, 5)).resize((161, 97), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(coarse, "JPEG", exif=exif, quality=95)
    whole, sized = read_picture(data), SizedPicture(data)
    assert sized.size == whole.size
    for reduction in (2, 4, 8, 1):
        small, frame = sized.at(reduction)
        assert small.size == tuple(-(-side // reduction) for side in whole.size)
        grown = np.asarray(small.resize(whole.size, Image.Resampling.BICUBIC, box=frame)).astype(int)
        assert np.abs(grown - np.asarray(whole)).mean() < 3, reduction
        assert sized.at(reduction)[0] is small


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF"])
def test_other_formats_are_read_whole(format):
    data = encoded(Image.fromarray(pattern(40, 60)), format)
    picture, frame = SizedPicture(data).at(4)
    assert frame == (0, 0, 60, 40)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(read_picture(data)))


def test_a_jpeg_of_several_pictures_is_reduced_too():
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    picture, frame = SizedPicture(data).at(2)
    assert picture.size == frame[2:] == (32, 24)
    assert picture.getpixel((3, 3))[0] > 250


def test_a_shared_picture_is_reduced_once():
    data = encoded(Image.fromarray(pattern(64, 64)), "JPEG")
    shared = SharedPicture(data)
    shared.hold()
    first, second = SizedPicture(shared), SizedPicture(shared)
    assert first.size == (64, 64)
    assert first.at(2)[0] is second.at(2)[0]
    assert first.at(1)[0] is read_picture(shared)
    assert shared.held_bytes() == len(data) + 3 * (32 * 32 + 64 * 64)
    shared.release()
    assert shared.held_bytes() == 0


# Content


def test_load_item_reads_paths_only(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert load_item(path) == b"abc"
    assert load_item(str(path)) == b"abc"
    for item in (b"abc", bytearray(b"abc"), pattern(), Image.new("L", (2, 2))):
        assert load_item(item) is item


def test_equal_content_has_one_key(tmp_path):
    pixels = pattern()
    data = encoded(Image.fromarray(pixels))
    for name in ("one.png", "another.png"):
        (tmp_path / name).write_bytes(data)
    files = [tmp_path / "one.png", str(tmp_path / "another.png"), data, bytearray(data), memoryview(data)]
    assert len({content_key(item) for item in files}) == 1
    drawn = [pixels, pixels[::-1].copy()[::-1], Image.fromarray(pixels), Image.open(io.BytesIO(data))]
    assert len({content_key(item) for item in drawn}) == 1
    assert content_key(pixels) != content_key(data)
    assert len(content_key(data)) == 16


def test_grey_pixels_have_one_key():
    pixels = pattern(channels=1)
    assert content_key(pixels) == content_key(pixels[..., None]) == content_key(Image.fromarray(pixels))


def test_different_content_has_different_keys():
    pixels = pattern(4, 6, 3)
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = 6
    turned.info["exif"] = turned.getexif().tobytes()
    items = [
        pixels,
        pixels.reshape(6, 4, 3),
        pixels.reshape(8, 9),
        pixels.tobytes(),
        np.dstack([pixels, np.full((4, 6), 128, np.uint8)]),
        turned,
        palette_image(),
        palette_image(transparency=1),
        pattern(4, 6, 3, seed=1),
    ]
    assert len({content_key(item) for item in items}) == len(items)


def test_the_key_does_not_depend_on_the_session():
    assert content_key(b"abc").hex() == "aa654e960c09e4def91b079bdc5c33ea"
