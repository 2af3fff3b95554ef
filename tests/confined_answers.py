"""What a confined child is asked in tests."""

import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def answer(question: Mapping[str, Any]) -> tuple[Mapping[str, Any], bytes]:
    if "limit" in question:  # the user's
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now, now + question["limit"]))
        return {}, b""
    if "seconds" in question:
        resource.setrlimit(resource.RLIMIT_CPU, (question["seconds"], question["seconds"]))
        return {}, b""
    if "exit" in question:
        os._exit(question["exit"])
    if "take" in question:
        return {"taken": len(bytearray(question["take"]))}, b""
    if question.get("think"):
        while True:
            pass
    if question.get("abort"):
        os.abort()
    if question.get("sleep"):
        time.sleep(60)
    if "bytes" in question:
        return {}, bytes(question["bytes"])
    sys.stdout.write("what a library prints\n")
    sys.stdout.flush()
    return {"path": sys.path, "folder": str(Path.cwd()), "pid": os.getpid()}, b""
