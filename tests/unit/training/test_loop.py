from __future__ import annotations

import time


def test_tiny(tiny_run):
    from beni.run import train
    run = tiny_run()
    t = time.time()
    print(train(run), time.time() - t)
