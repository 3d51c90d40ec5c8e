"""Why a run is as good as it is: the neural tangent kernel, and what limits a run."""
