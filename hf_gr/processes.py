"""The processes of a launch (torchrun, `accelerate launch`): joined, and what one does while the others wait."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .errors import HfGrError


if TYPE_CHECKING:
    from accelerate import PartialState


_PATIENCE = datetime.timedelta(days=7)  # a fit takes longer than the half hour that processes wait by default


def launched() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def joined() -> "PartialState":
    """The state of the joined processes. Raises [`HfGrError`] if Accelerate does not join all that were started."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # the flag as `Accelerator` reads it
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_PATIENCE)
    if state.num_processes != launched():
        raise HfGrError(
            f"{launched()} processes were started, but Accelerate joins {state.num_processes}; on a machine without "
            "accelerators set ACCELERATE_USE_CPU=true."
        )
    return state


@contextlib.contextmanager
def main_process_first() -> Iterator[bool]:
    """Runs the block in the main process, then in the others; yields whether this is the main one.

    A single process makes no process group, and does not even import torch.
    """
    if launched() == 1:
        yield True
        return
    state = joined()
    with state.main_process_first():
        yield state.is_main_process
