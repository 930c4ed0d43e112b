import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snet_cli.config.layers import Sources, resolve
from snet_cli.config.models import model_options, model_reference
from snet_cli.config.scalars import dump, scalar
from snet_cli.config.strict_yaml import load, load_flow
from snet_cli.data.options import CommonOptions, ImportOptions, parse_size
from snet_cli.errors import UsageError
from snet_cli.models.options import LinearOptions, MlpOptions, UserOptions
from snet_cli.training.options import PAPER_PRESET, FitOptions

PRESETS = {"paper": PAPER_PRESET}

LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
    | st.sampled_from(["1e-3", "012", "0x1F", ".inf", "null", "~", "yes", "1:30", "[a", "a: b", "# c", "- d", " "])
)
KEY = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
VALUE = LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(KEY, LEAF, max_size=3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("+5", 5),
        ("-.5", -0.5),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("-.inf", float("-inf")),
        ("<<", "<<"),
    ],
)
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    assert load(f"k: {text}", "f") == {"k": value}
    assert scalar(text) == value


def test_quoted_scalars_are_texts_and_keys_stay_as_written() -> None:
    assert load("y: '1'\n012: \"2\"\nno: 'null'", "f") == {"y": "1", "012": "2", "no": "null"}


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEY, VALUE, max_size=4))
def test_what_is_dumped_is_read_back(tree: dict[str, Any]) -> None:
    assert load(dump(tree), "f") == (tree or None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "f.yaml, line 2, column 1: the key 'a' is there twice. Keep one of them."),
        ("a: &x 1\nb: *x", "f.yaml, line 1, column 4: anchors (&) and aliases (*) are not read."),
        ("a: !!python/object:os.system x", "f.yaml, line 1, column 4: tags such as"),
        ("a: 1\n---\nb: 2", "f.yaml, line 2, column 1: there is a second document."),
        ("[" * 3000, "f.yaml, line 1, column 18: the nesting is deeper than 16. Is this a configuration?"),
        ("- " * 3000, "the nesting is deeper than 16"),
        ("{a: " * 3000, "the nesting is deeper than 16"),
        ("[a]: b", "f.yaml, line 1, column 1: a key must be plain text. Write key: value."),
        ("a: [1", "f.yaml, line 1, column 6: this is not YAML"),
        ("a: \x07", "f.yaml: this is not YAML"),
        ("x" * 2_000_000, "f.yaml: it has 2000000 bytes, more than 1000000. Is this a configuration?"),
        (b"a: \xff", "f.yaml: byte 3 is not UTF-8. Save the file as UTF-8."),
    ],
)
def test_what_yaml_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load(text, "f.yaml")


def test_a_bomb_of_aliases_is_refused_before_it_unfolds() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + k)}: &{chr(98 + k)} [*{chr(97 + k)}, *{chr(97 + k)}]\n" for k in range(20)
    )
    with pytest.raises(UsageError, match="anchors"):
        load(bomb, "f.yaml")


def test_a_set_value_is_flow() -> None:
    assert load_flow("{a: b, c: [1, 1e-3]}", "--set k") == {"a": "b", "c": [1, 1e-3]}
    with pytest.raises(UsageError, match=r"^--set k, line 1, column 1: a mapping or list needs brackets here\."):
        load_flow("a: b", "--set k")


def fit(tmp: Any = None, yaml: str = "", **sources: Any) -> FitOptions:
    if yaml:
        (tmp / "c.yaml").write_text(yaml)
        sources["config"] = "c.yaml"
    resolved = resolve(Sources(presets=PRESETS, command="snet fit", **sources), (FitOptions, CommonOptions))
    return resolved.get(FitOptions)


@pytest.fixture
def here(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_precedence_flags_then_environment_then_yaml_then_preset_then_defaults(here: Any) -> None:
    layers: dict[str, Any] = {}
    assert fit(here, **layers).order == "auto"
    layers["flags"] = {"preset": "paper"}
    assert fit(here, **layers).order == 14
    assert fit(here, "order: 9", **layers).order == 9
    layers["environment"] = {"SNET_ORDER": "8", "SNET_ORDR": "7", "SNET_NO_FLAG": "x"}
    assert fit(here, "order: 9", **layers).order == 8
    layers["flags"] = {"preset": "paper", "order": "6"}
    assert fit(here, "order: 9", **layers).order == 6
    del layers["flags"]["order"]
    assert fit(here, "order: 9", **layers, sets=["order=5"]).order == 5


def test_a_preset_in_yaml_lies_below_the_rest_of_it(here: Any) -> None:
    options = fit(here, "preset: paper\nelements: 3")
    assert (options.order, options.elements, options.scaled) == (14, 3, False)


def test_trees_merge_key_by_key_and_other_values_are_replaced(here: Any) -> None:
    yaml = "model: {hidden: [8], second_order: {q: v}}"
    model = fit(here, yaml, flags={"model": "mlp"}, sets=["model.angles=[q]"]).model
    assert model == {"name": "mlp", "hidden": [8], "second_order": {"q": "v"}, "angles": ["q"]}
    model = fit(here, yaml, sets=["model.second_order={a: b}"]).model
    assert model == {"hidden": [8], "second_order": {"a": "b"}}
    model = fit(here, yaml, sets=["model.second_order.a=b"]).model
    assert model == {"hidden": [8], "second_order": {"q": "v", "a": "b"}}


def test_a_step_of_another_name_takes_nothing_from_the_preset(here: Any) -> None:
    assert fit(flags={"preset": "paper"}, sets=["theta_step.rate=0.5"]).theta_step.model_dump() == {
        "name": "adam",
        "rate": 0.5,
        "steps": 10,
    }
    default = FitOptions().theta_step.rate
    assert fit(flags={"preset": "paper"}, sets=["theta_step=lbfgs"]).theta_step.rate == default


def test_the_short_form_of_a_model(here: Any) -> None:
    assert fit(here, "model: mlp").model == {"name": "mlp"}
    assert fit(sets=["model=mlp"]).model == fit(flags={"model": "mlp"}).model == {"name": "mlp"}
    assert fit(flags={"model": "my.py:Net"}).model == {"name": "my.py:Net"}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {"yaml": "model: {hiden: [8]}"},
            "c.yaml: model.hiden: no model has an option 'hiden'. Did you mean 'hidden'?",
        ),
        ({"yaml": "ordr: 3"}, "c.yaml: snet fit has no option 'ordr'. Did you mean 'order'?"),
        ({"yaml": "- a"}, "c.yaml: the configuration is no mapping. Write one 'key: value' per line."),
        ({"sets": ["max-time=3"]}, "--set max-time: snet fit has no option 'max-time'. Did you mean 'max_time'?"),
        ({"flags": {"order": "1.5"}}, "--order is 1.5, expected 'auto' or a whole number from 2 to 100."),
        (
            {"flags": {"order": "atuo"}},
            "--order is 'atuo', expected 'auto' or a whole number from 2 to 100. Did you mean 'auto'?",
        ),
        ({"flags": {"preset": "papr"}}, "--preset is 'papr', expected 'paper'. Did you mean 'paper'?"),
        ({"environment": {"SNET_SEED": "abc"}}, "SNET_SEED is 'abc', expected a whole number of at least 0."),
        ({"sets": ["iterations=true"]}, "--set iterations is true, expected a whole number of at least 1."),
        (
            {"sets": ["theta_step.rat=1"]},
            "--set theta_step.rat: 'theta_step' has no option 'rat'. Did you mean 'rate'?",
        ),
        ({"sets": ["theta_step.rate=-1"]}, "--set theta_step.rate is -1, expected a number above 0."),
        ({"sets": ["theta_step=5"]}, "--set theta_step is 5, expected a mapping with name, rate, steps."),
        ({"sets": ["model=mlpp"]}, "there is no model 'mlpp'. Did you mean 'mlp'?"),
        (
            {"sets": ["model=linear", "model.hidden=[8]"]},
            "--set model.hidden: the model 'linear' has no option 'hidden'. Did you mean 'hidden_states'?",
        ),
        (
            {"sets": ["model.hidden=8"]},
            "--set model.hidden is 8, expected a list of 1 to 8, each entry a whole number from 1 to 4096.",
        ),
        (
            {"flags": {"iterations": "30"}, "sets": ["iterations=31"]},
            "--iterations and --set iterations give one option two values: 30 and 31. Leave one of them out.",
        ),
        ({"sets": ["order"]}, "--set 'order' is no key=value. Write for example --set model.hidden=[16]"),
        ({"flags": {"max_time": "1e400"}}, "--max-time is inf, expected a number above 0."),
        ({"flags": {"max_memory": "4 apples"}}, "--max-memory is '4 apples', expected a size such as 4GB or 512MiB."),
        ({"config": "none.yaml"}, "none.yaml: there is no such configuration file. Check the name after --config."),
    ],
)
def test_what_is_wrong_is_said_with_name_value_expectation_and_nearest(
    here: Any, sources: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        fit(here, **sources)
    assert str(caught.value) == message


def test_the_same_value_twice_is_no_contradiction() -> None:
    assert fit(flags={"iterations": "30"}, sets=["iterations=30"]).iterations == 30


def test_values_cannot_send_escapes_to_the_terminal() -> None:
    with pytest.raises(UsageError) as caught:
        fit(flags={"method": "\x1b[2J"})
    assert "\x1b" not in str(caught.value)


def test_a_flag_that_takes_text_is_not_read_as_a_number() -> None:
    resolved = resolve(Sources(flags={"time": "1", "states": ["x", "y=Y"], "window": "1e1"}), (ImportOptions,))
    assert resolved.get(ImportOptions).model_dump(include={"time", "states", "window"}) == {
        "time": "1",
        "states": "x,y=Y",
        "window": 10.0,
    }


def test_listings_may_be_lists_and_mappings_in_yaml() -> None:
    sources = Sources(sets=["states=[x, y]", "units={x: m, y: 1/s}"])
    options = resolve(sources, (ImportOptions,)).get(ImportOptions)
    assert (options.states, options.units) == ("x,y", "x=m,y=1/s")


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("1.5 MiB", 3 * 2**19), ("7", 7), ("2kb", 2000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_the_options_of_a_model_are_those_of_its_name() -> None:
    assert isinstance(model_options(None, "mlp"), MlpOptions)
    assert isinstance(model_options("linear", "mlp"), LinearOptions)
    assert isinstance(model_options("dir/net.py:Net", "mlp"), UserOptions)
    assert model_options({"hidden": [3]}, "mlp") == MlpOptions(hidden=[3])
    assert model_reference({"name": "dir/net.py:Net"}) == "dir/net.py:Net"
    assert model_reference("mlp") is None
    with pytest.raises(UsageError, match=r"^model.hidden is \[\], expected a list of 1, each entry"):
        model_options({"hidden": []}, "vehicle")
