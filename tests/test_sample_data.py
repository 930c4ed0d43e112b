"""Sample data is small, says who made it, and can be made again; the quickstart ends with scores and pictures."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snet_cli.data.trajectory_file import load_trajectories
from tests import sample_recordings
from tests.command import Snet
from tests.readme_sections import ROOT
from tests.sample_files import same

FOLDER = ROOT / "sample_data"
COMMANDS = dict(re.findall(r"^\| `(\w+\.h5)` \| `(snet .*)` \|$", (FOLDER / "README.md").read_text("utf-8"), re.M))
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def test_all_of_it_together_is_small_and_every_file_is_explained() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    text = (FOLDER / "README.md").read_text("utf-8")
    assert sum(path.stat().st_size for path in files) <= 3e6
    assert {path.name for path in files if f"`{path.name}`" not in text} == {"README.md"}
    assert {path.name for path in files if path.suffix == ".h5"} == set(COMMANDS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "vehicle_test.h5" else name for name in COMMANDS]
)
def test_the_command_beside_a_trajectory_file_makes_it_again(snet: Snet, name: str) -> None:
    for config in FOLDER.glob("*.yaml"):
        shutil.copy(config, ".")
    ran = snet(*shlex.split(COMMANDS[name])[1:])
    assert ran.code == 0, ran.err
    made, kept = load_trajectories(name), load_trajectories(FOLDER / name)
    # another processor or library may end in other last digits; everything else is the same
    np.testing.assert_allclose(made.outputs, kept.outputs, rtol=0, atol=1e-6)
    np.testing.assert_allclose(made.time, kept.time, rtol=1e-12)
    settings = {**made.provenance, "versions": None}
    assert settings == {**kept.provenance, "versions": None}
    bare = [replace(d, time=d.time * 0, outputs=d.outputs * 0, truth=None, provenance={}) for d in (made, kept)]
    assert same(*(replace(d, x0=None, inputs=made.inputs) for d in bare))


def test_a_command_makes_the_same_bytes_every_time(snet: Snet) -> None:
    for folder in ("first", "second"):
        Path(folder).mkdir()
        words = shlex.split(COMMANDS["tanks.h5"].replace("-o ", f"-o {folder}/"))
        assert snet(*words[1:]).code == 0
    assert Path("first/tanks.h5").read_bytes() == Path("second/tanks.h5").read_bytes()


def test_the_csv_pair_is_what_its_program_writes(tmp_path: Path) -> None:
    sample_recordings.write(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()


def test_the_configurations_work(snet: Snet) -> None:
    for path in FOLDER.glob("*.*"):
        shutil.copy(path, ".")
    assert snet("simulate", "pendulum", "-c", "simulate.yaml", "-o", "a.h5").code == 0
    fit = snet("fit", "a.h5", "-c", "fit.yaml", "-o", "m.h5", "--iterations", 3)
    assert fit.code == 0, fit.err
    found = snet("import", "recording_a.csv", "recording_b.csv", "-c", "import.yaml", "-o", "r.h5", "--json").json
    assert found["split"] == {"train": 1, "valid": 0, "test": 1}
    assert found["units"]["angle"] == "rad"


def shortened(folder: Path) -> Path:
    """The quickstart with few iterations and a `snet` that is this checkout's."""
    script = folder / "quickstart.sh"
    text = (FOLDER / "quickstart.sh").read_text("utf-8")
    for long, short in (
        ("ories 40", "ories 4"),
        ("ories 10", "ories 2"),
        ("ples 500", "ples 20"),
        ("tions 300", "tions 5"),
    ):
        assert long in text
        text = text.replace(long, short)
    script.write_text(text)
    shim = folder / "bin" / "snet"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m snet_cli "$@"\n')
    shim.chmod(0o755)
    return script


@pytest.mark.slow  # .ci/run runs it in full
def test_the_quickstart_ends_with_scores_and_a_picture_in_a_folder_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{PATH}"}
    work = tmp_path / "elsewhere"
    work.mkdir()
    (work / "quickstart").mkdir()  # a folder that stands there already is left alone
    command = ["sh", str(shortened(tmp_path))]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\nall " in done.stdout
    picture = re.search(r"^pictures: (.*?\.png)", done.stdout, re.M)
    assert picture is not None
    assert Path(picture[1]).read_bytes().startswith(b"\x89PNG")
    assert list((work / "quickstart").iterdir()) == []


@pytest.mark.slow
def test_the_whole_quickstart_takes_less_than_a_minute(tmp_path: Path) -> None:
    shortened(tmp_path)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{PATH}"}
    command = ["sh", str(FOLDER / "quickstart.sh"), "here"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "here" / "figures" / "plane.png").exists()
