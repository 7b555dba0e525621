"""Memory that is kept for a while and given back; in processes of their own, since it is the process's setting."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, psutil, torch
from edgewise.prune.memory import kept_memory

def faults(mib):  # the pages that a tensor got fresh from the system, as a share of its own
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(mib * 2**18)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (mib * 2**20)

torch.ones(8)
with kept_memory():
    kept = [faults(128) for _ in range(8)]
    held = psutil.Process().memory_info().rss
given_back = held - psutil.Process().memory_info().rss
try:
    with kept_memory():
        raise RuntimeError
except RuntimeError:
    pass
after = faults(128)
smaller = [faults(16) for _ in range(8)]
print(json.dumps({"kept": kept, "given_back_mib": given_back / 2**20, "after": after, "smaller": smaller}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is left to the C library")
def test_large_tensors_get_the_same_pages_again_until_the_system_gets_them_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert sum(found["kept"][4:]) < 0.1
    assert found["given_back_mib"] > 96
    assert found["after"] > 0.9
    assert sum(found["smaller"][4:]) < 0.5, "what is under the C library's own threshold is kept afterwards as before"
