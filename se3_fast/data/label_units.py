"""Names and units of the labels of frames: what a number is multiplied with to be in eV, Angstrom or e Angstrom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_HARTREE, _BOHR = 27.211386245988, 0.529177210903  # CODATA 2018
_AVOGADRO_EV = 96.48533212331  # kJ/mol in an eV

ENERGIES: Mapping[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "hartree": _HARTREE,
    "kcal/mol": 4.184 / _AVOGADRO_EV,
    "kJ/mol": 1 / _AVOGADRO_EV,
}
"""In eV."""

LENGTHS: Mapping[str, float] = {"Angstrom": 1.0, "bohr": _BOHR, "nm": 10.0}
"""In Angstrom."""

DIPOLES: Mapping[str, float] = {"e*Angstrom": 1.0, "e*bohr": _BOHR, "debye": 0.20819433270334}
"""In e Angstrom."""

_ALSO = {
    "ha": "hartree",
    "eh": "hartree",
    "hartrees": "hartree",
    "a": "angstrom",
    "å": "angstrom",
    "ang": "angstrom",
    "angstroms": "angstrom",
    "a0": "bohr",
    "bohrs": "bohr",
    "nanometer": "nm",
    "d": "debye",
    "electronvolt": "ev",
}
"""What else files say, in lower case."""


def energy_unit(text: str) -> float:
    """How many eV a unit of energy is.

    Raises:
        ValueError: It is not known.
    """
    return _found(text, ENERGIES)


def length_unit(text: str) -> float:
    """How many Angstrom a unit of length is.

    Raises:
        ValueError: It is not known.
    """
    return _found(text, LENGTHS)


def forces_unit(text: str) -> float:
    """How many eV/Angstrom a unit of forces is: one of energy over one of length, such as ``hartree/bohr``.

    Raises:
        ValueError: It is not known.
    """
    energy, _, length = text.rpartition("/")
    try:
        return _found(energy, ENERGIES) / _found(length, LENGTHS)
    except ValueError:
        raise ValueError(f"expected a unit of energy over one of length, such as hartree/bohr, got {text!r:.50}") from None


def dipole_unit(text: str) -> float:
    """How many e Angstrom a unit of dipoles is.

    Raises:
        ValueError: It is not known.
    """
    return _found(text.lower().replace("elementary charge", "e").replace("elementary_charge", "e"), DIPOLES)


def _found(text: str, known: Mapping[str, float]) -> float:
    def plain(word: str) -> str:
        word = word.strip().lower()
        return _ALSO.get(word, word)

    name = "*".join(plain(part) for part in text.split("*"))
    factors = {unit.lower(): factor for unit, factor in known.items()}
    if name not in factors:
        raise ValueError(f"expected one of the units {', '.join(known)}, got {text!r:.50}")
    return factors[name]


@dataclass(frozen=True)
class LabelUnits:
    """Units of what files have, where they do not say it themselves.

    Attributes:
        energy: One of :data:`ENERGIES`.
        length: Of positions and cells, one of :data:`LENGTHS`.
        forces: One of energy over one of length; None: those of `energy` and `length`.
        dipole: One of :data:`DIPOLES`.
    """

    energy: str = "eV"
    length: str = "Angstrom"
    forces: str | None = None
    dipole: str = "e*Angstrom"

    @property
    def eV(self) -> float:
        """What energies are multiplied with."""
        return energy_unit(self.energy)

    @property
    def angstrom(self) -> float:
        """What positions are multiplied with."""
        return length_unit(self.length)

    @property
    def eV_per_angstrom(self) -> float:
        """What forces are multiplied with."""
        return self.eV / self.angstrom if self.forces is None else forces_unit(self.forces)

    @property
    def e_angstrom(self) -> float:
        """What dipoles are multiplied with."""
        return dipole_unit(self.dipole)


DEFAULT_UNITS = LabelUnits()


@dataclass(frozen=True)
class LabelNames:
    """Under which names files have the labels, and in which units.

    Attributes:
        energy: Of a frame.
        forces: Of its atoms; a name with `gradient` in it is that of minus the forces.
        stress: Of its cell; ASE's sign and order.
        virial: Of its cell, minus stress times volume; None: ``virial`` or ``virials``.
        dipole: Of a molecule; those of what has a periodic cell are not read.
        positions: Of a molecule of an HDF5 collection; None: ``conformations``, ``coordinates`` or ``positions``.
        units: Of positions and labels, where a file does not say it.
    """

    energy: str = "energy"
    forces: str = "forces"
    stress: str = "stress"
    virial: str | None = None
    dipole: str = "dipole"
    positions: str | None = None
    units: LabelUnits = DEFAULT_UNITS

    @property
    def virials(self) -> tuple[str, ...]:
        """The names that a virial may have."""
        return ("virial", "virials") if self.virial is None else (self.virial,)

    @property
    def forces_sign(self) -> float:
        """-1 where gradients are read as forces."""
        return -1.0 if "gradient" in self.forces.lower() else 1.0


DEFAULT_NAMES = LabelNames()
