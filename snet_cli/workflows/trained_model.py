"""A trained model with everything a forecast needs, and its way into a checkpoint and back.

The checkpoint holds the architecture by registry name, never by an import path. A user's model file is kept as text,
and runs again only when it is named on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.checkpoint_file import Checkpoint
from snet_cli.data.posterior import GROUP, Posterior
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import CheckpointError, SnetError, UsageError
from snet_cli.forecasting.rollout import ForecastModel
from snet_cli.models.base import Model, StateSpace
from snet_cli.models.options import MODEL_OPTIONS
from snet_cli.models.registry import build_model
from snet_cli.models.user import UserSource
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed_score import RelaxedRule
from snet_cli.training.state_layout import StateLayout

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TrainedModel:
    """f(t, x, u; θ) and the data it was made for.

    Attributes
    ----------
    model : Model
    model_options : dict
        The tree `model` of the configuration, name included.
    layout : StateLayout
    inputs : tuple of str
        m names.
    units : dict
        Units of outputs and inputs.
    time_unit : str
    intersample : dict
        How sampled inputs were held in training.
    constants : dict
        Mean of each known constant over the training data; used where a file names none.
    centre, scale, start : ndarray, shape (n,)
        Training mean and range of each state, and the mean start estimated in training.
    source : UserSource or None
    rule : RelaxedRule or None
        How the model is scored without integration; None in checkpoints that are older than the score.
    """

    model: Model
    model_options: dict[str, Any]
    layout: StateLayout
    inputs: tuple[str, ...]
    units: dict[str, str]
    time_unit: str
    intersample: dict[str, str]
    constants: dict[str, float]
    centre: FloatArray
    scale: FloatArray
    start: FloatArray
    source: UserSource | None = None
    rule: RelaxedRule | None = None

    def forecast_model(self, device: torch.device) -> ForecastModel:
        """What `forecasting` needs: f in float64 on the device, and names and scales."""
        model = self.model.to(device)
        dtype = next((p.dtype for p in model.parameters()), torch.float64)
        return ForecastModel(
            derivative=model.frozen(),
            state_names=self.layout.states,
            output_names=self.layout.outputs,
            observation=self.layout.observation,
            input_names=self.inputs,
            constant_names=self.model.constants,
            constants=self.constants,
            center=self.centre,
            scale=self.scale,
            start=self.start,
            device=device,
            lag_inputs=dict(self.layout.lags) or None,
            rounding=torch.finfo(dtype).eps,
        )

    def check_fits(self, data: Trajectories) -> None:
        """The data's channels and units are those of training.

        Raises
        ------
        CheckpointError
            If names or units differ.
        """
        missing = [name for name in self.inputs if name not in data.inputs.names]
        if missing:
            raise CheckpointError(
                f"the model needs the input '{missing[0]}'; the data has {_listing(data.inputs.names)}.",
                "Rename it on import (a=b).",
            )
        known = set(self.layout.outputs) | set(self.layout.states)
        if data.output_names and not known & set(data.output_names):
            raise CheckpointError(
                f"the model's outputs are {_listing(self.layout.outputs)}; the data has {_listing(data.output_names)}.",
                "Rename the channels on import (a=b).",
            )
        absent = [name for name in self.layout.outputs if name not in data.output_names]
        foreign = [name for name in data.output_names if name not in known]
        if absent and foreign:
            raise CheckpointError(
                f"the model's output '{absent[0]}' is not in the data, which has '{foreign[0]}' instead.",
                "Rename the channel on import (a=b), or leave it out of the file.",
            )
        units = {**data.units, **data.inputs.units, "time": data.time_unit}
        for name, unit in {**self.units, "time": self.time_unit}.items():
            other = units.get(name, "")
            if unit and other and unit != other:
                raise CheckpointError(
                    f"'{name}' is in {other} in the data and was in {unit} in training.",
                    "Convert the data, or state the right unit on import (--units).",
                )


def _listing(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def training_statistics(problem: Problem, start_nodes: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, range and mean start of each state over step 0; the range of a constant state is its magnitude, or 1.

    Parameters
    ----------
    start_nodes : ndarray, shape (B, n)
        States at the start of each trajectory.
    """
    return _statistics(problem.x.cpu().numpy(), start_nodes)


def _statistics(x: FloatArray, start_nodes: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, range and mean start from points (Q, n) and starts (B, n)."""
    return x.mean(0), extent_of(x.min(0), x.max(0)), start_nodes.mean(0)


def extent_of(low: FloatArray, high: FloatArray) -> FloatArray:
    """Range of each state from its extremes, shape (n,)."""
    largest = np.maximum(np.abs(low), np.abs(high))
    magnitude = np.where(largest > 0, largest, 1.0)
    return np.where(high - low > 1e-12 * magnitude, high - low, magnitude)


def with_estimated_states(trained: TrainedModel, nodes: FloatArray, first: NDArray[np.int64]) -> TrainedModel:
    """The model with mean, range and mean start of its hidden states as training left them, not as step 0 guessed.

    Parameters
    ----------
    nodes : ndarray, shape (N, P, n)
        X at the end of training.
    first : ndarray of int, shape (B,)
        First element of each trajectory.
    """
    return with_hidden_statistics(trained, *_statistics(nodes.reshape(-1, nodes.shape[2]), nodes[first, 0]))


def with_hidden_statistics(
    trained: TrainedModel, centre: FloatArray, scale: FloatArray, start: FloatArray
) -> TrainedModel:
    """The same from mean, range and mean start of all states (n,)."""
    hidden = ~np.isin(np.arange(centre.size), np.flatnonzero(trained.layout.measured >= 0))
    return replace(
        trained,
        centre=np.where(hidden, centre, trained.centre),
        scale=np.where(hidden, scale, trained.scale),
        start=np.where(hidden, start, trained.start),
    )


def to_checkpoint(
    trained: TrainedModel,
    config: dict[str, Any],
    losses: FloatArray,
    provenance: dict[str, Any],
    title: str,
    history: str,
    posterior: Posterior | None = None,
) -> Checkpoint:
    """All of it as arrays and JSON."""
    contract = {
        "states": list(trained.layout.states),
        "outputs": list(trained.layout.outputs),
        "inputs": list(trained.inputs),
        "observation": trained.layout.observation.tolist(),
        "derived": [list(pair) for pair in trained.layout.derived],
        "lags": [list(pair) for pair in trained.layout.lags],
        "units": trained.units,
        "time_unit": trained.time_unit,
        "intersample": trained.intersample,
        "constants": trained.constants,
        "model": trained.model_options,
        "user_class": None if trained.source is None else trained.source.class_name,
        "dtype": str(next((p.dtype for p in trained.model.parameters()), torch.float64)).removeprefix("torch."),
        "relaxed": None if trained.rule is None else trained.rule.to_json(),
    }
    state = {name: value.detach().cpu().numpy() for name, value in trained.model.state_dict().items()}
    return Checkpoint(
        kind="model",
        config=config,
        contract=contract,
        state=state,
        normalization={"centre": trained.centre, "scale": trained.scale, "start": trained.start},
        extra={"history": {"loss": losses}, **({} if posterior is None else {GROUP: posterior.to_arrays()})},
        title=title,
        history=history,
        provenance=provenance,
        model_source=None if trained.source is None else trained.source.text,
    )


def from_checkpoint(checkpoint: Checkpoint, path: str, source: UserSource | None) -> TrainedModel:
    """Rebuild the model and load its weights.

    Parameters
    ----------
    source : UserSource or None
        The user's model file where the command line names one.

    Raises
    ------
    CheckpointError
        If it is no model, if the contract or the weights do not make sense, or if the model's own file has to be
        named and was not, or has changed.
    """
    if checkpoint.kind != "model":
        raise CheckpointError(
            f"{path}: holds the state of an unfinished run, not a model.", "Finish it: snet fit ... --resume"
        )
    contract = checkpoint.contract
    tree = contract.get("model")
    if isinstance(tree, dict) and tree.get("name") == "user":
        source = _same_source(checkpoint, path, source, str(contract.get("user_class")))
    try:
        space = StateSpace(tuple(contract["states"]), tuple(contract["inputs"]))
        layout = StateLayout(
            space.states,
            tuple(contract["outputs"]),
            np.array(contract["observation"], dtype=np.float64).reshape(len(contract["outputs"]), len(space.states)),
            tuple((int(v), int(q)) for v, q in contract["derived"]),
            tuple((int(s), int(j)) for s, j in contract.get("lags", [])),  # older models have none
        )
        tree, rule = dict(contract["model"]), contract.get("relaxed")
        name = str(tree["name"])
        options = MODEL_OPTIONS[name].model_validate(tree)
        dtype = {"float32": torch.float32, "float64": torch.float64}[str(contract["dtype"])]
        model = build_model(name, options, space, seed=0, dtype=dtype, source=source if name == "user" else None)
        model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in checkpoint.state.items()})
        return TrainedModel(
            model.eval(),
            tree,
            layout,
            space.inputs,
            dict(contract["units"]),
            str(contract["time_unit"]),
            dict(contract["intersample"]),
            {key: float(value) for key, value in contract["constants"].items()},
            np.asarray(checkpoint.normalization["centre"], dtype=np.float64),
            np.asarray(checkpoint.normalization["scale"], dtype=np.float64),
            np.asarray(checkpoint.normalization["start"], dtype=np.float64),
            source if name == "user" else None,
            None if rule is None else RelaxedRule.from_json(rule, len(space.states), len(layout.outputs)),
        )
    except CheckpointError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError, SnetError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: the checkpoint does not describe a model that can be rebuilt: {reason}.", "Train it again."
        ) from error


def _same_source(checkpoint: Checkpoint, path: str, source: UserSource | None, class_name: str) -> UserSource:
    """The user's model file, if it is named and still the one that was trained."""
    if source is None:
        raise UsageError(
            f"{path}: the model is of a class of your own, '{class_name}', whose file runs only when you name it.",
            f"Add --model FILE.py:{class_name}; `snet info {path}` shows the text that was trained.",
        )
    if checkpoint.model_source is not None and source.text != checkpoint.model_source:
        raise CheckpointError(
            f"{path}: the model file has changed since training (its sha256 differs).",
            "Name the file as it was; the checkpoint keeps its text.",
        )
    return source
