"""The data folder for the simulation of pure liquid argon with Geant4 11.4.

Geant4's own data files are large and only available from CERN. For a single element they can be
written from reference tables:

- bremsstrahlung: the scaled cross sections of Seltzer and Berger for Z = 18, in the package;
- photoelectric absorption and Rayleigh scattering: Elam's tables in ``xraydb``;
- nuclear cross sections below the energies where Geant4 computes them itself: geometric
  formulae, a 1/v law for capture and the giant dipole resonance for photons. They are rough; the
  events are made of electromagnetic energy loss and of hadrons above 20 MeV.

All other folders that Geant4 expects are empty. The file names are those of Geant4 11.4.
"""

import math
import os
import shutil
import tempfile
from fractions import Fraction
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.events.cache import cache_directory

REVISION = 1
"""Increased when the content of the folder changes, so that no stale cache is used."""

_FOLDERS = (
    "G4NDL4.7.1",
    "G4EMLOW8.8",
    "PhotonEvaporation6.1.2",
    "RadioactiveDecay6.1.2",
    "G4PARTICLEXS4.2",
    "G4PII1.3",
    "RealSurface2.2",
    "G4SAIDDATA2.0",
    "G4ABLA3.3",
    "G4INCL1.3",
    "G4ENSDFSTATE3.0",
    "G4CHANNELING2.0",
)
_Z = 18
_GRAMS_PER_MOLE = 39.948
_BARN_PER_CM2_PER_G = _GRAMS_PER_MOLE / 0.602214
_BARN_IN_MM2 = 1e-22
_K_EDGE_MEV = 3.2029e-3
_FEMTOMETRE2_IN_MM2 = 1e-24


def argon_data_folder() -> Path:
    """Return the data folder in the cache, building it on the first call.

    Safe when several processes build it at once: the folder appears complete or not at all.
    """
    folder = cache_directory() / f"geant4-11.4-argon-{REVISION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
        write_argon_data(building)
        try:
            os.rename(building, folder)
        except OSError:
            shutil.rmtree(building)
            if not folder.is_dir():
                raise
    return folder


def write_argon_data(folder: Path) -> None:
    """Write every file that Geant4 reads into an empty ``folder``."""
    for name in _FOLDERS:
        (folder / name).mkdir()
    em = folder / "G4EMLOW8.8"
    _write_bremsstrahlung(em / "brem_SB")
    _write_photoelectric(em / "epics2017" / "phot")
    _write_rayleigh(em / "epics2017" / "rayl")
    _write_nuclear(folder / "G4PARTICLEXS4.2")
    # One level: the stable ground state of argon-40.
    (folder / "G4ENSDFSTATE3.0" / "ENSDFSTATE.dat").write_text("18 40 0 - -1 0 0\n")


def seltzer_berger() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Read the bremsstrahlung table of argon.

    Returns
    -------
    kinetic_energy : ndarray, shape (57,)
        Of the electron, in MeV.
    photon_fraction : ndarray, shape (30,)
        Photon energy over kinetic energy.
    scaled_cross_section : ndarray, shape (57, 30)
        ``beta^2 / Z^2 k dsigma/dk`` in millibarn.
    """
    table = resources.files("harness.events") / "data" / "seltzer_berger_argon.csv"
    with resources.as_file(table) as path:
        rows = np.loadtxt(path, delimiter=",", comments="#", skiprows=4)
    fractions = rows[rows[:, 0] == rows[0, 0], 1]
    by_energy = rows.reshape(-1, len(fractions), 3)
    return by_energy[:, 0, 0], fractions, by_energy[:, :, 2]


def _write_bremsstrahlung(folder: Path) -> None:
    folder.mkdir(parents=True)
    energies, fractions, values = seltzer_berger()
    lines = [f"4 {len(fractions)} {len(energies)}"]
    lines.append(" ".join(f"{x:.6g}" for x in fractions))
    lines.append(" ".join(f"{math.log(x):.8g}" for x in energies))
    lines += [" ".join(f"{x:.6g}" for x in row) for row in values]
    (folder / f"br{_Z}").write_text("\n".join(lines) + "\n")


def _write_photoelectric(folder: Path) -> None:
    """One effective shell at the K edge: a table below 20 keV, two fits in 1/E above."""
    import xraydb

    folder.mkdir(parents=True)
    tabulated = np.geomspace(_K_EDGE_MEV * 1.001, 0.8, 120)
    sigma = xraydb.mu_elam("Ar", tabulated * 1e6, kind="photo") * _BARN_PER_CM2_PER_G
    # Elam's tables end at 0.8 MeV; the cross section falls more slowly from there on.
    beyond = np.geomspace(0.85, 1e3, 30)
    energies = np.concatenate([tabulated, beyond])
    sigmas = np.concatenate([sigma, sigma[-1] * (0.8 / beyond) ** 1.5])

    low = tabulated <= 0.03
    _write_vector(
        folder / f"pe-cs-{_Z}.dat",
        np.concatenate([[_K_EDGE_MEV], tabulated[low]]),
        np.concatenate([[sigma[0] * tabulated[0] ** 3], (sigma * tabulated**3)[low]]),
    )
    for name, threshold, fitted in (
        ("high", 0.2, energies > 0.18),
        ("low", 0.02, (energies > 0.018) & (energies < 0.25)),
    ):
        coefficients = _fit_inverse_powers(energies[fitted], sigmas[fitted], terms=6)
        (folder / f"pe-{name}-{_Z}.dat").write_text(
            f"1 1 {threshold}\n{_K_EDGE_MEV:.7g} "
            + " ".join(f"{a:.8g}" for a in coefficients)
            + "\n"
        )


def _write_rayleigh(folder: Path) -> None:
    import xraydb

    folder.mkdir(parents=True)
    energies = np.geomspace(1e-3, 0.8, 120)
    sigma = xraydb.coherent_cross_section_elam("Ar", energies * 1e6) * _BARN_PER_CM2_PER_G
    _write_vector(folder / f"re-cs-{_Z}.dat", energies, sigma * _BARN_IN_MM2 * energies**2)


def _write_nuclear(folder: Path) -> None:
    """Write hadronic and photonuclear cross sections, in mm2.

    Geant4 reads those of all elements, present or not.
    """
    slow = np.geomspace(1e-11, 20.0, 241)
    charged = np.geomspace(0.1, 20.0, 101)
    photon = np.linspace(0, 130, 131)
    for z in range(1, 95):
        # Along the valley of stability.
        nucleons = 1 if z == 1 else round(2 * z + 0.0126 * z * z)
        inelastic, elastic, capture = _neutron_cross_sections(slow, nucleons)
        _write_vector(folder / "neutron" / f"inel{z}", slow, inelastic)
        _write_vector(folder / "neutron" / f"el{z}", slow, elastic)
        _write_vector(folder / "neutron" / f"cap{z}", slow, capture)
        for name, projectile in _PROJECTILES.items():
            sigma = _charged_cross_section(charged, projectile, (z, nucleons))
            _write_vector(folder / name / f"inel{z}", charged, sigma)
        _write_vector(folder / "gamma" / f"inel{z}", photon, _giant_dipole(photon, z, nucleons))


_PROJECTILES = {
    "proton": (1, 1),
    "deuteron": (1, 2),
    "triton": (1, 3),
    "He3": (2, 3),
    "alpha": (2, 4),
}
"""Charge and number of nucleons."""


def _neutron_cross_sections(
    energies: NDArray[np.float64], nucleons: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Inelastic, elastic and capture cross sections of neutrons; energies in MeV."""
    geometric = 0.72 * math.pi * (1.2 * nucleons ** (1 / 3) + 1.0) ** 2 * _FEMTOMETRE2_IN_MM2
    # The first excited state of argon-40 is at 1.46 MeV; hydrogen has none.
    opening = np.clip(1 - 1.46 / energies, 0, None)
    inelastic = geometric * opening if nucleons > 1 else np.zeros_like(energies)
    fall = np.log(np.maximum(energies, 0.1) / 0.1) / math.log(20 / 0.1)
    elastic = geometric * np.where(energies < 0.1, 1.2, 2.2 - np.clip(fall, 0, 1))
    # 0.66 b at thermal energy, falling as 1/v, and 5 mb of resonances.
    capture = 0.66e-22 * np.sqrt(2.53e-8 / energies) + 5e-25 * np.exp(-energies)
    return inelastic, elastic, capture


def _charged_cross_section(
    energies: NDArray[np.float64], projectile: tuple[int, int], target: tuple[int, int]
) -> NDArray[np.float64]:
    """Inelastic cross section of touching discs behind the Coulomb barrier."""
    reach = projectile[1] ** (1 / 3) + target[1] ** (1 / 3)
    barrier = 1.44 * projectile[0] * target[0] / (1.3 * reach)
    overlap = 1.15 * reach - (0.3 if projectile[1] > 1 else 0.0)
    disc = 0.75 * math.pi * overlap**2 * _FEMTOMETRE2_IN_MM2
    sigma: NDArray[np.float64] = disc * np.clip(1 - barrier / energies, 0, None)
    return sigma


def _giant_dipole(energies: NDArray[np.float64], z: int, nucleons: int) -> NDArray[np.float64]:
    """Photonuclear cross section.

    The area is 1.2 times the Thomas-Reiche-Kuhn sum rule, 60 NZ/A MeV mb.
    """
    centre = 31.2 * nucleons ** (-1 / 3) + 20.6 * nucleons ** (-1 / 6)
    width = 5.0
    peak = 1.2 * 60e-25 * (nucleons - z) * z / nucleons / (math.pi / 2 * width)
    shape = (energies * width) ** 2 / ((energies**2 - centre**2) ** 2 + (energies * width) ** 2)
    # No nucleon is set free below 8 MeV.
    return np.where(energies > 8, peak * shape, 0.0)


def _write_vector(path: Path, energies: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """Write Geant4's text form of a table: first and last energy, length twice, then the pairs."""
    path.parent.mkdir(exist_ok=True)
    head = f"{energies[0]:.9g} {energies[-1]:.9g} {len(energies)}\n{len(energies)}\n"
    pairs = zip(energies.tolist(), values.tolist(), strict=True)
    path.write_text(head + "".join(f"{x:.12g} {y:.7g}\n" for x, y in pairs))


def _fit_inverse_powers(
    energies: NDArray[np.float64], sigmas: NDArray[np.float64], terms: int
) -> list[float]:
    """Fit ``sigma = sum a_i / E^i`` with equal relative weights.

    The normal equations are solved in rational numbers: they are ill-conditioned, and the result
    of a floating-point solver would differ from one linear-algebra library to the next.
    """
    # Seven digits, so that the last bit of a table's interpolation does not reach the result.
    x = [Fraction(f"{e:.7g}") for e in energies]
    y = [Fraction(f"{s:.7g}") for s in sigmas]
    design = [
        [Fraction(1) / (e**i * s) for i in range(1, terms + 1)] for e, s in zip(x, y, strict=True)
    ]
    zero = Fraction(0)
    rows = [
        [sum((r[i] * r[j] for r in design), zero) for j in range(terms)]
        + [sum((r[i] for r in design), zero)]
        for i in range(terms)
    ]
    for i in range(terms):
        pivot = rows[i][i]
        rows[i] = [value / pivot for value in rows[i]]
        for j in range(terms):
            if j != i:
                factor = rows[j][i]
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [float(row[terms]) for row in rows]
