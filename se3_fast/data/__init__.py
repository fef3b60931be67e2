"""Data sets: QM9, the sample shipped with the package, and the base class for others."""

from se3_fast.data.data_module import DataModule
from se3_fast.data.download import DownloadError
from se3_fast.data.molecules import DataError
from se3_fast.data.qm9 import QM9DataModule
from se3_fast.data.tasks import TASK_UNITS, TASKS

__all__ = ["TASKS", "TASK_UNITS", "DataError", "DataModule", "DownloadError", "QM9DataModule"]
