"""Data modules: the corpora of the paper, a small one for demonstrations, and texts of your own."""

from datamodules.film_reviews import FilmReviews
from datamodules.own_texts import PlainText, RatedText
from datamodules.penn_treebank import PennTreebank
from datamodules.snippets import SnippetLanguage, SnippetRatings
from datamodules.streams import StreamWindows, split_streams

__all__ = [
    "FilmReviews",
    "PennTreebank",
    "PlainText",
    "RatedText",
    "SnippetLanguage",
    "SnippetRatings",
    "StreamWindows",
    "split_streams",
]
