import pytest
import torch

from snet_cli.training.block_solver import BlockFactor

CHAINS = [([1, 1, 1], 5, 2), ([3, 1, 2, 4], 4, 3), ([7], 3, 2), ([1], 5, 1), ([2, 5], 2, 2)]
"""Elements of each trajectory, nodes, states."""


def dense(blocks, right_side, trajectory, n):
    """The assembled system, and where each element's unknowns stand in it."""
    place, offset = [], 0
    size = blocks.shape[1]
    for e in range(len(trajectory)):
        offset += n if e and trajectory[e] != trajectory[e - 1] else 0
        place.append(torch.arange(offset, offset + size))
        offset += size - n
    matrix = torch.zeros(offset + n, offset + n, dtype=torch.float64)
    b = torch.zeros(offset + n, right_side.shape[2], dtype=torch.float64)
    for e, rows in enumerate(place):
        matrix[rows[:, None], rows] += blocks[e]
        b[rows] += right_side[e]
    return matrix, b, torch.stack(place)


def system(counts, P, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    trajectory = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    J = torch.randn(len(trajectory), P * n + 3, P * n, dtype=torch.float64, generator=generator)
    right_side = torch.randn(len(trajectory), P * n, 3, dtype=torch.float64, generator=generator)
    return J.mT @ J, right_side, trajectory


@pytest.mark.parametrize(("counts", "P", "n"), CHAINS)
def test_the_solution_is_that_of_the_assembled_matrix(counts, P, n):
    blocks, right_side, trajectory = system(counts, P, n)
    matrix, b, place = dense(blocks, right_side, trajectory, n)
    exact = torch.linalg.solve(matrix, b)
    factor = BlockFactor(blocks, trajectory, n)
    torch.testing.assert_close(factor.solve(right_side), exact[place], rtol=1e-9, atol=1e-10)
    gram = sum(rows.T @ rows for rows in factor.gram_rows(right_side))
    torch.testing.assert_close(gram, b.T @ exact, rtol=1e-9, atol=1e-10)
    assert not factor.failed.any()


def test_both_copies_of_a_shared_node_agree_to_the_bit():
    blocks, right_side, trajectory = system([4, 3], 5, 2)
    x = BlockFactor(blocks, trajectory, 2).solve(right_side)
    inner = torch.nonzero(trajectory[1:] == trajectory[:-1])[:, 0]
    assert torch.equal(x[inner, -2:], x[inner + 1, :2])


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), -1e6])
def test_a_matrix_without_a_factor_is_named_and_spoils_no_other_trajectory(spoil):
    blocks, right_side, trajectory = system([2, 3, 1], 4, 2)
    whole = BlockFactor(blocks, trajectory, 2).solve(right_side)
    blocks[3] += spoil * torch.eye(8, dtype=torch.float64)
    factor = BlockFactor(blocks, trajectory, 2)
    assert factor.failed.tolist() == [False, True, False]
    others = trajectory != 1
    torch.testing.assert_close(factor.solve(right_side)[others], whole[others], rtol=1e-9, atol=1e-10)
