"""What a world-model recipe says of the model and its trajectories."""

from dataclasses import dataclass, field


@dataclass
class WorldModelArguments:
    family: str = field(
        default="latent_world_model",
        metadata={"help": "`latent_world_model` or `vjepa2_ac`: the kind of world model."},
    )
    preset: str | None = field(
        default=None, metadata={"help": "Latent world models: `lewm`, `smwm`, `pldm`, `eb_jepa` or `dino_wm`."}
    )
    from_encoder: str | None = field(default=None, metadata={"help": "Start from this encoder, by name or folder."})
    encoder_args: dict | str | None = field(
        default=None, metadata={"help": "YAML mapping: config of a new encoder, with its `model_type`."}
    )
    method: dict | str | None = field(
        default=None, metadata={"help": "YAML mapping: fields of the world model's config."}
    )
    licence: str | None = field(default=None, metadata={"help": "Of the weights, as the Hub spells it."})


@dataclass
class TrajectoryArguments:
    dataset: str | None = field(
        default=None, metadata={"help": "LeRobot dataset (repository or folder), or the listing of DROID's episodes."}
    )
    layout: str = field(default="lerobot", metadata={"help": "`lerobot` or `droid` (raw episodes)."})
    camera: str | None = field(default=None, metadata={"help": "Column of frames; DROID: `left`, `right` or `wrist`."})
    action_column: str = field(default="action", metadata={"help": "LeRobot: column of actions."})
    state_column: str = field(default="observation.state", metadata={"help": "LeRobot: column of states."})
    fps: int = field(default=4, metadata={"help": "DROID: rows per second that are kept."})
    num_steps: int = field(default=4, metadata={"help": "Frames per window."})
    frameskip: int = field(default=1, metadata={"help": "Rows per step; a step takes the actions of all of them."})
    normalize_actions: bool = field(
        default=True,
        metadata={"help": "Scale actions by their mean and deviation; V-JEPA 2-AC takes them as they are."},
    )
    held_out: float = field(default=0.1, metadata={"help": "Share of the episodes, the last ones, not trained on."})
    max_bad_fraction: float = field(default=0.05, metadata={"help": "More episodes than this unreadable end the run."})
    latent_cache: str | None = field(
        default=None,
        metadata={
            "help": "V-JEPA 2-AC: folder that keeps what the frozen encoder makes of every frame, computed once and "
            "read instead of images; half of float32's size where training is in half precision."
        },
    )
