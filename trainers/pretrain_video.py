# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-jepa[viz,eval,video]"]
#
# [tool.uv.sources]
# hf-jepa = { path = "..", editable = true }
# ///
"""Pretrains a video model: a launcher for `accelerate launch`; `hf-jepa train RECIPE` does the same."""

from hf_jepa.programs.command_line import run_program
from hf_jepa.programs.pretrain_video import main

if __name__ == "__main__":
    run_program(main)
