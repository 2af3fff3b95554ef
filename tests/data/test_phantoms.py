import numpy as np
import pytest
from PIL import Image

from tune_lung.data.duplicates import near_duplicate_pairs, thumbnail
from tune_lung.data.phantom_findings import FINDINGS
from tune_lung.data.phantoms import class_counts, draw_phantom, ensure_phantoms, write_phantoms
from tune_lung.data.scan import scan
from tune_lung.errors import InputError


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(root, seed=0, num_images=80)
    return root


def test_phantoms_lie_in_the_kaggle_layout_and_are_marked_synthetic(phantoms):
    found = scan(phantoms)
    assert found.synthetic
    assert found.classes == ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    assert all(image.mask is not None for image in found.images)
    assert len(found.images) == 80
    with Image.open(phantoms / "COVID/images/COVID-1.png") as image:
        assert (image.mode, image.size) == ("L", (299, 299))
    with Image.open(phantoms / "COVID/masks/COVID-1.png") as mask:
        assert (mask.mode, mask.size) == ("RGB", (256, 256))
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_phantom_classes_are_moderately_uneven():
    assert class_counts(640) == {"COVID": 150, "Lung_Opacity": 170, "Normal": 200, "Viral Pneumonia": 120}
    assert sum(class_counts(101).values()) == 101


def test_phantoms_follow_the_seed_alone(tmp_path, phantoms):
    write_phantoms(tmp_path / "same", seed=0, num_images=80)
    write_phantoms(tmp_path / "other", seed=1, num_images=80)
    first = {path.relative_to(phantoms): path.read_bytes() for path in phantoms.rglob("*.png")}
    assert {path.relative_to(tmp_path / "same"): path.read_bytes() for path in (tmp_path / "same").rglob("*.png")} == first
    assert not any(
        (tmp_path / "other" / path).read_bytes() == content for path, content in first.items() if "images" in str(path)
    )


def test_phantoms_are_no_near_duplicates_of_each_other(phantoms):
    thumbnails = np.array([thumbnail(Image.open(image.path)) for image in scan(phantoms).images])
    assert len(near_duplicate_pairs(thumbnails)[0]) == 0


@pytest.mark.parametrize("class_name", FINDINGS)
def test_lungs_are_darker_than_the_rest_and_fill_a_plausible_share(class_name):
    for seed in range(5):
        pixels, mask = draw_phantom(class_name, seed=seed)
        assert 0.15 < (mask == 255).mean() < 0.5
        assert pixels[mask == 255].mean() < pixels[mask == 0].mean() - 20


def test_brightness_alone_hardly_tells_the_classes():
    # Mean and deviation of the whole picture, nearest class mean: chance is 0.25; the findings fill lungs, so not exactly.
    counts = 30
    labels = np.repeat(np.arange(4), counts)
    pictures = [draw_phantom(name, seed=seed)[0] for name in FINDINGS for seed in range(100, 100 + counts)]
    features = np.array([(picture.mean(), picture.std()) for picture in pictures])
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    centres = np.array([features[labels == label].mean(axis=0) for label in range(4)])
    nearest = ((features[:, None] - centres) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == labels).mean() < 0.55


def test_too_few_phantoms_are_refused(tmp_path):
    with pytest.raises(InputError, match="8 phantoms are too few"):
        write_phantoms(tmp_path / "few", seed=0, num_images=8)


def test_phantoms_are_not_mixed_into_a_folder_in_use(tmp_path):
    (tmp_path / "Normal").mkdir()
    with pytest.raises(InputError, match="is not empty"):
        write_phantoms(tmp_path, seed=0, num_images=16)


def test_phantoms_are_drawn_once_and_mended_when_incomplete(cache):
    root = ensure_phantoms(cache, seed=3, num_images=16)
    missing = root / "Normal/images/Normal-1.png"
    content = missing.read_bytes()
    assert ensure_phantoms(cache, seed=3, num_images=16) == root
    missing.unlink()
    assert ensure_phantoms(cache, seed=3, num_images=16) == root
    assert missing.read_bytes() == content
    assert ensure_phantoms(cache, seed=4, num_images=16) != root
