"""Checkpoints: what is written comes back, to the byte and the type; what no checkpoint can hold is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snet_cli.data.checkpoint_file import (
    Checkpoint,
    check_checkpoint_file,
    describe_checkpoint_file,
    encode_checkpoint,
    load_checkpoint,
    load_checkpoint_with_notes,
    save_checkpoint,
)
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.errors import CheckpointError, DataError, OutputError
from tests.sample_files import same, sample_checkpoint, sample_trajectories

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
ARRAYS = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements={"allow_nan": False, "allow_infinity": False},
)


def test_a_checkpoint_comes_back_with_every_type_and_shape(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    checkpoint = sample_checkpoint()
    digest = save_checkpoint(path, checkpoint)
    loaded = load_checkpoint_with_notes(path)
    assert same(loaded.checkpoint, checkpoint)
    assert loaded.notes == ()
    assert loaded.sha256 == digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert check_checkpoint_file(path) == []
    assert same(load_checkpoint(path.read_bytes()), checkpoint)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, ARRAYS, max_size=4), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_state_dict_comes_back(state: dict[str, Any], source: str) -> None:
    checkpoint = sample_checkpoint(state=state, model_source=source)
    assert same(load_checkpoint(encode_checkpoint(checkpoint)), checkpoint)


def test_the_same_checkpoint_gives_the_same_bytes() -> None:
    assert encode_checkpoint(sample_checkpoint()) == encode_checkpoint(sample_checkpoint())


def test_long_provenance_leaves_the_attributes_and_comes_back() -> None:
    checkpoint = sample_checkpoint(provenance={"parents": ["ab" * 32] * 2_000}, history="ö" * 40_000)
    image = encode_checkpoint(checkpoint)
    with h5py.File.in_memory(image) as file:
        assert file["provenance_text"].dtype == np.uint8
        assert "provenance" not in file.attrs
    assert same(load_checkpoint(image), checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": {"w": np.array([1.0, np.nan, np.inf])}}, "'model/state/w' has 2 of 3 values that are not finite."),
        ({"normalization": {"scale": np.array(np.nan)}}, "'normalization/scale' has 1 of 1 values that are not finite"),
        ({"state": {"a/b": np.ones(1)}}, "the name 'a/b' in 'model/state' holds '/' or a control character"),
        ({"state": {"..": np.ones(1)}}, "the name '..' in 'model/state' has a meaning of its own."),
        ({"state": {"w": np.array([1j])}}, "'model/state/w' has type complex128, expected numbers."),
        ({"state": {"w": np.array([object()])}}, "'model/state/w' has type object, expected numbers."),
        ({"title": "a\0"}, "the title holds a NUL"),
        ({"history": "\ud800"}, "the history holds a NUL or a character that UTF-8 has not."),
        ({"kind": "other"}, "snet_kind is 'other', expected one of model, resume."),
        ({"extra": {"model": {}}}, "a group cannot be named 'model'."),
        ({"config": {"rate": float("nan")}}, "config cannot be written as JSON"),
        ({"contract": {"x": object()}}, "contract cannot be written as JSON"),
        ({"state": {f"w{i}": np.ones(1) for i in range(9_990)}}, "arrays, more than the limit of 9900."),
    ],
)
def test_what_no_checkpoint_can_hold_is_not_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path / "model.h5", sample_checkpoint(**changes))
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def tampered(path: Path, checkpoint: Checkpoint, change: Any) -> Path:
    """A checkpoint changed with h5py after it was written."""
    save_checkpoint(path, checkpoint, force=True)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def set_text(file: h5py.File, name: str, text: str) -> None:
    file.attrs[name] = np.bytes_(text.encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: set_text(f, "snet_format_version", "2.0"), "is of format version 2.0, but this snet reads 1.x."),
        (lambda f: set_text(f, "snet_format_version", "new"), "snet_format_version is 'new', expected '1.0'."),
        (lambda f: set_text(f, "title", "other"), "its content differs from what was written"),
        (lambda f: f["normalization/scale"].write_direct(np.full(2, 2.0)), "its content differs from what was written"),
        (lambda f: f.move("model/state/steps", "model/state/stops"), "its content differs from what was written"),
        (lambda f: f.attrs.__delitem__("snet_format"), "is an HDF5 file of another program"),
    ],
)
def test_a_checkpoint_that_was_edited_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tampered(tmp_path / "model.h5", sample_checkpoint(), change)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)


def without_sum(change: Any) -> Any:
    def both(file: h5py.File) -> None:
        del file.attrs["snet_content_sha256"]
        change(file)

    return both


def replace_text(file: h5py.File, name: str, text: str) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=np.frombuffer(text.encode(), np.uint8))
    file[name].attrs.update(attributes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: replace_text(f, "config", "{1}"), "'config' is no JSON object."),
        (lambda f: replace_text(f, "contract", '{"a": NaN}'), "'contract' is no JSON object."),
        (lambda f: replace_text(f, "contract", "[" * 100_000), "'contract' is no JSON object."),
        (lambda f: f.__delitem__("contract"), "there is no 'contract' (text as uint8)."),
        (lambda f: f["model/state/rate"].write_direct(np.array([np.inf])), "values that are not finite."),
        (
            lambda f: replace_text(f, "model/source", "import os"),
            "the text of the model file does not match its sha256.",
        ),
        (lambda f: set_text(f, "provenance", "[]"), "the attribute provenance is no JSON object."),
        (lambda f: set_text(f, "snet_kind", "code"), "snet_kind is 'code'"),
        (lambda f: f.create_dataset("model/code", data=np.ones(3)), "'model/code' has no place in a checkpoint."),
        (lambda f: f.create_dataset("loose", data=np.ones(3)), "'loose' has no place in a checkpoint."),
    ],
)
def test_every_part_is_judged_even_without_the_digest(tmp_path: Path, change: Any, message: str) -> None:
    path = tampered(tmp_path / "model.h5", sample_checkpoint(), without_sum(change))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)


def test_what_no_checksum_covers_is_said(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["normalization/scale"]
        file["normalization"].create_dataset("scale", data=np.ones(2))

    path = tampered(tmp_path / "model.h5", sample_checkpoint(), without_sum(change))
    assert load_checkpoint_with_notes(path).notes == ("no snet_content_sha256: damage could go unnoticed.",)
    assert "'normalization/scale' has no checksum." in check_checkpoint_file(path)


def test_the_two_kinds_of_file_are_told_apart(tmp_path: Path) -> None:
    data, model = tmp_path / "data.h5", tmp_path / "model.h5"
    save_trajectories(data, sample_trajectories())
    save_checkpoint(model, sample_checkpoint())
    with pytest.raises(CheckpointError, match="is a trajectory file, expected a checkpoint") as caught:
        load_checkpoint(data)
    assert caught.value.exit_code == 4
    with pytest.raises(DataError, match="is a checkpoint, expected a trajectory file") as other:
        load_trajectories(model)
    assert other.value.exit_code == 3


def test_a_missing_checkpoint_and_one_that_exists(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"m\.h5: no such file"):
        load_checkpoint(tmp_path / "m.h5")
    save_checkpoint(tmp_path / "m.h5", sample_checkpoint())
    with pytest.raises(OutputError, match="exists already"):
        save_checkpoint(tmp_path / "m.h5", sample_checkpoint(seed=1))
    assert same(load_checkpoint(tmp_path / "m.h5"), sample_checkpoint())


def test_info_names_everything(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.h5", sample_checkpoint())
    described = describe_checkpoint_file(tmp_path / "m.h5")
    assert described["kind"] == "snet-checkpoint"
    assert described["state"]["net.0.weight"] == {"shape": [8, 3], "dtype": "float64"}
    assert described["groups"] == {"history": ["history"]}
    assert described["contract"]["units"] == {"x": "m"}
    assert described["model_source"]["text"].startswith("class Müller")
