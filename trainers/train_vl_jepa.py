# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-jepa[viz,video]"]
#
# [tool.uv.sources]
# hf-jepa = { path = "..", editable = true }
# ///
"""Trains a VL-JEPA: a launcher for `accelerate launch`; `hf-jepa train RECIPE` does the same."""

from hf_jepa.programs.command_line import run_program
from hf_jepa.programs.train_vl_jepa import main

if __name__ == "__main__":
    run_program(main)
