from .command_line import run_program
from .launch import train

if __name__ == "__main__":
    run_program(train)
