"""A process that has imported torch and starts ``ntkml train`` in forks of itself, so that a start costs no seconds.

It reads one JSON object a line from standard input and answers with one: ``{"code": ..., "seconds": ...}``, the code
negative for a signal. Keys: ``arguments``, ``folder`` (to run in), ``log`` (for what the run prints); ``after`` seconds
after the start, or in the middle of call number ``call`` of the function ``at`` ("module:name" or "module:Class.name"),
the run gets ``signal``, a list of numbers. ``call`` 0 and no ``after``: no signal at all. ``processes``: how many train
together, of which number ``victim`` gets the signal and number r > 0 logs to ``log``.r; the answer has all ``codes``.
``entry``: a function ("module:name") of the arguments in place of the command line.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

import torch
import torch._dynamo  # the first optimiser of a process imports it
import tqdm

import ntkml.commands.train
import ntkml.runs.train
from ntkml.datasets import digits
from ntkml.models import mininet
from ntkml.structures import ntk


def signal_in_the_middle(at: str, call: int, numbers: list[int]) -> None:
    """Replace a function by one that does its work and then, in its ``call``-th call, sends signals to this process."""
    module, _, path = at.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for step in owners:
        owner = getattr(owner, step)
    function, calls = getattr(owner, name), []

    def watched(*arguments, **named):
        result = function(*arguments, **named)
        calls.append(name)
        if len(calls) == call:
            for number in numbers:
                os.kill(os.getpid(), number)
        return result

    setattr(owner, name, watched)


def function_named(entry: str) -> Callable[[list[str]], None]:
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def run(request: dict, rank: int = 0) -> None:
    """In the fork: never returns."""
    code, count = 99, request.get("processes", 1)
    try:
        if count > 1:
            signal.alarm(300)  # a group that hangs should not hang the tests
            os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])})
        # A shell ignores SIGINT for jobs in the background, and its children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["folder"])
        log = os.open(request["log"] + f".{rank}" * (rank > 0), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if request.get("call") and rank == request.get("victim", 0):
            signal_in_the_middle(request["at"], request["call"], request["signal"])
        function_named(request.get("entry", "ntkml.commands:main"))(request["arguments"])
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Nothing is computed in this process: a fork must not inherit threads of torch."""
    torch.set_num_threads(1)
    assert all((torch.distributed, torch._dynamo, tqdm, ntkml.commands.train, ntkml.runs.train, digits, mininet, ntk))
    for line in sys.stdin:
        request = json.loads(line)
        began = time.monotonic()
        children = []
        for rank in range(request.get("processes", 1)):
            child = os.fork()
            if child == 0:
                run(request, rank)
            children.append(child)
        if "after" in request:
            time.sleep(request["after"])
            for number in request["signal"]:
                os.kill(
                    children[request.get("victim", 0)], number
                )  # until waited for, an ended child can still be sent signals
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        answer = {"code": codes[0], "codes": codes, "seconds": time.monotonic() - began}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
