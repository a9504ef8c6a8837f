"""A log that keeps what a run is told of its checkpoints."""

from __future__ import annotations


class Log:
    """What is told of the best checkpoint."""

    def __init__(self):
        self.notices, self.bests = [], []

    def notice(self, text):
        self.notices.append(text)

    def best(self, step, metric, value):
        self.bests.append((step, metric, value))
