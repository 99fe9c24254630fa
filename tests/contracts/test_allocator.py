"""Whether freed memory stays with the process, by the page faults of taking it again."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

_PAGES = 64 * 2**20 // 4096
_PROGRAM = """
import ctypes, resource, sys
from ntkml.machine.allocator import keep_freed_memory, return_freed_memory
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(64 * 2**20)
    ctypes.memset(block, 1, 64 * 2**20)
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(keep_freed_memory() if "keep" in sys.argv else False)
faults()
print(faults())
return_freed_memory()
print(faults())
"""


def run(*arguments, **environment):
    own = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        env=own | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, again, after_return = done.stdout.split()
    return kept == "True", int(again), int(after_return)


def test_kept_memory_costs_no_page_faults_until_it_is_returned():
    kept, again, after_return = run("keep")
    assert kept
    assert again < _PAGES / 100
    assert after_return > 16  # in huge pages a block of 64 MiB is 32 faults


def test_by_default_every_large_block_is_taken_from_the_system_anew():
    assert run()[1] > 16


def test_a_users_own_decision_stands():
    assert not run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0]
