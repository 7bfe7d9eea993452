from __future__ import annotations

import subprocess
import sys

import pytest

HELD = """
import re
from bert.heap import {first}, return_freed_memory

def resident():
    return int(re.findall(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[0]) / 1024

{first}()
blocks = [bytearray(100_000) for _ in range(2_000)]
full = resident()
blocks = blocks[::50]  # what is left holds the rest in its place
holes = resident()
return_freed_memory()
print(full - holes, holes - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is another")
def test_holes_between_what_is_used_are_given_back() -> None:
    code = HELD.format(first="keep_freed_memory")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    by_itself, when_asked = map(float, told.stdout.split())
    assert by_itself < 20
    assert when_asked > 150
