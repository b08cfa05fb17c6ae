"""
What training costs on one device or many: memory and time from a few counted numbers. Pure arithmetic; who counts is
[`~hf_jepa.programs.counting`].
"""

from dataclasses import dataclass

FLOAT, HALF = 4, 2
# What each way keeps whole on every device; the rest is cut into as many parts as there are devices.
WHOLE = {
    "ddp": {"weights", "gradients", "optimizer"},
    "zero2": {"weights"},
    "fsdp2": set(),
}


@dataclass(frozen=True)
class Work:
    """
    What a model does in one training step, counted.

    Args:
        trained (`int`): parameters with a gradient.
        frozen (`int`): others: an EMA target, a frozen encoder.
        forward_flops (`float`): of one sample's forward pass, multiplications and additions counted one by one.
        tracked_flops (`float`): the part of these that is differentiated.
        activation_bytes (`float`): that is kept of one sample between forward and backward.
        gathered (`int`): parameters that FSDP holds whole at one time.
        recomputed_flops (`float`): of one sample, done again in the backward pass under gradient checkpointing.
        optimizer_bytes (`int`): of the optimizer for one trained parameter; AdamW's two float32 moments.
    """

    trained: int
    frozen: int
    forward_flops: float
    tracked_flops: float
    activation_bytes: float
    gathered: int = 0
    recomputed_flops: float = 0.0
    optimizer_bytes: int = 2 * FLOAT

    @property
    def step_flops(self) -> float:
        """`float`: FLOPs of forward and backward for one sample; a backward pass does the tracked work twice."""
        return self.forward_flops + 2 * self.tracked_flops + self.recomputed_flops


@dataclass(frozen=True)
class Device:
    """
    An accelerator, by its data sheet, and how much of it a run is assumed to get.

    Args:
        name (`str`).
        memory_bytes (`float`).
        peak_flops (`float`): per second, dense, in the precision that is trained in.
        utilization (`float`): the share of `peak_flops` that training reaches.
        per_node (`int`): devices of one node.
        node_link (`float`): bytes per second that one device sends to others of its node, and receives meanwhile.
        network_link (`float`): the same, to those of other nodes.
    """

    name: str
    memory_bytes: float
    peak_flops: float
    utilization: float
    per_node: int
    node_link: float
    network_link: float


# Memory, dense bfloat16 rate and links are the data sheet's (SXM5; NVLink 4 and 400 Gbit/s InfiniBand per GPU, one
# direction); the utilization is an assumption.
H100 = Device("NVIDIA H100 SXM", 80e9, 989e12, 0.4, 8, 450e9, 50e9)


def memory(work: Work, batch_size: int, devices: int, sharding: str, half: bool = True) -> dict[str, float]:
    """
    Bytes on each device at the end of a forward pass, when they are most. What kernels need for themselves and what
    the allocator loses is not in it.

    Args:
        work ([`Work`]).
        batch_size (`int`): samples per device in one forward pass.
        devices (`int`).
        sharding (`str`): "ddp", "zero2" or "fsdp2".
        half (`bool`): whether matrix products are computed in 16 bits, from copies of float32 weights.

    Returns:
        `dict[str, float]`: `weights` (the EMA target's among them), `gradients`, `optimizer`, `buffers` (of
        communication), `half_copies`, `activations`, and `total`.
    """
    if sharding not in WHOLE:
        raise ValueError(f"`sharding` is {sharding!r}; choose one of {', '.join(WHOLE)}.")
    parts = {
        "weights": FLOAT * (work.trained + work.frozen),
        "gradients": FLOAT * work.trained,
        "optimizer": work.optimizer_bytes * work.trained,
    }
    found = {name: size / (1 if name in WHOLE[sharding] else devices) for name, size in parts.items()}
    if sharding == "fsdp2":
        found["buffers"] = (HALF if half else FLOAT) * work.gathered if devices > 1 else 0
        found["half_copies"] = 0
    else:
        # DDP's buckets hold the gradients a second time.
        found["buffers"] = FLOAT * work.trained if sharding == "ddp" and devices > 1 else 0
        # Autocast keeps them from forward to backward.
        found["half_copies"] = HALF * work.trained if half else 0
    found["activations"] = work.activation_bytes * batch_size
    return found | {"total": sum(found.values())}


def traffic(work: Work, devices: int, sharding: str, half: bool = True, passes: int = 1) -> float:
    """
    Bytes that each device sends for one optimizer step (ring algorithms); arguments as in [`memory`], and `passes`
    (`int`), forward passes of a step (gradient accumulation), after the last of which gradients are averaged.
    """
    share = (devices - 1) / devices
    if sharding == "fsdp2":
        size = HALF if half else FLOAT
        # In each pass weights are gathered before forward and again before backward, and gradients go to their owners;
        # a target is gathered once.
        return share * size * (3 * work.trained + work.frozen) * passes
    return share * 2 * FLOAT * work.trained


def seconds(
    work: Work, batch_size: int, devices: int, sharding: str, device: Device, half: bool = True, passes: int = 1
) -> dict[str, float]:
    """
    Seconds of one optimizer step: `compute`, `communication`, and `step`, the larger of the two, as if they overlapped
    wholly and data were always ready. Arguments as in [`traffic`]; `batch_size` is of each pass.
    """
    compute = work.step_flops * batch_size * passes / (device.peak_flops * device.utilization)
    link = device.node_link if devices <= device.per_node else device.network_link
    communication = traffic(work, devices, sharding, half, passes) / link
    return {"compute": compute, "communication": communication, "step": max(compute, communication)}
