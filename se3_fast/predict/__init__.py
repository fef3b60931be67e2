"""Predictions of a trained model for molecules: files, SMILES, RDKit molecules, ASE atoms (needs the extra ``chem``)."""

from se3_fast.predict.predictor import PredictedValue, Prediction, Predictor
from se3_fast.predict.readers import read_file
from se3_fast.predict.records import Record

__all__ = ["PredictedValue", "Prediction", "Predictor", "Record", "read_file"]
