"""Networks that only the papers' experiments need; importing them makes `fg.load` know them."""

from filigree_papers.models.attention import translator
from filigree_papers.models.captioner import captioner
from filigree_papers.models.ntm import ntm
from filigree_papers.models.sequence import character_encoder, sequence_classifier

__all__ = ["captioner", "character_encoder", "ntm", "sequence_classifier", "translator"]
