"""Models on disk: strict loading, and a clear refusal of everything else."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import NORMALISATION, TINY, card_of
from safetensors.torch import save, save_file

from vmloc_ros.checkpoint import (
    CARD,
    SCALE,
    WEIGHTS,
    fill_network,
    load_card,
    load_model,
    read_tensors,
    save_model,
    stored,
)
from vmloc_ros.config import parse
from vmloc_ros.errors import CheckpointError
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.vmloc import VMLoc

CONFIG = parse(NetworkConfig, TINY["network"], "test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, VMLoc(CONFIG).state_dict(), card_of(CONFIG, NORMALISATION), "float16")
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def test_round_trip_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = VMLoc(CONFIG).state_dict()
    saved = save_model(tmp_path, weights, card_of(CONFIG, NORMALISATION), "float32")
    card, tensors = load_model(tmp_path)
    assert card == saved
    assert set(tensors) == set(weights)
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    network = VMLoc(card.network)
    fill_network(network, tensors, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), weights.values(), strict=True))


def test_bytes_are_within_half_a_step_of_each_row_and_stay_what_they_are(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = VMLoc(CONFIG).state_dict()
    card = card_of(CONFIG, NORMALISATION)
    first = save_model(tmp_path / "a", weights, card, "int8")
    _, tensors = load_model(tmp_path / "a")
    assert set(tensors) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(tensors[name], stored(tensor, "int8"))
        if tensor.ndim < 2:
            assert torch.equal(tensors[name], tensor)
            continue
        rows, kept = tensor.flatten(1), tensors[name].flatten(1)
        step = rows.abs().amax(dim=1, keepdim=True) / 127.0
        assert bool(((rows - kept).abs() <= 0.501 * step).all())
    assert save_model(tmp_path / "b", tensors, card, "int8").sha256 == first.sha256
    kept, _ = read_tensors(tmp_path / "a" / WEIGHTS)
    assert all((kept[name].dtype is torch.int8) == (tensor.ndim >= 2) for name, tensor in weights.items())


def test_bytes_without_their_scales_are_refused(tmp_path: Path) -> None:
    saved = save_model(tmp_path, VMLoc(CONFIG).state_dict(), card_of(CONFIG, NORMALISATION), "int8")
    tensors, _ = read_tensors(tmp_path / WEIGHTS)
    scales = [name for name in tensors if name.endswith(SCALE)]
    content = save({name: tensor for name, tensor in tensors.items() if name != scales[0]})
    (tmp_path / WEIGHTS).write_bytes(content)
    card = saved.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    (tmp_path / CARD).write_text(yaml.safe_dump(card.model_dump(mode="json")))
    with pytest.raises(CheckpointError, match="no scale"):
        load_model(tmp_path)


def test_half_precision_is_of_matrices_only(model: Path) -> None:
    torch.manual_seed(0)
    weights = VMLoc(CONFIG).state_dict()
    _, tensors = load_model(model)
    for name, tensor in weights.items():
        expected = tensor.half().float() if tensor.ndim >= 2 else tensor
        assert torch.equal(tensors[name], expected)


def test_saving_is_reproducible(whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path, VMLoc(CONFIG).state_dict(), card_of(CONFIG, NORMALISATION), "float16")
    assert (tmp_path / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert (tmp_path / CARD).read_text() == (whole / CARD).read_text()


def test_missing_files_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model folder"):
        load_model(tmp_path / "nowhere")
    (model / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_model(model)
    (model / CARD).unlink()
    with pytest.raises(CheckpointError, match=CARD):
        load_model(model)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 0.999))
def test_truncated_weights_are_refused(whole: Path, tmp_path: Path, share: float) -> None:
    folder = tmp_path / "truncated"
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    content = (whole / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_model(folder)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0.0, 0.999), flip=st.integers(1, 255))
def test_damaged_weights_are_refused(whole: Path, tmp_path: Path, place: float, flip: int) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    content = bytearray((whole / WEIGHTS).read_bytes())
    content[int(place * len(content))] ^= flip
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_model(folder)


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path("exploded").touch, ())


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    tensors = {"a": torch.arange(3.0)}
    plain = save(tensors)
    header = plain[8 : 8 + int.from_bytes(plain[:8], "little")].ljust(length)
    path = tmp_path / WEIGHTS
    path.write_bytes(length.to_bytes(8, "little") + header + plain[-12:])
    assert path.read_bytes()[0] == 0x80
    assert torch.equal(read_tensors(path)[0]["a"], tensors["a"])


@pytest.mark.parametrize("kind", ["pickle", "torch", "zip"])
def test_a_pickle_is_refused_and_never_run(model: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(model)
    if kind == "pickle":
        (model / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch":
        torch.save({"weights": Bomb()}, model / WEIGHTS)
    else:
        with zipfile.ZipFile(model / WEIGHTS, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="pickle"):
        load_model(model)
    assert not (model / "exploded").exists()


def test_another_training_is_refused(model: Path) -> None:
    save_file({"x": torch.zeros(3)}, model / WEIGHTS)
    with pytest.raises(CheckpointError, match="sha256"):
        load_model(model)


def test_another_architecture_is_refused(model: Path) -> None:
    _, tensors = load_model(model)
    name = "position.0.weight"
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != name}, "is missing"),
        ({**tensors, name: tensors[name][:, :3]}, "the card's network has"),
        ({**tensors, "extra": tensors[name]}, "'extra' is not in"),
        ({**tensors, name: tensors[name] * np.nan}, "NaN"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fill_network(VMLoc(CONFIG), changed, model)


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"architecture": "other"}},
        {"format_version": 2},
        {"surprise": 1},
        {"normalisation": {}},
        {"calibration": {"SIDEWAYS": {}}},
    ],
)
def test_malformed_cards_are_refused(model: Path, change: dict) -> None:
    card = yaml.safe_load((model / CARD).read_text())
    (model / CARD).write_text(yaml.safe_dump({**card, **change}))
    with pytest.raises(CheckpointError, match=CARD):
        load_card(model)


def test_a_card_that_is_not_yaml_is_refused(model: Path) -> None:
    for content in (b"\xff\xfe\x00", b"- a\n- b\n", b"a: [", b""):
        (model / CARD).write_bytes(content)
        with pytest.raises(CheckpointError, match=CARD):
            load_card(model)
