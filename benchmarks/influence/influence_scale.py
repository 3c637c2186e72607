"""Speed, memory and scale: against the other libraries on one model and data, against a training step, over processes.

All on one thread of a processor; nothing here is measured on an accelerator.
"""

from benchmarks.influence import _scale_orders, _scale_speed, _two_processes

CLAIMS = [*_scale_speed.CLAIMS, *_scale_orders.CLAIMS, *_two_processes.CLAIMS]
