# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-jepa[viz]"]
#
# [tool.uv.sources]
# hf-jepa = { path = "..", editable = true }
# ///
"""Fine-tunes a language model: a launcher for `accelerate launch`; `hf-jepa train RECIPE` does the same."""

from hf_jepa.programs.command_line import run_program
from hf_jepa.programs.finetune_llm import main

if __name__ == "__main__":
    run_program(main)
