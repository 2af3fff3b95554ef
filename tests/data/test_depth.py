"""What is white in films of more than 8 bits: one number for a data set, whatever form its files have."""

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tune_lung.config import RunConfig
from tune_lung.data.__main__ import main
from tune_lung.data.depth import Depth, Whites, whites_of
from tune_lung.data.prepare import PreparedData, prepare
from tune_lung.data.reading import GreyReader
from tune_lung.data.store import PixelStore

from tests.data.conftest import texture
from tests.data.stored_forms import FORMS_OF_12_BITS, pgm, png, tiff, with_channels

RUN = RunConfig(image_size=48)
NUM_OF_CLASS = 8


def film(number: int, *, most: int = 4080) -> npt.NDArray[np.int64]:
    """A picture whose numbers go from 0 to `most`."""
    grey = np.asarray(texture(number)).astype(np.int64)
    return (grey - grey.min()) * most // (grey.max() - grey.min())


def write(root: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def films(form: Callable[[npt.NDArray[np.int64]], bytes], ending: str, **changed: int) -> dict[str, bytes]:
    """Two classes of films in one form; one may be darker, by its name."""
    return {
        f"{name}/{name}{number}.{ending}": form(film(1000 * label + number, most=changed.get(f"{name}{number}", 4080)))
        for label, name in enumerate("AB")
        for number in range(NUM_OF_CLASS)
    }


def stored_pixels(data: PreparedData) -> dict[str, npt.NDArray[np.uint8]]:
    store = PixelStore.open(data.store)
    paths = data.images.set_index("image_id")["path"]
    parts = [store.part("train"), store.part("validation"), store.open_test()]
    return {paths[name]: pixels for part in parts for name, pixels in zip(part.image_ids, part.pixels_NHW, strict=True)}


@pytest.mark.parametrize("ending", FORMS_OF_12_BITS)
def test_films_of_12_bits_become_grey_and_not_black(tmp_path, cache, ending):
    root = write(tmp_path / "data", films(FORMS_OF_12_BITS[ending], ending))
    data = prepare(root, run=RUN, cache=cache)
    pixels = stored_pixels(data)
    assert len(pixels) == 2 * NUM_OF_CLASS
    for path, found in pixels.items():
        number = 1000 * (path[0] == "B") + int(path.split("/")[1][1])
        assert np.abs(found - film(number) * 255 / 4095).max() < 1
        assert found.max() == 254  # 4080 of 4095
    white = "65535" if ending == "declared.pgm" else "4095"  # Pillow has scaled that one
    assert PixelStore.open(data.store).whites == {white: 2 * NUM_OF_CLASS}


def test_a_dark_film_stays_darker_than_its_neighbours_on_every_side_of_the_split(tmp_path, cache):
    dark = {f"A{number}": 500 for number in range(4)}
    pixels = stored_pixels(prepare(write(tmp_path / "data", films(png, "png", **dark)), run=RUN, cache=cache))
    brightest = {path: int(found.max()) for path, found in pixels.items()}
    assert {brightest[f"A/{name}.png"] for name in dark} == {31}  # 500 of 4095
    assert {value for path, value in brightest.items() if path.split("/")[1][:2] not in dark} == {254}


def test_films_that_use_all_bits_are_scaled_by_all_bits(tmp_path, cache):
    contents = {name: png(np.round(film(number, most=65535))) for number, name in enumerate(films(png, "png"))}
    data = prepare(write(tmp_path / "data", contents), run=RUN, cache=cache)
    assert PixelStore.open(data.store).whites == {"65535": 16}
    assert {int(found.max()) for found in stored_pixels(data).values()} == {255}


@pytest.mark.parametrize(
    ("form", "ending"),
    [
        (lambda values: png(values, chunks={b"sBIT": b"\x0c"}), "png"),
        (lambda values: png(with_channels(values, None, None, None), chunks={b"sBIT": b"\x0c\x0c\x0c"}), "png"),
        (lambda values: tiff(values, tags={281: 4095}), "tif"),
        (lambda values: tiff(values, tags={341: 4095}), "tif"),
        (lambda values: tiff(values, bits=32, tags={341: 4095}), "tif"),
        (lambda values: tiff(values, bits=12), "tif"),
        (lambda values: pgm(values, white=4095), "pgm"),
    ],
    ids=["png", "colours", "MaxSampleValue", "SMaxSampleValue", "32 bits", "packed", "pgm"],
)
def test_a_declared_depth_holds_where_no_film_reaches_it(tmp_path, cache, form, ending):
    dark = {f"{name}{number}": 1000 for name in "AB" for number in range(NUM_OF_CLASS)}
    pixels = stored_pixels(prepare(write(tmp_path / "data", films(form, ending, **dark)), run=RUN, cache=cache))
    assert {int(found.max()) for found in pixels.values()} == {62}  # 1000 of 4095


def test_significant_bits_may_be_the_upper_ones_as_the_standard_says(tmp_path, cache):
    contents = films(lambda values: png(values << 4, chunks={b"sBIT": b"\x0c"}), "png", **{f"A{n}": 1500 for n in range(8)})
    pixels = stored_pixels(prepare(write(tmp_path / "data", contents), run=RUN, cache=cache))
    assert {path[0]: int(found.max()) for path, found in pixels.items()} == {"A": 93, "B": 254}  # 24000, 65280 of 65535


def test_the_brightest_pixel_of_each_film_is_no_depth(tmp_path, cache):
    # TIFF 6.0, MaxSampleValue: "for statistical purposes only".
    contents = films(
        lambda values: tiff(values, tags={281: int(values.max())}), "tif", **{f"A{number}": 900 for number in range(4)}
    )
    pixels = stored_pixels(prepare(write(tmp_path / "data", contents), run=RUN, cache=cache))
    assert {int(pixels[f"A/A{number}.tif"].max()) for number in range(4)} == {56}  # 900 of 4095


def test_a_declaration_that_films_go_beyond_is_none():
    depths = [Depth(maximum=most, film_maximum=most, declared=(1023,)) for most in (900, 3000)] + [None]
    assert [whites_of(depths).of(depth) for depth in depths] == [4095, 4095, 255]


@pytest.mark.parametrize("form", [png, lambda values: tiff(values, tags={341: 4095}), FORMS_OF_12_BITS["colours.png"]])
def test_letters_and_frames_in_the_largest_number_make_no_film_dark(tmp_path, cache, form):
    def drawn_on(values):
        values = values.copy()
        values[:4] = 65535
        return form(values)

    data = prepare(write(tmp_path / "data", films(drawn_on, "png" if form is not tiff else "tif")), run=RUN, cache=cache)
    store = PixelStore.open(data.store)
    assert (store.whites, store.num_far_below_white) == ({"4095": 16}, 0)
    assert {int(found[:4].min()) for found in stored_pixels(data).values()} == {255}
    assert {int(found[4:].max()) for found in stored_pixels(data).values()} <= set(range(200, 255))


@pytest.mark.parametrize("most", [1, 255, 65535])
def test_masks_of_two_numbers_keep_soft_edges(tmp_path, cache, most):
    root = write(tmp_path / "data", films(png, "png"))
    for name in films(png, "png"):
        path = root / name[0] / "masks" / name[2:]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(np.tile([[0] * 3 + [most] * 3], (6, 1))))
    data = prepare(root, run=RunConfig(image_size=16, protocol="strict"), cache=cache)
    expected = Image.fromarray(np.tile(np.array([[0] * 3 + [255] * 3], np.uint8), (6, 1))).resize((16, 16), 2)
    assert np.abs(PixelStore.open(data.store).part("train").masks_NHW[0] - np.asarray(expected, np.int64)).max() <= 1


def test_numbers_of_32_bits_without_a_sign_are_read_as_such(tmp_path, cache):
    contents = films(lambda values: tiff(values << 20, bits=32), "tif")
    pixels = stored_pixels(prepare(write(tmp_path / "data", contents), run=RUN, cache=cache))
    assert {int(found.max()) for found in pixels.values()} == {254}


def test_numbers_below_zero_have_no_known_range(tmp_path, cache):
    contents = films(lambda values: tiff(values - 1 & 0xFFFF, sample_format=2), "tif")
    root = write(tmp_path / "data", contents | films(png, "png"))
    images = prepare(root, run=RUN, cache=cache).images
    assert set(images.loc[images["path"].str.endswith("tif"), "excluded_reason"]) == {"unsupported_pixels"}


def test_transparent_pixels_of_16_bits_count_as_black(tmp_path):
    values = np.array([[4000, 4000, 4000]])
    alpha = np.array([[65535, 32768, 0]])
    (tmp_path / "image.png").write_bytes(png(np.stack([values, alpha], axis=-1)))
    with GreyReader() as reader, reader.read(tmp_path / "image.png") as grey:
        assert np.asarray(grey.image)[0].round().tolist() == [4000, 2000, 0]


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_a_packed_file_gives_the_same_numbers(tmp_path, compression):
    Image.fromarray(film(1).astype(np.uint16)).save(tmp_path / "image.tif", compression=compression)
    with GreyReader() as reader, reader.read(tmp_path / "image.tif") as grey:
        assert np.array_equal(np.asarray(grey.image), film(1))


def test_masks_have_a_white_of_their_own(tmp_path, cache):
    root = write(tmp_path / "data", films(png, "png"))
    for name in films(png, "png"):
        path = root / name[0] / "masks" / name[2:]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(np.full((48, 48), 1)))
    data = prepare(root, run=RUN, cache=cache)
    store = PixelStore.open(data.store)
    assert store.mask_whites == {"1": 16}
    assert store.part("train").masks_NHW.min() == 255


def scanned(capsys, root: Path) -> list[str]:
    assert main(["scan", str(root)]) == 0
    return capsys.readouterr().out.splitlines()


def test_scan_tells_the_white_of_a_data_set(capsys, tmp_path):
    lines = scanned(capsys, write(tmp_path / "data", films(png, "png")))
    assert "white, as stored: 4095 in 16 images" in lines
    assert not any("mixture" in line for line in lines)


def test_scan_and_prepare_tell_of_a_mixture_under_one_white(capsys, tmp_path):
    contents = films(png, "png")
    contents |= {f"B/deep{number}.png": png(film(50 + number, most=65535)) for number in range(3)}
    root = write(tmp_path / "data", contents)
    lines = scanned(capsys, root)
    assert "white, as stored: 65535 in 19 images" in lines
    place = next(
        index for index, line in enumerate(lines) if line.startswith("a mixture of depths under one white, or dark films: 16")
    )
    assert lines[place + 1 : place + 17] == [f"    {name}" for name in sorted(films(png, "png"))]
    assert main(["prepare", str(root), "--cache", str(tmp_path / "cache"), "--image-size", "16"]) == 0
    assert "16 of them reach a quarter of the common white at most, and become dark" in capsys.readouterr().out


def test_scan_tells_of_depths_that_differ(capsys, tmp_path):
    root = write(tmp_path / "data", films(png, "png"))
    stored = BytesIO()
    texture(5).save(stored, "PNG")
    (root / "A" / "eight.png").write_bytes(stored.getvalue())
    lines = scanned(capsys, root)
    assert "white, as stored: 255 in 1 images, 4095 in 16 images" in lines
    assert "a mixture of depths, each with its own white" in lines


def test_scan_says_nothing_of_depths_where_all_images_have_8_bits(capsys, image_folder):
    assert not any("white" in line or "depth" in line for line in scanned(capsys, image_folder({"A": 3, "B": 3})))


@pytest.mark.parametrize("place", ["A/A0.png", "B/B7.png"])
def test_the_white_is_part_of_what_identifies_the_store(tmp_path, cache, place):
    contents = films(png, "png")
    first = prepare(write(tmp_path / "data", contents), run=RUN, cache=cache)
    values = film(1000 * (place[0] == "B") + int(place[3]))
    values[0, 0] = 9000  # one pixel is enough to make all darker
    second = prepare(write(tmp_path / "data", {place: png(values)}), run=RUN, cache=cache)
    assert first.fingerprint != second.fingerprint
    assert [PixelStore.open(data.store).whites for data in (first, second)] == [{"4095": 16}, {"16383": 16}]
    others = set(contents) - {place}
    assert {int(stored_pixels(first)[name].max()) for name in others} == {254}
    assert {int(stored_pixels(second)[name].max()) for name in others} == {64}


def deep(most: int, declared: tuple[int, ...] = ()) -> Depth:
    return Depth(maximum=most, film_maximum=most, declared=declared)


def test_what_is_white_in_a_data_set_can_be_written_down_for_images_that_come_later():
    """A new film darker than its data set's stays so; one of a kind that the data set has none of stands for itself."""
    whites = whites_of([deep(4000), deep(900), deep(60_000, (65535,)), None])
    later = Whites.from_facts(json.loads(json.dumps(whites.facts())))
    assert later == whites
    assert [later.of(depth) for depth in (deep(100), deep(9, (65535,)), None)] == [4095, 65535, 255]
    of_8_bits = Whites.from_facts(whites_of([None, None]).facts())
    assert [of_8_bits.of(depth) for depth in (deep(900), deep(9, (4095, 65535)))] == [1023, 4095]
    assert later.of(deep(9, (1023,))) == 1023
    breaking = Whites.from_facts(whites_of([deep(2000, (1023,))]).facts())
    assert breaking.of(deep(9, (1023,))) == 2047
