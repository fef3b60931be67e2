"""Predictions of a trained model for molecules: files, SMILES, RDKit molecules, ASE atoms (needs the extra ``chem``)."""

from typing import TYPE_CHECKING

from se3_fast.lazy import lazy_names

if TYPE_CHECKING:
    from se3_fast.predict.predictor import PredictedValue, Prediction, Predictor
    from se3_fast.predict.readers import read_file
    from se3_fast.predict.records import Record

__all__ = ["PredictedValue", "Prediction", "Predictor", "Record", "read_file"]

_HOMES = {
    "PredictedValue": "se3_fast.predict.predictor",
    "Prediction": "se3_fast.predict.predictor",
    "Predictor": "se3_fast.predict.predictor",
    "Record": "se3_fast.predict.records",
    "read_file": "se3_fast.predict.readers",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, "se3_fast.predict.readers")
