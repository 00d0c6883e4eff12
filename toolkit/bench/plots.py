"""The pictures of a report, each as PNG bytes."""

from toolkit.bench.confusion import draw_confusion_difference
from toolkit.bench.pareto import draw_accuracy_latency
from toolkit.bench.reliability import draw_reliability

__all__ = ["draw_accuracy_latency", "draw_confusion_difference", "draw_reliability"]
