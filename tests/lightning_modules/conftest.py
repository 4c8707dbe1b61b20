from tests.random_data import language_model, recorder, regressor, reviews, streams, trainer

__all__ = ["language_model", "recorder", "regressor", "reviews", "streams", "trainer"]
