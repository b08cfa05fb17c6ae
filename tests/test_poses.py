"""Poses and what actions do to them."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.poses import euler_to_matrix, integrate_pose, matrix_to_euler, pose_differences, poses_in_camera

GOLDEN = Path(__file__).parent / "golden" / "vjepa2_ac_cem.safetensors"


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return {name[5:]: value for name, value in load_file(GOLDEN).items() if name.startswith("pose/")}


def test_official_poses(official):
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(
        integrate_pose(official["poses"], official["actions"]), official["compute_new_pose"], **close
    )
    poses = official["poses"].double()
    for name in ("droid_poses_to_diffs", "poses_to_diff"):
        torch.testing.assert_close(pose_differences(poses), official[name], rtol=0, atol=1e-12)
    moved = poses_in_camera(poses, official["extrinsics"])
    torch.testing.assert_close(moved, official["transform_frame"], rtol=0, atol=1e-12)


def test_differences_and_integration_undo_each_other(official):
    poses = official["poses"].double()
    poses[:, 6] = poses[:, 6].clamp(0, 1)
    after = integrate_pose(poses[:-1], pose_differences(poses))
    torch.testing.assert_close(after[:, [0, 1, 2, 6]], poses[1:][:, [0, 1, 2, 6]])
    torch.testing.assert_close(euler_to_matrix(after[:, 3:6]), euler_to_matrix(poses[1:, 3:6]))


@pytest.mark.parametrize("pitch", [math.pi / 2, -math.pi / 2])
def test_gimbal_lock_keeps_the_rotation(pitch):
    matrix = euler_to_matrix(torch.tensor([0.7, pitch, -0.4], dtype=torch.float64))
    angles = matrix_to_euler(matrix)
    assert angles[2] == 0
    torch.testing.assert_close(euler_to_matrix(angles), matrix)


def test_rotations_compose_and_do_not_add():
    pose, action = torch.zeros(7), torch.zeros(7)
    pose[3], action[5] = math.pi / 2, math.pi / 2
    rotation = euler_to_matrix(integrate_pose(pose, action)[3:6])
    torch.testing.assert_close(rotation, euler_to_matrix(action[3:6]) @ euler_to_matrix(pose[3:6]))
    assert integrate_pose(pose, action)[6] == 0
    action[6] = 3.0
    assert integrate_pose(pose, action)[6] == 1
