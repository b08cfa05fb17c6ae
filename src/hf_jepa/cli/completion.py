"""`hf-jepa completion`: what a shell needs to complete commands, flags, choices and recipes."""

import argparse

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "completion",
        run,
        "print what completes this command with the tab key; in ~/.bashrc or ~/.zshrc: "
        'eval "$(hf-jepa completion bash)"',
        "hf-jepa completion bash\n  hf-jepa completion fish",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])


def run(args: argparse.Namespace) -> None:
    import argcomplete

    print(argcomplete.shellcode(["hf-jepa"], shell=args.shell))
