"""A process of its own for what may be killed, or whose memory is measured."""

import os
import signal
import traceback
from collections.abc import Callable

from pam_aug.errors import PamAugError


def fork(work: Callable[[], object]) -> int:
    """`work` in a process of its own: its exit code is 0, that of a PamAugError, or 99 for any other exception."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except PamAugError as error:
        code = error.exit_code
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
