"""The hidden layers of all radial profiles of a convolution. Formula: :mod:`se3_fast.backends.dense.radial`."""

from __future__ import annotations

from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype
from se3_fast.backends.choice import implementation
from se3_fast.backends.operands import Profiles, RadialLayer, Recipe

__all__ = ["Profiles", "RadialLayer", "Recipe", "radial", "recipe"]


def radial(invariants: Tensor, profiles: Profiles) -> list[Tensor] | Tensor:
    """Evaluate the two hidden layers of every profile.

    Args:
        invariants: [E, e] invariant edge features, the edge length last.
        profiles: the parameters of each profile; all with or all without layer norm.

    Returns:
        h of each profile, [E, K], in the compute dtype; or all in one tensor, [groups, E, K].

    Raises:
        ValueError: if the dtype of the invariants is none that is computed with.
    """
    check_dtype("invariants", invariants)
    return implementation("radial", invariants.device).radial(invariants, profiles)


def recipe(invariants: Tensor, profiles: Profiles) -> Recipe | None:
    """How to make h again, so that what comes after need not keep it; arguments as for :func:`radial`.

    Returns:
        None where nothing is gained, as :func:`radial` itself keeps values of that size, or in compiled graphs.
    """
    return implementation("radial", invariants.device).recipe(invariants, profiles)
