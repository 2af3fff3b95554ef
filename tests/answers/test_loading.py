"""A run alone answers for image files as its sealed test did."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tune_lung.answers import loading
from tune_lung.answers.loading import LoadedNetwork, load_network
from tune_lung.data.cache import Cache
from tune_lung.data.phantoms import ensure_phantoms
from tune_lung.errors import InputError
from tune_lung.results.reader import read_run
from tune_lung.training.checkpoints import FROZEN, Checkpoint, load, save

from tests.answers.conftest import POINTS, UNDER_PUBLISHED, KeptRun, change_manifest
from tests.data.conftest import texture
from tests.data.stored_forms import png

COLUMNS = ["p_COVID", "p_Normal"]


@pytest.fixture(autouse=True)
def _native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine multiplies natively: torch computes in bf16 everywhere."""
    monkeypatch.setattr(loading, "supports_bf16", lambda _: True)


def answers_of(network: LoadedNetwork, tested: KeptRun, image_ids: Any) -> pd.DataFrame:
    files = tested.images.loc[list(image_ids)]
    answers = network.predict(list(files["path"]), None if network.input == "full" else list(files["mask"]))
    assert answers["path"].tolist() == list(files["path"])
    return answers[COLUMNS].set_axis(files.index)


@pytest.mark.parametrize(
    ("protocol", "cell"), [*(("strict", cell) for cell in POINTS), *(("published", cell) for cell in UNDER_PUBLISHED)]
)
def test_a_copied_run_without_images_cache_and_weights_answers_as_its_ledger_says(
    request: pytest.FixtureRequest, protocol: str, cell: str
) -> None:
    tested = request.getfixturevalue(f"{protocol}_run")
    told = tested.told(tested.trial_of(cell))
    network = load_network(tested.root, trial=tested.trial_of(cell), device="cpu")
    assert len(told) >= 12
    answers = answers_of(network, tested, told.index)
    others = pd.concat([answers_of(network, tested, told.index[start : start + 5]) for start in range(0, len(told), 5)])
    if network.precision == "fp32":
        assert np.abs(answers - told[COLUMNS]).to_numpy().max() <= 1e-6
        assert np.abs(others - told[COLUMNS]).to_numpy().max() <= 1e-5
        return
    assert network.precision == network.run_precision == "bf16"
    for each in (answers, others):
        assert np.abs(each - told[COLUMNS]).to_numpy().max() <= 1e-2
        is_tie = (told[COLUMNS[0]] - told[COLUMNS[1]]).abs() < 2e-2
        assert each.loc[~is_tie].idxmax(axis=1).equals(told.loc[~is_tie, COLUMNS].idxmax(axis=1))


def test_the_networks_do_not_all_answer_alike(strict_run: KeptRun) -> None:
    """Else the test above would show little."""
    told = [strict_run.told(strict_run.trial_of(cell))[COLUMNS[0]].to_numpy() for cell in POINTS]
    assert all(np.ptp(each) > 0.02 for each in told)
    assert all(np.abs(one - other).max() > 0.02 for number, one in enumerate(told) for other in told[:number])


def test_by_default_the_best_cells_first_repeat_answers(strict_run: KeptRun) -> None:
    """By the mean of its repeats: cnn has 0.5 and 0.9, resnet18 k=2 0.8 and 0.6."""
    for network in (load_network(strict_run.root), load_network(read_run(strict_run.root)), load_network(str(strict_run.root))):
        assert (network.cell, network.trial_ids) == ("cnn", (strict_run.trial_of("cnn", 0),))
        assert network.classes == ("COVID", "Normal")
    network = load_network(strict_run.root, cell="resnet18 k=2", repeat=1)
    assert network.trial_id == strict_run.trial_of("resnet18 k=2", 1)


@pytest.mark.parametrize("choice", ["cell", "trial"])
def test_an_ensemble_averages_the_probabilities_of_a_points_repeats(strict_run: KeptRun, choice: str) -> None:
    trials = [strict_run.trial_of("resnet18 k=2", repeat) for repeat in (0, 1)]
    named = {"cell": "resnet18 k=2"} if choice == "cell" else {"trial": trials[1]}
    network = load_network(strict_run.root, **named, ensemble=True, device="cpu")
    assert network.trial_ids == tuple(trials)
    one, two = (strict_run.told(trial_id)[COLUMNS] for trial_id in trials)
    answers = answers_of(network, strict_run, one.index)
    assert np.abs(answers - (one + two) / 2).to_numpy().max() <= 1e-6


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"cell": "resnet18 k=3"}, r"'run' has no cell 'resnet18 k=3'\. Did you mean 'resnet18 k=[024]'\?"),
        ({"trial": "0123456789abcdef"}, r"'run' has no trained trial '0123456789abcdef'\. Its table trials names them\."),
        ({"cell": "cnn", "repeat": 2}, r"There is no repeat 2 of it\. There are: 0, 1\."),
        ({"cell": "cnn", "repeat": 0, "ensemble": True}, "ensemble averages all repeats: leave out repeat"),
    ],
)
def test_what_is_not_there_is_refused_in_a_line(strict_run: KeptRun, choice: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as refused:
        load_network(strict_run.root, **choice)
    assert "\n" not in str(refused.value)


def test_a_trial_of_another_cell_is_refused(strict_run: KeptRun) -> None:
    with pytest.raises(InputError, match=r"no trained trial '[0-9a-f]{16}' in the cell 'cnn'"):
        load_network(strict_run.root, cell="cnn", trial=strict_run.trial_of("cnn lungs"))


# Images


def test_no_images_give_no_rows(strict_run: KeptRun) -> None:
    answers = load_network(strict_run.root).predict([])
    assert answers.columns.tolist() == ["path", *COLUMNS]
    assert answers.empty


@pytest.mark.parametrize("masks", [None, [], ["one.png"]])
def test_masks_that_are_needed_and_missing_are_refused(strict_run: KeptRun, masks: list[str] | None) -> None:
    network = load_network(strict_run.root, cell="cnn lungs")
    told = r"sees a part of each image alone \(input lungs\): 2 images need 2 lung masks, and there are [01]\."
    with pytest.raises(InputError, match=told):
        network.predict(["a.png", "b.png"], masks)


def test_masks_that_are_not_needed_are_not_looked_at(strict_run: KeptRun) -> None:
    network = load_network(strict_run.root, cell="cnn")
    paths = strict_run.images["path"].tolist()
    pd.testing.assert_frame_equal(network.predict(paths, ["nowhere.png"] * len(paths)), network.predict(paths))


@pytest.mark.parametrize("single", ["a.png", Path("a.png")])
def test_one_path_is_no_list_of_letters(strict_run: KeptRun, single: Any) -> None:
    with pytest.raises(InputError, match=r"^predict takes lists: \[path\] for one image"):
        load_network(strict_run.root).predict(single)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda _: None, "cannot be read: No such file or directory."),
        (lambda path: path.write_text("no image"), "cannot be used (not an image)."),
        (lambda path: path.write_bytes(b""), "cannot be used (empty)."),
        (lambda path: path.mkdir(), "cannot be read: Is a directory."),
        (os.mkfifo, "cannot be used (not a file)."),
    ],
    ids=["gone", "text", "empty", "folder", "pipe"],
)
@pytest.mark.parametrize("what", ["image", "mask"])
def test_a_file_that_is_no_image_is_named_in_a_line(
    strict_run: KeptRun, tmp_path: Path, make: Callable[[Path], object], told: str, what: str
) -> None:
    path = tmp_path / "new\nfilm.png"
    make(path)
    good = strict_run.images.iloc[0]
    files = {"image": [good["path"], good["path"]], "mask": [good["mask"], good["mask"]]}
    files[what][1] = str(path)
    with pytest.raises(InputError, match=re.escape(told)) as refused:
        load_network(strict_run.root, cell="cnn lungs").predict(files["image"], files["mask"])
    assert re.match(rf"The {what} '.*film\.png' cannot be", str(refused.value))
    assert "\n" not in str(refused.value)


def test_a_film_that_declares_a_depth_that_the_run_never_saw_is_taken_at_its_word(strict_run: KeptRun, tmp_path: Path) -> None:
    """Of 10 bits, while the run's own have 12 and say nothing; taken for one of those, it would be dark."""
    grey = np.asarray(texture(7))
    (tmp_path / "film.png").write_bytes(png(grey.astype(np.int64) * 4, chunks={b"sBIT": b"\x0a"}))
    (tmp_path / "dark.png").write_bytes(png(grey.astype(np.int64) * 4))
    Image.fromarray(grey).save(tmp_path / "plain.png")
    paths = [tmp_path / name for name in ("film.png", "plain.png", "dark.png")]
    film, plain, dark = load_network(strict_run.root).predict(paths)["p_COVID"]
    assert film == pytest.approx(plain, abs=0.01)  # 255 x 4 of 1023
    assert abs(dark - plain) > 0.1


# Precision


def test_without_native_bf16_it_answers_in_fp32_and_says_so(strict_run: KeptRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "supports_bf16", lambda _: False)
    with pytest.warns(UserWarning, match="^This CPU does not multiply bf16 natively: the network answers in fp32"):
        network = load_network(strict_run.root, cell="resnet18 k=2 bf16", device="cpu")
    assert (network.precision, network.run_precision) == ("fp32", "bf16")
    told = strict_run.told(network.trial_id)
    assert np.abs(answers_of(network, strict_run, told.index) - told[COLUMNS]).to_numpy().max() < 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_network(strict_run.root, cell="cnn").precision == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(strict_run: KeptRun) -> None:
    with pytest.raises(InputError, match="device cannot be 'cuda': torch sees no GPU here"):
        load_network(strict_run.root, device="cuda")


# What is not there, damaged, or a stranger's


def refused(tested: KeptRun, cell: str) -> str:
    with pytest.raises(InputError) as error:
        load_network(tested.root, cell=cell)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_network_that_was_not_kept_is_told_with_how_it_is_trained_again(copied: KeptRun) -> None:
    trial_id = copied.trial_of("cnn")
    shutil.rmtree(copied.root / "checkpoints" / trial_id)
    told = refused(copied, "cnn")
    assert told.startswith(f"The network of trial {trial_id} of 'run' cannot answer. Its network was not kept. To train it again")
    assert told.endswith(f"go on with --resume {copied.root} --keep best.")


def test_a_run_of_an_earlier_version_says_that_it_cannot_answer(copied: KeptRun) -> None:
    without = lambda manifest: manifest | {"data": {name: own for name, own in manifest["data"].items() if name != "pixels"}}  # noqa: E731
    change_manifest(copied.root, without)
    assert "an earlier version of tune_lung wrote it, and did not keep how its images became pixels" in refused(copied, "cnn")


def test_a_network_that_an_earlier_version_kept_answers_unless_a_part_of_it_is_frozen(copied: KeptRun) -> None:
    for path in copied.root.glob("checkpoints/*/best.safetensors"):
        best = load(path)
        save(path, Checkpoint(tensors=best.tensors, state={name: own for name, own in best.state.items() if name != FROZEN}))
    shutil.rmtree(copied.root / "frozen")
    assert load_network(copied.root, cell="cnn").cell == "cnn"
    assert load_network(copied.root, cell="resnet18 k=0").cell == "resnet18 k=0"
    told = refused(copied, "resnet18 k=2")
    assert "An earlier version of tune_lung kept its network without the frozen part." in told
    assert "--keep best" in told


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def with_state(path: Path, **changes: Any) -> None:
    """Rewrite a network's state with a digest that fits, as only malice does."""
    best = load(path)
    save(path, Checkpoint(tensors=best.tensors, state={**best.state, **changes}))


def with_tensors(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    best = load(path)
    save(path, Checkpoint(tensors={name: change(name, own) for name, own in best.tensors.items()}, state=best.state))


class Kept(NamedTuple):
    """The files of one network."""

    run: KeptRun
    best: Path
    frozen: Path

    @classmethod
    def of(cls, run: KeptRun, cell: str) -> "Kept":
        best = best_of(run, cell)
        return cls(run, best, run.root / "frozen" / f"{load(best).state[FROZEN]}.safetensors")

    def best_of(self, cell: str) -> Path:
        return best_of(self.run, cell)


def best_of(run: KeptRun, cell: str) -> Path:
    return run.root / "checkpoints" / run.trial_of(cell) / "best.safetensors"


@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (lambda kept: flip(kept.best), "does not match its digest"),
        (lambda kept: flip(kept.frozen), "The frozen part of its network does not match its digest"),
        (lambda kept: kept.frozen.unlink(), "The frozen part of its network was not kept"),
        (lambda kept: with_state(kept.best, frozen="../../secret"), "holds no state of training"),
        (lambda kept: with_state(kept.best, epoch=7), "is of epoch 7 instead of"),
        (lambda kept: with_state(kept.best, frozen=None), "kept its network without the frozen part"),
        (
            lambda kept: shutil.copy(kept.best_of("resnet18 k=0"), kept.best),
            "kept its network without the frozen part|is of epoch",
        ),
        (lambda kept: with_tensors(kept.best, lambda _, own: own.double()), "is another network's"),
        (lambda kept: with_tensors(kept.best, lambda _, own: own[..., None]), "is another network's"),
        (lambda kept: kept.best.write_bytes(b"\x80\x05cos\nsystem\n."), "cannot be read"),
        (lambda kept: kept.best.write_bytes((2**62).to_bytes(8, "little") + b"{}"), "cannot be read"),
    ],
    ids=["best", "frozen", "gone", "path", "epoch", "none", "other", "double", "shape", "pickle", "header"],
)
def test_what_is_not_the_trials_network_is_refused(copied: KeptRun, forge: Callable[..., object], told: str) -> None:
    forge(Kept.of(copied, "resnet18 k=2"))
    assert re.search(told, refused(copied, "resnet18 k=2"))


@pytest.mark.parametrize("which", ["best", "trial", "checkpoints", "frozen"])
def test_no_link_leads_out_of_the_run(copied: KeptRun, tmp_path: Path, which: str) -> None:
    trial = copied.root / "checkpoints" / copied.trial_of("resnet18 k=2")
    path = {
        "best": trial / "best.safetensors",
        "trial": trial,
        "checkpoints": copied.root / "checkpoints",
        "frozen": copied.root / "frozen",
    }[which]
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert "is a link, and nothing is read through links" in refused(copied, "resnet18 k=2")


def test_a_frozen_part_that_is_a_link_is_refused(copied: KeptRun, tmp_path: Path) -> None:
    for path in (copied.root / "frozen").iterdir():
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert "The frozen part of its network" in refused(copied, "resnet18 k=2")


def test_a_run_that_may_move_between_machines_has_no_path_in_its_networks(strict_run: KeptRun) -> None:
    for path in strict_run.root.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert str(strict_run.root.parents[2]) not in json.dumps(file.metadata())


# A search as a user starts it


@pytest.mark.ray
def test_a_search_over_synthetic_x_rays_answers_for_any_path(finished_search: tuple[Path, str], tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished_search[0], tmp_path / "copied"))
    run = read_run(root)
    with Cache.open(tmp_path / "cache") as cache:
        folder = ensure_phantoms(cache, seed=3)
        paths = run.images.set_index("image_id")["path"]
        for trial_id, told in run.predictions.groupby("trial_id"):
            network = load_network(run, trial=trial_id, device="cpu")
            answers = network.predict([folder / paths[image_id] for image_id in told["image_id"]])
            columns = [f"p_{name}" for name in run.classes]
            most = 1e-6 if network.run_precision == "fp32" else 1e-2
            assert np.abs(answers[columns].to_numpy() - told[columns].to_numpy()).max() <= most
