"""Every numerical library obeys one number."""

from __future__ import annotations

import subprocess
import sys


def test_libraries_loaded_before_and_after_obey():
    code = (
        "from neuralgraph.core.threads import limit_threads\n"
        "import numpy\n"
        "limit_threads(1)\n"
        "import torch, scipy.linalg, threadpoolctl\n"
        "limit_threads(1)\n"
        "pools = threadpoolctl.threadpool_info()\n"
        "print(torch.get_num_threads(), *[pool['num_threads'] for pool in pools])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}
