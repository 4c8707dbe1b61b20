"""The experiments as LightningModules."""

from lightning_modules.language_model import LanguageModel, LanguageModelMasks
from lightning_modules.sentiment_regressor import SentimentRegressor

__all__ = ["LanguageModel", "LanguageModelMasks", "SentimentRegressor"]
