"""What the outputs of a trained network tell of targets that are maps."""

from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.mirrors import Mirror, Turn

__all__ = ["turned_apart", "turned_targets"]

SHARE, CORRELATED = 0.35, 0.2
FITS, TIMES_BETTER = 0.3, 3.0


def turned_apart(mirror: Mirror | None, updates: int) -> list[Finding]:
    """Say so if a network learned as much of its targets' mirror images as of the targets: `labels_broken`.

    Where pictures are flipped at random and their masks are not, nothing in a picture tells which of the two its mask is, and the
    best that can be said is the mean of both.

    Threshold: mirrored targets have more than .35 of the part of the targets themselves (flips of one picture in four give a
    third), and a correlation of .2 with what the targets leave of the outputs. Measured: .6 and .33 or more for flips of every
    second picture, .15 and .12 at most on healthy set-ups; a network that has learned nothing has any share, but no correlation.

    >>> turned_apart(Mirror("left and right", 0.9, 0.8), 300)[0].rule
    'labels_broken'
    """
    if mirror is None or mirror.share < SHARE or mirror.correlation < CORRELATED:
        return []
    message = f"The outputs hold mirror images ({mirror.way}) of the targets, {mirror.share:.0%} as much as the targets."
    advice = "Flip pictures and their masks together: torchvision.transforms.v2 with tv_tensors.Mask, albumentations."
    numbers = {"share": mirror.share, "correlation": mirror.correlation}
    return [Finding("labels_broken", "error", "", updates, message, advice, numbers)]


def turned_targets(turn: Turn | None, updates: int) -> list[Finding]:
    """Say so if maps fit their pictures only when they are turned: `labels_broken`.

    Where masks are read as (x, y) and pictures as (row, column), or one of the two is flipped, what a picture shows is not where
    its mask says.

    Threshold: turned targets have a correlation of .3 or more with a channel of the pictures, and targets as they are less than a
    third of that. Textures, whose mean brightness tells nothing, have none either way.

    >>> turned_targets(Turn("rows for columns", 0.8, 0.02), 300)[0].rule
    'labels_broken'
    """
    if turn is None or turn.turned < max(FITS, TIMES_BETTER * turn.straight):
        return []
    message = (
        f"Targets fit their pictures if they are turned ({turn.way}): a correlation of {turn.turned:.2f}, and "
        f"{turn.straight:.2f} as they are."
    )
    advice = "Look at a picture with its mask over it: axes exchanged, or one of the two flipped?"
    return [Finding("labels_broken", "error", "", updates, message, advice, {"turned": turn.turned, "straight": turn.straight})]
