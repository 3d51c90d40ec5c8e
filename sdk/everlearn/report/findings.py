"""What can be found out of a learner with its data at hand, for a page to show."""

import textwrap
from dataclasses import dataclass

from everlearn.analysis.diagnosis import Diagnosis
from everlearn.analysis.few import FewImages, over_images
from everlearn.analysis.mistakes import Mistake, find_mistakes
from everlearn.analysis.of_run import diagnose_run, method_report
from everlearn.analysis.sureness import Sureness, how_sure
from everlearn.data import as_images
from everlearn.learner import Learner
from everlearn.tables import Table


@dataclass(frozen=True)
class Findings:
    """What a page shows beside the figures of a run; what is None or empty is left out.

    Attributes:
        diagnosis: which of three factors limits it.
        own: what the method itself says.
        sureness: how sure it is, and whether it tells the unknown.
        few: accuracy over the number of images of new classes.
        mistakes: what is mistaken for what.
    """

    diagnosis: Diagnosis | None = None
    own: Table | None = None
    sureness: Sureness | None = None
    few: FewImages | None = None
    mistakes: tuple[Mistake, ...] = ()

    def text(self) -> str:
        """All of it but the pictures, to print."""
        sentences = [
            *(self.sureness.sentences if self.sureness else ()),
            *([self.few.sentence] if self.few else ()),
        ]
        if self.mistakes:
            pairs = [f"{one.actual} for {one.predicted} ({one.count} of {one.of})" for one in self.mistakes]
            sentences.append(f"Mistaken most: {', '.join(pairs)}")
        tables = [one.text() for one in (self.diagnosis, self.own) if one]
        return "\n\n".join([*tables, *(textwrap.fill(sentence, 100) for sentence in sentences)])


def look_into(
    learner: Learner,
    train: object,
    test: object,
    *,
    samples: int = 32,
    readouts: int | None = 8,
    seed: int = 0,
) -> Findings:
    """Look into a learner: features of the test images are computed once for all of it.

    Args:
        learner: after at least one task; it stays as it is.
        train: the images of all tasks that it learned.
        test: images that it did not learn from; classes that it does not know are left out.
        samples, readouts: see `everlearn.analysis.of_run.diagnose_run`.
        seed: of all draws.

    Raises:
        ValueError: as `diagnose_run`, and when there is no image of a class that was learned.
    """
    learned, tested = as_images(train), as_images(test)
    tested = tested.of_classes(name for name in tested.classes if name in learner.classes)
    tasks = [learned.of_classes(classes) for classes in learner.tasks]
    diagnosis = diagnose_run(learner, tasks, samples=samples, readouts=readouts, seed=seed)
    known = [[name for name in classes if name in tested.classes] for classes in learner.tasks]
    features = learner.features(tested)
    return Findings(
        diagnosis,
        method_report(learner, [tested.of_classes(classes) for classes in known if classes]),
        how_sure(learner, tested, features=features),
        over_images(learner, learned, tested, features=features, seed=seed),
        find_mistakes(learner, tested, features=features),
    )
