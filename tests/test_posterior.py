"""The posterior of θ: against scipy's least squares on the rollout, and the arithmetic that it is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

from snet_cli.data.checkpoint_file import load_checkpoint, save_checkpoint
from snet_cli.data.posterior import HALF_WIDTH, read_posterior
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.distributed import ALONE
from snet_cli.models.ensemble import Ensemble
from snet_cli.training import information, posterior
from snet_cli.training.information import Information, Squares, Triangles
from snet_cli.training.posterior import fits_memory
from snet_cli.training.theta_jacobian import theta_jacobian
from tests.shooting_cases import Driven

NOISE = 0.05

SWING = """
import torch

class Swing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stiffness = torch.nn.Parameter(torch.tensor(2.0))
        self.rates = torch.nn.Parameter(torch.tensor([0.4, 0.4]))  # damping, and the gain of the torque

    def forward(self, t, x, u):
        q, v = x.unbind(-1)
        return torch.stack([v, -self.stiffness * q.sin() - self.rates[0] * v + self.rates[1] * u[..., 0]], -1)
"""

MESH = ("--order", "8", "--elements", "5", "--method", "joint", "--seed", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of a pendulum with length and gravity 1, and the parameters that scipy finds with their spread."""
    place = tmp_path_factory.mktemp("posterior")
    (place / "swing.py").write_text(SWING)
    return place


@pytest.fixture
def swing(folder, snet, monkeypatch):
    """`m.h5`, trained once on `a.h5` by the program; `free.h5` on the same data with x(t0) unknown."""
    monkeypatch.chdir(folder)
    if not Path("m.h5").exists():
        made = snet(
            "simulate", "pendulum", "-o", "a.h5", "--trajectories", "4", "--samples", "40", "--horizon", "6",
            "--noise", str(NOISE), "--seed", "3", "--set", "g=2.0",
        )  # fmt: skip
        assert made.code == 0, made.err
        save_trajectories("b.h5", replace(load_trajectories("a.h5"), x0=None))
        for data, model in (("a.h5", "m.h5"), ("b.h5", "free.h5")):
            ran = snet("fit", data, "-o", model, "--model", "swing.py:Swing", *MESH)
            assert ran.code == 0, ran.err
    return folder


def rollout_errors(data, free):
    """Residuals over σ of the rollout as a function of the three parameters, then of x(t0) where it is free."""
    owner, waves = data.trajectory_of_row(), data.inputs.fourier

    def errors(z):
        found = []
        for b in range(len(data)):
            rows = owner == b
            start = z[3 + 2 * b : 5 + 2 * b] if free else data.x0[b]

            def f(t, x, b=b):
                waved = waves.cos[b, 0] * np.cos(waves.omega[b, 0] * t) + waves.sin[b, 0] * np.sin(
                    waves.omega[b, 0] * t
                )
                return [x[1], -z[0] * np.sin(x[0]) - z[1] * x[1] + z[2] * (waves.mean[b, 0] + waved.sum())]

            solution = solve_ivp(f, (0, 6.0), start, t_eval=data.time[rows], rtol=1e-7, atol=1e-9)
            found.append((solution.y.T - data.outputs[rows]).ravel())
        return np.concatenate(found) / NOISE

    return errors


@pytest.mark.parametrize(("data", "model", "free"), [("a.h5", "m.h5", False), ("b.h5", "free.h5", True)])
def test_half_widths_are_those_of_least_squares_on_the_rollout(swing, snet, data, model, free):
    told = snet("info", model, "--json").json["confidence"]
    names = [one["name"] for one in told["parameters"]]
    assert names == ["stiffness", "rates[0]", "rates[1]"]
    recorded = load_trajectories(data)
    estimate = np.array([one["estimate"] for one in told["parameters"]])
    starts = recorded.truth[recorded.offsets[:-1]].ravel() if free else []
    oracle = least_squares(rollout_errors(recorded, free), np.concatenate([estimate, starts]), max_nfev=3)
    expected = HALF_WIDTH * np.sqrt(np.diagonal(np.linalg.inv(oracle.jac.T @ oracle.jac)))[:3]
    # σ is the stated one or, if that is larger, the misfit of 160 values, which is within 10 % of it
    np.testing.assert_allclose([one["half_width"] for one in told["parameters"]], expected, rtol=0.1)
    assert (np.abs(estimate - oracle.x[:3]) < 0.2 * expected).all()
    assert told["effective"] == pytest.approx(3.0, abs=0.01)
    assert told["values"] == [160, 160]
    assert told["dispersion"] == pytest.approx([1.0, 1.0], abs=0.3)  # its errors are noise


def test_info_tells_scalar_parameters_with_half_widths(swing, snet):
    lines = snet("info", "m.h5").out.splitlines()
    assert any(line.split() == ["parameter", "estimate", "±", "95", "%"] for line in lines)
    assert sum(line.startswith(("stiffness ", "rates[0] ", "rates[1] ")) for line in lines) == 3


def test_bands_of_the_program(swing, snet):
    made = snet(
        "simulate", "pendulum", "-o", "t.h5", "-f", "--trajectories", "3", "--samples", "20", "--horizon", "6",
        "--seed", "9", "--set", "g=2.0",
    )  # fmt: skip
    assert made.code == 0, made.err
    ask = ("evaluate", "m.h5", "t.h5", "--model", "swing.py:Swing", "--bands", "-f", "--json")
    one = snet(*ask, "-o", "p.h5")
    assert one.code == 0, one.err
    bands = one.json["bands"]
    assert (bands["level"], bands["against"], bands["failed"], bands["unbounded"]) == (0.95, "truth", 0, 0)
    assert bands["channels"].keys() == {"theta", "omega"}
    assert 0.0 <= bands["coverage"] <= 1.0
    assert 0.0 < bands["channels"]["theta"]["mean_width"] < 0.5  # far narrower than the range of the angle
    assert len(bands["by_horizon"]) == 20
    assert snet("info", "p.h5", "--check").code == 0
    forecast = load_trajectories("p.h5")
    assert forecast.output_names[2:] == ("theta_lower", "theta_upper", "omega_lower", "omega_upper")
    inside = (forecast.outputs[:, 2] <= forecast.outputs[:, 0]) & (forecast.outputs[:, 0] <= forecast.outputs[:, 3])
    assert inside.mean() > 0.95  # the forecast of the estimate lies among its members
    table = snet(*ask, "-o", "p.csv")
    assert table.json["bands"] == bands
    assert "theta_lower [rad]" in Path("p.csv").read_text().splitlines()[0]
    other = snet(*ask, "-o", "p.csv", "--seed", "1").json["bands"]
    assert other["channels"]["theta"]["mean_width"] == pytest.approx(bands["channels"]["theta"]["mean_width"], rel=0.4)
    assert other["channels"] != bands["channels"]


ROUGH = SWING.replace("self.rates[0] * v ", "self.rates[0] * v * v.abs() ").replace("Swing", "Rough")
"""A pendulum in air instead of oil: no numbers of it follow exact data."""


@pytest.mark.slow
def test_bands_hold_the_error_of_a_model_that_is_wrong(swing, snet):
    Path("rough.py").write_text(ROUGH)
    simulate = ("simulate", "pendulum", "-f", "--trajectories", "20", "--samples", "60", "--horizon", "6")
    assert snet(*simulate, "-o", "exact.h5", "--seed", "5", "--set", "g=2.0").code == 0
    ran = snet("fit", "exact.h5", "-o", "rough.h5", "-f", "--model", "rough.py:Rough", *MESH)
    assert ran.code == 0, ran.err
    told = snet("info", "rough.h5", "--json").json["confidence"]
    # 2400 values tell three numbers: without a dispersion the bands are a tenth as wide
    assert len(told["dispersion"]) == 2
    assert min(told["dispersion"]) > 30
    g, _, gain = told["parameters"]
    assert abs(g["estimate"] - 2.0) < g["half_width"]
    assert abs(gain["estimate"] - 1.0) < gain["half_width"]
    ran = snet("evaluate", "rough.h5", "exact.h5", "--model", "rough.py:Rough", "--bands", "--json")
    channels, bands = ran.json["channels"], ran.json["bands"]["channels"]
    for name in ("theta", "omega"):
        # of equal variance over all values; the mean of a width that varies is less than its root mean square
        assert 0.5 < bands[name]["mean_width"] / (2 * HALF_WIDTH) / channels[name]["rmse"] < 1.2
    # the band has the size of the error, not its shape
    assert 0.7 < ran.json["bands"]["coverage"] < 1.0


def test_without_truth_bands_of_measurements_are_judged(swing, snet):
    save_trajectories("noisy.h5", replace(load_trajectories("a.h5"), truth=None), force=True)
    ran = snet("evaluate", "m.h5", "noisy.h5", "--model", "swing.py:Swing", "--bands", "--json")
    assert ran.json["bands"]["against"] == "measurements"
    # 320 values of Gaussian noise and bands of 79 members: 95 % within three standard deviations of the count
    assert 0.91 < ran.json["bands"]["coverage"] < 0.99


def test_a_model_without_confidence_says_how_to_get_it(swing, snet):
    ran = snet("fit", "a.h5", "-o", "delta.h5", "-f", "--method", "delta", "--model", "swing.py:Swing", *MESH[:4])
    assert ran.code == 0, ran.err
    assert snet("info", "delta.h5", "--json").json["confidence"] is None
    ran = snet("evaluate", "delta.h5", "a.h5", "--model", "swing.py:Swing", "--bands")
    assert ran.code == 4
    assert ran.err == (
        "error: delta.h5: the checkpoint holds no confidence, which --bands draws from.\n"
        "Train one model with --method joint and time enough for its end (snet fit --resume computes a confidence that "
        "is missing), or leave --bands out.\n"
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("factor", lambda a: a[:-1], "'posterior/factor' has shape (5,), expected (6,)"),
        ("factor", lambda a: -a, "'posterior/factor' has a diagonal that is not positive"),
        ("factor", lambda a: a * np.nan, "'posterior/factor' holds values that no factor can have"),
        ("sizes", lambda a: a[:-1], "'posterior/sizes' does not give every parameter its size"),
        ("noise_std", lambda a: -a, "'posterior/noise_std' holds values that no noise_std can have"),
        ("dispersion", lambda a: 0.5 * a, "'posterior/dispersion' holds values that no dispersion can have"),
        ("deviation", None, "there is no 'posterior/deviation'"),
        ("values", lambda a: a[None], "'posterior/values' has type int64 and shape (1, 2), expected a plain list"),
    ],
)
def test_a_posterior_that_is_none_is_refused(swing, snet, name, change, message):
    checkpoint = load_checkpoint("m.h5")
    group = dict(checkpoint.extra["posterior"])
    if change is None:
        del group[name]
    else:
        group[name] = change(group[name])
    save_checkpoint("broken.h5", replace(checkpoint, extra={**checkpoint.extra, "posterior": group}), force=True)
    for command in (("info", "broken.h5"), ("evaluate", "broken.h5", "a.h5", "--bands", "--model", "swing.py:Swing")):
        ran = snet(*command)
        assert ran.code == 4
        assert ran.err.startswith(f"error: broken.h5: {message}")


def test_more_weights_than_memory_for_them_are_left_out(swing, snet, monkeypatch):
    for room in ("training.posterior", "workflows.confidence"):
        monkeypatch.setattr(f"snet_cli.{room}.MOST_NUMBERS", 2)
    ran = snet("fit", "a.h5", "-o", "wide.h5", "-f", *MESH, "--iterations", "1", "--model", "swing.py:Swing")
    assert ran.code == 0, ran.err
    assert (
        "note: no confidence is kept: the model has 3 weights, more than 2; snet evaluate --bands needs it.\n"
    ) in ran.err
    assert "posterior" not in load_checkpoint("wide.h5").extra
    assert not fits_memory(1000, 2, 10**6)


def test_a_network_has_no_named_parameters(swing, snet):
    ran = snet("fit", "a.h5", "-o", "net.h5", "-f", *MESH, "--iterations", "15", "--set", "model.hidden=[3]")
    assert ran.code == 0, ran.err
    told = snet("info", "net.h5", "--json").json["confidence"]
    assert told["parameters"] == []
    posterior = read_posterior(load_checkpoint("net.h5").extra, "net.h5")
    covariance = np.linalg.inv(posterior.factor @ posterior.factor.T)
    np.testing.assert_allclose(posterior.deviation, np.sqrt(np.diagonal(covariance)), rtol=1e-6)
    assert (posterior.deviation <= posterior.prior_std * (1 + 1e-12)).all()  # data never makes less certain
    assert 0 < posterior.effective < len(posterior.factor)


def test_what_rounding_hides_has_the_prior():
    rng = np.random.default_rng(0)
    slopes, prior = rng.standard_normal((4, 6)) * 1e9, rng.uniform(1, 5, 6)  # 4 equations for 6 numbers
    factor = Information.of([slopes[:2], slopes[2:]], prior).precision_root(np.ones(2)).T / prior[:, None]
    assert (np.triu(factor, 1) == 0).all()
    assert (np.diagonal(factor) > 0).all()
    _, _, directions = np.linalg.svd(slopes * prior)
    for open_direction in directions[4:]:  # in units of the prior: standard deviation 1 along what is not determined
        # the determined directions are 1e9 times as stiff: what rounding mixes of them in is less than 1e-5
        assert np.sum(np.linalg.solve(factor, open_direction / prior) ** 2) == pytest.approx(1.0, rel=1e-5)
    draws = np.linalg.solve(factor.T, rng.standard_normal((6, 40_000)))
    assert (directions[4] / prior) @ np.cov(draws) @ (directions[4] / prior) == pytest.approx(1.0, rel=0.05)


def test_small_eigenvalues_of_exact_data_keep_their_digits():
    """Their squares would be lost beside the largest: 1e-16 of it, while double precision tells 2e-16 N apart."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
    size = np.array([1e9, 1e7, 1e5, 1e3, 1e1, 1e0])
    root = np.linalg.qr(left * size @ right.T, mode="r")
    # rounding of the largest, 1e-16 of 1e9, is 1e-7 of the smallest
    np.testing.assert_allclose(Information.of([root[:4], root[4:]], np.ones(6)).values, size**2, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e2, 1e6])
def test_squares_and_triangles_hold_the_same_information(scale, monkeypatch):
    """Where squares hold enough digits; where they do not, they say so."""
    rng = np.random.default_rng(1)
    prior = rng.uniform(0.5, 2.0, 8)
    rows = [torch.from_numpy(scale * rng.standard_normal((size, 8))) for size in (3, 2)]  # of rank 5
    squares, triangles = (kind(2, torch.from_numpy(prior)) for kind in (Squares, Triangles))
    for sums in (squares, triangles):
        for output, own in enumerate(rows):
            sums.add(output, own[:1])
            sums.add(output, own[1:])
    found, exact = squares.roots(ALONE), triangles.roots(ALONE)
    for root, own in zip(exact, rows, strict=True):
        torch.testing.assert_close(root.T @ root, own.T @ own)
    if scale == 1e6:
        assert found is None
        return
    roots = [root.numpy() for root in found]
    precision = Information.of(roots, prior).precision_root(np.array([1.0, 2.0]))
    monkeypatch.setattr(information, "SQUARED", 0.0)
    other = Information.of([root.numpy() for root in exact], prior).precision_root(np.array([1.0, 2.0]))
    # squares carry a ridge of 1e-15 of their trace, and rounding of as much
    np.testing.assert_allclose(precision.T @ precision, other.T @ other, rtol=1e-9, atol=1e-14 * scale**2)


def test_a_second_pass_finds_what_the_first_foretells(swing, snet, monkeypatch):
    """Where the weights of channels change by percents, x(t0) free: the derivatives of the states need not follow."""
    data = load_trajectories("b.h5")
    stated = {name: 1.05 * sigma for name, sigma in data.noise_std.items() if name == "omega"}
    save_trajectories("c.h5", replace(data, noise_std=stated))
    told, passes = [], []
    roots = posterior._information_roots
    monkeypatch.setattr(posterior, "_information_roots", lambda *args: passes.append(None) or roots(*args))
    for alike in (0.0, posterior.ALIKE):
        monkeypatch.setattr(posterior, "ALIKE", alike)
        assert snet("fit", "c.h5", "-o", "c_model.h5", "-f", "--model", "swing.py:Swing", *MESH).code == 0
        told.append(read_posterior(load_checkpoint("c_model.h5").extra, "c_model.h5").deviation)
    assert len(passes) == 3
    # the noise that is not stated is 1.7 % larger in the second round, by the numbers fitted to it
    np.testing.assert_allclose(told[0], told[1], rtol=1e-3)


class Branching(Driven):
    """A module that `vmap` cannot run."""

    def from_features(self, *features):
        if float(features[1].sum()) == float("inf"):
            return features[1]
        return super().from_features(*features)


@pytest.mark.parametrize("kind", [Driven, Branching])
def test_members_move_along_the_derivative_by_theta(kind):
    model, generator = kind(), torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    changes = draw(5, 7)
    t, x, u = draw(23), draw(23, 2), draw(23, 1)
    member = torch.randint(0, 4, (23,), generator=generator)  # the last one has no row
    with torch.no_grad():
        found = Ensemble(model, changes)(t, x, torch.cat([u, member[:, None].double()], 1))
    f, _, G = theta_jacobian(Driven(), t, x, u)
    # a central difference: steps of 6e-6 leave 1e-10, rounding as much
    torch.testing.assert_close(found, f + (G.dense() @ changes[member][:, :, None])[:, :, 0], rtol=1e-8, atol=1e-8)
