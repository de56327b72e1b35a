"""What argparse leaves to be wished for: an unknown flag is told with the usage of the command it was given to."""

import argparse


def know_themselves(parser: argparse.ArgumentParser) -> None:
    """Let `parser` of the options name the innermost command that was chosen, for `parser` and all below it."""
    parser.set_defaults(parser=parser)
    for action in parser._actions:  # there is no public way to the commands below
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                know_themselves(inner)
