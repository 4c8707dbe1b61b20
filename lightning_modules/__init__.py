"""The experiments as LightningModules."""

from lightning_modules.language_model import LanguageModel
from lightning_modules.loading import load
from lightning_modules.networks import NetworkMasks
from lightning_modules.sentiment_regressor import SentimentRegressor

__all__ = ["LanguageModel", "NetworkMasks", "SentimentRegressor", "load"]
