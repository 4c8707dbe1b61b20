"""Data modules: the corpora of the paper, and a small one for demonstrations."""

from datamodules.film_reviews import FilmReviews
from datamodules.penn_treebank import PennTreebank
from datamodules.snippets import SnippetLanguage, SnippetRatings
from datamodules.streams import StreamWindows, split_streams

__all__ = ["FilmReviews", "PennTreebank", "SnippetLanguage", "SnippetRatings", "StreamWindows", "split_streams"]
