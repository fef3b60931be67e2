"""Numbers for molecules of every kind that a Predictor takes, with their uncertainties: `python examples/predict_molecules.py`."""

from __future__ import annotations

from rdkit import Chem

from se3_fast import Predictor


def main() -> None:
    """Predict gaps for SMILES and for an RDKit molecule; print a line for each."""
    predictor = Predictor.from_checkpoint("gap")
    molecules = ["c1ccccc1O", "C1CCOCC1", Chem.MolFromSmiles("CC(=O)NC"), "CC(=O)[O-]", "C" * 30]
    for prediction in predictor.predict(molecules, num_conformers=3):
        if prediction.value is None:
            print(f"{prediction.number}: no number: {prediction.error}")
        else:
            spread = "" if prediction.spread is None else f", {prediction.spread:.2f} over {prediction.conformers} conformers"
            warning = f" ({prediction.outside})" if prediction.outside else ""
            print(f"{prediction.number}: {prediction.value:.2f} +- {prediction.uncertainty:.2f} eV{spread}{warning}")


if __name__ == "__main__":
    main()
