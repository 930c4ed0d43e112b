"""Threads sleep instead of spin where another program runs as well; what the user has settled stays."""

import pytest

from snet_cli.cli.waiting import sleep_where_others_run


@pytest.fixture
def load(tmp_path):
    """A file like /proc/loadavg that says how many threads run."""

    def write(text):
        path = tmp_path / "loadavg"
        path.write_text(text, "ascii")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("0.10 0.20 0.30 2/75 4711\n", "PASSIVE"),
        ("9.10 0.20 0.30 1/75 4711\n", None),  # busy a minute ago
        ("0.10 0.20\n", None),  # another system
    ],
)
def test_threads_sleep_where_others_run(load, text, policy):
    environment = {}
    sleep_where_others_run(environment, load(text))
    assert environment.get("OMP_WAIT_POLICY") == policy


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_has_settled_stays(load, own):
    environment = dict(own)
    sleep_where_others_run(environment, load("0.10 0.20 0.30 3/75 4711\n"))
    assert environment == own


def test_a_system_that_does_not_tell_changes_nothing(tmp_path):
    environment = {}
    sleep_where_others_run(environment, tmp_path / "none")
    assert environment == {}
