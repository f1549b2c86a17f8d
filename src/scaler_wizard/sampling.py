"""How often each text is read in one pass: by its weight, and long texts more often within each source.

Sources keep their shares of all tokens: reading more of whichever has long texts would change what the model learns
about (arXiv:2402.10171).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scaler_wizard.data import Document

MOST_TIMES = 4.0
"""Beyond about four readings a text teaches hardly more (arXiv:2305.16264)."""


def times_read(
    documents: Sequence[Document], lengths: Sequence[int], *, native: int, long_share: float | None, seed: int
) -> list[int]:
    """How often to read each document; a fraction is drawn, so that it comes true on average.

    lengths are in tokens; a text is long that does not fit `native`. Where a source's long texts have less than
    `long_share` of its tokens, they are read more often (at most MOST_TIMES as often) and its short ones less.
    """
    wished = np.array([document.weight for document in documents], dtype=float)
    if long_share is not None:
        sizes = np.array(lengths, dtype=float) * wished
        is_long, sources = np.array(lengths) > native, np.array([document.source for document in documents])
        for source in set(sources.tolist()):
            here = sources == source
            total, in_long = float(sizes[here].sum()), float(sizes[here & is_long].sum())
            if 0 < in_long < long_share * total:
                more = min(MOST_TIMES, long_share * total / in_long)
                wished[here & is_long] *= more
                wished[here & ~is_long] *= (total - more * in_long) / (total - in_long)
    whole = np.floor(wished)
    drawn = np.random.default_rng([seed, len(documents)]).random(len(documents)) < wished - whole
    return [int(count) for count in whole + drawn]
