"""Data sets: QM9, the sample shipped with the package, and the base class for others."""

from typing import TYPE_CHECKING

from se3_fast.lazy import lazy_names

if TYPE_CHECKING:
    from se3_fast.data.data_module import DataModule
    from se3_fast.data.download import DownloadError
    from se3_fast.data.molecules import DataError
    from se3_fast.data.qm9 import QM9DataModule
    from se3_fast.data.tasks import TASK_UNITS, TASKS

__all__ = ["TASKS", "TASK_UNITS", "DataError", "DataModule", "DownloadError", "QM9DataModule"]

_HOMES = {
    "TASKS": "se3_fast.data.tasks",
    "TASK_UNITS": "se3_fast.data.tasks",
    "DataError": "se3_fast.data.molecules",
    "DataModule": "se3_fast.data.data_module",
    "DownloadError": "se3_fast.data.download",
    "QM9DataModule": "se3_fast.data.qm9",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, "se3_fast.data.qm9")
