"""The options of the verb `plan`; `command` does the work.

JAX is not imported here, so that the help text appears at once.
"""

from __future__ import annotations

import argparse
import dataclasses

from data_pipelines.program import program

USAGE = "CONFIG --topology v5e:4x4 [--slices N] [--fit] [--json FILE] [--field value ...] [--help]"


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a plan.

    Attributes:
      topology: the devices of a slice, such as "v5e:4x4".
      slices: number of slices.
      fit: whether to find the largest batch.
      json: file to write the plan to; "" for none.
    """

    topology: str
    slices: int
    fit: bool
    json: str

    @classmethod
    def parse(cls, arguments: list[str], *, required: bool = True) -> tuple[Options, list[str]]:
        """Returns the options of the verb, and the other arguments, which set the config's fields.

        Args:
          arguments: the command line after CONFIG.
          required: whether a missing topology ends the process.
        """
        prog = f"{program()} plan"
        parser = argparse.ArgumentParser(prog, USAGE, allow_abbrev=False, add_help=False)
        parser.add_argument("--topology", required=required, default="")
        parser.add_argument("--slices", type=int, default=1)
        parser.add_argument("--fit", action="store_true")
        parser.add_argument("--json", default="")
        found, fields = parser.parse_known_args(arguments)
        return cls(**vars(found)), fields
