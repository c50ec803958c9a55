"""A local worker process: jobs come in on stdin, results go out on the first stdout.

``python -m neuralgraph.explore.worker`` is started by :mod:`neuralgraph.explore.workers` and lives
as long as the search, so that the libraries are imported once. It ends when the search does,
however that ends.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any


def main() -> None:
    """Serve until stdin is closed."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()

    from neuralgraph import pipeline  # noqa: F401  # imported once, before the first job
    from neuralgraph.explore.runs import Job, do

    while True:
        result = do(Job(**jobs.get()))
        answers.write(json.dumps(result.as_dict()) + "\n")
        answers.flush()


def _listen(jobs: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)  # the search is gone: a run without a listener must not go on


if __name__ == "__main__":
    main()
