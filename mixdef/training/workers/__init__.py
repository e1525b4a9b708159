"""The strategy "processes": one worker process per core, each training whole models.

On a CPU, a model with a dedicated core can train faster than a model whose operations
are split over all cores. A function of one model is exported once (`exported`), worker
processes (`script`) compile it, and each model is assigned to the next idle worker
(`pool`). Arrays are passed through shared memory.
"""

from mixdef.training.workers.exported import NotExportable, in_workers
from mixdef.training.workers.pool import num_workers

__all__ = ["NotExportable", "in_workers", "num_workers"]
