import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.workflows.provenance import provenance
from tests.command import Snet

SYSTEMS = (
    "vehicle",
    "multi-agent",
    "multi-agent-test",
    "multi-agent-gains",
    "pendulum",
    "duffing",
    "van-der-pol",
    "lotka-volterra",
    "cascaded-tanks",
)


def simulate(snet: Snet, name: str, *more: object) -> bytes:
    ran = snet("simulate", "pendulum", "-o", name, "--trajectories", 3, "--samples", 11, "--horizon", 1, *more)
    assert ran.code == 0, ran.err
    return Path(name).read_bytes()


def test_same_options_and_seed_give_the_same_bytes_under_any_name(snet: Snet) -> None:
    first = simulate(snet, "a.h5")
    assert first == simulate(snet, "b.h5", "-q", "--json", "--max-memory", "1GB")
    assert first != simulate(snet, "c.h5", "--seed", 1)
    assert first != simulate(snet, "d.h5", "--noise", 0.1)


def test_flags_yaml_and_environment_give_the_same_file(snet: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    first = simulate(snet, "a.h5", "--noise", "1e-3", "--set", "c=0.3", "--seed", 4)
    Path("c.yaml").write_text("noise: 1e-3\nc: 0.3\nseed: 3\n")
    monkeypatch.setenv("SNET_SEED", "4")
    assert first == simulate(snet, "b.h5", "-c", "c.yaml")


def test_a_simulation_says_where_it_came_from(snet: Snet) -> None:
    simulate(snet, "a.h5", "--seed", 5)
    data = load_trajectories("a.h5")
    made = data.provenance
    assert (made["command"], made["seed"], made["parents"]) == ("simulate", 5, {})
    assert made["options"]["system"] == "pendulum"
    assert made["options"]["threads"] >= 1
    assert not {"output", "force", "quiet", "json", "max_memory"} & set(made["options"])
    assert set(made["versions"]) == {"python", "numpy", "scipy", "torch", "h5py"}
    assert data.history.startswith("snet 0.1.0 simulate system=pendulum ")
    assert str(Path.cwd()) not in Path("a.h5").read_bytes().decode("latin-1")


def test_what_an_import_was_made_from_is_a_parent(snet: Snet) -> None:
    Path("d.csv").write_text("t,x\n0,1\n1,2\n2,4\n")
    assert snet("import", "d.csv", "-o", "a.h5", "--states", "x").code == 0
    data = load_trajectories("a.h5")
    assert list(data.provenance["parents"]) == ["recording-001"]
    assert provenance("fit", {"train": "/home/me/a.h5", "order": 3}, parents={"train": "ff"})["options"] == {"order": 3}


def test_the_list_of_systems_needs_no_system(snet: Snet) -> None:
    shown = snet("simulate", "--list")
    assert shown.code == 0
    for name in SYSTEMS:
        assert f"\n{name} " in shown.out
    assert [one["name"] for one in snet("simulate", "--list", "--json").json["systems"]] == list(SYSTEMS)
    assert "\nharmonics  " in snet("simulate", "vehicle", "--list").out
    assert snet("simulate", "vehikle", "--list").code == 2


def test_a_result_goes_to_stdout_and_the_next_command_to_stderr(snet: Snet) -> None:
    ran = snet("simulate", "pendulum", "-o", "my file.h5", "--trajectories", 2)
    assert ran.out.startswith("pendulum: 2 trajectories (2 ok), 100 samples each, T = 10 s, seed 0\n")
    assert ran.err == "wrote my file.h5; next: snet fit 'my file.h5' -o model.h5\n"
    assert snet("simulate", "pendulum", "-o", "b.h5", "--trajectories", 2, "-q").err == ""


def test_a_dry_run_checks_everything_and_writes_nothing(snet: Snet) -> None:
    ran = snet("simulate", "duffing", "-o", "a.h5", "-n", "--json")
    assert ran.json["horizon"] == 20
    assert not Path("a.h5").exists()
    assert snet("simulate", "duffing", "-o", "nowhere/a.h5", "-n").code == 5


def test_an_output_that_exists_needs_force_and_stays_intact(snet: Snet) -> None:
    before = simulate(snet, "a.h5")
    ran = snet("simulate", "vehicle", "-o", "a.h5")
    assert ran.code == 5
    assert ran.err == "error: a.h5: exists already.\nChoose another name, or overwrite it with --force.\n"
    assert Path("a.h5").read_bytes() == before
    assert simulate(snet, "a.h5", "-f", "--seed", 2) != before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["vehikle"], "there is no system 'vehikle'.\nDid you mean 'vehicle'?"),
        (
            ["vehicle", "--set", "harmonic=3"],
            "--set harmonic: snet simulate has no option 'harmonic'.\nDid you mean 'h",
        ),
        (["vehicle", "--set", "harmonics=0"], "--set harmonics is 0, expected a whole number from 1 to 1000.\n"),
        (["vehicle", "--keep", "0"], "--keep is 0, expected a number above 0 and of at most 1.\n"),
        (["vehicle", "--noise", "nan"], "--noise is 'nan', expected a number of at least 0.\n"),
        (["vehicle", "--samples", "1"], "--samples is 1, expected a whole number from 2 to 10000000.\n"),
        (
            ["vehicle", "--sampling", "lobato"],
            "--sampling is 'lobato', expected 'uniform', 'random' or 'lobatto'.\nDid",
        ),
    ],
)
def test_bad_options_of_simulate_are_named(snet: Snet, args: list[str], message: str) -> None:
    ran = snet("simulate", *args, "-o", "a.h5")
    assert ran.code == 2
    assert ran.err.startswith(f"error: {message}")
    assert not Path("a.h5").exists()


def test_the_shown_configuration_is_one_that_can_be_read(snet: Snet) -> None:
    shown = snet("simulate", "vehicle", "--show-config", "--set", "harmonics=3", "--seed", 7)
    assert "harmonics: 3\n" in shown.out
    Path("c.yaml").write_text(shown.out)
    assert snet("simulate", "vehicle", "--show-config", "-c", "c.yaml").out == shown.out
    assert snet("simulate", "vehicle", "--show-config", "-c", "c.yaml", "--json").json["seed"] == 7


def test_info_says_what_a_file_holds(snet: Snet) -> None:
    simulate(snet, "a.h5")
    ran = snet("info", "a.h5", "--check")
    assert ran.code == 0
    assert "3 trajectories, 33 samples (11 to 11 each), every 0.1 s from 0 to 1\n" in ran.out
    assert ran.out.endswith("every rule of the schema is kept\n")
    shown = snet("info", "a.h5", "--json").json
    assert shown["command"] == "info"
    assert shown["system"]["name"] == "pendulum"
    assert shown["provenance"]["command"] == "simulate"


@pytest.mark.parametrize(("cut", "message"), [(500, "cut.h5: "), (10**9, "cut.h5: is empty, expected an HDF5 file.")])
def test_damaged_data_is_exit_3(snet: Snet, cut: int, message: str) -> None:
    Path("cut.h5").write_bytes(simulate(snet, "a.h5")[:-cut])
    for flags in ([], ["--check"]):
        ran = snet("info", "cut.h5", *flags)
        assert ran.code == 3
        assert ran.err.startswith(f"error: {message}")


def test_a_damaged_checkpoint_is_exit_4(snet: Snet) -> None:
    from snet_cli.data.checkpoint_file import Checkpoint, save_checkpoint

    save_checkpoint("m.h5", Checkpoint("model", {"fit": {}}, {"model": "mlp"}, {"w": np.ones(300)}))
    assert snet("info", "m.h5", "--check").code == 0
    assert "model: 300 numbers in 1 array\n" in snet("info", "m.h5").out
    Path("cut.h5").write_bytes(Path("m.h5").read_bytes()[:-100])
    assert snet("info", "cut.h5").code == 4


def test_a_broken_rule_is_exit_3_and_the_json_still_says_what_is_in_the_file(snet: Snet) -> None:
    import h5py

    simulate(snet, "a.h5")
    with h5py.File("a.h5", "r+") as file:
        del file.attrs["history"]
    assert snet("info", "a.h5").code == 0
    ran = snet("info", "a.h5", "--check", "--json")
    assert ran.code == 3
    assert ran.json["problems"] == ["lacks the attribute history."]
    assert ran.json["error"]["code"] == "data"


def test_foreign_files_are_exit_3(snet: Snet) -> None:
    Path("t.txt").write_text("no data")
    ran = snet("info", "t.txt")
    assert ran.code == 3
    assert ran.err.startswith("error: t.txt: is a text file, expected an HDF5 file.\n")
    assert snet("info", ".").code == 3


def test_names_in_a_file_cannot_move_the_cursor(snet: Snet) -> None:
    from dataclasses import replace

    simulate(snet, "a.h5")
    data = load_trajectories("a.h5")
    save_trajectories("b.h5", replace(data, title="\x1b[2Jclear"))
    ran = snet("info", "b.h5")
    assert "\x1b" not in ran.out + ran.err
    assert "\\x1b[2Jclear" in ran.out


def test_import_of_a_table(snet: Snet) -> None:
    Path("d.csv").write_text("t,x [m],v,u\n0,0,1,0.5\n0.1,0.1,,0.5\n0.3,0.28,0.9,\n0.2,0.19,0.95,0.4\n")
    flags = ["--time", "t", "--states", "x,v", "--inputs", "u", "--units", "v=m/s", "--hold", "linear"]
    ran = snet("import", "d.csv", "-o", "d.h5", *flags, "--json")
    assert ran.code == 0
    assert ran.json["missing"] == {"x": 0, "v": 1}
    assert "note: sorted the rows of 1 recording by time.\n" in ran.err
    data = load_trajectories("d.h5")
    assert data.output_names == ("x", "v")
    assert dict(data.units)["v"] == "m/s"
    Path("c.yaml").write_text("time: t\nstates: [x, v]\ninputs: u\nunits: {v: m/s}\nhold: linear\n")
    assert snet("import", "d.csv", "-o", "e.h5", "-c", "c.yaml").code == 0
    assert Path("d.h5").read_bytes() == Path("e.h5").read_bytes()


def test_repeated_listings_add_up(snet: Snet) -> None:
    Path("d.csv").write_text("t,x,v\n0,0,1\n1,1,1\n2,2,1.5\n")
    assert snet("import", "d.csv", "-o", "d.h5", "--states", "x", "--states", "v").code == 0
    assert load_trajectories("d.h5").output_names == ("x", "v")


def test_duplicate_times_are_exit_3_and_leave_no_file(snet: Snet) -> None:
    Path("dup.csv").write_text("t,x\n0,1\n0,2\n1,3\n")
    assert snet("import", "dup.csv", "-o", "dup.h5", "--states", "x", "--time", "t").code == 3
    assert not Path("dup.h5").exists()


def test_a_dry_import_reads_and_writes_nothing(snet: Snet) -> None:
    Path("d.csv").write_text("t,x\n0,1\n1,2\n2,4\n")
    ran = snet("import", "d.csv", "-o", "d.h5", "--states", "x", "-n")
    assert ran.out.startswith("1 trajectory, 3 samples, every 1 s\n")
    assert not Path("d.h5").exists()


def test_pipes_carry_hdf5_and_nothing_else(tmp_path: Path) -> None:
    snet = [sys.executable, "-m", "snet_cli"]
    size = ["--trajectories", "2", "--samples", "5"]
    made = subprocess.run([*snet, "simulate", "pendulum", *size, "-o", "-"], capture_output=True, cwd=tmp_path)
    assert made.returncode == 0
    assert made.stdout[:8] == b"\x89HDF\r\n\x1a\n"
    told = subprocess.run([*snet, "info", "-", "--check"], input=made.stdout, capture_output=True, cwd=tmp_path)
    assert told.returncode == 0
    assert told.stdout.startswith(b"-: snet-trajectory 1.0")


def test_a_closed_pipe_ends_quietly(snet: Snet, tmp_path: Path) -> None:
    simulate(snet, "a.h5")
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "snet_cli", "info", "a.h5"], stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert (ran.returncode, ran.stderr) == (141, b"")
