"""RanPAC: ridge regression on random features of a backbone tuned to the first task."""

from everlearn.backbones import Depths
from everlearn.methods.first_task import FirstTask
from everlearn_runtime.heads import Head, HeldOutRidge, Ridge


class RanPAC(FirstTask):
    """Tune the backbone to the first task, then learn ridge regression on random features of it.

    The random features are max(R' x, 0), R of independent N(0, 1) entries.

    Args:
        pet: tune to the first task; False is the paper's form without adapters, which trains
            nothing.
        projection: how many random features M. The head keeps M (M + 1) / 2 numbers and solves in
            O(M^3): 16 MB with 2,000, which suits small backbones, 400 MB with the paper's 10,000.
        regularisation: how the ridge's strength is chosen: ``"newest"``, as released: by hold-out
            on a fifth of the newest task, which decides for all classes; ``"remembering"``: by the
            sum of all tasks' hold-out errors (`everlearn_runtime.HeldOutRidge`); ``"gcv"``, by
            generalised cross-validation over all that was learned, in any order
            (`everlearn_runtime.Ridge`). The last is exact, and finds the smallest squared error; with
            100 classes the others, which take a smaller ridge, name more images right.
        seed: of the random features.
        hidden, scale, dropout, sharpness, depths: see `FirstTask`.

    Source: McDonnell et al., "RanPAC: Random Projections and Pre-trained Models for Continual
    Learning", NeurIPS 2023, arXiv 2307.02251, section 4 and algorithm 1.
    """

    def __init__(
        self,
        *,
        pet: bool = True,
        projection: int = 2000,
        regularisation: str = "remembering",
        seed: int = 0,
        hidden: int = 64,
        scale: float = 1.0,
        dropout: float = 0.1,
        sharpness: float = 10.0,
        depths: Depths = (),
    ) -> None:
        super().__init__(
            pet=pet, hidden=hidden, scale=scale, dropout=dropout, sharpness=sharpness, depths=depths
        )
        if regularisation not in ("gcv", "newest", "remembering"):
            raise ValueError(
                f"regularisation must be 'gcv', 'newest' or 'remembering', got {regularisation!r}"
            )
        self.projection = projection
        self.regularisation = regularisation
        self.seed = seed

    def head(self) -> Head:
        """Ridge regression on random features."""
        if self.regularisation == "gcv":
            return Ridge(projection=self.projection, seed=self.seed)
        remember = self.regularisation == "remembering"
        return HeldOutRidge(remember, projection=self.projection, seed=self.seed)
