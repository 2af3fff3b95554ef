"""The commands of `python -m tune_lung.data`."""

import shutil
import subprocess
import sys

import pytest

from tune_lung.data.__main__ import main


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err.splitlines()


def test_scan_counts_and_names(capsys, image_folder):
    root = image_folder({"A": 5, "B": 4}, masks=True)
    shutil.copy(root / "A/images/A-1.png", root / "B/images/B-9.png")
    (root / "A/images/A-2.png").write_bytes(b"")
    (root / "A/masks/A-3.png").write_bytes(b"")
    status, lines, errors = run(capsys, "scan", root)
    assert (status, errors) == (0, [])
    assert lines == [
        "2 classes, 10 images",
        "  A: 5 images, 4 masks, 1 bad masks (4 L 48x48)",
        "  B: 5 images, 4 masks (5 L 48x48)",
        "1 files left out",
        "  empty: 1",
        "    A/images/A-2.png",
        "1 sets of byte-identical images",
        "  A/images/A-1.png = B/images/B-9.png",
    ]


def test_audit_names_near_duplicates_and_counts_the_split(capsys, image_folder, tmp_path):
    root = image_folder({"A": 30, "B": 30})
    shutil.copy(root / "A/images/A-1.png", root / "A/images/A-99.png")
    (root / "A.metadata.xlsx").write_bytes(b"broken")
    status, lines, errors = run(capsys, "audit", root, "--cache", tmp_path / "cache", "--image-size", 16)
    assert (status, errors) == (0, [])
    assert lines[-6:] == [
        "1 groups of near-duplicate images",
        "  A/images/A-1.png ~ A/images/A-99.png",
        "strict split, seed 0: train / validation / test",
        "  A: 22 / 6 / 3",
        "  B: 22 / 5 / 3",
        "metadata of A: cannot be read; its images have no source",
    ]


def test_phantoms_are_written_and_called_synthetic_everywhere(capsys, tmp_path):
    root = tmp_path / "phantoms"
    assert run(capsys, "phantoms", root, "--images", 40) == (0, [f"40 SYNTHETIC X-rays (phantoms) with lung masks in {root}"], [])
    options = ("--cache", tmp_path / "cache", "--image-size", 16)
    for command, extra in (("scan", ()), ("audit", options), ("prepare", options)):
        status, lines, _ = run(capsys, command, root, *extra)
        assert status == 0
        assert lines[0].startswith("SYNTHETIC images")


def test_prepare_names_the_store_but_no_image(capsys, image_folder, tmp_path):
    root = image_folder({"A": 10, "B": 10})
    (root / "A/images/A-2.png").write_bytes(b"")
    status, lines, errors = run(capsys, "prepare", root, "--cache", tmp_path / "cache", "--image-size", 16)
    assert (status, errors) == (0, [])
    assert lines[0] == "13 train, 4 validation, 2 test images at 16 pixels"
    assert lines[2] == "1 files left out, 1 empty"
    assert lines[3].startswith("Store: ")
    assert not any("A-2" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("scan", "gone"), "error: There is no folder gone."),
        (("prepare", "images", "--image-size", "4"), "error: image_size must be 16 to 1024 pixels, not 4."),
        (("prepare", "images", "--strict-data", "--image-size", "16"), "error: --strict-data: 1 files cannot be used (1 empty)."),
        (("prepare", "images", "--limit", "3"), "error: --limit 3 is too small:"),
        (("prepare", "images", "--cache-size", "-1"), "error: --cache-size must be at least 0"),
        (("phantoms", "images"), "error: images is not empty."),
        (("phantoms", "new", "--images", "5"), "error: 5 phantoms are too few"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(capsys, image_folder, tmp_path, monkeypatch, arguments, text):
    root = image_folder({"A": 10, "B": 10}, name="images")
    (root / "A/images/A-2.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(capsys, *arguments)
    assert status == 2
    assert len(errors) == 1
    assert errors[0].startswith(text)
    assert "A-2" not in errors[0]


def test_the_module_runs_without_torch():
    program = "import sys, tune_lung.data.__main__; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.real
def test_scan_names_the_byte_identical_pairs_of_the_real_x_rays(capsys, radiography):
    status, lines, _ = run(capsys, "scan", radiography)
    assert status == 0
    assert lines[:5] == [
        "4 classes, 1348 images",
        "  COVID: 230 images, 1 masks (230 L 299x299)",
        "  Lung_Opacity: 380 images, 1 masks (380 L 299x299)",
        "  Normal: 640 images, 1 masks (640 L 299x299)",
        "  Viral Pneumonia: 98 images, 98 masks (86 L 299x299, 12 RGB 299x299)",
    ]
    assert lines[-5:] == [
        "4 sets of byte-identical images",
        "  COVID/images/COVID-137.png = COVID/images/COVID-139.png",
        "  COVID/images/COVID-18.png = COVID/images/COVID-21.png",
        "  COVID/images/COVID-49.png = COVID/images/COVID-52.png",
        "  Viral Pneumonia/images/Viral Pneumonia-74.png = Viral Pneumonia/images/Viral Pneumonia-75.png",
    ]
