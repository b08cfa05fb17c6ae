"""One process of `hf-jepa train` under FSDP2, on CPUs; `test_sharded_program.py` starts two."""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer


def pretend_gpus() -> None:
    """
    accelerate shards only where it knows an accelerator; what it does then runs on CPUs too. Said once the arguments
    have joined the processes, so that they talk through gloo.
    """
    create = Trainer.create_accelerator_and_postprocess

    def create_sharded(trainer: Trainer) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        create(trainer)

    Trainer.create_accelerator_and_postprocess = create_sharded


if __name__ == "__main__":
    from hf_jepa.programs.launch import train

    pretend_gpus()
    train(sys.argv[1:])
