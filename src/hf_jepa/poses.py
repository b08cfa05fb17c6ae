"""
Poses of a gripper and what actions do to them (V-JEPA 2-AC, arXiv 2506.09985, released code; DROID's conventions).

A pose is `(x, y, z, a, b, c, gripper)`: metres in the frame of the robot's base, extrinsic xyz Euler angles in
radians, so that its rotation is `Rz(c) Ry(b) Rx(a)`, and the gripper from 0 (open) to 1 (closed). An action is the
difference of two poses in the same units: positions and grippers subtract, rotations compose.
"""

import torch

# Below this cosine of the middle angle the other two turn about one axis, and only their sum is known.
_GIMBAL_LOCK = 1e-6


def euler_to_matrix(angles: torch.Tensor) -> torch.Tensor:
    """
    Args:
        angles (`torch.FloatTensor` of shape `(..., 3)`): extrinsic xyz Euler angles in radians.

    Returns:
        `torch.FloatTensor` of shape `(..., 3, 3)`.
    """
    (sa, sb, sc), (ca, cb, cc) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = [
        [cb * cc, sa * sb * cc - ca * sc, ca * sb * cc + sa * sc],
        [cb * sc, sa * sb * sc + ca * cc, ca * sb * sc - sa * cc],
        [-sb, sa * cb, ca * cb],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_euler(matrix: torch.Tensor) -> torch.Tensor:
    """
    The way back of [`euler_to_matrix`], with the middle angle in [-pi/2, pi/2]. In gimbal lock the last angle is 0.

    Args:
        matrix (`torch.FloatTensor` of shape `(..., 3, 3)`): rotations.

    Returns:
        `torch.FloatTensor` of shape `(..., 3)`.
    """
    r = matrix
    cosine = torch.hypot(r[..., 0, 0], r[..., 1, 0])
    locked = cosine < _GIMBAL_LOCK
    first = torch.atan2(
        torch.where(locked, -r[..., 1, 2], r[..., 2, 1]), torch.where(locked, r[..., 1, 1], r[..., 2, 2])
    )
    last = torch.atan2(
        torch.where(locked, torch.zeros_like(cosine), r[..., 1, 0]),
        torch.where(locked, torch.ones_like(cosine), r[..., 0, 0]),
    )
    return torch.stack([first, torch.atan2(-r[..., 2, 0], cosine), last], dim=-1)


def integrate_pose(poses: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """
    Where actions lead: positions add, rotations compose (`R(action) R(pose)`), the gripper stays within [0, 1].

    Args:
        poses, actions (`torch.FloatTensor` of shape `(..., 7)`): see this module.

    Returns:
        `torch.FloatTensor` of shape `(..., 7)`.
    """
    rotation = euler_to_matrix(actions[..., 3:6]) @ euler_to_matrix(poses[..., 3:6])
    gripper = (poses[..., 6:] + actions[..., 6:]).clamp(0, 1)
    return torch.cat([poses[..., :3] + actions[..., :3], matrix_to_euler(rotation), gripper], dim=-1)


def pose_differences(poses: torch.Tensor) -> torch.Tensor:
    """
    The actions between consecutive poses; [`integrate_pose`] undoes it.

    Args:
        poses (`torch.FloatTensor` of shape `(..., time, 7)`).

    Returns:
        `torch.FloatTensor` of shape `(..., time - 1, 7)`.
    """
    before, after = poses[..., :-1, :], poses[..., 1:, :]
    rotation = euler_to_matrix(after[..., 3:6]) @ euler_to_matrix(before[..., 3:6]).mT
    difference = after - before
    return torch.cat([difference[..., :3], matrix_to_euler(rotation), difference[..., 6:]], dim=-1)


def poses_in_camera(poses: torch.Tensor, extrinsics: torch.Tensor) -> torch.Tensor:
    """
    Poses in the frame of a camera instead of the robot's base.

    Args:
        poses (`torch.FloatTensor` of shape `(..., 7)`).
        extrinsics (`torch.FloatTensor` of shape `(..., 6)`): the camera's position and Euler angles in the base frame.

    Returns:
        `torch.FloatTensor` of shape `(..., 7)`.
    """
    inverse = euler_to_matrix(extrinsics[..., 3:6]).mT
    position = (inverse @ (poses[..., :3] - extrinsics[..., :3]).unsqueeze(-1)).squeeze(-1)
    rotation = matrix_to_euler(inverse @ euler_to_matrix(poses[..., 3:6]))
    return torch.cat([position, rotation, poses[..., 6:]], dim=-1)
