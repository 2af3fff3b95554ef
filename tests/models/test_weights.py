import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from tune_lung.errors import InputError
from tune_lung.families.resnet import ResNetConfig
from tune_lung.models import weights
from tune_lung.models.network import build_network
from tune_lung.models.weights import RANDOM_WEIGHTS, WeightsSource, load_backbone, resolve_weights

BOTH = ("resnet18", "resnet34")


@pytest.fixture(scope="module")
def resnet18_state():
    return get_model("resnet18", weights=None).state_dict()


@pytest.fixture(scope="module")
def resnet18_file(resnet18_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18-ours.pth"
    torch.save(resnet18_state, path)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder for weights, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def refused(path, match, models=("resnet18",)):
    with pytest.raises(InputError, match=match) as caught:
        resolve_weights(str(path), models)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_random_weights_have_no_file():
    assert resolve_weights("random", BOTH) == {"resnet18": RANDOM_WEIGHTS, "resnet34": RANDOM_WEIGHTS}
    with pytest.raises(ValueError, match="no weights to load"):
        load_backbone(RANDOM_WEIGHTS, "resnet18")


def test_file_is_named_and_hashed_without_its_folder(resnet18_file):
    source = resolve_weights(str(resnet18_file), ["resnet18"])["resnet18"]
    digest = hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    assert source == WeightsSource(kind="file", name="resnet18-ours.pth", sha256=digest, path=resnet18_file)


def test_network_starts_from_the_file_and_draws_only_its_head(resnet18_file, resnet18_state):
    source = resolve_weights(str(resnet18_file), ["resnet18"])["resnet18"]
    config = ResNetConfig(weights="file", frozen_blocks=2)
    network = build_network(config, protocol="strict", num_classes=4, image_size=32, weights=source, seed=0)
    assert torch.equal(network.prefix.layer2[1].conv2.weight, resnet18_state["layer2.1.conv2.weight"])
    assert torch.equal(network.rest.layer4[1].bn2.running_var, resnet18_state["layer4.1.bn2.running_var"])
    assert network.rest.fc.weight.shape == (4, 512)


def test_half_precision_and_any_head_and_no_batch_counters_are_read_as_fp32(tmp_path, resnet18_state):
    half = {name: tensor.half() for name, tensor in resnet18_state.items() if not name.endswith("num_batches_tracked")}
    half["fc.weight"] = torch.zeros(10, 512)
    path = tmp_path / "resnet18-half.pt"
    torch.save(half, path)
    backbone = load_backbone(resolve_weights(str(path), ["resnet18"])["resnet18"], "resnet18")
    assert {tensor.dtype for tensor in backbone.values()} == {torch.float32}
    assert not any(name.startswith("fc.") for name in backbone)
    assert torch.equal(backbone["conv1.weight"], half["conv1.weight"].float())


def test_a_relative_path_still_leads_to_the_file_from_another_folder(resnet18_file, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(resnet18_file.parent)
    source = resolve_weights(resnet18_file.name, ["resnet18"])["resnet18"]
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_backbone(source, "resnet18")


def test_folder_gives_each_model_its_own_file(tmp_path, resnet18_state):
    save_file(resnet18_state, tmp_path / "resnet18.safetensors")
    torch.save(get_model("resnet34", weights=None).state_dict(), tmp_path / "resnet34-b627a593.pth")
    (tmp_path / "README.md").write_text("resnet18 and resnet34")
    sources = resolve_weights(str(tmp_path), BOTH)
    assert {model: source.name for model, source in sources.items()} == {
        "resnet18": "resnet18.safetensors",
        "resnet34": "resnet34-b627a593.pth",
    }


def test_folder_without_a_model_names_it_and_the_way_out(resnet18_file):
    text = refused(resnet18_file.parent, "no weights for resnet34, resnet50", ("resnet18", "resnet34", "resnet50"))
    assert "--set model=resnet18" in text


def test_folder_with_two_files_for_a_model_is_refused(tmp_path):
    (tmp_path / "resnet18-a.pth").touch()
    (tmp_path / "resnet18-b.pth").touch()
    refused(tmp_path, r"2 files for resnet18: resnet18-a\.pth, resnet18-b\.pth")


def test_one_file_for_two_models_names_those_it_does_not_fit(resnet18_file):
    text = refused(resnet18_file, r"resnet18-ours\.pth does not fit resnet34: 80 of 180 tensors are missing", BOTH)
    assert text.endswith("or search one network only: --set model=resnet18.")


def test_deeper_network_of_the_same_widths_is_refused(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(get_model("resnet34", weights=None).state_dict(), path)
    refused(path, "does not fit resnet18: it has 80 tensors too many, such as layer1.2.conv1.weight")


def test_network_with_the_same_names_and_other_shapes_is_refused(tmp_path, resnet18_state):
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18_state | {"layer1.0.conv1.weight": torch.zeros(128, 64, 3, 3)}, path)
    refused(path, r"layer1\.0\.conv1\.weight has shape \(128, 64, 3, 3\), not \(64, 64, 3, 3\)")


def test_another_networks_file_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    refused(path, "does not fit resnet18: 100 of 100 tensors are missing")


def test_missing_file_names_the_nearest_word():
    refused("imagnet", "no such file or folder. Did you mean 'imagenet'?")


@pytest.mark.parametrize("kept", [0, 100, 1_000_000], ids=["empty", "100 bytes", "1 MB"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file_is_refused(tmp_path, resnet18_state, resnet18_file, suffix, kept):
    whole = resnet18_file
    if suffix == ".safetensors":
        whole = tmp_path / "whole.safetensors"
        save_file(resnet18_state, whole)
    path = tmp_path / f"resnet18{suffix}"
    path.write_bytes(whole.read_bytes()[:kept])
    refused(path, f"resnet18{suffix} cannot be read as weights")


class Payload:
    """Creates a file when it is unpickled by a loader that trusts its input."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, resnet18_state, write):
    planted = tmp_path / "planted"
    path = tmp_path / "resnet18.pth"
    write(resnet18_state | {"layer9": Payload(planted)}, path)
    refused(path, "code in a file is never run")
    assert not planted.exists()


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, [torch.zeros(2)], {"conv1.weight": 3}], ids=["wrapped", "a list", "no tensors"]
)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "resnet18.pth"
    torch.save(content, path)
    refused(path, r"resnet18\.pth is not a state dict")


def test_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "resnet18.onnx"
    path.touch()
    refused(path, r"no weights file by its name. Allowed: \.pth, \.pt, \.safetensors")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tensor: tensor.double(), "bn1.bias is torch.float64. Allowed: float16, float32"),
        (lambda tensor: tensor.bfloat16(), "bn1.bias is torch.bfloat16"),
        (lambda tensor: tensor / 0, "bn1.bias holds numbers that are not finite"),
    ],
    ids=["double", "bf16", "nan"],
)
def test_other_number_formats_and_numbers_that_are_none_are_refused(tmp_path, resnet18_state, change, match):
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18_state | {"bn1.bias": change(resnet18_state["bn1.bias"])}, path)
    refused(path, match)


def test_file_that_changes_or_goes_after_it_was_resolved_is_refused(tmp_path, resnet18_file):
    path = tmp_path / "resnet18.pth"
    path.write_bytes(resnet18_file.read_bytes())
    source = resolve_weights(str(path), ["resnet18"])["resnet18"]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="has changed since"):
        load_backbone(source, "resnet18")
    path.unlink()
    with pytest.raises(InputError, match="no longer there"):
        load_backbone(source, "resnet18")


def test_failed_download_says_which_file_to_put_where(hub, monkeypatch):
    def fail(*_args, **_options):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    text = refused("imagenet", r"resnet18-f37072fd\.pth could not be downloaded \(URLError: .*no route to host")
    assert f"https://download.pytorch.org/models/resnet18-f37072fd.pth and put it at {hub}/resnet18-f37072fd.pth" in text


@pytest.mark.usefixtures("hub")
def test_imagenet_weights_are_downloaded_once_and_named_as_torchvision_names_them(monkeypatch, resnet18_file):
    downloads = []

    def download(url, target, *, hash_prefix, **_options):
        downloads.append((url, hash_prefix))
        Path(target).write_bytes(resnet18_file.read_bytes())

    digest = hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(weights, "_promised_digest", lambda _: digest[:8])
    for _ in range(2):
        source = resolve_weights("imagenet", ["resnet18"])["resnet18"]
    assert downloads == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", digest[:8])]
    assert (source.kind, source.name, source.sha256) == ("imagenet", "ResNet18_Weights.IMAGENET1K_V1", digest)
    assert len(load_backbone(source, "resnet18")) == 100


def test_damaged_imagenet_file_in_the_cache_is_refused(hub, resnet18_file):
    hub.mkdir(parents=True)
    (hub / "resnet18-f37072fd.pth").write_bytes(resnet18_file.read_bytes())
    refused("imagenet", "is damaged: its SHA-256 does not begin with f37072fd")


@pytest.mark.real
def test_weights_trained_on_natural_images_load(pretrained_weights):
    sources = resolve_weights(str(pretrained_weights), BOTH)
    assert sources["resnet18"].sha256.startswith("54392c53")
    for model, source in sources.items():
        assert all(tensor.isfinite().all() for tensor in load_backbone(source, model).values())


@pytest.mark.parametrize("is_old", [False, True], ids=["archive", "before 1.6"])
def test_a_pickle_that_asks_for_gigabytes_is_refused(tmp_path, is_old):
    # bytearray(8 GB): 60 bytes that torch's own check lets pass.
    call = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (8 * 10**9).to_bytes(5, "little") + b"\x85R."
    path = tmp_path / "weights.pth"
    if is_old:
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + call)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", call)
            archive.writestr("a/version", "3")
    refused(path, r"it calls builtins bytearray")


def test_weights_that_unpack_to_more_than_their_size_are_refused(tmp_path):
    stored, path = io.BytesIO(), tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(10**6)}, stored)
    with zipfile.ZipFile(stored) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert path.stat().st_size < 10**5
    refused(path, "it is packed")


def test_weights_saved_before_torch_1_6_are_read(tmp_path, resnet18_state):
    torch.save(resnet18_state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_backbone(resolve_weights(str(tmp_path / "old.pth"), ["resnet18"])["resnet18"], "resnet18")
