import os
import re
from pathlib import Path

import pytest
from PIL import Image

from tune_lung.data.exclusion import ExclusionReason
from tune_lung.data.scan import scan
from tune_lung.errors import InputError


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)


def reasons(root: Path) -> dict[str, ExclusionReason]:
    return {item.relative: item.reason for item in scan(root).excluded}


def test_scan_reads_the_kaggle_layout_and_pairs_masks(tmp_path):
    put(tmp_path, "B/images/B-1.png", "B/masks/B-1.png", "B/images/B-2.png", "A/images/A-1.png")
    (tmp_path / "A.metadata.xlsx").touch()
    found = scan(tmp_path)
    assert found.classes == ("A", "B")
    assert [image.relative for image in found.images] == ["A/images/A-1.png", "B/images/B-1.png", "B/images/B-2.png"]
    assert [image.mask for image in found.images] == [None, tmp_path / "B/masks/B-1.png", None]
    assert found.excluded == ()


def test_scan_reads_the_flat_layout_and_pairs_masks(tmp_path):
    put(tmp_path, "A/A-1.png", "A/masks/A-1.png", "B/B-1.png")
    found = scan(tmp_path)
    assert [image.relative for image in found.images] == ["A/A-1.png", "B/B-1.png"]
    assert found.images[0].mask == tmp_path / "A/masks/A-1.png"


def test_scan_reads_deeper_folders_and_takes_the_first_for_the_class(tmp_path):
    put(tmp_path, "A/hospital 1/2020/x.PNG", "A/hospital 2/x.jpeg", "B/y.tif")
    assert [(image.class_name, image.relative) for image in scan(tmp_path).images] == [
        ("A", "A/hospital 1/2020/x.PNG"),
        ("A", "A/hospital 2/x.jpeg"),
        ("B", "B/y.tif"),
    ]


def test_scan_pairs_a_mask_with_another_ending(tmp_path):
    put(tmp_path, "A/images/1.jpg", "A/masks/1.png", "B/1.png")
    assert scan(tmp_path).images[0].mask == tmp_path / "A/masks/1.png"


def test_scan_reads_names_with_spaces_and_other_letters(tmp_path):
    put(tmp_path, "Lungenentzündung é/Röntgen 1.png", "肺炎/画像 1.png")
    found = scan(tmp_path)
    assert found.classes == ("Lungenentzündung é", "肺炎")
    assert found.images[1].relative == "肺炎/画像 1.png"


def test_scan_passes_over_hidden_files_and_folders_without_images(tmp_path):
    put(tmp_path, "A/1.png", "A/._1.png", "B/1.png", ".git/1.png")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/readme.txt").touch()
    found = scan(tmp_path)
    assert found.classes == ("A", "B")
    assert len(found.images) == 2


def test_scan_leaves_out_a_folder_called_like_an_image(tmp_path):
    put(tmp_path, "A/1.png", "B/1.png", "A/x.png/inside.png")
    assert reasons(tmp_path) == {"A/x.png": ExclusionReason.FOLDER}


def test_scan_leaves_out_files_with_other_endings(tmp_path):
    put(tmp_path, "A/1.png", "B/1.png")
    (tmp_path / "A/notes.txt").touch()
    assert reasons(tmp_path) == {"A/notes.txt": ExclusionReason.OTHER_FILE}


@pytest.mark.parametrize("target", ["..", "../..", "../../.."], ids=["its class", "the root", "above the root"])
def test_scan_ends_at_a_loop_of_links(tmp_path, target):
    root = tmp_path / "above" / "root"
    put(root, "A/images/1.png", "B/1.png")
    put(tmp_path / "above", "other/elsewhere.png")
    (root / "A/images/loop").symlink_to(target, target_is_directory=True)
    assert reasons(root) == {"A/images/loop": ExclusionReason.LINK_LOOP}
    assert len(scan(root).images) == 2


def test_scan_leaves_out_a_link_to_itself_and_a_link_to_nothing(tmp_path):
    put(tmp_path, "A/1.png", "B/1.png")
    (tmp_path / "A/self.png").symlink_to("self.png")
    (tmp_path / "A/gone.png").symlink_to("nowhere.png")
    assert reasons(tmp_path) == {"A/self.png": ExclusionReason.BROKEN_LINK, "A/gone.png": ExclusionReason.BROKEN_LINK}


def test_scan_follows_links_within_the_folder(tmp_path):
    put(tmp_path, "A/images/1.png", "B/1.png")
    (tmp_path / "B/2.png").symlink_to(tmp_path / "A/images/1.png")
    assert [image.relative for image in scan(tmp_path).images] == ["A/images/1.png", "B/1.png", "B/2.png"]


def test_scan_leaves_out_links_that_lead_out_of_the_folder_unless_told_to_follow(tmp_path):
    put(tmp_path, "far/1.png", "root/B/1.png", "root/C/1.png", "far/masks/1.png")
    root = tmp_path / "root"
    (root / "A").symlink_to(tmp_path / "far", target_is_directory=True)
    (root / "B/2.png").symlink_to(tmp_path / "far/1.png")
    (root / "C/masks").symlink_to(tmp_path / "far/masks", target_is_directory=True)
    assert reasons(root) == dict.fromkeys(("A", "B/2.png", "C/masks"), ExclusionReason.OUTSIDE_LINK)
    followed = scan(root, follow_links=True)
    assert [image.relative for image in followed.images] == ["A/1.png", "B/1.png", "B/2.png", "C/1.png"]
    assert followed.excluded == ()


def test_a_folder_made_of_links_is_refused_with_the_option_that_follows_them(tmp_path):
    put(tmp_path, "far/A/1.png", "far/B/1.png")
    (tmp_path / "root").mkdir()
    for name in ("A", "B"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "far" / name, target_is_directory=True)
    with pytest.raises(InputError, match=r"made of links that lead out of it \(2\).* --follow-links"):
        scan(tmp_path / "root")


def test_scan_never_opens_a_pipe(tmp_path):
    put(tmp_path, "A/1.png", "B/1.png")
    os.mkfifo(tmp_path / "A/pipe.png")
    assert reasons(tmp_path) == {"A/pipe.png": ExclusionReason.NOT_A_FILE}


def test_scan_leaves_out_a_name_that_is_not_utf8(tmp_path):
    put(tmp_path, "A/1.png", "B/1.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/A/\xff.png")).touch()
    assert reasons(tmp_path) == {"A/\ufffd.png": ExclusionReason.BAD_NAME}


def test_scan_refuses_what_is_no_image_folder(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder .*gone"):
        scan(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        scan(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        scan(tmp_path / "empty")


def test_scan_refuses_one_class(tmp_path):
    put(tmp_path, "Normal/1.png")
    (tmp_path / "empty class").mkdir()
    with pytest.raises(InputError, match=r"holds one class only \('Normal'\)"):
        scan(tmp_path)


def test_scan_refuses_a_folder_that_is_split_already(tmp_path):
    put(tmp_path, "train/A/1.png", "test/A/2.png")
    with pytest.raises(InputError, match=r"already split \(test, train\)"):
        scan(tmp_path)


def test_folders_may_lie_deeper_than_python_calls_itself(tmp_path):
    folder = tmp_path / "A"
    folder.mkdir()
    for _ in range(600):
        folder /= "d"
        folder.mkdir()
    for path in (folder / "deep.png", tmp_path / "A" / "d" / "e.png"):
        path.touch()
    (tmp_path / "B").mkdir()
    (tmp_path / "B" / "b.png").touch()
    assert [image.path.name for image in scan(tmp_path).images] == ["deep.png", "e.png", "b.png"]


@pytest.mark.parametrize("levels", [("COVID-19_Radiography_Dataset",), ("archive", "COVID-19_Radiography_Dataset")])
@pytest.mark.parametrize("layout", ["images/a.png", "a.png"])
def test_the_folder_above_the_classes_folder_is_answered_with_that_one(tmp_path, levels, layout):
    inner = tmp_path.joinpath(*levels)
    for name in ("COVID", "Normal"):
        put(inner, f"{name}/{layout}", f"{name}/masks/a.png")
    with pytest.raises(InputError, match=rf"holds one class only .* Did you mean {re.escape(str(inner))}\?$"):
        scan(tmp_path)


def test_one_class_with_its_images_and_masks_is_taken_for_no_folder_of_classes(tmp_path):
    put(tmp_path, "A/images/a.png", "A/masks/a.png")
    with pytest.raises(InputError, match=r"Give a folder with at least two class folders\.$"):
        scan(tmp_path)
