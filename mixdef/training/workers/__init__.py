"""The strategy "processes": one worker process per core, each with models of its own.

On a CPU a model that has a core to itself can train faster than one whose operations
are split over the cores. A function of one model is exported once (`exported`), worker
processes (`script`) compile it, and the models are dealt to whoever is free (`pool`).
Arrays travel through shared memory.
"""

from mixdef.training.workers.exported import NotExportable, in_workers
from mixdef.training.workers.pool import num_workers

__all__ = ["NotExportable", "in_workers", "num_workers"]
