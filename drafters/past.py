"""Past answers: what followed the longest endings of the text in answers of earlier runs?

The same search as in `suffix`, in another text, which stays as it is. A model has its habits:
headings, phrases, ways to begin and to end, and people ask for the same things again.

Sources: as for `suffix`; SuffixDecoding keeps one tree for the request and one for all earlier
outputs; He et al., "REST", arXiv 2311.08252, drafts from a datastore alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.tree import DraftTree, Evidence

from .evidence import chance_bucket
from .suffix import LONGEST, Suffix, after, running

# So many occurrences of one ending are counted; `suffix` asks what is new, and looks at fewer.
OCCURRENCES = 32
MOST_CANDIDATES = 6  # one ending gives at most so many candidates


class Past(Suffix):
    """See specgen.core.protocols.Drafter.

    Memory: that of Suffix for so many tokens.

    Args:
        answers: (n,) tokens of all of them, the latest last; the last 65,536 are searched.
    """

    name = "past"
    occurrences = OCCURRENCES

    def __init__(self, answers: Tokens) -> None:
        super().__init__()
        self._index(answers)
        self._ends = (0,)

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        self._ends = tuple(running(context[-LONGEST:].tolist()))

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        for token in emitted:
            self._ends = after(self._ends, token)

    def _rank(
        self, found: dict[int, Candidate], followers: list[int], order: int, level: int
    ) -> None:
        """Add the tokens of one ending, the most frequent first, that no longer one had."""
        n = len(followers)
        size = n.bit_length()
        for rank, (token, count) in enumerate(Counter(followers).most_common(MOST_CANDIDATES)):
            if token not in found:
                share = chance_bucket(count / n)
                evidence: Evidence = (self.name, order, level, min(rank, 3), size, share)
                found[token] = Candidate(token, evidence, 0.8 * 0.7**level * count / (n + 1.5))
